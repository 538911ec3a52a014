//! A TLS session on a socket of Tokio, for connections that leave the reactor for an HTTP server, and back.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tidegate_reactor::{RECORD_BYTES_MAX, TlsSession};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A session whose handshake is complete, and its socket.
///
/// Between calls it holds what the session holds and nothing else: the buffer for a read lives as long as the read.
#[derive(Debug)]
pub struct TlsStream<S> {
    socket: S,
    session: Box<TlsSession>,
    /// Decrypted, not read yet.
    plaintext: Vec<u8>,
    /// How much of `plaintext` was read.
    taken: usize,
}

/// Ciphertext that one read takes beyond what the session holds.
const READ_BYTES: usize = 16 * 1024;

impl<S> TlsStream<S> {
    pub fn new(socket: S, session: Box<TlsSession>) -> Self {
        Self { socket, session, plaintext: Vec::new(), taken: 0 }
    }

    /// Takes it apart: socket, session, and what was decrypted and not read.
    pub fn into_parts(mut self) -> (S, Box<TlsSession>, Vec<u8>) {
        let unread = self.plaintext.split_off(self.taken);
        (self.socket, self.session, unread)
    }

    /// What is decrypted already; whether there was any.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let rest = &self.plaintext[self.taken..];
        let count = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..count]);
        self.taken += count;
        if self.taken == self.plaintext.len() {
            (self.plaintext, self.taken) = (Vec::new(), 0);
        }
        count > 0
    }
}

impl<S: AsyncWrite + Unpin> TlsStream<S> {
    /// Sends what the session has for the peer.
    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.session.unsent().is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_write(cx, self.session.unsent()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.session.sent(sent),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The same for who does not depend on it: an error shows where something is written.
    fn try_unsent(&mut self, cx: &mut Context<'_>) {
        drop(self.poll_unsent(cx));
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Reads and decrypts once; false at the end of the stream.
    fn poll_decrypt(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.session.peer_closed() {
            return Poll::Ready(Ok(false));
        }
        let mut buffer = vec![0; RECORD_BYTES_MAX + READ_BYTES];
        let held = self.session.lay_out(&mut buffer);
        let mut read = ReadBuf::new(&mut buffer[held..]);
        let polled = Pin::new(&mut self.socket).poll_read(cx, &mut read);
        let count = read.filled().len();
        match polled {
            Poll::Pending if !self.session.is_fresh() => return Poll::Pending,
            Poll::Pending => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) if count == 0 => return Poll::Ready(Ok(false)),
            Poll::Ready(Ok(())) => {}
        }
        let received = self.session.receive(&mut buffer[..held + count], &mut self.plaintext);
        self.try_unsent(cx);
        received.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Poll::Ready(Ok(true))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.give(buffer) || !ready!(self.poll_decrypt(cx))? {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    /// One record at most. It counts as written when it is encrypted; the next write waits until it has left.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_unsent(cx))?;
        let taken = self.session.queue(bytes).map_err(io::Error::other)?;
        self.try_unsent(cx);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unsent(cx))?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.session.close();
        ready!(self.poll_unsent(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
