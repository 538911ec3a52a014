//! The socket between hyper and the kernel: hyper is given one request after the other, each head only after it was
//! read by the rules of a shard.
//!
//! hyper mends what is unclear: of `Content-Length` with `Transfer-Encoding` it drops the length before anybody sees
//! it. So the head is judged here, from its bytes, and hyper never gets the bytes of a request that is refused, or of
//! one that goes back to a shard. Where the body before it ends is known from the same strict reading. If hyper should
//! ever see another end, the two would differ about bytes of one client, and the service has no head for what hyper
//! took for a request.

use std::{
    fmt, io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tidegate_wire::{framing::Framing, head::Head, request};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::exchange::{End, Exchange};
use crate::tls::Link;

/// Gives hyper what is hyper's of what comes from a socket.
pub struct Gate {
    pub socket: Link,
    /// Read, and not given to hyper. The first `granted` bytes may be. Empty between requests, and without a buffer.
    pub held: BytesMut,
    granted: usize,
    next: Next,
    head_bytes_max: usize,
    is_shards: IsShards,
    exchange: Arc<Exchange>,
}

/// Whether a request goes back to a shard. The second argument: bytes came after its head. For a request that is an
/// upgrade they wait until there is a protocol that they are of; for any other they are the next request.
pub type IsShards = fn(&Head<'_>, bool) -> bool;

/// What comes after the granted bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// A head; that many bytes of it were looked at.
    Head {
        seen: usize,
    },
    Body(Framing),
    /// Nothing more of it is hyper's.
    End,
}

impl Gate {
    /// `received` was read from the socket by a shard.
    pub fn new(
        socket: Link,
        received: &[u8],
        head_bytes_max: usize,
        is_shards: IsShards,
        exchange: Arc<Exchange>,
    ) -> Self {
        let next = Next::Head { seen: 0 };
        Self { socket, held: received.into(), granted: 0, next, head_bytes_max, is_shards, exchange }
    }

    pub(super) fn exchange(&self) -> &Arc<Exchange> {
        &self.exchange
    }

    pub(super) fn head_bytes_max(&self) -> usize {
        self.head_bytes_max
    }

    /// The exchange is told whether the client takes what it is sent.
    fn note_write(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(_) => self.exchange.wrote(),
            Poll::Pending => self.exchange.blocked(),
        }
        written
    }

    /// How many of these bytes, the first that hyper was not given, it may have now: those of one request at most.
    fn grant(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut granted = 0;
        loop {
            let rest = &bytes[granted..];
            match self.next {
                Next::Head { seen } if granted == 0 && rest.len() > seen => {
                    granted = self.read_head(rest, seen)
                }
                Next::Body(framing) if framing.is_over() => self.next = Next::Head { seen: 0 },
                Next::Body(mut framing) if !rest.is_empty() => match framing.take(rest) {
                    Ok(taken) => {
                        granted += taken;
                        self.next = Next::Body(framing);
                    }
                    // Whoever serves the request is told when it reads the body.
                    Err(_) if granted > 0 => return Ok(granted),
                    Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
                },
                Next::Head { .. } | Next::Body(_) | Next::End => return Ok(granted),
            }
        }
    }

    /// The length of the head if it is whole, and its request is hyper's.
    fn read_head(&mut self, bytes: &[u8], seen: usize) -> usize {
        match request::judge(bytes, bytes.len() - seen, self.head_bytes_max) {
            Ok(None) => self.next = Next::Head { seen: bytes.len() },
            Ok(Some(judged)) if (self.is_shards)(&judged.head, bytes.len() > judged.head.len) => {
                self.end(End::Returning);
            }
            Ok(Some(judged)) => {
                self.exchange.begin(&bytes[..judged.head.len]);
                self.next = Next::Body(judged.framing);
                return judged.head.len;
            }
            Err(error) => self.end(End::Refused(error)),
        }
        0
    }

    fn grant_held(&mut self) -> io::Result<()> {
        let held = mem::take(&mut self.held);
        let granted = self.grant(&held);
        self.held = held;
        self.granted = granted?;
        Ok(())
    }

    fn give_held(&mut self, buffer: &mut ReadBuf<'_>) {
        let count = self.granted.min(buffer.remaining());
        buffer.put_slice(&self.held.split_to(count));
        self.granted -= count;
        if self.held.is_empty() {
            self.held = BytesMut::new();
        }
    }

    fn end(&mut self, end: End) {
        self.next = Next::End;
        self.exchange.end(end);
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("next", &self.next).finish_non_exhaustive()
    }
}

impl AsyncRead for Gate {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.granted == 0 && !this.held.is_empty() {
                this.grant_held()?;
            }
            if this.granted > 0 {
                this.give_held(buffer);
                return Poll::Ready(Ok(()));
            }
            if this.next == Next::End {
                // Its task looks for that after each poll, so nothing has to wake it.
                return Poll::Pending;
            }
            // Into hyper's own buffer, where what it may have stays: of most requests that is all.
            let before = buffer.filled().len();
            ready!(Pin::new(&mut this.socket).poll_read(cx, buffer))?;
            let fresh = &buffer.filled()[before..];
            if fresh.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let granted = if this.held.is_empty() { this.grant(fresh)? } else { 0 };
            this.held.extend_from_slice(&fresh[granted..]);
            buffer.set_filled(before + granted);
            if granted > 0 {
                return Poll::Ready(Ok(()));
            }
            if matches!(this.next, Next::Head { .. }) {
                this.exchange.received();
            }
        }
    }
}

impl AsyncWrite for Gate {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.note_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        self.note_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        self.exchange.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidegate_wire::request::judge;

    proptest! {
        /// hyper would answer a target that it does not take by itself, without a problem document.
        #[test]
        fn hyper_takes_every_target_that_is_granted(
            begin in "(|/|http://[a-z.:@\\[\\]0-9-]{0,6}|ws://h:8)",
            rest in "[!-~é]{0,12}",
        ) {
            let target = format!("{begin}{rest}");
            let head = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
            if judge(head.as_bytes(), head.len(), 4096).is_ok() {
                prop_assert!(http::Uri::try_from(target.as_str()).is_ok(), "{target}");
            }
        }
    }
}
