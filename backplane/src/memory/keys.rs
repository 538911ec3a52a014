//! The idempotency keys of one channel and what was answered to each.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::hoard::{Hoard, Released};
use crate::Position;

/// What a key costs beside its text: two reference counts (16), its place in the map (16 for the key, 32 for the
/// answer, at a load of one half to seven eighths: 72), its place in the queue (32, doubled while it grows: 48).
const KEY_BYTES: usize = 16 + 72 + 48;

/// What a channel costs by remembering keys at all: this struct (80), the smallest map and queue (200 and 128), and
/// its entry in the table with its name (160, as in `log`).
const KEYS_BYTES: usize = size_of::<Keys>() + 200 + 128 + 160;

#[derive(Debug, Default)]
pub(super) struct Keys {
    answers: HashMap<Arc<str>, Option<Position>>,
    /// Oldest first.
    order: VecDeque<(Instant, Arc<str>)>,
}

impl Keys {
    /// What was answered to the publish with this key: a position, or none where there was no history.
    pub(super) fn answer(&self, key: &str) -> Option<Option<Position>> {
        self.answers.get(key).copied()
    }

    /// Remembers a key that has no answer yet; returns the bytes it costs.
    pub(super) fn remember(&mut self, key: &str, position: Option<Position>, now: Instant) -> usize {
        let first = if self.order.is_empty() { KEYS_BYTES } else { 0 };
        let key: Arc<str> = key.into();
        let bytes = KEY_BYTES + key.len() + first;
        self.answers.insert(Arc::clone(&key), position);
        self.order.push_back((now, key));
        debug_assert_eq!(self.answers.len(), self.order.len());
        bytes
    }

    /// Forgets the keys that are older than the window.
    pub(super) fn trim(&mut self, window: Duration, now: Instant) -> Released {
        let mut released = Released::default();
        while self.order.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= window) {
            released.add(self.shed_oldest());
        }
        released
    }

    /// When each was used, oldest first, and what was answered.
    pub(super) fn parts(&self) -> Vec<(Instant, Arc<str>, Option<Position>)> {
        let parts = self.order.iter().map(|(at, key)| (*at, Arc::clone(key), self.answer(key).flatten()));
        parts.collect()
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Gives back the memory of a burst.
    pub(super) fn shrink(&mut self) {
        let floor = self.order.len().max(16);
        if self.order.capacity() > 4 * floor {
            self.order.shrink_to(2 * self.order.len());
        }
        if self.answers.capacity() > 4 * floor {
            self.answers.shrink_to(2 * self.answers.len());
        }
    }
}

impl Hoard for Keys {
    fn shed_oldest(&mut self) -> Option<usize> {
        let (_, key) = self.order.pop_front()?;
        self.answers.remove(&key);
        let last = if self.order.is_empty() { KEYS_BYTES } else { 0 };
        Some(KEY_BYTES + key.len() + last)
    }

    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}
