//! Which link holds a tag: the one, one of a list, or the master of a slot.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::link::Link;
use crate::redis::contract::{Changed, LinkId, Route};
use crate::redis::slot::{SLOTS, slot_of, tag_in};
use crate::redis::url::Server;

/// The links and the spread of tags over them. Never changed, only replaced.
#[derive(Debug, Clone)]
pub(crate) struct Map {
    pub(crate) links: Vec<Arc<Link>>,
    pub(crate) spread: Spread,
}

#[derive(Debug, Clone)]
pub(crate) enum Spread {
    One,
    /// Hashes of the names, in the order of the links.
    List(Box<[u64]>),
    /// The position among the links of each slot's master, or [`NOWHERE`].
    Slots(Box<[u16]>),
}

/// A slot without a master. (A Cluster has at most 16,384 masters.)
const NOWHERE: u16 = u16::MAX;

impl Map {
    pub(crate) fn link_of(&self, tag: &str) -> Option<&Arc<Link>> {
        let position = match &self.spread {
            Spread::One => 0,
            Spread::List(names) => position_of(names, tag)?,
            Spread::Slots(slots) => usize::from(slots[usize::from(slot_of(tag.as_bytes()))]),
        };
        self.links.get(position)
    }

    pub(crate) fn route(&self, tag: &str) -> Option<Route> {
        let slot = matches!(self.spread, Spread::Slots(_)).then(|| slot_of(tag.as_bytes()));
        self.link_of(tag).map(|link| Route { link: link.id, slot })
    }

    /// A tag that the link holds, for its probe.
    pub(crate) fn tag_of(&self, link: LinkId) -> Option<String> {
        let Spread::Slots(slots) = &self.spread else { return Some("0".to_owned()) };
        let position = self.links.iter().position(|other| other.id == link)?;
        tag_in(|slot| usize::from(slots[usize::from(slot)]) == position)
    }

    pub(crate) fn owns(&self, link: LinkId, tag: &str) -> bool {
        match self.spread {
            Spread::Slots(_) => self.link_of(tag).is_some_and(|owner| owner.id == link),
            Spread::One | Spread::List(_) => true,
        }
    }

    pub(crate) fn node(&self, server: &Server) -> Option<&Arc<Link>> {
        self.links.iter().find(|link| link.is_node(server))
    }

    /// Slots that no link holds.
    pub(crate) fn slots_nowhere(&self) -> usize {
        match &self.spread {
            Spread::Slots(slots) => slots.iter().filter(|&&position| position == NOWHERE).count(),
            Spread::One | Spread::List(_) => 0,
        }
    }

    /// The same with one slot at another link. `None` if it is there already, or the link is not known.
    pub(crate) fn with_moved(&self, slot: u16, server: &Server) -> Option<Self> {
        let Spread::Slots(slots) = &self.spread else { return None };
        let position = self.links.iter().position(|link| link.is_node(server))?;
        let position = u16::try_from(position).ok()?;
        if *slots.get(usize::from(slot))? == position {
            return None;
        }
        let mut slots = slots.clone();
        slots[usize::from(slot)] = position;
        Some(Self { links: self.links.clone(), spread: Spread::Slots(slots) })
    }

    /// Which tags may live elsewhere than before.
    pub(crate) fn changed_since(&self, old: &Self) -> Changed {
        let (Spread::Slots(new_slots), Spread::Slots(old_slots)) = (&self.spread, &old.spread) else {
            return Changed::All;
        };
        let id = |map: &Self, position: u16| map.links.get(usize::from(position)).map(|link| link.id);
        let moved = (0..)
            .zip(new_slots.iter().zip(old_slots))
            .filter_map(|(slot, (new, before))| (id(self, *new) != id(old, *before)).then_some(slot));
        Changed::Slots(moved.collect())
    }

    /// Whether tags live at other links.
    pub(crate) fn differs_from(&self, other: &Self) -> bool {
        let ids = |map: &Self| map.links.iter().map(|link| link.id).collect::<Vec<_>>();
        let same_spread = match (&self.spread, &other.spread) {
            (Spread::Slots(ours), Spread::Slots(theirs)) => ours == theirs,
            _ => true,
        };
        !same_spread || ids(self) != ids(other)
    }
}

