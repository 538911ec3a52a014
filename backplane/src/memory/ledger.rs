//! Bounds in bytes what all channels together hold, and chooses who forgets when it is too much.
//!
//! There are two ledgers: one for history, one for idempotency keys. A channel that holds something stands in the
//! ledger's queue once. A publish only sets the channel's `touched` flag, under the lock that it has anyway; so it
//! never waits for the queue. Over the bound, the queue's head is asked: one that was touched since it was last
//! asked goes to the back, any other forgets its oldest items. This is the CLOCK approximation of 'least recently
//! published'. A publish touches one channel and so pays for one turn of the queue at most, on average.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{
    hoard::{Hoard, Part, Released},
    lock::locked,
};
use crate::Channel;

#[derive(Debug)]
pub(super) struct Ledger<E> {
    bytes_max: u64,
    bytes: AtomicU64,
    items: AtomicU64,
    /// Items forgotten before their time.
    evicted: AtomicU64,
    /// Its lock is the innermost: nothing else is locked under it. A weak reference, so that a channel that is
    /// removed is freed at once; [`purge`](Self::purge) takes its place away.
    queue: Mutex<VecDeque<(Channel, Weak<E>)>>,
}

/// What one turn of the queue did.
pub(super) enum Turn {
    /// Was touched: to the back.
    Spared,
    /// Has more to forget: it stays at the head.
    Shrunk,
    /// Holds nothing any more.
    Emptied,
}

impl<E> Ledger<E> {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            bytes: AtomicU64::new(0),
            items: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            queue: Mutex::default(),
        }
    }

    /// Accounts for one more item in a part of this channel.
    pub(super) fn keep<T>(&self, channel: &Channel, entry: &Arc<E>, part: &mut Part<T>, bytes: usize) {
        self.items.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
        if part.queued {
            part.touched = true;
        } else {
            part.queued = true;
            locked(&self.queue, |queue| queue.push_back((channel.clone(), Arc::downgrade(entry))));
        }
    }

    /// Accounts for what went in its time.
    pub(super) fn release(&self, released: Released) {
        if released.items > 0 {
            self.items.fetch_sub(released.items, Relaxed);
            self.bytes.fetch_sub(released.bytes, Relaxed);
        }
    }

    /// Accounts for what went before its time.
    pub(super) fn evict(&self, released: Released) {
        self.release(released);
        self.evicted.fetch_add(released.items, Relaxed);
    }

    /// Brings the sum back under its bound: asks the channels of the queue, one after the other. `ask` takes a
    /// [`turn`](Self::turn) of a channel, and removes it from where it is found when nothing is left in it. The caller
    /// holds no lock.
    pub(super) fn reclaim(&self, ask: impl Fn(&Channel, &E) -> Turn) {
        while self.is_over() {
            let Some((channel, weak)) = locked(&self.queue, VecDeque::pop_front) else { return };
            let Some(entry) = weak.upgrade() else { continue };
            match ask(&channel, &entry) {
                Turn::Spared => locked(&self.queue, |queue| queue.push_back((channel, weak))),
                Turn::Shrunk => locked(&self.queue, |queue| queue.push_front((channel, weak))),
                Turn::Emptied => {}
            }
        }
    }

    /// Removes the places of channels that are gone, and gives memory back.
    pub(super) fn purge(&self) {
        locked(&self.queue, |queue| {
            queue.retain(|(_, entry)| entry.strong_count() > 0);
            if queue.capacity() > 4 * queue.len().max(16) {
                queue.shrink_to(2 * queue.len());
            }
        });
    }

    pub(super) fn items(&self) -> u64 {
        self.items.load(Relaxed)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted.load(Relaxed)
    }

    /// One turn of a part, under the lock of its channel. `is_used`: the channel has subscribers here.
    pub(super) fn turn<T: Hoard>(&self, part: &mut Part<T>, is_used: bool) -> Turn {
        if std::mem::take(&mut part.touched) {
            return Turn::Spared;
        }
        if let Some(held) = &mut part.held {
            while self.is_over() {
                let mut released = Released::default();
                released.add(held.shed_oldest());
                if released.items == 0 {
                    break;
                }
                self.evict(released);
            }
            if !held.is_empty() {
                return Turn::Shrunk;
            }
            // With nothing left in it, it only knows where the channel stands. Subscribers keep that alive; without
            // them it would be memory that no bound counts, and the next publication begins a new epoch instead.
            if !is_used {
                part.held = None;
            }
        }
        part.queued = false;
        Turn::Emptied
    }

    fn is_over(&self) -> bool {
        self.bytes() > self.bytes_max
    }
}
