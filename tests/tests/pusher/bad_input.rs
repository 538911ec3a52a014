//! Clients that do it wrong: what `docs/pusher.md` says each mistake is answered, and nothing silent, nothing fatal.

use serde_json::{Value, json};
use tidegate_testkit::{Gateway, WsClient};

const PATH: &str = "/app/dev-key?protocol=7";

/// The default of `apps.ID.limits.channel_name_bytes`.
const CHANNEL_NAME_BYTES: usize = 200;

/// A client that is let in.
fn established(gateway: &Gateway) -> WsClient {
    let mut client = WsClient::connect(gateway.public(), PATH);
    let hello = client.expect_json();
    assert_eq!(hello["event"], "pusher:connection_established");
    let data: Value = serde_json::from_str(hello["data"].as_str().unwrap()).unwrap();
    let id = data["socket_id"].as_str().unwrap();
    let (left, right) = id.split_once('.').unwrap();
    assert!([left, right].iter().all(|half| half.parse::<u64>().is_ok()), "{id}");
    assert!(data["activity_timeout"].as_u64().unwrap() > 0);
    client
}

/// The connection lives: it answers a ping, next.
#[track_caller]
fn alive(client: &mut WsClient) {
    client.send_text(r#"{"event":"pusher:ping","data":{}}"#);
    assert_eq!(client.expect_json()["event"], "pusher:pong");
}

fn subscribe(channel: &str) -> String {
    json!({"event": "pusher:subscribe", "data": {"channel": channel}}).to_string()
}

#[test]
fn openings_that_are_wrong_are_told_their_code_and_closed_with_it() {
    let gateway = Gateway::builder()
        .config("[apps.off]\nkey = \"key-off\"\nsecret = \"s\"\nenabled = false\n[apps.one]\nkey = \"key-one\"\nsecret = \"s\"\nlimits.connections = 1\n")
        .start();
    let _only = WsClient::connect(gateway.public(), "/app/key-one?protocol=7");
    for (path, code) in [
        ("/app/no-such-key?protocol=7", 4001),
        ("/app/key-off?protocol=7", 4003),
        ("/app/key-one?protocol=7", 4004),
        ("/app/?protocol=7", 4005),
        ("/app/dev-key/more?protocol=7", 4005),
        ("/app/dev-key?protocol=seven", 4006),
        ("/app/dev-key?protocol=4", 4007),
        ("/app/dev-key?protocol=8", 4007),
        ("/app/dev-key?protocol=999999999999999999999", 4006),
        ("/app/dev-key", 4008),
        ("/app/dev-key?client=js", 4008),
    ] {
        let mut client = WsClient::connect(gateway.public(), path);
        let error = client.expect_json();
        assert_eq!(error["event"], "pusher:error", "{path}");
        let seen = error["data"]["code"].as_u64();
        // A number that no integer holds may be called bad or unsupported.
        let fits = seen == Some(code) || (path.len() > 40 && seen == Some(4007));
        assert!(fits, "{path}: {error}");
        assert!(!error["data"]["message"].as_str().unwrap().is_empty(), "{path}");
        client.expect_close(seen.unwrap().try_into().unwrap());
    }
    established(&gateway);
}

#[test]
fn messages_that_are_wrong_are_answered_and_the_connection_stays() {
    let gateway = Gateway::start();
    let mut client = established(&gateway);
    for text in [
        "",
        "{",
        "null",
        "[]",
        "\"pusher:ping\"",
        "{}",
        r#"{"event":7}"#,
        r#"{"event":"pusher:no-such-event","data":{}}"#,
        r#"{"event":"pusher_internal:subscription_succeeded","channel":"c","data":"{}"}"#,
        r#"{"event":"of-my-own","channel":"c","data":{}}"#,
        r#"{"event":"pusher:subscribe"}"#,
        r#"{"event":"pusher:subscribe","data":"{"}"#,
        r#"{"event":"pusher:subscribe","data":{}}"#,
        r#"{"event":"pusher:unsubscribe","data":{"channel":"never-subscribed"}}"#,
        r#"{"event":"pusher:signin","data":{}}"#,
        r#"{"event":"client-x","channel":"public","data":{}}"#,
        r#"{"event":"client-x","channel":"private-not-subscribed","data":{}}"#,
        r#"{"event":"client-x","data":{}}"#,
        "\u{0}",
    ] {
        client.send_text(text);
        let error = client.expect_json();
        assert_eq!(error["event"], "pusher:error", "{text:?}: {error}");
        assert!(error["data"]["code"].is_null(), "{text:?}: {error}");
        alive(&mut client);
    }
    client.send_binary(b"\x00\x01");
    assert_eq!(client.expect_json()["event"], "pusher:error");
    alive(&mut client);
}

#[test]
fn channels_that_are_refused_are_named_and_told_why() {
    let gateway = Gateway::start();
    let mut client = established(&gateway);
    let long = "c".repeat(CHANNEL_NAME_BYTES + 1);
    let secret = json!({"channel": "private-c", "auth": "dev-key:00"});
    let member =
        json!({"channel": "presence-c", "auth": "dev-key:00", "channel_data": "{\"user_id\":\"1\"}"});
    let server = json!({"channel": "#server-to-user-somebody", "auth": ""});
    for (data, status) in [
        (json!({"channel": "private-c"}), 401),
        (json!({"channel": "private-c", "auth": ""}), 401),
        (json!({"channel": "private-c", "auth": "dev-key"}), 401),
        (json!({"channel": "private-c", "auth": "other-key:00"}), 401),
        (secret, 401),
        (member, 401),
        (server, 401),
        (json!({"channel": "private-encrypted-c", "auth": "dev-key:00"}), 401),
        (json!({"channel": "presence-cache-c"}), 401),
        (json!({"channel": "with space"}), 400),
        (json!({"channel": "2!c"}), 400),
        (json!({"channel": "#watch-somebody"}), 401),
        (json!({"channel": "ns:c"}), 400),
        (json!({"channel": ""}), 400),
        (json!({"channel": long}), 400),
    ] {
        client.send_text(&json!({"event": "pusher:subscribe", "data": data}).to_string());
        let refused = client.expect_json();
        assert_eq!(refused["event"], "pusher:subscription_error", "{data}: {refused}");
        // A name is not given back longer than names may be.
        let (given, told) = (data["channel"].as_str().unwrap(), refused["channel"].as_str().unwrap());
        assert!(told == given || (told.len() == CHANNEL_NAME_BYTES && given.starts_with(told)), "{refused}");
        let told = match &refused["data"] {
            Value::String(text) => serde_json::from_str(text).unwrap(),
            object => object.clone(),
        };
        assert_eq!(told["status"], status, "{data}: {refused}");
        let error = client.expect_json();
        assert_eq!(error["event"], "pusher:error", "{data}: {error}");
        assert!(error["data"]["code"].is_null(), "{data}: {error}");
        alive(&mut client);
    }
    // Both forms of `data` are understood.
    let text = json!({"event": "pusher:subscribe", "data": json!({"channel": "as-text"}).to_string()});
    client.send_text(&text.to_string());
    assert_eq!(client.expect_json()["event"], "pusher_internal:subscription_succeeded");
}

#[test]
fn a_message_that_is_too_long_is_said_so_before_the_close() {
    let gateway = Gateway::builder().config("[limits]\nmessage_bytes = \"4KiB\"\n").start();
    let mut client = established(&gateway);
    let data = "x".repeat(5000);
    client.send_text(&json!({"event": "client-x", "channel": "private-c", "data": data}).to_string());
    assert_eq!(client.expect_json()["event"], "pusher:error");
    client.expect_close(1009);
    established(&gateway);
}

#[test]
fn one_connection_has_so_many_channels_and_a_second_subscription_of_one_is_no_second_one() {
    let gateway = Gateway::builder().config("[limits]\nsubscriptions = 3\n").start();
    let mut client = established(&gateway);
    for channel in ["c1", "c2", "c3"] {
        client.send_text(&subscribe(channel));
        assert_eq!(client.expect_json()["event"], "pusher_internal:subscription_succeeded");
        // The count of the channel comes with it in development mode.
        assert_eq!(client.expect_json()["event"], "pusher_internal:subscription_count");
    }
    client.send_text(&subscribe("c4"));
    assert_eq!(client.expect_json()["event"], "pusher:subscription_error");
    assert_eq!(client.expect_json()["event"], "pusher:error");
    alive(&mut client);
}

#[test]
fn what_comes_before_the_hello_was_read_is_answered_after_it() {
    let gateway = Gateway::start();
    let mut client = WsClient::connect(gateway.public(), PATH);
    client.send_text(&subscribe("early"));
    assert_eq!(client.expect_json()["event"], "pusher:connection_established");
    assert_eq!(client.expect_json()["event"], "pusher_internal:subscription_succeeded");
}
