//! What clients publish: order, what is under way when they leave, and what their messages are counted as.

use std::{sync::Arc, time::Duration};

use tidegate_backplane::Channel;
use tidegate_testkit::{DEADLINE, RawTcp, WsClient, eventually, masked_frame};

use super::rig::{Rig, config};
use crate::{
    config::{ByteSize, Config},
    node::interest::{Interest, Load},
    node::shards::Order,
};

/// Leaves a channel that has a subscriber no room for another publication.
fn fill(rig: &Rig, channel: &str) -> Load {
    let interest: Arc<Interest> = rig.relay.interests.get(&Channel::new(channel).unwrap()).unwrap();
    interest.load(1 << 20)
}

/// Without limits on what a client publishes in a second.
fn unlimited() -> Config {
    let mut config = config();
    config.limits.publishes_per_second = 0;
    config.limits.publish_bytes_per_second = ByteSize::kib(0);
    config
}

#[test]
fn what_came_before_the_close_frame_is_published_in_order() {
    let rig = Rig::start(config());
    let mut reader = WsClient::connect(rig.address, "/ws?channel=plain:a");
    let mut writer = WsClient::connect(rig.address, "/ws?channel=plain:a");
    let full = fill(&rig, "plain:a");
    // The first waits for room, the others wait for the first.
    for text in ["1", "2", "3"] {
        writer.send_text(text);
    }
    writer.send_close(1000, "");
    let received = || rig.metric("tidegate_messages_received_total ");
    eventually("the first is received", DEADLINE, || received() > 0.0);
    drop(full);
    for text in ["1", "2", "3"] {
        assert_eq!(reader.expect_text(), text);
    }
    writer.read_to_close(DEADLINE);
    rig.eventually_metric("tidegate_disconnects_total{reason=\"client_closed\"}", 1.0);
}

#[test]
fn what_a_client_sent_at_once_is_published_though_it_is_gone_before_there_is_room() {
    let rig = Rig::start(config());
    let mut reader = WsClient::connect(rig.address, "/ws?channel=plain:a");
    let full = fill(&rig, "plain:a");
    let mut writer = RawTcp::upgrade(rig.address, "/ws?channel=plain:a");
    writer.read_head(DEADLINE).unwrap();
    let frames: Vec<u8> = (1..=20).flat_map(|n| masked_frame(0x81, &[b'a' + n])).collect();
    writer.send(&frames);
    rig.eventually_metric("tidegate_messages_received_total ", 20.0);
    // The order to go does not wait for the publish, the connection is not paused while it leaves.
    rig.relay.to_all(&Order::Drain { over: Duration::ZERO });
    rig.eventually_metric("tidegate_disconnects_total{reason=\"drain\"}", 2.0);
    drop(writer);
    let mut again = WsClient::connect(rig.address, "/ws?channel=plain:a");
    drop(full);
    for n in 1..=20 {
        assert_eq!(again.expect_text(), char::from(b'a' + n).to_string());
    }
    assert_eq!(reader.expect_close(1012), "this node is draining");
}

