//! The backplane of a cluster of one: everything in this process's memory, and nothing waits.
//!
//! # The way of a publication
//!
//! [`publish`](crate::Backplane::publish) looks the channel up ([`table`]), takes the channel's own lock, and under
//! it checks the idempotency key ([`keys`]), assigns the position, appends to history ([`log`]) and calls the sink.
//! One lock makes these one step, and the order of offsets the order of the sink's calls. A publication to a channel
//! that has no subscriber, history or key ends at the look-up and leaves nothing behind.
//!
//! Calls take effect when they are made, not when their future is first polled: `join` followed by `leave` cannot
//! change places because two tasks were polled in another order. The futures are ready at once.
//!
//! # What is kept, and for how long
//!
//! | what | bound | over it |
//! | --- | --- | --- |
//! | publications of a channel | its policy's size and age | the oldest go |
//! | publications of all channels | [`MemoryOptions::history_bytes_max`] | the oldest go, of the channels not published to for longest |
//! | epoch of a channel | while subscribed; else its policy's age since it was last used | the next publication begins a new epoch |
//! | idempotency keys of a channel | [`MemoryOptions::idempotency_window`], [`MemoryOptions::idempotency_keys_max`] | the oldest are forgotten |
//! | idempotency keys of all channels | [`MemoryOptions::idempotency_bytes_max`] | as with publications |
//! | node records | [`MemoryOptions::node_lease`] | they vanish |
//! | subscriptions, presence | one per channel with a subscriber, one per member: the caller bounds them | |
//!
//! What is let go of before its time is counted ([`MemoryCounters::history_evicted`],
//! [`MemoryCounters::idempotency_evicted`]). It is never skipped in silence: a query `since` a position whose
//! followers are gone answers `continuous: false`. A channel that loses its last publication to a bound, and has no
//! subscriber, loses its epoch too. The bounds may be exceeded for as long as a publish takes, by what that publish
//! brought.
//!
//! Age is applied when a channel is looked at, so an answer never depends on when [`MemoryBackplane::sweep`] ran;
//! the sweep only gives memory back.

mod headcount;
mod hoard;
mod keys;
mod ledger;
mod lock;
mod log;
mod moving;
mod nodes;
mod presence;
mod table;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, FutureExt, ready};

use self::{
    headcount::Told,
    hoard::{Hoard, Released},
    keys::Keys,
    log::Log,
    nodes::Nodes,
    presence::Presence,
    table::{Entry, Ledger, PARTS, State, Table},
};
use crate::{
    Attendance, Backplane, BackplaneError, Channel, Clock, Control, Epoch, Gap, GapReason, History,
    HistoryPolicy, HistoryQuery, Intake, Join, JoinError, NewPublication, NodeRecord, OnLeave,
    PRESENCE_SETTLE, Position, PresenceChannel, PresenceEvent, Publication, Published, Roll, Sink,
    SystemClock, gate::Gate,
};

/// Parts of the channel table that one sweep visits. With a sweep each second, memory is back after 8 s, and 15,000
/// channels cost a sweep 2,000 uncontended locks (about 0.1 ms).
const PARTS_PER_SWEEP: usize = 8;

/// So many calls of [`MemoryBackplane::sweep`] visit every channel once.
pub const SWEEPS_PER_ROUND: usize = PARTS / PARTS_PER_SWEEP;

const _: () = assert!(PARTS.is_multiple_of(PARTS_PER_SWEEP));

