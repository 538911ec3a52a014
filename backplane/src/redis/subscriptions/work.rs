//! What the callers and the links leave for the two tasks of the registry.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use super::{
    entry::{Entry, Sent},
    sequence::Ask,
};
use crate::{
    Channel,
    redis::{
        contract::{Changed, Seat},
        envelope::Place,
    },
};

/// Work for the keeper. Bounded by the number of channels: each has at most one of a kind in here, and a few timers.
#[derive(Default)]
pub(super) struct Work {
    /// To be subscribed where they live now.
    pub(super) subscribe: Vec<Arc<Entry>>,
    pub(super) unsubscribe: Vec<(Seat, Channel)>,
    pub(super) timers: Vec<(Instant, Arc<Entry>, Due)>,
    /// Channels that may be at home elsewhere are looked at: all of them, or those of some slots.
    pub(super) is_all: bool,
    pub(super) slots: BTreeSet<u16>,
}

/// What a channel's time has come for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Due {
    /// With what was confirmed on the session when it was sent.
    Confirmation(Sent, u64),
    Leave {
        generation: u64,
    },
    Grace {
        serial: u32,
        top: Place,
    },
    Retry {
        serial: u32,
    },
    Look,
}

/// What is to be asked. A channel has at most one of its repair and one look in here.
#[derive(Default)]
pub(super) struct Asks {
    pub(super) positions: VecDeque<(Arc<Entry>, Ask)>,
    pub(super) reads: VecDeque<(Arc<Entry>, Ask)>,
}

impl Work {
    pub(super) fn look_at(&mut self, changed: &Changed) {
        match changed {
            Changed::All => self.is_all = true,
            Changed::Slots(slots) => self.slots.extend(slots),
        }
    }
}

impl Asks {
    pub(super) fn is_empty(&self) -> bool {
        self.positions.is_empty() && self.reads.is_empty()
    }

    pub(super) fn push(&mut self, entry: Arc<Entry>, ask: Ask) {
        match ask {
            Ask::Position { .. } => self.positions.push_back((entry, ask)),
            _ => self.reads.push_back((entry, ask)),
        }
    }
}
