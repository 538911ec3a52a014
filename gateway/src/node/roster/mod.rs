//! Who is in the channels of this node's subscribers: a replica of each channel's roll, read once, then kept by what the
//! backplane tells, whatever the protocol of those who ask. Nothing is kept of channels that nobody asked for.
//!
//! Lists and changes of a channel go into the mailboxes of shards under the lock of its replica. So a shard that joins a
//! subscriber to its lane in the same turn in which it gets the list hands it every later change, and no earlier one.

mod list;
mod moving;
mod replica;

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tidegate_backplane::{Backplane, BackplaneError, Channel, PresenceEvent, PresenceKind};
use tidegate_ops::metrics::{Collector, DescriptorEncoder, Page};
use tokio::runtime::Handle;

pub(crate) use self::list::{List, ListForm};
use self::replica::{Cause, Next, Outlet, Replica};
use crate::{
    node::content::Content,
    node::interest::{Interest, Interests},
    node::{shards::Shards, spread},
};

/// How long a change is waited for whose number somebody was told. It comes over another connection than the number,
/// within milliseconds; a channel whose change does not come is read.
const OVERDUE: Duration = Duration::from_secs(1);

/// A backplane that did not answer is asked again after this.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// In a large channel, those who ask within this time get one list.
const GATHER: Duration = Duration::from_millis(5);

/// A reading is put off for so long when what it would tell has no room.
const ROOM_PATIENCE: Duration = Duration::from_secs(5);

/// Puts the list into the mailbox of the shard that asked.
type Reply = Box<dyn FnOnce(Result<Arc<List>, BackplaneError>) + Send>;

/// The replicas of this node.
pub(crate) struct Rosters {
    rosters: RwLock<HashMap<Channel, Arc<Roster>>>,
    /// Of another process, until somebody who was given the list is here.
    moved: Mutex<HashMap<Channel, Replica<Asker>>>,
    interests: Arc<Interests>,
    shards: Shards,
    /// Not owned: it holds the sink, which holds this.
    source: OnceLock<(Weak<dyn Backplane>, Handle)>,
    counters: Counters,
}

struct Roster {
    /// The subscription whose changes it is told.
    interest: Arc<Interest>,
    replica: Mutex<Replica<Asker>>,
}

/// Who asked: takes the answer.
struct Asker(Reply);

#[derive(Debug, Default)]
struct Counters {
    lists: AtomicU64,
    changes: AtomicU64,
    /// By [`Cause`].
    reads: [AtomicU64; 5],
    reads_failed: AtomicU64,
    counts_dropped: AtomicU64,
}

impl Rosters {
    pub(crate) fn new(interests: Arc<Interests>, shards: Shards) -> Self {
        let (source, counters) = (OnceLock::new(), Counters::default());
        let (rosters, moved) = (RwLock::default(), Mutex::default());
        Self { rosters, moved, interests, shards, source, counters }
    }

    /// From where to read. Nothing can be asked before.
    pub(crate) fn begin(&self, backplane: &Arc<dyn Backplane>, runtime: Handle) {
        let source = (Arc::downgrade(backplane), runtime);
        if self.source.set(source).is_err() {
            tracing::error!("the rosters were begun twice");
        }
    }

    /// Gives a shard the list of a channel, by a `reply` that puts it into its mailbox, with everything up to a number (that of the asker's own
    /// entry), and from then on each change. The shard holds the channel.
    pub(crate) fn read(
        self: &Arc<Self>,
        channel: &Channel,
        at_least: u64,
        reply: impl FnOnce(Result<Arc<List>, BackplaneError>) + Send + 'static,
    ) {
        let asker = Asker(Box::new(reply));
        let (Some(interest), Some((_, runtime))) = (self.interests.get(channel), self.source.get()) else {
            return self.answer(asker, Err(not_subscribed()));
        };
        let roster = self.find_or_insert(channel, interest);
        let cause = roster.with(|replica| {
            let cause = replica.ask(at_least, asker, &mut self.spout(&roster));
            let is_late = cause.is_none() && replica.is_waited_for();
            if is_late {
                runtime.spawn(Arc::clone(self).see_to_overdue(Arc::clone(&roster)));
            }
            if replica.begins_to_gather() {
                runtime.spawn(Arc::clone(self).gather(Arc::clone(&roster)));
            }
            cause
        });
        self.begin_reading(&roster, cause);
    }

