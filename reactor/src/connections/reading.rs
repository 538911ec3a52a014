//! Reading: whose turn it is, the bytes, the end of the stream.

use std::{
    collections::VecDeque,
    io::{self, Read},
};

use super::{
    Closed, Connections,
    entry::{PeerEnd, Unread, WhenFlushed},
};
use crate::slab::ConnectionId;

/// So many that wait to be read are a crowd: at 65 µs for a read of 64 KiB with all that may be done of it, one that comes
/// last would wait for more than 2 ms.
const CROWD: usize = 32;

/// What is read of one in a crowd: at 3 µs, 500 of them are 1.5 ms.
const CROWDED_READ_BYTES: usize = 8 * 1024;

impl<C> Connections<C> {
    /// Whether so many wait for their first part that each is to have a small one. (Those that wait for their next do not
    /// keep the others waiting.)
    pub fn is_crowded(&self) -> bool {
        self.unread.len() > CROWD
    }

    /// The connection that an event of a slot is for, unless its turn to be read comes anyway. `is_ended`: the event
    /// says that the stream has ended behind its bytes.
    pub(crate) fn take_event(&mut self, slot: u32, is_ended: bool) -> Option<ConnectionId> {
        let entry = self.entries.get_mut(slot).filter(|entry| !entry.flags.doomed)?;
        if entry.flags.unread != Unread::No {
            if is_ended {
                entry.flags.unread = Unread::ToEnd;
            }
            return None;
        }
        let id = ConnectionId { slot, generation: entry.generation };
        (!self.rests.has(id)).then_some(id)
    }

    /// Reads the connection in the next turns, until its socket has no more or it is paused, whether or not an event has
    /// told of it yet: what the peer said before something that is known of it.
    pub fn read_out(&mut self, id: ConnectionId) {
        self.list_unread(id);
    }

    /// Whether it waits for its turn to be read.
    pub fn is_unread(&self, id: ConnectionId) -> bool {
        self.entry(id).is_some_and(|entry| entry.flags.unread != Unread::No && !entry.is_paused())
    }

    /// Whether a half-open connection's peer has ended its side, told or not yet.
    pub fn has_ended(&self, id: ConnectionId) -> bool {
        self.entry(id).is_some_and(|entry| entry.flags.peer_end == PeerEnd::Came)
    }

    /// Sees to it that the connection is read in the next turn, where nothing is known of its end.
    pub(crate) fn list_unread(&mut self, id: ConnectionId) {
        self.list_unread_as(id, Unread::ToEnd);
    }

    pub(crate) fn list_unread_as(&mut self, id: ConnectionId, unread: Unread) {
        if let Some(entry) = self.entry_mut(id)
            && std::mem::replace(&mut entry.flags.unread, unread) == Unread::No
        {
            self.unread.push_back(id);
        }
    }

    /// The next to read, and whether the stream may have ended behind its bytes.
    pub(crate) fn next_unread(&mut self) -> Option<(ConnectionId, bool)> {
        let id = self.unread.pop_front()?;
        let unread = self.entry_mut(id).map(|entry| std::mem::take(&mut entry.flags.unread));
        if self.unread.is_empty() && self.unread.capacity() > 4096 {
            self.unread = VecDeque::new();
        }
        Some((id, unread != Some(Unread::Bytes)))
    }

    /// What came while it was paused is read, if it is not any more.
    pub(super) fn catch_up(&mut self, id: ConnectionId) {
        if self.entry(id).is_some_and(|entry| entry.flags.readable && !entry.is_paused())
            && !self.resume_rest(id)
        {
            self.list_unread(id);
        }
    }

    /// Reads once. `None`: nothing to hand on now.
    pub(crate) fn read<'b>(
        &mut self,
        id: ConnectionId,
        buffer: &'b mut [u8],
        read_closed: bool,
    ) -> Option<Received<'b>> {
        let (now, is_crowded) = (self.attended(), self.is_crowded());
        // What was read before comes first.
        if self.rests.has(id) {
            return None;
        }
        let entry = self.entries.get_mut(id.slot).filter(|entry| entry.lives(id))?;
        if entry.is_paused() {
            entry.flags.readable = true;
            return None;
        }
        if self.sessions.get(id.slot).is_some() {
            return self.read_tls(id, buffer, read_closed);
        }
        let socket = entry.socket.as_mut()?;
        let buffer_len = if is_crowded { buffer.len().min(CROWDED_READ_BYTES) } else { buffer.len() };
        let buffer = &mut buffer[..buffer_len];
        loop {
            match socket.read(buffer) {
                Ok(0) => {
                    self.end_of_stream(id);
                    return None;
                }
                Ok(n) => {
                    entry.heard = now;
                    // A short read has emptied the socket: the next bytes make a new edge. The end of the stream
                    // may share an edge with the bytes before it.
                    let more = n == buffer.len() || read_closed;
                    entry.flags.readable = more;
                    self.counters.bytes_received += n as u64;
                    return Some(Received { bytes: &mut buffer[..n], more });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    entry.flags.readable = false;
                    return None;
                }
                Err(error) => {
                    self.doom(id, Closed::Failed(error.kind()));
                    return None;
                }
            }
        }
    }

    /// The peer has ended its stream.
    pub(crate) fn end_of_stream(&mut self, id: ConnectionId) {
        let Some(entry) = self.entry_mut(id) else { return };
        entry.flags.readable = false;
        if entry.flags.peer_end != PeerEnd::Closes {
            return self.on_peer_end(id);
        }
        match entry.outbound.is_some() && entry.is_closing() {
            // It may have ended its side only, and still read: its last words are on their way.
            true => entry.flags.when_flushed = WhenFlushed::Close,
            false => self.doom(id, Closed::Peer),
        }
    }

    pub(crate) fn set_readable(&mut self, id: ConnectionId, readable: bool) {
        if let Some(entry) = self.entry_mut(id) {
            entry.flags.readable = readable;
        }
    }
}

/// Bytes just read.
#[derive(Debug)]
pub(crate) struct Received<'b> {
    pub(crate) bytes: &'b mut [u8],
    /// The socket may have more.
    pub(crate) more: bool,
}