/// The bounds of a [`MemoryBackplane`], and its clock.
#[derive(Debug, Clone)]
pub struct MemoryOptions {
    pub clock: Arc<dyn Clock>,
    /// Bytes that the publications of all channels may take, their bookkeeping included.
    pub history_bytes_max: u64,
    /// How long a key makes a second publish a duplicate.
    pub idempotency_window: Duration,
    /// Keys remembered for one channel.
    pub idempotency_keys_max: usize,
    /// Bytes that the keys of all channels may take, their bookkeeping included.
    pub idempotency_bytes_max: u64,
    /// How long a node's record holds without being renewed. `None`: until it is retired. A record cannot outlive
    /// the process it is kept in, so there is no dead node whose record a lease would have to end.
    pub node_lease: Option<Duration>,
    /// How long an end must last until it is told as a transition; told by the first sweep after that.
    pub presence_settle: Duration,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            // A quarter of a small container's 1 GiB: about 900,000 publications of 130 bytes, 280 each.
            history_bytes_max: 256 << 20,
            idempotency_window: Duration::from_secs(5 * 60),
            // 218 publishes a second in one channel, each with a key, for 5 minutes.
            idempotency_keys_max: 65_536,
            // About 390,000 keys that are UUIDs (36 characters): 1,300 such publishes a second for 5 minutes.
            idempotency_bytes_max: 64 << 20,
            node_lease: None,
            presence_settle: PRESENCE_SETTLE,
        }
    }
}

/// What a [`MemoryBackplane`] holds now, and what it had to let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryCounters {
    /// Channels of which anything is known.
    pub channels: u64,
    /// Channels with a subscriber.
    pub subscriptions: u64,
    pub history_publications: u64,
    pub history_bytes: u64,
    /// Publications dropped because of [`MemoryOptions::history_bytes_max`], since the start.
    pub history_evicted: u64,
    pub idempotency_keys: u64,
    pub idempotency_bytes: u64,
    /// Keys forgotten within their window, because of either bound, since the start.
    pub idempotency_evicted: u64,
    /// Channels that somebody is in, or that wait for an end to be told.
    pub presence_channels: u64,
    pub presence_subscriptions: u64,
    pub presence_users: u64,
}

/// The [`Backplane`] of one process. Its own documentation is that of the module.
pub struct MemoryBackplane {
    sink: Arc<dyn Sink>,
    options: MemoryOptions,
    table: Table,
    history: Ledger,
    keys: Ledger,
    subscriptions: AtomicU64,
    presence: Presence,
    nodes: Nodes,
    /// Where the next sweep begins.
    sweep_part: AtomicUsize,
    gate: Gate,
}

impl MemoryBackplane {
    /// Hands what is published to `sink`, which is called under the lock of the channel and must not block or call
    /// back.
    pub fn new(sink: Arc<dyn Sink>, options: MemoryOptions) -> Self {
        Self {
            sink,
            table: Table::new(),
            history: Ledger::new(options.history_bytes_max),
            keys: Ledger::new(options.idempotency_bytes_max),
            subscriptions: AtomicU64::new(0),
            presence: Presence::new(options.presence_settle),
            nodes: Nodes::new(options.node_lease),
            sweep_part: AtomicUsize::new(0),
            gate: Gate::default(),
            options,
        }
    }

    /// From now on, whoever publishes, gives an order or removes history waits. When this returns, nobody is at it.
    pub fn suspend(&self) {
        self.gate.shut();
    }

    /// Goes on after [`suspend`](Self::suspend).
    pub fn resume(&self) {
        self.gate.open();
    }

    /// Another process goes on with what [`to_bytes`](Self::to_bytes) has written: nothing is accepted here any more, and
    /// `on_leave` is told of connections that leave their channels.
    pub fn give_away(&self, on_leave: OnLeave) {
        self.gate.give(on_leave);
    }

