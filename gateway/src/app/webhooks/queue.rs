//! The events that wait for one address: bounded in bytes; at the bound the oldest make room.
//!
//! What happened to channels (occupied, vacated, members) has room of its own, which nothing that a client can cause by
//! the thousand takes from it. A cache miss is told once while the last one of its channel is fresh; of numbers of
//! subscriptions that wait only the newest is kept. Events leave in the order in which they came.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

mod moving;

pub(super) use self::moving::Moved;

use super::{
    Event,
    dialect::{Dialect, EventJson},
    metrics::{WebhookDrop, WebhookMetrics},
    wills::Ticket,
};

/// Events in one request at most, where an address takes several.
const BATCH_EVENTS_MAX: usize = 100;

/// Bytes in one request, unless one event is larger: under the 100 kB that Express takes by default, which with nginx's
/// 1 MiB is the smallest of the common bounds. A request that is too large would be sent in vain until it is given up.
const BATCH_BYTES_MAX: usize = 64 * 1024;

/// What an event costs beside its bytes: 64 for its place in the queue, 16 for the counts of its `Arc`.
const EVENT_OVERHEAD_BYTES: usize = 80;

/// What the topic of an event costs beside the channel's name: a place in the table (48), and the counts of its `Arc`.
const TOPIC_OVERHEAD_BYTES: usize = 64;

/// A miss of one channel is told once in so long: the app's server publishes what was missed, which takes a moment, and
/// everybody who subscribes meanwhile misses it too.
const MISS_INTERVAL: Duration = Duration::from_secs(5);

/// Channels whose last miss is remembered; a miss of a further one is told each time. Some 300 KiB at 60 bytes a name.
const MISSES_MAX: usize = 4096;

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// There is something to send.
    pushed: Notify,
    /// Nothing is to be sent any more.
    abandoned: CancellationToken,
    /// Of each lane.
    bytes_max: usize,
    /// Events in one request.
    batch_events: AtomicUsize,
    dialect: ArcSwap<Dialect>,
    metrics: Arc<WebhookMetrics>,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the event that comes next.
    next: u64,
    /// What happened to channels, and all else.
    lanes: [Lane; 2],
    /// Topics that wait, and the numbers of their events.
    topics: HashMap<Topic, u64>,
    /// When a channel's miss was told last.
    misses: HashMap<Arc<str>, Instant>,
    /// When those that are no longer fresh were last taken out of it.
    swept: Option<Instant>,
    /// Events that are being sent, with their lanes.
    under_way: Vec<(usize, Waiting)>,
    /// Nothing more is taken to be sent.
    is_suspended: bool,
    /// Another process sends what was here.
    is_given: bool,
}

#[derive(Debug, Default)]
struct Lane {
    events: VecDeque<Waiting>,
    /// Of `events` and of those that are being sent.
    bytes: usize,
    /// Of `events`.
    bytes_waiting: usize,
}

#[derive(Debug, Clone)]
struct Waiting {
    number: u64,
    topic: Option<Topic>,
    json: EventJson,
    ticket: Option<Arc<Ticket>>,
}

/// What only one event that waits is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Topic {
    Miss(Arc<str>),
    Count(Arc<str>),
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pushed {
    /// So many older ones were dropped for it.
    Added {
        dropped: u64,
    },
    /// Another one says the same.
    Coalesced,
    NoRoom,
}

/// Events that are being sent. They count as queued until they are settled or dropped.
#[derive(Debug)]
pub(super) struct Batch<'q> {
    pub(super) events: Vec<EventJson>,
    /// Those of them that end with the events.
    tickets: Vec<Arc<Ticket>>,
    /// What they cost, by lane.
    bytes: [usize; 2],
    queue: &'q Queue,
    /// What to count if they are not sent after all.
    reason: WebhookDrop,
}

impl Queue {
    pub(super) fn new(bytes_max: usize, dialect: Dialect, metrics: Arc<WebhookMetrics>) -> Self {
        Self {
            state: Mutex::default(),
            pushed: Notify::new(),
            abandoned: CancellationToken::new(),
            bytes_max,
            batch_events: AtomicUsize::new(1),
            dialect: ArcSwap::from_pointee(dialect),
            metrics,
        }
    }

    /// Adds an event of an app; what finds no room is counted.
    pub(super) fn push(&self, event: &Event<'_>, json: EventJson) {
        self.add(Topic::of(event), event.is_change(), json, None);
    }

