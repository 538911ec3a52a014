//! Wills of several nodes on one server: whatever is killed, away or back, each connection that was told has one end.
//! A failure names its seed; `SIMULATION_SEED=N` runs that seed alone, though what the server does between is not in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use super::{
    presence::LEASE,
    server::{Server, eventually},
};
use crate::{
    Channel, Control, Gap, Intake, PresenceEvent, Publication, Sink, Transition,
    redis::{contract::Commands, counters::Tallies, names::Prefix, nodes::Registry, wills::Wills},
};

/// What an application was told: how often each connection was connected, and which of these times ended.
#[derive(Default)]
struct Told(Mutex<BTreeMap<String, (u32, BTreeSet<u32>)>>);

impl Told {
    fn connected(&self, connection: &str) {
        self.0.lock().expect("no panic").entry(connection.to_owned()).or_default().0 += 1;
    }

    /// An end that was told already is the same event.
    fn ended(&self, connection: &str) {
        let mut told = self.0.lock().expect("no panic");
        let (times, ends) = told.entry(connection.to_owned()).or_default();
        ends.insert(*times);
    }

    /// Connections whose ends do not fit to whether they live.
    fn wrong(&self, living: &BTreeSet<String>) -> Vec<String> {
        let told = self.0.lock().expect("no panic");
        let is_wrong = |(connection, (times, ends)): &(&String, &(u32, BTreeSet<u32>))| {
            let expected = times - u32::from(living.contains(*connection));
            *ends != (1..=expected).collect::<BTreeSet<u32>>()
        };
        told.iter().filter(is_wrong).map(|wrong| format!("{wrong:?}")).collect()
    }
}

impl Sink for Told {
    fn publication(&self, _: &Channel, _: Arc<Publication>) -> Intake {
        Intake::Taken
    }
    fn gap(&self, _: &Channel, _: Gap) {}
    fn control(&self, _: Control) {}
    fn presence(&self, _: &Channel, _: Arc<PresenceEvent>) {}
    fn transition(&self, _: &Channel, _: Transition) {}
    fn will(&self, will: &str) {
        self.ended(will);
    }
    fn will_was_told(&self, will: &str) {
        self.connected(will);
    }
}

struct Node {
    registry: Arc<Registry>,
    wills: Arc<Wills>,
    connections: BTreeSet<String>,
}

impl Node {
    async fn start(server: &Arc<Server>, life: u64, told: &Arc<Told>) -> Self {
        let tallies = Arc::<Tallies>::default();
        let (commands, prefix) = (Arc::clone(server) as Arc<dyn Commands>, Prefix::default());
        let registry = Registry::new(commands.clone(), prefix.clone(), "n", life, LEASE, tallies.clone());
        let registry = Arc::new(registry);
        let sink = Arc::clone(told) as Arc<dyn Sink>;
        let wills = Wills::new(commands, prefix, Arc::clone(&registry), sink, tallies);
        let node = Self { registry, wills, connections: BTreeSet::new() };
        node.round().await;
        node
    }

    /// A round as the backplane makes it. False: the server was away.
    async fn round(&self) -> bool {
        if self.registry.renew(None).await.is_err() {
            return false;
        }
        let owed = self.registry.take_owed();
        if owed.lapsed {
            self.wills.begin_again(owed.has_lost_data);
        }
        self.wills.sweep();
        for instance in owed.ended {
            if self.wills.remove_instance(&instance).await.is_err()
                || self.registry.forget(&instance).await.is_err()
            {
                return false;
            }
        }
        true
    }

    async fn connect(&mut self, name: String, told: &Told) {
        self.wills.keep(&name, name.as_str().into()).await.ok();
        told.connected(&name);
        self.connections.insert(name);
    }

    fn disconnect(&mut self, told: &Told) {
        if let Some(name) = self.connections.pop_first() {
            // An application is told first. Here that would be a connection told again that has just ended; a gateway knows
            // which of its connections end.
            self.wills.take_back(&name);
            told.ended(&name);
        }
    }

    /// Its lease ends, as others see it.
    async fn end_lease(&self, server: &Server) {
        self.set_lease(server, 1).await;
    }

    async fn set_lease(&self, server: &Server, until_ms: u64) {
        let mut set = redis::cmd("HSET");
        set.arg("tidegate:{!nodes}:i").arg(self.registry.instance()).arg(until_ms);
        server.run::<u64>(&set).await;
    }

    async fn settle(&self, seed: &str) {
        let is_settled = async || self.round().await && self.wills.is_settled();
        eventually(&format!("{seed}: its wills are written"), is_settled, |is| *is).await;
    }
}

