//! Cache channels: the last event comes first, or the news that there is none.

use serde_json::json;

use super::{
    super::rig::Rig,
    client::{Client, config},
};

#[track_caller]
fn miss(client: &mut Client, channel: &str) {
    client.subscribe(channel);
    assert_eq!(client.next(), json!({ "event": "pusher:cache_miss", "channel": channel }));
}

#[test]
fn the_last_event_comes_first_or_a_miss_is_told() {
    let rig = Rig::start(config());
    let mut first = Client::connect(&rig);
    for channel in ["cache-a", "private-cache-a", "private-encrypted-cache-a"] {
        miss(&mut first, channel);
        rig.publish_as(channel, Some("old"), "1", None);
        rig.publish_as(channel, Some("new"), "2", None);
        assert_eq!(first.expect_on("old", channel), 1);
        assert_eq!(first.expect_on("new", channel), 2);
        let mut second = Client::connect(&rig);
        second.subscribe(channel);
        assert_eq!(second.expect_on("new", channel), 2);
        second.expect_nothing();
        rig.publish(channel, "3");
        assert_eq!(second.expect_on("message", channel), 3);
        assert_eq!(first.expect_on("message", channel), 3);
    }
    first.expect_nothing();
}

#[test]
fn presence_comes_before_the_last_event() {
    let rig = Rig::start(config());
    let mut ann = Client::connect(&rig);
    assert_eq!(ann.subscribe_as("presence-cache-a", "ann"), ["ann"]);
    assert_eq!(ann.next()["event"], "pusher:cache_miss");
    rig.publish("presence-cache-a", "1");
    assert_eq!(ann.expect_on("message", "presence-cache-a"), 1);
    let mut bob = Client::connect(&rig);
    assert_eq!(bob.subscribe_as("presence-cache-a", "bob"), ["ann", "bob"]);
    assert_eq!(bob.expect_on("message", "presence-cache-a"), 1);
    ann.expect_on("pusher_internal:member_added", "presence-cache-a");
    rig.publish("presence-cache-a", "2");
    assert_eq!(bob.expect_on("message", "presence-cache-a"), 2);
    drop(bob);
    assert_eq!(ann.expect_on("message", "presence-cache-a"), 2);
    ann.expect_on("pusher_internal:member_removed", "presence-cache-a");
}

#[test]
fn events_of_clients_are_not_kept() {
    let rig = Rig::start(config());
    let mut first = Client::connect(&rig);
    miss(&mut first, "private-cache-a");
    first.send_event("private-cache-a", "client-x", json!(1));
    let mut second = Client::connect(&rig);
    miss(&mut second, "private-cache-a");
}

#[test]
fn what_is_published_while_the_last_event_is_read_comes_once_and_in_order() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    rig.publish("cache-a", "1");
    rig.backplane.history.shut();
    client.ask("cache-a");
    rig.backplane.history.eventually_arrived(1);
    rig.publish("cache-a", "2");
    rig.publish("cache-a", "3");
    rig.backplane.history.open();
    client.expect_on("pusher_internal:subscription_succeeded", "cache-a");
    for expect in 1..=3 {
        assert_eq!(client.expect_on("message", "cache-a"), expect);
    }
    rig.publish("cache-a", "4");
    assert_eq!(client.expect_on("message", "cache-a"), 4);
    client.expect_nothing();
}

/// What history had before the node was handed it is not written again.
#[test]
fn what_comes_late_is_not_told_twice() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    let mut early = Client::connect(&rig);
    miss(&mut early, "cache-a");
    rig.backplane.hold_publications();
    rig.publish("cache-a", "1");
    client.subscribe("cache-a");
    assert_eq!(client.expect_on("message", "cache-a"), 1);
    rig.backplane.hand_over();
    rig.publish("cache-a", "2");
    assert_eq!(client.expect_on("message", "cache-a"), 2);
    for expect in 1..=2 {
        assert_eq!(early.expect_on("message", "cache-a"), expect);
    }
    client.expect_nothing();
}

/// Only the newest is wanted: of what does not fit, no more than that is kept.
#[test]
fn of_more_than_can_be_kept_the_last_is_told() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    let large = "x".repeat(60_000);
    rig.backplane.history.shut();
    client.ask("cache-a");
    rig.backplane.history.eventually_arrived(1);
    for _ in 0..6 {
        rig.publish("cache-a", &large);
    }
    rig.publish("cache-a", "7");
    rig.backplane.history.open();
    client.expect_on("pusher_internal:subscription_succeeded", "cache-a");
    let data = client.expect_on("message", "cache-a");
    if data != 7 {
        assert_eq!(client.expect_on("message", "cache-a"), 7);
    }
    client.expect_nothing();
    assert_eq!(rig.backplane.history.arrived(), 1);
}

#[test]
fn a_gap_is_told_and_the_last_event_comes_again() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    client.subscribe("news");
    miss(&mut client, "cache-a");
    rig.publish("cache-a", "1");
    assert_eq!(client.expect_on("message", "cache-a"), 1);
    rig.gap("news", None);
    let told = client.next();
    assert_eq!((&told["event"], &told["channel"]), (&json!("pusher:error"), &json!("news")));
    assert!(told["data"]["message"].as_str().unwrap().contains("reconnect"), "{told}");
    rig.gap("cache-a", None);
    assert_eq!(client.next()["channel"], "cache-a");
    assert_eq!(client.expect_on("message", "cache-a"), 1);
    client.expect_nothing();
}
