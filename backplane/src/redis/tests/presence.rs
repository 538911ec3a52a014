//! Presence and the node registry, of several nodes on one server.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;

use super::server::{Server, eventually};
use crate::{
    BackplaneError, Channel, Member, NodeRecord,
    redis::{counters::Tallies, names::Prefix, nodes::Registry, presence::Presence},
};

const LEASE: Duration = Duration::from_secs(60);

struct Node {
    registry: Arc<Registry>,
    presence: Arc<Presence>,
    tallies: Arc<Tallies>,
}

impl Node {
    fn new(server: &Arc<Server>, name: &str, life: u64, lease: Duration) -> Self {
        let tallies = Arc::<Tallies>::default();
        let prefix = Prefix::default();
        let registry = Registry::new(server.clone(), prefix.clone(), name, life, lease, tallies.clone());
        let registry = Arc::new(registry);
        let presence = Presence::new(server.clone(), prefix, registry.clone(), tallies.clone());
        Self { registry, presence, tallies }
    }

    /// A round as the backplane makes it.
    async fn round(&self) {
        self.registry.round(None).await.expect("round");
        let owed = self.registry.take_owed();
        if owed.lapsed {
            self.presence.begin_again();
        }
        self.presence.sweep(false).await;
        for instance in owed.ended {
            self.presence.remove_instance(&instance).await.expect("remove");
            self.registry.forget(&instance).await.expect("forget");
        }
    }

    /// What the backplane does when its connections were made anew.
    async fn doubt(&self) {
        self.presence.sweep(true).await;
    }

    async fn join(&self, channel: &str, connection: &str) {
        self.presence.join(&self::channel(channel), member(connection)).await.expect("join");
    }

    async fn list(&self, channel: &str) -> Vec<String> {
        let members = self.presence.list(&self::channel(channel)).await.expect("presence");
        members.into_iter().map(|member| member.connection.into()).collect()
    }
}

fn channel(name: &str) -> Channel {
    Channel::new(name).expect("a name")
}

fn member(connection: &str) -> Member {
    Member { connection: connection.into(), user: "u".into(), info: None }
}

fn record(name: &str) -> NodeRecord {
    NodeRecord {
        name: name.into(),
        address: "h:1".into(),
        zone: None,
        version: "1".into(),
        connections: 1,
        capacity: 2,
        draining: false,
    }
}

async fn keys(server: &Server, pattern: &str) -> Vec<String> {
    let mut command = redis::cmd("KEYS");
    command.arg(pattern);
    server.run(&command).await
}

/// A server without data: what it had is written again, under another instance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_written_again_when_the_server_lost_them() {
    let server = Server::start().await;
    let (a, b) = (Node::new(&server, "a", 1, LEASE), Node::new(&server, "b", 2, LEASE));
    for node in [&a, &b] {
        node.round().await;
    }
    a.join("c", "a.1").await;
    a.join("d", "a.1").await;
    b.join("c", "b.1").await;
    assert_eq!(b.list("c").await, ["a.1", "b.1"]);
    let before = a.registry.instance();
    server.run::<()>(&redis::cmd("FLUSHALL")).await;
    assert_eq!(b.list("c").await, ["b.1"]);
    a.round().await;
    assert_ne!(a.registry.instance(), before);
    assert_eq!(b.list("c").await, ["a.1", "b.1"]);
    assert_eq!(b.list("d").await, ["a.1"]);
    assert_eq!(a.tallies.read().leases_lapsed, 1);
}

/// A server comes back with what it had a while ago, within the lease: who joined since is missing, who left is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_changes_that_the_server_lost_are_made_again() {
    let server = Server::start().await;
    let (a, b) = (Node::new(&server, "a", 1, LEASE), Node::new(&server, "b", 2, LEASE));
    for node in [&a, &b] {
        node.round().await;
    }
    a.join("c", "a.1").await;
    a.join("left", "a.3").await;
    let before = server.copy().await;
    a.join("c", "a.2").await;
    a.join("new", "a.4").await;
    a.presence.leave(&channel("c"), "a.1").await.expect("leave");
    a.presence.leave(&channel("left"), "a.3").await.expect("leave");
    server.restore(&before).await;
    assert_eq!(b.list("c").await, ["a.1"]);
    assert_eq!(b.list("left").await, ["a.3"]);
    server.begin_session();
    a.doubt().await;
    assert_eq!(b.list("c").await, ["a.2"]);
    assert_eq!(b.list("left").await, [""; 0]);
    assert_eq!(b.list("new").await, ["a.4"]);
    assert_eq!(a.tallies.read().leases_lapsed, 0);
    // Nothing is written twice for nothing.
    a.doubt().await;
    let set = redis::cmd("SMEMBERS").arg("tidegate:{!nodes}:p:a.0000000000000001.1").to_owned();
    let mut listed: Vec<String> = server.run(&set).await;
    listed.sort();
    assert_eq!(listed, ["c", "new"]);
}

