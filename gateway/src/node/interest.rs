//! Which channels have subscribers on this node, on which shards, and how much of each is on its way out. A node
//! is subscribed on the backplane exactly to the channels in this table.

use std::{
    collections::{BinaryHeap, HashMap},
    fmt,
    hash::BuildHasher,
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tidegate_backplane::{Backplane, BackplaneError, Channel};
use tidegate_ops::config::THREADS_MAX;
use tokio::sync::{Notify, oneshot};

// A test plays the orders of threads with other primitives under these names (`tests/interest_orders.rs`).
use crate::sync::{
    RandomState, RwLock,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

/// The answer of the backplane to a subscription, shared by everyone who waits for it.
pub(crate) type Confirmation = Shared<Subscribing>;

type Subscribing = BoxFuture<'static, Result<(), BackplaneError>>;

/// Payload bytes of one channel that may be on their way out before its publishers have to wait. Several
/// batches, so that fan-outs stay merged and busy, but few: what waits here is latency.
const CHANNEL_LOAD_BYTES: usize = 64 * 1024;

/// The same for the whole node.
const NODE_LOAD_BYTES: usize = 16 * 1024 * 1024;

/// What a backplane hands over without having waited for room here, because it was published on another node, is
/// taken up to this many times those bounds: 1 MiB for a channel, 256 MiB for the node. Beyond, the backplane keeps it.
const UNANNOUNCED: usize = 16;

/// What an outgoing publication costs besides its payload: struct, headers, places in queues.
const OUTGOING_BYTES: usize = 128;

/// A set of shards is one word.
const _: () = assert!(THREADS_MAX.get() <= u64::BITS as usize);

/// Tables are split to keep publishers of different channels out of each other's way, and so that a listing holds few
/// channels at a time: 1,000 of a million.
const STRIPES: usize = 1024;

/// A channel with subscribers on this node.
#[derive(Debug)]
pub(crate) struct Interest {
    pub(crate) channel: Channel,
    /// Bit n: shard n has subscribers, or had some a moment ago.
    shards: AtomicU64,
    /// Subscriptions, counted by the hubs. An entry that replaces a failed one goes on with its number: a shard may
    /// count in on the one and out on the other.
    pub(crate) subscribers: Arc<AtomicU64>,
    /// What shards were handed of it, counted.
    handed: AtomicU64,
    load_bytes: AtomicUsize,
    relieved: Notify,
    node: Arc<NodeLoad>,
    generation: u64,
    confirmation: Confirmation,
}

/// How many publications and notices of a channel the shards were handed, in one subscription of the node. While it is the
/// same, whoever has joined meanwhile has missed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    generation: u64,
    handed: u64,
}

/// Load of all channels together.
#[derive(Debug, Default)]
struct NodeLoad {
    bytes: AtomicUsize,
    /// The fullest that a channel or the node was since the last look, in thousandths of its bound.
    peak_permille: AtomicUsize,
    relieved: Notify,
}

/// The part of a channel's load that one outgoing publication is; ends with it.
#[derive(Debug)]
pub(crate) struct Load {
    interest: Arc<Interest>,
    bytes: usize,
}

pub(crate) struct Interests {
    stripes: Vec<RwLock<HashMap<Channel, Arc<Interest>>>>,
    /// Entries of all stripes.
    channels: AtomicUsize,
    hasher: RandomState,
    node: Arc<NodeLoad>,
    generation: AtomicU64,
}

impl Interests {
    pub(crate) fn new() -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| RwLock::default()).collect(),
            channels: AtomicUsize::new(0),
            hasher: RandomState::new(),
            node: Arc::default(),
            generation: AtomicU64::new(0),
        }
    }

    pub(crate) fn get(&self, channel: &Channel) -> Option<Arc<Interest>> {
        self.stripe(channel).read().unwrap_or_else(PoisonError::into_inner).get(channel).cloned()
    }

    /// A shard has its first subscriber of a channel. The node's first one subscribes on the backplane.
    ///
    /// The backplane is called with no lock of this table held: while it hands out a publication it may hold the
    /// channel, and waits for the table ([`get`](Self::get)). Generations make up for the lack of order: an
    /// `unsubscribe` that comes late does not end the subscription of a newer generation, and a channel is
    /// subscribed anew only when the shard that subscribed before has left.
    pub(crate) fn enter(&self, channel: &Channel, shard: usize, backplane: &dyn Backplane) -> Arc<Interest> {
        let (interest, begin) = self.stand(channel, shard);
        if let Some(begin) = begin {
            let subscribing = backplane.subscribe(channel, interest.generation);
            // The interest owns the receiver and is alive.
            let sent = begin.send(subscribing);
            debug_assert!(sent.is_ok());
        }
        interest
    }

    /// A shard's last subscriber is gone. The node's last shard unsubscribes.
    pub(crate) fn leave(&self, channel: &Channel, shard: usize, backplane: &dyn Backplane) {
        if let Some(generation) = self.stand_down(channel, shard) {
            backplane.unsubscribe(channel, generation);
        }
    }

    /// Channels of an app whose names are wanted, in order of their names, after `after`, with their subscribers.
    pub(crate) fn list(
        &self,
        app: Option<&str>,
        wants: impl Fn(&str) -> bool,
        after: Option<&str>,
        limit: usize,
    ) -> Vec<(Channel, u64)> {
        // The first `limit` in order so far, the last of them on top: shards wait for a stripe while it is looked
        // through, so nothing is copied that is not among them.
        let mut found: BinaryHeap<(Channel, u64)> = BinaryHeap::new();
        for stripe in &self.stripes {
            let stripe = stripe.read().unwrap_or_else(PoisonError::into_inner);
            for interest in stripe.values() {
                let subscribers = interest.subscribers.load(Ordering::Relaxed);
                let (channel, name) = (&interest.channel, interest.channel.name());
                let is_its = subscribers > 0 && channel.app() == app;
                if !is_its || after.is_some_and(|after| name <= after) || !wants(name) {
                    continue;
                }
                if found.len() < limit {
                    found.push((channel.clone(), subscribers));
                } else if let Some(mut last) = found.peek_mut().filter(|last| *channel < last.0) {
                    *last = (channel.clone(), subscribers);
                }
            }
        }
        found.into_sorted_vec()
    }

    /// The channels with the most subscribers among those in the next stripes from `from` on, and where the next look
    /// goes on: at most about `looked_at_max` channels are looked at, and none twice.
    pub(crate) fn largest(
        &self,
        from: usize,
        looked_at_max: usize,
        limit: usize,
    ) -> (Vec<(Channel, u64)>, usize) {
        // The smallest of those found on top.
        let mut found: BinaryHeap<(std::cmp::Reverse<u64>, Channel)> = BinaryHeap::new();
        let (mut looked_at, mut stripes) = (0, 0);
        while stripes < STRIPES && looked_at < looked_at_max {
            let stripe = &self.stripes[(from + stripes) % STRIPES];
            let stripe = stripe.read().unwrap_or_else(PoisonError::into_inner);
            for interest in stripe.values() {
                let subscribers = interest.subscribers.load(Ordering::Relaxed);
                let is_larger =
                    found.len() < limit || found.peek().is_some_and(|least| subscribers > least.0.0);
                if subscribers > 0 && is_larger {
                    found.push((std::cmp::Reverse(subscribers), interest.channel.clone()));
                }
                if found.len() > limit {
                    found.pop();
                }
            }
            looked_at += stripe.len();
            stripes += 1;
        }
        let found =
            found.into_sorted_vec().into_iter().map(|(subscribers, channel)| (channel, subscribers.0));
        (found.collect(), (from + stripes) % STRIPES)
    }

    /// How full, since the last call, the fullest channel or the node was, in thousandths of what makes
    /// publishers wait.
    pub(crate) fn take_peak_permille(&self) -> usize {
        self.node.peak_permille.swap(0, Ordering::Relaxed)
    }

    /// Channels in the table.
    pub(crate) fn len(&self) -> usize {
        self.channels.load(Ordering::Relaxed)
    }

    /// The channel's entry with the shard's mark. `Some`: it is new, and waits for its subscription.
    fn stand(
        &self,
        channel: &Channel,
        shard: usize,
    ) -> (Arc<Interest>, Option<oneshot::Sender<Subscribing>>) {
        let mut stripe = self.stripe(channel).write().unwrap_or_else(PoisonError::into_inner);
        let before = stripe.get(channel);
        if let Some(standing) = before.filter(|standing| !standing.has_failed()) {
            standing.shards.fetch_or(1 << shard, Ordering::AcqRel);
            return (Arc::clone(standing), None);
        }
        // Shards that hold an entry whose subscription has failed leave through the one that replaces it.
        let marks = before.map_or(0, |failed| failed.shards.load(Ordering::Acquire)) | 1 << shard;
        let subscribers = before.map(|failed| Arc::clone(&failed.subscribers)).unwrap_or_default();
        let (begin, subscribing) = oneshot::channel();
        let interest = Arc::new(self.interest(channel, marks, subscribers, subscribing));
        if stripe.insert(channel.clone(), Arc::clone(&interest)).is_none() {
            self.channels.fetch_add(1, Ordering::Relaxed);
        }
        (interest, Some(begin))
    }

    /// Takes the shard's mark away. `Some`: it was the last, and this generation is to be unsubscribed.
    fn stand_down(&self, channel: &Channel, shard: usize) -> Option<u64> {
        let mut stripe = self.stripe(channel).write().unwrap_or_else(PoisonError::into_inner);
        let interest = stripe.get(channel)?;
        let left = interest.shards.fetch_and(!(1 << shard), Ordering::AcqRel) & !(1 << shard);
        let generation = interest.generation;
        (left == 0).then(|| {
            stripe.remove(channel);
            self.channels.fetch_sub(1, Ordering::Relaxed);
            generation
        })
    }

    fn interest(
        &self,
        channel: &Channel,
        marks: u64,
        subscribers: Arc<AtomicU64>,
        subscribing: oneshot::Receiver<Subscribing>,
    ) -> Interest {
        let confirmation = async move {
            match subscribing.await {
                Ok(subscribing) => subscribing.await,
                Err(_) => Err(BackplaneError::Unavailable("the subscription was not begun".into())),
            }
        };
        Interest {
            channel: channel.clone(),
            shards: AtomicU64::new(marks),
            subscribers,
            handed: AtomicU64::new(0),
            load_bytes: AtomicUsize::new(0),
            relieved: Notify::new(),
            node: Arc::clone(&self.node),
            generation: self.generation.fetch_add(1, Ordering::Relaxed) + 1,
            confirmation: confirmation.boxed().shared(),
        }
    }

    fn stripe(&self, channel: &Channel) -> &RwLock<HashMap<Channel, Arc<Interest>>> {
        &self.stripes[self.hasher.hash_one(channel) as usize % STRIPES]
    }
}