    /// The same of any event. `is_change`: it comes once and is missed if it is lost. The ticket is settled when the event is taken
    /// or given up.
    pub(super) fn add(
        &self,
        topic: Option<Topic>,
        is_change: bool,
        json: EventJson,
        ticket: Option<Arc<Ticket>>,
    ) {
        self.metrics.events.add(1);
        let mut state = self.state();
        if self.abandoned.is_cancelled() {
            drop(state);
            ticket.iter().for_each(Ticket::settle);
            return self.metrics.dropped.add(WebhookDrop::Removed, 1);
        }
        let before = state.bytes();
        let event = (topic, json, ticket.clone());
        let pushed = state.push(event, is_change, self.bytes_max, Instant::now());
        self.metrics.queue_bytes.add(state.bytes() as i64 - before as i64);
        drop(state);
        match pushed {
            Pushed::Added { dropped } => {
                self.metrics.dropped.add(WebhookDrop::QueueFull, dropped);
                self.pushed.notify_one();
            }
            Pushed::Coalesced => self.metrics.coalesced.add(1),
            Pushed::NoRoom => {
                self.metrics.dropped.add(WebhookDrop::QueueFull, 1);
                ticket.iter().for_each(Ticket::settle);
            }
        }
    }

    /// Whoever sends drops what waits, and ends. Nothing is added afterwards.
    pub(super) fn abandon(&self) {
        // Nothing is being added meanwhile.
        let mut state = self.state();
        state.is_suspended = false;
        self.abandoned.cancel();
    }

    /// Resolves when the queue is abandoned.
    pub(super) async fn abandoned(&self) {
        self.abandoned.cancelled().await;
    }

    /// What the newest configuration says.
    pub(super) fn configure(&self, dialect: Dialect, batch: bool) {
        self.dialect.store(Arc::new(dialect));
        self.batch_events.store(if batch { BATCH_EVENTS_MAX } else { 1 }, Relaxed);
    }

    pub(super) fn dialect(&self) -> Arc<Dialect> {
        self.dialect.load_full()
    }

    /// Events in one request at most.
    pub(super) fn batch_events(&self) -> usize {
        self.batch_events.load(Relaxed)
    }

    /// Resolves when so many events wait, or more, and may be sent.
    pub(super) async fn filled(&self, events: usize) {
        loop {
            let pushed = self.pushed.notified();
            if !self.state().is_suspended && self.len() >= events {
                return;
            }
            pushed.await;
        }
    }

    /// Takes what waits, as much as fits into one request; nothing while it is suspended.
    pub(super) fn take(&self) -> Batch<'_> {
        let mut state = self.state();
        let mut batch = Batch {
            events: Vec::new(),
            tickets: Vec::new(),
            bytes: [0; 2],
            queue: self,
            reason: WebhookDrop::Drain,
        };
        let mut body_bytes = 0;
        while !state.is_suspended
            && batch.events.len() < self.batch_events()
            && let Some((lane, event_bytes)) = state.oldest()
        {
            body_bytes += event_bytes;
            if body_bytes > BATCH_BYTES_MAX && !batch.events.is_empty() {
                break;
            }
            if let Some(event) = state.pop(lane) {
                state.under_way.push((lane, event.clone()));
                batch.bytes[lane] += event.cost();
                batch.events.push(event.json);
                batch.tickets.extend(event.ticket);
            }
        }
        batch
    }

    /// How full the fuller of its lanes is.
    pub(super) fn fullness(&self) -> f64 {
        let fullest = self.state().lanes.iter().map(|lane| lane.bytes).max();
        fullest.unwrap_or_default() as f64 / self.bytes_max.max(1) as f64
    }

    /// Events that wait, and those that are being sent are not among them.
    pub(super) fn len(&self) -> usize {
        self.state().lanes.iter().map(|lane| lane.events.len()).sum()
    }

    fn release(&self, bytes: [usize; 2]) {
        let mut state = self.state();
        state.under_way.clear();
        for (lane, bytes) in state.lanes.iter_mut().zip(bytes) {
            lane.bytes -= bytes;
        }
        drop(state);
        self.metrics.queue_bytes.add(-(bytes.iter().sum::<usize>() as i64));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Batch<'_> {
    /// They were taken.
    pub(super) fn settle(mut self) {
        self.events.clear();
    }

    /// They will not be sent.
    pub(super) fn give_up(mut self, reason: WebhookDrop) {
        self.reason = reason;
    }
}

/// Also when the task that sends is cut.
impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if !self.events.is_empty() {
            let removed = self.queue.abandoned.is_cancelled();
            let reason = if removed { WebhookDrop::Removed } else { self.reason };
            self.queue.metrics.dropped.add(reason, self.events.len() as u64);
            if reason == WebhookDrop::Drain {
                // Another node tells them, when this one's lease ends.
                self.tickets.clear();
            }
        }
        if self.queue.state().is_given {
            self.tickets.clear();
        }
        self.tickets.iter().for_each(Ticket::settle);
        self.queue.release(self.bytes);
    }
}

