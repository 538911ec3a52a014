//! The front door: who may come in, and to which shard.

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
use tidegate_reactor::Mail;

use crate::{
    admission::{AddressKey, Front, Over},
    metrics::{HandshakeResult, Metrics},
    session::{Session, core::ShardMailbox},
};

/// What a connection is sent for which there is no descriptor or no place.
const NO_ROOM: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Deals connections out to the shards: new ones, and those that come back from HTTP.
///
/// A shard keeps what it takes in, unless another one holds fewer.
pub(crate) struct Dealer {
    shards: Vec<ShardDoor>,
    /// The shard that got the last connection of HTTP. Two threads that deal at once may take the same: it is a hint.
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

/// A shard may hold so much more than the emptiest and still be given a connection: a 64th. Where they are many, a little
/// unevenness is cheaper than having another shard serve what was taken in here; few are spread evenly.
const UNEVENNESS: u64 = 64;

/// Lets connections in, or turns them away; the same one for all shards.
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

    /// Gives a connection of HTTP, which has its place in the limits, to a shard, with what was `read` from it.
    pub(crate) fn deal(&self, socket: TcpStream, read: Bytes, address: AddressKey, preamble: Preamble) {
        self.spread(socket, read, Session::new(address, self.now_ms(), None, preamble));
    }

    /// Gives a connection that came in at no shard to one of them, with what was `read` from it.
    pub(crate) fn spread(&self, socket: TcpStream, read: Bytes, connection: Session) {
        let next = (self.last.load(Ordering::Relaxed) + 1) % self.shards.len();
        let shard = self.choose(next);
        self.last.store(shard, Ordering::Relaxed);
        self.send(shard, socket, read, connection);
    }

    /// A connection that came in at a shard, with its place in the limits: it is given back, or has gone to another shard.
    fn keep(&self, shard: usize, socket: TcpStream, connection: Session) -> Option<(TcpStream, Session)> {
        let chosen = self.choose(shard);
        if chosen == shard {
            self.door(shard).connections.fetch_add(1, Ordering::AcqRel);
            return Some((socket, connection));
        }
        self.send(chosen, socket, Bytes::new(), connection);
        None
    }

    fn send(&self, shard: usize, socket: TcpStream, read: Bytes, connection: Session) {
        let door = self.door(shard);
        door.connections.fetch_add(1, Ordering::AcqRel);
        door.mailbox.send(Mail::Adopt { socket, read, connection });
    }

    /// On the clock of [`Session::accepted_ms`].
    fn now_ms(&self) -> u32 {
        self.started.elapsed().as_millis() as u32
    }

    /// The preferred shard, unless it holds more than the emptiest.
    fn choose(&self, preferred: usize) -> usize {
        let load = |door: &ShardDoor| match door.failed.load(Ordering::Relaxed) {
            true => u64::MAX,
            false => door.connections.load(Ordering::Relaxed),
        };
        let least = self.shards.iter().map(load).min().unwrap_or(0);
        match load(&self.shards[preferred]) <= least.saturating_add(least / UNEVENNESS) {
            true => preferred,
            false => self.shards.iter().position(|door| load(door) == least).unwrap_or(preferred),
        }
    }
}

impl Doorkeeper {
    /// A connection came in at a shard. What the shard is to keep is given back.
    pub(crate) fn take(
        &self,
        shard: usize,
        socket: TcpStream,
        peer: SocketAddr,
    ) -> Option<(TcpStream, Session)> {
        let peer = peer.ip().to_canonical();
        if !self.edge.admits(peer) {
            self.note_stranger(peer);
            return None;
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
            self.metrics.node.handshakes.add(over.result(), 1);
            return None;
        }
        let (key, over) = match admitted {
            Ok(key) => (key, None),
            Err(over) => match self.front.turn_away() {
                Some(key) => (key, Some(over)),
                None => {
                    self.metrics.node.handshakes.add(over.result(), 1);
                    self.answer_no_room(&socket);
                    return None;
                }
            },
        };
        let connection = Session::new(key, self.dealer.now_ms(), over, self.edge.preamble());
        self.dealer.keep(shard, socket, connection)
    }

    /// A router offers a connection of a client that it names. `None`: this node is full, and another one may not be.
    pub(crate) fn take_offered(&self, client: IpAddr) -> Option<Session> {
        let client = client.to_canonical();
        let admitted = match self.edge.trust.covers(client) {
            true => self.front.admit_unnamed(),
            false => self.front.admit(client),
        };
        let (key, over) = match admitted {
            Ok(key) => (key, None),
            Err(Over::Node) => return None,
            Err(over) => (self.front.turn_away()?, Some(over)),
        };
        Some(Session::new(key, self.dealer.now_ms(), over, Preamble::None))
    }

    /// There was no descriptor for a connection but the spare one, or not even that.
    pub(crate) fn turn_away(&self, socket: Option<TcpStream>) {
        self.metrics.node.handshakes.add(HandshakeResult::Descriptors, 1);
        if let Some(socket) = socket {
            self.answer_no_room(&socket);
        }
    }

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