impl fmt::Debug for Interests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interests").field("channels", &self.len()).finish_non_exhaustive()
    }
}

impl Interest {
    /// The backplane's answer: ready at once when it already came.
    pub(crate) fn confirmation(&self) -> Confirmation {
        self.confirmation.clone()
    }

    /// Whether the backplane has refused the subscription: whoever comes next has to subscribe anew.
    pub(crate) fn has_failed(&self) -> bool {
        self.confirmation.peek().is_some_and(Result::is_err)
    }

    /// Shards that have subscribers.
    pub(crate) fn shards(&self) -> impl Iterator<Item = usize> + use<> {
        let mut bits = self.shards.load(Ordering::Acquire);
        std::iter::from_fn(move || {
            let shard = bits.trailing_zeros() as usize;
            bits &= bits.wrapping_sub(1);
            (shard < 64).then_some(shard)
        })
    }

    /// Call it before shards are handed something, and whenever the history has changed in another way.
    pub(crate) fn hand(&self) {
        self.handed.fetch_add(1, Ordering::AcqRel);
    }

    /// An addition of 0 and not a load, so that it is ordered with [`hand`](Self::hand): of a client that joins and then takes
    /// the mark, and a relay that counts and then looks which shards have joined, one always sees the other.
    pub(crate) fn mark(&self) -> Mark {
        Mark { generation: self.generation, handed: self.handed.fetch_add(0, Ordering::AcqRel) }
    }

