//! The census of several instances on one server: against the model that the memory backplane is, and what happens when
//! nodes and data are lost.

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
    Attend, AttendError, CensusEvent, Channel, Control, Gap, Intake, MemoryBackplane, MemoryOptions,
    Publication, Sink, Sums, Transition, User,
    redis::{census::Census, contract::Commands, counters::Tallies, names::Prefix, nodes::Registry},
};

const LEASE: Duration = Duration::from_secs(60);

/// An end is never told by itself in these tests: they say when.
const SETTLE: Duration = Duration::from_secs(3600);

#[derive(Default)]
struct Record(Mutex<Vec<Transition>>);

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
    fn census(&self, _: &Channel, _: Arc<CensusEvent>) {}
    fn transition(&self, _: &Channel, transition: Transition) {
        self.0.lock().expect("no panic").push(transition);
    }
}

struct Node {
    registry: Arc<Registry>,
    census: Arc<Census>,
    tallies: Arc<Tallies>,
}

impl Node {
    async fn start(
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
        let census = Census::new(commands, prefix, registry.clone(), sink.clone(), settle, tallies.clone());
        let node = Self { registry, census, tallies };
        node.round().await;
        node
    }

    /// A round as the backplane makes it.
    async fn round(&self) {
        self.registry.round(None).await.expect("round");
        let owed = self.registry.take_owed();
        if owed.lapsed {
            self.census.begin_again(owed.has_lost_data);
        }
        self.census.sweep(false).await;
        for instance in owed.ended {
            self.census.remove_instance(&instance).await.expect("remove");
            self.registry.forget(&instance).await.expect("forget");
        }
    }

    async fn enter(&self, id: &str) {
        self.census.attend(&channel(), enter(Some(id), None)).await.expect("attend");
    }

    async fn leave(&self, id: &str) {
        self.census.attend(&channel(), Attend::Leave { user: Some(id.into()) }).await.expect("attend");
    }

    async fn users(&self) -> Vec<String> {
        let roll = self.census.roll(&channel()).await.expect("roll");
        roll.users.into_iter().map(|user| user.id.into()).collect()
    }
}

fn channel() -> Channel {
    Channel::new("c").expect("a name")
}

fn enter(id: Option<&str>, users_max: Option<u32>) -> Attend {
    let user = id.map(|id| User { id: id.into(), info: Some(format!("\"{id}\"").into()) });
    Attend::Enter { user, users_max, tells_counts: true }
}

async fn keys(server: &Server) -> Vec<String> {
    let mut command = redis::cmd("KEYS");
    command.arg("tidegate:{c}*");
    server.run(&command).await
}

