//! Events that clients send to each other.

use serde_json::json;
use tidegate_testkit::{DEADLINE, RawTcp, WsClient, masked_frame};

use super::{
    super::rig::Rig,
    client::{Client, PATH, app, config, signature},
};
use crate::config::{List, Setting as _, WebhookEntry, WebhookEvent, WebhookUrl};

#[test]
fn others_get_them_and_the_sender_does_not() {
    let rig = Rig::start(config());
    let (mut a, mut b) = (Client::connect(&rig), Client::connect(&rig));
    let mut raw = WsClient::connect(rig.address, "/ws?channel=private-a");
    a.subscribe("private-a");
    b.subscribe("private-a");
    a.send_event("private-a", "client-x", json!({ "n": 1 }));
    a.send_event("private-a", "client-x", json!("{\"n\":2}"));
    assert_eq!(b.expect_on("client-x", "private-a"), json!({ "n": 1 }));
    assert_eq!(b.expect_on("client-x", "private-a"), json!({ "n": 2 }));
    b.send_event("private-a", "client-y", json!("three"));
    let message = a.next();
    assert_eq!(message["data"], "three", "{message}");
    assert_eq!(message.get("user_id"), None, "{message}");
    rig.publish("private-a", "4");
    assert_eq!(b.expect_on("message", "private-a"), 4);
    assert_eq!(a.expect_on("message", "private-a"), 4);
    for expect in [r#"{"n":1}"#, r#"{"n":2}"#, "three", "4"] {
        assert_eq!(raw.expect_text(), expect);
    }
}

#[test]
fn presence_channels_say_who_sent_them() {
    let rig = Rig::start(config());
    let (mut a, mut b) = (Client::connect(&rig), Client::connect(&rig));
    assert_eq!(a.subscribe_as("presence-a", "ann"), ["ann"]);
    assert_eq!(b.subscribe_as("presence-a", "bob"), ["ann", "bob"]);
    a.expect_on("pusher_internal:member_added", "presence-a");
    b.send_event("presence-a", "client-x", json!({}));
    let message = a.next();
    assert_eq!((&message["event"], &message["user_id"]), (&json!("client-x"), &json!("bob")));
    b.expect_nothing();
}

#[test]
fn where_they_are_refused() {
    let mut config = config();
    app(&mut config).limits.event_bytes = crate::config::ByteSize::new(10);
    let rig = Rig::start(config);
    let mut client = Client::connect(&rig);
    client.subscribe("a");
    client.subscribe("private-encrypted-a");
    client.subscribe("private-a");
    let mut check = |channel: &str, data: &str, expect: &str| {
        client.send_event(channel, "client-x", json!(data));
        let message = client.next();
        assert_eq!((&message["event"], &message["channel"]), (&json!("pusher:error"), &json!(channel)));
        let text = message["data"]["message"].as_str().unwrap();
        assert!(text.contains(expect), "{text}");
    };
    check("a", "1", "private and presence channels only");
    check("private-encrypted-a", "1", "private and presence channels only");
    check("private-b", "1", "not subscribed");
    check("presence-b", "1", "not subscribed");
    check("private-a", "12345678901", "11 bytes, 10 are allowed");
    assert_eq!(rig.metric("tidegate_messages_dropped_total{reason=\"forbidden\"}"), 4.0);
}

#[test]
fn an_app_may_switch_them_off() {
    let mut config = config();
    app(&mut config).client_events = false;
    let rig = Rig::start(config);
    let mut client = Client::connect(&rig);
    client.subscribe("private-a");
    client.send_event("private-a", "client-x", json!(1));
    assert!(client.expect_error(None).contains("switched off"));
}

/// 200 in one write: at 10 a second, some of them are too many, however slow the machine is.
#[test]
fn too_many_are_told_4301() {
    let rig = Rig::start(config());
    let mut reader = Client::connect(&rig);
    reader.subscribe("private-a");
    let mut writer = RawTcp::upgraded(rig.address, PATH);
    let text = |writer: &mut RawTcp| String::from_utf8(writer.read_frame(DEADLINE).unwrap().1).unwrap();
    let hello: serde_json::Value = serde_json::from_str(&text(&mut writer)).unwrap();
    let hello: serde_json::Value = serde_json::from_str(hello["data"].as_str().unwrap()).unwrap();
    let auth = signature(&format!("{}:private-a", hello["socket_id"].as_str().unwrap()));
    let subscribe = json!({ "event": "pusher:subscribe", "data": { "channel": "private-a", "auth": auth } });
    writer.send(&masked_frame(0x81, subscribe.to_string().as_bytes()));
    assert!(text(&mut writer).contains("subscription_succeeded"));
    let frames: Vec<u8> = (0..200)
        .flat_map(|n| {
            let event = json!({ "event": "client-x", "channel": "private-a", "data": n });
            masked_frame(0x81, event.to_string().as_bytes())
        })
        .collect();
    writer.send(&frames);
    writer.send(&masked_frame(0x81, br#"{"event":"pusher:ping"}"#));
    let mut refused = 0;
    loop {
        let answer = text(&mut writer);
        if answer.contains("pusher:pong") {
            break;
        }
        assert!(answer.contains(r#""code":4301"#) && answer.contains("private-a"), "{answer}");
        refused += 1;
    }
    assert!((1..=190).contains(&refused), "{refused}");
    assert_eq!(rig.metric("tidegate_messages_dropped_total{reason=\"rate_limit\"}"), f64::from(refused));
    for _ in 0..200 - refused {
        reader.expect_on("client-x", "private-a");
    }
    reader.expect_nothing();
}

/// Its own are left out of what piled up; the rest is in order.
#[test]
fn who_sent_some_of_a_batch_gets_the_rest() {
    let rig = Rig::start(config());
    let (mut a, mut b) = (Client::connect(&rig), Client::connect(&rig));
    a.subscribe("news");
    b.subscribe("news");
    for n in 0..300 {
        let sender = match n % 3 {
            0 => Some(&*a.id),
            1 => Some("12.34"),
            _ => None,
        };
        rig.publish_as("news", Some("n"), &n.to_string(), sender);
    }
    for n in 0..300 {
        assert_eq!(b.expect_on("n", "news"), n);
        if n % 3 != 0 {
            assert_eq!(a.expect_on("n", "news"), n);
        }
    }
    a.expect_nothing();
    rig.eventually_metric("tidegate_messages_sent_total ", 500.0);
}

/// Nobody listens there; what is to be told is counted when it is queued.
#[test]
fn webhooks_are_told_of_what_happens_in_sessions() {
    let mut config = config();
    let webhook = WebhookEntry {
        url: WebhookUrl::from_text("http://127.0.0.1:9/"),
        events: vec![WebhookEvent::ClientEvent, WebhookEvent::CacheMiss],
        ..WebhookEntry::default()
    };
    app(&mut config).webhooks = List(vec![webhook]);
    let rig = Rig::start(config);
    let mut client = Client::connect(&rig);
    client.subscribe("private-cache-a");
    client.expect_on("pusher:cache_miss", "private-cache-a");
    assert_eq!(rig.metric("tidegate_webhook_events_total "), 1.0);
    client.send_event("private-cache-a", "client-x", json!(1));
    client.send_event("private-b", "client-x", json!(1));
    client.expect_error(None);
    assert_eq!(rig.metric("tidegate_webhook_events_total "), 2.0);
}
