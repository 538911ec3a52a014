//! The events that wait for one address: bounded in bytes; at the bound the oldest make room.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::metrics::{WebhookDrop, WebhookMetrics};
use crate::apps::signature::Signer;

/// One event as JSON.
pub(super) type EventJson = Arc<[u8]>;

/// Events in one request at most.
pub(super) const BATCH_EVENTS_MAX: usize = 100;

/// What an event costs beside its bytes: 16 for the pointer in the queue, 16 for the counts of its `Arc`.
const EVENT_OVERHEAD_BYTES: usize = 32;

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// There is something to send, or nothing ever will be.
    changed: Notify,
    bytes_max: usize,
    signer: ArcSwap<Signer>,
    metrics: Arc<WebhookMetrics>,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<EventJson>,
    /// Of `events` and of the batch that is being sent.
    bytes: usize,
    abandoned: bool,
}

/// Events that are being sent. They count as queued until they are settled.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) events: Vec<EventJson>,
    bytes: usize,
}

impl Queue {
    pub(super) fn new(bytes_max: usize, signer: Arc<Signer>, metrics: Arc<WebhookMetrics>) -> Self {
        let signer = ArcSwap::new(signer);
        Self { state: Mutex::default(), changed: Notify::new(), bytes_max, signer, metrics }
    }

    /// Adds an event; what finds no room is counted.
    pub(super) fn push(&self, event: EventJson) {
        self.metrics.events.add(1);
        let mut state = self.state();
        let before = state.bytes;
        let (added, dropped) = state.push(event, self.bytes_max);
        let reason = if state.abandoned { WebhookDrop::Removed } else { WebhookDrop::QueueFull };
        self.metrics.queue_bytes.add(state.bytes as i64 - before as i64);
        drop(state);
        if dropped > 0 {
            self.metrics.dropped.add(reason, dropped);
        }
        if added {
            self.changed.notify_one();
        }
    }

    /// Whoever is sending ends, and nothing is kept any more.
    pub(super) fn abandon(&self) {
        let mut state = self.state();
        state.abandoned = true;
        self.drop_waiting(state, WebhookDrop::Removed);
        self.changed.notify_one();
    }

    pub(super) fn sign_with(&self, signer: Arc<Signer>) {
        self.signer.store(signer);
    }

    fn drop_waiting(&self, mut state: MutexGuard<'_, State>, reason: WebhookDrop) {
        let events: Vec<_> = state.events.drain(..).collect();
        let bytes: usize = events.iter().map(cost).sum();
        state.bytes -= bytes;
        drop(state);
        self.metrics.dropped.add(reason, events.len() as u64);
        self.metrics.queue_bytes.add(-(bytes as i64));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether it was added, and how many were dropped for it.
    fn push(&mut self, event: EventJson, bytes_max: usize) -> (bool, u64) {
        let cost_new = cost(&event);
        let mut dropped = 0;
        while self.bytes + cost_new > bytes_max
            && let Some(oldest) = self.events.pop_front()
        {
            self.bytes -= cost(&oldest);
            dropped += 1;
        }
        if self.abandoned || self.bytes + cost_new > bytes_max {
            return (false, dropped + 1);
        }
        self.bytes += cost_new;
        self.events.push_back(event);
        (true, dropped)
    }
}

fn cost(event: &EventJson) -> usize {
    event.len() + EVENT_OVERHEAD_BYTES
}
