//! Bytes that were read and not used yet: of connections that sent more than they may have done at once.
//!
//! A connection that never does owns nothing here.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
};

use super::Connections;
use crate::slab::ConnectionId;

/// What is left of a read.
#[derive(Debug)]
pub(crate) struct Rest {
    bytes: Box<[u8]>,
    left: Range<usize>,
    /// Named in `turns` or `until_tick`.
    is_queued: bool,
}

/// The rests of a shard's connections, and whose turn it is.
#[derive(Debug, Default)]
pub(crate) struct Rests {
    kept: HashMap<ConnectionId, Rest>,
    /// Each connection with a rest once, unless its answers wait for its socket, its driver holds it, or it rests until the
    /// next tick.
    turns: VecDeque<ConnectionId>,
    /// Served again from the next tick on.
    until_tick: Vec<ConnectionId>,
    /// The driver asked that the connection that it is handed bytes of rests.
    rests_now: bool,
}

impl From<&[u8]> for Rest {
    fn from(bytes: &[u8]) -> Self {
        Self { bytes: bytes.into(), left: 0..bytes.len(), is_queued: false }
    }
}

impl Rest {
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.left.clone()]
    }

    pub(crate) fn skip(&mut self, used: usize) {
        self.left.start += used;
    }
}

impl Rests {
    pub(crate) fn has(&self, id: ConnectionId) -> bool {
        !self.kept.is_empty() && self.kept.contains_key(&id)
    }

    /// What is left of a connection's.
    pub(crate) fn bytes_of(&self, id: ConnectionId) -> &[u8] {
        self.kept.get(&id).map_or(&[], |rest| &rest.bytes[rest.left.clone()])
    }

    /// Connections whose turn may come now.
    pub(crate) fn waiting(&self) -> usize {
        self.turns.len()
    }

    /// The connection that was handed bytes used them all, so that there is nothing to rest with.
    pub(crate) fn has_none(&mut self) {
        self.rests_now = false;
    }

    pub(crate) fn await_tick(&self) -> bool {
        !self.until_tick.is_empty()
    }

    pub(crate) fn forget(&mut self, id: ConnectionId) {
        if !self.kept.is_empty() {
            self.kept.remove(&id);
        }
    }
}

impl<C> Connections<C> {
    /// For [`Driver::on_bytes`](crate::Driver::on_bytes): what it does not use of these bytes comes with the next tick at
    /// the earliest, and nothing is read before.
    pub fn rest_until_tick(&mut self) {
        self.rests.rests_now = true;
    }

    /// Bytes that a driver kept come back to it in a later turn, before anything else of the connection.
    pub fn give_back(&mut self, id: ConnectionId, bytes: &[u8]) {
        if !bytes.is_empty() {
            debug_assert!(!self.rests.has(id), "it was handed bytes before those that it had kept");
            self.keep_rest(id, Rest::from(bytes));
        }
    }

    /// The next that has bytes left and takes them now.
    pub(crate) fn next_rest(&mut self) -> Option<(ConnectionId, Rest)> {
        loop {
            let id = self.rests.turns.pop_front()?;
            if self.rests.turns.is_empty() && self.rests.turns.capacity() > 4096 {
                self.rests.turns = VecDeque::new();
            }
            let now = self.attended();
            match self.entry_mut(id) {
                // It comes back when its answers have been sent, or its driver takes bytes again.
                Some(entry) if entry.keeps_rest() => {
                    entry.flags.readable = true;
                    if let Some(rest) = self.rests.kept.get_mut(&id) {
                        rest.is_queued = false;
                    }
                }
                Some(entry) if !entry.flags.doomed => {
                    // It is heard, although its socket is not read.
                    entry.heard = now;
                    if let Some(rest) = self.rests.kept.remove(&id) {
                        return Some((id, rest));
                    }
                }
                _ => self.rests.forget(id),
            }
        }
    }

    /// Keeps what the driver did not use, and sees to it that it comes again. After the last of it the socket is read.
    pub(crate) fn keep_rest(&mut self, id: ConnectionId, mut rest: Rest) {
        let rests_now = std::mem::take(&mut self.rests.rests_now);
        if self.entry(id).is_none_or(|entry| entry.flags.doomed) {
            return;
        }
        if rest.left.is_empty() {
            return self.list_unread(id);
        }
        rest.is_queued = true;
        self.rests.kept.insert(id, rest);
        match rests_now {
            true => self.rests.until_tick.push(id),
            false => self.rests.turns.push_back(id),
        }
    }

    /// Its bytes are taken again: its rest, if it has one, has its turn.
    pub(crate) fn resume_rest(&mut self, id: ConnectionId) -> bool {
        let Some(rest) = self.rests.kept.get_mut(&id) else { return false };
        if !std::mem::replace(&mut rest.is_queued, true) {
            self.rests.turns.push_back(id);
        }
        true
    }

    /// A tick has come.
    pub(crate) fn wake_resting(&mut self) {
        self.rests.turns.extend(self.rests.until_tick.drain(..));
        if self.rests.until_tick.capacity() > 4096 {
            self.rests.until_tick = Vec::new();
        }
    }
}
