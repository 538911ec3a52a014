//! Messages into a shard from other threads.

use std::{
    fmt, io,
    net::TcpStream,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use mio::Waker;

/// What a shard is sent.
#[derive(Debug)]
pub enum Mail<Connection, Command> {
    /// A socket to own from now on, with the bytes that were read from it before.
    Adopt { socket: TcpStream, read: Bytes, connection: Connection },
    /// Anything else; the driver knows what it means.
    Command(Command),
    /// Ends the shard's loop; its connections are closed as they are, and what is posted afterwards is dropped.
    Stop,
}

/// The sending side. Cloning shares it.
///
/// The queue itself is unbounded: adoptions are bounded by the connection limit, and whoever posts payloads
/// bounds them before posting (see the gateway's `node`).
pub struct Mailbox<M> {
    shared: Arc<SharedQueue<M>>,
}

struct SharedQueue<M> {
    /// `None`: the shard has ended.
    queue: Mutex<Option<Vec<M>>>,
    waker: Waker,
    /// True when the shard has been told, or is about to look by itself: no system call is needed.
    told: AtomicBool,
}

impl<M> Mailbox<M> {
    pub(crate) fn new(waker: Waker) -> Self {
        Self {
            shared: Arc::new(SharedQueue {
                queue: Mutex::new(Some(Vec::new())),
                waker,
                told: AtomicBool::new(false),
            }),
        }
    }

    /// Posts a message; wakes the shard if it sleeps. Mail to a shard that has ended is dropped, which closes the
    /// socket of an adoption.
    pub fn send(&self, mail: M) {
        match &mut *self.lock() {
            Some(queue) => queue.push(mail),
            None => return,
        }
        if !self.shared.told.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    /// The waker is an eventfd or a kqueue user event: it fails only when the kernel is out of memory, and then
    /// the next message tries again.
    fn wake(&self) {
        if let Err(error) = self.shared.waker.wake() {
            debug_assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "waking a shard: {error}");
            self.shared.told.store(false, Ordering::Release);
        }
    }

    /// Moves what has been posted to the end of `inbox`. Afterwards a sender wakes the shard again.
    pub(crate) fn drain(&self, inbox: &mut std::collections::VecDeque<M>) {
        self.shared.told.store(false, Ordering::Release);
        if let Some(queue) = &mut *self.lock() {
            inbox.extend(queue.drain(..));
            if queue.capacity() > 4096 {
                queue.shrink_to(1024);
            }
        }
    }

    /// The shard has ended: nothing may wait for it, sockets least of all.
    pub(crate) fn close(&self) {
        // Dropped after the lock is: what a message owns may post.
        let unread = self.lock().take();
        drop(unread);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<M>>> {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M> Clone for Mailbox<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<M> fmt::Debug for Mailbox<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").finish_non_exhaustive()
    }
}
