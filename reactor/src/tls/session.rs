//! One TLS session without its socket: ciphertext in, plaintext out, and back.

use std::{fmt, sync::Arc};

use rustls::{
    Error, HandshakeKind, InvalidMessage, ServerConfig,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus, WriteTraffic},
};

/// Ciphertext of one record at most: 2^14 bytes of plaintext, 2048 of expansion in TLS 1.2 (RFC 5246 section 6.2.3),
/// 5 of header.
pub const RECORD_BYTES_MAX: usize = (1 << 14) + 2048 + 5;

/// Plaintext that goes into one record.
pub(crate) const PIECE_BYTES: usize = 1 << 14;

/// What one piece may grow by: expansion of the record, and a key update before it, which is under 64 bytes.
pub(crate) const SCRATCH_BYTES: usize = RECORD_BYTES_MAX + 256;

/// The server's side of a TLS session.
///
/// It holds no buffer while nothing waits. An incomplete record or handshake message is held, and no more than
/// [`RECORD_BYTES_MAX`] of it, which bounds a ClientHello; so is what the socket has not taken.
pub struct TlsSession {
    connection: UnbufferedServerConnection,
    /// Ciphertext that is not complete.
    pub(super) held: Vec<u8>,
    /// `held` was not looked at yet.
    is_fresh: bool,
    /// Ciphertext that is not sent.
    pub(super) unsent: Vec<u8>,
    /// The handshake is complete.
    is_open: bool,
    /// The peer has said that it sends no more.
    peer_closed: bool,
    /// Our end was said.
    closed: bool,
}

impl TlsSession {
    /// A session that waits for a handshake, of which `read` has come already.
    pub fn new(config: Arc<ServerConfig>, read: &[u8]) -> Result<Self, Error> {
        Ok(Self {
            connection: UnbufferedServerConnection::new(config)?,
            held: read.to_vec(),
            is_fresh: !read.is_empty(),
            unsent: Vec::new(),
            is_open: false,
            peer_closed: false,
            closed: false,
        })
    }

    /// Whether the handshake is complete.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether a ticket of an earlier session took the place of a full handshake.
    pub fn is_resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Whether the peer has said that it sends no more (close_notify).
    pub fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// Whether bytes are held that nobody has looked at.
    pub fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    /// Ciphertext for the peer, to be sent before anything that is encrypted later.
    pub fn unsent(&self) -> &[u8] {
        &self.unsent
    }

    /// So much of [`unsent`](Self::unsent) has gone out.
    pub fn sent(&mut self, bytes: usize) {
        match bytes == self.unsent.len() {
            true => self.unsent = Vec::new(),
            false => drop(self.unsent.drain(..bytes)),
        }
    }

    /// Adds to what is unsent; for ciphertext of [`encrypt`](Self::encrypt) that the socket did not take.
    pub fn keep_unsent(&mut self, ciphertext: &[u8]) {
        self.unsent.extend_from_slice(ciphertext);
    }

    /// Puts what is held at the beginning of the buffer, where bytes that are read next belong behind it; how many
    /// bytes that is. The buffer has more than [`RECORD_BYTES_MAX`] bytes.
    pub fn lay_out(&mut self, buffer: &mut [u8]) -> usize {
        buffer[..self.held.len()].copy_from_slice(&self.held);
        self.held.len()
    }

    /// Takes ciphertext, of which the beginning was laid out by [`lay_out`](Self::lay_out), and appends its
    /// plaintext. After an error there may be an alert to send.
    pub fn receive(&mut self, ciphertext: &mut [u8], plaintext: &mut Vec<u8>) -> Result<(), Error> {
        self.is_fresh = false;
        let mut done = 0;
        if let Err(error) = self.advance(ciphertext, &mut done, plaintext) {
            self.keep_alert(&mut ciphertext[done..]);
            self.held = Vec::new();
            return Err(error);
        }
        let rest = &ciphertext[done..];
        if rest.len() > RECORD_BYTES_MAX {
            return Err(InvalidMessage::HandshakePayloadTooLarge.into());
        }
        match rest.is_empty() {
            true => self.held = Vec::new(),
            false => rest.clone_into(&mut self.held),
        }
        Ok(())
    }

