//! Another process takes this one's place, with its connections (docs/adr/0026-live-upgrade.md).
//!
//! ```text
//! start it, with the listening sockets ─► it is ready ─► nothing is read or accepted (`Paused`), nobody publishes
//!   ─► all that was begun has ended ─► each shard stands still and writes down its connections (`standing`)
//!   ─► it has read all of that ─► Go ─► shards let go of what moved, and tell the others to come back
//! ```
//!
//! Until `Go` every error, and every end of the other process, has this one go on as if nothing had been: the other process
//! is ended first, so that never two serve.

mod carrying;
mod standing;
pub(super) mod successor;

use std::{
    ffi::OsString,
    net::TcpListener,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver},
    },
    time::{Duration, Instant},
};

use tidegate_backplane::{Channel, HandOnError, TakeInError};
use tidegate_ops::{
    probes,
    succession::{Successor, Talk, TalkError, memory_file},
};
use tidegate_reactor::{Connections, Listener, Mail};
use tidegate_wire::{
    fields::{Malformed, Writer},
    succession::{SOCKETS_MAX, Step},
};
use tokio::{sync::Notify, task::AbortHandle};

use crate::{
    node::{Node, Stage},
    server::carrier::Carrier,
    session::{
        Session,
        core::{Command, Core, ShardMailbox},
    },
};
use standing::{Standing, Written};

/// How the program is started that takes this process's place.
#[derive(Debug, Clone)]
pub struct Launch {
    pub program: PathBuf,
    /// Those of this process, and what says that it takes over.
    pub args: Vec<OsString>,
}

/// Of the state as a whole: shards with their records, lists of those who are in channels, and the backplane.
const FORM: u8 = 2;

/// A process reads its configuration, builds its parts and says that it is ready in this time.
const READY_PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at whether it is still to be waited for.
const READY_LOOK: Duration = Duration::from_millis(100);

/// What was begun ends within milliseconds, unless it waits for another machine; then its connection stays.
const SETTLE_MAX: Duration = Duration::from_millis(500);

/// Between two looks at whether it has.
const SETTLE_PAUSE: Duration = Duration::from_millis(1);

/// A shard does what it is asked in one turn, some 10 ms; it has failed, or the machine stands still.
const SHARD_PATIENCE: Duration = Duration::from_secs(5);

/// The other process reads what 20,000 connections are in about 0.2 s. Clients wait meanwhile.
const TAKEN_PATIENCE: Duration = Duration::from_secs(5);

/// It has everything, and makes its connections of it.
const SERVING_PATIENCE: Duration = Duration::from_secs(30);

