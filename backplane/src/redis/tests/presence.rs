//! Presence of several instances on one server: against the model that the memory backplane is, and what happens when
//! nodes and data are lost. A connection `a.1` is of the user `a`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};

use super::server::{Server, eventually};
use crate::{
    Backplane as _, Channel, Control, Gap, Intake, Join, JoinError, Member, MemoryBackplane, MemoryOptions,
    PresenceEvent, Publication, Sink, Sums, Transition,
    redis::{contract::Commands, counters::Tallies, names::Prefix, nodes::Registry, presence::Presence},
};

pub(super) const LEASE: Duration = Duration::from_secs(60);

/// An end is never told by itself in these tests: they say when.
pub(super) const SETTLE: Duration = Duration::from_secs(3600);

#[derive(Default)]
pub(super) struct Record(Mutex<Vec<Transition>>);

impl Record {
    fn told(&self) -> Vec<Transition> {
        self.0.lock().expect("no panic").clone()
    }
}

impl Sink for Record {
    fn publication(&self, _: &Channel, _: Arc<Publication>) -> Intake {
        Intake::Taken
    }
    fn gap(&self, _: &Channel, _: Gap) {}
    fn control(&self, _: Control) {}
    fn presence(&self, _: &Channel, _: Arc<PresenceEvent>) {}
    fn transition(&self, _: &Channel, transition: Transition) {
        self.0.lock().expect("no panic").push(transition);
    }
}

pub(super) struct Node {
    pub(super) registry: Arc<Registry>,
    presence: Arc<Presence>,
    pub(super) tallies: Arc<Tallies>,
}

impl Node {
    pub(super) async fn start(
        server: &Arc<Server>,
        life: u64,
        lease: Duration,
        settle: Duration,
        sink: &Arc<Record>,
    ) -> Self {
        let tallies = Arc::<Tallies>::default();
        let (commands, prefix) = (server.clone() as Arc<dyn Commands>, Prefix::default());
        let registry = Registry::new(commands.clone(), prefix.clone(), "n", life, lease, tallies.clone());
        let registry = Arc::new(registry);
        let presence =
            Presence::new(commands, prefix, registry.clone(), sink.clone(), settle, tallies.clone());
        let node = Self { registry, presence, tallies };
        node.round().await;
        node
    }

    /// A round as the backplane makes it.
    pub(super) async fn round(&self) {
        self.registry.renew(None).await.expect("round");
        let owed = self.registry.take_owed();
        if owed.lapsed {
            self.presence.begin_again(owed.has_lost_data);
        }
        self.presence.sweep(false).await;
        for instance in owed.ended {
            self.presence.remove_instance(&instance).await.expect("remove");
            self.registry.forget(&instance).await.expect("forget");
        }
    }

    pub(super) async fn enter(&self, connection: &str) {
        self.presence.join(&channel(), joining(Some(connection), None)).await.expect("join");
    }

    async fn leave(&self, connection: &str) {
        self.presence.leave(&channel(), Some(connection)).await.expect("leave");
    }

    /// The connections in the channel.
    pub(super) async fn members(&self) -> Vec<String> {
        let roll = self.presence.roll(&channel()).await.expect("roll");
        roll.members.iter().map(|member| member.connection.to_string()).collect()
    }
}

fn channel() -> Channel {
    Channel::new("c").expect("a name")
}

fn joining(connection: Option<&str>, users_max: Option<u32>) -> Join {
    let member = connection.map(|connection| {
        let (user, _) = connection.split_once('.').expect("USER.NUMBER");
        let info = Some(format!("\"{user}\"").into());
        Member { connection: connection.into(), user: user.into(), info }
    });
    Join { member, users_max, tells_counts: Some(true) }
}

pub(super) async fn keys(server: &Server) -> Vec<String> {
    let mut command = redis::cmd("KEYS");
    command.arg("tidegate:{c}*");
    server.run(&command).await
}

