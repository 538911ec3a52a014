//! Clients that are asked to come to a node that has room: what one second's look at all of them needs, and what it finds.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::{Chooser, Node, Roster};
use crate::placement::{Fill, KeyHash};

/// One second's look. The shards walk over their clients with it, and leave in it whom to ask.
pub struct Filling {
    roster: Arc<Roster>,
    fill: Fill,
    /// Of the nodes, by [`Node::id`].
    indices: HashMap<u32, usize>,
    /// Of 2^32: a client that may be asked is, with this chance.
    chance: u32,
    /// Differs from second to second.
    salt: u64,
    asked: Mutex<Vec<(Arc<Node>, SocketAddr)>>,
}

impl Chooser {
    /// What there is to fill now; with `period`, each client that may be asked is asked once in it on average. `None` as long
    /// as nothing is to be done.
    pub fn filling(&self, period: Duration, now: Instant) -> Option<Filling> {
        let roster = self.roster.load_full();
        let node = |index: usize| &roster.nodes[index];
        let takes = |index: usize| {
            let node = node(index);
            !node.is_down() && !node.is_avoided(now) && node.load() < node.capacity.load(Relaxed)
        };
        let fill = Fill::of(&roster.view, |index| node(index).load(), takes)?;
        let indices = roster.nodes.iter().enumerate().map(|(index, node)| (node.id(), index)).collect();
        let seconds = u32::try_from(period.as_secs()).unwrap_or(u32::MAX).max(1);
        let (chance, salt) = (u32::MAX / seconds, self.common.ms(now));
        Some(Filling { roster, fill, indices, chance, salt, asked: Mutex::default() })
    }
}

impl Filling {
    /// Whether a client of a key, which is on a node, is to be asked to come back.
    pub fn is_asked(&self, key: KeyHash, on: &Node) -> bool {
        key.falls(self.salt, self.chance)
            && self
                .indices
                .get(&on.id())
                .is_some_and(|&from| self.fill.target(&self.roster.view, key, from).is_some())
    }

    /// Notes a client by this end of its connection to the node.
    pub fn ask(&self, node: &Arc<Node>, end: SocketAddr) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push((Arc::clone(node), end));
    }

    /// Whom to ask, by the name of their node.
    pub fn take_asked(&self) -> HashMap<Box<str>, Vec<SocketAddr>> {
        let asked = std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner));
        let mut by_node: HashMap<Box<str>, Vec<SocketAddr>> = HashMap::new();
        for (node, end) in asked {
            by_node.entry(node.name().into()).or_default().push(end);
        }
        by_node
    }
}

impl fmt::Debug for Filling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filling").field("fill", &self.fill).finish_non_exhaustive()
    }
}
