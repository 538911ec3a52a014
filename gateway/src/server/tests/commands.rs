//! Commands on an open raw WebSocket.

use tidegate_testkit::WsClient;

use super::rig::{Rig, config};

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
