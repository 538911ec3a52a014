//! Programs that one process starts, keeps running and stops.
//!
//! ```text
//! start     groups in their order; the next when each of the last has said that it listens
//! run       what ends is started again, after a wait that doubles (`backoff`)
//! stop      the groups are asked to drain, the last first; the end is the end of the last program
//! ```
//!
//! A process may start another one that takes its place (`crate::succession`). That one is in the same process group, and when
//! the first has ended it is a child of this process, which adopts it: a program runs as long as there is a process of its group.

mod backoff;
pub mod port;

use std::{
    convert::Infallible,
    fs::File,
    io::{self, BufRead as _, BufReader, Write as _},
    os::{
        fd::OwnedFd,
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitOptions, kill_process_group, waitpgid},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader as AsyncBufReader},
    process::ChildStdout,
    signal::unix::{Signal as SignalStream, SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant as TokioInstant, sleep, sleep_until},
};

use backoff::Backoff;

/// A program to be run.
#[derive(Debug)]
pub struct Program {
    pub name: Box<str>,
    pub command: Command,
    /// Its log lines begin with its name: not where each is an object of JSON.
    pub names_lines: bool,
}

/// A program that listens.
#[derive(Debug)]
pub struct Ready {
    pub name: Box<str>,
    line: watch::Receiver<Box<str>>,
}

impl Ready {
    /// In which it has said so last.
    pub fn line(&self) -> Box<str> {
        self.line.borrow().clone()
    }
}

/// Why the programs do not run.
#[derive(Debug, thiserror::Error)]
pub enum ChildrenError {
    #[error("cannot start {name}: {source}")]
    Spawn { name: Box<str>, source: io::Error },
    #[error("{name} has ended before it listened ({status}); what it says above is what is to be mended")]
    Begin { name: Box<str>, status: ExitStatus },
    #[error("cannot set up {part}: {source}")]
    System { part: &'static str, source: io::Error },
}

impl ChildrenError {
    /// What the process exits with: what its child did, where that has found something to mend.
    pub fn exit_code(&self) -> u8 {
        let code = match self {
            Self::Begin { status, .. } => status.code().and_then(|code| u8::try_from(code).ok()),
            Self::Spawn { .. } | Self::System { .. } => None,
        };
        code.filter(|code| *code != 0).unwrap_or(1)
    }
}

/// The line on standard output with which a program says that it listens begins with this.
const LISTENING: &str = "listening ";

/// Of a process there is one such line; who says more waits until it is read.
const LINES_WAITING: usize = 4;

/// A process whose predecessor has died serves in this time, or not at all.
const UNSERVED_MAX: Duration = Duration::from_secs(30);

/// A program that runs: its process, and whoever took that one's place.
struct Running {
    group: Pid,
    /// How the last one that has ended did.
    last: Option<ExitStatus>,
    /// Processes of it that have said that they listen, and those that have ended since.
    listened: u32,
    ended: u32,
    _first: Child,
}

/// What is asked of the programs of a group. The numbers only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Asked {
    /// How often to stop: to drain, then at once.
    stops: u32,
    reloads: u32,
}

/// Runs groups of programs until this process is told to stop. `on_ready` is called when all of them listen.
pub async fn run(groups: Vec<Vec<Program>>, on_ready: impl FnOnce(Vec<Ready>)) -> Result<(), ChildrenError> {
    adopt().map_err(|source| ChildrenError::System { part: "what adopts processes", source })?;
    let asks: Vec<watch::Sender<Asked>> = groups.iter().map(|_| watch::Sender::default()).collect();
    let signals = Signals::new().map_err(|source| ChildrenError::System { part: "signals", source })?;
    let mut keepers = JoinSet::new();
    let running = async {
        let started = start(groups, &asks, &mut keepers).await;
        let started = match started {
            Ok(ready) => {
                ready.map(on_ready);
                Ok(())
            }
            Err(error) => {
                // The others end as well.
                asks.iter().for_each(|ask| ask.send_modify(|asked| asked.stops += 1));
                Err(error)
            }
        };
        while keepers.join_next().await.is_some() {}
        started
    };
    tokio::select! {
        ended = running => ended,
        never = signals.pass_on(&asks) => match never {},
    }
}

