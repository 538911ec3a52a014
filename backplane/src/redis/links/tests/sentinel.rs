//! A master that the Sentinels name, through failovers.

use redis::Value;
use tidegate_testkit::redis::Sentinel;
use tidegate_testkit::{DEADLINE, eventually};

use super::{Rig, channel};
use crate::BackplaneError;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_link_follows_the_master() {
    let mut sentinel = Sentinel::start();
    let rig = Rig::start(&sentinel.url()).await;
    let (_, first) = rig.subscribe("a");
    let new_master = sentinel.failover();
    rig.eventually_healthy();
    let (_, second) = rig.subscribe("a");
    assert!(second > first);
    assert_eq!(rig.call("a", &["SET", &channel("a"), "1"]).await, Ok(Value::Okay));
    assert_eq!(rig.publish("a", "hello").await, Ok(Value::Int(1)));
    rig.eventually_received("a", "hello");
    assert_eq!(sentinel.master().address(), new_master);
    assert_eq!(sentinel.master().command(&["GET", &channel("a")]).text(), "1");
    // The old one returns as a replica and changes nothing.
    sentinel.revive();
    assert_eq!(rig.call("a", &["SET", &channel("a"), "2"]).await, Ok(Value::Okay));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_deposed_alive_is_left() {
    let mut sentinel = Sentinel::start();
    let rig = Rig::start(&sentinel.url()).await;
    let old = sentinel.master().address();
    sentinel.sentinels()[0].command(&["SENTINEL", "FAILOVER", tidegate_testkit::redis::SENTINEL_MASTER]);
    eventually("another master", DEADLINE, || sentinel.master().address() != old);
    // Until the switch is through, a call may be refused or have no known outcome; then it works on the new one.
    let mut answers = Vec::new();
    let done = loop {
        match rig.call("a", &["SET", &channel("a"), "1"]).await {
            Ok(answer) if sentinel.master().command(&["GET", &channel("a")]).text() == "1" => break answer,
            Ok(_) => {}
            Err(error @ BackplaneError::Refused(_)) => panic!("{error}"),
            Err(error) => answers.push(error),
        }
        tokio::task::yield_now().await;
        assert!(answers.len() < 1_000_000, "{:?}", answers.last());
    };
    assert_eq!(done, Value::Okay);
    assert!(rig.links.counters()[0].sessions >= 2);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_sentinel_is_enough() {
    let mut sentinel = Sentinel::start();
    let url = sentinel.url();
    sentinel.sentinels()[0].kill();
    sentinel.sentinels()[1].stop();
    let rig = Rig::start(&url).await;
    assert_eq!(rig.publish("a", "hello").await, Ok(Value::Int(0)));
    rig.stop().await;
}