    /// Encrypts at most one record's worth into `ciphertext`, which has room for it; how many bytes of each went
    /// where. `None`: not before the handshake is complete.
    pub(crate) fn encrypt(
        &mut self,
        plaintext: &[u8],
        ciphertext: &mut [u8],
    ) -> Result<Option<(usize, usize)>, Error> {
        if !self.is_open || self.closed {
            return Ok(None);
        }
        let piece = &plaintext[..plaintext.len().min(PIECE_BYTES)];
        let encrypted = self.writing(|traffic| traffic.encrypt(piece, ciphertext).ok())?;
        // TLS 1.2 has no fresh keys for a session that has used its own up, after 2^24 records and more.
        let bytes = encrypted.flatten().ok_or(Error::EncryptError)?;
        Ok(Some((piece.len(), bytes)))
    }

    /// Encrypts at most one record's worth behind what is unsent; how much of the plaintext that is. For who sends
    /// what is unsent by other means than a shard's.
    pub fn queue(&mut self, plaintext: &[u8]) -> Result<usize, Error> {
        let mut record = vec![0; SCRATCH_BYTES];
        let Some((taken, bytes)) = self.encrypt(plaintext, &mut record)? else {
            return Err(Error::HandshakeNotComplete);
        };
        self.keep_unsent(&record[..bytes]);
        Ok(taken)
    }

    /// Says that nothing more follows, once. What says it is unsent then.
    pub fn close(&mut self) {
        if !self.is_open || self.closed {
            return;
        }
        let mut alert = [0; 512];
        if let Ok(Some(bytes)) = self.writing(|traffic| traffic.queue_close_notify(&mut alert).unwrap_or(0)) {
            self.keep_unsent(&alert[..bytes]);
        }
        self.closed = true;
    }

    /// Processes records until more are needed; `done` counts the bytes that are not needed again.
    fn advance(
        &mut self,
        ciphertext: &mut [u8],
        done: &mut usize,
        plaintext: &mut Vec<u8>,
    ) -> Result<(), Error> {
        loop {
            let UnbufferedStatus { mut discard, state, .. } =
                self.connection.process_tls_records(&mut ciphertext[*done..]);
            let mut waits = false;
            match state? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        plaintext.extend_from_slice(record.payload);
                    }
                }
                ConnectionState::EncodeTlsData(data) => encode(data, &mut self.unsent)?,
                // It is unsent, and leaves before anything else.
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => self.peer_closed = true,
                ConnectionState::WriteTraffic(_) => {
                    self.is_open = true;
                    waits = true;
                }
                // Early data is never asked for: `max_early_data_size` is 0.
                _ => waits = true,
            }
            *done += discard;
            if waits {
                return Ok(());
            }
        }
    }

    /// After a failure at `ciphertext`: what tells the peer.
    fn keep_alert(&mut self, ciphertext: &mut [u8]) {
        let UnbufferedStatus { state, .. } = self.connection.process_tls_records(ciphertext);
        if let Ok(ConnectionState::EncodeTlsData(data)) = state
            && let Err(error) = encode(data, &mut self.unsent)
        {
            debug_assert!(false, "an alert has its size: {error}");
        }
    }

    /// Has something encrypted, after what the session itself has to say.
    fn writing<R>(
        &mut self,
        write: impl FnOnce(&mut WriteTraffic<'_, ServerConnectionData>) -> R,
    ) -> Result<Option<R>, Error> {
        loop {
            // With what is held: the session may have noted places in it.
            let UnbufferedStatus { state, .. } = self.connection.process_tls_records(&mut self.held);
            match state? {
                ConnectionState::EncodeTlsData(data) => encode(data, &mut self.unsent)?,
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::WriteTraffic(mut traffic) => return Ok(Some(write(&mut traffic))),
                _ => return Ok(None),
            }
        }
    }
}

/// Appends what a session has to say. Its size is known only from the refusal of a buffer that is too small.
fn encode(mut data: EncodeTlsData<'_, ServerConnectionData>, out: &mut Vec<u8>) -> Result<(), Error> {
    let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) else { return Ok(()) };
    let before = out.len();
    out.resize(before + size.required_size, 0);
    data.encode(&mut out[before..]).map(drop).map_err(|_| Error::EncryptError)
}

impl fmt::Debug for TlsSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSession")
            .field("is_open", &self.is_open)
            .field("held", &self.held.len())
            .field("unsent", &self.unsent.len())
            .finish_non_exhaustive()
    }
}
