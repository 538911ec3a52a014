//! Connections that a router of this machine hands over, with what it has read of them.
//!
//! ```text
//! router    offer + socket ──► recvmsg ─► admission ─► answers ──► router lets go of the sockets it was answered for
//!                                                        └─ sent ─► dealer ─► a shard, as if accepted here
//! ```
//!
//! A socket is touched only after its answer was sent. A router that waits no longer has shut its side: the answer fails,
//! and the client is served by another gateway. So no client is served twice, and none is left out.

use std::{io, net::TcpStream, os::fd::AsFd as _, sync::Arc, time::Duration};

use bytes::Bytes;
use tidegate_ops::handover::{Doorway, Line, receive, send};
use tidegate_wire::handover::{
    ANSWERS_MAX, Answer, Answers, HandoverError, OFFER_BYTES_MAX, OFFERS_MAX, Offer, Offers,
};
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
    time::sleep,
};

use super::door::Doorkeeper;
use crate::{
    metrics::HandshakeResult,
    node::{Node, Stage},
    session::Session,
};

/// Takes over what is handed to `doorway`, as long as the runtime runs.
pub(crate) async fn run(doorway: Doorway, keeper: Arc<Doorkeeper>, node: Arc<Node>) {
    let listener = match doorway.listener().try_clone().and_then(UnixListener::from_std) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "no connections are taken over from routers"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let receiver = Receiver { keeper: Arc::clone(&keeper), node: Arc::clone(&node) };
                tokio::spawn(receiver.serve(stream));
            }
            Err(error) => {
                tracing::warn!(%error, "a router could not connect to hand connections over");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Out of descriptors, an accept fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What one line is served with.
struct Receiver {
    keeper: Arc<Doorkeeper>,
    node: Arc<Node>,
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
    async fn serve(self, stream: UnixStream) {
        let line = stream.into_std().and_then(Line::of).and_then(|line| UnixStream::from_std(line.into()));
        let ended = match line {
            Ok(line) => self.receive_all(&line).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = ended {
            tracing::warn!(%error, "a router's connection for hand-overs has ended");
        }
    }

    async fn receive_all(&self, line: &UnixStream) -> Result<(), LineError> {
        let mut buffer = vec![0; OFFER_BYTES_MAX];
        loop {
            line.readable().await?;
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
