//! What the tasks and the callers of the registry share, and what is done to one channel.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    counters::Counters,
    entry::{Entry, Key, State},
    flow::Flow,
    outage::Outage,
    outlet::Outlet,
    sequence::{Ask, Pause},
    work::{Asks, Due, Work},
};
use crate::{
    Channel, Gap, Intake, PresenceEvent, Publication, Sink,
    redis::{
        contract::{LinkId, Seat, Session, Subscribing},
        envelope::EnvelopeError,
        history::Reader,
        names::Prefix,
    },
};

/// What may wait on a node for the repair of its channels, together. What does not fit is read from the stream.
const HELD_BYTES_MAX: u64 = 16 << 20;

/// What is published when a position is read takes less than this to arrive, or is lost. On one machine it is under
/// a millisecond; a link that takes longer than 2 s is away.
const GRACE: Duration = Duration::from_millis(500);

/// A sink without room is tried again after this: 50 times a second, about the time that a batch takes to leave.
const FULL_PAUSE: Duration = Duration::from_millis(20);

/// A server that did not answer is asked again after this.
const FAILED_PAUSE: Duration = Duration::from_millis(250);

/// Short beside the intervals of the looks, long enough for some hundred of 100,000 channels to share a question.
const LOOK_TICK: Duration = Duration::from_millis(500);

/// Warnings about undecodable envelopes are at least so far apart.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

pub(super) struct Registry {
    pub(super) prefix: Prefix,
    pub(super) subscribing: Arc<dyn Subscribing>,
    pub(super) reader: Reader,
    pub(super) sink: Arc<dyn Sink>,
    pub(super) counters: Counters,
    pub(super) outage: Outage,
    pub(super) work: Mutex<Work>,
    pub(super) work_filled: Notify,
    pub(super) asks: Mutex<Asks>,
    pub(super) asks_filled: Notify,
    /// Taken before the lock of an entry, never while one is held.
    channels: RwLock<HashMap<Key, Arc<Entry>>>,
    sessions: Mutex<HashMap<LinkId, (Session, Arc<Flow>)>>,
    /// Subscriptions wait for room in a flow.
    pub(super) are_queued: AtomicBool,
    /// The keeper does nothing. Held while it does something.
    pub(super) is_halted: Mutex<bool>,
    spreads: AtomicU32,
    began_at: Instant,
    /// Milliseconds after `began_at`, plus 1; 0: never.
    warned_at_ms: AtomicU64,
}

/// What became of a channel that nobody wanted for a while.
pub(super) enum Removal {
    /// Somebody came back, or it is gone already.
    Wanted,
    /// Somebody came and left: the time begins anew.
    Newer(u64),
    Done {
        /// Where it was subscribed.
        seats: Vec<Seat>,
        look_at: Option<Instant>,
    },
}

/// Hands over for one channel.
pub(super) struct Delivery<'a> {
    registry: &'a Registry,
    channel: &'a Channel,
}

impl Registry {
    pub(super) fn new(
        prefix: Prefix,
        subscribing: Arc<dyn Subscribing>,
        reader: Reader,
        sink: Arc<dyn Sink>,
    ) -> Self {
        Self {
            prefix,
            subscribing,
            reader,
            sink,
            counters: Counters::default(),
            outage: Outage::default(),
            work: Mutex::default(),
            work_filled: Notify::new(),
            asks: Mutex::default(),
            asks_filled: Notify::new(),
            channels: RwLock::default(),
            sessions: Mutex::default(),
            are_queued: AtomicBool::new(false),
            is_halted: Mutex::new(false),
            spreads: AtomicU32::new(0),
            began_at: Instant::now(),
            warned_at_ms: AtomicU64::new(0),
        }
    }

    /// The entry of a pub/sub channel, by its name on the server.
    pub(super) fn find(&self, name: &[u8]) -> Option<Arc<Entry>> {
        self.find_tag(self.prefix.tag_of(name)?)
    }

    pub(super) fn find_tag(&self, tag: &[u8]) -> Option<Arc<Entry>> {
        self.channels.read().unwrap_or_else(PoisonError::into_inner).get(tag).cloned()
    }

    pub(super) fn find_or_insert(&self, channel: &Channel) -> Arc<Entry> {
        if let Some(entry) = self.find_tag(channel.as_str().as_bytes()) {
            return entry;
        }
        let mut channels = self.channels.write().unwrap_or_else(PoisonError::into_inner);
        let entry = channels.entry(Key(channel.clone())).or_insert_with(|| Entry::new(channel.clone()));
        Arc::clone(entry)
    }