    /// Whether nobody is in a channel whose list was read, with at least every change that a shard was told. `None`: it is
    /// not subscribed any more.
    pub(crate) fn is_empty(&self, channel: &Channel) -> Option<bool> {
        let interest = self.interests.get(channel)?;
        Some(self.find(channel, &interest)?.with(|replica| replica.is_empty()))
    }

    /// Who a connection of this node is in a channel whose list it was given.
    pub(crate) fn user_of(&self, channel: &Channel, connection: &str) -> Option<Box<str>> {
        let interest = self.interests.get(channel)?;
        self.find(channel, &interest)?.with(|replica| replica.user_of(connection))
    }

    /// A change of a channel, in the order in which the backplane tells it.
    pub(crate) fn event(self: &Arc<Self>, channel: &Channel, event: Arc<PresenceEvent>) {
        let Some(interest) = self.interests.get(channel) else { return };
        let has_room = interest.takes_more();
        let Some(roster) = self.find(channel, &interest) else {
            // Only those who were given a list are told who joins and leaves.
            return match event.kind {
                PresenceKind::Count { .. } if has_room => self.deliver(&interest, event),
                PresenceKind::Count { .. } => {
                    self.counters.counts_dropped.fetch_add(1, Relaxed);
                }
                PresenceKind::Joined { .. } | PresenceKind::Left { .. } => {}
            };
        };
        let cause = roster.with(|replica| {
            let cause = replica.event(event, has_room, &mut self.spout(&roster));
            if let (true, Some((_, runtime))) = (replica.begins_to_gather(), self.source.get()) {
                runtime.spawn(Arc::clone(self).gather(Arc::clone(&roster)));
            }
            cause
        });
        self.begin_reading(&roster, cause);
    }

    /// Changes of a channel may be missing.
    pub(crate) fn lost(self: &Arc<Self>, channel: &Channel) {
        let Some(interest) = self.interests.get(channel) else { return };
        if let Some(roster) = self.find(channel, &interest) {
            let cause = roster.with(Replica::lost);
            self.begin_reading(&roster, cause);
        }
    }

    /// Lets go of channels without subscribers, and of what was given to those who joined together; to be called about
    /// once a second.
    pub(crate) fn sweep(&self) {
        let is_over = |roster: &Arc<Roster>| {
            roster.with(Replica::forget_list);
            !self.is_current(roster)
        };
        if self.rosters.read().unwrap_or_else(PoisonError::into_inner).values().any(is_over) {
            let mut rosters = self.rosters.write().unwrap_or_else(PoisonError::into_inner);
            rosters.retain(|_, roster| !is_over(roster));
            if rosters.capacity() > 4 * rosters.len().max(16) {
                rosters.shrink_to_fit();
            }
        }
    }

    fn begin_reading(self: &Arc<Self>, roster: &Arc<Roster>, cause: Option<Cause>) {
        let (Some(cause), Some((_, runtime))) = (cause, self.source.get()) else { return };
        self.counters.reads[cause as usize].fetch_add(1, Relaxed);
        runtime.spawn(Arc::clone(self).keep_reading(Arc::clone(roster)));
    }

    /// Reads until what was read is current.
    async fn keep_reading(self: Arc<Self>, roster: Arc<Roster>) {
        loop {
            let backplane = self.source.get().and_then(|(backplane, _)| backplane.upgrade());
            let Some(backplane) = backplane.filter(|_| self.is_current(&roster)) else {
                return roster.with(|replica| replica.end(&not_subscribed(), &mut self.spout(&roster)));
            };
            // What is not handed over yet would be missing in what is read.
            let confirmed = roster.interest.confirmation().await;
            // It is told whether or not there is room in the end: nobody else waits with these few bytes.
            roster.interest.room(ROOM_PATIENCE).await;
            roster.with(Replica::begin_read);
            let read = match confirmed {
                Ok(()) => backplane.roll(&roster.interest.channel).await,
                Err(error) => Err(error),
            };
            drop(backplane);
            if read.is_err() {
                self.counters.reads_failed.fetch_add(1, Relaxed);
            }
            match roster.with(|replica| replica.read(read, &mut self.spout(&roster))) {
                Next::Current => return,
                Next::Again => {
                    self.counters.reads[Cause::Hole as usize].fetch_add(1, Relaxed);
                }
                Next::Retry => tokio::time::sleep(RETRY_PAUSE).await,
            }
        }
    }

    async fn gather(self: Arc<Self>, roster: Arc<Roster>) {
        tokio::time::sleep(GATHER).await;
        roster.with(|replica| replica.gathered(&mut self.spout(&roster)));
    }