/// Makes everything due that waits to last.
async fn make_due(server: &Server) {
    let mut command = redis::cmd("ZRANGE");
    command.arg("tidegate:{c}:e").arg(0).arg(-1);
    for mark in server.run::<Vec<String>>(&command).await {
        let mut command = redis::cmd("ZADD");
        command.arg("tidegate:{c}:e").arg("XX").arg(1).arg(&mark);
        server.run::<u8>(&command).await;
        if mark == "c" {
            // As if the last count had been told long ago.
            let mut command = redis::cmd("HSET");
            command.arg("tidegate:{c}:c").arg("w").arg(1);
            server.run::<u8>(&command).await;
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Enter {
        node: usize,
        user: Option<u8>,
        users_max: Option<u32>,
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
            .prop_map(|(node, user, users_max)| Step::Enter { node, user, users_max }),
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
    let model_options = MemoryOptions { census_settle: SETTLE, ..MemoryOptions::default() };
    let model = MemoryBackplane::new(model_sink.clone(), model_options);
    let mut entered: [Vec<Option<u8>>; 3] = Default::default();
    let name = |user: &Option<u8>| user.map(|user| user.to_string());
    for (nth, step) in steps.iter().enumerate() {
        match *step {
            Step::Enter { node, user, users_max } => {
                let attend = enter(name(&user).as_deref(), users_max);
                let of_model = attended(&model, attend.clone());
                let answer = nodes[node].census.attend(&channel(), attend).await;
                assert_eq!(answer.map(|attended| attended.sums), of_model, "{nth} of {steps:?}");
                if of_model.is_ok() {
                    entered[node].push(user);
                }
            }
            Step::Leave { node, nth: at } if !entered[node].is_empty() => {
                let at = at % entered[node].len();
                let user = name(&entered[node].swap_remove(at)).map(Into::into);
                let of_model = attended(&model, Attend::Leave { user: user.clone() });
                let answer = nodes[node].census.attend(&channel(), Attend::Leave { user }).await;
                assert_eq!(answer.map(|attended| attended.sums), of_model, "{nth} of {steps:?}");
            }
            Step::Leave { .. } => {}
            Step::Settle => settle(server, &nodes[0], &model).await,
            Step::Sweep { node } => {
                server.begin_session();
                nodes[node].census.sweep(true).await;
            }
        }
        let roll = nodes[0].census.roll(&channel()).await.expect("roll");
        let of_model = crate::Backplane::roll(&model, &channel()).await.expect("roll");
        assert_eq!((roll.subscriptions, &roll.users), (of_model.subscriptions, &of_model.users), "{steps:?}");
        assert_eq!(sorted(sink.told()), sorted(model_sink.told()), "after {nth} of {steps:?}");
    }
    for (node, users) in entered.iter().enumerate() {
        for user in users {
            let user = name(user).map(Into::into);
            attended(&model, Attend::Leave { user: user.clone() }).expect("attend");
            nodes[node].census.attend(&channel(), Attend::Leave { user }).await.expect("attend");
        }
    }
    settle(server, &nodes[0], &model).await;
    assert_eq!(sorted(sink.told()), sorted(model_sink.told()), "{steps:?}");
    assert_eq!(keys(server).await, [""; 0], "nothing is left behind by {steps:?}");
}

async fn settle(server: &Server, node: &Node, model: &MemoryBackplane) {
    make_due(server).await;
    node.census.settle_now(&channel()).await;
    model.sweep(Instant::now() + 2 * SETTLE);
}

fn attended(model: &MemoryBackplane, attend: Attend) -> Result<Sums, AttendError> {
    let answer = futures_util::FutureExt::now_or_never(crate::Backplane::attend(model, &channel(), attend));
    answer.expect("memory is ready at once").map(|attended| attended.sums)
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
    node.enter("a").await;
    node.enter("b").await;
    server.refuse(true);
    let refused = node.census.attend(&channel(), enter(Some("c"), Some(1))).await;
    assert!(matches!(refused, Err(AttendError::Backplane(_))), "{refused:?}");
    let refused = node.census.attend(&channel(), Attend::Leave { user: Some("a".into()) }).await;
    assert!(refused.is_err());
    server.refuse(false);
    assert_eq!(other.users().await, ["a", "b"]);
    node.round().await;
    assert_eq!(other.users().await, ["b", "c"], "what was kept is written, whatever the limit");
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
    node.enter("a").await;
    node.enter("b").await;
    server.refuse(true);
    let left = node.census.attend(&channel(), Attend::Leave { user: Some("a".into()) }).await;
    assert!(left.is_err());
    server.refuse(false);
    server.run::<()>(&redis::cmd("FLUSHALL")).await;
    let before = sink.told();
    node.round().await;
    assert_eq!(node.users().await, ["b"]);
    assert_eq!(node.tallies.read().leases_lapsed, 1);
    let settled = async || {
        node.census.settle_now(&channel()).await;
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
    node.enter("a").await;
    let before = server.copy().await;
    node.enter("b").await;
    node.leave("a").await;
    server.restore(&before).await;
    assert_eq!(other.users().await, ["a"]);
    server.begin_session();
    node.census.sweep(true).await;
    assert_eq!(other.users().await, ["b"]);
    assert_eq!(other.census.sums(&channel()).await.expect("sums"), Sums { subscriptions: 1, users: 1 });
    node.leave("b").await;
    server.restore(&before).await;
    server.begin_session();
    node.census.sweep(true).await;
    assert_eq!(other.users().await, [""; 0]);
}

/// A whole part of thousands is written and cleared in portions, and nobody leaves in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_part_is_written_and_cleared_in_portions() {
    let server = Server::start().await;
    let sink = Arc::<Record>::default();
    let node = Node::start(&server, 1, LEASE, SETTLE, &sink).await;
    let other = Node::start(&server, 2, LEASE, SETTLE, &sink).await;
    let names: Vec<String> = (0..2000).map(|number| format!("{number:04}")).collect();
    let entering = names.iter().map(|id| node.census.attend(&channel(), enter(Some(id), None)));
    futures_util::future::join_all(entering.collect::<Vec<_>>()).await;
    server.begin_session();
    node.census.sweep(true).await;
    node.round().await;
    assert_eq!(other.users().await, names);
    let before = sink.told().len();
    other.census.remove_instance(&node.registry.instance()).await.expect("removed");
    assert_eq!(other.users().await, [""; 0]);
    make_due(&server).await;
    other.census.settle_now(&channel()).await;
    let left = sink.told().split_off(before);
    assert_eq!(left.iter().filter(|told| matches!(told, Transition::UserLeft { .. })).count(), 2000);
    assert_eq!(keys(&server).await, [""; 0]);
}

/// A loss that nothing else tells of is noticed by the next change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_loss_is_noticed_by_the_next_change() {
    let server = Server::start().await;
    let sink = Arc::<Record>::default();
    let node = Node::start(&server, 1, LEASE, SETTLE, &sink).await;
    node.enter("a").await;
    for key in keys(&server).await {
        let mut command = redis::cmd("DEL");
        command.arg(key);
        server.run::<u8>(&command).await;
    }
    node.enter("b").await;
    let users = async || node.users().await;
    eventually("all are there again", users, |users| *users == ["a", "b"]).await;
    let begun = |told: &&Transition| !matches!(told, Transition::Count { .. });
    assert_eq!(sink.told().iter().filter(begun).count(), 3, "occupied, and two who joined");
}

/// What a dead node leaves is removed by one of the others, its ends are told by them, and no key is left behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_instance_is_removed_and_its_ends_are_told() {
    let server = Server::start().await;
    let sink = Arc::<Record>::default();
    let (short, settle) = (Duration::from_secs(1), Duration::from_millis(100));
    let dead = Node::start(&server, 1, short, settle, &sink).await;
    let alive = Node::start(&server, 2, short, settle, &sink).await;
    dead.enter("a").await;
    dead.enter("b").await;
    // It dies before it could tell that this one left.
    dead.leave("b").await;
    let told = async || {
        alive.round().await;
        alive.census.settle_now(&channel()).await;
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
    assert_eq!(alive.users().await, ["a"]);
}

/// A burst of changes costs few commands and ends where the last call of each said; a batch has its bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_is_coalesced() {
    let server = Server::start().await;
    let sink = Arc::<Record>::default();
    let node = Node::start(&server, 1, LEASE, SETTLE, &sink).await;
    let names: Vec<String> = (0..2000).map(|number| format!("{number:04}")).collect();
    let entering = names.iter().map(|id| node.census.attend(&channel(), enter(Some(id), None)));
    let answers = futures_util::future::join_all(entering.collect::<Vec<_>>()).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(node.users().await, names);
    assert!(node.tallies.read().census_written <= 20, "{:?}", node.tallies.read());
    let leaving = names.iter().map(|id| Attend::Leave { user: Some(id.as_str().into()) });
    let leaving: Vec<_> = leaving.map(|attend| node.census.attend(&channel(), attend)).collect();
    assert!(futures_util::future::join_all(leaving).await.iter().all(Result::is_ok));
    assert_eq!(node.census.own_len(), 0);
    make_due(&server).await;
    node.census.settle_now(&channel()).await;
    assert_eq!(keys(&server).await, [""; 0]);
}
