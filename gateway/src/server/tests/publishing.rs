//! What clients publish: order, what is under way when they leave, and what their messages are counted as.

use std::sync::Arc;

use tidegate_backplane::Channel;
use tidegate_testkit::{DEADLINE, WsClient, eventually};

use super::rig::{Rig, config};
use crate::node::interest::{Interest, Load};

/// Leaves a channel that has a subscriber no room for another publication.
fn fill(rig: &Rig, channel: &str) -> Load {
    let interest: Arc<Interest> = rig.relay.interests.get(&Channel::new(channel).unwrap()).unwrap();
    interest.load(1 << 20)
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
    let mut writer = tidegate_testkit::RawTcp::upgrade(rig.address, "/ws?channel=plain:a");
    writer.read_head(DEADLINE).unwrap();
    let frames: Vec<u8> = (1..=20).flat_map(|n| tidegate_testkit::masked_frame(0x81, &[b'a' + n])).collect();
    writer.send(&frames);
    rig.eventually_metric("tidegate_messages_received_total ", 20.0);
    // The order to go does not wait for the publish, the connection is not paused while it leaves.
    rig.relay.to_all(&crate::node::shards::Order::Drain { over: std::time::Duration::ZERO });
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
