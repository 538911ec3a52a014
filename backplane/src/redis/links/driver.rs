//! Drives one connection: writes what waits, reads what arrives, and looks at the time.
//!
//! Nothing waits for others to come: what finds the socket idle is written at once. While a write, or the task, is under
//! way, commands pile up and leave with the next.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::io::poll_read_buf;

use super::dial::Connection;
use super::halt::{Halt, Part};
use super::wire::{Inbound, Malformed};
use crate::redis::error::Trouble;

/// What is kept of a buffer that was written: a few hundred commands of usual size.
const BUFFER_KEPT: usize = 64 * 1024;

/// Who a connection is driven for.
pub(super) trait Side {
    /// Takes what is to be written next, and gives a buffer back.
    fn outgoing(&mut self, spent: Vec<u8>) -> Vec<u8>;

    /// So many bytes left.
    fn written(&mut self, _bytes: usize) {}

    /// Something has arrived: a value, or a part of one.
    fn arrived(&mut self, inbound: &mut Inbound) -> Result<(), Trouble>;

    /// Whether nothing that was asked waits for its answer.
    fn is_at_rest(&self) -> bool;

    /// What the probe is sent through.
    fn probe(&self) -> Option<Box<str>> {
        None
    }

    /// When [`due`](Self::due) is to be called.
    fn due_at(&self) -> Instant;

    /// Called at that time or a little before.
    fn due(&mut self, now: Instant) -> Result<(), Trouble>;
}

/// What a driver waits for beside its socket and its time.
pub(super) struct Signals<'a> {
    /// Something is to be written, or to be looked at.
    pub(super) filled: &'a Notify,
    pub(super) halt: &'a Halt,
    /// What it halts as.
    pub(super) part: Part,
}

/// Until the connection is over.
pub(super) async fn drive(connection: Connection, signals: Signals<'_>, side: &mut impl Side) -> Trouble {
    match exchange(connection, signals, side).await {
        Ok(never) => match never {},
        Err(trouble) => trouble,
    }
}

async fn exchange(
    Connection { mut stream, mut inbound }: Connection,
    Signals { filled, halt, part }: Signals<'_>,
    side: &mut impl Side,
) -> Result<std::convert::Infallible, Trouble> {
    let mut outgoing = io::Cursor::new(Vec::new());
    let mut has_written = false;
    let timer = sleep_until(side.due_at());
    tokio::pin!(timer);
    side.arrived(&mut inbound)?;
    loop {
        if !outgoing.has_remaining() {
            let mut spent = outgoing.into_inner();
            spent.clear();
            spent.shrink_to(BUFFER_KEPT);
            outgoing = io::Cursor::new(side.outgoing(spent));
        }
        let is_idle = !outgoing.has_remaining();
        if is_idle && halt.is_wanted() && side.is_at_rest() {
            halt.stand(part, &*stream, &inbound, side.probe()).await;
            continue;
        }
        tokio::select! {
            moved = exchange_some(&mut stream, &mut outgoing, &mut inbound, has_written) => {
                let moved = moved.map_err(broken)?;
                has_written = matches!(moved, Moved::Written(_));
                match moved {
                    Moved::Written(bytes) => side.written(bytes),
                    Moved::Read(0) => return Err(Trouble::Closed),
                    Moved::Read(_) => side.arrived(&mut inbound)?,
                }
            }
            () = filled.notified(), if is_idle => {}
            () = &mut timer => {
                side.due(Instant::now())?;
                timer.as_mut().reset(side.due_at());
            }
        }
        if timer.deadline() > side.due_at() {
            timer.as_mut().reset(side.due_at());
        }
    }
}

enum Moved {
    Written(usize),
    Read(usize),
}

/// Writes or reads, what is possible first; in turn where both are. Cancel-safe: what was written is gone from
/// `outgoing`, what was read is in `inbound`.
async fn exchange_some<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    outgoing: &mut (impl Buf + Unpin),
    inbound: &mut Inbound,
    reads_first: bool,
) -> io::Result<Moved> {
    poll_fn(|context| {
        for reads in [reads_first, !reads_first] {
            let moved = match reads {
                true => poll_read_buf(Pin::new(&mut *stream), context, inbound.room())
                    .map(|read| Ok(Moved::Read(read?))),
                false => poll_write(stream, outgoing, context),
            };
            if moved.is_ready() {
                return moved;
            }
        }
        Poll::Pending
    })
    .await
}

fn poll_write<S: AsyncWrite + Unpin>(
    stream: &mut S,
    outgoing: &mut impl Buf,
    context: &mut Context<'_>,
) -> Poll<io::Result<Moved>> {
    if !outgoing.has_remaining() {
        // TLS may hold some of it.
        return match Pin::new(stream).poll_flush(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        };
    }
    let written = ready!(Pin::new(stream).poll_write(context, outgoing.chunk()))?;
    if written == 0 {
        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
    }
    outgoing.advance(written);
    Poll::Ready(Ok(Moved::Written(written)))
}

fn broken(error: io::Error) -> Trouble {
    Trouble::Broken(error.into())
}

impl From<Malformed> for Trouble {
    fn from(Malformed: Malformed) -> Self {
        Self::Protocol
    }
}
