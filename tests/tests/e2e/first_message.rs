//! A message from REST to subscribers: raw, in envelopes, as events; text, binary, many channels, order.

use serde_json::{Value, json};
use tidegate_testkit::{Gateway, WsClient};

/// Publishes over REST and expects the payload, verbatim, as a text frame.
fn check_text(payload: &str) {
    let gateway = Gateway::start();
    let mut subscriber = gateway.subscribe("news");
    gateway.rest().publish("news", payload);
    assert_eq!(subscriber.expect_text(), payload);
}

#[test]
fn a_text_payload_arrives_verbatim() {
    check_text("hello");
}

#[test]
fn json_is_not_touched() {
    check_text("{ \"a\" :1,\n\t\"b\": \"\\u00e9\" }");
}

#[test]
fn any_unicode_arrives_verbatim() {
    check_text("Grüße, 潮, 🌊, \u{7f}\u{0}");
}

#[test]
fn an_empty_payload_is_a_message_too() {
    check_text("");
}

#[test]
fn a_payload_of_the_largest_frame_size_arrives() {
    check_text(&"x".repeat(60_000));
}

#[test]
fn an_octet_stream_is_a_binary_frame() {
    let gateway = Gateway::start();
    let mut subscriber = gateway.subscribe("bytes");
    let payload: Vec<u8> = (0..=255).collect();
    gateway.rest().publish_binary("bytes", &payload);
    assert_eq!(subscriber.expect_binary(), payload);
}

#[test]
fn a_subscriber_that_is_open_misses_nothing() {
    // The subscription stands before the 101 is sent: a publish right after must arrive, every time.
    let gateway = Gateway::start();
    let rest = gateway.rest();
    for round in 0..50 {
        let channel = format!("round-{round}");
        let mut subscriber = gateway.subscribe(&channel);
        rest.publish(&channel, "first");
        assert_eq!(subscriber.expect_text(), "first");
    }
}

#[test]
fn messages_of_one_channel_keep_their_order_for_everyone() {
    let gateway = Gateway::start();
    let mut subscribers: Vec<WsClient> = (0..10).map(|_| gateway.subscribe("order")).collect();
    let rest = gateway.rest();
    for number in 0..200 {
        rest.publish("order", &number.to_string());
    }
    for subscriber in &mut subscribers {
        for number in 0..200 {
            assert_eq!(subscriber.expect_text(), number.to_string());
        }
    }
}

#[test]
fn one_connection_hears_several_channels_and_no_other() {
    let gateway = Gateway::start();
    let mut subscriber = WsClient::connect(gateway.public(), "/ws?channel=a&channel=b");
    let rest = gateway.rest();
    rest.publish("c", "not for it");
    rest.publish("a", "from a");
    rest.publish("b", "from b");
    assert_eq!(subscriber.expect_text(), "from a");
    assert_eq!(subscriber.expect_text(), "from b");
}

