//! The listening socket, as one shard sees it. All shards of a process share one socket and each takes connections from it
//! for itself. It never spins: when the process is out of descriptors a shard spends a spare one to answer and close, and
//! leaves the socket alone for a moment when it cannot.

use std::{
    fs::File,
    io,
    net::{SocketAddr, TcpListener as StdTcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use mio::{Registry, Token, net::TcpListener};
use rustix::io::Errno;

/// A bound, listening socket, to be shared by shards ([`Shard::listen`](crate::Shard::listen)). It closes when the last of
/// them has let go of it.
#[derive(Clone, Debug)]
pub struct Listener(Arc<TcpListener>);

/// How long a shard leaves the listener alone when no descriptor at all can be had: ten attempts a second at most.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Connections taken in a turn, at about 7 µs each: another shard may be free for the next.
const BURST_MAX: usize = 64;

/// A listener in which something is left is told of again by the poll. Else it is looked at until it has nothing.
const IS_TOLD_AGAIN: bool = cfg!(target_os = "linux");

/// A shard's part in the listener.
#[derive(Debug)]
pub(crate) struct Listening {
    listener: Listener,
    spare: Option<File>,
    /// It was said that there is no spare.
    is_starved: bool,
    /// Something may wait in the listener.
    pub(crate) is_due: bool,
    /// Connections to take in this turn.
    burst: usize,
    /// Until then nothing is taken, on the clock of the shard.
    pub(crate) paused_until: Option<Duration>,
}

/// What the listener had.
pub(crate) enum Incoming {
    Connection(TcpStream, SocketAddr),
    /// Only this one failed.
    Passing,
    Nobody,
    /// There was no descriptor for it but the spare one, which is needed for the next.
    OnSpare(TcpStream),
    /// There is not even the spare one; said once until it is back.
    Starved,
    /// Nothing can be done now, whoever waits.
    Stuck,
}

impl Listener {
    pub fn new(listener: StdTcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self(Arc::new(TcpListener::from_std(listener))))
    }

    /// One connection wakes one of the shards that sleep, and not all of them. Those that are at work find it in their next
    /// turn, if it is still there.
    #[cfg(target_os = "linux")]
    fn register(&self, registry: &Registry, token: Token) -> io::Result<()> {
        use rustix::event::epoll::{EventData, EventFlags, add};
        let events = EventFlags::IN | EventFlags::EXCLUSIVE;
        Ok(add(registry, &*self.0, EventData::new_u64(token.0 as u64), events)?)
    }

    #[cfg(target_os = "linux")]
    fn deregister(&self, registry: &Registry) -> io::Result<()> {
        Ok(rustix::event::epoll::delete(registry, &*self.0)?)
    }

    #[cfg(not(target_os = "linux"))]
    fn register(&self, registry: &Registry, token: Token) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        registry.register(&mut mio::unix::SourceFd(&self.0.as_raw_fd()), token, mio::Interest::READABLE)
    }

    #[cfg(not(target_os = "linux"))]
    fn deregister(&self, registry: &Registry) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        registry.deregister(&mut mio::unix::SourceFd(&self.0.as_raw_fd()))
    }

    fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.accept().map(|(socket, peer)| (socket.into(), peer))
    }
}

impl Listening {
    pub(crate) fn begin(listener: Listener, registry: &Registry, token: Token) -> io::Result<Self> {
        listener.register(registry, token)?;
        Ok(Self {
            listener,
            spare: Some(open_spare()?),
            is_starved: false,
            is_due: false,
            burst: 1,
            paused_until: None,
        })
    }

    /// Another shard may hold the socket longer, so it has to leave this one's poll by itself.
    pub(crate) fn end(self, registry: &Registry) -> io::Result<()> {
        match self.paused_until {
            Some(_) => Ok(()),
            None => self.listener.deregister(registry),
        }
    }

    /// Leaves the listener alone for a moment: it would be told of at each turn.
    pub(crate) fn pause(&mut self, registry: &Registry, now: Duration) -> io::Result<()> {
        self.is_due = false;
        self.paused_until = Some(now + EXHAUSTED_PAUSE);
        self.listener.deregister(registry)
    }

    /// Looks at the listener again when its pause is over; after another one, when the kernel lacks memory for that.
    pub(crate) fn resume(&mut self, registry: &Registry, token: Token, now: Duration) {
        if self.paused_until.is_none_or(|until| until > now) {
            return;
        }
        self.is_due = self.listener.register(registry, token).is_ok();
        self.paused_until = if self.is_due { None } else { Some(now + EXHAUSTED_PAUSE) };
    }

    /// How many to take in this turn: one, and twice as many each turn while there are so many. Who comes alone is then not
    /// followed by a look that finds nobody, for which the kernel makes a socket and throws it away.
    pub(crate) fn begin_turn(&mut self) -> usize {
        if !self.is_due {
            self.burst = 1;
            return 0;
        }
        self.is_due = !IS_TOLD_AGAIN;
        let burst = self.burst;
        self.burst = (burst * 2).min(BURST_MAX);
        burst
    }

    pub(crate) fn accept(&mut self) -> Incoming {
        let incoming = self.accept_one();
        if matches!(incoming, Incoming::Nobody) {
            self.is_due = false;
            // Half of what this turn began with.
            self.burst = (self.burst / 4).max(1);
        }
        incoming
    }

    fn accept_one(&mut self) -> Incoming {
        // A lost spare is had back before the next connection is: they may come until there is none to be had.
        self.restore_spare();
        match self.listener.accept() {
            Ok((socket, peer)) => Incoming::Connection(socket, peer),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Incoming::Nobody,
            Err(error) if is_exhausted(&error) => self.accept_with_spare(),
            Err(error) if is_passing(&error) => Incoming::Passing,
            // Not one of the peer's: it would come again at once.
            Err(_) => Incoming::Stuck,
        }
    }

    /// Spends the spare descriptor on one connection; it is had back with the next. Linux looks for a descriptor before it
    /// looks for a connection, so being out of descriptors does not mean that anybody waits.
    fn accept_with_spare(&mut self) -> Incoming {
        if self.spare.take().is_none() {
            return self.starve();
        }
        let incoming = match self.listener.accept() {
            Ok((socket, _)) => return Incoming::OnSpare(socket),
            // Another thread was quicker with the descriptor, or it is memory that is missing.
            Err(error) if is_exhausted(&error) => self.starve(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Incoming::Nobody,
            Err(error) if is_passing(&error) => Incoming::Passing,
            Err(_) => Incoming::Stuck,
        };
        self.restore_spare();
        // Without one the next connection cannot be refused, and nothing tells when there is one again.
        if self.spare.is_some() { incoming } else { Incoming::Stuck }
    }

    fn restore_spare(&mut self) {
        if self.spare.is_none() {
            self.spare = open_spare().ok();
        }
        self.is_starved &= self.spare.is_none();
    }

    fn starve(&mut self) -> Incoming {
        match std::mem::replace(&mut self.is_starved, true) {
            true => Incoming::Stuck,
            false => Incoming::Starved,
        }
    }
}

fn open_spare() -> io::Result<File> {
    File::open("/dev/null")
}

/// Only this one connection failed, or the call was interrupted: the next may be fine.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
        || errno(error) == Some(Errno::PROTO)
}

/// Out of descriptors in the process or the system, or of kernel memory for one.
fn is_exhausted(error: &io::Error) -> bool {
    matches!(errno(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}

fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw_os_error)
}
