//! Reading through a session: the handshake, plaintext for the driver, and what goes out on the way.

use std::io::{self, Read};

use super::{Closed, Connections, Received};
use crate::{slab::ConnectionId, tls::TlsSession};

/// What became of reading a socket.
enum Took {
    /// So many bytes of ciphertext, and whether there may be more.
    Bytes {
        count: usize,
        more: bool,
    },
    Nothing,
    End,
}

impl<C> Connections<C> {
    /// From now on the connection speaks TLS: the session is fed by its socket, the driver has the plaintext and
    /// writes plaintext. What the driver read before belongs into the session (see [`TlsSession::new`]).
    pub fn start_tls(&mut self, id: ConnectionId, session: Box<TlsSession>) {
        if self.get(id).is_none() {
            return;
        }
        let is_fresh = session.is_fresh();
        self.sessions.insert(id.slot, session);
        if is_fresh {
            self.list_unread(id);
        }
    }

    /// Its TLS session; `None` for a plain connection.
    pub fn tls(&self, id: ConnectionId) -> Option<&TlsSession> {
        self.get(id)?;
        self.sessions.get(id.slot)
    }

    /// Reads once, for a connection with a session that takes reads. `None`: nothing to hand on now.
    pub(crate) fn read_tls<'b>(
        &mut self,
        id: ConnectionId,
        buffer: &'b mut [u8],
        read_closed: bool,
    ) -> Option<Received<'b>> {
        let took = match self.read_ciphertext(id, buffer, read_closed) {
            Ok(took) => took,
            Err(error) => {
                self.doom(id, Closed::Failed(error.kind()));
                return None;
            }
        };
        let (count, more) = match took {
            Took::Bytes { count, more } => (count, more),
            Took::Nothing => {
                self.set_readable(id, false);
                return None;
            }
            Took::End => {
                self.end_of_stream(id);
                return None;
            }
        };
        let (session, plaintext) = self.sessions.decrypting(id.slot)?;
        let was_open = session.is_open();
        let received = session.receive(&mut buffer[..count], plaintext);
        let (opened, resumed) = (session.is_open() && !was_open, session.is_resumed());
        // What follows the peer's end is found as the end of the stream.
        let more = more || session.peer_closed();
        let speaks = !session.unsent().is_empty();
        if opened {
            self.counters.tls_handshakes += 1;
            self.counters.tls_resumed += u64::from(resumed);
        }
        if speaks || opened {
            self.flush_session(id);
        }
        if received.is_err() {
            self.counters.tls_failures += 1;
            self.sessions.plaintext.clear();
            self.doom(id, Closed::Tls);
            return None;
        }
        self.hand_on(id, buffer, more)
    }

    /// The plaintext that is there, at the beginning of the buffer: it is shorter than the ciphertext was.
    fn hand_on<'b>(&mut self, id: ConnectionId, buffer: &'b mut [u8], more: bool) -> Option<Received<'b>> {
        self.set_readable(id, more);
        let plaintext = &mut self.sessions.plaintext;
        let count = plaintext.len();
        self.counters.bytes_received += count as u64;
        if count == 0 {
            if more {
                self.list_unread(id);
            }
            return None;
        }
        let bytes = &mut buffer[..count];
        bytes.copy_from_slice(plaintext);
        plaintext.clear();
        Some(Received { bytes, more })
    }

    /// Ciphertext at the beginning of the buffer, what the session holds included.
    fn read_ciphertext(
        &mut self,
        id: ConnectionId,
        buffer: &mut [u8],
        read_closed: bool,
    ) -> io::Result<Took> {
        let now = self.attended();
        let (Some(entry), Some(session)) = (self.entries.get_mut(id.slot), self.sessions.get_mut(id.slot))
        else {
            return Ok(Took::Nothing);
        };
        let Some(socket) = entry.socket.as_mut() else { return Ok(Took::Nothing) };
        if session.peer_closed() {
            return Ok(Took::End);
        }
        let held = session.lay_out(buffer);
        loop {
            match socket.read(&mut buffer[held..]) {
                Ok(0) => return Ok(Took::End),
                Ok(count) => {
                    entry.heard = now;
                    let more = held + count == buffer.len() || read_closed;
                    return Ok(Took::Bytes { count: held + count, more });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(match session.is_fresh() {
                        true => Took::Bytes { count: held, more: false },
                        false => Took::Nothing,
                    });
                }
                Err(error) => return Err(error),
            }
        }
    }
}