/// Starts one group after the other. `None`: before all of them listened, they were told to stop.
async fn start(
    groups: Vec<Vec<Program>>,
    asks: &[watch::Sender<Asked>],
    keepers: &mut JoinSet<Result<(), ChildrenError>>,
) -> Result<Option<Vec<Ready>>, ChildrenError> {
    let (tell, mut told) = mpsc::channel(LINES_WAITING);
    let mut ready = Vec::new();
    for (programs, ask) in groups.into_iter().zip(asks) {
        let expected = ready.len() + programs.len();
        for program in programs {
            keepers.spawn(keep(program, ask.subscribe(), tell.clone()));
        }
        while ready.len() < expected {
            tokio::select! {
                Some(one) = told.recv() => ready.push(one),
                Some(ended) = keepers.join_next() => match ended {
                    Ok(Err(error)) => return Err(error),
                    Ok(Ok(())) | Err(_) => return Ok(None),
                },
            }
        }
    }
    Ok(Some(ready))
}

/// Runs a program, again and again, until it is to stop.
async fn keep(
    mut program: Program,
    mut asked: watch::Receiver<Asked>,
    tell: mpsc::Sender<Ready>,
) -> Result<(), ChildrenError> {
    let system = |part| move |source| ChildrenError::System { part, source };
    let (mut backoff, (line, lines)) = (Backoff::default(), watch::channel(Box::default()));
    // Before the first child, so that no end is missed.
    let mut deaths = signal(SignalKind::child()).map_err(system("signals"))?;
    let mut has_listened = false;
    while asked.borrow().stops == 0 {
        let (begun, (ready, mut said)) = (Instant::now(), mpsc::channel(LINES_WAITING));
        let mut running = spawn(&mut program, ready)?;
        let mut unserved = None;
        let status = loop {
            let before = *asked.borrow_and_update();
            tokio::select! {
                Some(new) = said.recv() => {
                    line.send_replace(new);
                    running.listened += 1;
                    unserved = None;
                    if !std::mem::replace(&mut has_listened, true) {
                        // Nobody waits for it any more where all are to stop.
                        drop(tell.send(Ready { name: program.name.clone(), line: lines.clone() }).await);
                    }
                }
                ended = running.next_end(&mut deaths) => match ended {
                    Err(error) => break Err(error),
                    Ok(true) if running.listened <= running.ended => {
                        unserved = Some(TokioInstant::now() + UNSERVED_MAX);
                    }
                    Ok(true) => {}
                    Ok(false) => break running.last.ok_or(io::ErrorKind::NotFound.into()),
                },
                () = sleep_until(unserved.unwrap_or_else(TokioInstant::now)), if unserved.is_some() => {
                    running.signal(Signal::KILL);
                    unserved = None;
                }
                Ok(()) = asked.changed() => running.pass_on(before, *asked.borrow()),
            }
        };
        let status = status.map_err(system("waiting for a child"))?;
        if asked.borrow().stops > 0 {
            note_end(&program.name, status);
            break;
        }
        if !has_listened {
            return Err(ChildrenError::Begin { name: program.name, status });
        }
        let wait = backoff.ended(begun.elapsed());
        note_restart(&program.name, status, wait, backoff.ends());
        tokio::select! {
            () = sleep(wait) => {}
            Ok(_) = asked.wait_for(|asked| asked.stops > 0) => {}
        }
    }
    Ok(())
}

/// From so many ends in a row on it is no accident.
const ENDS_MANY: u32 = 5;

fn note_restart(child: &str, status: ExitStatus, again_in: Duration, ends: u32) {
    if ends < ENDS_MANY {
        tracing::error!(child, %status, ?again_in, "a child has ended and is started again");
    } else {
        tracing::error!(
            child, %status, ?again_in, ends,
            "a child has ended and is started again: it ends each time within a minute; what it says above is what is to be mended"
        );
    }
}

fn note_end(name: &str, status: ExitStatus) {
    match status.success() {
        true => tracing::info!(child = name, "has ended"),
        false => tracing::warn!(child = name, %status, "has ended otherwise than it was asked to"),
    }
}

/// Starts it in a process group of its own: a Ctrl-C at the terminal is for this process, which passes it on once.
fn spawn(program: &mut Program, ready: mpsc::Sender<Box<str>>) -> Result<Running, ChildrenError> {
    let Program { name, command, names_lines } = program;
    let failed = |source| ChildrenError::Spawn { name: name.clone(), source };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(failed)?;
    if let Some(stdout) = child.stdout.take() {
        tokio::spawn(hear(ChildStdout::from_std(stdout).map_err(failed)?, ready));
    }
    if let Some(stderr) = child.stderr.take() {
        let prefix = if *names_lines { format!("{name}: ") } else { String::new() };
        // It waits for whoever reads the log, and ends with the last process of the group.
        let copying = move || copy_lines(OwnedFd::from(stderr).into(), &prefix);
        thread::Builder::new().name("log".to_owned()).spawn(copying).map_err(failed)?;
    }
    let group = Pid::from_child(&child);
    Ok(Running { group, last: None, listened: 0, ended: 0, _first: child })
}