    pub(super) fn entries(&self, wanted: impl Fn(&Channel) -> bool) -> Vec<Arc<Entry>> {
        let channels = self.channels.read().unwrap_or_else(PoisonError::into_inner);
        channels.values().filter(|entry| wanted(&entry.channel)).cloned().collect()
    }

    /// Takes a channel out if nobody has subscribed since `generation`. Nothing can be put in its place before this is
    /// through.
    pub(super) fn remove(&self, entry: &Entry, generation: u64) -> Removal {
        let mut channels = self.channels.write().unwrap_or_else(PoisonError::into_inner);
        let removal = entry.locked(|state| {
            if state.is_wanted || state.is_closed {
                state.is_leaving = false;
                return Removal::Wanted;
            }
            if state.generation != generation {
                return Removal::Newer(state.generation);
            }
            state.is_closed = true;
            self.let_go(entry, state);
            self.is_back(state);
            let sent = state.sent.take().map(|sent| sent.seat);
            let seats = state.holds.take().into_iter().chain(sent).collect();
            Removal::Done { seats, look_at: state.look_at.take() }
        });
        if matches!(removal, Removal::Done { .. }) {
            channels.remove(entry.channel.as_str().as_bytes());
        }
        removal
    }

    /// The subscription of a channel is gone.
    pub(super) fn let_go(&self, entry: &Entry, state: &mut State) {
        if state.holds.is_some() {
            self.counters.confirmed.fetch_sub(1, Relaxed);
        }
        state.sequence.interrupted(&mut Delivery { registry: self, channel: &entry.channel });
    }

    /// The subscription of a channel is gone, and has to be made again.
    pub(super) fn lose(&self, entry: &Entry, state: &mut State) {
        self.let_go(entry, state);
        state.holds = None;
        if !std::mem::replace(&mut state.is_missing, true) {
            self.outage.lost(Instant::now());
        }
    }

    /// The subscription of a channel is there, or not wanted any more.
    pub(super) fn is_back(&self, state: &mut State) {
        if std::mem::take(&mut state.is_missing) {
            self.outage.back(Instant::now());
        }
    }

    pub(super) fn session(&self, link: LinkId) -> Option<Session> {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get(&link).map(|(session, _)| *session)
    }

    /// What is under way on a session; `None` when that is over.
    pub(super) fn flow(&self, seat: Seat) -> Option<Arc<Flow>> {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let (session, flow) = sessions.get(&seat.link)?;
        (*session == seat.session).then(|| Arc::clone(flow))
    }

