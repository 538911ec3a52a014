//! One server: its pair of connections, what waits for answers on them, and their replacement.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use redis::{Arg, Cmd, ServerError, Value};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::counters::{Counts, LinkCounters};
use super::dial::{Greeting, Mode, Raw};
use super::feed::{self, Feed};
use super::pipe::{self, Pipe};
use super::replication::{self, Replication, Waiters};
use super::sentinel::Sentinels;
use crate::redis::contract::{LinkId, Session, Subscriber};
use crate::redis::error::Trouble;
use crate::redis::url::Server;

/// Bytes of commands that may wait for their answers: two seconds of 8 MiB/s. Subscribe commands that wait to be
/// written have as much again: 160,000 channels of 100 bytes.
pub(crate) const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Pauses between attempts grow from the first to the second; each is shortened by up to half, at random, so that the
/// nodes of a deployment do not return together.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// A session that lived so long was good: the next pause is the shortest.
const SESSION_GOOD: Duration = Duration::from_secs(5);

/// A node without slots keeps its link for so long after the last call that came by `ASK`: a slot of many keys moves
/// for seconds, and calls to its tags may be rare.
const ASKED_FOR: Duration = Duration::from_secs(30);

/// A server of the topology.
pub(crate) struct Link {
    pub(crate) id: LinkId,
    /// How operators know it.
    pub(crate) name: Box<str>,
    place: Place,
    state: Mutex<State>,
    /// Bytes of commands without an answer.
    waiting: Arc<AtomicUsize>,
    pub(crate) counts: Counts,
    /// When another node last sent a call here with `ASK`.
    asked_at: Mutex<Option<Instant>>,
    /// Cancelled when the server leaves the topology.
    pub(crate) dropped: CancellationToken,
}

/// Where the server of a link is found.
#[derive(Debug)]
pub(crate) enum Place {
    Fixed(Server),
    Node(Server),
    Master(Arc<Sentinels>),
}

enum State {
    Up(Arc<Live>),
    Away(Away),
}

/// Since when and why a link cannot be used.
#[derive(Debug, Clone)]
pub(crate) struct Away {
    pub(crate) since: Instant,
    /// Where the last attempt went.
    pub(crate) server: Option<Server>,
    pub(crate) why: Trouble,
}

/// A pair of connections.
pub(crate) struct Live {
    pub(crate) session: Session,
    pub(crate) server: Server,
    pub(crate) outbox: Outbox,
    pipe: Arc<Pipe>,
    /// Of publications that replicas must have.
    pub(super) replication: Option<Replication>,
    /// Why it was given up; whoever comes first says it.
    why: OnceLock<Trouble>,
    pub(crate) ended: CancellationToken,
}

/// Subscribe commands that wait to be written.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Mutex<BytesMut>,
    pub(crate) filled: Notify,
    /// Channels whose end was asked for and not yet confirmed.
    pub(crate) ending: AtomicUsize,
}

/// What became of a command.
#[derive(Debug)]
pub(crate) enum Sent {
    Answer(Value),
    Refused(ServerError),
    /// Nothing was sent.
    Never(Box<str>),
    /// It was sent, the outcome is not known.
    Unknown(Trouble),
}

impl Link {
    /// A link that ends with its parent's token.
    pub(crate) fn new(id: LinkId, name: Box<str>, place: Place, stopping: &CancellationToken) -> Arc<Self> {
        let away = Away { since: Instant::now(), server: None, why: Trouble::NotYet };
        Arc::new(Self {
            id,
            name,
            place,
            state: Mutex::new(State::Away(away)),
            waiting: Arc::default(),
            counts: Counts::default(),
            asked_at: Mutex::new(None),
            dropped: stopping.child_token(),
        })
    }

    /// The session, if calls may succeed now.
    pub(crate) fn live(&self) -> Option<Arc<Live>> {
        match &*self.state() {
            State::Up(live) if live.why.get().is_none() => Some(Arc::clone(live)),
            State::Up(_) | State::Away(_) => None,
        }
    }