    /// Counts a payload as on its way out.
    pub(crate) fn load(self: &Arc<Self>, payload_bytes: usize) -> Load {
        let bytes = payload_bytes + OUTGOING_BYTES;
        let channel = self.load_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let node = self.node.bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let permille = (channel * 1000 / CHANNEL_LOAD_BYTES).max(node * 1000 / NODE_LOAD_BYTES);
        self.node.peak_permille.fetch_max(permille.min(1000), Ordering::Relaxed);
        Load { interest: Arc::clone(self), bytes }
    }

    /// Waits until there is room for another publication; false when there is none within `patience`.
    pub(crate) async fn room(&self, patience: Duration) -> bool {
        if self.has_room() {
            return true;
        }
        let waiting = async {
            loop {
                let (relieved, node_relieved) = (self.relieved.notified(), self.node.relieved.notified());
                if self.has_room() {
                    return;
                }
                tokio::select! { () = relieved => (), () = node_relieved => () }
            }
        };
        tokio::time::timeout(patience, waiting).await.is_ok()
    }

    /// Whether a publication that nobody waited with may be added.
    pub(crate) fn takes_more(&self) -> bool {
        self.load_bytes.load(Ordering::Acquire) < UNANNOUNCED * CHANNEL_LOAD_BYTES
            && self.node.bytes.load(Ordering::Acquire) < UNANNOUNCED * NODE_LOAD_BYTES
    }

