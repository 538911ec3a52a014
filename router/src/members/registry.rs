//! The nodes that announce themselves on the backplane.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use tidegate_backplane::{Backplane, NodeRecord};
use tokio::time::{Instant, timeout};

use super::{MembersError, Observation, listing::resolve, member, names::Names, now, setting::HostPort};
use crate::{chooser::Observed, metrics::Metrics};

/// Reads the registry of a backplane.
pub(super) struct Registry {
    backplane: Arc<dyn Backplane>,
    names: Names,
    held: Held,
    /// The last address of each host and port.
    sockets: HashMap<Box<str>, SocketAddr>,
}

/// What was read, and what has just gone.
#[derive(Debug, Default)]
struct Held(HashMap<Box<str>, Sighting>);

#[derive(Debug, Clone)]
struct Sighting {
    record: NodeRecord,
    seen: Instant,
}

/// How long a node stays that is missing from an answer. A registry that lost its data (a restarted Redis, a failover)
/// answers with nobody, then with one node after the other, as each announces itself within a second of its own
/// reconnect. Whoever believed it would move all clients to the first. A node that died was in the registry until
/// its lease ended, and is passed over because it refuses; 5 s more change little.
const HOLD: Duration = Duration::from_secs(5);

/// The backplane answers within 2 s, or says that it is away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

impl Registry {
    pub(super) fn new(backplane: Arc<dyn Backplane>, names: Names) -> Self {
        Self { backplane, names, held: Held::default(), sockets: HashMap::new() }
    }

    pub(super) async fn observe(&mut self, metrics: &Metrics) -> Result<Observation, MembersError> {
        let nodes = timeout(ANSWER_TIMEOUT, self.backplane.nodes())
            .await
            .map_err(|_| MembersError::Timeout(ANSWER_TIMEOUT))??;
        let records = self.held.take(nodes, now());
        let (mut observed, mut outcome, mut unresolved) = (Vec::new(), Ok(()), 0);
        let mut sockets = HashMap::new();
        for record in records {
            let before = self.sockets.get(&record.address).copied();
            let resolved = match HostPort::parse(&record.address) {
                Some(place) => resolve(&self.names, &place, before).await,
                None => Ok(None),
            };
            let socket = resolved.unwrap_or_else(|error| {
                outcome = Err(error.into());
                before
            });
            let Some(socket) = socket else {
                unresolved += 1;
                continue;
            };
            sockets.insert(record.address.clone(), socket);
            observed.push(of_record(&record, socket));
        }
        self.sockets = sockets;
        metrics.unresolved.set(unresolved);
        Ok((observed, outcome))
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("held", &self.held).finish_non_exhaustive()
    }
}

impl Held {
    /// The nodes that were answered, and those that are missing since less than [`HOLD`]. A node that drained before it
    /// went has said that it goes, and is not held.
    fn take(&mut self, nodes: Vec<NodeRecord>, now: Instant) -> Vec<NodeRecord> {
        for record in nodes {
            self.0.insert(record.name.clone(), Sighting { record, seen: now });
        }
        self.0.retain(|_, sighting| {
            sighting.seen == now || (!sighting.record.draining && now - sighting.seen < HOLD)
        });
        self.0.values().map(|sighting| sighting.record.clone()).collect()
    }
}

/// The weight is the capacity: a node that takes twice the connections gets twice the keys.
fn of_record(record: &NodeRecord, socket: SocketAddr) -> Observed {
    Observed {
        member: member(&record.name, &record.address, record.capacity, record.draining),
        is_down: false,
        socket,
        connections: Some(record.connections),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, draining: bool) -> NodeRecord {
        NodeRecord {
            name: name.into(),
            address: "127.0.0.1:8000".into(),
            zone: None,
            version: "1".into(),
            connections: 0,
            capacity: 100,
            draining,
        }
    }

    #[test]
    fn who_is_missing_stays_for_a_while() {
        let begin = Instant::now();
        let mut held = Held::default();
        let mut check = |ms: u64, nodes: Vec<NodeRecord>, expect: &[&str]| {
            let found = held.take(nodes, begin + Duration::from_millis(ms));
            let mut names: Vec<_> = found.iter().map(|record| &*record.name).collect();
            names.sort_unstable();
            assert_eq!(names, expect, "{ms} ms");
        };
        check(0, vec![node("a", false), node("b", false), node("c", false)], &["a", "b", "c"]);
        check(1_000, vec![], &["a", "b", "c"]);
        check(2_000, vec![node("b", false)], &["a", "b", "c"]);
        check(3_000, vec![node("b", true), node("c", false)], &["a", "b", "c"]);
        check(4_000, vec![node("c", false)], &["a", "c"]);
        check(5_000, vec![node("c", false)], &["c"]);
        check(9_999, vec![], &["c"]);
        check(10_000, vec![], &[]);
    }
}
