//! The nodes as they are now: which there are, how loaded, which refused; and in what order to try them for a key.
//!
//! Proxy shards, assign and the members' task share one [`Chooser`]. Choosing takes no lock.

mod filling;

use std::{
    fmt,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

pub use self::filling::Filling;

use crate::placement::{Bound, KeyHash, LoadFactor, Member, View};

/// Chooses nodes for keys.
pub struct Chooser {
    roster: ArcSwap<Roster>,
    /// Held while a roster is replaced: two sources of members must not undo each other's work.
    update: Mutex<()>,
    factor: LoadFactor,
    common: Arc<Common>,
    on_lost: OnceLock<LostHook>,
}

/// What a source of members knows of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Draining too when it is down: neither gets new clients.
    pub member: Member,
    /// It does not answer.
    pub is_down: bool,
    /// It has not for so long that its clients are cut.
    pub is_lost: bool,
    /// What the host of `member.address` resolves to.
    pub socket: SocketAddr,
    /// Connections of clients, all routers' and direct ones. `None`: this source does not know, so that a router
    /// counts its own.
    pub connections: Option<u64>,
    /// Connections that it takes at most. `None`: this source does not know.
    pub capacity: Option<u64>,
    /// Where it takes sockets over, if it is on this machine and does.
    pub handover: Option<Box<Path>>,
}

/// A node. Stays the same while members come and go, as long as its name is among them.
#[derive(Debug)]
pub struct Node {
    id: u32,
    name: Box<str>,
    location: ArcSwap<Location>,
    is_down: AtomicBool,
    is_lost: AtomicBool,
    /// Its load is part of `Common::total`.
    is_counted: AtomicBool,
    /// Connections that it takes at most.
    capacity: AtomicU64,
    /// Connections that the source reported; [`UNREPORTED`] when it does not.
    reported: AtomicU64,
    /// Claims that are held.
    own: AtomicI64,
    /// Placements less departures that the report cannot have yet: since the last [`Chooser::tick`], and in the one
    /// before.
    recent: [AtomicI64; 2],
    /// Refusals without a success between them.
    refusals: AtomicU32,
    /// When the last of them was counted; milliseconds of `Common::begin`.
    refused_at_ms: AtomicU64,
    /// Until then the node is tried last; milliseconds of `Common::begin`.
    avoided_until_ms: AtomicU64,
    common: Arc<Common>,
}

/// Where a node is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// `HOST:PORT`, as the source said.
    pub address: Box<str>,
    pub socket: SocketAddr,
    /// Where sockets are handed over to it.
    pub handover: Option<Box<Path>>,
}

/// Told each node that is no longer a member, or is lost; called without locks of the chooser that a choice
/// needs.
pub type LostHook = Box<dyn Fn(&Arc<Node>) + Send + Sync>;

/// The nodes for one key, in the order in which to try them: first those that have room and answer, then those that are
/// over their bound, then those that refused a moment ago, then those that have as many connections as they take; in
/// each group in the key's own order. Ends after every node that takes clients. The first one is what assign answers.
#[derive(Debug)]
pub struct Candidates {
    roster: Arc<Roster>,
    key: KeyHash,
    bound: Bound,
    now_ms: u64,
    last: Option<usize>,
    /// Those before `last`. Mostly empty, and then not on the heap.
    tried: Vec<usize>,
    /// The key is the client's own: a node that is full is another than it belongs to.
    belongs: bool,
    passed_over: Option<PassedOver>,
}

/// Why a key's first node was not the first candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassedOver {
    /// It is over its bound, or has as many connections as it takes.
    Full,
    /// It refused connections a moment ago.
    Avoided,
}

/// One client's place on a node, from before the connect until the connection has ended: the node's load counts it.
/// Dropping it gives the place back.
#[derive(Debug)]
#[must_use = "dropping it gives the place back"]
pub struct Claim(Arc<Node>);

/// The view, and the nodes by the same index.
#[derive(Debug)]
struct Roster {
    view: View,
    nodes: Box<[Arc<Node>]>,
}

/// What nodes share with their chooser.
#[derive(Debug)]
struct Common {
    begin: Instant,
    /// Load of the live nodes. Follows claims at once, and is summed anew by each tick.
    total: AtomicI64,
    /// Nodes made so far.
    nodes: AtomicU32,
}

const UNREPORTED: u64 = u64::MAX;

/// How long a node is tried last after its first refusal; doubled by each further one, up to [`AVOIDED_MAX`]. A second is
/// longer than a process takes to bind its port again, and shorter than a client's patience.
const AVOIDED_FIRST: Duration = Duration::from_secs(1);

