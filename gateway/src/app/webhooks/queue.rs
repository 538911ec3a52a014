//! The events that wait for one address: bounded in bytes; at the bound the oldest make room.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::metrics::{WebhookDrop, WebhookMetrics};
use crate::app::apps::signature::Signer;

/// One event as JSON.
pub(super) type EventJson = Arc<[u8]>;

/// Events in one request at most.
pub(super) const BATCH_EVENTS_MAX: usize = 100;

/// Bytes in one request, unless one event is larger: under the 100 kB that Express takes by default, which with nginx's
/// 1 MiB is the smallest of the common bounds. A request that is too large would be sent in vain until it is given up.
const BATCH_BYTES_MAX: usize = 64 * 1024;

/// What an event costs beside its bytes: 16 for the pointer in the queue, 16 for the counts of its `Arc`.
const EVENT_OVERHEAD_BYTES: usize = 32;

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// There is something to send.
    pushed: Notify,
    /// Nothing is to be sent any more.
    abandoned: CancellationToken,
    bytes_max: usize,
    signer: ArcSwap<Signer>,
    metrics: Arc<WebhookMetrics>,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<EventJson>,
    /// Of `events` and of the batch that is being sent.
    bytes: usize,
    /// Of `events`.
    bytes_waiting: usize,
}

/// Events that are being sent. They count as queued until they are settled or dropped.
#[derive(Debug)]
pub(super) struct Batch<'q> {
    pub(super) events: Vec<EventJson>,
    queue: &'q Queue,
    /// What to count if they are not sent after all.
    reason: WebhookDrop,
}

impl Queue {
    pub(super) fn new(bytes_max: usize, signer: Arc<Signer>, metrics: Arc<WebhookMetrics>) -> Self {
        Self {
            state: Mutex::default(),
            pushed: Notify::new(),
            abandoned: CancellationToken::new(),
            bytes_max,
            signer: ArcSwap::new(signer),
            metrics,
        }
    }

    /// Adds an event; what finds no room is counted.
    pub(super) fn push(&self, event: EventJson) {
        self.metrics.events.add(1);
        let mut state = self.state();
        if self.abandoned.is_cancelled() {
            drop(state);
            return self.metrics.dropped.add(WebhookDrop::Removed, 1);
        }
        let before = state.bytes;
        let (added, dropped) = state.push(event, self.bytes_max);
        self.metrics.queue_bytes.add(state.bytes as i64 - before as i64);
        drop(state);
        self.metrics.dropped.add(WebhookDrop::QueueFull, dropped);
        if added {
            self.pushed.notify_one();
        }
    }

    /// Whoever sends drops what waits, and ends. Nothing is added afterwards.
    pub(super) fn abandon(&self) {
        let _none_is_being_added = self.state();
        self.abandoned.cancel();
    }

    /// Resolves when the queue is abandoned.
    pub(super) async fn abandoned(&self) {
        self.abandoned.cancelled().await;
    }

    pub(super) fn sign_with(&self, signer: Arc<Signer>) {
        self.signer.store(signer);
    }

    pub(super) fn signer(&self) -> Arc<Signer> {
        self.signer.load_full()
    }

    /// Resolves when so many events wait, or more.
    pub(super) async fn filled(&self, events: usize) {
        loop {
            let pushed = self.pushed.notified();
            if self.state().events.len() >= events {
                return;
            }
            pushed.await;
        }
    }

    /// Takes what waits, up to [`BATCH_EVENTS_MAX`] events or [`BATCH_BYTES_MAX`].
    pub(super) fn take(&self) -> Batch<'_> {
        let mut state = self.state();
        let mut bytes = 0;
        let fits = |event: &&EventJson| {
            bytes += event.len();
            bytes <= BATCH_BYTES_MAX
        };
        let fitting = state.events.iter().take(BATCH_EVENTS_MAX).take_while(fits).count();
        let number = fitting.max(1).min(state.events.len());
        let events: Vec<_> = state.events.drain(..number).collect();
        state.bytes_waiting -= events.iter().map(cost).sum::<usize>();
        Batch { events, queue: self, reason: WebhookDrop::Drain }
    }

    /// Events that wait, and those that are being sent are not among them.
    pub(super) fn len(&self) -> usize {
        self.state().events.len()
    }

    fn release(&self, bytes: usize) {
        self.state().bytes -= bytes;
        self.metrics.queue_bytes.add(-(bytes as i64));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Batch<'_> {
    /// They were taken.
    pub(super) fn settle(mut self) {
        let bytes = self.events.drain(..).map(|event| cost(&event)).sum();
        self.queue.release(bytes);
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
            self.queue.release(self.events.iter().map(cost).sum());
        }
    }
}

impl State {
    /// Whether it was added, and how many were dropped for it.
    fn push(&mut self, event: EventJson, bytes_max: usize) -> (bool, u64) {
        let cost_new = cost(&event);
        let bytes_under_way = self.bytes - self.bytes_waiting;
        if bytes_under_way + cost_new > bytes_max {
            return (false, 1);
        }
        let mut dropped = 0;
        while self.bytes + cost_new > bytes_max
            && let Some(oldest) = self.events.pop_front()
        {
            self.bytes -= cost(&oldest);
            self.bytes_waiting -= cost(&oldest);
            dropped += 1;
        }
        self.bytes += cost_new;
        self.bytes_waiting += cost_new;
        self.events.push_back(event);
        (true, dropped)
    }
}

fn cost(event: &EventJson) -> usize {
    event.len() + EVENT_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(bytes_max: usize) -> Queue {
        let signer = Arc::new(Signer::new("key".into(), std::iter::empty()));
        Queue::new(bytes_max, signer, Arc::default())
    }

    fn event(bytes: usize) -> EventJson {
        vec![b'e'; bytes].into()
    }

    #[test]
    fn a_request_is_bounded_in_bytes() {
        let queue = queue(1024 * 1024);
        (0..10).for_each(|_| queue.push(event(10 * 1024)));
        queue.push(event(BATCH_BYTES_MAX + 1));
        let batches: Vec<usize> = (0..4)
            .map(|_| {
                let batch = queue.take();
                let events = batch.events.len();
                batch.settle();
                events
            })
            .collect();
        assert_eq!(batches, [6, 4, 1, 0], "one that is too large goes alone");
        assert_eq!(queue.state().bytes, 0);
    }

    #[test]
    fn what_could_not_fit_anyway_drops_nothing_else() {
        let queue = queue(30 * 1024);
        queue.push(event(10 * 1024));
        let under_way = queue.take();
        queue.push(event(15 * 1024));
        queue.push(event(25 * 1024));
        assert_eq!((under_way.events.len(), queue.len()), (1, 1));
        under_way.settle();
        queue.push(event(25 * 1024));
        assert_eq!(queue.len(), 1, "now the older one makes room");
        assert_eq!(queue.take().events[0].len(), 25 * 1024);
        assert_eq!(queue.state().bytes, 0, "given up, and released");
    }
}
