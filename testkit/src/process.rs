//! Child processes: captured output, signals by pid, no survivors.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::eventually_some;

/// A running child whose output is captured line by line and shown when the test fails.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: Captured,
    stderr: Captured,
    readers: Vec<JoinHandle<()>>,
    status: Option<ExitStatus>,
}

/// How a child ended, with all it printed.
#[derive(Debug, Clone)]
pub struct Exit {
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The signals that tests send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM: please drain and end.
    Terminate,
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGKILL: end at once, nothing is cleaned up.
    Kill,
    /// SIGSTOP: stand still, with all sockets open.
    Freeze,
    /// SIGCONT: go on after `Freeze`.
    Thaw,
    /// SIGHUP: the terminal has closed, or files are to be read again.
    HangUp,
}

impl Process {
    /// Starts `command` with no standard input and captured output.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn spawn(name: &str, command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("cannot start {name} ({command:?}): {error}"),
        };
        let (stdout, out_reader) = Captured::follow(child.stdout.take());
        let (stderr, err_reader) = Captured::follow(child.stderr.take());
        Self {
            name: name.to_owned(),
            child,
            stdout,
            stderr,
            readers: vec![out_reader, err_reader],
            status: None,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed on standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text().clone()
    }

    /// What it printed on standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text().clone()
    }

    /// Sends a signal to this process alone.
    ///
    /// # Panics
    /// When it has ended already: a test that signals a dead process tests nothing.
    pub fn signal(&mut self, stop: Stop) {
        if let Some(status) = self.try_wait() {
            panic!("{} ended before it was signalled ({status}){}", self.name, self.output());
        }
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a child has a positive pid");
        let signal = match stop {
            Stop::Terminate => Signal::TERM,
            Stop::Interrupt => Signal::INT,
            Stop::Kill => Signal::KILL,
            Stop::Freeze => Signal::STOP,
            Stop::Thaw => Signal::CONT,
            Stop::HangUp => Signal::HUP,
        };
        kill_process(pid, signal).expect("an own child can be signalled");
    }

    /// Its exit status, when it has ended.
    ///
    /// # Panics
    /// When the kernel refuses to tell.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("an own child can be waited for");
        }
        self.status
    }

    /// Waits for the end and gives the exit code and everything printed.
    ///
    /// # Panics
    /// When it is still running after `deadline`.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> Exit {
        let give_up = Instant::now() + deadline;
        while Instant::now() < give_up {
            if let Some(status) = self.try_wait() {
                // Both pipes are at their end now unless a grandchild holds them; the readers stop with them.
                for reader in self.readers.drain(..) {
                    reader.join().expect("a reader thread does not panic");
                }
                return Exit { code: status.code(), stdout: self.stdout(), stderr: self.stderr() };
            }
            crate::wait::observe(Duration::from_millis(5));
        }
        panic!("{} still runs after {deadline:?}{}", self.name, self.output());
    }

    /// Waits for a line on standard output for which `pick` gives a value.
    ///
    /// # Panics
    /// When the process ends or `deadline` passes before such a line.
    #[track_caller]
    pub fn wait_line<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut pick: impl FnMut(&str) -> Option<T>,
    ) -> T {
        let stdout = self.stdout.clone();
        eventually_some(what, deadline, || {
            let ended = self.try_wait();
            if let Some(found) = stdout.text().lines().find_map(&mut pick) {
                return Some(found);
            }
            if let Some(status) = ended {
                panic!("{} ended ({status}) before: {what}{}", self.name, self.output());
            }
            None
        })
    }

    fn output(&self) -> String {
        let (stdout, stderr) = (self.stdout(), self.stderr());
        let name = &self.name;
        format!("\n--- {name} stdout ---\n{stdout}\n--- {name} stderr ---\n{stderr}\n--- end of {name} ---")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.output());
        }
        if self.status.is_none() {
            // An error means that it has ended by itself, which is what is wanted here.
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "exit code {:?}\n--- stdout ---\n{}\n--- stderr ---\n{}",
            self.code, self.stdout, self.stderr
        )
    }
}

/// Ends a process that is no child, with no chance to clean up.
pub fn end(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a positive pid");
    // It may have ended by itself.
    let _ended = kill_process(pid, Signal::KILL);
}

/// Whether there is such a process, and it has not ended.
pub fn pid_runs(pid: u32) -> bool {
    // The state stands behind the name, which is in parentheses.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// The `tidegate` program under test.
///
/// `TIDEGATE_BIN` when set (as `cargo xtask test` does); else the one beside the test executable's directory
/// (`target/PROFILE/tidegate`), else the release one.
///
/// # Panics
/// When there is none: building it here would hide which binary was tested.
pub fn product_binary() -> PathBuf {
    if let Some(path) = env_path("TIDEGATE_BIN") {
        assert!(path.is_file(), "TIDEGATE_BIN={} is no file", path.display());
        return path;
    }
    let executable = env::current_exe().expect("a test knows its own executable");
    let profile = executable.ancestors().nth(2).map(Path::to_path_buf).unwrap_or_default();
    let candidates = [profile.join("tidegate"), profile.join("../release/tidegate")];
    for candidate in &candidates {
        if candidate.is_file() {
            return candidate.clone();
        }
    }
    panic!(
        "no tidegate binary at {candidates:?}: run `cargo build --release -p tidegate`, or `cargo xtask test --only e2e`"
    );
}

/// Where Debian puts a library that is loaded before a program's own.
///
/// # Panics
/// When it is not installed.
#[track_caller]
pub fn preloaded(library: &str) -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().filter_map(Result::ok);
    let found = folders.map(|folder| folder.path().join(library)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{library} is not installed: cargo xtask test --only prepare"))
}

/// A path that the test runner passed on.
pub(crate) fn env_path(name: impl AsRef<OsStr>) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Text that a thread collects from a pipe.
#[derive(Debug, Clone, Default)]
struct Captured(Arc<Mutex<String>>);

impl Captured {
    fn follow(pipe: Option<impl Read + Send + 'static>) -> (Self, JoinHandle<()>) {
        let captured = Self::default();
        let writer = captured.clone();
        let reader = thread::spawn(move || {
            let Some(pipe) = pipe else { return };
            let mut lines = BufReader::new(pipe);
            let mut line = Vec::new();
            // Bytes, not `lines()`: output that is not UTF-8 must not end the capture.
            while matches!(lines.read_until(b'\n', &mut line), Ok(read) if read > 0) {
                writer.text().push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
        (captured, reader)
    }

    fn text(&self) -> MutexGuard<'_, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DEADLINE;

    fn shell(script: &str) -> Process {
        Process::spawn("script", Command::new("sh").args(["-c", script]))
    }

    #[test]
    fn output_and_exit_code_are_kept() {
        let exit = shell("echo out; echo err >&2; exit 7").wait(DEADLINE);
        assert_eq!((exit.code, exit.stdout.as_str(), exit.stderr.as_str()), (Some(7), "out\n", "err\n"));
    }

    #[test]
    fn a_line_is_seen_while_it_runs_and_a_kill_ends_it() {
        let mut process = shell("echo port 81; exec sleep 600");
        let port =
            process.wait_line("port", DEADLINE, |line| line.strip_prefix("port ")?.parse::<u16>().ok());
        assert_eq!(port, 81);
        process.signal(Stop::Kill);
        assert_eq!(process.wait(DEADLINE).code, None);
    }

    #[test]
    #[should_panic(expected = "before: a line that never comes")]
    fn an_early_end_is_told_apart_from_a_late_line() {
        shell("exit 3").wait_line("a line that never comes", DEADLINE, |_| None::<()>);
    }
}
