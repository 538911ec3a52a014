//! Writes: at once where nothing waits before them, else into the connection's queue; gathered writes at the end of a turn.

use std::{io, mem};

use bytes::Bytes;

use super::{Closed, Connections, answers::emptied};
use crate::{
    outbound::{Bound, OVER_BYTES, Queued, Shared},
    slab::ConnectionId,
};

/// A merging connection gathers at most so much: a socket's usual first send buffer.
const MERGE_BYTES_MAX: usize = 64 * 1024;

/// What became of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// Handed to the socket, whole.
    Sent,
    /// Some or all of it waits in the queue.
    Queued,
    /// So many messages were dropped by policy.
    Dropped(u32),
    /// The connection is gone or going.
    Closed,
}

impl<C> Connections<C> {
    /// Writes bytes of this connection alone, at once if nothing waits before them.
    pub fn write(&mut self, id: ConnectionId, bytes: &[u8]) -> Written {
        self.answer(id, bytes, Bound::Counts)
    }

    /// Like [`write`](Self::write), but what has to wait does not count against the bound of the queue: for an
    /// answer whose size is bounded by something else, such as a history or the message it answers.
    pub fn write_beyond_bound(&mut self, id: ConnectionId, bytes: &[u8]) -> Written {
        self.answer(id, bytes, Bound::Exempt)
    }

    /// Like [`write`](Self::write), of bytes that are made for it: an answer is made in the buffer that it leaves from.
    pub fn write_made(&mut self, id: ConnectionId, make: impl FnOnce(&mut Vec<u8>)) -> Written {
        self.make(id, Bound::Counts, make)
    }

    /// Like [`write_beyond_bound`](Self::write_beyond_bound), of bytes that are made for it.
    pub fn write_made_beyond_bound(&mut self, id: ConnectionId, make: impl FnOnce(&mut Vec<u8>)) -> Written {
        self.make(id, Bound::Exempt, make)
    }

    fn make(&mut self, id: ConnectionId, bound: Bound, make: impl FnOnce(&mut Vec<u8>)) -> Written {
        if self.entry(id).is_none_or(|entry| entry.is_closing()) {
            return Written::Closed;
        }
        if self.answers.is_of(id) {
            return self.gather_made(id, bound, make);
        }
        let mut bytes = mem::take(&mut self.made);
        make(&mut bytes);
        let written = self.write_now_or_queue(id, &bytes, bound);
        self.made = emptied(bytes);
        written
    }

    fn answer(&mut self, id: ConnectionId, bytes: &[u8], bound: Bound) -> Written {
        if self.entry(id).is_none_or(|entry| entry.is_closing()) {
            return Written::Closed;
        }
        match self.gather_answer(id, bytes, bound) {
            Some(written) => written,
            None => self.write_now_or_queue(id, bytes, bound),
        }
    }

    pub(crate) fn write_now_or_queue(&mut self, id: ConnectionId, bytes: &[u8], bound: Bound) -> Written {
        let bytes_max = self.queue_bytes_max + OVER_BYTES;
        let Some(entry) = self.entries.get_mut(id.slot).filter(|entry| entry.takes_writes(id)) else {
            return Written::Closed;
        };
        let sent = match entry.write_now(&[], bytes, self.sessions.encrypting(id.slot), &mut self.counters) {
            Ok(sent) => sent,
            Err(error) => return self.fail(id, &error),
        };
        if sent == bytes.len() {
            return Written::Sent;
        }
        let rest = Bytes::copy_from_slice(&bytes[sent..]);
        let rest_len = rest.len();
        match entry.outbound.get_or_insert_default().push_own(rest, bound, bytes_max) {
            Queued::Overflowed => {
                self.doom(id, Closed::Overflow);
                Written::Closed
            }
            Queued::Kept | Queued::Dropped(_) => {
                self.counters.queued_bytes += rest_len as u64;
                Written::Queued
            }
        }
    }

    /// Writes bytes that many connections share; they are referred to, not copied, where they have to wait.
    pub fn write_shared(&mut self, slot: u32, shared: &Shared<'_>) -> Written {
        self.settle_answers_in(slot);
        let Some(entry) = self.entries.get(slot).filter(|entry| !entry.is_closing()) else {
            return Written::Closed;
        };
        if entry.gathers() {
            let id = ConnectionId { slot, generation: entry.generation };
            if entry.has_room(shared.len(), MERGE_BYTES_MAX, self.queue_bytes_max) {
                return self.gather(id, shared);
            }
            // What was gathered may go: the bound and its policy are for sockets that would block.
            self.flush(id);
        }
        self.write_shared_now(slot, shared)
    }

