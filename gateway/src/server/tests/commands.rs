//! Commands on an open raw WebSocket.

use tidegate_testkit::WsClient;

use super::rig::{Rig, config};
use crate::config::ByteSize;

#[test]
fn a_client_without_channels_subscribes_recovers_and_leaves() {
    let rig = Rig::start(config());
    let start = rig.publish("a", "1").unwrap();
    rig.publish("a", "2");
    let mut client = WsClient::connect(rig.address, "/ws?envelope=json");
    client.send_text(r#"{"ping":true,"id":1}"#);
    assert_eq!(client.expect_text(), r#"{"ok":{},"id":1}"#);
    client.send_text(&format!(r#"{{"subscribe":"a","since":"{start}","id":2}}"#));
    let told = client.expect_json();
    assert_eq!((&told["id"], &told["ok"]["recovered"]), (&2.into(), &true.into()), "{told}");
    assert_eq!(client.expect_json()["data"], "2");
    rig.publish("a", "3");
    assert_eq!(client.expect_json()["data"], "3");
    client.send_text(r#"{"subscribe":"a","id":3}"#);
    assert_eq!(client.expect_json()["error"]["code"], 409);
    client.send_text(r#"{"subscribe":"b","id":4}"#);
    assert_eq!(client.expect_json()["ok"]["channel"], "b");
    client.send_text(r#"{"history":{"channel":"a","limit":2},"id":5}"#);
    let history = client.expect_json();
    assert_eq!(history["ok"]["publications"].as_array().unwrap().len(), 2, "{history}");
    client.send_text(r#"{"unsubscribe":"a","id":6}"#);
    assert_eq!(client.expect_text(), r#"{"ok":{"channel":"a"},"id":6}"#);
    client.send_text(r#"{"unsubscribe":"a","id":7}"#);
    assert_eq!(client.expect_json()["error"]["code"], 404);
    client.send_text(r#"{"subscribe":"a b","id":8}"#);
    let refused = client.expect_json();
    assert_eq!((&refused["error"]["code"], &refused["id"]), (&400.into(), &8.into()));
    client.send_text(r#"{"publish":{"channel":"b","data":1},"id":9}"#);
    assert_eq!(client.expect_json()["error"]["code"], 403);
    client.send_text(r#"{"token":"x","id":10}"#);
    assert_eq!(client.expect_json()["error"]["code"], 401);
    rig.eventually_subscribers("a", 0);
    drop(client);
    rig.eventually_empty();
}

#[test]
fn a_publish_that_is_refused_late_is_told_with_its_id() {
    let mut config = config();
    config.limits.publish_bytes = ByteSize::kib(1);
    let rig = Rig::start(config);
    let mut client = WsClient::connect(rig.address, "/ws?channel=plain:a&envelope=json");
    let publish = |id: u32, bytes: usize| {
        format!(r#"{{"publish":{{"channel":"plain:a","data":"{}"}},"id":{id}}}"#, "x".repeat(bytes))
    };
    client.send_text(&publish(1, 2000));
    let told = client.expect_json();
    assert_eq!((&told["error"]["code"], &told["id"]), (&413.into(), &1.into()), "{told}");
    // One that waits for it is answered as well.
    client.send_text(&publish(2, 3));
    let mut told = [client.expect_json(), client.expect_json()];
    told.sort_by_key(|told| told["id"].is_null());
    assert_eq!((&told[0]["ok"].is_object(), &told[0]["id"]), (&true, &2.into()), "{told:?}");
    assert_eq!(told[1]["data"], "xxx");
    assert!(told[1]["user"].is_null(), "{told:?}");
}

#[test]
fn several_channels_come_back_each_from_its_position() {
    let rig = Rig::start(config());
    let (a, c) = (rig.publish("a", "a1").unwrap(), rig.publish("c", "c1").unwrap());
    for (channel, data) in [("a", "a2"), ("b", "b1"), ("c", "c2")] {
        rig.publish(channel, data);
    }
    let path = format!("/ws?channel=a&channel=b&channel=c&since={a},,{c}");
    let mut client = WsClient::connect(rig.address, &path);
    let mut missed = [client.expect_text(), client.expect_text()];
    missed.sort();
    assert_eq!(missed, ["a2", "c2"]);
    rig.publish("b", "b2");
    assert_eq!(client.expect_text(), "b2");
}
