//! What a driver needs that brings two connections together: opening one, ends of one direction, and being told
//! when a queue is empty.

use std::{io, net::SocketAddr};

use mio::{Interest, Token, net::TcpStream};

use super::{Closed, Connections, entry::PeerEnd};
use crate::slab::ConnectionId;

/// What a driver is told of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Notice {
    Connected,
    Flushed,
    Ended,
}

impl<C> Connections<C> {
    /// Opens a connection from here; its first bytes may be written at once. When it stands,
    /// [`Driver::on_connected`](crate::Driver::on_connected) is called; when it fails,
    /// [`Driver::on_closed`](crate::Driver::on_closed) with [`Closed::Failed`]. A timer set by the driver bounds the
    /// wait.
    ///
    /// # Errors
    /// The attempt could not begin: no descriptor, no local port, no route. Then there is no connection.
    pub fn connect(&mut self, address: SocketAddr, connection: C) -> io::Result<ConnectionId> {
        let mut socket = TcpStream::connect(address)?;
        // What is passed on is whole when it is written: waiting for more gains nothing.
        socket.set_nodelay(true)?;
        let id = self.reserve(connection);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.registry.register(&mut socket, Token(id.slot as usize), interest) {
            self.entries.remove(id.slot);
            return Err(error);
        }
        if let Some(entry) = self.entry_mut(id) {
            entry.socket = Some(socket);
            entry.flags.connecting = true;
        }
        Ok(id)
    }

    /// Whether it was opened from here and does not stand yet.
    pub fn is_connecting(&self, id: ConnectionId) -> bool {
        self.entry(id).is_some_and(|entry| entry.flags.connecting)
    }

    /// From now on the end of what the peer sends is told by [`Driver::on_end`](crate::Driver::on_end), and does not
    /// close the connection. The driver closes it, or bounds how long it stays.
    pub fn set_half_open(&mut self, id: ConnectionId) {
        if let Some(entry) = self.entry_mut(id)
            && entry.flags.peer_end == PeerEnd::Closes
        {
            entry.flags.peer_end = PeerEnd::Told;
        }
    }

    /// Has [`Driver::on_flushed`](crate::Driver::on_flushed) called once, when all that waits for this connection has
    /// been sent. For one for which nothing waits, it is called too.
    pub fn tell_flushed(&mut self, id: ConnectionId) {
        self.settle_answers(id);
        let Some(entry) = self.entry_mut(id) else { return };
        match entry.outbound {
            Some(_) => entry.flags.tells_flushed = true,
            None => self.notices.push_back((id, Notice::Flushed)),
        }
    }

    /// The socket that was connecting has become writable, which it also does when it fails.
    pub(crate) fn finish_connect(&mut self, id: ConnectionId) -> Result<(), Closed> {
        let Some(entry) = self.entry_mut(id) else { return Ok(()) };
        let Some(socket) = &entry.socket else { return Ok(()) };
        match socket.take_error() {
            Ok(None) => {
                entry.flags.connecting = false;
                self.notices.push_back((id, Notice::Connected));
                Ok(())
            }
            Ok(Some(error)) | Err(error) => {
                let closed = Closed::Failed(error.kind());
                self.doom(id, closed);
                Err(closed)
            }
        }
    }

    /// The socket has failed. One that is read finds out by itself, after the bytes that came before. One that is paused
    /// would not, and it waits for somebody else, who may never be done.
    pub(crate) fn on_error(&mut self, slot: u32) {
        let Some(entry) = self.entries.get(slot) else { return };
        if entry.flags.peer_end != PeerEnd::Closes && entry.is_paused() {
            let id = ConnectionId { slot, generation: entry.generation };
            self.doom_failed(id);
        }
    }

    /// A half-open connection's peer has ended its side. A later event for it can only be a reset, which a read does
    /// not report once the end has come.
    pub(crate) fn on_peer_end(&mut self, id: ConnectionId) {
        let Some(entry) = self.entry_mut(id) else { return };
        if entry.flags.peer_end == PeerEnd::Told {
            entry.flags.peer_end = PeerEnd::Came;
            self.notices.push_back((id, Notice::Ended));
            return;
        }
        self.doom_failed(id);
    }

    /// Ends a connection whose socket holds an error.
    fn doom_failed(&mut self, id: ConnectionId) {
        let error = self.entry(id).and_then(|entry| entry.socket.as_ref()).map(TcpStream::take_error);
        if let Some(Ok(Some(error)) | Err(error)) = error {
            self.doom(id, Closed::Failed(error.kind()));
        }
    }
}