/// A node that came back is found by then, also when its source of members never noticed that it was away.
const AVOIDED_MAX: Duration = Duration::from_secs(16);

/// While one client tries a node that refused, the others stay away: as long as a connect may take, 2 s.
const TRIAL: Duration = Duration::from_secs(2);

impl Chooser {
    /// Without nodes, until the first [`update`](Self::update).
    pub fn new(factor: LoadFactor) -> Self {
        Self {
            roster: ArcSwap::from_pointee(Roster { view: View::new([]), nodes: Box::default() }),
            update: Mutex::new(()),
            factor,
            common: Arc::new(Common {
                begin: Instant::now(),
                total: AtomicI64::new(0),
                nodes: AtomicU32::new(0),
            }),
            on_lost: OnceLock::new(),
        }
    }

    /// Sets who is told of lost nodes; only the first call counts.
    pub fn on_lost(&self, hook: LostHook) {
        self.on_lost.get_or_init(|| hook);
    }

    /// The nodes to try for a key.
    pub fn candidates(&self, key: &[u8], now: Instant) -> Candidates {
        self.within(self.factor, key, now)
    }

    /// The same for a client that has no key, and gets another each time it comes (`key`): it belongs nowhere, so it is
    /// brought to a node that has no more than its share. One that is asked to come back to a node that has room is
    /// brought there by that.
    pub fn candidates_anywhere(&self, key: &[u8], now: Instant) -> Candidates {
        Candidates { belongs: false, ..self.within(LoadFactor::EVEN, key, now) }
    }

    fn within(&self, factor: LoadFactor, key: &[u8], now: Instant) -> Candidates {
        let roster = self.roster.load_full();
        let total = self.common.total.load(Relaxed).max(0).unsigned_abs();
        let bound = factor.bound(total.saturating_add(1), roster.view.weight_total());
        Candidates {
            roster,
            key: KeyHash::new(key),
            bound,
            now_ms: self.common.ms(now),
            last: None,
            tried: Vec::new(),
            belongs: true,
            passed_over: None,
        }
    }

    /// Takes the members as a source sees them now. Returns whether the view is another than before.
    pub fn update(&self, mut observed: Vec<Observed>) -> bool {
        let _one_at_a_time = self.update.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.roster.load_full();
        // As `View::new` does, so that both have the same indices.
        observed.sort_by(|one, other| one.member.cmp(&other.member));
        observed.dedup_by(|later, first| later.member.name == first.member.name);
        let view = View::new(observed.iter().map(|one| one.member.clone()));
        debug_assert!(view.members().iter().eq(observed.iter().map(|one| &one.member)));
        let mut lost = Vec::new();
        let node_of = |one: &Observed| {
            let node = old.node(&one.member.name).unwrap_or_else(|| Arc::new(Node::new(one, &self.common)));
            if node.observe(one) {
                lost.push(Arc::clone(&node));
            }
            node
        };
        let nodes = observed.iter().map(node_of).collect();
        lost.extend(old.nodes.iter().filter(|node| !view.has(&node.name)).cloned());
        let changed = view.members() != old.view.members();
        if changed {
            self.roster.store(Arc::new(Roster { view, nodes }));
        }
        self.count_live(&old);
        if let Some(hook) = self.on_lost.get() {
            lost.iter().for_each(hook);
        }
        changed
    }

    /// A second has passed: what was placed before the last tick is in the reports by now.
    pub fn tick(&self) {
        let _one_at_a_time = self.update.lock().unwrap_or_else(PoisonError::into_inner);
        for node in &self.roster.load().nodes {
            node.recent[1].store(node.recent[0].swap(0, Relaxed), Relaxed);
        }
        self.sum();
    }

    /// All members in order of their names, with their nodes.
    pub fn members(&self) -> Vec<(Member, Arc<Node>)> {
        let roster = self.roster.load();
        roster.view.members().iter().cloned().zip(roster.nodes.iter().cloned()).collect()
    }

    /// See [`View::digest`].
    pub fn digest(&self) -> u64 {
        self.roster.load().view.digest()
    }

    /// Whether any node takes clients.
    pub fn has_live(&self) -> bool {
        self.roster.load().view.live().next().is_some()
    }