/// Why this process goes on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpgradeError {
    #[error("{0}")]
    NotHere(&'static str),
    #[error("an upgrade is under way already; wait for its end")]
    UnderWay,
    #[error("this process drains")]
    Draining,
    #[error(
        "cannot start {program}: {source}; the path is that of the program that runs, see that one is there"
    )]
    Start { program: String, source: std::io::Error },
    #[error("{program} ended before it could serve ({status}); its own messages say why")]
    Ended { program: String, status: String },
    #[error("the new process cannot take over: {0}")]
    Refused(Box<str>),
    #[error("the new process cannot take over: {0}")]
    Talk(#[from] TalkError),
    #[error("the new process said something else than was to be said")]
    Unexpected,
    #[error("a shard did not answer")]
    Shard,
    #[error("the new process was given the connections too slowly; try again when the machine is less busy")]
    Slow,
    #[error("what was begun did not end within {SETTLE_MAX:?}; try again when less is under way")]
    Busy,
    #[error(
        "its configuration has `{key}` = {wanted}, and this process listens on {has}: a change of that needs a restart"
    )]
    Address { key: &'static str, has: std::net::SocketAddr, wanted: std::net::SocketAddr },
    #[error(
        "its configuration has {has} shards, and this process runs {had}: a change of that needs a restart"
    )]
    Shards { had: u32, has: u32 },
    #[error(transparent)]
    HandOn(#[from] HandOnError),
    #[error(transparent)]
    TakeIn(#[from] TakeInError),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the system refuses: {0}")]
    State(#[from] std::io::Error),
    /// There is no way back.
    #[error("the new process ended after it had taken over, and its clients with it: {0}")]
    Lost(TalkError),
}

/// What an upgrade takes, kept while the node runs.
pub(crate) struct Upgrades {
    pub(super) launch: Option<Launch>,
    pub(super) shards: Vec<ShardMailbox>,
    pub(super) carrier: Carrier,
    pub(super) life: u64,
    pub(super) node: Arc<Node>,
    pub(super) public: TcpListener,
    pub(super) internal: TcpListener,
    /// What accepts on the internal port, and what says to others that this node is there.
    pub(super) tasks: Vec<AbortHandle>,
    pub(super) progress: Mutex<Progress>,
    pub(super) given: Notify,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Progress {
    #[default]
    Idle,
    UnderWay,
    /// This process drains, and hands nothing on any more.
    Draining,
    /// Everything is another process's.
    Given,
    /// That one ended before it served.
    Lost,
}

/// How a process is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Drain,
    /// Another process serves in its place.
    Given,
    Lost,
}

impl Upgrades {
    /// Has another process take over; its id. Blocks.
    pub(crate) fn run(self: &Arc<Self>) -> Result<u32, UpgradeError> {
        let launch = self.check()?;
        {
            let mut progress = self.progress();
            match *progress {
                Progress::Idle => *progress = Progress::UnderWay,
                Progress::UnderWay => return Err(UpgradeError::UnderWay),
                Progress::Draining | Progress::Given | Progress::Lost => return Err(UpgradeError::Draining),
            }
        }
        let began = Instant::now();
        let outcome = self.hand_on(launch);
        let mut progress = self.progress();
        match &outcome {
            Ok(process) => {
                tracing::info!(process, took = ?began.elapsed(), "another process serves in this one's place");
            }
            Err(error) if *progress == Progress::Given => tracing::error!(%error, "the upgrade has failed"),
            Err(error) => tracing::error!(%error, "no upgrade: this process goes on"),
        }
        match (&*progress, &outcome) {
            (Progress::UnderWay, _) => *progress = Progress::Idle,
            (Progress::Given, Err(_)) => *progress = Progress::Lost,
            _ => {}
        }
        drop(progress);
        self.given.notify_waiters();
        outcome
    }

    /// Begins to end. An upgrade that is under way, and not yet beyond return, ends without effect.
    pub(super) fn end(&self) -> End {
        let mut progress = self.progress();
        match *progress {
            Progress::Given => End::Given,
            Progress::Lost => End::Lost,
            Progress::Idle | Progress::UnderWay | Progress::Draining => {
                *progress = Progress::Draining;
                End::Drain
            }
        }
    }

    /// Resolves when another process has taken over, and what is to be said of it was said.
    pub(super) async fn over(&self) {
        loop {
            let mut over = std::pin::pin!(self.given.notified());
            over.as_mut().enable();
            if self.is_over() {
                return;
            }
            over.await;
        }
    }

    fn is_over(&self) -> bool {
        matches!(*self.progress(), Progress::Given | Progress::Lost)
    }

    /// What `POST /upgrade` calls.
    pub(super) fn offer(self: &Arc<Self>, upgrade: &probes::Upgrade) {
        // Not owned: what is called there belongs to what this would hold.
        let upgrades = Arc::downgrade(self);
        upgrade.offer(move || {
            let upgrades = upgrades.clone();
            Box::pin(async move {
                let run = move || match upgrades.upgrade() {
                    Some(upgrades) => upgrades.run().map_err(|error| error.to_string()),
                    None => Err(UpgradeError::Draining.to_string()),
                };
                tokio::task::spawn_blocking(run).await.unwrap_or_else(|error| Err(error.to_string()))
            })
        });
    }

    /// What SIGUSR2 does; what comes of it is in the log.
    pub(super) fn at_signal(self: &Arc<Self>) -> impl FnMut() + Send + 'static {
        let upgrades = Arc::downgrade(self);
        move || {
            if let Some(upgrades) = upgrades.upgrade() {
                drop(tokio::task::spawn_blocking(move || upgrades.run()));
            }
        }
    }

    fn check(&self) -> Result<&Launch, UpgradeError> {
        let config = self.node.config();
        let why = if config.tls.is_on() {
            "a gateway that ends TLS itself cannot hand its sessions on: restart it, or end TLS before it"
        } else if config.handover.socket.is_some() {
            "a gateway that takes connections over from a router (`handover.socket`) cannot hand them on yet: restart it"
        } else if !config.consumers.is_empty() {
            "a gateway with consumers cannot be upgraded live yet: restart it"
        } else if !config.hooks.0.is_empty() {
            "a gateway with hooks (`hooks.*`) cannot be upgraded live yet, because two processes would ask and tell the application: restart it"
        } else if std::process::id() == 1 {
            "this process is the first of its container, which ends with it: start a new container"
        } else {
            self.carrier.can_go_on()?;
            return self.launch.as_ref().ok_or(UpgradeError::NotHere(NO_PROGRAM));
        };
        Err(UpgradeError::NotHere(why))
    }

    fn hand_on(self: &Arc<Self>, launch: &Launch) -> Result<u32, UpgradeError> {
        let program = launch.program.display().to_string();
        // Declared before the other process, so that after an error that one is ended before this one goes on.
        let (paused, standing);
        let mut successor = Successor::start(&launch.program, &launch.args)
            .map_err(|source| UpgradeError::Start { program: program.clone(), source })?;
        let process = successor.id().unwrap_or_default();
        self.introduce(&successor.talk).map_err(|error| match error {
            UpgradeError::Talk(TalkError::Ended) => {
                let status = successor.ended_within(END_PATIENCE);
                let status =
                    status.map_or_else(|| "it closed its standard input".to_owned(), |it| it.to_string());
                UpgradeError::Ended { program, status }
            }
            error => error,
        })?;
        paused = Paused::begin(self)?;
        paused.settle()?;
        standing = paused.stand()?;
        self.describe(&successor.talk, &standing)?;
        let refused = match successor.talk.hear(TAKEN_PATIENCE, |_| 0)?.0 {
            Step::Taken { refused } => refused,
            Step::Refused { why } => return Err(UpgradeError::Refused(why)),
            _ => return Err(UpgradeError::Unexpected),
        };
        standing.check()?;
        self.carrier.stands()?;
        self.commit(&successor.talk)?;
        // From here on there is no way back.
        self.forward(&successor.talk);
        let stayed = standing.let_go(&refused);
        paused.given();
        let serving = successor.talk.hear(SERVING_PATIENCE, |_| 0);
        successor.let_go();
        match serving {
            Ok((Step::Serving, _)) => {
                tracing::info!(stayed, "connections that could not go along were told to come back");
                Ok(process)
            }
            Ok(_) => Err(UpgradeError::Lost(TalkError::Ended)),
            Err(error) => Err(UpgradeError::Lost(error)),
        }
    }

    /// Gives the listening sockets, and waits until the other process is ready.
    fn introduce(&self, talk: &Talk) -> Result<(), UpgradeError> {
        let shards = self.shards.len() as u32;
        let step = Step::Listeners { node: self.node.name().into(), life: self.life, shards };
        talk.say(&step, &[self.public.as_fd(), self.internal.as_fd()])?;
        let until = Instant::now() + READY_PATIENCE;
        loop {
            match talk.hear(READY_LOOK, |_| 0) {
                Ok((Step::Ready, _)) => return Ok(()),
                Ok((Step::Refused { why }, _)) => return Err(UpgradeError::Refused(why)),
                Ok(_) => return Err(UpgradeError::Unexpected),
                // Nobody waits for a process that starts when this one is to stop.
                Err(TalkError::Silent(_)) if *self.progress() != Progress::UnderWay => {
                    return Err(UpgradeError::Draining);
                }
                Err(TalkError::Silent(_)) if Instant::now() < until => {}
                Err(TalkError::Silent(_)) => return Err(TalkError::Silent(READY_PATIENCE).into()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Gives the state, and the sockets.
    fn describe(&self, talk: &Talk, standing: &Standing) -> Result<(), UpgradeError> {
        let mut out = Writer::default();
        out.u8(FORM);
        out.list(standing.written.iter(), |out, Written { newest_generation, records, .. }| {
            out.u32(*newest_generation);
            out.list(records.iter(), |out, (_, record)| out.bytes(record));
        });
        self.node.rosters().write(&mut out);
        let own = self.carrier.write(&mut out)?;
        let state = memory_file(&out.into_bytes())?;
        let connections: usize = standing.written.iter().map(|written| written.records.len()).sum();
        talk.say(&Step::State { sockets: (connections + own.len()) as u32 }, &[state.as_fd()])?;
        standing.send_sockets(talk)?;
        for portion in own.chunks(SOCKETS_MAX) {
            let sockets: Vec<BorrowedFd<'_>> = portion.iter().map(OwnedFd::as_fd).collect();
            talk.say(&Step::Sockets { number: sockets.len() as u32 }, &sockets)?;
        }
        Ok(())
    }

    /// The last moment at which this process may go on.
    fn commit(&self, talk: &Talk) -> Result<(), UpgradeError> {
        let mut progress = self.progress();
        if *progress != Progress::UnderWay {
            return Err(UpgradeError::Draining);
        }
        talk.say(&Step::Go, &[])?;
        *progress = Progress::Given;
        drop(progress);
        self.tasks.iter().for_each(AbortHandle::abort);
        // Heads that are read from now on are refused here.
        self.node.set_stage(Stage::Closing);
        Ok(())
    }

    /// Connections that stayed leave their channels there.
    fn forward(&self, talk: &Talk) {
        // The end of this process is the end of the talk.
        let Ok(talk) = talk.try_clone() else { return };
        let tell = move |channel: &Channel, connection: Option<&str>| {
            let left =
                Step::Left { channel: channel.as_str().into(), connection: connection.map(Into::into) };
            if let Err(error) = talk.say(&left, &[]) {
                tracing::warn!(%error, "the new process still lists a connection that has left");
            }
        };
        self.carrier.give_away(Box::new(tell));
    }

    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const NO_PROGRAM: &str = "this process is a child of `tidegate serve`, which would start it again, or does not know its own program: restart it";

/// A process that says nothing more is about to have ended.
const END_PATIENCE: Duration = Duration::from_millis(200);

impl std::fmt::Debug for Upgrades {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upgrades").field("launch", &self.launch).finish_non_exhaustive()
    }
}

/// While there is one, nothing is read or accepted, and who publishes waits.
struct Paused<'u> {
    upgrades: &'u Upgrades,
    is_given: bool,
}

impl<'u> Paused<'u> {
    fn begin(upgrades: &'u Upgrades) -> Result<Self, UpgradeError> {
        let paused = Self { upgrades, is_given: false };
        ask_all(&upgrades.shards, |_, connections| connections.hold_reads(true))?;
        upgrades.carrier.suspend();
        Ok(paused)
    }

    /// Waits until what was begun has ended, but not for long, and has nothing more arrive.
    fn settle(&self) -> Result<(), UpgradeError> {
        let (shards, carrier) = (&self.upgrades.shards, &self.upgrades.carrier);
        let began = Instant::now();
        let mut quiet = 0;
        while quiet < 2 && began.elapsed() < SETTLE_MAX {
            // What a shard was given before it is asked is under way when it answers.
            let has_begun = ask_all(shards, |core, _| core.legacies.is_empty())?.into_iter().all(|it| it);
            quiet = if has_begun && carrier.is_quiet() { quiet + 1 } else { 0 };
            std::thread::park_timeout(SETTLE_PAUSE);
        }
        carrier.halt()
    }

    /// Stops all shards when nothing is on its way: two looks one after the other at all of them find nothing, so none of them
    /// gave another one anything in between. Connections that have something under way are waited for as well, but not for
    /// long.
    fn stand(&self) -> Result<Standing, UpgradeError> {
        let began = Instant::now();
        let mut quiet = 0;
        loop {
            let is_idle = ask_all(&self.upgrades.shards, is_idle)?.into_iter().all(|is_idle| is_idle);
            quiet = if is_idle { quiet + 1 } else { 0 };
            let is_over = began.elapsed() >= SETTLE_MAX;
            if quiet >= 2 {
                let standing = Standing::begin(&self.upgrades.shards)?;
                if is_over || !standing.has_under_way() {
                    return Ok(standing);
                }
            } else if is_over && began.elapsed() >= SETTLE_MAX * 4 {
                return Err(UpgradeError::Busy);
            }
            std::thread::park_timeout(SETTLE_PAUSE);
        }
    }

    /// Another process goes on.
    fn given(mut self) {
        self.is_given = true;
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        if !self.is_given {
            self.upgrades.carrier.resume();
        }
        for shard in &self.upgrades.shards {
            if self.is_given {
                shard.send(Mail::StopListening);
            }
            send(shard, |_, connections| connections.hold_reads(false));
        }
    }
}

/// All that is to be here is here: connections are read and accepted.
pub(super) fn open(shards: &[ShardMailbox], listener: &Listener) {
    for shard in shards {
        send(shard, |_, connections| connections.hold_reads(false));
        shard.send(Mail::Listen(listener.clone()));
    }
}

/// Nothing is on its way through a shard.
fn is_idle(core: &mut Core, connections: &mut Connections<Session>) -> bool {
    !core.hub.is_delivering() && !connections.is_busy() && core.legacies.is_empty()
}

/// Has a shard do something.
fn send(shard: &ShardMailbox, work: impl FnOnce(&mut Core, &mut Connections<Session>) + Send + 'static) {
    shard.send(Mail::Command(Command::Continue(Box::new(work))));
}

/// Has a shard do something, and say what came of it.
fn ask<R: Send + 'static>(
    shard: &ShardMailbox,
    work: impl FnOnce(&mut Core, &mut Connections<Session>) -> R + Send + 'static,
) -> Receiver<R> {
    let (answer, answers) = mpsc::channel();
    // Who asked may have given up.
    send(shard, move |core, connections| drop(answer.send(work(core, connections))));
    answers
}

/// The same of all shards at once.
fn ask_all<R: Send + 'static>(
    shards: &[ShardMailbox],
    work: impl Fn(&mut Core, &mut Connections<Session>) -> R + Clone + Send + 'static,
) -> Result<Vec<R>, UpgradeError> {
    let asked: Vec<Receiver<R>> = shards.iter().map(|shard| ask(shard, work.clone())).collect();
    let answer = |answers: Receiver<R>| answers.recv_timeout(SHARD_PATIENCE).map_err(|_| UpgradeError::Shard);
    asked.into_iter().map(answer).collect()
}