    fn write_shared_now(&mut self, slot: u32, shared: &Shared<'_>) -> Written {
        let Some(entry) = self.entries.get_mut(slot).filter(|entry| !entry.is_closing()) else {
            return Written::Closed;
        };
        let id = ConnectionId { slot, generation: entry.generation };
        let tls = self.sessions.encrypting(slot);
        let sent = match entry.write_now(shared.head, shared.bytes, tls, &mut self.counters) {
            Ok(sent) => sent,
            Err(error) => return self.fail(id, &error),
        };
        match sent == shared.len() {
            true => Written::Sent,
            false => self.queue_shared(id, shared, sent),
        }
    }

    /// Leaves a write for the end of the turn.
    fn gather(&mut self, id: ConnectionId, shared: &Shared<'_>) -> Written {
        if let Some(entry) = self.entry_mut(id)
            && !mem::replace(&mut entry.flags.unflushed, true)
        {
            self.unflushed.push(id.slot);
        }
        self.queue_shared(id, shared, 0)
    }

    fn queue_shared(&mut self, id: ConnectionId, shared: &Shared<'_>, sent: usize) -> Written {
        let queue_bytes_max = self.queue_bytes_max;
        let Some(entry) = self.entry_mut(id) else { return Written::Closed };
        let queue = entry.outbound.get_or_insert_default();
        let before = queue.bytes() as u64;
        let outcome = queue.push_shared(shared, sent, queue_bytes_max);
        let after = queue.bytes() as u64;
        self.counters.queued_bytes = self.counters.queued_bytes + after - before;
        match outcome {
            Queued::Kept => Written::Queued,
            Queued::Dropped(messages) => Written::Dropped(messages),
            Queued::Overflowed => {
                self.doom(id, Closed::Overflow);
                Written::Closed
            }
        }
    }

    /// The socket has room again. Every event says so; only one that would block has waited for it.
    pub(crate) fn on_writable(&mut self, slot: u32) {
        let Some(entry) = self.entries.get_mut(slot) else { return };
        let id = ConnectionId { slot, generation: entry.generation };
        // Nearly every event is of a socket that takes all that it is given.
        if !entry.flags.connecting && !entry.flags.blocked {
            return;
        }
        if entry.flags.connecting && self.finish_connect(id).is_err() {
            return;
        }
        let Some(entry) = self.entries.get_mut(slot) else { return };
        if mem::take(&mut entry.flags.blocked) {
            self.flush(id);
        }
    }

    /// Sends what merging connections have gathered in this turn.
    pub(crate) fn flush_merging(&mut self) {
        while let Some(slot) = self.unflushed.pop() {
            let Some(entry) = self.entries.get_mut(slot) else { continue };
            entry.flags.unflushed = false;
            if entry.flags.blocked {
                continue;
            }
            let id = ConnectionId { slot, generation: entry.generation };
            self.flush(id);
        }
        if self.unflushed.capacity() > 4096 {
            self.unflushed = Vec::new();
        }
    }

    pub(super) fn fail(&mut self, id: ConnectionId, error: &io::Error) -> Written {
        self.doom(id, Closed::Failed(error.kind()));
        Written::Closed
    }

    pub(super) fn flush(&mut self, id: ConnectionId) {
        let Some(entry) = self.entries.get_mut(id.slot).filter(|entry| entry.lives(id)) else { return };
        let (Some(queue), Some(socket)) = (entry.outbound.as_mut(), entry.socket.as_mut()) else { return };
        let before = queue.bytes();
        let emptied = match self.sessions.encrypting(id.slot) {
            None => queue.write_to(socket),
            Some(tls) => {
                let mut writer = tls.onto(socket);
                queue.write_to(&mut writer).and_then(|emptied| Ok(writer.send_unsent()? && emptied))
            }
        };
        // Also after an error: some may have gone out before it.
        let written = (before - queue.bytes()) as u64;
        self.counters.queued_bytes -= written;
        self.counters.bytes_sent += written;
        self.counters.writes += 1;
        match emptied {
            Ok(true) => {
                let dropped = queue.take_dropped();
                entry.outbound = None;
                if dropped > 0 {
                    self.recovered.push((id, dropped));
                }
                self.flushed(id);
            }
            Ok(false) => entry.flags.blocked = true,
            Err(error) => self.doom(id, Closed::Failed(error.kind())),
        }
    }

    /// A session has something to say, or what waited for its handshake may go.
    pub(crate) fn flush_session(&mut self, id: ConnectionId) {
        if let Some(entry) = self.entry_mut(id) {
            entry.outbound.get_or_insert_default();
            self.flush(id);
        }
    }
}
