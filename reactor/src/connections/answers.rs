//! What a driver answers to the bytes it is handed: gathered, and sent as one write when it is done with them.

use super::{Connections, Written};
use crate::{outbound::Bound, slab::ConnectionId};

/// Larger answers, and what is gathered beyond this, go to the socket at once.
const ANSWERS_BYTES_MAX: usize = 16 * 1024;

/// The buffer that is kept between answers; a history is often larger.
const BYTES_KEPT: usize = 64 * 1024;

/// The answers of the connection that is handed bytes now.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    of: Option<ConnectionId>,
    bytes: Vec<u8>,
    /// Some of them do not count against the bound of its queue.
    exempt: bool,
    /// It is to be paused until they are sent.
    pauses: bool,
}

impl<C> Connections<C> {
    /// From now on what is written to this connection is gathered.
    pub(crate) fn gather_answers(&mut self, id: ConnectionId) {
        self.answers.of = Some(id);
    }

    /// Sends what was gathered.
    pub(crate) fn send_answers(&mut self) {
        let Some(id) = self.answers.of.take() else { return };
        self.flush_answers(id);
        if std::mem::take(&mut self.answers.pauses)
            && self.entry(id).is_some_and(|entry| entry.outbound.is_some())
        {
            self.pause_until_flushed(id);
        }
    }

    /// Makes an answer.
    pub(crate) fn gather_made(
        &mut self,
        id: ConnectionId,
        bound: Bound,
        make: impl FnOnce(&mut Vec<u8>),
    ) -> Written {
        make(&mut self.answers.bytes);
        self.answers.exempt |= bound == Bound::Exempt;
        if self.answers.bytes.len() > ANSWERS_BYTES_MAX {
            self.flush_answers(id);
        }
        Written::Queued
    }

    /// Takes an answer, if it is one. `None`: it is to be written now.
    pub(crate) fn gather_answer(&mut self, id: ConnectionId, bytes: &[u8], bound: Bound) -> Option<Written> {
        if !self.answers.is_of(id) {
            return None;
        }
        if self.answers.bytes.len() + bytes.len() > ANSWERS_BYTES_MAX {
            self.settle_answers(id);
            if bytes.len() > ANSWERS_BYTES_MAX {
                return None;
            }
        }
        self.answers.bytes.extend_from_slice(bytes);
        self.answers.exempt |= bound == Bound::Exempt;
        Some(Written::Queued)
    }

    /// Something is to be done with a connection that must come after its answers.
    pub(crate) fn settle_answers(&mut self, id: ConnectionId) {
        if self.answers.is_of(id) {
            self.flush_answers(id);
        }
    }

    /// The same, for who knows the slot.
    pub(crate) fn settle_answers_in(&mut self, slot: u32) {
        if let Some(id) = self.answers.of.filter(|of| of.slot == slot) {
            self.flush_answers(id);
        }
    }

    /// Whether the pause waits until the answers are sent.
    pub(crate) fn pauses_after_answers(&mut self, id: ConnectionId) -> bool {
        let is_gathering = self.answers.is_of(id);
        self.answers.pauses |= is_gathering;
        is_gathering
    }

    fn flush_answers(&mut self, id: ConnectionId) {
        if self.answers.bytes.is_empty() {
            return;
        }
        let bound = if std::mem::take(&mut self.answers.exempt) { Bound::Exempt } else { Bound::Counts };
        let bytes = std::mem::take(&mut self.answers.bytes);
        self.write_now_or_queue(id, &bytes, bound);
        self.answers.bytes = emptied(bytes);
    }
}

impl Answers {
    pub(crate) fn is_of(&self, id: ConnectionId) -> bool {
        self.of == Some(id)
    }
}

/// A buffer to use again, unless what was in it made it large.
pub(crate) fn emptied(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.capacity() > BYTES_KEPT {
        return Vec::new();
    }
    bytes.clear();
    bytes
}
