//! A subscribed channel: its sequence, where it is subscribed, who waits for that.

use std::{
    borrow::Borrow,
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::sync::oneshot;

use super::sequence::Sequence;
use crate::{Channel, redis::contract::Seat};

/// A channel in the registry. What one costs while nothing is wrong: 40 bytes of the map's slot, 256 of this, its
/// name (30 or so), 90 of the timer of its next look. With what allocators add, less than 500 bytes.
pub(super) struct Entry {
    pub(super) channel: Channel,
    state: Mutex<State>,
}

const _: () = assert!(size_of::<Entry>() <= 256);

pub(super) struct State {
    pub(super) sequence: Sequence,
    /// The newest that was subscribed.
    pub(super) generation: u64,
    /// Somebody is subscribed; false for the time until the server is told.
    pub(super) is_wanted: bool,
    /// No longer in the registry.
    pub(super) is_closed: bool,
    /// A timer for the end of the subscription is running.
    pub(super) is_leaving: bool,
    pub(super) was_confirmed: bool,
    /// Its subscription was lost, and is not back.
    pub(super) is_missing: bool,
    /// Where the server's confirmation came from.
    pub(super) holds: Option<Seat>,
    /// Where a subscription was sent, and its confirmation did not come yet.
    pub(super) sent: Option<Sent>,
    /// When the position is looked at next, and how often.
    pub(super) look_at: Option<Instant>,
    pub(super) waiting: Vec<oneshot::Sender<()>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) seat: Seat,
    /// How often without that anything was confirmed, with this one.
    pub(super) tries: u8,
    /// It is still to be sent: as many as may be are under way.
    pub(super) is_queued: bool,
}

/// A channel by its name's bytes, as they arrive from the server.
#[derive(PartialEq, Eq)]
pub(super) struct Key(pub(super) Channel);

impl Entry {
    pub(super) fn new(channel: Channel) -> Arc<Self> {
        Arc::new(Self { channel, state: Mutex::new(State::new()) })
    }

    /// A panic in here can only come from a sink, which is called last: the state is whole, and used on.
    pub(super) fn locked<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            sequence: Sequence::new(),
            generation: 0,
            is_wanted: false,
            is_closed: false,
            is_leaving: false,
            was_confirmed: false,
            is_missing: false,
            holds: None,
            sent: None,
            look_at: None,
            waiting: Vec::new(),
        }
    }

    /// Whether everything that is accepted from now on will be handed over or told.
    pub(super) fn is_ready(&self) -> bool {
        self.holds.is_some() && self.sequence.is_based()
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self.0.as_str().as_bytes()
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.as_str().as_bytes().hash(state);
    }
}