#[test]
fn a_message_that_may_not_be_published_is_counted() {
    let rig = Rig::start(config());
    let mut client = WsClient::connect(rig.address, "/ws?channel=a&envelope=json");
    client.send_text(r#"{"data":1}"#);
    assert_eq!(client.expect_json()["error"]["code"], 403);
    client.send_text("{");
    assert_eq!(client.expect_json()["error"]["code"], 400);
    assert_eq!(rig.metric("tidegate_messages_dropped_total{reason=\"forbidden\"}"), 2.0);
}

/// A client whose publish waits still answers pings, and may be told apart from one that is gone.
#[test]
fn a_client_whose_publishes_wait_is_heard() {
    let rig = Rig::start(config());
    let mut reader = WsClient::connect(rig.address, "/ws?channel=plain:a");
    let mut writer = RawTcp::upgraded(rig.address, "/ws?channel=plain:a");
    let full = fill(&rig, "plain:a");
    writer.send(&masked_frame(0x81, b"1"));
    rig.eventually_metric("tidegate_messages_received_total ", 1.0);
    // A pong as if to the gateway's first ping.
    writer.send(&masked_frame(0x8A, &[0; 8]));
    rig.eventually_metric("tidegate_ping_rtt_seconds_count ", 1.0);
    drop(full);
    assert_eq!(reader.expect_text(), "1");
}

#[test]
fn what_waits_to_be_published_is_bounded_and_nothing_of_it_is_lost() {
    let rig = Rig::start(unlimited());
    let mut reader = WsClient::connect(rig.address, "/ws?channel=plain:a");
    let full = fill(&rig, "plain:a");
    let mut writer = RawTcp::upgraded(rig.address, "/ws?channel=plain:a");
    // Each more than a read takes: reading stops with the second one that waits.
    let message = |n: u8| masked_frame(0x82, &vec![n; 60_000]);
    for n in 0..12 {
        writer.send(&message(n));
    }
    rig.eventually_metric("tidegate_messages_received_total ", 3.0);
    // A connection that came later is served; by then the first has been read as far as it is.
    WsClient::connect(rig.address, "/ws?channel=plain:b").send_ping(b"x");
    assert!(rig.metric("tidegate_messages_received_total ") <= 4.0);
    drop(full);
    for n in 0..12 {
        assert_eq!(reader.expect_binary()[0], n);
    }
}

/// However much came while a publish was under way, it waits for the backplane once more for each change of the channel.
#[test]
fn what_waits_to_be_published_goes_together() {
    let rig = Rig::start(unlimited());
    let mut reader = WsClient::connect(rig.address, "/ws?channel=plain:a&channel=plain:b&envelope=json");
    let mut writer = WsClient::connect(rig.address, "/ws?channel=plain:a&channel=plain:b&envelope=json");
    rig.backplane.publishes.shut();
    let sent: Vec<(char, usize)> = (0..40).map(|n| (if n < 30 { 'a' } else { 'b' }, n)).collect();
    for (channel, n) in &sent {
        writer.send_text(&format!(r#"{{"channel":"plain:{channel}","data":{n}}}"#));
    }
    rig.eventually_metric("tidegate_messages_received_total ", 40.0);
    for count in 1..=3 {
        rig.backplane.publishes.eventually_arrived(count);
        rig.backplane.publishes.let_pass();
    }
    for (channel, n) in sent {
        let told = reader.expect_json();
        assert_eq!(
            (&told["channel"], &told["data"]),
            (&format!("plain:{channel}").into(), &n.to_string().into())
        );
    }
    assert_eq!(rig.backplane.publishes.arrived(), 3);
}

/// What those who left had sent takes a bounded part of the node's memory; what is more is counted.
#[test]
fn what_is_left_by_those_who_go_is_bounded() {
    let mut config = unlimited();
    config.limits.left_behind_bytes = ByteSize::kib(64);
    let rig = Rig::start(config);
    let mut reader = WsClient::connect(rig.address, "/ws?channel=plain:a");
    let full = fill(&rig, "plain:a");
    let dropped = "tidegate_messages_dropped_total{reason=\"publish_failed\"}";
    // The first message of each is under way, the second is left; there is room for one of those.
    for n in [1, 2] {
        let mut writer = RawTcp::upgraded(rig.address, "/ws?channel=plain:a");
        let close = masked_frame(0x88, &1000u16.to_be_bytes());
        writer.send(&[masked_frame(0x82, &[n]), masked_frame(0x82, &[n; 40_000]), close].concat());
        writer.read_to_end(DEADLINE).unwrap();
    }
    rig.eventually_metric(dropped, 1.0);
    // What is under way of both counts, and what is left of one.
    let left = rig.left_behind_bytes();
    assert!((40_002..64 * 1024).contains(&left), "{left}");
    drop(full);
    let mut sizes: Vec<usize> = (0..3).map(|_| reader.expect_binary().len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 1, 40_000]);
    tidegate_testkit::eventually("nothing is left", DEADLINE, || rig.left_behind_bytes() == 0);
}