    /// What a node that is live no longer has is no part of the total from now on: neither is what it loses.
    fn count_live(&self, old: &Roster) {
        let roster = self.roster.load();
        let live: Vec<&Arc<Node>> = roster.view.live().map(|index| &roster.nodes[index]).collect();
        let is_live = |node: &Arc<Node>| live.iter().any(|other| Arc::ptr_eq(other, node));
        let gone = old.nodes.iter().chain(&roster.nodes).filter(|node| !is_live(node));
        gone.for_each(|node| node.is_counted.store(false, Relaxed));
        live.iter().for_each(|node| node.is_counted.store(true, Relaxed));
        self.sum();
    }

    /// Claims made meanwhile may be missed; the next tick has them.
    fn sum(&self) {
        let roster = self.roster.load();
        let total = roster.view.live().map(|index| roster.nodes[index].load()).sum::<u64>();
        self.common.total.store(i64::try_from(total).unwrap_or(i64::MAX), Relaxed);
    }
}

impl fmt::Debug for Chooser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chooser")
            .field("roster", &self.roster)
            .field("factor", &self.factor)
            .finish_non_exhaustive()
    }
}

impl Roster {
    fn node(&self, name: &str) -> Option<Arc<Node>> {
        let index = self.view.members().binary_search_by(|member| (*member.name).cmp(name)).ok()?;
        self.nodes.get(index).cloned()
    }
}

impl Candidates {
    /// The key whose they are.
    pub fn key(&self) -> KeyHash {
        self.key
    }

    /// Why the last candidate was not the first of those left in the key's own order, if so.
    pub fn passed_over(&self) -> Option<PassedOver> {
        self.passed_over
    }

    /// 0: has room and answers. 1: is over its bound. 2: refused a moment ago. 3: takes no more, as was reported: last,
    /// because the report may be a second old. `None`: was tried.
    fn tier(&self, index: usize) -> Option<u8> {
        if self.last == Some(index) || self.tried.contains(&index) {
            return None;
        }
        let node = &self.roster.nodes[index];
        if node.avoided_until_ms.load(Relaxed) > self.now_ms {
            return Some(2);
        }
        let (weight, load) = (self.roster.view.members()[index].weight, node.load());
        if load >= node.capacity.load(Relaxed) {
            return Some(3);
        }
        Some(u8::from(!self.bound.admits(load, weight)))
    }
}

impl Iterator for Candidates {
    type Item = Arc<Node>;

    fn next(&mut self) -> Option<Arc<Node>> {
        if let Some(last) = self.last.take() {
            self.tried.push(last);
        }
        let best = self.roster.view.best(self.key, |index| self.tier(index))?;
        self.passed_over = match best.first_tier {
            _ if best.first == best.index => None,
            2 => Some(PassedOver::Avoided),
            _ => self.belongs.then_some(PassedOver::Full),
        };
        self.last = Some(best.index);
        self.roster.nodes.get(best.index).cloned()
    }
}

impl Node {
    fn new(observed: &Observed, common: &Arc<Common>) -> Self {
        Self {
            id: common.nodes.fetch_add(1, Relaxed),
            name: observed.member.name.clone(),
            location: ArcSwap::from_pointee(Location::of(observed)),
            is_down: AtomicBool::new(false),
            is_lost: AtomicBool::new(false),
            is_counted: AtomicBool::new(false),
            capacity: AtomicU64::new(u64::MAX),
            reported: AtomicU64::new(UNREPORTED),
            own: AtomicI64::new(0),
            recent: Default::default(),
            refusals: AtomicU32::new(0),
            refused_at_ms: AtomicU64::new(0),
            avoided_until_ms: AtomicU64::new(0),
            common: Arc::clone(common),
        }
    }

    /// A number that no other node of this process has or had.
    pub fn id(&self) -> u32 {
        self.id
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn location(&self) -> Arc<Location> {
        self.location.load_full()
    }

    /// Where to connect to.
    pub fn socket(&self) -> SocketAddr {
        self.location.load().socket
    }

    /// Connections of clients, as far as is known.
    pub fn load(&self) -> u64 {
        let base = match self.reported.load(Relaxed) {
            UNREPORTED => self.own.load(Relaxed).max(0).unsigned_abs(),
            reported => reported,
        };
        base.saturating_add_signed(self.recent())
    }

    /// Claims that are held: clients of this router on this node.
    pub fn claims(&self) -> u64 {
        self.own.load(Relaxed).max(0).unsigned_abs()
    }

    /// Whether its source of members says that it does not answer.
    pub fn is_down(&self) -> bool {
        self.is_down.load(Relaxed)
    }

    /// Whether it has not answered for so long that its clients are cut.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Relaxed)
    }

