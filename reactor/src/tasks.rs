//! Tasks that run in a shard, each with a socket of its own. What such a task makes of what it reads, and gives to this
//! shard, goes on in the same turn: no other thread is woken.

use std::{
    fmt,
    future::Future,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{AcqRel, Relaxed},
        },
    },
    task::{Context, Poll, Wake, Waker},
};

use mio::{Interest, Registry, Token, event::Event, unix::SourceFd};
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};

/// Tokens of tasks end here and go downwards; no slot of a connection is as large.
const LAST: usize = usize::MAX - 2;
/// Of one shard: each server of Redis has one, in one of the shards.
const TASKS_MAX: usize = 1024;

/// A task for a shard.
pub struct Task {
    socket: Arc<Shared>,
    work: Work,
}

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The socket of a task. It is read and written by that task only, which looks at it each time it is polled.
pub struct TaskSocket(Arc<Shared>);

/// What the shard tells a task of its socket. Both use it from the thread of the shard.
struct Shared {
    socket: OwnedFd,
    is_readable: AtomicBool,
    is_writable: AtomicBool,
    /// The peer sends no more: whoever reads is told, however little there was before.
    is_ended: AtomicBool,
    /// It has read once since it was polled: what more there is it reads in the next turn.
    has_read: AtomicBool,
}

impl Task {
    /// `socket` does not block. What `work` makes is polled when there is something to read, or room for what is
    /// written, and when it is woken by others.
    pub fn new<W>(socket: OwnedFd, work: impl FnOnce(TaskSocket) -> W) -> Self
    where
        W: Future<Output = ()> + Send + 'static,
    {
        let ready = || AtomicBool::new(true);
        let socket = Arc::new(Shared {
            socket,
            is_readable: ready(),
            is_writable: ready(),
            is_ended: AtomicBool::new(false),
            has_read: AtomicBool::new(false),
        });
        Self { work: Box::pin(work(TaskSocket(Arc::clone(&socket)))), socket }
    }
}

impl TaskSocket {
    /// Reads what there is. Pending: the task is polled when there is more; it reads once each time.
    pub fn poll_read(&mut self, room: &mut [u8]) -> Poll<io::Result<usize>> {
        let shared = &*self.0;
        if !shared.is_readable.load(Relaxed) || shared.has_read.load(Relaxed) {
            return Poll::Pending;
        }
        let asked = room.len();
        match recv(&shared.socket, room, RecvFlags::empty()) {
            Ok((read, _)) => {
                shared.has_read.store(true, Relaxed);
                // All that there was. What comes from now on is an event of its own.
                if read < asked && !shared.is_ended.load(Relaxed) {
                    shared.is_readable.store(false, Relaxed);
                }
                Poll::Ready(Ok(read))
            }
            Err(Errno::AGAIN) => {
                shared.is_readable.store(false, Relaxed);
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    /// Writes what there is room for. Pending: the task is polled when there is some.
    pub fn poll_write(&mut self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let shared = &*self.0;
        if !shared.is_writable.load(Relaxed) {
            return Poll::Pending;
        }
        match send(&shared.socket, bytes, SendFlags::NOSIGNAL) {
            Ok(written) => Poll::Ready(Ok(written)),
            Err(Errno::AGAIN) => {
                shared.is_writable.store(false, Relaxed);
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

impl AsFd for TaskSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

/// The tasks of a shard.
#[derive(Default)]
pub(crate) struct Tasks {
    running: Vec<Option<Running>>,
    /// Those that are polled next.
    due: Vec<usize>,
}

struct Running {
    task: Task,
    waker: Waker,
    is_woken: Arc<AtomicBool>,
}

/// Wakes a task of a shard, from any thread.
struct TaskWaker<W> {
    tell: W,
    index: usize,
    is_woken: Arc<AtomicBool>,
}

impl<W: Fn(usize) + Send + Sync> Wake for TaskWaker<W> {
    fn wake(self: Arc<Self>) {
        if !self.is_woken.swap(true, AcqRel) {
            (self.tell)(self.index);
        }
    }
}

impl Tasks {
    /// Polls it in the next turn for the first time. Without a place, or where the kernel refuses, it is dropped: who
    /// waits for its end sees that. `tell` has the shard [wake](Self::wake) it.
    pub(crate) fn begin(
        &mut self,
        task: Task,
        registry: &Registry,
        tell: impl Fn(usize) + Send + Sync + 'static,
    ) {
        let index = self.running.iter().position(Option::is_none).unwrap_or(self.running.len());
        let descriptor = task.socket.socket.as_raw_fd();
        let both = Interest::READABLE | Interest::WRITABLE;
        if index == TASKS_MAX
            || registry.register(&mut SourceFd(&descriptor), Token(LAST - index), both).is_err()
        {
            return;
        }
        let is_woken = Arc::<AtomicBool>::default();
        let waker = TaskWaker { tell, index, is_woken: Arc::clone(&is_woken) };
        let running = Some(Running { task, waker: Arc::new(waker).into(), is_woken });
        match self.running.get_mut(index) {
            Some(place) => *place = running,
            None => self.running.push(running),
        }
        self.due.push(index);
    }

    /// Whether the event is one of theirs.
    pub(crate) fn take_event(&mut self, event: &Event) -> bool {
        let index = LAST.wrapping_sub(event.token().0);
        if index >= TASKS_MAX {
            return false;
        }
        // One that has ended may have an event left.
        let Some(Some(running)) = self.running.get(index) else { return true };
        let shared = &running.task.socket;
        let is_ended = event.is_read_closed() || event.is_error();
        if event.is_readable() || is_ended {
            shared.is_readable.store(true, Relaxed);
        }
        if is_ended {
            shared.is_ended.store(true, Relaxed);
        }
        if event.is_writable() || event.is_error() {
            shared.is_writable.store(true, Relaxed);
        }
        self.wake(index);
        true
    }

    pub(crate) fn wake(&mut self, index: usize) {
        if !self.due.contains(&index) {
            self.due.push(index);
        }
    }

    pub(crate) fn are_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Polls those that have something to do: each reads once.
    pub(crate) fn run(&mut self, registry: &Registry) {
        for index in std::mem::take(&mut self.due) {
            let Some(place) = self.running.get_mut(index) else { continue };
            let Some(running) = place else { continue };
            running.is_woken.swap(false, AcqRel);
            let shared = Arc::clone(&running.task.socket);
            shared.has_read.store(false, Relaxed);
            let polled = running.task.work.as_mut().poll(&mut Context::from_waker(&running.waker));
            if polled.is_ready() {
                // Another process may have the same socket, and the kernel would go on telling of it.
                let descriptor = shared.socket.as_raw_fd();
                let _gone = registry.deregister(&mut SourceFd(&descriptor));
                *place = None;
            } else if shared.has_read.load(Relaxed) && shared.is_readable.load(Relaxed) {
                self.due.push(index);
            }
        }
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").finish_non_exhaustive()
    }
}

impl fmt::Debug for TaskSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TaskSocket").field(&self.0.socket).finish()
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks").finish_non_exhaustive()
    }
}