    fn has_room(&self) -> bool {
        self.load_bytes.load(Ordering::Acquire) < CHANNEL_LOAD_BYTES
            && self.node.bytes.load(Ordering::Acquire) < NODE_LOAD_BYTES
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let before = self.interest.load_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        if before >= CHANNEL_LOAD_BYTES && before - self.bytes < CHANNEL_LOAD_BYTES {
            self.interest.relieved.notify_waiters();
        }
        let before = self.interest.node.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        if before >= NODE_LOAD_BYTES && before - self.bytes < NODE_LOAD_BYTES {
            self.interest.node.relieved.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::OnceLock, thread};

    use tidegate_backplane::{
        Control, Gap, Intake, MemoryBackplane, MemoryOptions, NewPublication, Payload, PresenceEvent,
        Publication, Sink, Text, Transition,
    };

    use super::*;

    /// As the relay does: looks the channel up while the backplane holds it.
    #[derive(Default)]
    struct LookUp(OnceLock<Arc<Interests>>);

    impl Sink for LookUp {
        fn publication(&self, channel: &Channel, _: Arc<Publication>) -> Intake {
            let interest = self.0.get().and_then(|interests| interests.get(channel));
            assert!(interest.is_none_or(|interest| interest.shards().count() <= 2));
            Intake::Taken
        }
        fn gap(&self, _: &Channel, _: Gap) {}
        fn control(&self, _: Control) {}
        fn presence(&self, _: &Channel, _: Arc<PresenceEvent>) {}
        fn transition(&self, _: &Channel, _: Transition) {}
    }

    /// A shard that counted somebody in before the subscription failed counts it out after another shard has subscribed
    /// anew: the number must come back to nothing and not below.
    #[test]
    fn a_replaced_entry_goes_on_with_the_number_of_subscribers() {
        let interests = Interests::new();
        let channel = Channel::new("cache-a").expect("a name");
        let (failed, begin) = interests.stand(&channel, 0);
        failed.subscribers.fetch_add(1, Ordering::Relaxed);
        let refused = Err(BackplaneError::Unavailable("away".into()));
        assert!(begin.expect("new").send(std::future::ready(refused).boxed()).is_ok());
        assert!(failed.confirmation().now_or_never().expect("answered").is_err());
        let (replaced, begin) = interests.stand(&channel, 1);
        assert!(begin.is_some() && !Arc::ptr_eq(&failed, &replaced));
        assert_eq!(interests.list(None, |_| true, None, 10), [(channel.clone(), 1)]);
        replaced.subscribers.fetch_sub(1, Ordering::Relaxed);
        assert_eq!(interests.list(None, |_| true, None, 10), []);
    }

    #[test]
    fn a_listing_has_the_first_names_in_order() {
        let interests = Interests::new();
        let names: Vec<String> = (0..2000).map(|n| format!("c{n:04}")).collect();
        for name in names.iter().rev() {
            let (interest, _) = interests.stand(&Channel::new(name).expect("a name"), 0);
            interest.subscribers.fetch_add(1, Ordering::Relaxed);
        }
        interests.stand(&Channel::new("c0000-empty").expect("a name"), 0);
        let listed = |prefix: &str, after: Option<&str>, limit: usize| -> Vec<String> {
            let found = interests.list(None, |name| name.starts_with(prefix), after, limit).into_iter();
            found.map(|(channel, _)| channel.name().to_owned()).collect()
        };
        assert_eq!(listed("", None, 5000), names);
        assert_eq!(listed("", None, 3), names[..3]);
        assert_eq!(listed("c1", Some("c1500"), 2), names[1501..1503]);
        assert!(listed("", None, 0).is_empty() && listed("d", None, 3).is_empty());
    }

    /// The backplane holds a channel while it hands out, and the table while it looks up: whoever subscribes must
    /// not hold both in the other order, or all stand still.
    #[test]
    fn subscribing_and_publishing_do_not_wait_for_each_other() {
        let sink = Arc::new(LookUp::default());
        let backplane = MemoryBackplane::new(Arc::clone(&sink) as Arc<dyn Sink>, MemoryOptions::default());
        let interests = Arc::new(Interests::new());
        sink.0.get_or_init(|| Arc::clone(&interests));
        let channel = Channel::new("a").expect("a name");
        thread::scope(|scope| {
            for shard in 0..2 {
                let (interests, backplane, channel) = (&interests, &backplane, &channel);
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        let interest = interests.enter(channel, shard, backplane);
                        // Not there yet: the other shard is about to subscribe.
                        let confirmed = interest.confirmation().now_or_never();
                        assert!(confirmed.is_none_or(|confirmed| confirmed.is_ok()));
                        interests.leave(channel, shard, backplane);
                    }
                });
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        let payload = Payload::Text(Text::new());
                        let (event, history, idempotency_key) = (None, None, None);
                        let channel = channel.clone();
                        let publication = NewPublication {
                            channel,
                            event,
                            payload,
                            history,
                            idempotency_key,
                            sender: None,
                        };
                        let published = backplane.publish(publication).now_or_never();
                        assert!(published.is_some_and(|published| published.is_ok()));
                    }
                });
            }
        });
        assert_eq!((interests.len(), backplane.counters().subscriptions), (0, 0));
    }
}
