//! The front door: how many connections may be here, how many from one address, how many handshakes a second.

use std::{
    collections::{HashMap, hash_map::Entry},
    io::Write,
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use slab::Slab;
use tidegate_ops::{
    budget::{AddressBudgets, SharedBudget},
    edge::{Edge, Preamble},
};
use tidegate_reactor::{Intake, Mail, Mailbox};

use crate::{
    config::Limits,
    metrics::{HandshakeResult, Metrics},
    session::Session,
    shard::Command,
};

/// What a connection counts as; given back with [`Front::release`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AddressKey(u32);

impl AddressKey {
    /// Over a limit, let in only to be told so; counted apart.
    const TURNED_AWAY: Self = Self(u32::MAX);
    /// It has its place in the node's limit; whose address it is will be said, or never.
    pub(crate) const UNNAMED: Self = Self(u32::MAX - 1);
}

/// Which limit stands in the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Over {
    Node,
    Address,
    Rate {
        retry_after: Duration,
    },
    /// Handshakes of one address.
    AddressRate {
        retry_after: Duration,
    },
}

/// The node's limits and what is used of them.
#[derive(Debug)]
pub(crate) struct Front {
    limits: Limits,
    connections: AtomicU64,
    /// Connections that are only told that there is no room.
    turned_away: AtomicU32,
    addresses: Mutex<Addresses>,
    handshakes: SharedBudget,
    address_handshakes: AddressBudgets,
}

#[derive(Debug, Default)]
struct Addresses {
    keys: HashMap<IpAddr, u32>,
    entries: Slab<(IpAddr, u32)>,
}

/// Connections over a limit that may stay until they have been told, in the reserve of descriptors (see
/// `limits.connections`). More are closed at once, with a prepared answer.
const TURNED_AWAY_MAX: u32 = 64;

/// What a connection is sent for which there is no descriptor or no place.
const NO_ROOM: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

impl Front {
    pub(crate) fn new(limits: Limits) -> Self {
        let address_handshakes = AddressBudgets::new(limits.address_handshakes());
        Self {
            limits,
            connections: AtomicU64::new(0),
            turned_away: AtomicU32::new(0),
            addresses: Mutex::default(),
            handshakes: SharedBudget::default(),
            address_handshakes,
        }
    }

    /// Connections that count: WebSocket, event stream, HTTP, and those still in their handshake.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn connections_max(&self) -> u64 {
        u64::from(self.limits.connections)
    }

    /// Gives a connection's place back.
    pub(crate) fn release(&self, key: AddressKey) {
        if key == AddressKey::TURNED_AWAY {
            self.turned_away.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        self.connections.fetch_sub(1, Ordering::AcqRel);
        if key == AddressKey::UNNAMED {
            return;
        }
        let mut addresses = lock(&self.addresses);
        let (ip, count) = &mut addresses.entries[key.0 as usize];
        *count -= 1;
        if *count == 0 {
            let ip = *ip;
            addresses.keys.remove(&ip);
            addresses.entries.remove(key.0 as usize);
            if addresses.keys.capacity() > 1024 && addresses.keys.len() < addresses.keys.capacity() / 4 {
                addresses.keys.shrink_to_fit();
                addresses.entries.shrink_to_fit();
            }
        }
    }

    /// Takes one of the node's handshakes, or says when there will be one.
    pub(crate) fn take_handshake(&self) -> Result<(), Over> {
        self.handshakes.take(self.limits.handshakes(), 1).map_err(|retry_after| Over::Rate { retry_after })
    }

    /// Takes one of the handshakes of a connection's address, if it is known whose it is.
    pub(crate) fn take_handshake_of(&self, key: AddressKey) -> Result<(), Over> {
        let address = match key {
            AddressKey::TURNED_AWAY | AddressKey::UNNAMED => return Ok(()),
            AddressKey(at) => lock(&self.addresses).entries[at as usize].0,
        };
        self.take_address_handshake(address)
    }

    fn take_address_handshake(&self, address: IpAddr) -> Result<(), Over> {
        self.address_handshakes.take(address).map_err(|retry_after| Over::AddressRate { retry_after })
    }

    /// Gives a connection its place in both limits.
    pub(crate) fn admit(&self, ip: IpAddr) -> Result<AddressKey, Over> {
        self.admit_unnamed()?;
        self.name(ip).inspect_err(|_| self.release(AddressKey::UNNAMED))
    }

    /// Gives a connection its place in the node's limit.
    pub(crate) fn admit_unnamed(&self) -> Result<AddressKey, Over> {
        if self.connections.fetch_add(1, Ordering::AcqRel) >= self.connections_max() {
            self.connections.fetch_sub(1, Ordering::AcqRel);
            return Err(Over::Node);
        }
        Ok(AddressKey::UNNAMED)
    }

    /// Gives a connection that has a place in the node's limit one in its address's, too.
    pub(crate) fn name(&self, ip: IpAddr) -> Result<AddressKey, Over> {
        let mut addresses = lock(&self.addresses);
        let Addresses { keys, entries } = &mut *addresses;
        let key = match keys.entry(ip) {
            Entry::Vacant(vacant) => *vacant.insert(entries.insert((ip, 1)) as u32),
            Entry::Occupied(occupied) => {
                let key = *occupied.get();
                let count = &mut entries[key as usize].1;
                let max = self.limits.connections_per_address;
                if max > 0 && *count >= max {
                    return Err(Over::Address);
                }
                *count += 1;
                key
            }
        };
        Ok(AddressKey(key))
    }

    fn turn_away(&self) -> Option<AddressKey> {
        let before = self.turned_away.fetch_add(1, Ordering::AcqRel);
        if before >= TURNED_AWAY_MAX {
            self.turned_away.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(AddressKey::TURNED_AWAY)
    }
}

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
    pub(crate) mailbox: Mailbox<Mail<Session, Command>>,
    /// Connections the shard has, and those on their way to it.
    pub(crate) connections: Arc<AtomicU64>,
}

/// Takes connections from the acceptor.
pub(crate) struct Doorkeeper {
    pub(crate) front: Arc<Front>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) dealer: Arc<Dealer>,
    pub(crate) edge: Arc<Edge>,
}

impl Dealer {
    pub(crate) fn new(shards: Vec<ShardDoor>, started: Instant) -> Self {
        Self { shards, last: AtomicUsize::new(0), started }
    }

    pub(crate) fn door(&self, shard: usize) -> &ShardDoor {
        &self.shards[shard]
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
        let load = |door: &ShardDoor| door.connections.load(Ordering::Relaxed);
        let least = self.shards.iter().map(load).min().unwrap_or(0);
        // A little unevenness is cheaper than looking for the emptiest each time under churn.
        let chosen = match load(&self.shards[next]) <= least + 16 {
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
        let admitted = match self.edge.names_later(peer) {
            true => self.front.admit_unnamed(),
            // A TLS handshake costs more than all that may follow it.
            false if self.edge.tls.is_some() => {
                self.front.take_address_handshake(peer).and_then(|()| self.front.admit(peer))
            }
            false => self.front.admit(peer),
        };
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

impl Over {
    pub(crate) fn result(self) -> HandshakeResult {
        match self {
            Self::Node => HandshakeResult::NodeLimit,
            Self::Address => HandshakeResult::AddressLimit,
            Self::Rate { .. } => HandshakeResult::RateLimit,
            Self::AddressRate { .. } => HandshakeResult::AddressRate,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
