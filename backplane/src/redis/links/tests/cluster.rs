//! A Cluster whose slots move and whose masters die.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redis::Value;
use tidegate_testkit::redis::{RedisClient, RedisCluster, RedisServer};
use tidegate_testkit::{DEADLINE, eventually};

use super::{Event, Rig, channel};
use crate::BackplaneError;
use crate::redis::contract::{Commands, Subscribing};
use crate::redis::slot::slot_of;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_tag_has_its_master() {
    let cluster = RedisCluster::start(3, 0);
    let rig = Rig::start(&format!("redis-cluster://{}", cluster.master(1))).await;
    assert!(rig.links.is_sharded());
    assert_eq!(rig.links.counters().len(), 3);
    let mut links = HashSet::new();
    for number in 0..30 {
        let tag = format!("news:{number}");
        let (route, _) = rig.subscribe(&tag);
        assert_eq!(route.slot, Some(slot_of(tag.as_bytes())));
        links.insert(route.link);
        assert_eq!(rig.publish(&tag, "hello").await, Ok(Value::Int(1)), "{tag}");
        rig.eventually_received(&tag, "hello");
    }
    assert_eq!(links.len(), 3);
    assert!(rig.links.counters().iter().all(|link| link.repeated == [0; 7]));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_while_calls_go_on() {
    let mut cluster = RedisCluster::start(3, 0);
    let rig = Arc::new(Rig::start(&cluster.url()).await);
    let tags: Vec<String> = (0..300).map(|number| format!("news:{number}")).collect();
    for tag in &tags {
        rig.subscribe(tag);
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..4)
        .map(|part| {
            let (rig, is_over) = (Arc::clone(&rig), Arc::clone(&is_over));
            let tags: Vec<String> = tags.iter().skip(part).step_by(4).cloned().collect();
            tokio::spawn(async move { count_up(&rig, &tags, &is_over).await })
        })
        .collect();
    for (from, to) in [(0, 1), (1, 2)] {
        cluster.move_slots(from, to, 2_000);
    }
    is_over.store(true, Ordering::Relaxed);
    let mut rounds = 0;
    for caller in callers {
        rounds += caller.await.unwrap();
    }
    assert!(rounds > 4, "{rounds} rounds");
    let moved: u64 = rig.links.counters().iter().map(|link| link.repeated[0] + link.repeated[1]).sum();
    assert!(moved > 0, "no call met a slot that moved");
    // The server ended what was subscribed in the slots that moved, and the routes say where to go.
    let ended = |event: &Event| matches!(event, Event::Ended(..));
    rig.recorder.eventually("a channel whose slot moved", ended);
    rig.eventually_healthy();
    for tag in &tags {
        rig.subscribe(tag);
        assert_eq!(rig.publish(tag, "after").await, Ok(Value::Int(1)), "{tag}");
        rig.eventually_received(tag, "after");
    }
    Arc::into_inner(rig).unwrap().stop().await;
}

/// Increments each tag's number round after round; none is doubled, none is lost.
async fn count_up(rig: &Rig, tags: &[String], is_over: &AtomicBool) -> i64 {
    let mut round = 0;
    while !is_over.load(Ordering::Relaxed) {
        round += 1;
        for tag in tags {
            let name = format!("{}:n", channel(tag));
            loop {
                match rig.call(tag, &["INCR", &name]).await {
                    Ok(value) => {
                        assert_eq!(value, Value::Int(round), "{tag}");
                        break;
                    }
                    Err(BackplaneError::Unavailable(_)) => {}
                    Err(error) => panic!("{tag}: {error}"),
                }
            }
        }
    }
    round
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_dies_and_its_replica_takes_over() {
    let mut cluster = RedisCluster::start(3, 1);
    let rig = Rig::start(&cluster.url()).await;
    let tags: Vec<String> = (0..30).map(|number| format!("news:{number}")).collect();
    let before: Vec<_> = tags.iter().map(|tag| rig.subscribe(tag).0.link).collect();
    cluster.kill_master(0);
    for tag in &tags {
        eventually("the tag has a master again", DEADLINE, || rig.links.availability(tag).is_ok());
    }
    rig.eventually_healthy();
    let after: Vec<_> = tags.iter().map(|tag| rig.subscribe(tag).0.link).collect();
    assert_ne!(before, after);
    for tag in &tags {
        assert_eq!(rig.publish(tag, "after").await, Ok(Value::Int(1)), "{tag}");
        rig.eventually_received(tag, "after");
    }
    assert!(rig.recorder.events().contains(&Event::RoutesChanged));
    assert_eq!(rig.links.counters().len(), 3);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_lost_slots_says_so() {
    let mut cluster = RedisCluster::start(3, 0);
    let rig = Rig::start(&cluster.url()).await;
    let dead = cluster.master(2);
    cluster.kill_master(2);
    eventually("it is told", DEADLINE, || !rig.links.missing().is_empty());
    let missing = rig.links.missing().concat();
    assert!(missing.contains(&dead.to_string()), "{missing}");
    assert_eq!(rig.links.health(), Ok(()), "the others serve");
    cluster.revive();
    rig.eventually_healthy();
    assert_eq!(rig.publish("a", "hello").await, Ok(Value::Int(0)));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_follows_ask_to_a_node_that_has_no_slots_yet() {
    let cluster = RedisCluster::start(3, 0);
    let rig = Rig::start(&cluster.url()).await;
    let new = RedisServer::builder()
        .option("cluster-enabled", "yes")
        .option("cluster-node-timeout", "1500")
        .start();
    let slot = slot_of(b"a");
    let place = rig.links.route("a").unwrap().link;
    // The kit numbers masters in the order of their slots' thirds.
    let old = cluster.master(usize::from(slot) * 3 / 16_384);
    let mut old_client = RedisClient::connect(old).unwrap();
    let (slot, port) = (slot.to_string(), new.address().port().to_string());
    old_client.command(&["CLUSTER", "MEET", "127.0.0.1", &port]).unwrap();
    let (old_id, new_id) =
        (old_client.command(&["CLUSTER", "MYID"]).unwrap().text(), new.command(&["CLUSTER", "MYID"]).text());
    // A node that imports a slot before it has heard of its owner never hears of it.
    eventually("the new node serves", DEADLINE, || {
        new.command(&["CLUSTER", "INFO"]).text().contains("cluster_state:ok")
    });
    new.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &old_id]);
    old_client.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &new_id]).unwrap();
    for expected in 1..=3 {
        let answer = rig.call("a", &["INCR", "tidegate:{a}:n"]).await;
        assert_eq!(answer, Ok(Value::Int(expected)), "{:?} {:?}", rig.links.health(), rig.links.counters());
    }
    let counters = rig.links.counters();
    // Once for each call, and some more for the first while the new link comes up.
    assert!(counters.iter().any(|link| link.repeated[1] >= 3), "{counters:?}");
    assert_eq!(counters.len(), 4);
    assert_eq!(rig.links.route("a").unwrap().link, place, "ASK moves no slot");
    rig.stop().await;
}
