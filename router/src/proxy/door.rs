//! Who may come in, and to which shard.

use std::{
    fmt,
    io::Write,
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tidegate_ops::{
    budget::{AddressBudgets, Rate, SharedBudget},
    edge::Edge,
    seldom::Seldom,
};
use tidegate_reactor::{Mail, Mailbox};
use tidegate_wire::proxy_v2::Addresses;

use super::{
    Options,
    budget::RetryBudget,
    driver::Command,
    link::Link,
    metrics::{ProxyMetrics, RefusalReason},
};

/// Limits, what is used of them, and the shards.
pub(super) struct Door {
    connections_max: u64,
    connections: AtomicU64,
    /// Clients that are only told that there is no room.
    turned_away: AtomicU32,
    handshakes: SharedBudget,
    handshake_rate: Rate,
    address_handshakes: AddressBudgets,
    pub(super) retries: RetryBudget,
    strangers: Seldom,
    shards: Vec<ShardDoor>,
    last: AtomicUsize,
    edge: Arc<Edge>,
    /// Where clients connect to, as far as it is not asked for each of them.
    listener: SocketAddr,
    /// Nodes are told where each client connected to.
    asks_local: bool,
    metrics: ProxyMetrics,
}

/// A shard as the door sees it.
pub(super) struct ShardDoor {
    mailbox: Mailbox<Mail<Link, Command>>,
    clients: AtomicU64,
}

/// A shard may hold so much more than the emptiest and still be given a client: a 64th, as in the gateway.
const UNEVENNESS: u64 = 64;

/// Clients over the limit that may stay until they are told, as in the gateway. More are closed with a prepared answer.
const TURNED_AWAY_MAX: u32 = 64;

const NO_ROOM: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

impl Door {
    pub(super) fn new(
        options: &Options,
        edge: Arc<Edge>,
        listener: SocketAddr,
        shards: Vec<ShardDoor>,
    ) -> Self {
        Self {
            connections_max: options.connections_max,
            connections: AtomicU64::new(0),
            turned_away: AtomicU32::new(0),
            handshakes: SharedBudget::default(),
            handshake_rate: options.handshakes,
            address_handshakes: AddressBudgets::new(options.address_handshakes),
            retries: RetryBudget::new(options.retries_percent, options.retries_burst),
            strangers: Seldom::default(),
            shards,
            last: AtomicUsize::new(0),
            edge,
            listener,
            asks_local: options.proxy_protocol_to_nodes,
            metrics: ProxyMetrics::default(),
        }
    }

    pub(super) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// What is counted outside the shards: refusals at the door, and HTTP.
    pub(super) fn metrics(&self) -> &ProxyMetrics {
        &self.metrics
    }

    /// Takes a handshake of the client's address and one of the router's, or says how long until there are both.
    pub(super) fn take_handshake(&self, peer: IpAddr, client: IpAddr) -> Result<(), Duration> {
        if !self.is_taken_at_accept(peer) {
            self.address_handshakes.take(client)?;
        }
        match self.edge.tls.is_some() {
            true => Ok(()),
            false => self.handshakes.take(self.handshake_rate, 1),
        }
    }

    /// A TLS handshake costs more than all that may follow it.
    fn is_taken_at_accept(&self, peer: IpAddr) -> bool {
        self.edge.tls.is_some() && !self.edge.names_later(peer)
    }

    /// A client of another process goes on in the shard. It was let in there.
    pub(super) fn arrived(&self, shard: usize) {
        self.connections.fetch_add(1, Ordering::AcqRel);
        self.shards[shard].clients.fetch_add(1, Ordering::AcqRel);
    }

    /// A client has left the shard: gone, or to HTTP.
    pub(super) fn left_shard(&self, shard: usize) {
        self.shards[shard].clients.fetch_sub(1, Ordering::AcqRel);
    }

    /// A client's place is free again.
    pub(super) fn release(&self) {
        self.connections.fetch_sub(1, Ordering::AcqRel);
    }

    /// One that was only told that there is no room has gone.
    pub(super) fn release_turned_away(&self) {
        self.turned_away.fetch_sub(1, Ordering::AcqRel);
    }

    /// A client came in at a shard. What the shard is to keep is given back.
    pub(super) fn take(
        &self,
        shard: usize,
        socket: TcpStream,
        peer: SocketAddr,
    ) -> Option<(TcpStream, Link)> {
        if !self.edge.admits(peer.ip()) {
            self.note_stranger(peer);
            return None;
        }
        // To say so within a session would cost the handshake that the limit saves.
        if self.is_taken_at_accept(peer.ip()) && self.address_handshakes.take(peer.ip()).is_err()
            || self.edge.tls.is_some() && self.handshakes.take(self.handshake_rate, 1).is_err()
        {
            self.metrics.refusals.add(RefusalReason::RateLimit, 1);
            return None;
        }
        let Some(over) = self.admit() else {
            self.metrics.refusals.add(RefusalReason::NoCapacity, 1);
            self.answer_no_room(&socket);
            return None;
        };
        let ends = Addresses { source: peer, destination: self.local_address(&socket) };
        let connection = Link::client(ends, over, self.edge.preamble());
        let chosen = self.choose(shard);
        if chosen == shard {
            self.shards[shard].clients.fetch_add(1, Ordering::AcqRel);
            return Some((socket, connection));
        }
        self.send(chosen, socket, Bytes::new(), connection);
        None
    }

    /// There was no descriptor for a client but the spare one, or not even that.
    pub(super) fn turn_away(&self, socket: Option<TcpStream>) {
        self.metrics.refusals.add(RefusalReason::Descriptors, 1);
        if let Some(socket) = socket {
            self.answer_no_room(&socket);
        }
    }

    /// Gives a client of HTTP, which has its place, to a shard, with what was `read` from it.
    pub(super) fn deal(&self, socket: TcpStream, read: Bytes, connection: Link) {
        let next = (self.last.load(Ordering::Relaxed) + 1) % self.shards.len();
        let shard = self.choose(next);
        self.last.store(shard, Ordering::Relaxed);
        self.send(shard, socket, read, connection);
    }

    fn send(&self, shard: usize, socket: TcpStream, read: Bytes, connection: Link) {
        let shard = &self.shards[shard];
        shard.clients.fetch_add(1, Ordering::AcqRel);
        shard.mailbox.send(Mail::Adopt { socket, read, connection });
    }

    /// A port that listens on all addresses does not say to which of them a client came; its socket does.
    fn local_address(&self, socket: &TcpStream) -> SocketAddr {
        match self.asks_local {
            true => socket.local_addr().unwrap_or(self.listener),
            false => self.listener,
        }
    }

    /// A peer that is no balancer could say that it is anybody. Its connection is closed with the socket.
    fn note_stranger(&self, peer: SocketAddr) {
        self.metrics.refusals.add(RefusalReason::ProxyPeer, 1);
        if let Some(left_out) = self.strangers.ask() {
            tracing::warn!(
                %peer, left_out,
                "closed a connection that does not come from a balancer: add its network to proxy_protocol_from"
            );
        }
    }

    /// Whether the client is only to be told; `None`: there is not even room for that.
    fn admit(&self) -> Option<bool> {
        if self.connections.fetch_add(1, Ordering::AcqRel) < self.connections_max {
            return Some(false);
        }
        self.connections.fetch_sub(1, Ordering::AcqRel);
        if self.turned_away.fetch_add(1, Ordering::AcqRel) < TURNED_AWAY_MAX {
            return Some(true);
        }
        self.turned_away.fetch_sub(1, Ordering::AcqRel);
        None
    }

    /// Best effort: the socket is fresh, so its send buffer takes the answer; a peer that is gone needs none. One that
    /// has TLS or a balancer before it would not read this as an answer.
    fn answer_no_room(&self, mut socket: &TcpStream) {
        if self.edge.is_bare()
            && let Err(error) = socket.write_all(NO_ROOM)
        {
            tracing::debug!(%error, "a connection without a place was not told");
        }
    }

    /// The preferred shard, unless it holds more than the emptiest.
    fn choose(&self, preferred: usize) -> usize {
        let load = |at: usize| self.shards[at].clients.load(Ordering::Relaxed);
        let emptiest = (0..self.shards.len()).min_by_key(|&at| load(at)).unwrap_or(preferred);
        let least = load(emptiest);
        if load(preferred) > least + least / UNEVENNESS { emptiest } else { preferred }
    }
}

impl ShardDoor {
    pub(super) fn new(mailbox: Mailbox<Mail<Link, Command>>) -> Self {
        Self { mailbox, clients: AtomicU64::new(0) }
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("connections", &self.connections).finish_non_exhaustive()
    }
}