    /// Whether it is tried last because it refused.
    pub fn is_avoided(&self, now: Instant) -> bool {
        self.avoided_until_ms.load(Relaxed) > self.common.ms(now)
    }

    /// Counts a client that this router is about to connect. Drop the claim when the connection has ended.
    pub fn claim(self: &Arc<Self>, now: Instant) -> Claim {
        self.own.fetch_add(1, Relaxed);
        if self.reported.load(Relaxed) != UNREPORTED {
            self.recent[0].fetch_add(1, Relaxed);
        }
        self.add_to_total(1);
        if self.refusals.load(Relaxed) > 0 {
            self.avoid_for(TRIAL, now);
        }
        Claim(Arc::clone(self))
    }

    /// Counts a client that was connected before this process began: the node's report has it.
    pub fn claim_reported(self: &Arc<Self>) -> Claim {
        self.own.fetch_add(1, Relaxed);
        if self.reported.load(Relaxed) == UNREPORTED {
            self.add_to_total(1);
        }
        Claim(Arc::clone(self))
    }

    /// Placements less departures that the report cannot have yet.
    pub fn recent(&self) -> i64 {
        self.recent.iter().map(|recent| recent.load(Relaxed)).sum()
    }

    /// Counts those of a process before this one.
    pub fn note_recent(&self, clients: i64) {
        self.recent[0].fetch_add(clients, Relaxed);
        self.add_to_total(clients);
    }

    /// Counts a client that was told this node's address: until reports have it, or for two ticks where there are
    /// none.
    pub fn note_assigned(&self) {
        self.recent[0].fetch_add(1, Relaxed);
        self.add_to_total(1);
    }

    fn add_to_total(&self, clients: i64) {
        if self.is_counted.load(Relaxed) {
            self.common.total.fetch_add(clients, Relaxed);
        }
    }

    /// Another address is another process, which has refused nobody yet. Returns whether the node was lost now.
    fn observe(&self, observed: &Observed) -> bool {
        self.is_down.store(observed.is_down, Relaxed);
        let was_lost = self.is_lost.swap(observed.is_lost, Relaxed);
        self.capacity.store(observed.capacity.unwrap_or(u64::MAX), Relaxed);
        self.reported.store(observed.connections.unwrap_or(UNREPORTED), Relaxed);
        let location = Location::of(observed);
        if **self.location.load() != location {
            self.location.store(Arc::new(location));
            self.refusals.store(0, Relaxed);
            self.avoided_until_ms.store(0, Relaxed);
        }
        observed.is_lost && !was_lost
    }

    fn avoid_for(&self, time: Duration, now: Instant) {
        self.avoided_until_ms.fetch_max(self.common.ms(now + time), Relaxed);
    }
}

impl Claim {
    pub fn node(&self) -> &Arc<Node> {
        &self.0
    }

    /// The node accepted the connection.
    pub fn connected(&self) {
        if self.0.refusals.swap(0, Relaxed) > 0 {
            self.0.avoided_until_ms.store(0, Relaxed);
        }
    }

    /// The client is the node's own from now on: its next report has it.
    pub fn handed_over(self) {
        self.0.note_assigned();
    }

    /// The node refused the connection, or did not answer in time: it is tried last for a while. What failed beside a
    /// failure that was counted, `asked` before it, is the same failure.
    pub fn refused(self, asked: Instant, now: Instant) {
        let node = &self.0;
        let (asked_ms, now_ms) = (node.common.ms(asked), node.common.ms(now));
        let counted_ms = node.refused_at_ms.load(Relaxed);
        let refusals = node.refusals.load(Relaxed);
        if refusals > 0 && asked_ms <= counted_ms {
            return;
        }
        // Whoever is not the first to say so has failed beside the first.
        if node.refused_at_ms.compare_exchange(counted_ms, now_ms.max(1), Relaxed, Relaxed).is_ok() {
            node.refusals.store(refusals.saturating_add(1), Relaxed);
            node.avoid_for((AVOIDED_FIRST * (1 << refusals.min(8))).min(AVOIDED_MAX), now);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.own.fetch_sub(1, Relaxed);
        if self.0.reported.load(Relaxed) != UNREPORTED {
            self.0.recent[0].fetch_sub(1, Relaxed);
        }
        self.0.add_to_total(-1);
    }
}

impl Location {
    fn of(observed: &Observed) -> Self {
        Self {
            address: observed.member.address.clone(),
            socket: observed.socket,
            handover: observed.handover.clone(),
        }
    }
}

impl Common {
    fn ms(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.begin).as_millis()).unwrap_or(u64::MAX)
    }
}