/// Makes everything due that waits to last.
async fn make_due(server: &Server) {
    let mut command = redis::cmd("ZRANGE");
    command.arg("tidegate:{c}:pd").arg(0).arg(-1);
    for mark in server.run::<Vec<String>>(&command).await {
        let mut command = redis::cmd("ZADD");
        command.arg("tidegate:{c}:pd").arg("XX").arg(1).arg(&mark);
        server.run::<u8>(&command).await;
        if mark == "c" {
            // As if the last count had been told long ago.
            let mut command = redis::cmd("HSET");
            command.arg("tidegate:{c}:ps").arg("w").arg(1);
            server.run::<u8>(&command).await;
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// `user`: none is only counted.
    Join {
        node: usize,
        user: Option<u8>,
        users_max: Option<u32>,
    },
    /// One that has joined, again as another user.
    Rejoin {
        node: usize,
        nth: usize,
        user: u8,
    },
    Leave {
        node: usize,
        nth: usize,
    },
    /// All that waits has lasted.
    Settle,
    /// A node writes its part whole.
    Sweep {
        node: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let user = || proptest::option::weighted(0.7, 0..4u8);
    let step = prop_oneof![
        5 => (0..3usize, user(), proptest::option::of(1..4u32))
            .prop_map(|(node, user, users_max)| Step::Join { node, user, users_max }),
        1 => (0..3usize, any::<usize>(), 0..4u8)
            .prop_map(|(node, nth, user)| Step::Rejoin { node, nth, user }),
        5 => (0..3usize, any::<usize>()).prop_map(|(node, nth)| Step::Leave { node, nth }),
        1 => Just(Step::Settle),
        1 => (0..3usize).prop_map(|node| Step::Sweep { node }),
    ];
    proptest::collection::vec(step, 1..60)
}

/// Random operations on three instances have the effects that they have on the memory backplane, one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_instances_are_as_one_process() {
    let server = Server::start().await;
    let mut runner = TestRunner::new(Config::default());
    for _ in 0..24 {
        let steps = steps().new_tree(&mut runner).expect("a value").current();
        check(&server, &steps).await;
        server.run::<()>(&redis::cmd("FLUSHALL")).await;
    }
}

async fn check(server: &Arc<Server>, steps: &[Step]) {
    let sink = Arc::<Record>::default();
    let mut nodes = Vec::new();
    for life in 1..=3 {
        nodes.push(Node::start(server, life, LEASE, SETTLE, &sink).await);
    }
    let model_sink = Arc::<Record>::default();
    let model_options = MemoryOptions { presence_settle: SETTLE, ..MemoryOptions::default() };
    let model = MemoryBackplane::new(model_sink.clone(), model_options);
    let mut joined: [Vec<Option<String>>; 3] = Default::default();
    for (nth, step) in steps.iter().enumerate() {
        match *step {
            Step::Join { node, user, users_max } => {
                let connection = user.map(|user| format!("{user}.{nth}"));
                let join = joining(connection.as_deref(), users_max);
                if check_join(&nodes[node], &model, join).await {
                    joined[node].push(connection);
                }
            }
            Step::Rejoin { node, nth: at, user } if !joined[node].is_empty() => {
                let at = at % joined[node].len();
                let Some(connection) = joined[node][at].clone() else { continue };
                let mut join = joining(Some(&connection), None);
                if let Some(member) = &mut join.member {
                    member.user = user.to_string().into();
                }
                check_join(&nodes[node], &model, join).await;
            }
            Step::Leave { node, nth: at } if !joined[node].is_empty() => {
                let at = at % joined[node].len();
                let connection = joined[node].swap_remove(at);
                check_leave(&nodes[node], &model, connection.as_deref()).await;
            }
            Step::Rejoin { .. } => {}
            Step::Leave { .. } => {}
            Step::Settle => settle(server, &nodes[0], &model).await,
            Step::Sweep { node } => {
                server.begin_session();
                nodes[node].presence.sweep(true).await;
            }
        }
        let roll = nodes[0].presence.roll(&channel()).await.expect("roll");
        let of_model = model.roll(&channel()).await.expect("roll");
        assert_eq!(
            (roll.subscriptions, &roll.members),
            (of_model.subscriptions, &of_model.members),
            "{steps:?}"
        );
        assert_eq!(sorted(sink.told()), sorted(model_sink.told()), "after {nth} of {steps:?}");
    }
    for (node, connections) in joined.iter().enumerate() {
        for connection in connections {
            check_leave(&nodes[node], &model, connection.as_deref()).await;
        }
    }
    settle(server, &nodes[0], &model).await;
    assert_eq!(sorted(sink.told()), sorted(model_sink.told()), "{steps:?}");
    assert_eq!(keys(server).await, [""; 0], "nothing is left behind by {steps:?}");
}

async fn settle(server: &Server, node: &Node, model: &MemoryBackplane) {
    make_due(server).await;
    node.presence.settle_now(&channel()).await;
    model.sweep(Instant::now() + 2 * SETTLE);
}

/// Joins both; whether they let it in.
async fn check_join(node: &Node, model: &MemoryBackplane, join: Join) -> bool {
    let of_model = model.join(&channel(), join.clone()).await.map(|attendance| attendance.sums);
    let answer = node.presence.join(&channel(), join.clone()).await.map(|attendance| attendance.sums);
    assert_eq!(answer, of_model, "{join:?}");
    of_model.is_ok()
}

async fn check_leave(node: &Node, model: &MemoryBackplane, connection: Option<&str>) {
    let of_model = model.leave(&channel(), connection).await.map(|attendance| attendance.sums);
    let answer = node.presence.leave(&channel(), connection).await.map(|attendance| attendance.sums);
    assert_eq!(answer, of_model, "{connection:?}");
}

/// Within one settling, the order of the ends is not told apart. Counts are told at most once a second, of a clock that
/// the two do not share: conformance has them.
fn sorted(mut told: Vec<Transition>) -> Vec<String> {
    told.retain(|transition| !matches!(transition, Transition::Count { .. }));
    let texts = told.drain(..).map(|transition| format!("{transition:?}"));
    let counted = texts.fold(BTreeMap::<String, u32>::new(), |mut counted, text| {
        *counted.entry(text).or_default() += 1;
        counted
    });
    counted.into_iter().map(|(text, times)| format!("{times} {text}")).collect()
}

/// What Redis did not take while it was away is written later, and told once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_failed_is_made_good() {
    let server = Server::start().await;
    let sink = Arc::<Record>::default();
    let node = Node::start(&server, 1, LEASE, SETTLE, &sink).await;
    let other = Node::start(&server, 2, LEASE, SETTLE, &sink).await;
    node.enter("a.1").await;
    node.enter("b.1").await;
    server.refuse(true);
    let refused = node.presence.join(&channel(), joining(Some("c.1"), Some(1))).await;
    assert!(matches!(refused, Err(JoinError::Backplane(_))), "{refused:?}");
    let refused = node.presence.leave(&channel(), Some("a.1")).await;
    assert!(refused.is_err());
    server.refuse(false);
    assert_eq!(other.members().await, ["a.1", "b.1"]);
    node.round().await;
    assert_eq!(other.members().await, ["b.1", "c.1"], "what was kept is written, whatever the limit");
    let joined = sink.told().into_iter().filter(|told| matches!(told, Transition::UserJoined { .. }));
    assert_eq!(joined.count(), 3);
}

/// A server that lost its data is told who is there, under the next instance; no beginning is told again, and ends that
/// came meanwhile are told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_of_data_is_made_good_and_not_told() {
    let server = Server::start().await;
    let sink = Arc::<Record>::default();
    let settle = Duration::from_millis(200);
    let node = Node::start(&server, 1, LEASE, settle, &sink).await;
    node.enter("a.1").await;
    node.enter("b.1").await;
    server.refuse(true);
    let left = node.presence.leave(&channel(), Some("a.1")).await;
    assert!(left.is_err());
    server.refuse(false);
    server.run::<()>(&redis::cmd("FLUSHALL")).await;
    let before = sink.told();
    node.round().await;
    assert_eq!(node.members().await, ["b.1"]);
    assert_eq!(node.tallies.read().leases_lapsed, 1);
    let settled = async || {
        node.presence.settle_now(&channel()).await;
        sink.told().split_off(before.len())
    };
    let left = Transition::UserLeft { user: "a".into() };
    let is_told = |told: &Vec<Transition>| told.contains(&left);
    let told = eventually("the end is told", settled, is_told).await;
    assert!(!told.iter().any(|told| matches!(told, Transition::Occupied | Transition::UserJoined { .. })));
}

