//! The node registry: leases, names, and what follows when the server was away.

use std::{sync::Arc, time::Duration};

use super::{
    presence::{LEASE, Node, Record, SETTLE, keys},
    server::{Server, eventually},
};
use crate::NodeRecord;

async fn start(server: &Arc<Server>, life: u64, lease: Duration) -> Node {
    Node::start(server, life, lease, SETTLE, &Arc::<Record>::default()).await
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
        handover: None,
    }
}

/// After an outage longer than the lease, the first node back does not declare the others dead; one that stays away is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_dead_because_the_server_was_away() {
    let server = Server::start().await;
    let (a, b) = (start(&server, 1, LEASE).await, start(&server, 2, LEASE).await);
    for (node, name) in [(&a, "a"), (&b, "b")] {
        node.registry.renew(Some(&record(name))).await.expect("round");
    }
    b.enter("b.1").await;
    server.shift_leases(-2 * LEASE.as_millis() as i64).await;
    a.registry.renew(Some(&record("a"))).await.expect("round");
    let records = a.registry.who_lives().await.expect("round");
    assert_eq!(records.len(), 2, "the record of the other stays");
    assert!(a.registry.take_owed().ended.is_empty());
    assert!(a.registry.may_live(&b.registry.instance()));
    assert_eq!(a.members().await, ["b.1"]);
    // Its clock is set back: leases would hold for ever.
    server.shift_leases(100 * LEASE.as_millis() as i64).await;
    a.registry.renew(None).await.expect("round");
    let mut get = redis::cmd("HGET");
    get.arg("tidegate:{!nodes}:i").arg(b.registry.instance());
    let end: u64 = server.run(&get).await;
    let now: (u64, u64) = server.run(&redis::cmd("TIME")).await;
    assert!(end <= now.0 * 1000 + 2 * LEASE.as_millis() as u64, "{end} {now:?}");
    assert_eq!(a.registry.who_lives().await.expect("round").len(), 2);
}

/// Above `maxmemory` a lease is renewed all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_renewed_without_memory() {
    let server = Server::start().await;
    let a = start(&server, 1, LEASE).await;
    server.run::<()>(redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(1)).await;
    a.registry.renew(Some(&record("a"))).await.expect("a round without memory");
}

/// A loss that a reader's round found is owed to the next round of the backplane, which is due at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_round_of_a_reader_found_is_acted_on() {
    let server = Server::start().await;
    let (a, b) = (start(&server, 1, LEASE).await, start(&server, 2, LEASE).await);
    a.enter("a.1").await;
    server.run::<()>(&redis::cmd("FLUSHALL")).await;
    a.registry.renew(None).await.expect("round");
    assert!(!a.registry.is_fresh() && !a.registry.is_leased());
    a.round().await;
    assert!(a.registry.is_leased());
    assert_eq!(b.members().await, ["a.1"]);
    assert_eq!(a.tallies.read().leases_lapsed, 1);
}

/// An entry whose instance nobody knows is not answered, and removed by the reader; but not by one that was away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_instance_counts_as_dead_unless_the_reader_was_away() {
    let server = Server::start().await;
    let (new, reader) = (start(&server, 1, LEASE).await, start(&server, 2, Duration::from_secs(1)).await);
    let entry = b"x.0.1\n1\n\0\x01u";
    for (key, field, value) in [("pe", "x.1", &entry[..]), ("ps", "i:x.0.1", b"1"), ("ps", "t", b"1")] {
        let mut set = redis::cmd("HSET");
        set.arg(format!("tidegate:{{c}}:{key}")).arg(field).arg(value);
        server.run::<u8>(&set).await;
    }
    assert_eq!(new.members().await, ["x.1"], "a reader that has just come cannot know");
    let list = async || reader.members().await;
    eventually("the doubt ends", list, |members| members.is_empty()).await;
    assert!(!keys(&server).await.contains(&"tidegate:{c}:pe".to_owned()));
}

/// A name belongs to one living process; records of newer versions are read, others are left out.
#[tokio::test]
async fn a_name_is_had_by_one_process() {
    let server = Server::start().await;
    let short = Duration::from_secs(3);
    let (first, second) = (start(&server, 1, short).await, start(&server, 2, short).await);
    assert!(!first.registry.renew(Some(&record("a"))).await.expect("round"));
    let announce = async || second.registry.renew(Some(&record("a"))).await.expect("round");
    assert!(announce().await);
    second.registry.retire("a").await.expect("retire");
    assert_eq!(second.registry.who_lives().await.expect("round").len(), 1, "not its own to retire");
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
    let records = second.registry.who_lives().await.expect("round");
    let names: Vec<&str> = records.iter().map(|record| &*record.name).collect();
    assert_eq!(names, ["a", "new"]);
    assert_eq!(second.tallies.read().records_undecodable, 1);
}

/// Every node asks once a second: were each told of all, a server would send the square of their number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_round_costs_does_not_grow_with_the_number_of_nodes() {
    const ROUNDS: u64 = 200;
    let server = Server::start().await;
    let a = start(&server, 1, Duration::from_secs(60)).await;
    let end = u64::MAX >> 12;
    for number in 0..500 {
        let json = format!(
            r#"{{"address":"h:{number}","version":"1","connections":1,"capacity":2,"draining":false}}"#
        );
        let held = [&end.to_be_bytes()[..], &[0; 8], json.as_bytes()].concat();
        let mut set = redis::cmd("HSET");
        set.arg("tidegate:{!nodes}").arg(format!("n{number}")).arg(held);
        server.run::<u8>(&set).await;
    }
    assert_eq!(a.registry.who_lives().await.expect("round").len(), 500);
    let read_whole = server.calls_of("hgetall").await;
    for _ in 0..ROUNDS {
        a.registry.renew(Some(&record("a"))).await.expect("round");
    }
    let read_whole = server.calls_of("hgetall").await - read_whole;
    assert!(read_whole < ROUNDS / 10, "{read_whole} of two hashes in {ROUNDS} rounds");
    assert_eq!(a.registry.who_lives().await.expect("round").len(), 501);
}

/// Who lives is not known after a while without a question. A herd that reads rolls then asks once, not each for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_asks_who_lives_for_all_who_read_at_once() {
    let server = Server::start().await;
    let b = start(&server, 2, LEASE).await;
    b.enter("b.1").await;
    let a = start(&server, 1, Duration::from_millis(300)).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let asked = server.calls_of("hgetall").await;
    let members = futures_util::future::join_all((0..200).map(|_| a.members())).await;
    assert!(members.iter().all(|members| members == &["b.1"]));
    let asked = server.calls_of("hgetall").await - asked;
    // Each reading of a roll is one, each question who lives two.
    assert!(asked < 200 + 2 * 20, "{asked}");
}