/// Reads what a child says on standard output until it ends, and passes on that it listens.
async fn hear(stdout: ChildStdout, ready: mpsc::Sender<Box<str>>) {
    let mut lines = AsyncBufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(said) = line.strip_prefix(LISTENING) {
            // Nobody waits for it any more where the child has ended.
            drop(ready.send(said.into()).await);
        }
    }
}

/// A line of a child is one write, so that lines of two children do not mix.
fn copy_lines(from: File, prefix: &str) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        line.extend_from_slice(prefix.as_bytes());
        match from.read_until(b'\n', &mut line) {
            Ok(read) if read > 0 => {}
            _ => return,
        }
        if io::stderr().write_all(&line).is_err() {
            // Nobody reads the log; the child must not wait for that.
            let _read: io::Result<u64> = io::copy(&mut from, &mut io::sink());
            return;
        }
    }
}

impl Running {
    /// Waits until one of its processes has ended. `false`: all have.
    async fn next_end(&mut self, deaths: &mut SignalStream) -> io::Result<bool> {
        loop {
            match waitpgid(self.group, WaitOptions::NOHANG) {
                Ok(Some((_, status))) => {
                    self.last = Some(ExitStatus::from_raw(status.as_raw()));
                    self.ended += 1;
                    return Ok(true);
                }
                Ok(None) => drop(deaths.recv().await),
                Err(Errno::CHILD) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends what is asked since `before`.
    fn pass_on(&self, before: Asked, now: Asked) {
        let signals = [(now.reloads > before.reloads, Signal::HUP), (now.stops > before.stops, Signal::TERM)];
        signals.into_iter().filter(|(is_asked, _)| *is_asked).for_each(|(_, signal)| self.signal(signal));
    }

    fn signal(&self, signal: Signal) {
        if let Err(error) = kill_process_group(self.group, signal) {
            tracing::warn!(%error, "a child could not be signalled");
        }
    }
}

/// What this process is told.
struct Signals {
    terminate: SignalStream,
    interrupt: SignalStream,
    hangup: SignalStream,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn pass_on(mut self, asks: &[watch::Sender<Asked>]) -> Infallible {
        loop {
            let is_reload = tokio::select! {
                _ = self.terminate.recv() => false,
                _ = self.interrupt.recv() => false,
                _ = self.hangup.recv() => true,
            };
            for ask in asks.iter().rev() {
                ask.send_modify(|asked| match is_reload {
                    true => asked.reloads += 1,
                    false => asked.stops += 1,
                });
            }
            if !is_reload {
                tracing::info!("stopping: all programs drain; once more to stop at once");
            }
        }
    }
}

/// Processes whose parent has ended become children of this one.
#[cfg(target_os = "linux")]
fn adopt() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

#[cfg(not(target_os = "linux"))]
fn adopt() -> io::Result<()> {
    Ok(())
}

/// Has this process told to end when the one does that runs it by [`run`], whose number it was told: without it nobody would
/// start this one again, or stop it.
#[cfg(target_os = "linux")]
pub fn end_with(parent: u32, takes_over: bool) -> io::Result<()> {
    if takes_over {
        return end_after(parent);
    }
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    // It may have ended before.
    match rustix::process::getppid().is_some_and(|pid| pid.as_raw_nonzero().get().cast_unsigned() == parent) {
        true => Ok(()),
        false => Err(io::Error::other("the process that started this one has ended")),
    }
}

/// The same of a process whose parent is still the one whose place it takes: the kernel would tell it of that one's end.
#[cfg(target_os = "linux")]
fn end_after(parent: u32) -> io::Result<()> {
    use rustix::{
        event::{PollFd, PollFlags, poll},
        process::{PidfdFlags, getpid, kill_process, pidfd_open},
    };
    let parent = Pid::from_raw(parent.cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
    let parent = pidfd_open(parent, PidfdFlags::empty())?;
    let wait = move || {
        let mut ends = [PollFd::new(&parent, PollFlags::IN)];
        while let Err(Errno::INTR) = poll(&mut ends, None) {}
        if let Err(error) = kill_process(getpid(), Signal::TERM) {
            tracing::error!(%error, "the process that runs this one has ended");
        }
    };
    thread::Builder::new().name("parent".to_owned()).spawn(wait).map(drop)
}

#[cfg(not(target_os = "linux"))]
pub fn end_with(_: u32, _: bool) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests;
