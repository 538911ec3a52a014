//! The first messages, right and wrong.

use serde_json::json;
use tidegate_testkit::{DEADLINE, RawTcp, Received, WsClient, masked_frame};

use super::{
    super::rig::Rig,
    client::{Client, PATH, app, config},
};

#[test]
fn each_connection_has_a_name() {
    let rig = Rig::start(config());
    let clients: Vec<Client> = (0..3).map(|_| Client::connect(&rig)).collect();
    for client in &clients {
        let (a, b) = client.id.split_once('.').unwrap();
        assert!(a.parse::<u64>().unwrap() < 1 << 53 && b.parse::<u64>().is_ok(), "{}", client.id);
    }
    assert!(clients[0].id != clients[1].id && clients[1].id != clients[2].id);
    drop(clients);
    rig.eventually_empty();
}

#[test]
fn a_wrong_request_is_told_by_the_socket() {
    let mut config = config();
    let mut disabled = app(&mut config).clone();
    (disabled.key, disabled.enabled) = (Some("off".into()), false);
    config.apps.0.insert(crate::app::apps::AppId::new("2").unwrap(), disabled);
    app(&mut config).limits.connections = 1;
    let rig = Rig::start(config);
    let _first = Client::connect(&rig);
    for (path, code) in [
        ("/app/nobody?protocol=7", 4001),
        ("/app/off?protocol=7", 4003),
        (PATH, 4004),
        ("/app", 4005),
        ("/app/a/b?protocol=7", 4005),
        ("/app/dev-key?protocol=x", 4006),
        ("/app/dev-key?protocol=4", 4007),
        ("/app/dev-key?protocol=8", 4007),
        ("/app/dev-key", 4008),
    ] {
        let mut client = Client { socket: WsClient::connect(rig.address, path), id: String::new() };
        let text = client.expect_error(Some(code));
        assert_eq!(client.socket.expect_close(code), text, "{path}");
    }
    rig.eventually_metric("tidegate_disconnects_total{reason=\"forbidden\"}", 9.0);
    assert_eq!(rig.metric("tidegate_close_frames_total{code=\"4000-4009\"}"), 9.0);
}

#[test]
fn a_connection_that_ends_gives_its_place_back() {
    let mut config = config();
    app(&mut config).limits.connections = 1;
    let rig = Rig::start(config);
    for _ in 0..3 {
        drop(Client::connect(&rig));
        rig.eventually_empty();
    }
    assert_eq!(rig.apps.by_id("1").unwrap().connections(), 0);
}

#[test]
fn pages_of_any_origin_may_connect() {
    let mut config = config();
    (config.dev, config.auth.allowed_origins) = (false, vec![crate::config::OriginRule::SameOrigin]);
    let rig = Rig::start(config);
    let origin = [("Origin", "https://elsewhere.example")];
    assert!(WsClient::try_connect(rig.address, "/ws?channel=a", &origin).is_err());
    let socket = WsClient::try_connect(rig.address, PATH, &origin).unwrap();
    Client { socket, id: String::new() }.expect("pusher:connection_established");
}

#[test]
fn bad_input_is_answered_and_the_connection_stays() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    let mut check = |text: &str, expect: &str| {
        client.socket.send_text(text);
        let error = client.expect_error(None);
        assert!(error.contains(expect), "{text}: {error}");
        client.expect_nothing();
    };
    for text in ["", "{", "[]", "null", "{}", r#"{"event":7}"#] {
        check(text, "not a JSON object with an event");
    }
    check(r#"{"event":"pusher:hello","data":{}}"#, "there is no event");
    check(r#"{"event":"news","channel":"a","data":{}}"#, "there is no event");
    check(r#"{"event":"pusher:subscribe","data":{}}"#, "the data of pusher:subscribe");
    check(r#"{"event":"pusher:subscribe","data":"{"}"#, "the data of pusher:subscribe");
    check(r#"{"event":"pusher:signin","data":{"auth":1}}"#, "the data of pusher:signin");
    check(r#"{"event":"pusher:unsubscribe","data":{"channel":"a"}}"#, "not subscribed");
    check(r#"{"event":"client-a","data":1}"#, "names its channel");
    client.socket.send_binary(b"{}");
    assert!(client.expect_error(None).contains("binary"));
    client.send("pusher:pong", json!({}));
    client.expect_nothing();
    client.socket.send_ping(b"p");
    assert_eq!(client.socket.expect_pong(), b"p");
}

#[test]
fn a_message_that_is_too_long_is_told_and_ends_the_connection() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    client.socket.send_text(&"x".repeat(70_000));
    assert!(client.expect_error(Some(1009)).contains("larger"));
    client.socket.expect_close(1009);
    rig.eventually_metric("tidegate_disconnects_total{reason=\"message_too_large\"}", 1.0);
}

#[test]
fn what_comes_with_the_request_is_answered_after_hello() {
    let rig = Rig::start(config());
    let mut client = RawTcp::upgrade(rig.address, PATH);
    client.send(&masked_frame(0x81, br#"{"event":"pusher:subscribe","data":{"channel":"a"}}"#));
    client.read_head(DEADLINE).unwrap();
    let hello = String::from_utf8(client.read_frame(DEADLINE).unwrap().1).unwrap();
    assert!(hello.contains("connection_established"), "{hello}");
    let answer = String::from_utf8(client.read_frame(DEADLINE).unwrap().1).unwrap();
    assert!(answer.contains("subscription_succeeded"), "{answer}");
}

#[test]
fn who_does_not_answer_a_ping_is_closed_with_4201() {
    let mut config = config();
    let second = std::time::Duration::from_secs(1);
    (config.heartbeat.interval, config.heartbeat.timeout) = (second, second);
    let rig = Rig::start(config);
    let mut silent = RawTcp::upgraded(rig.address, PATH);
    let mut frames = Vec::new();
    loop {
        let (first, payload) = silent.read_frame(DEADLINE).unwrap();
        frames.push(first);
        if first == 0x88 {
            assert_eq!(payload[..2], 4201_u16.to_be_bytes());
            break;
        }
    }
    // Hello, a ping, the error, the close frame.
    assert_eq!(frames, [0x81, 0x89, 0x81, 0x88]);
    rig.eventually_metric("tidegate_disconnects_total{reason=\"ping_timeout\"}", 1.0);
}

#[test]
fn a_close_is_answered() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    client.socket.send_close(1000, "");
    assert!(matches!(client.socket.next(DEADLINE), Received::Closed(_)));
    rig.eventually_empty();
}
