//! Messages into a shard from other threads.

use std::{
    cell::RefCell,
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

/// Posts what `work` posts, from this thread, and wakes each shard once at the end: a shard on the same core would else
/// run for the first message, sleep, and be woken for the next.
///
/// What other threads post meanwhile to a shard that was posted to here is seen at the end, too: `work` is to be short.
pub fn waking_once<R>(work: impl FnOnce() -> R) -> R {
    let is_outermost = DEFERRED.with_borrow_mut(|deferred| {
        let is_outermost = deferred.is_none();
        deferred.get_or_insert_default();
        is_outermost
    });
    // Also when the work panics: other threads rely on the wake-ups.
    let _waking = is_outermost.then(|| Waking);
    work()
}

thread_local! {
    /// Shards that were posted to and not woken, while that is put off.
    static DEFERRED: RefCell<Option<Vec<Arc<Bell>>>> = const { RefCell::new(None) };
}

struct Waking;

impl Drop for Waking {
    fn drop(&mut self) {
        for bell in DEFERRED.take().into_iter().flatten() {
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
        let is_deferred = DEFERRED.with_borrow_mut(|deferred| match deferred {
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

    /// Moves what has been posted to the end of `inbox`. Afterwards a sender wakes the shard again.
    pub(crate) fn drain(&self, inbox: &mut std::collections::VecDeque<M>) {
        self.shared.bell.told.store(false, Ordering::Release);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{panic, time::Duration};

    use mio::{Events, Poll, Token};

    use super::*;

    /// Whether the shard is woken, without waiting for it.
    fn is_woken(poll: &mut Poll) -> bool {
        let mut events = Events::with_capacity(4);
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        !events.is_empty()
    }

    #[test]
    fn what_is_posted_together_wakes_at_the_end() {
        let mut poll = Poll::new().unwrap();
        let mailbox = Mailbox::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let mut inbox = std::collections::VecDeque::new();
        waking_once(|| {
            mailbox.send(1);
            waking_once(|| mailbox.send(2));
            assert!(!is_woken(&mut poll));
            // The shard was awake and has looked by itself: what follows is told like the first.
            mailbox.drain(&mut inbox);
            mailbox.send(3);
        });
        assert!(is_woken(&mut poll));
        mailbox.drain(&mut inbox);
        assert_eq!(inbox, [1, 2, 3]);
        mailbox.send(4);
        assert!(is_woken(&mut poll), "afterwards everything wakes again");
    }

    #[test]
    fn a_panic_owes_nobody_a_wake_up() {
        let mut poll = Poll::new().unwrap();
        let mailbox = Mailbox::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let work = panic::AssertUnwindSafe(|| {
            mailbox.send(1);
            panic!("on purpose");
        });
        assert!(panic::catch_unwind(|| waking_once(work)).is_err());
        assert!(is_woken(&mut poll));
    }
}
