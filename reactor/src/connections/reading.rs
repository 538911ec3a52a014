//! Reading: whose turn it is, the bytes, the end of the stream.

use std::{
    collections::VecDeque,
    io::{self, Read},
};

use super::{Closed, Connections};
use crate::{
    entry::{PeerEnd, WhenFlushed},
    slab::ConnectionId,
};

impl<C> Connections<C> {
    /// The connection that an event of a slot is for, unless its turn to be read comes anyway.
    pub(crate) fn to_read(&self, slot: u32) -> Option<ConnectionId> {
        let entry = self.entries.get(slot).filter(|entry| !entry.flags.doomed && !entry.flags.unread)?;
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
        self.entry(id).is_some_and(|entry| entry.flags.unread && !entry.is_paused())
    }

    /// Whether a half-open connection's peer has ended its side, told or not yet.
    pub fn has_ended(&self, id: ConnectionId) -> bool {
        self.entry(id).is_some_and(|entry| entry.flags.peer_end == PeerEnd::Came)
    }

    /// Sees to it that the connection is read in the next turn.
    pub(crate) fn list_unread(&mut self, id: ConnectionId) {
        if let Some(entry) = self.entry_mut(id)
            && !std::mem::replace(&mut entry.flags.unread, true)
        {
            self.unread.push_back(id);
        }
    }

    pub(crate) fn next_unread(&mut self) -> Option<ConnectionId> {
        let id = self.unread.pop_front()?;
        if let Some(entry) = self.entry_mut(id) {
            entry.flags.unread = false;
        }
        if self.unread.is_empty() && self.unread.capacity() > 4096 {
            self.unread = VecDeque::new();
        }
        Some(id)
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
        let now = self.now;
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
