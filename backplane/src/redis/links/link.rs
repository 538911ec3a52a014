//! One server: its session, what waits for answers there, and how a session follows the last.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::{Cmd, ServerError};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::counters::{Counts, LinkCounters, Refusal};
use super::dial::{Connection, Dialer, Greeting, Mode};
use super::feed::{self, Probe};
use super::live::{Live, Sent};
use super::pipe;
use super::replication::{self, Replication};
use super::rights;
use super::room::Room;
use super::sentinel::Sentinels;
use crate::redis::contract::{LinkId, Session, Subscriber};
use crate::redis::error::{Trouble, sentence};
use crate::redis::url::Server;

/// Pauses between attempts grow from the first to the second; each is shortened by up to half, at random, so that the
/// nodes of a deployment do not return together.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// A session that lived so long was good: the next pause is the shortest.
const SESSION_GOOD: Duration = Duration::from_secs(5);

/// A node without slots keeps its link for so long after the last call that came by `ASK`: a slot of many keys moves
/// for seconds, and calls to its tags may be rare.
const ASKED_FOR: Duration = Duration::from_secs(30);

/// What a link asks of the deployment that it belongs to.
pub(super) trait Around: Send + Sync {
    fn dialer(&self) -> &Dialer;
    /// A probe for the link; `None` while it has no slots.
    fn probe(&self, link: LinkId) -> Option<Probe>;
    /// Whether the tag lives there.
    fn owns(&self, link: LinkId, tag: &str) -> bool;
    /// Scripts that the server is to know before it is asked for them.
    fn scripts(&self) -> &[Box<str>];
    fn replicas(&self) -> u8;
    fn next_session(&self) -> Session;
    /// Something of a link changed.
    fn changed(&self);
    /// Has the slots read again soon.
    fn refresh(&self);
}