    /// Does something that changes what other connections are told, now or when it may.
    fn change<'s, T: Send + 's>(
        &'s self,
        change: impl FnOnce(&Self) -> Result<T, BackplaneError> + Send + 's,
    ) -> BoxFuture<'s, Result<T, BackplaneError>> {
        let waiting = match self.gate.pass() {
            Ok(_passing) => return ready(change(self)).boxed(),
            Err(waiting) => waiting,
        };
        async move {
            waiting.over().await?;
            self.change(change).await
        }
        .boxed()
    }

    /// Gives back the memory of what has aged out, in an eighth of the channels ([`SWEEPS_PER_ROUND`]). The owner
    /// calls it about each second. `now` is the time by the clock of the options.
    pub fn sweep(&self, now: Instant) {
        let Ok(_passing) = self.gate.pass() else { return };
        let first = self.sweep_part.fetch_add(PARTS_PER_SWEEP, Relaxed);
        for part in first..first + PARTS_PER_SWEEP {
            self.table.sweep(part, |state| {
                state.age_history(&self.history, now);
                state.age_keys(&self.keys, self.options.idempotency_window, now);
                state.shrink();
            });
        }
        if first.is_multiple_of(PARTS) {
            self.history.purge();
            self.keys.purge();
            self.presence.shrink();
        }
        self.nodes.sweep(now);
        self.presence.settle(now, |channel, told| self.tell(channel, told));
    }

    /// What is held now. It visits every part of the channel table: for a scrape, not for each publication.
    pub fn counters(&self) -> MemoryCounters {
        let (presence_channels, presence_subscriptions, presence_users) = self.presence.totals();
        MemoryCounters {
            channels: self.table.len() as u64,
            subscriptions: self.subscriptions.load(Relaxed),
            history_publications: self.history.items(),
            history_bytes: self.history.bytes(),
            history_evicted: self.history.evicted(),
            idempotency_keys: self.keys.items(),
            idempotency_bytes: self.keys.bytes(),
            idempotency_evicted: self.keys.evicted(),
            presence_channels,
            presence_subscriptions,
            presence_users,
        }
    }

    /// A publication of which nothing is kept.
    fn relay(&self, new: NewPublication) -> Published {
        let NewPublication { channel, event, payload, sender, .. } = new;
        self.table.with_existing(&channel, |state| {
            if state.interest.is_some() {
                let publication = Arc::new(Publication { position: None, event, payload, sender });
                self.hand_over(&channel, publication);
            }
        });
        Published { position: None, duplicate: false }
    }

    /// A publication of which its place in history, or its key, is kept.
    fn keep(&self, mut new: NewPublication) -> Result<Published, BackplaneError> {
        let now = self.options.clock.now();
        if new.history.is_some() {
            new.payload = log::owned(new.payload);
        }
        let channel = new.channel.clone();
        let published = self.table.with(&channel, |entry, state| self.step(entry, state, new, now))?;
        self.table.reclaim(&self.history, |state| &mut state.history);
        self.table.reclaim(&self.keys, |state| &mut state.keys);
        Ok(published)
    }

    /// Key, position, history and sink in one step, under the channel's lock.
    fn step(
        &self,
        entry: &Arc<Entry>,
        state: &mut State,
        new: NewPublication,
        now: Instant,
    ) -> Result<Published, BackplaneError> {
        let NewPublication { channel, event, payload, history, idempotency_key, sender } = new;
        if let Some(key) = &idempotency_key {
            state.age_keys(&self.keys, self.options.idempotency_window, now);
            if let Some(position) = state.keys.held.as_ref().and_then(|keys| keys.answer(key)) {
                return Ok(Published { position, duplicate: true });
            }
        }
        let position = match history {
            Some(policy) => Some(self.next_position(state, policy, now)?),
            None => None,
        };
        if let Some(key) = &idempotency_key {
            self.remember(&channel, entry, state, key, position, now);
        }
        if position.is_some() || state.interest.is_some() {
            let publication = Arc::new(Publication { position, event, payload, sender });
            self.append(&channel, entry, state, &publication, now);
            if state.interest.is_some() {
                self.hand_over(&channel, publication);
            }
        }
        Ok(Published { position, duplicate: false })
    }

    /// Publishers wait for room before they come here, so a sink that has none is rare: its channel is told of a
    /// gap, with the place from which it can recover.
    fn hand_over(&self, channel: &Channel, publication: Arc<Publication>) {
        let top = publication.position;
        if self.sink.publication(channel, publication) == Intake::Full {
            self.sink.gap(channel, Gap { reason: GapReason::Overflow, top });
        }
    }

    /// Hands over what changed in presence, under the lock of the channel where it is subscribed.
    fn tell(&self, channel: &Channel, told: Vec<Told>) {
        if told.is_empty() {
            return;
        }
        let (mut events, mut transitions) = (Vec::new(), Vec::new());
        for told in told {
            match told {
                Told::Event { sequence, kind } => events.push(PresenceEvent { sequence, kind }),
                Told::Transition(transition) => transitions.push(transition),
            }
        }
        self.table.with_existing(channel, |state| {
            if state.interest.is_some() {
                for event in events.drain(..) {
                    self.sink.presence(channel, Arc::new(event));
                }
            }
        });
        for transition in transitions {
            self.sink.transition(channel, transition);
        }
    }

    /// The next position of the channel, in a new epoch if it has none.
    fn next_position(
        &self,
        state: &mut State,
        policy: HistoryPolicy,
        now: Instant,
    ) -> Result<Position, BackplaneError> {
        state.age_history(&self.history, now);
        let log = match &mut state.history.held {
            Some(log) => log,
            none => none.insert(Box::new(Log::new(epoch()?, policy, now))),
        };
        Ok(log.next_position(policy, now))
    }

    /// Adds a publication that has a position to history.
    fn append(
        &self,
        channel: &Channel,
        entry: &Arc<Entry>,
        state: &mut State,
        publication: &Arc<Publication>,
        now: Instant,
    ) {
        let part = &mut state.history;
        let Some(log) = part.held.as_mut().filter(|_| publication.position.is_some()) else { return };
        let bytes = log.append(Arc::clone(publication));
        let released = log.trim(now);
        self.history.keep(channel, entry, part, bytes);
        self.history.release(released);
    }

    /// Remembers what is about to be answered to a key.
    fn remember(
        &self,
        channel: &Channel,
        entry: &Arc<Entry>,
        state: &mut State,
        key: &str,
        position: Option<Position>,
        now: Instant,
    ) {
        let part = &mut state.keys;
        let keys = part.held.get_or_insert_with(Box::<Keys>::default);
        let bytes = keys.remember(key, position, now);
        let mut over = Released::default();
        while keys.len() > self.options.idempotency_keys_max {
            over.add(keys.shed_oldest());
        }
        self.keys.keep(channel, entry, part, bytes);
        self.keys.evict(over);
    }

    fn read(&self, channel: &Channel, query: &HistoryQuery) -> History {
        let now = self.options.clock.now();
        let history = self.table.with_existing(channel, |state| {
            state.age_history(&self.history, now);
            state.history.held.as_ref().map(|log| log.read(query, now))
        });
        // Whoever has a position was here before the channel's state was lost, or comes from another process.
        let nothing =
            || History { publications: Vec::new(), top: None, left: None, continuous: query.since.is_none() };
        history.flatten().unwrap_or_else(nothing)
    }

    fn begin_interest(&self, channel: &Channel, generation: u64) {
        self.table.with(channel, |_, state| {
            if state.history.held.is_some() {
                // An epoch that is over must not come back because no sweep has passed since.
                state.age_history(&self.history, self.options.clock.now());
            }
            if state.interest.is_none() {
                self.subscriptions.fetch_add(1, Relaxed);
            }
            state.interest = state.interest.max(Some(generation));
        });
    }

    fn end_interest(&self, channel: &Channel, generation: u64) {
        let blank = self.table.with_existing(channel, |state| {
            if state.interest.is_none_or(|newest| newest > generation) {
                return false;
            }
            state.interest = None;
            self.subscriptions.fetch_sub(1, Relaxed);
            if let Some(log) = &mut state.history.held {
                log.touch(self.options.clock.now());
            }
            state.is_blank()
        });
        if blank == Some(true) {
            self.table.remove_if_blank(channel);
        }
    }
}