#[test]
fn an_envelope_has_channel_position_and_data() {
    let gateway = Gateway::start();
    let mut subscriber = WsClient::connect(gateway.public(), "/ws?channel=a&channel=b&envelope=json");
    let rest = gateway.rest();
    let text = rest.publish("a", "plain").expect("development channels have history");
    let object = rest.publish("b", r#"{"n":1}"#).expect("development channels have history");
    let binary = rest.publish_binary("b", &[0xFF, 0]).expect("development channels have history");

    let expect = |channel: &str, position: &tidegate_testkit::Position, data: Value| json!({ "channel": channel, "epoch": position.epoch, "offset": position.offset, "data": data });
    assert_eq!(subscriber.expect_json(), expect("a", &text, json!("plain")));
    assert_eq!(subscriber.expect_json(), expect("b", &object, json!({ "n": 1 })));
    let mut encoded = expect("b", &binary, json!("/wA="));
    encoded["encoding"] = json!("base64");
    assert_eq!(subscriber.expect_json(), encoded);
    assert_eq!(object.epoch, binary.epoch);
    assert_eq!(object.offset + 1, binary.offset, "offsets have no holes");
}

#[test]
fn an_event_stream_has_data_and_positions() {
    let gateway = Gateway::start();
    let mut stream = gateway.event_stream("news");
    let position = gateway.rest().publish("news", "two\nlines").expect("development channels have history");
    let event = stream.expect_event();
    assert_eq!((event.event.as_str(), event.data.as_str()), ("message", "two\nlines"));
    assert_eq!(event.id, position.to_string());
}

#[test]
fn one_request_publishes_to_many_channels() {
    let gateway = Gateway::start();
    let (mut a, mut b) = (gateway.subscribe("a"), gateway.subscribe("b"));
    let answer =
        gateway.rest().post_json("/v1/publish", &json!({ "channels": ["a", "b"], "data": { "n": 1 } }));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(a.expect_json(), json!({ "n": 1 }));
    assert_eq!(b.expect_json(), json!({ "n": 1 }));
}

#[test]
fn a_batch_publishes_each_of_its_publications() {
    let gateway = Gateway::start();
    let mut subscriber = WsClient::connect(gateway.public(), "/ws?channel=a&channel=b");
    let batch = json!({ "publications": [{ "channel": "a", "data": "1" }, { "channel": "b", "data": "2" }] });
    let answer = gateway.rest().post_json("/v1/batch", &batch);
    assert_eq!(answer.status, 200, "{}", answer.text());
    // Order is promised within a channel, not between channels.
    let mut received = [subscriber.expect_text(), subscriber.expect_text()];
    received.sort();
    assert_eq!(received, ["1", "2"]);
}

#[test]
fn a_repeated_idempotency_key_publishes_once() {
    let gateway = Gateway::start();
    let mut subscriber = gateway.subscribe("once");
    let body = json!({ "channels": ["once"], "data": "one", "idempotency_key": "k1" });
    for _ in 0..2 {
        assert_eq!(gateway.rest().post_json("/v1/publish", &body).status, 200);
    }
    gateway.rest().publish("once", "end");
    assert_eq!(subscriber.expect_text(), "one");
    assert_eq!(subscriber.expect_text(), "end");
}

#[test]
fn subscribers_are_counted() {
    let gateway = Gateway::start();
    let _subscribers = [gateway.subscribe("full"), gateway.subscribe("full")];
    gateway.eventually_connections(2);
    let channel = gateway.rest().get("/v1/channels/full").json();
    assert_eq!(channel["subscribers"], 2, "{channel}");
    let listed = gateway.rest().get("/v1/channels?prefix=fu").json();
    assert!(listed.to_string().contains("\"full\""), "{listed}");
    let not_listed = gateway.rest().get("/v1/channels?prefix=x").json();
    assert!(!not_listed.to_string().contains("\"full\""), "{not_listed}");
}

#[test]
fn history_is_readable() {
    let gateway = Gateway::start();
    let rest = gateway.rest();
    let first = rest.publish("log", "1").expect("development channels have history");
    rest.publish("log", "2");
    let answer = rest.get(&format!("/v1/channels/log/history?since={first}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let publications = &answer.json()["publications"];
    assert_eq!(publications.as_array().map(Vec::len), Some(1), "{publications}");
    assert_eq!(publications[0]["offset"], first.offset + 1);
}

#[test]
fn echo_gives_text_as_text_and_binary_as_binary() {
    let gateway = Gateway::start();
    let mut client = WsClient::connect(gateway.public(), "/echo");
    client.send_text("Grüße");
    assert_eq!(client.expect_text(), "Grüße");
    client.send_binary(&[1, 2, 3]);
    assert_eq!(client.expect_binary(), [1, 2, 3]);
    client.send_ping(b"are you there");
    assert_eq!(client.expect_pong(), b"are you there");
    client.send_close(1000, "bye");
    client.expect_close(1000);
    gateway.eventually_connections(0);
}