async fn simulate(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let (server, told) = (Server::start().await, Arc::<Told>::default());
    let mut nodes = Vec::new();
    for life in 0..3 {
        nodes.push(Node::start(&server, life, &told).await);
    }
    let (mut lives, mut names) = (3, 0..);
    for _ in 0..120 {
        let at = random.usize(..nodes.len());
        match random.u32(..20) {
            0..8 => {
                let name = format!("{seed}-{}", names.next().expect("a number"));
                nodes[at].connect(name, &told).await;
            }
            8..12 => nodes[at].disconnect(&told),
            12..15 => drop(nodes[at].round().await),
            // It was away for too long.
            15 => {
                nodes[at].end_lease(&server).await;
                server.make_sweep_due().await;
            }
            16 => {
                server.refuse(false);
                let dead = nodes.swap_remove(at);
                // What could not be written before a node dies is not known to anybody.
                dead.settle(&format!("seed {seed}")).await;
                dead.end_lease(&server).await;
                nodes.push(Node::start(&server, lives, &told).await);
                lives += 1;
            }
            17 => server.begin_session(),
            18 => server.refuse(true),
            _ => server.refuse(false),
        }
    }
    server.refuse(false);
    let living: BTreeSet<String> = nodes.iter().flat_map(|node| node.connections.iter().cloned()).collect();
    let settled = async || {
        for node in &nodes {
            node.round().await;
        }
        nodes.iter().all(|node| node.wills.is_settled())
    };
    for _ in 0..2 {
        eventually(&format!("seed {seed}: all is written"), &settled, |is| *is).await;
    }
    let wrong = async || {
        server.make_sweep_due().await;
        settled().await;
        told.wrong(&living)
    };
    eventually(&format!("seed {seed}"), wrong, Vec::is_empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_dies_each_connection_has_one_end() {
    if let Some(seed) = std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return simulate(seed).await;
    }
    let first = fastrand::u64(..);
    for seed in (0..8).map(|nth| first.wrapping_add(nth)) {
        simulate(seed).await;
    }
}

/// A round asks for the instance whose lease ended, and the registry takes it for a new one until the answer is read.
#[tokio::test]
async fn what_others_told_is_told_again_though_it_was_written_meanwhile() {
    let (server, told) = (Server::start().await, Arc::<Told>::default());
    let (mut node, other) = (Node::start(&server, 0, &told).await, Node::start(&server, 1, &told).await);
    node.connect("c".to_owned(), &told).await;
    node.end_lease(&server).await;
    assert!(other.round().await);
    node.set_lease(&server, 1 << 50).await;
    server.begin_session();
    node.wills.sweep();
    eventually("it is written", async || node.wills.is_settled(), |is| *is).await;
    node.end_lease(&server).await;
    node.settle("a node that was away").await;
    assert_eq!(told.wrong(&node.connections), [""; 0]);
}

/// A node that was away twice moves its wills on from the instance that it was in between.
#[tokio::test]
async fn an_instance_that_wrote_nothing_hands_its_wills_on() {
    let (server, told) = (Server::start().await, Arc::<Told>::default());
    let mut node = Node::start(&server, 0, &told).await;
    node.connect("c".to_owned(), &told).await;
    for _ in 0..2 {
        node.end_lease(&server).await;
        node.registry.renew(None).await.expect("the server answers");
        // What the round found is not taken, so the lease does not count yet: the wills are moved, and not written.
        node.wills.begin_again(false);
        node.wills.sweep();
        eventually("it was tried", async || !node.wills.is_busy(), |is| *is).await;
    }
    node.settle("a node that was away").await;
    assert_eq!(told.wrong(&node.connections), [""; 0]);
}

/// A server that took over without the last writes: nobody told what is missing.
#[tokio::test]
async fn what_the_server_lost_is_not_told_again_when_the_lease_ends_later() {
    let (server, told) = (Server::start().await, Arc::<Told>::default());
    let mut node = Node::start(&server, 0, &told).await;
    node.connect("c".to_owned(), &told).await;
    let wills = format!("tidegate:{{!nodes}}:w:{}", node.registry.instance());
    assert_eq!(server.run::<u64>(redis::cmd("DEL").arg(wills)).await, 1);
    server.begin_session();
    for _ in 0..2 {
        node.settle("a server that took over").await;
    }
    node.end_lease(&server).await;
    node.settle("a node that was away").await;
    assert_eq!(told.wrong(&node.connections), [""; 0]);
}
