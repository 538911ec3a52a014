//! The old process: it hands everything on to one that it starts, or goes on as if nothing had been.

use std::{
    ffi::OsString,
    fmt,
    net::{TcpListener, TcpStream},
    os::fd::AsFd as _,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tidegate_reactor::{Listener, Mail};
use tidegate_wire::succession::{SOCKETS_MAX, Step};
use tokio::{sync::Notify, task::AbortHandle};

use super::{
    Successor, Talk, TalkError, memory_file,
    shards::{ask_all, send},
    standing::Standing,
    upgradable::{SETTLE_MAX, ShardMailbox, Upgradable, UpgradeError},
};
use crate::{
    probes::{self, Upgraded},
    service::{self, State},
};

/// How the program is started that takes this process's place.
#[derive(Debug, Clone)]
pub struct Launch {
    pub program: PathBuf,
    /// Those of this process, and what says that it takes over.
    pub args: Vec<OsString>,
}

/// A process reads its configuration, builds its parts and says that it is ready in this time.
const READY_PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at whether it is still to be waited for.
const READY_LOOK: Duration = Duration::from_millis(100);

/// Between two looks at whether it has.
const SETTLE_PAUSE: Duration = Duration::from_millis(1);

/// The other process reads what 20,000 connections are in about 0.2 s. Clients wait meanwhile.
const TAKEN_PATIENCE: Duration = Duration::from_secs(5);

/// It has everything, and makes its connections of it.
const SERVING_PATIENCE: Duration = Duration::from_secs(30);

/// The new process first does what has waited, with all cores. Who is closed there meanwhile sees the end of its socket this
/// much later.
const CATCH_UP: Duration = Duration::from_millis(200);

/// The ports of a process, and what accepts on the internal one.
#[derive(Debug)]
pub struct Ports {
    pub public: TcpListener,
    pub internal: TcpListener,
    pub internal_task: AbortHandle,
}

/// What an upgrade takes, kept while the process runs.
pub struct Upgrades<U: Upgradable> {
    process: U,
    launch: Option<Launch>,
    shards: Vec<ShardMailbox<U>>,
    ports: Ports,
    progress: Mutex<Progress>,
    given: Notify,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Progress {
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
pub enum End {
    Drain,
    /// Another process serves in its place.
    Given,
    Lost,
}

impl<U: Upgradable> Upgrades<U> {
    /// `launch`: `None` where its program is not known.
    pub fn new(process: U, launch: Option<Launch>, shards: Vec<ShardMailbox<U>>, ports: Ports) -> Arc<Self> {
        let (progress, given) = (Mutex::default(), Notify::new());
        Arc::new(Self { process, launch, shards, ports, progress, given })
    }

    /// Has another process take over. Blocks.
    pub fn run(&self) -> Result<Upgraded, UpgradeError> {
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
        service::tell(&[State::Reloading]);
        let outcome = self.hand_on(launch);
        let mut progress = self.progress();
        match &outcome {
            Ok(Upgraded { process, paused_ms }) => {
                tracing::info!(process, paused_ms, took = ?began.elapsed(), "another process serves in this one's place");
            }
            Err(error) if *progress == Progress::Given => tracing::error!(%error, "the upgrade has failed"),
            Err(error) => tracing::error!(%error, "no upgrade: this process goes on"),
        }
        match (&*progress, &outcome) {
            (Progress::UnderWay, _) => {
                *progress = Progress::Idle;
                service::tell(&[State::Ready]);
            }
            (Progress::Given, Err(_)) => *progress = Progress::Lost,
            _ => {}
        }
        drop(progress);
        self.given.notify_waiters();
        outcome
    }

    /// Begins to end. An upgrade that is under way, and not yet beyond return, ends without effect.
    pub fn end(&self) -> End {
        let mut progress = self.progress();
        match *progress {
            Progress::Given => End::Given,
            Progress::Lost => End::Lost,
            Progress::Idle | Progress::UnderWay | Progress::Draining => {
                *progress = Progress::Draining;
                service::tell(&[State::Stopping, State::Status("draining")]);
                End::Drain
            }
        }
    }

    /// Resolves when another process has taken over, and what is to be said of it was said.
    pub async fn over(&self) {
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
    pub fn offer(self: &Arc<Self>, upgrade: &probes::Upgrade) {
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
    pub fn at_signal(self: &Arc<Self>) -> impl FnMut() + Send + 'static {
        let upgrades = Arc::downgrade(self);
        move || {
            if let Some(upgrades) = upgrades.upgrade() {
                drop(tokio::task::spawn_blocking(move || upgrades.run()));
            }
        }
    }

    fn check(&self) -> Result<&Launch, UpgradeError> {
        if let Some(why) = self.process.refusal() {
            return Err(UpgradeError::NotHere(why));
        }
        if std::process::id() == 1 {
            return Err(UpgradeError::NotHere(FIRST_OF_CONTAINER));
        }
        if service::ends_successors() {
            return Err(UpgradeError::NotHere(NOT_TOLD));
        }
        if let Some(why) = self.process.not_now() {
            return Err(UpgradeError::Process(why));
        }
        self.launch.as_ref().ok_or(UpgradeError::NotHere(NO_PROGRAM))
    }

    fn hand_on(&self, launch: &Launch) -> Result<Upgraded, UpgradeError> {
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
        let mut laps = Laps::begin(paused.at);
        standing = paused.stand()?;
        laps.end("stand");
        self.describe(&successor.talk, &standing)?;
        laps.end("describe");
        let refused = match successor.talk.hear(TAKEN_PATIENCE, |_| 0)?.0 {
            Step::Taken { refused } => refused,
            Step::Refused { why } => return Err(UpgradeError::Refused(why)),
            _ => return Err(UpgradeError::Unexpected),
        };
        laps.end("take");
        standing.check()?;
        self.process.stands()?;
        self.commit(&successor.talk, process)?;
        // From here on there is no way back.
        self.process.forward(&successor.talk);
        let letting_go = standing.let_go(&refused);
        paused.given();
        let serving = successor.talk.hear(SERVING_PATIENCE, |_| 0);
        laps.end("serve");
        thread::park_timeout(CATCH_UP);
        let stayed = letting_go.served();
        successor.let_go();
        match serving {
            Ok((Step::Serving, _)) => {
                let paused_ms = laps.total().as_millis() as u64;
                tracing::info!(%laps, stayed, "clients stood still for that long; connections that stayed end with this process");
                Ok(Upgraded { process, paused_ms })
            }
            Ok(_) => Err(UpgradeError::Lost(TalkError::Ended)),
            Err(error) => Err(UpgradeError::Lost(error)),
        }
    }

    /// Gives the listening sockets, and waits until the other process is ready.
    fn introduce(&self, talk: &Talk) -> Result<(), UpgradeError> {
        let (node, life) = self.process.who();
        let step = Step::Listeners { node, life, shards: self.shards.len() as u32 };
        talk.say(&step, &[self.ports.public.as_fd(), self.ports.internal.as_fd()])?;
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
    fn describe(&self, talk: &Talk, standing: &Standing<U>) -> Result<(), UpgradeError> {
        let state = memory_file(&standing.to_bytes(&self.process.to_bytes()))?;
        let own = self.process.sockets()?;
        let sockets = standing.sockets() + own.len() as u32;
        talk.say(&Step::State { sockets }, &[state.as_fd()])?;
        standing.send_sockets(talk)?;
        for portion in own.chunks(SOCKETS_MAX) {
            let portion: Vec<_> = portion.iter().map(TcpStream::as_fd).collect();
            talk.say(&Step::Sockets { number: portion.len() as u32 }, &portion)?;
        }
        Ok(())
    }

    /// The last moment at which this process may go on.
    fn commit(&self, talk: &Talk, process: u32) -> Result<(), UpgradeError> {
        let mut progress = self.progress();
        if *progress != Progress::UnderWay {
            return Err(UpgradeError::Draining);
        }
        talk.say(&Step::Go, &[])?;
        *progress = Progress::Given;
        drop(progress);
        service::tell(&[State::Main(process)]);
        self.ports.internal_task.abort();
        self.process.given();
        Ok(())
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const FIRST_OF_CONTAINER: &str =
    "this process is the first of its container, which ends with it: start a new container";

const NOT_TOLD: &str = "this process is the first of a unit of systemd, which would end the new one with it: the unit needs `Type=notify`";

const NO_PROGRAM: &str = "this process does not know its own program: restart it";

/// A process that says nothing more is about to have ended.
const END_PATIENCE: Duration = Duration::from_millis(200);

impl<U: Upgradable> fmt::Debug for Upgrades<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgrades").field("launch", &self.launch).finish_non_exhaustive()
    }
}

/// What a pause is made of, for the log.
struct Laps {
    began: Instant,
    ended: Vec<(&'static str, Instant)>,
}

impl Laps {
    fn begin(at: Instant) -> Self {
        let mut laps = Self { began: at, ended: Vec::new() };
        laps.end("suspend");
        laps
    }

    fn end(&mut self, lap: &'static str) {
        self.ended.push((lap, Instant::now()));
    }

    fn total(&self) -> Duration {
        self.ended.last().map_or(Duration::ZERO, |(_, end)| end.duration_since(self.began))
    }
}

impl fmt::Display for Laps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = self.began;
        for (lap, end) in &self.ended {
            write!(f, "{lap} {:.1?}, ", end.duration_since(before))?;
            before = *end;
        }
        write!(f, "together {:.1?}", self.total())
    }
}

/// While there is one, nothing is begun.
struct Paused<'u, U: Upgradable> {
    upgrades: &'u Upgrades<U>,
    /// Since when nobody is served.
    at: Instant,
    is_given: bool,
}

impl<'u, U: Upgradable> Paused<'u, U> {
    fn begin(upgrades: &'u Upgrades<U>) -> Result<Self, UpgradeError> {
        let mut paused = Self { upgrades, at: Instant::now(), is_given: false };
        upgrades.process.prepare();
        paused.at = Instant::now();
        upgrades.process.suspend(&upgrades.shards)?;
        Ok(paused)
    }

    /// Stops all shards when nothing is on its way: two looks one after the other at all of them find nothing, so none of them
    /// gave another one anything in between. Connections that have something under way are waited for as well, but not for
    /// long.
    fn stand(&self) -> Result<Standing<U>, UpgradeError> {
        let shards = &self.upgrades.shards;
        let began = Instant::now();
        let mut quiet = 0;
        loop {
            let is_over = began.elapsed() >= SETTLE_MAX;
            let is_idle =
                move |part: &mut U::Shard, connections: &mut _| U::is_idle(part, connections, !is_over);
            let idle = ask_all::<U, bool>(shards, is_idle)?;
            quiet = if idle.into_iter().all(|is_idle| is_idle) { quiet + 1 } else { 0 };
            if quiet >= 2 {
                let standing = Standing::begin(shards)?;
                if is_over || !standing.has_under_way() {
                    return Ok(standing);
                }
            } else if began.elapsed() >= SETTLE_MAX * 4 {
                return Err(UpgradeError::Busy);
            }
            thread::park_timeout(SETTLE_PAUSE);
        }
    }

    /// Another process goes on.
    fn given(mut self) {
        self.is_given = true;
    }
}

impl<U: Upgradable> Drop for Paused<'_, U> {
    fn drop(&mut self) {
        let Upgrades { process, shards, .. } = self.upgrades;
        if !self.is_given {
            process.resume(shards);
        }
        for shard in shards {
            if self.is_given {
                shard.send(Mail::StopListening);
            }
            send::<U>(shard, |_, connections| connections.hold_reads(false));
        }
    }
}

/// All that is to be here is here: connections are read and accepted.
pub fn open<U: Upgradable>(shards: &[ShardMailbox<U>], listener: &Listener) {
    for shard in shards {
        send::<U>(shard, |_, connections| connections.hold_reads(false));
        shard.send(Mail::Listen(listener.clone()));
    }
}