    /// The session of that number, if it is not over.
    pub(crate) fn session(&self, session: Session) -> Option<Arc<Live>> {
        self.live().filter(|live| live.session == session)
    }

    /// `None` while it is up.
    pub(crate) fn away(&self) -> Option<Away> {
        match &*self.state() {
            State::Up(live) => live.why.get().map(|why| Away {
                since: Instant::now(),
                server: Some(live.server.clone()),
                why: why.clone(),
            }),
            State::Away(away) => Some(away.clone()),
        }
    }

    pub(crate) fn unavailable(&self) -> Box<str> {
        let why = self.away().map_or(Trouble::Closed, |away| away.why);
        format!("Redis at {} is away: {why}", self.name).into()
    }

    pub(crate) fn counters(&self) -> LinkCounters {
        let live = self.live();
        let waiting = live.as_ref().map_or(0, |live| live.waiting());
        LinkCounters {
            calls_waiting: waiting as u64,
            bytes_waiting: self.waiting.load(Ordering::Relaxed) as u64,
            ..self.counts.read(&self.name, live.is_some())
        }
    }

    /// The Cluster node that it leads to.
    pub(crate) fn node(&self) -> Option<&Server> {
        match &self.place {
            Place::Node(server) => Some(server),
            Place::Fixed(_) | Place::Master(_) => None,
        }
    }

    pub(crate) fn is_node(&self, server: &Server) -> bool {
        self.node() == Some(server)
    }