/// A server comes back with what it had a while ago: what was acknowledged since is made good, and a channel that was
/// left is left again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_changes_that_the_server_lost_are_made_again() {
    let server = Server::start().await;
    let sink = Arc::<Record>::default();
    let node = Node::start(&server, 1, LEASE, SETTLE, &sink).await;
    let other = Node::start(&server, 2, LEASE, SETTLE, &sink).await;
    node.enter("a.1").await;
    let before = server.copy().await;
    node.enter("b.1").await;
    node.leave("a.1").await;
    server.restore(&before).await;
    assert_eq!(other.members().await, ["a.1"]);
    server.begin_session();
    node.presence.sweep(true).await;
    assert_eq!(other.members().await, ["b.1"]);
    assert_eq!(
        other.presence.attendance(&channel()).await.expect("attendance").sums,
        Sums { subscriptions: 1, users: 1 }
    );
    node.leave("b.1").await;
    server.restore(&before).await;
    server.begin_session();
    node.presence.sweep(true).await;
    assert_eq!(other.members().await, [""; 0]);
}

/// A whole part of thousands is written and cleared in portions, and nobody leaves in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_part_is_written_and_cleared_in_portions() {
    let server = Server::start().await;
    let sink = Arc::<Record>::default();
    let node = Node::start(&server, 1, LEASE, SETTLE, &sink).await;
    let other = Node::start(&server, 2, LEASE, SETTLE, &sink).await;
    let names: Vec<String> = (0..2000).map(|number| format!("{number:04}.1")).collect();
    let entering = names.iter().map(|id| node.presence.join(&channel(), joining(Some(id), None)));
    futures_util::future::join_all(entering.collect::<Vec<_>>()).await;
    server.begin_session();
    node.presence.sweep(true).await;
    node.round().await;
    assert_eq!(other.members().await, names);
    let before = sink.told().len();
    other.presence.remove_instance(&node.registry.instance()).await.expect("removed");
    assert_eq!(other.members().await, [""; 0]);
    make_due(&server).await;
    other.presence.settle_now(&channel()).await;
    let left = sink.told().split_off(before);
    assert_eq!(left.iter().filter(|told| matches!(told, Transition::UserLeft { .. })).count(), 2000);
    assert_eq!(keys(&server).await, [""; 0]);
}