/// A server of the topology.
pub(crate) struct Link {
    pub(crate) id: LinkId,
    /// How operators know it.
    pub(crate) name: Box<str>,
    place: Place,
    state: Mutex<State>,
    /// Bytes of commands without an answer, and of those that keep this node alive.
    waiting: Arc<AtomicUsize>,
    waiting_vital: Arc<AtomicUsize>,
    pub(crate) counts: Counts,
    /// Why the server takes no writes, as it last said.
    refusing: Mutex<Option<Box<str>>>,
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

/// Which of a session's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Plain,
    /// A success says that the replicas have it.
    Replicated,
    /// Past what waits on the others, with a bound of its own.
    Vital,
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

/// A session that is ready to begin.
struct Made {
    live: Arc<Live>,
    feed: Connection,
    probe: Option<Probe>,
    /// The tasks of the other connections.
    drivers: JoinSet<()>,
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
            waiting_vital: Arc::default(),
            counts: Counts::default(),
            refusing: Mutex::new(None),
            asked_at: Mutex::new(None),
            dropped: stopping.child_token(),
        })
    }

    /// The session, if calls may succeed now.
    pub(crate) fn live(&self) -> Option<Arc<Live>> {
        match &*self.state() {
            State::Up(live) if live.why().is_none() => Some(Arc::clone(live)),
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
            State::Up(live) => live.why().map(|why| Away {
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

    /// What does not work there: all, or writing.
    pub(crate) fn missing(&self) -> Option<String> {
        if let Some(away) = self.away() {
            let seconds = away.since.elapsed().as_secs();
            return Some(format!("Redis at {} is away for {seconds} s: {}", self.name, away.why));
        }
        let refusing = self.refusing.lock().unwrap_or_else(PoisonError::into_inner);
        refusing.as_ref().map(|answer| format!("Redis at {} takes no writes: {answer}", self.name))
    }

    /// The server said that it takes no writes, or forbids something.
    pub(crate) fn note_refusal(&self, error: &ServerError) {
        let refusal = Refusal::of(error.code());
        self.counts.add_refusal(refusal);
        if refusal.is_of_writes() {
            let answer = sentence(error);
            let mut refusing = self.refusing.lock().unwrap_or_else(PoisonError::into_inner);
            if refusing.is_none() {
                tracing::error!(server = %self.name, %answer, "Redis takes no writes");
            }
            *refusing = Some(answer.into());
        }
    }

    /// The server took a write.
    pub(crate) fn note_write(&self) {
        let mut refusing = self.refusing.lock().unwrap_or_else(PoisonError::into_inner);
        if refusing.take().is_some() {
            tracing::info!(server = %self.name, "Redis takes writes again");
        }
    }

    pub(crate) fn counters(&self) -> LinkCounters {
        let live = self.live();
        let waiting = live.as_ref().map_or(0, |live| live.waiting());
        LinkCounters {
            calls_waiting: waiting as u64,
            bytes_waiting: self.waiting.load(Ordering::Relaxed) as u64,
            takes_writes: self.missing().is_none(),
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

    pub(super) fn publish_verb(&self) -> &'static str {
        if self.is_sharded() { "SPUBLISH" } else { "PUBLISH" }
    }

    /// Sends commands, with nothing of others between them, and waits for their answers. `asking`: one that a Cluster
    /// node sent here with `ASK`.
    pub(crate) async fn send(&self, commands: &[&Cmd], way: Way, asking: bool) -> Vec<Sent> {
        let never = |sent: fn(&Self) -> Sent| commands.iter().map(|_| sent(self)).collect();
        let Some(live) = self.live() else {
            self.counts.calls_refused_away.add();
            return never(|link| Sent::Never(link.away().map_or(Trouble::Closed, |away| away.why)));
        };
        let waiting = if way == Way::Vital { &self.waiting_vital } else { &self.waiting };
        let Some(room) = Room::take(waiting, commands) else {
            self.counts.calls_refused_bound.add();
            return never(|_| Sent::NoRoom);
        };
        self.counts.calls.add_many(commands.len() as u64);
        let sent = match (way, &live.replication) {
            (Way::Replicated, Some(replication)) => {
                live.send_replicated(replication, commands, asking, room).await
            }
            (Way::Vital, _) => live.send_over(&live.vital, commands, asking, Some(room)).await,
            (Way::Plain | Way::Replicated, _) => {
                live.send_over(&live.pipe, commands, asking, Some(room)).await
            }
        };
        for sent in &sent {
            match sent {
                Sent::Unknown(Trouble::NotReplicated { .. }) => self.counts.calls_not_replicated.add(),
                Sent::Unknown(_) => self.counts.calls_unconfirmed.add(),
                Sent::Never(_) => self.counts.calls_refused_away.add(),
                _ => {}
            }
        }
        sent
    }

    /// Makes sessions, one after the other, until the server leaves the topology.
    pub(super) async fn run(self: Arc<Self>, around: Arc<dyn Around>, subscriber: Arc<dyn Subscriber>) {
        let mut pause = PAUSES[0];
        loop {
            let made = tokio::select! {
                made = self.attempt(&*around) => made,
                () = self.dropped.cancelled() => return,
            };
            match made {
                Ok(made) => {
                    let began = Instant::now();
                    self.serve(&*around, made, &*subscriber).await;
                    if began.elapsed() >= SESSION_GOOD {
                        pause = PAUSES[0];
                    }
                }
                Err(trouble) => self.note_failure(trouble, &*around),
            }
            tokio::select! {
                () = tokio::time::sleep(jittered(pause)) => pause = (pause * 2).min(PAUSES[1]),
                () = self.dropped.cancelled() => return,
            }
        }
    }

    /// A session from `up` to `down`.
    async fn serve(&self, around: &dyn Around, made: Made, subscriber: &dyn Subscriber) {
        let Made { live, feed, probe, mut drivers } = made;
        *self.state() = State::Up(Arc::clone(&live));
        self.counts.sessions.add();
        self.note_write();
        tracing::info!(server = %self.name, at = %live.server, session = live.session.0, "Redis is up");
        subscriber.up(self.id, live.session);
        around.changed();
        tokio::select! {
            () = feed::run(feed, probe, self, &live, around, subscriber) => {}
            () = self.dropped.cancelled() => live.give_up(Trouble::Dropped),
        }
        let why = live.why().cloned().unwrap_or(Trouble::Closed);
        // Calls that wait hear at once that their outcome is not known.
        drivers.shutdown().await;
        self.counts.add_replacement(&why);
        match &why {
            // It left the topology, or the process stops: nobody is to do anything about it.
            Trouble::Dropped => {
                tracing::info!(server = %self.name, session = live.session.0, "Redis is asked no more");
            }
            why => tracing::warn!(server = %self.name, session = live.session.0, %why, "Redis is away"),
        }
        let server = Some(live.server.clone());
        *self.state() = State::Away(Away { since: Instant::now(), server, why });
        around.changed();
        subscriber.down(self.id, live.session);
        around.refresh();
    }

    async fn attempt(&self, around: &dyn Around) -> Result<Made, Trouble> {
        let server = match &self.place {
            Place::Fixed(server) | Place::Node(server) => server.clone(),
            Place::Master(sentinels) => sentinels.master(around.dialer()).await?,
        };
        if let State::Away(away) = &mut *self.state() {
            away.server = Some(server.clone());
        }
        let (mut feed, greeting) = around.dialer().raw(&server).await?;
        self.check(&greeting)?;
        let mut commands = around.dialer().commands(&server).await?;
        let probe = around.probe(self.id);
        rights::check(
            &mut commands,
            around.scripts(),
            probe.as_ref().map(Probe::name),
            self.publish_verb(),
            around.replicas(),
        )
        .await?;
        let vital = around.dialer().commands(&server).await?;
        let (mut replication, mut replicating) = (None, None);
        if around.replicas() > 0 {
            let (part, waiters) = Replication::new();
            let connection = around.dialer().commands(&server).await?;
            (replication, replicating) = (Some(part), Some((waiters, connection)));
        }
        let live = Live::new(around.next_session(), server, replication);
        let mut drivers = JoinSet::new();
        drivers.spawn(pipe::carry(commands, Arc::clone(&live.pipe), ends(&live)));
        drivers.spawn(pipe::carry(vital, Arc::clone(&live.vital), ends(&live)));
        if let (Some(replication), Some((waiters, connection))) = (&live.replication, replicating) {
            let pipe = &replication.pipe;
            drivers.spawn(pipe::carry(connection, Arc::clone(pipe), ends(&live)));
            let waits = Arc::clone(&self.counts.waits);
            drivers.spawn(replication::run(
                around.replicas(),
                Arc::clone(pipe),
                waiters,
                move || waits.add(),
                ends(&live),
            ));
        }
        feed::begin(&mut feed, self, &live, probe.as_ref()).await?;
        Ok(Made { live, feed, probe, drivers })
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

    fn note_failure(&self, trouble: Trouble, around: &dyn Around) {
        self.counts.attempts_failed.add();
        tracing::debug!(server = %self.name, %trouble, "Redis stays away");
        if let State::Away(away) = &mut *self.state() {
            away.why = trouble;
        }
        around.changed();
        // A node that does not come back may have a successor.
        around.refresh();
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

fn ends(live: &Arc<Live>) -> impl Fn(Trouble) + Send + Sync + use<> {
    let live = Arc::clone(live);
    move |why| live.give_up(why)
}

/// Sharded pub/sub came with 7.0.
pub(super) fn check_cluster(greeting: &Greeting) -> Result<(), Trouble> {
    match greeting.mode {
        Mode::Cluster => greeting.require("7.0"),
        Mode::Standalone => Err(Trouble::NotCluster),
        Mode::Sentinel => Err(Trouble::IsSentinel),
    }
}

fn jittered(pause: Duration) -> Duration {
    // Without randomness the pause is as long as it may be.
    let random = getrandom::u32().unwrap_or(u32::MAX);
    pause.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX) / 2.0)
}