    pub(crate) fn set_asked(&self) {
        *self.asked_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether a node without slots is about to get some.
    pub(crate) fn is_asked(&self) -> bool {
        let asked_at = *self.asked_at.lock().unwrap_or_else(PoisonError::into_inner);
        asked_at.is_some_and(|asked_at| asked_at.elapsed() < ASKED_FOR)
    }

    /// Whether its server is one node of a Cluster.
    pub(crate) fn is_sharded(&self) -> bool {
        matches!(self.place, Place::Node(_))
    }

    /// Sends a command and waits for its answer. `asking`: as one that a Cluster node sent here with `ASK`.
    /// `replicated`: and until the replicas that are asked for have what it wrote.
    pub(crate) async fn send(&self, command: &Cmd, asking: bool, replicated: bool) -> Sent {
        let Some(live) = self.live() else {
            self.counts.calls_refused_away.add();
            return Sent::Never(self.unavailable());
        };
        let Some(room) = Room::take(&self.waiting, size_of_command(command)) else {
            self.counts.calls_refused_bound.add();
            let mib = WAITING_BYTES_MAX >> 20;
            return Sent::Never(format!("{mib} MiB wait for answers of Redis at {}", self.name).into());
        };
        self.counts.calls.add();
        let sent = match &live.replication {
            Some(replication) if replicated => live.send_replicated(replication, command, asking, room).await,
            _ => live.send_over(&live.pipe, command, asking, Some(room)).await.0,
        };
        match &sent {
            Sent::Unknown(Trouble::NotReplicated { .. }) => self.counts.calls_not_replicated.add(),
            Sent::Unknown(_) => self.counts.calls_unconfirmed.add(),
            _ => {}
        }
        sent
    }

    /// Makes sessions, one after the other, until the server leaves the topology.
    pub(crate) async fn run(self: Arc<Self>, shared: Arc<Shared>, subscriber: Arc<dyn Subscriber>) {
        let mut pause = PAUSES[0];
        loop {
            let made = tokio::select! {
                made = self.attempt(&shared) => made,
                () = self.dropped.cancelled() => return,
            };
            match made {
                Ok((live, feed, driver)) => {
                    let began = Instant::now();
                    self.serve(&shared, &live, feed, driver, &*subscriber).await;
                    if began.elapsed() >= SESSION_GOOD {
                        pause = PAUSES[0];
                    }
                }
                Err(trouble) => self.note_failure(trouble, &shared),
            }
            tokio::select! {
                () = tokio::time::sleep(jittered(pause)) => pause = (pause * 2).min(PAUSES[1]),
                () = self.dropped.cancelled() => return,
            }
        }
    }

    /// A session from `up` to `down`.
    async fn serve(
        &self,
        shared: &Shared,
        live: &Arc<Live>,
        feed: Feed,
        mut driver: JoinSet<()>,
        subscriber: &dyn Subscriber,
    ) {
        *self.state() = State::Up(Arc::clone(live));
        self.counts.sessions.add();
        tracing::info!(server = %self.name, at = %live.server, session = live.session.0, "Redis is up");
        subscriber.up(self.id, live.session);
        shared.changed();
        tokio::select! {
            () = feed::run(feed, self, live, shared, subscriber) => {}
            () = self.dropped.cancelled() => live.give_up(Trouble::Dropped),
        }
        let why = live.why.get().cloned().unwrap_or(Trouble::Closed);
        // Calls that wait hear at once that their outcome is not known.
        driver.shutdown().await;
        self.counts.add_replacement(&why);
        tracing::warn!(server = %self.name, session = live.session.0, %why, "Redis is away");
        let server = Some(live.server.clone());
        *self.state() = State::Away(Away { since: Instant::now(), server, why });
        shared.changed();
        subscriber.down(self.id, live.session);
        shared.refresh();
    }

    async fn attempt(self: &Arc<Self>, shared: &Shared) -> Result<(Arc<Live>, Feed, JoinSet<()>), Trouble> {
        let server = match &self.place {
            Place::Fixed(server) | Place::Node(server) => server.clone(),
            Place::Master(sentinels) => sentinels.master(&shared.dialer).await?,
        };
        if let State::Away(away) = &mut *self.state() {
            away.server = Some(server.clone());
        }
        let (raw, greeting) = shared.dialer.raw(&server).await?;
        self.check(&greeting)?;
        let commands = shared.dialer.commands(&server).await?;
        let replicating = self.replication(shared, &server).await?;
        let (replication, replicating) = replicating.map(|(it, waiters, raw)| (it, (waiters, raw))).unzip();
        let live = Arc::new(Live {
            session: shared.next_session(),
            server,
            outbox: Outbox::default(),
            pipe: Arc::default(),
            replication,
            why: OnceLock::new(),
            ended: CancellationToken::new(),
        });
        let mut driver = JoinSet::new();
        driver.spawn(pipe::carry(commands, Arc::clone(&live.pipe), Arc::clone(&live)));
        if let (Some(replication), Some((waiters, raw))) = (&live.replication, replicating) {
            driver.spawn(pipe::carry(raw, Arc::clone(&replication.pipe), Arc::clone(&live)));
            driver.spawn(replication::run(Arc::clone(&live), waiters, Arc::clone(self)));
        }
        let feed = Feed::begin(raw, self, &live, shared).await?;
        Ok((live, feed, driver))
    }

    /// The connection of what replicas must have, if any is asked for.
    async fn replication(
        &self,
        shared: &Shared,
        server: &Server,
    ) -> Result<Option<(Replication, Waiters, Raw)>, Trouble> {
        if shared.replicas == 0 {
            return Ok(None);
        }
        let mut raw = shared.dialer.commands(server).await?;
        replication::check(&mut raw).await?;
        let (replication, waiters) = Replication::new(shared.replicas);
        Ok(Some((replication, waiters, raw)))
    }

    fn check(&self, greeting: &Greeting) -> Result<(), Trouble> {
        match greeting.mode {
            _ if self.is_sharded() => check_cluster(greeting)?,
            Mode::Sentinel => return Err(Trouble::IsSentinel),
            Mode::Cluster => return Err(Trouble::IsCluster),
            Mode::Standalone => greeting.require("6.2")?,
        }
        if greeting.is_master { Ok(()) } else { Err(Trouble::Replica) }
    }

    fn note_failure(&self, trouble: Trouble, shared: &Shared) {
        self.counts.attempts_failed.add();
        tracing::debug!(server = %self.name, %trouble, "Redis stays away");
        if let State::Away(away) = &mut *self.state() {
            away.why = trouble;
        }
        shared.changed();
        // A node that does not come back may have a successor.
        shared.refresh();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Live {
    /// Ends the session; its link makes another one.
    pub(crate) fn give_up(&self, why: Trouble) {
        // Whoever comes later has nothing to add.
        if self.why.set(why).is_ok() {
            self.ended.cancel();
        }
    }

    /// Sends a command without regard to the bound: probes, and the Cluster's slots.
    pub(crate) async fn send(&self, command: &Cmd) -> Sent {
        self.send_over(&self.pipe, command, false, None).await.0
    }

    /// Commands that wait for their answers.
    fn waiting(&self) -> usize {
        let replication = self.replication.as_ref().map_or(0, |replication| replication.pipe.waiting());
        self.pipe.waiting() + replication
    }

    async fn send_replicated(
        &self,
        replication: &Replication,
        command: &Cmd,
        asking: bool,
        room: Room,
    ) -> Sent {
        let (sent, _room) = self.send_over(&replication.pipe, command, asking, Some(room)).await;
        if !matches!(sent, Sent::Answer(_)) {
            return sent;
        }
        match replication.reached().await {
            Ok(()) => sent,
            Err(trouble) => Sent::Unknown(trouble),
        }
    }

    /// Gives the room back with the answer: until then the command has it, whether or not its caller still waits.
    pub(super) async fn send_over(
        &self,
        pipe: &Pipe,
        command: &Cmd,
        asking: bool,
        room: Option<Room>,
    ) -> (Sent, Option<Room>) {
        let unknown = || Sent::Unknown(self.why.get().cloned().unwrap_or(Trouble::Closed));
        let Some(answered) = pipe.push(command, asking, room) else { return (unknown(), None) };
        match answered.await {
            Ok((Value::ServerError(error), room)) => (Sent::Refused(error), room),
            Ok((value, room)) => (Sent::Answer(value), room),
            Err(_) => (unknown(), None),
        }
    }
}

impl Outbox {
    /// False: as many bytes wait as may.
    pub(crate) fn push(&self, command: &Cmd) -> bool {
        let packed = command.get_packed_command();
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes.len() + packed.len() > WAITING_BYTES_MAX {
            return false;
        }
        bytes.extend_from_slice(&packed);
        drop(bytes);
        self.filled.notify_one();
        true
    }

    pub(crate) fn take(&self) -> BytesMut {
        std::mem::take(&mut *self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Sharded pub/sub came with 7.0.
pub(super) fn check_cluster(greeting: &Greeting) -> Result<(), Trouble> {
    match greeting.mode {
        Mode::Cluster => greeting.require("7.0"),
        Mode::Standalone => Err(Trouble::NotCluster),
        Mode::Sentinel => Err(Trouble::IsSentinel),
    }
}

/// Bytes that one command holds of its link's bound.
#[derive(Debug)]
pub(super) struct Room {
    waiting: Arc<AtomicUsize>,
    bytes: usize,
}

impl Room {
    fn take(waiting: &Arc<AtomicUsize>, bytes: usize) -> Option<Self> {
        let before = waiting.fetch_add(bytes, Ordering::Relaxed);
        let room = Self { waiting: Arc::clone(waiting), bytes };
        // A command is let in when nothing else waits, however long it is.
        (before == 0 || before + bytes <= WAITING_BYTES_MAX).then_some(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Its arguments, and about 16 bytes of lengths and line ends for each.
fn size_of_command(command: &Cmd) -> usize {
    let size = |argument: Arg<&[u8]>| match argument {
        Arg::Simple(bytes) => bytes.len() + 16,
        Arg::Cursor => 24,
        _ => 16,
    };
    command.args_iter().map(size).sum()
}

fn jittered(pause: Duration) -> Duration {
    // Without randomness the pause is as long as it may be.
    let random = getrandom::u32().unwrap_or(u32::MAX);
    pause.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX) / 2.0)
}
