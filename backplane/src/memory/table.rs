//! The channels: a map in 64 parts, and in it one lock per channel.
//!
//! Locks are taken in one order: a part of the map, then a channel, then a ledger's queue. A publish holds the
//! map's lock only to find its channel, so a channel that is busy handing out keeps nobody else waiting.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::{Arc, Mutex, TryLockError},
    time::{Duration, Instant},
};

use super::{
    hoard::{Hoard, Part},
    keys::Keys,
    ledger::{self, Turn},
    lock::locked,
    log::Log,
};
use crate::Channel;

/// Parts of the map. Two of 16 threads meet in one of 64 parts with a probability of 1/64 each, for the tens of
/// nanoseconds that a look-up takes.
pub(super) const PARTS: usize = 64;

/// A ledger of channels.
pub(super) type Ledger = ledger::Ledger<Entry>;

#[derive(Debug)]
pub(super) struct Table {
    hasher: RandomState,
    parts: Box<[MapPart]>,
}

/// On a cache line of its own, so that neighbours do not slow one another down.
#[derive(Debug, Default)]
#[repr(align(64))]
struct MapPart(Mutex<HashMap<Channel, Arc<Entry>>>);

/// One channel, shared by the map and by whoever works on it.
#[derive(Debug, Default)]
pub(super) struct Entry(Mutex<State>);

/// What is known of a channel. 56 bytes, 80 with the lock and the reference counts: a channel that only has a
/// subscriber owns nothing more than that, its name, and a slot in the map (measured: 150 bytes in all).
#[derive(Debug, Default)]
pub(super) struct State {
    /// No longer in the map: who still holds the entry looks the channel up again.
    removed: bool,
    /// The newest generation that subscribed, while it is subscribed.
    pub(super) interest: Option<u64>,
    pub(super) history: Part<Log>,
    pub(super) keys: Part<Keys>,
}

const _: () = assert!(size_of::<State>() <= 56);

impl Table {
    pub(super) fn new() -> Self {
        Self { hasher: RandomState::new(), parts: (0..PARTS).map(|_| MapPart::default()).collect() }
    }

    /// Runs `f` under the lock of the channel, if it is there.
    pub(super) fn with_existing<R>(
        &self,
        channel: &Channel,
        mut f: impl FnOnce(&mut State) -> R,
    ) -> Option<R> {
        loop {
            let entry = self.with_part(channel, |part| part.get(channel).cloned())?;
            match entry.with(|state| if state.removed { Err(f) } else { Ok(f(state)) }) {
                Ok(result) => return Some(result),
                Err(again) => f = again,
            }
        }
    }

    /// Runs `f` under the lock of the channel, which is made if it is not there.
    pub(super) fn with<R>(&self, channel: &Channel, mut f: impl FnOnce(&Arc<Entry>, &mut State) -> R) -> R {
        loop {
            let entry = self.find_or_insert(channel);
            match entry.with(|state| if state.removed { Err(f) } else { Ok(f(&entry, state)) }) {
                Ok(result) => return result,
                Err(again) => f = again,
            }
        }
    }

    /// Removes a channel of which nothing needs to be known.
    /// Has channels forget until a ledger is under its bound.
    pub(super) fn reclaim<T: Hoard>(&self, ledger: &Ledger, part: fn(&mut State) -> &mut Part<T>) {
        ledger.reclaim(|channel, entry| {
            let turn = entry.with(|state| {
                let is_used = state.interest.is_some();
                ledger.turn(part(state), is_used)
            });
            if matches!(turn, Turn::Emptied) {
                self.remove_if_blank(channel);
            }
            turn
        });
    }

    pub(super) fn remove_if_blank(&self, channel: &Channel) {
        self.with_part(channel, |part| {
            if part.get(channel).is_some_and(|entry| entry.with(State::retire_if_blank)) {
                part.remove(channel);
            }
        });
    }

    /// Ages the channels of one part of the map, removes those that are blank, and gives memory back. A channel
    /// that is busy is left for the next time.
    pub(super) fn sweep(&self, part: usize, mut age: impl FnMut(&mut State)) {
        locked(&self.parts[part % PARTS].0, |part| {
            part.retain(|_, entry| {
                let retired = entry.try_with(|state| {
                    age(state);
                    state.retire_if_blank()
                });
                !retired.unwrap_or(false)
            });
            if part.capacity() > 4 * part.len().max(16) {
                part.shrink_to(2 * part.len());
            }
        });
    }

    /// Runs `f` for each channel, under its lock.
    pub(super) fn each(&self, mut f: impl FnMut(&Channel, &mut State)) {
        for part in &self.parts {
            locked(&part.0, |part| {
                part.iter().for_each(|(channel, entry)| entry.with(|state| f(channel, state)))
            });
        }
    }

    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(|part| locked(&part.0, |part| part.len())).sum()
    }

    fn find_or_insert(&self, channel: &Channel) -> Arc<Entry> {
        self.with_part(channel, |part| match part.get(channel) {
            Some(entry) => Arc::clone(entry),
            None => Arc::clone(part.entry(channel.clone()).or_default()),
        })
    }

    fn with_part<R>(&self, channel: &Channel, f: impl FnOnce(&mut HashMap<Channel, Arc<Entry>>) -> R) -> R {
        let hash = self.hasher.hash_one(channel.as_str());
        locked(&self.parts[hash as usize % PARTS].0, f)
    }
}

impl Entry {
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        locked(&self.0, f)
    }

    /// As [`with`](Self::with), unless somebody is at work on the channel.
    fn try_with<R>(&self, f: impl FnOnce(&mut State) -> R) -> Option<R> {
        match self.0.try_lock() {
            Ok(mut state) => Some(f(&mut state)),
            Err(TryLockError::Poisoned(poisoned)) => Some(f(&mut poisoned.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl State {
    /// Lets go of history that is over its policy, and of the epoch of a channel that is out of use.
    pub(super) fn age_history(&mut self, ledger: &Ledger, now: Instant) {
        let Some(log) = &mut self.history.held else { return };
        ledger.release(log.trim(now));
        // Its publications are no younger than its last use, so an expired log is an empty one.
        if self.interest.is_none() && log.is_expired(now) {
            self.history.held = None;
        }
    }

    /// Lets go of the idempotency keys that are older than the window.
    pub(super) fn age_keys(&mut self, ledger: &Ledger, window: Duration, now: Instant) {
        let Some(keys) = &mut self.keys.held else { return };
        ledger.release(keys.trim(window, now));
        if keys.len() == 0 {
            self.keys.held = None;
        }
    }

    /// Gives back the memory of a burst.
    pub(super) fn shrink(&mut self) {
        if let Some(log) = &mut self.history.held {
            log.shrink();
        }
        if let Some(keys) = &mut self.keys.held {
            keys.shrink();
        }
    }

    pub(super) fn is_blank(&self) -> bool {
        self.interest.is_none() && self.history.held.is_none() && self.keys.held.is_none()
    }

    fn retire_if_blank(&mut self) -> bool {
        self.removed = self.removed || self.is_blank();
        self.removed
    }
}
