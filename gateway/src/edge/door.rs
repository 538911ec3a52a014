//! The front door: takes connections from the acceptor, and deals them to the shards.

use std::{
    io::Write,
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use tidegate_ops::{
    edge::{Edge, Preamble},
    seldom::Seldom,
};
use tidegate_reactor::{Intake, Mail};

use crate::{
    admission::{AddressKey, Front, Over},
    metrics::{HandshakeResult, Metrics},
    session::{Session, core::ShardMailbox},
};

/// What a connection is sent for which there is no descriptor or no place.
const NO_ROOM: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Deals connections out to the shards: new ones, and those that come back from HTTP.
pub(crate) struct Dealer {
    shards: Vec<ShardDoor>,
    /// The shard that got the last connection. Two threads that deal at once may take the same: it is a hint.
    last: AtomicUsize,
    /// The clock that [`Session::accepted_ms`] counts on.
    started: Instant,
}

/// A shard as the dealer sees it.
pub(crate) struct ShardDoor {
    pub(crate) mailbox: ShardMailbox,
    /// Connections the shard has, and those on their way to it.
    pub(crate) connections: Arc<AtomicU64>,
    /// It has failed, and takes nobody.
    pub(crate) failed: AtomicBool,
}

/// Takes connections from the acceptor.
pub(crate) struct Doorkeeper {
    pub(crate) front: Arc<Front>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) dealer: Arc<Dealer>,
    pub(crate) edge: Arc<Edge>,
    pub(crate) strangers: Seldom,
}

impl Dealer {
    pub(crate) fn new(shards: Vec<ShardDoor>, started: Instant) -> Self {
        Self { shards, last: AtomicUsize::new(0), started }
    }

    pub(crate) fn door(&self, shard: usize) -> &ShardDoor {
        &self.shards[shard]
    }

    /// Deals nothing more to a shard that has failed. How many connections it had, whose places nobody gives back.
    pub(crate) fn give_up(&self, shard: usize) -> u64 {
        let door = self.door(shard);
        door.failed.store(true, Ordering::Release);
        door.connections.swap(0, Ordering::AcqRel)
    }

    /// Gives a connection that has its place in the limits to a shard, with what was `read` from it.
    pub(crate) fn deal(
        &self,
        socket: TcpStream,
        read: Bytes,
        address: AddressKey,
        over: Option<Over>,
        preamble: Preamble,
    ) {
        let accepted_ms = self.started.elapsed().as_millis() as u32;
        let door = self.choose();
        door.connections.fetch_add(1, Ordering::AcqRel);
        let connection = Session::new(address, accepted_ms, over, preamble);
        door.mailbox.send(Mail::Adopt { socket, read, connection });
    }

    /// The next shard in turn, unless it holds clearly more than the emptiest.
    fn choose(&self) -> &ShardDoor {
        let next = (self.last.load(Ordering::Relaxed) + 1) % self.shards.len();
        let load = |door: &ShardDoor| match door.failed.load(Ordering::Relaxed) {
            true => u64::MAX,
            false => door.connections.load(Ordering::Relaxed),
        };
        let least = self.shards.iter().map(load).min().unwrap_or(0);
        // A little unevenness is cheaper than looking for the emptiest each time under churn.
        let chosen = match load(&self.shards[next]) <= least.saturating_add(16) {
            true => next,
            false => self.shards.iter().position(|door| load(door) == least).unwrap_or(next),
        };
        self.last.store(chosen, Ordering::Relaxed);
        &self.shards[chosen]
    }
}

impl Intake for Doorkeeper {
    fn on_connection(&mut self, socket: TcpStream, peer: SocketAddr) {
        let peer = peer.ip().to_canonical();
        if !self.edge.admits(peer) {
            return self.note_stranger(peer);
        }
        let admitted = match self.edge.names_later(peer) {
            true => self.front.admit_unnamed(),
            // A TLS handshake costs more than all that may follow it.
            false if self.edge.tls.is_some() => {
                self.front.take_address_handshake(peer).and_then(|()| self.front.admit(peer))
            }
            false => self.front.admit(peer),
        };
        if let (Ok(key), true) = (admitted, self.edge.tls.is_some())
            && let Err(over) = self.front.take_handshake()
        {
            // To say so within a session would cost the handshake that the limit saves.
            self.front.release(key);
            return self.metrics.node.handshakes.add(over.result(), 1);
        }
        let (key, over) = match admitted {
            Ok(key) => (key, None),
            Err(over) => match self.front.turn_away() {
                Some(key) => (key, Some(over)),
                None => {
                    self.metrics.node.handshakes.add(over.result(), 1);
                    return self.answer_no_room(&socket);
                }
            },
        };
        self.dealer.deal(socket, Bytes::new(), key, over, self.edge.preamble());
    }

    fn on_exhausted(&mut self, socket: Option<TcpStream>) {
        self.metrics.node.handshakes.add(HandshakeResult::Descriptors, 1);
        if let Some(socket) = socket {
            self.answer_no_room(&socket);
        }
    }
}

impl Doorkeeper {
    /// A peer that is no balancer could say that it is anybody. Its connection is closed with the socket.
    fn note_stranger(&self, peer: IpAddr) {
        self.metrics.node.handshakes.add(HandshakeResult::ProxyPeer, 1);
        if let Some(left_out) = self.strangers.ask() {
            tracing::warn!(
                %peer, left_out,
                "closed a connection that does not come from a balancer: add its network to proxy_protocol_from"
            );
        }
    }

    /// Best effort: the socket is fresh, so its send buffer takes the answer; a peer that is gone needs none. One that
    /// expects a TLS handshake could not read it.
    fn answer_no_room(&self, mut socket: &TcpStream) {
        if self.edge.is_bare()
            && let Err(error) = socket.write_all(NO_ROOM)
        {
            tracing::debug!(%error, "a connection without a place was not told");
        }
    }
}
