//! One server: its pair of connections, what waits for answers on them, and their replacement.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use redis::aio::MultiplexedConnection;
use redis::{Arg, Cmd, ServerError, Value};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::counters::{Counts, LinkCounters};
use super::dial::{Greeting, Mode};
use super::feed::{self, Feed};
use super::replication::{self, Replication, Waiters};
use super::sentinel::Sentinels;
use crate::redis::contract::{LinkId, Session, Subscriber};
use crate::redis::error::Trouble;
use crate::redis::url::Server;

/// Bytes of commands that may wait for their answers: two seconds of 8 MiB/s. Subscribe commands that wait to be
/// written have as much again: 160,000 channels of 100 bytes.
pub(crate) const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A command that is not answered for so long makes its link away: 1,900 ms and then 100 ms more, which begin when this
/// process runs again if it was stopped. An answer that came meanwhile is read in these.
const ANSWER_DEADLINE: [Duration; 2] = [Duration::from_millis(1_900), Duration::from_millis(100)];

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
    waiting: AtomicUsize,
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
    connection: MultiplexedConnection,
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
            waiting: AtomicUsize::new(0),
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
        self.counts.read(&self.name, self.live().is_some())
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
        let Some(_room) = Room::take(&self.waiting, size_of_command(command)) else {
            self.counts.calls_refused_bound.add();
            let mib = WAITING_BYTES_MAX >> 20;
            return Sent::Never(format!("{mib} MiB wait for answers of Redis at {}", self.name).into());
        };
        self.counts.calls.add();
        let sent = match &live.replication {
            Some(replication) if replicated => live.send_replicated(replication, command, asking).await,
            _ => live.send(command, asking).await,
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
        let mut driver = JoinSet::new();
        let (connection, moving) = shared.dialer.commands(&server).await?;
        let (replication, waiters) = self.replication(shared, &server, &mut driver).await?.unzip();
        let live = Arc::new(Live {
            session: shared.next_session(),
            server,
            outbox: Outbox::default(),
            connection,
            replication,
            why: OnceLock::new(),
            ended: CancellationToken::new(),
        });
        let of_driver = Arc::clone(&live);
        driver.spawn(async move {
            moving.await;
            of_driver.give_up(Trouble::Closed);
        });
        if let Some(waiters) = waiters {
            driver.spawn(replication::run(Arc::clone(&live), waiters, Arc::clone(self)));
        }
        let feed = Feed::begin(raw, self, &live, shared).await?;
        Ok((live, feed, driver))
    }

    /// The connection of what replicas must have, if any is asked for. Its end is noticed by the next call on it.
    async fn replication(
        &self,
        shared: &Shared,
        server: &Server,
        driver: &mut JoinSet<()>,
    ) -> Result<Option<(Replication, Waiters)>, Trouble> {
        if shared.replicas == 0 {
            return Ok(None);
        }
        let (connection, moving) = shared.dialer.commands(server).await?;
        driver.spawn(moving);
        replication::check(&connection).await?;
        Ok(Some(Replication::new(shared.replicas, connection)))
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

    /// Sends a command without regard to the bound: probes, and what was let in.
    pub(crate) async fn send(&self, command: &Cmd, asking: bool) -> Sent {
        self.send_over(&self.connection, command, asking).await
    }

    async fn send_replicated(&self, replication: &Replication, command: &Cmd, asking: bool) -> Sent {
        let sent = self.send_over(&replication.connection, command, asking).await;
        if !matches!(sent, Sent::Answer(_)) {
            return sent;
        }
        match replication.reached().await {
            Ok(()) => sent,
            Err(trouble) => Sent::Unknown(trouble),
        }
    }

    pub(super) async fn send_over(
        &self,
        connection: &MultiplexedConnection,
        command: &Cmd,
        asking: bool,
    ) -> Sent {
        let mut connection = connection.clone();
        let answer = async {
            if !asking {
                return connection.send_packed_command(command).await;
            }
            let mut both = redis::pipe();
            both.cmd("ASKING").add_command(command.clone());
            let mut answers = connection.send_packed_commands(&both, 1, 1).await?;
            Ok(answers.pop().unwrap_or(Value::Nil))
        };
        let trouble = match patiently(answer).await {
            Some(Ok(Value::ServerError(error))) => return Sent::Refused(error),
            Some(Ok(value)) => return Sent::Answer(value),
            Some(Err(error)) => Trouble::Broken(error),
            None => Trouble::Late { what: "answer", within: ANSWER_DEADLINE.iter().sum() },
        };
        self.give_up(trouble.clone());
        Sent::Unknown(trouble)
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
struct Room<'a> {
    waiting: &'a AtomicUsize,
    bytes: usize,
}

impl<'a> Room<'a> {
    fn take(waiting: &'a AtomicUsize, bytes: usize) -> Option<Self> {
        let before = waiting.fetch_add(bytes, Ordering::Relaxed);
        let room = Self { waiting, bytes };
        // A command is let in when nothing else waits, however long it is.
        (before == 0 || before + bytes <= WAITING_BYTES_MAX).then_some(room)
    }
}

impl Drop for Room<'_> {
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

/// Waits for [`ANSWER_DEADLINE`].
async fn patiently<T>(answer: impl Future<Output = T>) -> Option<T> {
    let mut answer = std::pin::pin!(answer);
    for portion in ANSWER_DEADLINE {
        if let Ok(answer) = timeout(portion, &mut answer).await {
            return Some(answer);
        }
    }
    None
}

fn jittered(pause: Duration) -> Duration {
    // Without randomness the pause is as long as it may be.
    let random = getrandom::u32().unwrap_or(u32::MAX);
    pause.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX) / 2.0)
}