    async fn see_to_overdue(self: Arc<Self>, roster: Arc<Roster>) {
        tokio::time::sleep(OVERDUE).await;
        let cause = roster.with(Replica::overdue);
        self.begin_reading(&roster, cause);
    }

    fn find(&self, channel: &Channel, interest: &Arc<Interest>) -> Option<Arc<Roster>> {
        let rosters = self.rosters.read().unwrap_or_else(PoisonError::into_inner);
        rosters.get(channel).filter(|roster| Arc::ptr_eq(&roster.interest, interest)).cloned()
    }

    /// A roster of an earlier subscription may have missed something: it is replaced.
    fn find_or_insert(&self, channel: &Channel, interest: Arc<Interest>) -> Arc<Roster> {
        if let Some(roster) = self.find(channel, &interest) {
            return roster;
        }
        let mut rosters = self.rosters.write().unwrap_or_else(PoisonError::into_inner);
        let found = rosters.get(channel).filter(|roster| Arc::ptr_eq(&roster.interest, &interest));
        if let Some(roster) = found {
            return Arc::clone(roster);
        }
        let roster = Arc::new(Roster { interest, replica: Mutex::new(Replica::new()) });
        rosters.insert(channel.clone(), Arc::clone(&roster));
        roster
    }

    fn moved(&self) -> MutexGuard<'_, HashMap<Channel, Replica<Asker>>> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_current(&self, roster: &Roster) -> bool {
        self.interests.get(&roster.interest.channel).is_some_and(|now| Arc::ptr_eq(&now, &roster.interest))
    }

    fn deliver(&self, interest: &Arc<Interest>, event: Arc<PresenceEvent>) {
        self.counters.changes.fetch_add(1, Relaxed);
        spread(&self.shards, interest, &interest.channel, Content::Presence(event), 0);
    }

    fn answer(&self, asker: Asker, list: Result<Arc<List>, BackplaneError>) {
        self.counters.lists.fetch_add(1, Relaxed);
        (asker.0)(list);
    }

    fn spout<'a>(&'a self, roster: &'a Roster) -> Spout<'a> {
        Spout { rosters: self, interest: &roster.interest }
    }
}

/// Hands over for one channel.
struct Spout<'a> {
    rosters: &'a Rosters,
    interest: &'a Arc<Interest>,
}

impl Outlet<Asker> for Spout<'_> {
    fn deliver(&mut self, event: Arc<PresenceEvent>) {
        self.rosters.deliver(self.interest, event);
    }

    fn answer(&mut self, asker: Asker, list: Result<Arc<List>, BackplaneError>) {
        self.rosters.answer(asker, list);
    }
}

impl Roster {
    fn with<R>(&self, f: impl FnOnce(&mut Replica<Asker>) -> R) -> R {
        f(&mut self.replica.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Collector for Rosters {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page::new(encoder);
        let rosters = self.rosters.read().unwrap_or_else(PoisonError::into_inner).len();
        page.gauge("rosters", "Presence channels whose list this node keeps.", rosters as f64)?;
        page.counter("roster_lists", "Lists given to subscribers.", self.counters.lists.load(Relaxed))?;
        page.counter(
            "roster_changes",
            "Changes of who is in a channel told to shards.",
            self.counters.changes.load(Relaxed),
        )?;
        let causes = [Cause::First, Cause::Hole, Cause::Lost, Cause::Full, Cause::Overdue];
        let reads = causes.map(|cause| (cause.label(), self.counters.reads[cause as usize].load(Relaxed)));
        page.counters_by("roster_reads", "Lists read from the backplane, by cause.", "cause", reads)?;
        page.counter(
            "roster_reads_failed",
            "Lists that could not be read, and were asked for again.",
            self.counters.reads_failed.load(Relaxed),
        )?;
        page.counter(
            "roster_counts_dropped",
            "Subscription counts not told because shards were behind; the next one is.",
            self.counters.counts_dropped.load(Relaxed),
        )
    }
}

impl Cause {
    fn label(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Hole => "hole",
            Self::Lost => "lost",
            Self::Full => "full",
            Self::Overdue => "overdue",
        }
    }
}

impl fmt::Debug for Rosters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rosters").field("counters", &self.counters).finish_non_exhaustive()
    }
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").finish_non_exhaustive()
    }
}

fn not_subscribed() -> BackplaneError {
    BackplaneError::Unavailable("the channel is not subscribed any more".into())
}

#[cfg(test)]
mod tests;