/// A channel of many members is read, written and cleared in pages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_channel_is_written_and_cleared_in_pages() {
    let server = Server::start().await;
    let (a, b) = (Node::new(&server, "a", 1, LEASE), Node::new(&server, "b", 2, LEASE));
    a.round().await;
    let joined = (0..3000).map(|number| a.presence.join(&channel("c"), member(&format!("a.{number:04}"))));
    join_all(joined.collect::<Vec<_>>()).await;
    server.run::<()>(&redis::cmd("CONFIG").arg("RESETSTAT").to_owned()).await;
    server.begin_session();
    a.doubt().await;
    assert_eq!(b.list("c").await.len(), 3000);
    let stats: String = server.run(redis::cmd("INFO").arg("commandstats")).await;
    assert!(!stats.contains("cmdstat_hgetall"), "no command reads all: {stats}");
    b.presence.remove_instance(&a.registry.instance()).await.expect("removed");
    assert_eq!(keys(&server, "tidegate:{c}:p").await, [""; 0]);
}

/// After an outage longer than the lease, the first node back does not declare the others dead; one that stays away is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_dead_because_the_server_was_away() {
    let server = Server::start().await;
    let (a, b) = (Node::new(&server, "a", 1, LEASE), Node::new(&server, "b", 2, LEASE));
    for (node, name) in [(&a, "a"), (&b, "b")] {
        node.registry.round(Some(&record(name))).await.expect("round");
    }
    b.join("c", "b.1").await;
    server.shift_leases(-2 * LEASE.as_millis() as i64).await;
    let round = a.registry.round(Some(&record("a"))).await.expect("round");
    assert_eq!(round.records.len(), 2, "the record of the other stays");
    assert!(a.registry.take_owed().ended.is_empty());
    assert!(a.registry.may_live(&b.registry.instance()));
    assert_eq!(a.list("c").await, ["b.1"]);
    // Its clock is set back: leases would hold for ever.
    server.shift_leases(100 * LEASE.as_millis() as i64).await;
    let round = a.registry.round(None).await.expect("round");
    assert_eq!(round.records.len(), 2);
    let mut get = redis::cmd("HGET");
    get.arg("tidegate:{!nodes}:i").arg(b.registry.instance());
    let end: u64 = server.run(&get).await;
    let now: (u64, u64) = server.run(&redis::cmd("TIME")).await;
    assert!(end <= now.0 * 1000 + 2 * LEASE.as_millis() as u64, "{end} {now:?}");
}

/// Above `maxmemory` a lease is renewed all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_renewed_without_memory() {
    let server = Server::start().await;
    let a = Node::new(&server, "a", 1, LEASE);
    a.round().await;
    server.run::<()>(redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(1)).await;
    a.registry.round(Some(&record("a"))).await.expect("a round without memory");
}

/// A loss that a reader's round found is owed to the next round of the backplane, which is due at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_round_of_a_reader_found_is_acted_on() {
    let server = Server::start().await;
    let (a, b) = (Node::new(&server, "a", 1, LEASE), Node::new(&server, "b", 2, LEASE));
    a.round().await;
    a.join("c", "a.1").await;
    server.run::<()>(&redis::cmd("FLUSHALL")).await;
    a.registry.round(None).await.expect("round");
    assert!(!a.registry.is_fresh() && !a.registry.is_leased());
    a.round().await;
    assert!(a.registry.is_leased());
    assert_eq!(b.list("c").await, ["a.1"]);
    assert_eq!(a.tallies.read().leases_lapsed, 1);
}

/// What a dead node leaves is not answered, is removed by one of the others, and leaves no key behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_instance_is_removed() {
    let server = Server::start().await;
    let short = Duration::from_secs(1);
    let (dead, alive) = (Node::new(&server, "a", 1, short), Node::new(&server, "b", 2, short));
    dead.round().await;
    for number in 0..600 {
        dead.join(&format!("c{number}"), "a.1").await;
    }
    let removed = async || {
        alive.round().await;
        alive.tallies.read().instances_removed
    };
    eventually("the dead instance is removed", removed, |removed| *removed == 1).await;
    assert_eq!(keys(&server, "*:p*").await, [""; 0]);
    assert_eq!(alive.list("c1").await, [""; 0]);
    // The process was only asleep: it is another instance, and writes its members again.
    dead.round().await;
    assert_eq!(alive.list("c599").await, ["a.1"]);
}

