//! Messages into a shard from other threads.

use std::{cell::RefCell, fmt, io, net::TcpStream};

use bytes::Bytes;

// A test plays the orders of threads with other primitives under these names (`tests/mailbox_orders.rs`).
use crate::sync::{
    Arc, Listener, Mutex, MutexGuard, PoisonError, Task, Waker,
    atomic::{AtomicBool, Ordering},
    per_thread,
};

/// What a shard is sent.
#[derive(Debug)]
pub enum Mail<Connection, Command> {
    /// A socket to own from now on, with the bytes that were read from it before.
    Adopt { socket: TcpStream, read: Bytes, connection: Connection },
    /// Anything else; the driver knows what it means.
    Command(Command),
    /// Takes connections from this listener from now on, beside other shards that do so.
    Listen(Listener),
    /// Takes no more connections from its listener, and lets go of it.
    StopListening,
    /// Runs this task, or drops it where its socket cannot be polled.
    Begin(Task),
    /// A task of the shard, by its number, is to be polled.
    Wake(usize),
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

/// Posts what `work` posts, from this thread, and wakes each shard once at the end: a shard on the same core would else
/// run for the first message, sleep, and be woken for the next.
///
/// What other threads post meanwhile to a shard that was posted to here is seen at the end, too: `work` is to be short.
pub fn waking_once<R>(work: impl FnOnce() -> R) -> R {
    let is_outermost = DEFERRED.with(|deferred| {
        let mut deferred = deferred.borrow_mut();
        let is_outermost = deferred.is_none();
        deferred.get_or_insert_default();
        is_outermost
    });
    // Also when the work panics: other threads rely on the wake-ups.
    let _waking = is_outermost.then(|| Waking);
    work()
}

per_thread! {
    /// Shards that were posted to and not woken, while that is put off.
    static DEFERRED: RefCell<Option<Vec<Arc<Bell>>>> = const { RefCell::new(None) };
}

struct Waking;

impl Drop for Waking {
    fn drop(&mut self) {
        for bell in DEFERRED.with(RefCell::take).into_iter().flatten() {
            bell.ring();
        }
    }
}

struct SharedQueue<M> {
    /// `None`: the shard has ended.
    queue: Mutex<Option<Vec<M>>>,
    bell: Arc<Bell>,
}

/// Wakes a shard.
struct Bell {
    waker: Waker,
    /// True when the shard has been told, is about to be, or is about to look by itself: no system call is needed.
    told: AtomicBool,
}

impl<M> Mailbox<M> {
    pub(crate) fn new(waker: Waker) -> Self {
        Self {
            shared: Arc::new(SharedQueue {
                queue: Mutex::new(Some(Vec::new())),
                bell: Arc::new(Bell { waker, told: AtomicBool::new(false) }),
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
        let bell = &self.shared.bell;
        if bell.told.swap(true, Ordering::AcqRel) {
            return;
        }
        let is_deferred = DEFERRED.with(|deferred| match &mut *deferred.borrow_mut() {
            Some(deferred) => {
                deferred.push(Arc::clone(bell));
                true
            }
            None => false,
        });
        if !is_deferred {
            bell.ring();
        }
    }

    /// The shard is about to look ([`drain`](Self::drain)): what is posted until then needs no wake-up.
    pub(crate) fn will_look(&self) {
        self.shared.bell.told.swap(true, Ordering::AcqRel);
    }

    /// Whether the shard has not ended.
    pub fn is_open(&self) -> bool {
        self.lock().is_some()
    }

    /// Moves what has been posted to the end of `inbox`. Afterwards a sender wakes the shard again.
    pub(crate) fn drain(&self, inbox: &mut std::collections::VecDeque<M>) {
        // A swap and not a store: it is ordered with those of the senders, so one that posts after this look finds that
        // the shard was not told.
        self.shared.bell.told.swap(false, Ordering::AcqRel);
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

impl Bell {
    /// The waker is an eventfd or a kqueue user event: it fails only when the kernel is out of memory, and then
    /// the next message tries again.
    fn ring(&self) {
        if let Err(error) = self.waker.wake() {
            debug_assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "waking a shard: {error}");
            self.told.store(false, Ordering::Release);
        }
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
