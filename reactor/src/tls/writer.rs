//! A socket that encrypts what is written to it. A byte counts as written when it is encrypted: what the socket does
//! not take of its record waits in the session, and nothing more is encrypted until that has gone.

use std::io::{self, IoSlice, Write};

use super::{TlsSession, session::PIECE_BYTES};

/// What it takes to encrypt for one connection.
pub(crate) struct Encrypting<'a> {
    pub(super) session: &'a mut TlsSession,
    /// Has room for one record.
    pub(super) scratch: &'a mut Vec<u8>,
}

/// Both together, for as long as something is written.
pub(crate) struct EncryptingWriter<'a, S> {
    encrypting: Encrypting<'a>,
    socket: &'a mut S,
}

impl<'a> Encrypting<'a> {
    pub(crate) fn onto<S: Write>(self, socket: &'a mut S) -> EncryptingWriter<'a, S> {
        EncryptingWriter { encrypting: self, socket }
    }
}

impl<S: Write> EncryptingWriter<'_, S> {
    /// Sends what waits in the session; whether nothing is left.
    pub(crate) fn send_unsent(&mut self) -> io::Result<bool> {
        let session = &mut *self.encrypting.session;
        while !session.unsent().is_empty() {
            match send(self.socket, session.unsent())? {
                0 => return Ok(false),
                sent => session.sent(sent),
            }
        }
        Ok(true)
    }

    /// Says that nothing more follows, and sends it; whether nothing is left.
    pub(crate) fn close(&mut self) -> io::Result<bool> {
        self.encrypting.session.close();
        self.send_unsent()
    }

    /// Encrypts and sends one record; the plaintext in it, or `None` when it has to wait.
    fn write_piece(&mut self, plaintext: &[u8]) -> io::Result<Option<usize>> {
        if !self.send_unsent()? {
            return Ok(None);
        }
        let Encrypting { session, scratch } = &mut self.encrypting;
        let encrypted = session.encrypt(plaintext, scratch).map_err(io::Error::other)?;
        let Some((taken, bytes)) = encrypted else { return Ok(None) };
        let record = &scratch[..bytes];
        // What the session itself had to say before goes first.
        let sent = if session.unsent().is_empty() { send(self.socket, record)? } else { 0 };
        session.keep_unsent(&record[sent..]);
        Ok(Some(taken))
    }
}

impl<S: Write> Write for EncryptingWriter<'_, S> {
    fn write(&mut self, plaintext: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        while taken < plaintext.len() {
            match self.write_piece(&plaintext[taken..])? {
                Some(bytes) => taken += bytes,
                None if taken == 0 => return Err(io::ErrorKind::WouldBlock.into()),
                None => break,
            }
        }
        self.send_unsent()?;
        Ok(taken)
    }

    /// Small writes become one record: a record costs 22 bytes and a pass of the cipher's set-up.
    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match slices {
            [] => Ok(0),
            [first, ..] if slices.len() == 1 || first.len() >= PIECE_BYTES => self.write(first),
            _ => {
                let mut joined = Vec::with_capacity(PIECE_BYTES);
                for slice in slices {
                    joined.extend_from_slice(&slice[..slice.len().min(PIECE_BYTES - joined.len())]);
                }
                self.write(&joined)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the socket takes now; 0 when it would block.
fn send(socket: &mut impl Write, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match socket.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(sent) => return Ok(sent),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error),
        }
    }
}
