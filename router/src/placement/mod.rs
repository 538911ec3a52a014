//! Which node a key belongs to: weighted rendezvous hashing with bounded load.
//!
//! Pure: the same members and loads give the same answer on every router, platform and build. No clock, no I/O, no
//! floating point. `docs/adr/0009-placement.md` says why this method; `router/tests/placement.tsv` holds answers that
//! must never change.
//!
//! - `score`: the hash, and the cost of a pair of key and member.
//! - `bound`: how much load a member may have.
//! - `fill`: who comes to a member that has room.

mod bound;
mod fill;
mod score;

use std::num::NonZeroU32;

pub use bound::{Bound, LOAD_FLOOR, LoadFactor, LoadFactorError};
pub use fill::Fill;
pub use score::KeyHash;
use score::MemberHash;
use xxhash_rust::xxh3::Xxh3Default;

/// A node that clients can be brought to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Unique. The name is what is hashed: a node that comes back under its name gets its keys back.
    pub name: Box<str>,
    /// `HOST:PORT`. Not hashed.
    pub address: Box<str>,
    /// Share of the keys, relative to the other members.
    pub weight: NonZeroU32,
    /// Gets no new clients.
    pub draining: bool,
}

/// The members at one moment. Does not change; a change makes a new view.
#[derive(Debug)]
pub struct View {
    /// By name.
    members: Box<[Member]>,
    /// Of the members that are not draining, in the same order. Apart from them, so that a search reads 24 bytes
    /// per member in sequence.
    seats: Box<[Seat]>,
    weight_total: u64,
    digest: u64,
}

/// What a search needs to know of a member.
#[derive(Debug)]
struct Seat {
    hash: MemberHash,
    /// Index in `View::members`.
    member: u32,
}

/// The live members in the order of a key, the best first. Each step searches all members: O(n), without memory.
/// Most callers need one or two.
#[derive(Debug, Clone)]
pub struct Order<'v> {
    view: &'v View,
    key: KeyHash,
    last: Option<Rank>,
}

/// Where a member stands for a key: lower is better. The index decides between equals, which makes the order total.
type Rank = (u64, u32);

impl View {
    /// Takes members in any order. Of several with one name, the least in field order stays, on every router the
    /// same one.
    pub fn new(members: impl IntoIterator<Item = Member>) -> Self {
        let mut members: Vec<Member> = members.into_iter().collect();
        members.sort_unstable();
        members.dedup_by(|later, first| later.name == first.name);
        let seats: Box<[Seat]> = (0u32..)
            .zip(&members)
            .filter(|(_, member)| !member.draining)
            .map(|(index, member)| Seat { hash: MemberHash::new(&member.name, member.weight), member: index })
            .collect();
        let weight_total = members.iter().filter(|member| !member.draining).map(weight).sum();
        let digest = digest(&members);
        Self { members: members.into(), seats, weight_total, digest }
    }

    /// By name.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Whether a member has this name.
    pub fn has(&self, name: &str) -> bool {
        self.members.binary_search_by(|member| (*member.name).cmp(name)).is_ok()
    }

    /// Sum of the weights of the live members.
    pub fn weight_total(&self) -> u64 {
        self.weight_total
    }

    /// Of names, addresses and weights of the live members. Routers with equal digests give every key the same order,
    /// also while one of them still has clients on a member that the other has forgotten.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The live members, in the order in which this key prefers them.
    pub fn order(&self, key: &[u8]) -> Order<'_> {
        Order { view: self, key: KeyHash::new(key), last: None }
    }

    /// The first member in the key's order whose load, by its index in [`members`](Self::members), is under its
    /// bound. `None` only when no member is live: with a factor of at least 1, somebody is always under the bound.
    pub fn place(&self, key: &[u8], factor: LoadFactor, load: impl Fn(usize) -> u64) -> Option<&Member> {
        let total = self.live().map(&load).sum::<u64>();
        let bound = factor.bound(total.saturating_add(1), self.weight_total);
        let tier = |index: usize| Some(u8::from(!bound.admits(load(index), self.members[index].weight)));
        self.members.get(self.best(KeyHash::new(key), tier)?.index)
    }

    /// Indices of the live members.
    pub fn live(&self) -> impl Iterator<Item = usize> {
        self.seats.iter().map(|seat| seat.member as usize)
    }

    /// The member of the lowest tier, and in it the first in the key's order; `None` as tier leaves a member out. `tier`
    /// is asked only of members that could win, on average of a few: it may read an atomic, but should not be slow.
    pub(crate) fn best(&self, key: KeyHash, tier: impl Fn(usize) -> Option<u8>) -> Option<Best> {
        let mut best: Option<(u8, Rank)> = None;
        let mut first: Option<(Rank, u8)> = None;
        for seat in &self.seats {
            // While the best is of a higher tier, any cost may win.
            let limit = best.filter(|best| best.0 == 0).map_or(u64::MAX, |(_, (cost, _))| cost);
            let Some(cost) = seat.hash.cost_within(key, limit) else { continue };
            let rank = (cost, seat.member);
            if best.is_some_and(|(tier, best)| tier == 0 && best <= rank) {
                continue;
            }
            let Some(tier) = tier(seat.member as usize) else { continue };
            if best.is_none_or(|best| (tier, rank) < best) {
                best = Some((tier, rank));
            }
            if first.is_none_or(|first| rank < first.0) {
                first = Some((rank, tier));
            }
        }
        let ((_, (_, index)), ((_, first), first_tier)) = (best?, first?);
        Some(Best { index: index as usize, first: first as usize, first_tier })
    }
}

/// What a search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Best {
    pub(crate) index: usize,
    /// The first in the key's order, whatever its tier.
    pub(crate) first: usize,
    pub(crate) first_tier: u8,
}

impl<'v> Iterator for Order<'v> {
    type Item = &'v Member;

    fn next(&mut self) -> Option<&'v Member> {
        let ranks = self.view.seats.iter().map(|seat| (seat.hash.cost(self.key), seat.member));
        let next = ranks.filter(|rank| self.last.is_none_or(|last| *rank > last)).min()?;
        self.last = Some(next);
        self.view.members.get(next.1 as usize)
    }
}

fn weight(member: &Member) -> u64 {
    u64::from(member.weight.get())
}

/// Lengths stand before the texts, so that no two lists of members are written the same.
fn digest(members: &[Member]) -> u64 {
    let mut hash = Xxh3Default::new();
    for member in members.iter().filter(|member| !member.draining) {
        for text in [&member.name, &member.address] {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        hash.update(&member.weight.get().to_le_bytes());
    }
    hash.digest()
}
