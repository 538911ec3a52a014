//! The listening socket: one thread that takes connections in and hands them on. It never spins: when the
//! process is out of descriptors it spends a spare one to answer and close, and waits a moment when it cannot.

use std::{
    fs::File,
    io,
    net::{SocketAddr, TcpListener as StdTcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use mio::{Events, Interest, Poll, Token, Waker, net::TcpListener};
use rustix::io::Errno;

/// Decides about new connections. Called from the acceptor's thread.
pub trait Intake: Send + 'static {
    /// A connection came in.
    fn on_connection(&mut self, socket: TcpStream, peer: SocketAddr);

    /// A connection came in for which there was no descriptor; `socket` holds the spare one and is closed
    /// afterwards. `None`: not even the spare could be had; who waits keeps waiting, and this is said once until
    /// descriptors come back.
    fn on_exhausted(&mut self, socket: Option<TcpStream>);
}

/// How long to leave the listener alone when no descriptor at all can be had: ten attempts a second at most.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Connections accepted between two looks at the stop signal: at about 10 µs each, some 5 ms.
const ACCEPTS_MAX: usize = 512;

const LISTENER: Token = Token(0);
const STOP: Token = Token(1);

/// A bound listener, not yet serving.
#[derive(Debug)]
pub struct Acceptor {
    poll: Poll,
    listener: TcpListener,
    stop: Arc<Waker>,
    spare: Option<File>,
    /// It was said that there is no spare.
    starved: bool,
}

/// Ends an acceptor.
#[derive(Debug)]
pub struct AcceptorHandle {
    stop: Arc<Waker>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Acceptor {
    /// Takes over a bound, listening socket.
    pub fn new(listener: StdTcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(listener);
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let stop = Arc::new(Waker::new(poll.registry(), STOP)?);
        Ok(Self { poll, listener, stop, spare: Some(open_spare()?), starved: false })
    }

    /// Serves on a thread of its own until the handle is stopped.
    pub fn spawn(self, intake: impl Intake) -> io::Result<AcceptorHandle> {
        let stop = Arc::clone(&self.stop);
        let thread = thread::Builder::new().name("accept".into()).spawn(move || self.run(intake))?;
        Ok(AcceptorHandle { stop, thread: Some(thread) })
    }

    fn run(mut self, mut intake: impl Intake) {
        let mut events = Events::with_capacity(8);
        let mut pause = None;
        loop {
            if let Err(error) = self.poll.poll(&mut events, pause)
                && error.kind() != io::ErrorKind::Interrupted
            {
                // Only a broken program makes a poll fail otherwise; the pause keeps it from spinning.
                thread::park_timeout(EXHAUSTED_PAUSE);
                continue;
            }
            if events.iter().any(|event| event.token() == STOP) {
                return;
            }
            pause = self.accept_all(&mut intake);
        }
    }

    /// Accepts until nothing waits; how long to pause when something may still.
    fn accept_all(&mut self, intake: &mut impl Intake) -> Option<Duration> {
        for _ in 0..ACCEPTS_MAX {
            // A lost spare is had back before the next connection is: they may come until there is none to be had.
            self.restore_spare();
            match self.listener.accept() {
                Ok((socket, peer)) => intake.on_connection(socket.into(), peer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if is_exhausted(&error) => match self.refuse_with_spare(intake) {
                    Refusal::One => {}
                    Refusal::NobodyWaits => return None,
                    Refusal::Stuck => return Some(EXHAUSTED_PAUSE),
                },
                Err(error) if is_passing(&error) => {}
                // Not one of the peer's: it would come again at once.
                Err(_) => return Some(EXHAUSTED_PAUSE),
            }
        }
        Some(Duration::ZERO)
    }

    /// Spends the spare descriptor on one connection. Linux looks for a descriptor before it looks for a
    /// connection, so being out of descriptors does not mean that anybody waits.
    fn refuse_with_spare(&mut self, intake: &mut impl Intake) -> Refusal {
        if self.spare.take().is_none() {
            return self.starve(intake);
        }
        let refusal = match self.listener.accept() {
            Ok((socket, _)) => {
                intake.on_exhausted(Some(socket.into()));
                Refusal::One
            }
            // Another thread was quicker with the descriptor, or it is memory that is missing.
            Err(error) if is_exhausted(&error) => self.starve(intake),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Refusal::NobodyWaits,
            Err(error) if is_passing(&error) => Refusal::One,
            Err(_) => Refusal::Stuck,
        };
        self.restore_spare();
        // Without one the next connection cannot be refused, and nothing tells when there is one again.
        if self.spare.is_some() { refusal } else { Refusal::Stuck }
    }

    fn restore_spare(&mut self) {
        if self.spare.is_none() {
            self.spare = open_spare().ok();
        }
        self.starved &= self.spare.is_none();
    }

    fn starve(&mut self, intake: &mut impl Intake) -> Refusal {
        if !std::mem::replace(&mut self.starved, true) {
            intake.on_exhausted(None);
        }
        Refusal::Stuck
    }
}

/// What came of an attempt to refuse with the spare descriptor.
enum Refusal {
    One,
    NobodyWaits,
    /// Nothing can be done now, whoever waits.
    Stuck,
}

impl AcceptorHandle {
    /// Stops accepting and closes the listener.
    pub fn stop(mut self) -> io::Result<()> {
        self.stop.wake()?;
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| io::Error::other("the accept thread panicked"))?;
        }
        Ok(())
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