/// An entry whose instance nobody knows is not answered, and removed by the reader; but not by one that was away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_instance_counts_as_dead_unless_the_reader_was_away() {
    let server = Server::start().await;
    let (new, reader) =
        (Node::new(&server, "a", 1, LEASE), Node::new(&server, "b", 2, Duration::from_secs(1)));
    for node in [&new, &reader] {
        node.round().await;
    }
    let mut set = redis::cmd("HSET");
    set.arg("tidegate:{c}:p").arg("x.1").arg("x.0.1\n{\"user\":\"u\"}");
    server.run::<u8>(&set).await;
    assert_eq!(new.list("c").await, ["x.1"], "a reader that has just come cannot know");
    let list = async || reader.list("c").await;
    eventually("the doubt ends", list, |members| members.is_empty()).await;
    assert_eq!(keys(&server, "tidegate:{c}:p").await, [""; 0]);
}

/// Joins and leaves of many connections at once end where the last call of each said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_changes_keeps_its_order() {
    let server = Server::start().await;
    let (a, b) = (Node::new(&server, "a", 1, LEASE), Node::new(&server, "b", 2, LEASE));
    a.round().await;
    let mut answers = Vec::new();
    for number in 0..3000 {
        let connection = format!("a.{:03}", number % 500);
        answers.push(a.presence.join(&channel("c"), member(&connection)));
        if number % 500 >= 3 || number < 500 {
            answers.push(a.presence.leave(&channel("c"), &connection));
        }
    }
    assert!(join_all(answers).await.iter().all(Result::is_ok));
    assert_eq!(b.list("c").await, ["a.000", "a.001", "a.002"]);
    for connection in ["a.000", "a.001", "a.002"] {
        a.presence.leave(&channel("c"), connection).await.expect("leave");
    }
    assert_eq!(keys(&server, "*:p*").await, [""; 0]);
    assert_eq!(a.presence.own_len(), 0);
}

/// What Redis did not take while it was away, joins and leaves, is written later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_failed_is_made_good() {
    let server = Server::start().await;
    let (a, b) = (Node::new(&server, "a", 1, LEASE), Node::new(&server, "b", 2, LEASE));
    a.round().await;
    a.join("c", "a.1").await;
    a.join("c", "a.2").await;
    server.refuse(true);
    let refused = a.presence.join(&channel("c"), member("a.3")).await;
    assert!(matches!(refused, Err(BackplaneError::Unavailable(_))), "{refused:?}");
    let refused = a.presence.leave(&channel("c"), "a.1").await;
    assert!(matches!(refused, Err(BackplaneError::Unavailable(_))), "{refused:?}");
    server.refuse(false);
    assert_eq!(b.list("c").await, ["a.1", "a.2"]);
    a.round().await;
    assert_eq!(b.list("c").await, ["a.2", "a.3"]);
    assert_eq!(a.tallies.read().presence_failed, 2);
}

/// A name belongs to one living process; records of newer versions are read, others are left out.
#[tokio::test]
async fn a_name_is_had_by_one_process() {
    let server = Server::start().await;
    let short = Duration::from_secs(3);
    let (first, second) = (Node::new(&server, "a", 1, short), Node::new(&server, "a", 2, short));
    assert!(!first.registry.round(Some(&record("a"))).await.expect("round").refused);
    let announce = async || second.registry.round(Some(&record("a"))).await.expect("round").refused;
    assert!(announce().await);
    second.registry.retire("a").await.expect("retire");
    assert_eq!(second.registry.round(None).await.expect("round").records.len(), 1, "not its own to retire");
    eventually("the first one's lease ends", announce, |refused| !refused).await;

    let end = u64::MAX >> 12;
    for (name, json) in [("new", r#","more":{"a":1}}"#), ("other", "")] {
        let json =
            format!(r#"{{"address":"h:1","version":"2","connections":1,"capacity":2,"draining":true{json}"#);
        let mut set = redis::cmd("HSET");
        set.arg("tidegate:{!nodes}")
            .arg(name)
            .arg([&end.to_be_bytes()[..], &[0; 8], json.as_bytes()].concat());
        server.run::<u8>(&set).await;
    }
    let records = second.registry.round(None).await.expect("round").records;
    let names: Vec<&str> = records.iter().map(|record| &*record.name).collect();
    assert_eq!(names, ["a", "new"]);
    assert_eq!(second.tallies.read().records_undecodable, 1);
}