    pub(super) fn set_session(&self, link: LinkId, session: Session, is_up: bool) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if is_up {
            sessions.insert(link, (session, Arc::default()));
        } else if sessions.get(&link).is_some_and(|(held, _)| *held == session) {
            sessions.remove(&link);
        }
    }

    pub(super) fn set_halted(&self, halts: bool) {
        *self.is_halted.lock().unwrap_or_else(PoisonError::into_inner) = halts;
        self.work_filled.notify_one();
    }

    pub(super) fn is_quiet(&self) -> bool {
        let are_confirmed = {
            let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            sessions.values().all(|(_, flow)| flow.is_quiet())
        };
        are_confirmed && self.asks.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(super) fn is_alive(&self, seat: Seat) -> bool {
        self.session(seat.link) == Some(seat.session)
    }

    /// A subscription that was sent is confirmed, or not waited for any more.
    pub(super) fn arrived(&self, seat: Seat, is_confirmed: bool) {
        let has_room = self.flow(seat).is_some_and(|flow| flow.arrived(is_confirmed));
        if has_room && self.are_queued.swap(false, Relaxed) {
            self.work_filled.notify_one();
        }
    }

    /// Does something to a channel's sequence, and sees to what comes of it.
    pub(super) fn advance(
        &self,
        entry: &Arc<Entry>,
        work: impl FnOnce(&mut State, &mut Delivery<'_>) -> Option<Ask>,
    ) {
        let (ask, waiting) = entry.locked(|state| {
            let ask = work(state, &mut Delivery { registry: self, channel: &entry.channel });
            let is_done = !state.waiting.is_empty() && state.is_ready();
            (ask, if is_done { std::mem::take(&mut state.waiting) } else { Vec::new() })
        });
        for waiting in waiting {
            // Whoever waited may have given up.
            waiting.send(()).unwrap_or_default();
        }
        if let Some(ask) = ask {
            self.dispatch(entry, ask);
        }
    }

    pub(super) fn dispatch(&self, entry: &Arc<Entry>, ask: Ask) {
        let (after, due) = match ask {
            Ask::Grace { serial, top } => (GRACE, Due::Grace { serial, top }),
            Ask::Retry { serial, after: Pause::Full } => (FULL_PAUSE, Due::Retry { serial }),
            Ask::Retry { serial, after: Pause::Failed } => {
                self.counters.failed_asks.fetch_add(1, Relaxed);
                (FAILED_PAUSE, Due::Retry { serial })
            }
            Ask::Position { .. } | Ask::Page { .. } | Ask::Renounce { .. } => {
                self.asks.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(entry), ask);
                self.asks_filled.notify_one();
                return;
            }
        };
        self.order(|work| work.timers.push((Instant::now() + after, Arc::clone(entry), due)));
    }

    /// Leaves work for the keeper.
    pub(super) fn order(&self, write: impl FnOnce(&mut Work)) {
        write(&mut self.work.lock().unwrap_or_else(PoisonError::into_inner));
        self.work_filled.notify_one();
    }

    /// Has a server end a subscription that is not, or no longer, this node's.
    pub(super) fn end(&self, seat: Seat, name: &[u8]) {
        let tag = self.prefix.tag_of(name).and_then(|tag| std::str::from_utf8(tag).ok());
        if let Some(channel) = tag.and_then(|tag| Channel::from_inside(tag).ok()) {
            self.order(|work| work.unsubscribe.push((seat, channel)));
        }
    }

    /// The time of a channel's look has come.
    pub(super) fn look(&self, entry: &Arc<Entry>, now: Instant) {
        let is_due = entry.locked(|state| {
            let is_due = state.look_at.is_some_and(|at| at <= now) && !state.is_closed;
            if is_due {
                state.look_at = None;
            }
            is_due
        });
        if !is_due {
            return;
        }
        let ask = entry.locked(|state| state.sequence.look());
        // If it is not live, the position is asked for when the subscription is confirmed.
        if let Some(ask) = ask {
            self.dispatch(entry, ask);
        }
    }

    /// Sets the time of a channel's next look, unless there is one before.
    pub(super) fn look_after(&self, entry: &Arc<Entry>, interval: Duration) {
        let at = self.tick_after(self.spread(interval));
        let is_first = entry.locked(|state| {
            let is_first = state.look_at.is_none_or(|planned| at < planned) && !state.is_closed;
            if is_first {
                state.look_at = Some(at);
            }
            is_first
        });
        if is_first {
            self.order(|work| work.timers.push((at, Arc::clone(entry), Due::Look)));
        }
    }

    /// Looks have common times, so that those of many channels are one question.
    fn tick_after(&self, interval: Duration) -> Instant {
        let after = (self.began_at.elapsed() + interval).as_millis() / LOOK_TICK.as_millis();
        self.began_at + LOOK_TICK * u32::try_from(after).unwrap_or(u32::MAX)
    }

    /// 70 to 100 % of an interval, so that the looks of channels that were subscribed together spread.
    pub(super) fn spread(&self, interval: Duration) -> Duration {
        // Multiples of the golden ratio fill the range evenly.
        let step = self.spreads.fetch_add(0x9e37_79b9, Relaxed);
        interval.mul_f64(1.0 - 0.3 * f64::from(step) / f64::from(u32::MAX))
    }

    pub(super) fn undecodable(&self, channel: &Channel, error: EnvelopeError) {
        self.counters.undecodable(error);
        let now_ms = u64::try_from(self.began_at.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let last_ms = self.warned_at_ms.load(Relaxed);
        let is_due = last_ms == 0 || now_ms - last_ms.min(now_ms) >= WARNING_INTERVAL.as_millis() as u64;
        if is_due && self.warned_at_ms.compare_exchange(last_ms, now_ms, Relaxed, Relaxed).is_ok() {
            tracing::warn!(%channel, %error, "skipped what is no envelope of this version");
        }
    }
}

impl Delivery<'_> {
    /// Handed over at once: what waits for a repair of the channel comes after it.
    pub(super) fn presence(&mut self, event: PresenceEvent) {
        self.registry.sink.presence(self.channel, Arc::new(event));
    }
}

impl Outlet for Delivery<'_> {
    fn publication(&mut self, publication: Arc<Publication>) -> Intake {
        self.registry.sink.publication(self.channel, publication)
    }

    fn gap(&mut self, gap: Gap) {
        self.registry.sink.gap(self.channel, gap);
    }

    fn presence_lost(&mut self) {
        self.registry.sink.presence_lost(self.channel);
    }

    fn reserve(&mut self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let held = &self.registry.counters.held_bytes;
        let fits = held.fetch_add(bytes, Relaxed) + bytes <= HELD_BYTES_MAX;
        if !fits {
            held.fetch_sub(bytes, Relaxed);
        }
        fits
    }

    fn release(&mut self, bytes: usize) {
        self.registry.counters.held_bytes.fetch_sub(bytes as u64, Relaxed);
    }

    fn counters(&self) -> &Counters {
        &self.registry.counters
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
