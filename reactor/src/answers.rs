//! What a driver answers to the bytes it is handed: gathered, and sent as one write when it is done with them.

use crate::{
    connections::{Connections, Written},
    outbound::Bound,
    slab::ConnectionId,
};

/// Larger answers, and what is gathered beyond this, go to the socket at once.
const ANSWERS_BYTES_MAX: usize = 16 * 1024;

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
        if std::mem::take(&mut self.answers.pauses) {
            self.pause_until_flushed(id);
        }
    }

    /// Takes an answer, if it is one. `None`: it is to be written now.
    pub(crate) fn gather_answer(&mut self, id: ConnectionId, bytes: &[u8], bound: Bound) -> Option<Written> {
        if self.answers.of != Some(id) {
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
        if self.answers.of == Some(id) {
            self.flush_answers(id);
        }
    }

    /// Whether the pause waits until the answers are sent.
    pub(crate) fn pauses_after_answers(&mut self, id: ConnectionId) -> bool {
        let is_gathering = self.answers.of == Some(id);
        self.answers.pauses |= is_gathering;
        is_gathering
    }

    fn flush_answers(&mut self, id: ConnectionId) {
        if self.answers.bytes.is_empty() {
            return;
        }
        let bound = if std::mem::take(&mut self.answers.exempt) { Bound::Exempt } else { Bound::Counts };
        let mut bytes = std::mem::take(&mut self.answers.bytes);
        self.write_now_or_queue(id, &bytes, bound);
        bytes.clear();
        self.answers.bytes = bytes;
    }
}
