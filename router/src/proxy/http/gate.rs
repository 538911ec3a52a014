//! The socket between hyper and the kernel: hyper is given one request after the other, each head only after it was
//! read by the rules of a shard.
//!
//! hyper mends what is unclear: of `Content-Length` with `Transfer-Encoding` it drops the length before anybody sees
//! it. So the head is judged here, from its bytes, and hyper never gets the bytes of a request that is refused, or of
//! one that goes back to a shard. Where the body before it ends is known from the same strict reading. If hyper should
//! ever see another end, the two would differ about bytes of one client, and the service has no head for what hyper
//! took for a request.

use std::{
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tidegate_ops::tls::Link;
use tidegate_wire::head::{Head, HeadError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::{
    exchange::{End, Exchange},
    framing::Framing,
};
use crate::proxy::{
    refusal::Refusal,
    request::{self, Route},
};

pub(super) struct Gate {
    pub(super) socket: Link,
    /// Read, and not given to hyper. The first `granted` bytes may be.
    pub(super) held: BytesMut,
    granted: usize,
    next: Next,
    head_bytes_max: usize,
    exchange: Arc<Exchange>,
}

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

/// What one read takes.
const READ_BYTES: usize = 16 * 1024;

impl Gate {
    /// `received` was read from the socket by a shard.
    pub(super) fn new(socket: Link, received: &[u8], head_bytes_max: usize, exchange: Arc<Exchange>) -> Self {
        let next = Next::Head { seen: 0 };
        Self { socket, held: received.into(), granted: 0, next, head_bytes_max, exchange }
    }

    /// Looks at what is held until hyper may be given something of it; `false`: more is needed.
    fn grant(&mut self) -> io::Result<bool> {
        while self.granted == 0 {
            match self.next {
                Next::Head { seen } if self.held.len() > seen => self.read_head(seen),
                Next::Body(framing) if framing.is_over() => self.next = Next::Head { seen: 0 },
                Next::Body(mut framing) if !self.held.is_empty() => {
                    let taken = framing.take(&self.held);
                    self.granted =
                        taken.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                    self.next = Next::Body(framing);
                }
                Next::Head { .. } | Next::Body(_) | Next::End => return Ok(false),
            }
        }
        Ok(true)
    }

    fn read_head(&mut self, seen: usize) {
        let max = self.head_bytes_max;
        // Without a line end among the fresh bytes the head cannot be complete now and was not before.
        let parsed = match self.held[seen..].contains(&b'\n') || self.held.len() > max {
            true => Head::parse(&self.held),
            false => Ok(None),
        };
        match parsed.map(|head| head.map(|head| judge(&head, self.held.len(), max))) {
            Ok(None) if self.held.len() > max => self.end(End::Refused(Refusal::HeadTooLarge { max })),
            Ok(None) => self.next = Next::Head { seen: self.held.len() },
            Ok(Some(Verdict::Granted { len, framing })) => {
                self.exchange.begin(self.held[..len].to_vec().into());
                (self.granted, self.next) = (len, Next::Body(framing));
            }
            Ok(Some(Verdict::Ends(end))) => self.end(end),
            Err(error) => self.end(End::Refused(error.into())),
        }
    }

    /// Between requests a connection holds no buffer here.
    fn give_up_buffer(&mut self) {
        if self.held.is_empty() {
            self.held = BytesMut::new();
        }
    }

    fn end(&mut self, end: End) {
        self.next = Next::End;
        self.exchange.end(end);
    }
}

enum Verdict {
    Granted { len: usize, framing: Framing },
    Ends(End),
}

fn judge(head: &Head<'_>, held: usize, max: usize) -> Verdict {
    let refused = |refusal| Verdict::Ends(End::Refused(refusal));
    if head.len > max {
        return refused(Refusal::HeadTooLarge { max });
    }
    // Of the protocol itself, not of a resource: no server of ours has a meaning for it.
    if head.path == "*" {
        return refused(HeadError::Target.into());
    }
    match (request::route(head, held > head.len), Framing::of(head)) {
        (Err(refusal), _) => refused(refusal),
        (Ok(Route::Pair(_)), _) => Verdict::Ends(End::Returning),
        (Ok(Route::Http | Route::Assign), Ok(framing)) => Verdict::Granted { len: head.len, framing },
        (Ok(_), Err(error)) => refused(error.into()),
    }
}

impl AsyncRead for Gate {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.grant()? {
            if self.next == Next::End {
                // Its task looks for that after each poll, so nothing has to wake it.
                return Poll::Pending;
            }
            let Self { socket, held, .. } = &mut *self;
            held.reserve(READ_BYTES);
            match poll_read_buf(pin!(socket), cx, held) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                Poll::Ready(read) => read.map(drop)?,
                Poll::Pending => {
                    self.give_up_buffer();
                    return Poll::Pending;
                }
            }
        }
        let count = self.granted.min(buffer.remaining());
        buffer.put_slice(&self.held.split_to(count));
        self.granted -= count;
        self.give_up_buffer();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Gate {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
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
