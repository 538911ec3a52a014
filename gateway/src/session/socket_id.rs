//! Names of connections in Pusher's protocol: `A.B`. `A` is the process and its shard, `B` slot and generation, so a
//! shard knows its own by comparing, and nothing is stored.

use tidegate_backplane::Epoch;
use tidegate_ops::config::THREADS_MAX;
use tidegate_reactor::ConnectionId;

/// The names of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SocketIds {
    shard: u64,
}

/// A shard's number, of at most 64.
const SHARD_BITS: u32 = 6;

/// What JavaScript holds exactly: some clients take the two parts for numbers.
const BITS: u32 = 53;

const _: () = assert!(THREADS_MAX.get() <= 1 << SHARD_BITS);

impl SocketIds {
    /// `life` is random, and another one each time the process starts.
    pub(crate) fn new(life: Epoch, shard: usize) -> Self {
        let process = life.0 & ((1 << (BITS - SHARD_BITS)) - 1);
        Self { shard: process << SHARD_BITS | shard as u64 }
    }

    pub(crate) fn name(self, id: ConnectionId) -> String {
        let connection = u64::from(id.slot) << 32 | u64::from(id.generation);
        format!("{}.{connection}", self.shard)
    }

    /// The connection of a name, if it is one of this shard's.
    pub(crate) fn find(self, name: &str) -> Option<ConnectionId> {
        let (shard, connection) = name.split_once('.')?;
        if number(shard)? != self.shard {
            return None;
        }
        let connection = number(connection)?;
        Some(ConnectionId { slot: (connection >> 32) as u32, generation: connection as u32 })
    }
}

/// Digits only: `parse` would take a `+` too.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_finds_its_own_connections_only() {
        let life = Epoch(u64::MAX);
        let own = SocketIds::new(life, 63);
        for (slot, generation) in [(0, 1), (7, 0), (u32::MAX, u32::MAX)] {
            let id = ConnectionId { slot, generation };
            let name = own.name(id);
            assert_eq!(own.find(&name), Some(id), "{name}");
            assert!(name.split('.').all(|part| part.bytes().all(|byte| byte.is_ascii_digit())), "{name}");
            for other in [SocketIds::new(life, 62), SocketIds::new(Epoch(1), 63)] {
                assert_eq!(other.find(&name), None, "{name}");
            }
        }
        assert_eq!(own.shard, (1 << BITS) - 1);
        for name in
            ["", ".", "1", "1.2.3", "+1.2", "a.b", &format!("{}.", own.shard), &format!("{}.+1", own.shard)]
        {
            assert_eq!(own.find(name), None, "{name}");
        }
    }
}
