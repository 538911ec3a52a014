//! Reads of history that subscribers share: who gets which, and in what order within the budget.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use serde_json::json;
use tidegate_backplane::Channel;
use tidegate_testkit::WsClient;

use super::rig::{Rig, config};
use crate::{
    config::ByteSize,
    node::histories::{Page, Reading},
    subscription::Read,
};

fn read(rig: &Rig, channel: &str, read: Read) -> Reading {
    rig.node.histories().read(&Channel::new(channel).unwrap(), read)
}

/// The page if it is there; asking drives the read.
fn page(reading: &Reading) -> Option<Arc<Page>> {
    reading.clone().now_or_never().map(Result::unwrap)
}

#[test]
fn who_asks_after_a_read_was_sent_gets_the_next_one() {
    let rig = Rig::start(config());
    let after = Read::Page(rig.publish("a", "1").unwrap());
    let gate = &rig.backplane.history;
    gate.shut();
    let first = read(&rig, "a", after);
    assert!(page(&first).is_none());
    let sent = gate.arrived();
    // It is not in the read that was sent, and who asks now may not have heard it.
    rig.publish("a", "2");
    let [second, third] = [(); 2].map(|()| read(&rig, "a", after));
    assert!(page(&second).is_none() && page(&third).is_none());
    assert_eq!(gate.arrived(), sent, "the next is sent when the first is back");
    gate.open();
    let publications = |reading: &Reading| page(reading).unwrap().history.publications.len();
    assert_eq!([&first, &second, &third].map(publications), [0, 1, 1]);
    let usage = rig.node.histories().usage();
    assert_eq!((usage.reads_sent, usage.reads_joined), (2, 1));
}

#[test]
fn reads_wait_for_the_budget_in_their_order() {
    let mut config = config();
    // Room for one page.
    config.limits.recovery_bytes = ByteSize::kib(1);
    let rig = Rig::start(config);
    let after = Read::Page(rig.publish("a", "1").unwrap());
    let usage = || rig.node.histories().usage();
    let held = page(&read(&rig, "a", after)).unwrap();
    assert_eq!(usage().bytes, usage().bytes_max);
    let [second, third] = ["b", "c"].map(|channel| read(&rig, channel, after));
    assert!(page(&second).is_none() && page(&third).is_none());
    assert_eq!(usage().reads_sent, 1);
    drop(held);
    assert!(page(&third).is_none(), "the second asked first");
    let held = page(&second).unwrap();
    assert!(page(&third).is_none());
    drop((held, second));
    assert!(page(&third).is_some());
    drop(third);
    assert_eq!(usage().bytes, 0);
}

#[test]
fn who_asks_later_shares_a_read_while_nothing_is_handed_to_the_node() {
    let rig = Rig::start(config());
    let after = Read::Page(rig.publish("a", "1").unwrap());
    rig.publish("a", "2");
    let mut client = WsClient::connect(rig.address, "/ws?channel=a");
    rig.eventually_subscribers("a", 1);
    let texts = || page(&read(&rig, "a", after)).unwrap().history.publications.len();
    let usage = || rig.node.histories().usage();
    let before = usage();
    assert_eq!([texts(), texts(), texts()], [1; 3]);
    assert_eq!((usage().reads_sent - before.reads_sent, usage().reads_joined - before.reads_joined), (1, 2));
    // It is in no read that was sent before.
    rig.publish("a", "3");
    assert_eq!(client.expect_text(), "3");
    assert_eq!([texts(), texts()], [2; 2]);
    assert_eq!(usage().reads_sent - before.reads_sent, 2);
    rig.block_on(rig.node.remove_history(&Channel::new("a").unwrap())).unwrap();
    assert_eq!(texts(), 0);
    assert!(usage().kept_bytes > 0);
    rig.node.histories().sweep(Instant::now() + Duration::from_secs(5));
    assert_eq!(usage().kept_bytes, 0);
}

#[test]
fn a_read_that_was_sent_is_shared_while_nothing_is_handed_to_the_node() {
    let rig = Rig::start(config());
    let after = Read::Page(rig.publish("a", "1").unwrap());
    rig.publish("a", "2");
    let _client = WsClient::connect(rig.address, "/ws?channel=a");
    rig.eventually_subscribers("a", 1);
    let before = rig.node.histories().usage();
    rig.backplane.history.shut();
    let first = read(&rig, "a", after);
    assert!(page(&first).is_none());
    let second = read(&rig, "a", after);
    rig.publish("a", "3");
    let third = read(&rig, "a", after);
    assert!(page(&second).is_none() && page(&third).is_none());
    rig.backplane.history.open();
    let publications = |reading: &Reading| page(reading).unwrap().history.publications.len();
    assert_eq!([&first, &second, &third].map(publications), [1, 1, 2]);
    let usage = rig.node.histories().usage();
    assert_eq!((usage.reads_sent - before.reads_sent, usage.reads_joined - before.reads_joined), (2, 1));
}

#[test]
fn who_come_back_one_after_the_other_cost_one_read() {
    let rig = Rig::start(config());
    let start = rig.publish("a", "1").unwrap();
    for text in ["2", "3"] {
        rig.publish("a", text);
    }
    // It holds the channel.
    let live = WsClient::connect(rig.address, "/ws?channel=a");
    rig.eventually_subscribers("a", 1);
    let before = rig.node.histories().usage().reads_sent;
    let path = format!("/ws?channel=a&since={start}");
    let command =
        json!({ "channel": "a", "recover": true, "epoch": start.epoch.to_string(), "offset": start.offset });
    let commands =
        format!("{}\n{}", json!({ "id": 1, "connect": {} }), json!({ "id": 2, "subscribe": command }));
    for _ in 0..20 {
        let mut client = WsClient::connect(rig.address, &path);
        assert_eq!([client.expect_text(), client.expect_text()], ["2", "3"]);
        let mut client = WsClient::connect(rig.address, "/connection/websocket");
        client.send_text(&commands);
        client.expect_text();
        let told = client.expect_text();
        assert!(told.contains(r#""recovered":true"#) && told.contains(r#""data":3"#), "{told}");
    }
    assert_eq!(rig.node.histories().usage().reads_sent - before, 1);
    drop(live);
}
