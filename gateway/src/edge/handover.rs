//! Connections that a router of this machine hands over, with what it has read of them.
//!
//! ```text
//! router    offer + socket ──► recvmsg ─► admission ─► answers ──► router lets go of the sockets it was answered for
//!                                                        └─ sent ─► dealer ─► a shard, as if accepted here
//! ```
//!
//! A record is taken, answered and spread in one turn. While this process is to hand everything on, no turn begins: offers wait
//! in the lines, and whoever has these then reads them (`Handovers::suspend`).
//!
//! A socket is touched only after its answer was sent. A router that waits no longer has shut its side: the answer fails,
//! and the client is served by another gateway. So no client is served twice, and none is left out.

use std::{
    io,
    net::TcpStream,
    os::{fd::AsFd as _, unix::net::UnixListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use tidegate_ops::handover::{Doorway, Line, receive, send};
use tidegate_wire::handover::{
    ANSWERS_MAX, Answer, Answers, HandoverError, OFFER_BYTES_MAX, OFFERS_MAX, Offer, Offers,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixStream,
    runtime::Handle,
    sync::{OwnedRwLockWriteGuard, RwLock},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::door::Doorkeeper;
use crate::{
    metrics::HandshakeResult,
    node::{Node, Stage},
    session::Session,
};

/// Where routers hand connections over, and the lines on which they do.
pub(crate) struct Handovers {
    doorway: Doorway,
    /// Those of another process, until they are served.
    earlier: Mutex<Vec<UnixStream>>,
    open: Mutex<Vec<Weak<UnixStream>>>,
    turns: Arc<RwLock<()>>,
    still: Mutex<Option<Still>>,
}

/// While there is one, no turn begins, and no line.
struct Still {
    lines: Vec<Arc<UnixStream>>,
    _turns: OwnedRwLockWriteGuard<()>,
}

/// A turn ends within a millisecond, unless a router does not read its answers.
const TURNS_MAX: Duration = Duration::from_secs(1);

impl Handovers {
    /// `lines`: of the process whose place this one takes. To be called in the runtime.
    pub(crate) fn new(doorway: Doorway, lines: Vec<Line>) -> io::Result<Self> {
        let earlier = lines.into_iter().map(|line| UnixStream::from_std(line.into()));
        Ok(Self {
            doorway,
            earlier: Mutex::new(earlier.collect::<io::Result<_>>()?),
            open: Mutex::default(),
            turns: Arc::default(),
            still: Mutex::default(),
        })
    }

    /// As nodes announce it.
    pub(crate) fn place(&self) -> Box<str> {
        self.doorway.place().to_string().into()
    }

    /// From now on nothing is taken over. `false`: a turn does not end. Blocks; not for a thread of the runtime.
    pub(crate) fn suspend(&self, runtime: &Handle) -> bool {
        let stopping = Arc::clone(&self.turns).write_owned();
        let Ok(turns) = runtime.block_on(async { timeout(TURNS_MAX, stopping).await }) else { return false };
        let lines = lock(&self.open).iter().filter_map(Weak::upgrade).collect();
        *lock(&self.still) = Some(Still { lines, _turns: turns });
        true
    }

    pub(crate) fn resume(&self) {
        drop(lock(&self.still).take());
    }

    /// How many lines there are while nothing is taken over.
    pub(crate) fn lines(&self) -> u32 {
        lock(&self.still).as_ref().map_or(0, |still| still.lines.len() as u32)
    }

    /// What listens, and those lines.
    pub(crate) fn sockets(&self) -> io::Result<Vec<TcpStream>> {
        // Only their descriptors are passed on.
        let mut sockets = vec![self.doorway.listener().as_fd().try_clone_to_owned()?.into()];
        if let Some(still) = &*lock(&self.still) {
            for line in &still.lines {
                sockets.push(line.as_fd().try_clone_to_owned()?.into());
            }
        }
        Ok(sockets)
    }

    /// All of that is another process's.
    pub(crate) fn give(&self) {
        self.doorway.give();
        // No turn begins any more.
        lock(&self.still).iter_mut().for_each(|still| still.lines.clear());
    }

    /// A line that can be handed on.
    fn open(&self, line: UnixStream) -> Arc<UnixStream> {
        let line = Arc::new(line);
        let mut open = lock(&self.open);
        open.retain(|line| line.strong_count() > 0);
        open.push(Arc::downgrade(&line));
        line
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes over what is handed over, as long as the runtime runs.
pub(crate) async fn run(handovers: Arc<Handovers>, keeper: Arc<Doorkeeper>, node: Arc<Node>) {
    let mut serving = JoinSet::new();
    let receiver = || Receiver {
        keeper: Arc::clone(&keeper),
        node: Arc::clone(&node),
        turns: Arc::clone(&handovers.turns),
    };
    let earlier = std::mem::take(&mut *lock(&handovers.earlier));
    for line in earlier {
        serving.spawn(receiver().serve(handovers.open(line)));
    }
    #[expect(
        deprecated,
        reason = "what follows it is unsafe, for the sake of types that change their descriptor"
    )]
    let listener = match handovers.doorway.listener().try_clone().and_then(AsyncFd::new) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "no connections are taken over from routers"),
    };
    loop {
        match accept(&listener, &handovers).await {
            Ok(line) => {
                serving.spawn(receiver().serve(line));
            }
            Err(error) => {
                tracing::warn!(%error, "a router could not connect to hand connections over");
                sleep(ACCEPT_PAUSE).await;
            }
        }
        // Only those that run are kept.
        while serving.try_join_next().is_some() {}
    }
}

/// The next line. In a turn, so that one that was accepted is known to an upgrade.
async fn accept(listener: &AsyncFd<UnixListener>, handovers: &Handovers) -> io::Result<Arc<UnixStream>> {
    loop {
        let mut ready = listener.readable().await?;
        let _turn = handovers.turns.read().await;
        match ready.try_io(|listener| listener.get_ref().accept()) {
            Ok(accepted) => {
                let line = Line::of(accepted?.0)?;
                return Ok(handovers.open(UnixStream::from_std(line.into())?));
            }
            Err(_would_block) => {}
        }
    }
}

/// Out of descriptors, an accept fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What one line is served with.
struct Receiver {
    keeper: Arc<Doorkeeper>,
    node: Arc<Node>,
    turns: Arc<RwLock<()>>,
}

/// Connections, with their places, that are this gateway's once their answers are sent.
struct Taken<'k>(&'k Doorkeeper, Vec<(TcpStream, Bytes, Session)>);