impl Backplane for MemoryBackplane {
    fn publish(&self, publication: NewPublication) -> BoxFuture<'_, Result<Published, BackplaneError>> {
        self.change(|own| {
            let kept = publication.history.is_some() || publication.idempotency_key.is_some();
            if kept { own.keep(publication) } else { Ok(own.relay(publication)) }
        })
    }

    fn subscribe(
        &self,
        channel: &Channel,
        generation: u64,
    ) -> BoxFuture<'static, Result<(), BackplaneError>> {
        self.begin_interest(channel, generation);
        ready(Ok(())).boxed()
    }

    fn unsubscribe(&self, channel: &Channel, generation: u64) {
        self.end_interest(channel, generation);
    }

    fn history(
        &self,
        channel: &Channel,
        query: HistoryQuery,
    ) -> BoxFuture<'_, Result<History, BackplaneError>> {
        ready(Ok(self.read(channel, &query))).boxed()
    }

    fn remove_history(&self, channel: &Channel) -> BoxFuture<'_, Result<(), BackplaneError>> {
        let channel = channel.clone();
        self.change(move |own| {
            own.table.with_existing(&channel, |state| {
                if let Some(log) = &mut state.history.held {
                    own.history.release(log.clear());
                }
            });
            Ok(())
        })
    }

    fn join(&self, channel: &Channel, join: Join) -> BoxFuture<'static, Result<Attendance, JoinError>> {
        let now = self.options.clock.now();
        ready(self.presence.join(channel, join, now, |told| self.tell(channel, told))).boxed()
    }

    fn leave(
        &self,
        channel: &Channel,
        connection: Option<&str>,
    ) -> BoxFuture<'static, Result<Attendance, BackplaneError>> {
        if self.gate.tell_left(channel, connection) {
            return ready(Ok(Attendance::default())).boxed();
        }
        let now = self.options.clock.now();
        ready(Ok(self.presence.leave(channel, connection, now, |told| self.tell(channel, told)))).boxed()
    }

    fn roll(&self, channel: &Channel) -> BoxFuture<'static, Result<Roll, BackplaneError>> {
        ready(Ok(self.presence.roll(channel))).boxed()
    }

    fn attendance(&self, channel: &Channel) -> BoxFuture<'static, Result<Attendance, BackplaneError>> {
        ready(Ok(self.presence.attendance(channel))).boxed()
    }

    fn presence_channels(
        &self,
        app: Option<&str>,
        prefix: &str,
    ) -> BoxFuture<'static, Result<Vec<PresenceChannel>, BackplaneError>> {
        ready(Ok(self.presence.channels(app, prefix))).boxed()
    }

    fn announce(&self, node: NodeRecord) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.nodes.announce(node, self.options.clock.now());
        ready(Ok(())).boxed()
    }

    fn retire(&self, name: &str) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.nodes.retire(name);
        ready(Ok(())).boxed()
    }

    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeRecord>, BackplaneError>> {
        ready(Ok(self.nodes.list(self.options.clock.now()))).boxed()
    }

    fn report(&self, node: &str, report: String) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.nodes.report(node, report, self.options.clock.now());
        ready(Ok(())).boxed()
    }

    fn reports(&self, nodes: &[Box<str>]) -> BoxFuture<'_, Result<Vec<Option<Vec<u8>>>, BackplaneError>> {
        ready(Ok(self.nodes.reports(nodes, self.options.clock.now()))).boxed()
    }

    fn control(&self, control: Control) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.change(|own| {
            own.sink.control(control);
            Ok(())
        })
    }

    fn when_open<'b>(
        &'b self,
        act: Box<dyn FnOnce() + Send + 'b>,
    ) -> BoxFuture<'b, Result<(), BackplaneError>> {
        self.gate.when_open(act).boxed()
    }

    /// Memory is always within reach.
    fn health(&self) -> Result<(), BackplaneError> {
        Ok(())
    }
}

impl fmt::Debug for MemoryBackplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBackplane")
            .field("options", &self.options)
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

/// 64 random bits: among a million epochs, two are equal with a probability of 3 in 10^8.
fn epoch() -> Result<Epoch, BackplaneError> {
    match getrandom::u64() {
        Ok(random) => Ok(Epoch(random)),
        Err(error) => Err(BackplaneError::Unavailable(format!("no randomness for an epoch: {error}").into())),
    }
}