impl State {
    fn push(
        &mut self,
        (topic, json, ticket): (Option<Topic>, EventJson, Option<Arc<Ticket>>),
        is_change: bool,
        bytes_max: usize,
        now: Instant,
    ) -> Pushed {
        if self.coalesce(topic.as_ref(), &json, now) {
            return Pushed::Coalesced;
        }
        let lane = usize::from(!is_change);
        let waiting = Waiting { number: self.next, topic, json, ticket };
        let cost = waiting.cost();
        let bytes_under_way = self.lanes[lane].bytes - self.lanes[lane].bytes_waiting;
        if bytes_under_way + cost > bytes_max {
            return Pushed::NoRoom;
        }
        let mut dropped = 0;
        while self.lanes[lane].bytes + cost > bytes_max
            && let Some(oldest) = self.pop(lane)
        {
            self.lanes[lane].bytes -= oldest.cost();
            oldest.ticket.iter().for_each(Ticket::settle);
            dropped += 1;
        }
        self.next += 1;
        match &waiting.topic {
            Some(Topic::Miss(channel)) => self.note_miss(channel, now),
            Some(count @ Topic::Count(_)) => drop(self.topics.insert(count.clone(), waiting.number)),
            None => {}
        }
        let lane = &mut self.lanes[lane];
        lane.bytes += cost;
        lane.bytes_waiting += cost;
        lane.events.push_back(waiting);
        Pushed::Added { dropped }
    }

    /// Whether nothing has to be added: a miss that was told a moment ago, or a number that takes the place of one that
    /// waits.
    fn coalesce(&mut self, topic: Option<&Topic>, json: &EventJson, now: Instant) -> bool {
        match topic {
            Some(Topic::Miss(channel)) => {
                self.misses.get(channel).is_some_and(|told| now.duration_since(*told) < MISS_INTERVAL)
            }
            Some(count @ Topic::Count(_)) => {
                let Some(number) = self.topics.get(count) else { return false };
                let lane = &mut self.lanes[1];
                let Ok(at) = lane.events.binary_search_by_key(number, |waiting| waiting.number) else {
                    return false;
                };
                let waiting = &mut lane.events[at];
                let before = waiting.cost();
                waiting.json = Arc::clone(json);
                // A digit more or less.
                let after = waiting.cost();
                lane.bytes = lane.bytes + after - before;
                lane.bytes_waiting = lane.bytes_waiting + after - before;
                true
            }
            None => false,
        }
    }

    fn note_miss(&mut self, channel: &Arc<str>, now: Instant) {
        let is_due = self.swept.is_none_or(|swept| now.duration_since(swept) >= MISS_INTERVAL);
        if self.misses.len() >= MISSES_MAX && is_due {
            self.swept = Some(now);
            self.misses.retain(|_, told| now.duration_since(*told) < MISS_INTERVAL);
        }
        if self.misses.len() < MISSES_MAX {
            self.misses.insert(Arc::clone(channel), now);
        }
    }

    /// The lane whose first event came first, and that event's bytes.
    fn oldest(&self) -> Option<(usize, usize)> {
        let firsts = self.lanes.iter().enumerate();
        let firsts = firsts.filter_map(|(lane, it)| it.events.front().map(|first| (first, lane)));
        let (first, lane) = firsts.min_by_key(|(first, _)| first.number)?;
        Some((lane, first.json.len()))
    }

    /// Takes the first event of a lane out of those that wait. It still counts in the lane's `bytes`.
    fn pop(&mut self, lane: usize) -> Option<Waiting> {
        let event = self.lanes[lane].events.pop_front()?;
        self.lanes[lane].bytes_waiting -= event.cost();
        if let Some(topic) = &event.topic {
            self.topics.remove(topic);
        }
        Some(event)
    }

    fn bytes(&self) -> usize {
        self.lanes.iter().map(|lane| lane.bytes).sum()
    }
}

impl Waiting {
    fn cost(&self) -> usize {
        let topic = self.topic.as_ref().map_or(0, |topic| TOPIC_OVERHEAD_BYTES + topic.channel().len());
        self.json.len() + EVENT_OVERHEAD_BYTES + topic
    }
}

impl Topic {
    fn of(event: &Event<'_>) -> Option<Self> {
        match *event {
            Event::CacheMiss { channel } => Some(Self::Miss(channel.into())),
            Event::SubscriptionCount { channel, .. } => Some(Self::Count(channel.into())),
            _ => None,
        }
    }

    fn channel(&self) -> &str {
        let (Self::Miss(channel) | Self::Count(channel)) = self;
        channel
    }
}

#[cfg(test)]
mod tests;