/// What a line had at once, with the answers.
type Portion<'k> = (Vec<(u32, Answer)>, Taken<'k>, Received);

/// Why a line ends.
#[derive(Debug, thiserror::Error)]
enum LineError {
    #[error(transparent)]
    System(#[from] io::Error),
    #[error(transparent)]
    Record(#[from] HandoverError),
}

impl Receiver {
    async fn serve(self, line: Arc<UnixStream>) {
        if let Err(error) = self.receive_all(&line).await {
            tracing::warn!(%error, "a router's connection for hand-overs has ended");
        }
    }

    async fn receive_all(&self, line: &UnixStream) -> Result<(), LineError> {
        let mut buffer = vec![0; OFFER_BYTES_MAX];
        loop {
            line.readable().await?;
            let _turn = self.turns.read().await;
            let (answers, taken, received) = self.receive_some(line, &mut buffer)?;
            if let Some(answers) = Answers::new(answers).filter(|answers| !answers.is_empty()) {
                let mut record = Vec::new();
                answers.write(&mut record);
                line.async_io(Interest::WRITABLE, || send(line.as_fd(), &record)).await?;
                taken.spread();
            }
            if received == Received::End {
                return Ok(());
            }
        }
    }

    /// The offers that have come, and what they are answered.
    fn receive_some(&self, line: &UnixStream, buffer: &mut [u8]) -> Result<Portion<'_>, LineError> {
        let (mut answers, mut taken) = (Vec::new(), Taken(&self.keeper, Vec::new()));
        while answers.len() + OFFERS_MAX <= ANSWERS_MAX {
            match line.try_io(Interest::READABLE, || receive(line.as_fd(), buffer)) {
                Ok(Some(record)) => {
                    let mut sockets = record.sockets.into_iter();
                    for offer in Offers::parse(record.bytes)?.iter() {
                        answers.push((offer.number, self.admit(offer, sockets.next(), &mut taken)));
                    }
                }
                Ok(None) => return Ok((answers, taken, Received::End)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok((answers, taken, Received::Some))
    }

    fn admit(&self, offer: &Offer<'_>, socket: Option<TcpStream>, taken: &mut Taken<'_>) -> Answer {
        let Some(socket) = socket else {
            self.count(HandshakeResult::Descriptors);
            return Answer::Descriptors;
        };
        if self.node.stage() == Stage::Closing {
            self.count(HandshakeResult::Draining);
            return Answer::Draining;
        }
        let Some(session) = self.keeper.take_offered(offer.ends.source.ip()) else {
            self.count(HandshakeResult::NodeLimit);
            return Answer::Full;
        };
        taken.1.push((socket, Bytes::copy_from_slice(offer.received), session));
        Answer::Taken
    }

    fn count(&self, result: HandshakeResult) {
        self.keeper.metrics.node.handshakes.add(result, 1);
    }
}

impl Taken<'_> {
    /// The answers are sent: to the shards with them.
    fn spread(mut self) {
        self.0.metrics.node.handovers.add(self.1.len() as u64);
        for (socket, read, session) in self.1.drain(..) {
            self.0.dealer.spread(socket, read, session);
        }
    }
}

/// Without an answer they stay the router's.
impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.1.drain(..).for_each(|(_, _, session)| self.0.front.release(session.address));
    }
}

/// What a line had.
#[derive(PartialEq, Eq)]
enum Received {
    Some,
    /// The router is gone.
    End,
}
