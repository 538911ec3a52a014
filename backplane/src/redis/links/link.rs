//! One server: its session, and what waits for answers there.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::{Cmd, ServerError};
use tokio_util::sync::CancellationToken;

use super::counters::{Counts, LinkCounters, Refusal};
use super::live::{Live, Sent};
use super::room::Room;
use super::sentinel::Sentinels;
use crate::redis::contract::{LinkId, Session};
use crate::redis::error::{Trouble, sentence};
use crate::redis::url::Server;

/// A node without slots keeps its link for so long after the last call that came by `ASK`: a slot of many keys moves
/// for seconds, and calls to its tags may be rare.
const ASKED_FOR: Duration = Duration::from_secs(30);

/// A server of the topology.
pub(crate) struct Link {
    pub(crate) id: LinkId,
    /// How operators know it.
    pub(crate) name: Box<str>,
    pub(super) place: Place,
    state: Mutex<State>,
    /// Bytes of commands without an answer, and of those that keep this node alive.
    waiting: Arc<AtomicUsize>,
    waiting_vital: Arc<AtomicUsize>,
    pub(crate) counts: Counts,
    /// Why the server takes no writes, as it last said.
    refusing: Mutex<Option<Box<str>>>,
    /// The rule by which the server may take away what nodes and presence hold.
    evicting: Mutex<Option<Box<str>>>,
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
            evicting: Mutex::new(None),
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

    /// What may go missing there.
    pub(crate) fn evicts(&self) -> Option<String> {
        let evicting = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        let policy = evicting.as_ref()?;
        Some(format!(
            "Redis at {} may evict presence and node records, which have no expiry: its maxmemory-policy is {policy}; set \
             noeviction or one of volatile-*",
            self.name
        ))
    }

    pub(super) fn note_evicting(&self, policy: Option<Box<str>>) {
        if let Some(policy) = &policy {
            tracing::warn!(server = %self.name, %policy, "Redis may evict presence and node records");
        }
        *self.evicting.lock().unwrap_or_else(PoisonError::into_inner) = policy;
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

    /// A session has begun.
    pub(super) fn set_up(&self, live: &Arc<Live>) {
        *self.state() = State::Up(Arc::clone(live));
        self.counts.sessions.add();
        self.note_write();
    }

    /// The session is over.
    pub(super) fn set_away(&self, server: Server, why: Trouble) {
        *self.state() = State::Away(Away { since: Instant::now(), server: Some(server), why });
    }

    /// Where a session is tried next.
    pub(super) fn set_tried(&self, server: &Server) {
        if let State::Away(away) = &mut *self.state() {
            away.server = Some(server.clone());
        }
    }

    /// Why the try failed.
    pub(super) fn set_failed(&self, trouble: Trouble) {
        self.counts.attempts_failed.add();
        if let State::Away(away) = &mut *self.state() {
            away.why = trouble;
        }
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
