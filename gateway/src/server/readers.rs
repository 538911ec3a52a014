//! The shards that read what arrives from Redis.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tidegate_backplane::{Host, HostedWork};
use tidegate_reactor::{Mail, Task, TaskSocket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::session::core::ShardMailbox;

/// Of one read. Its room is zeroed before, which costs 2 µs for 64 KiB; a burst of more is read in several turns.
const READ_BYTES: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct Readers(pub(super) Box<[ShardMailbox]>);

impl Host for Readers {
    /// Without a shard that runs, the node ends.
    fn begin(&self, number: usize, socket: OwnedFd, work: HostedWork) {
        let first = number % self.0.len();
        let (after, before) = (&self.0[first..], &self.0[..first]);
        if let Some(shard) = after.iter().chain(before).find(|shard| shard.is_open()) {
            shard.send(Mail::Begin(Task::new(socket, |socket| work(Box::new(Socket(socket))))));
        }
    }
}

/// A socket of a shard, as Tokio's traits have it.
struct Socket(TaskSocket);

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buffer.remaining().min(READ_BYTES);
        let read = ready!(self.0.poll_read(buffer.initialize_unfilled_to(room)))?;
        buffer.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write(bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Its end closes it.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
