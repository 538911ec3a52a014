//! The limits of the node: how many connections may be here, how many from one address, how many handshakes a second.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use slab::Slab;
use tidegate_ops::budget::{AddressBudgets, SharedBudget, customer};

use crate::{config::Limits, metrics::HandshakeResult};

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

    /// The places of connections that are gone with a shard that failed. What they count as in the limits of their
    /// addresses is lost: the process is about to end.
    pub(crate) fn forget(&self, connections: u64) {
        self.connections.fetch_sub(connections, Ordering::AcqRel);
    }

    /// Whether the node has a handshake left, or when it will.
    pub(crate) fn check_handshake(&self) -> Result<(), Over> {
        self.handshakes.check(self.limits.handshakes()).map_err(|retry_after| Over::Rate { retry_after })
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

    pub(crate) fn take_address_handshake(&self, address: IpAddr) -> Result<(), Over> {
        self.address_handshakes.take(address).map_err(|retry_after| Over::AddressRate { retry_after })
    }

    /// Whether a connection counts for the one at this address.
    pub(crate) fn is_of(&self, key: AddressKey, ip: IpAddr) -> bool {
        lock(&self.addresses).entries.get(key.0 as usize).is_some_and(|(own, _)| *own == customer(ip))
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
        let ip = customer(ip);
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

    /// Whose place a connection has, for another process; `Some(None)`: nobody has said. `None`: it has none.
    pub(crate) fn moving(&self, key: AddressKey) -> Option<Option<IpAddr>> {
        match key {
            AddressKey::TURNED_AWAY => None,
            AddressKey::UNNAMED => Some(None),
            AddressKey(at) => Some(lock(&self.addresses).entries.get(at as usize).map(|(ip, _)| *ip)),
        }
    }

    /// Gives a connection of another process the place that it had there, whatever the limits say.
    pub(crate) fn go_on(&self, address: Option<IpAddr>) -> AddressKey {
        self.connections.fetch_add(1, Ordering::AcqRel);
        let Some(ip) = address else { return AddressKey::UNNAMED };
        let mut addresses = lock(&self.addresses);
        let Addresses { keys, entries } = &mut *addresses;
        let ip = customer(ip);
        let key = *keys.entry(ip).or_insert_with(|| entries.insert((ip, 0)) as u32);
        entries[key as usize].1 += 1;
        AddressKey(key)
    }

    /// A place for one that is only to be told that there is no room, if there still is any.
    pub(crate) fn turn_away(&self) -> Option<AddressKey> {
        let before = self.turned_away.fetch_add(1, Ordering::AcqRel);
        if before >= TURNED_AWAY_MAX {
            self.turned_away.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(AddressKey::TURNED_AWAY)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Whoever has one IPv6 address has 2^64 of them.
    #[test]
    fn the_addresses_of_one_customer_are_one() {
        let front = Front::new(Limits { connections_per_address: 2, connections: 10, ..Limits::default() });
        let admit = |ip: &str| front.admit(ip.parse().unwrap());
        let first = admit("2001:db8:0:1::1").unwrap();
        assert!(admit("2001:db8:0:1:ffff::2").is_ok());
        assert_eq!(admit("2001:db8:0:1::3"), Err(Over::Address));
        assert!(admit("2001:db8:0:2::1").is_ok(), "another network");
        front.release(first);
        assert!(admit("2001:db8:0:1::4").is_ok());
        assert!(admit("192.0.2.1").is_ok() && admit("::ffff:192.0.2.1").is_ok());
        assert_eq!(admit("192.0.2.1"), Err(Over::Address));
        assert!(admit("192.0.2.2").is_ok());
    }
}