impl Spread {
    pub(crate) fn list(names: impl Iterator<Item = String>) -> Self {
        Self::List(names.map(|name| xxh3_64(name.as_bytes())).collect())
    }

    /// Ranges of slots and the positions of their masters.
    pub(crate) fn ranges(&self) -> Option<Vec<(u16, u16, usize)>> {
        let Self::Slots(slots) = self else { return None };
        let mut first = 0;
        let ranges = slots.chunk_by(|a, b| a == b).map(|same| {
            let range = (first, first + (same.len() - 1) as u16, usize::from(same[0]));
            first = first.wrapping_add(same.len() as u16);
            range
        });
        Some(ranges.filter(|(_, _, position)| *position != usize::from(NOWHERE)).collect())
    }

    /// From ranges of slots and the positions of their masters.
    pub(crate) fn slots(ranges: impl Iterator<Item = (u16, u16, usize)>) -> Self {
        let mut slots = vec![NOWHERE; usize::from(SLOTS)].into_boxed_slice();
        for (first, last, position) in ranges {
            let position = u16::try_from(position).unwrap_or(NOWHERE);
            if let Some(range) = slots.get_mut(usize::from(first)..=usize::from(last)) {
                range.fill(position);
            }
        }
        Self::Slots(slots)
    }
}

/// Rendezvous hashing: every server draws a number for the tag, the highest wins. A server that leaves the list moves
/// only its own tags. The draw is xxh3-64 (seed 0) over the hashes of name and tag, both little-endian: nothing is
/// allocated, and every node of every version draws the same.
fn position_of(names: &[u64], tag: &str) -> Option<usize> {
    let tag = xxh3_64(tag.as_bytes()).to_le_bytes();
    let draw = |name: u64| {
        let mut both = [0; 16];
        both[..8].copy_from_slice(&name.to_le_bytes());
        both[8..].copy_from_slice(&tag);
        xxh3_64(&both)
    };
    // Of equal draws the later server wins; both sides of a tie are the same on every node.
    (0..names.len()).max_by_key(|&position| draw(names[position]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio_util::sync::CancellationToken;

    use super::super::link::Place;
    use super::*;

    fn names(names: &[&str]) -> Box<[u64]> {
        names.iter().map(|name| xxh3_64(name.as_bytes())).collect()
    }

    /// Where a tag lives must not change with a version of this program: its history is there.
    #[test]
    fn golden_vectors_of_a_list() {
        assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2, "seed 0, as the reference implementation");
        let three = names(&["a:6379", "b:6379", "c:6379"]);
        let positions = ["news", "news:1", "news:2", "news:3", "a", "b", "c", "room-17"]
            .map(|tag| position_of(&three, tag).unwrap());
        assert_eq!(positions, [1, 2, 0, 0, 1, 2, 1, 0]);
    }

    #[test]
    fn a_list_spreads_evenly_and_moves_only_what_it_must() {
        let three = names(&["a:6379", "b:6379", "c:6379"]);
        let two = names(&["a:6379", "b:6379"]);
        let mut counts = [0; 3];
        for number in 0..30_000 {
            let tag = format!("news:{number}");
            let of_three = position_of(&three, &tag).unwrap();
            counts[of_three] += 1;
            if of_three < 2 {
                assert_eq!(position_of(&two, &tag), Some(of_three), "{tag}");
            }
        }
        // 10,000 each; six standard deviations are 490.
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
    }

    /// A slot that moved concerns the channels in it, and no others.
    #[test]
    fn only_what_moved_is_looked_at() {
        let servers = [1, 2].map(|port| Server { host: "a".into(), port });
        let link = |server: &Server| {
            let id = LinkId(server.port.into());
            Link::new(id, server.to_string().into(), Place::Node(server.clone()), &CancellationToken::new())
        };
        let spread = Spread::slots([(0, 8_191, 0), (8_192, 16_383, 1)].into_iter());
        let old = Map { links: servers.iter().map(link).collect(), spread };
        let new = old.with_moved(7, &servers[1]).unwrap();
        let moved = |new: &Map| match new.changed_since(&old) {
            Changed::Slots(slots) => slots.into_iter().collect::<Vec<_>>(),
            Changed::All => panic!("all of it"),
        };
        assert_eq!((moved(&new), moved(&old)), (vec![7], Vec::new()));
        assert!(old.with_moved(7, &servers[0]).is_none(), "it is there");
    }
}
