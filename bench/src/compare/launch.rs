//! A server as a process: started on its core, waited for until it listens, ended on drop.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::sys::pin_thread;
use crate::target::Target;

use super::process::family;

/// A server that does not listen within this time has failed.
const START_MAX: Duration = Duration::from_secs(20);

/// Where the programs and directories are.
#[derive(Debug, Clone)]
pub struct Places {
    /// The gateway's binary.
    pub tidegate: PathBuf,
    /// The gateway's binary of another build.
    pub before: Option<PathBuf>,
    /// More arguments for the gateway.
    pub tidegate_args: Vec<String>,
    /// The floor server's binary.
    pub floor: PathBuf,
    /// The router's example of that name.
    pub placement: PathBuf,
    /// Where the peers are installed.
    pub peers: PathBuf,
    /// Where the servers' output goes.
    pub logs: PathBuf,
    pub server_core: usize,
    pub client_core: usize,
}

/// Why a server is not there to be measured.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("{path} could not be written: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("npm could not be run in {path}: {source}; install Node.js and npm")]
    Npm { path: PathBuf, source: io::Error },
    #[error("npm install failed in {path}: its output is above")]
    Install { path: PathBuf },
    #[error("{program} could not be started: {source}")]
    Spawn { program: PathBuf, source: io::Error },
    #[error("{name} ended before it listened: see {log}")]
    Ended { name: &'static str, log: PathBuf },
    #[error("{name} does not listen on {address} after {} s: see {log}", START_MAX.as_secs())]
    Silent { name: &'static str, address: SocketAddr, log: PathBuf },
    #[error("{program} failed: {status}")]
    Failed { program: PathBuf, status: std::process::ExitStatus },
    #[error("confining to core {core:?} failed: {source}")]
    Pin { core: Option<usize>, source: io::Error },
    #[error("no free port on loopback: {0}")]
    Port(#[source] io::Error),
}

/// A program that is to listen on an address.
#[derive(Debug)]
pub(super) struct Launch {
    /// For messages and for the name of its log.
    pub(super) name: &'static str,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<(&'static str, String)>,
    pub(super) address: SocketAddr,
    /// `None`: all of them.
    pub(super) core: Option<usize>,
}

/// A running server; dropping it ends the process and its children.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pub address: SocketAddr,
}

impl Running {
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    #[must_use]
    pub fn target(&self) -> Target {
        Target::of(self.address)
    }

    /// Asks it to end as an operator does.
    pub(super) fn terminate(&self) {
        if let Some(pid) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw) {
            // It fails only if the process is gone already, which is what is wanted.
            let _told = kill_process(pid, Signal::TERM);
        }
    }

    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let children = family(self.pid()).split_off(1);
        // All of these fail only if the process is gone already, which is what is wanted.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
        for child in children {
            if let Some(pid) = i32::try_from(child).ok().and_then(Pid::from_raw) {
                let _killed = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// Variables of a process.
pub(super) fn environment(words: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    words.iter().map(|&(name, value)| (name, value.to_owned())).collect()
}

/// Starts a program on its core and waits until it listens.
pub(super) fn launch(places: &Places, launch: Launch) -> Result<Running, ServerError> {
    let Launch { name, program, arguments, environment, address, core } = launch;
    let log = places.logs.join(format!("{}.log", name.to_lowercase().replace(' ', "-")));
    let output = open_log(&log)?;
    let errors = output.try_clone().map_err(|source| ServerError::Write { path: log.clone(), source })?;
    // Where the scripts of peers are; not there yet when none of them takes part.
    let peers = &places.peers;
    fs::create_dir_all(peers).map_err(|source| ServerError::Write { path: peers.clone(), source })?;
    let mut command = Command::new(&program);
    command.args(arguments).envs(environment).current_dir(peers);
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    let child = on_core(places, core, || command.spawn())?;
    let child = child.map_err(|source| ServerError::Spawn { program, source })?;
    let mut running = Running { child, address };
    wait_listening(&mut running, name, log)?;
    Ok(running)
}

/// Runs a program on a core to its end and gives what it printed.
pub(super) fn output_of(
    places: &Places,
    core: usize,
    program: &Path,
    arguments: &[&str],
) -> Result<String, ServerError> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let output = on_core(places, Some(core), || command.output())?;
    let output = output.map_err(|source| ServerError::Spawn { program: program.into(), source })?;
    if !output.status.success() {
        return Err(ServerError::Failed { program: program.into(), status: output.status });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Calls `start` while this thread is on another core: a child inherits the cores of the thread that starts it.
pub(super) fn on_core<T>(
    places: &Places,
    core: Option<usize>,
    start: impl FnOnce() -> T,
) -> Result<T, ServerError> {
    pin(core)?;
    let started = start();
    pin(Some(places.client_core))?;
    Ok(started)
}

/// Keeps the calling thread, and what it starts from now on, on one core, or on none.
pub(super) fn pin(core: Option<usize>) -> Result<(), ServerError> {
    pin_thread(core).map_err(|source| ServerError::Pin { core, source })
}

/// A port that was free a moment ago. Nothing else on a benchmark machine takes it in between.
pub(super) fn free_address() -> Result<SocketAddr, ServerError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(ServerError::Port)
}

/// Writes a configuration file and gives its path.
pub(super) fn write(directory: &Path, name: &str, content: &str) -> Result<String, ServerError> {
    let path: PathBuf = directory.join(name);
    let written = fs::create_dir_all(directory).and_then(|()| fs::write(&path, content));
    written.map_err(|source| ServerError::Write { path: path.clone(), source })?;
    Ok(path.display().to_string())
}

/// A program of the system. Debian keeps servers where an ordinary user's PATH does not look.
pub(super) fn system_program(name: &str) -> PathBuf {
    let path = Path::new("/usr/sbin").join(name);
    if path.is_file() { path } else { name.into() }
}

fn open_log(path: &Path) -> Result<File, ServerError> {
    let write = |source| ServerError::Write { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(write)?;
    }
    File::options().create(true).append(true).open(path).map_err(write)
}

fn wait_listening(running: &mut Running, name: &'static str, log: PathBuf) -> Result<(), ServerError> {
    let began = Instant::now();
    while began.elapsed() < START_MAX {
        if TcpStream::connect(running.address).is_ok() {
            return Ok(());
        }
        if matches!(running.child.try_wait(), Ok(Some(_)) | Err(_)) {
            return Err(ServerError::Ended { name, log });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(ServerError::Silent { name, address: running.address, log })
}