/// A loss that nothing else tells of is noticed by the next change, also one of a part of the keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_loss_is_noticed_by_the_next_change() {
    let server = Server::start().await;
    let sink = Arc::<Record>::default();
    let node = Node::start(&server, 1, LEASE, SETTLE, &sink).await;
    node.enter("a.1").await;
    node.enter("b.1").await;
    for (lost, connection) in [("", "c.1"), (":ps", "d.1"), (":pe", "e.1")] {
        let before = node.members().await;
        for key in keys(&server).await.iter().filter(|key| key.ends_with(lost)) {
            server.run::<u8>(redis::cmd("DEL").arg(key)).await;
        }
        node.enter(connection).await;
        let all = [before, vec![connection.to_owned()]].concat();
        let members = async || node.members().await;
        eventually("all are there again", members, |members| *members == all).await;
        let sums = async || node.presence.attendance(&channel()).await.expect("attendance").sums;
        let count = all.len() as u64;
        let is_all = |sums: &Sums| *sums == Sums { subscriptions: count, users: count };
        eventually("all are counted again", sums, is_all).await;
    }
    let begun = |told: &&Transition| !matches!(told, Transition::Count { .. });
    assert_eq!(sink.told().iter().filter(begun).count(), 6, "occupied, and five who joined");
}

/// What a dead node leaves is removed by one of the others, its ends are told by them, and no key is left behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_instance_is_removed_and_its_ends_are_told() {
    let server = Server::start().await;
    let sink = Arc::<Record>::default();
    let (short, settle) = (Duration::from_secs(1), Duration::from_millis(100));
    let dead = Node::start(&server, 1, short, settle, &sink).await;
    let alive = Node::start(&server, 2, short, settle, &sink).await;
    dead.enter("a.1").await;
    dead.enter("b.1").await;
    // It dies before it could tell that this one left.
    dead.leave("b.1").await;
    let told = async || {
        alive.round().await;
        alive.presence.settle_now(&channel()).await;
        sink.told()
    };
    let is_over = |told: &Vec<Transition>| told.contains(&Transition::Vacated);
    let told = eventually("all ends are told", told, is_over).await;
    let ends = told.iter().filter(|told| matches!(told, Transition::UserLeft { .. }));
    assert_eq!(ends.count(), 2);
    let gone = async || keys(&server).await;
    eventually("no key is left", gone, Vec::is_empty).await;
    // The process was only asleep: it is another instance, and writes its part again.
    dead.round().await;
    assert_eq!(alive.members().await, ["a.1"]);
}

/// A burst of changes costs few commands and ends where the last call of each said; a batch has its bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_is_coalesced() {
    let server = Server::start().await;
    let sink = Arc::<Record>::default();
    let node = Node::start(&server, 1, LEASE, SETTLE, &sink).await;
    let names: Vec<String> = (0..2000).map(|number| format!("{number:04}.1")).collect();
    let entering = names.iter().map(|id| node.presence.join(&channel(), joining(Some(id), None)));
    let answers = futures_util::future::join_all(entering.collect::<Vec<_>>()).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(node.members().await, names);
    assert!(node.tallies.read().presence_written <= 20, "{:?}", node.tallies.read());
    let leaving: Vec<_> = names.iter().map(|id| node.presence.leave(&channel(), Some(id))).collect();
    assert!(futures_util::future::join_all(leaving).await.iter().all(Result::is_ok));
    assert_eq!(node.presence.own_len(), 0);
    make_due(&server).await;
    node.presence.settle_now(&channel()).await;
    assert_eq!(keys(&server).await, [""; 0]);
}
