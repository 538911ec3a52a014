//! Who is in a channel, told to raw WebSockets and event streams that ask for it.

use serde_json::{Value, json};
use tidegate_testkit::{DEADLINE, SseClient, WsClient, eventually};

use super::{
    apart::{token, token_of, with_presence},
    rig::Rig,
};
use crate::config::SlowReader;

fn user(user: &str) -> String {
    token_of(&json!({"sub": user, "channels": ["*"], "info": {"of": user}}))
}

/// The users of a list, in order.
fn users(list: &Value) -> Vec<&str> {
    let mut users: Vec<_> =
        list["members"].as_array().unwrap().iter().map(|member| member["user"].as_str().unwrap()).collect();
    users.sort_unstable();
    users
}

#[test]
fn a_command_is_answered_with_the_list_and_what_changes_follows() {
    let rig = Rig::start(with_presence());
    let mut ada = WsClient::connect(rig.address, &format!("/ws?envelope=json&token={}", user("ada")));
    let mut quiet = WsClient::connect(rig.address, "/ws?channel=room:1&envelope=json");
    ada.send_text(r#"{"subscribe":"room:1","join_leave":true,"id":1}"#);
    let answer = ada.expect_json();
    let (list, own) = (&answer["ok"], &answer["ok"]["members"][0]);
    assert_eq!((users(list), &list["count"], &answer["id"]), (vec!["ada"], &json!(1), &json!(1)), "{answer}");
    assert_eq!((&own["info"], own["connection"].is_string()), (&json!({"of": "ada"}), true));

    let bob = WsClient::connect(rig.address, &format!("/ws?channel=room:1&token={}", user("bob")));
    let join = ada.expect_json();
    let (joined, connection) = (&join["join"], &join["join"]["connection"]);
    assert_eq!((&join["channel"], &joined["user"]), (&json!("room:1"), &json!("bob")), "{join}");
    assert_eq!((&joined["info"], &joined["connections"]), (&json!({"of": "bob"}), &json!(1)));
    ada.send_text(r#"{"presence":"room:1","id":2}"#);
    let asked = ada.expect_json();
    assert_eq!((users(&asked["ok"]), &asked["ok"]["count"]), (vec!["ada", "bob"], &json!(2)), "{asked}");
    drop(bob);
    let leave = json!({"connection": connection, "user": "bob", "connections": 0});
    assert_eq!(ada.expect_json(), json!({"channel": "room:1", "leave": leave}));

    // Who did not ask is told nothing of it, and who unsubscribes is gone.
    rig.publish("room:1", "x");
    assert_eq!(quiet.expect_json()["data"], "x");
    assert_eq!(ada.expect_json()["data"], "x");
    ada.send_text(r#"{"unsubscribe":"room:1","id":3}"#);
    assert_eq!(ada.expect_json()["id"], 3);
    eventually("nobody is present", DEADLINE, || rig.present("room:1").is_empty());
}

#[test]
fn channels_of_a_url_are_told_by_its_parameter() {
    let rig = Rig::start(with_presence());
    let path = "channel=room:1&channel=plain:a&join_leave=true";
    let mut socket = WsClient::connect(rig.address, &format!("/ws?envelope=json&{path}"));
    let nobody = json!({"channel": "room:1", "members": [], "count": 0});
    assert_eq!(socket.expect_json(), nobody);
    let mut stream = SseClient::connect(rig.address, &format!("/sse?{path}"), None);
    let event = stream.expect_event();
    let data = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!((&*event.event, data(&event.data)), ("members", nobody));
    let client = WsClient::connect(rig.address, &format!("/ws?channel=room:1&token={}", token()));
    let mut expect = |name: &str, connections: u64| {
        let notice = socket.expect_json();
        assert_eq!(notice[name]["connections"], connections, "{notice}");
        let event = stream.expect_event();
        assert_eq!((&*event.event, data(&event.data)), (name, notice));
    };
    expect("join", 1);
    let second = WsClient::connect(rig.address, &format!("/ws?channel=room:1&token={}", token()));
    expect("join", 2);
    drop((client, second));
    expect("leave", 1);
    expect("leave", 0);
    rig.publish("room:1", "x");
    assert_eq!(stream.expect_event().data, "x");
}

#[test]
fn it_is_refused_where_nobody_is_tracked_or_nobody_can_be_told() {
    let rig = Rig::start(with_presence());
    let refused = |path: &str| match WsClient::try_connect(rig.address, path, &[]) {
        Ok(_) => panic!("{path} is let in"),
        Err(refusal) => refusal.status,
    };
    assert_eq!(refused("/ws?channel=room:1&join_leave=true"), 400, "a verbatim client has no words for it");
    assert_eq!(refused("/ws?channel=plain:a&envelope=json&join_leave=true"), 404);
    let stream = SseClient::try_connect(rig.address, "/sse?channel=plain:a&join_leave=true", None);
    assert_eq!(stream.map(drop).unwrap_err().0.status, 404);
    let mut client = WsClient::connect(rig.address, "/ws?envelope=json");
    client.send_text(r#"{"subscribe":"plain:a","join_leave":true,"id":1}"#);
    assert_eq!(client.expect_json()["error"]["code"], 404);
}

/// Lists that come at once, to a client that reads none: it has its queue, and ends.
#[test]
fn lists_that_nobody_reads_are_bounded() {
    const CHANNELS: usize = 100;
    let mut config = with_presence();
    config.limits.anonymous_subscriptions = CHANNELS as u32;
    let queue_bytes = config.limits.send_queue_bytes.bytes() as f64;
    let rig = Rig::start(config);
    let info = json!("x".repeat(6 * 1024)).to_string();
    for channel in 0..CHANNELS {
        for number in 0..10 {
            rig.join(&format!("room:{channel}"), &format!("n.{number}"), &info);
        }
    }
    let mut client = WsClient::connect(rig.address, "/ws?envelope=json");
    rig.backplane.subscription.shut();
    let before = rig.backplane.subscription.arrived();
    for channel in 0..CHANNELS {
        client.send_text(&format!(r#"{{"subscribe":"room:{channel}","join_leave":true,"id":{channel}}}"#));
    }
    rig.backplane.subscription.eventually_arrived(before + CHANNELS);
    rig.backplane.subscription.open();
    let mut most = 0.0_f64;
    eventually("the client is disconnected", DEADLINE, || {
        most = most.max(rig.metric("tidegate_send_queue_bytes "));
        rig.metric("tidegate_disconnects_total{reason=\"slow_reader\"}") == 1.0
    });
    assert!(most <= 2.0 * queue_bytes, "{most} bytes waited");
}

/// Publications may take the place of publications; who joined and left is told whole.
#[test]
fn a_slow_reader_misses_no_join() {
    let mut config = with_presence();
    config.namespaces.named.get_mut("room").unwrap().slow_reader = SlowReader::Latest;
    let rig = Rig::start(config);
    let mut slow = WsClient::connect(rig.address, "/ws?channel=room:1&envelope=json&join_leave=true");
    assert_eq!(slow.expect_json()["count"], 0);
    let big = "x".repeat(60 * 1024);
    for _ in 0..200 {
        rig.publish("room:1", &big);
    }
    let clients: Vec<_> = (0..5)
        .map(|_| WsClient::connect(rig.address, &format!("/ws?channel=room:1&token={}", token())))
        .collect();
    eventually("all are present", DEADLINE, || rig.present("room:1").len() == 5);
    for _ in 0..200 {
        rig.publish("room:1", &big);
    }
    let mut joins = Vec::new();
    while joins.len() < 5 {
        let frame = slow.expect_json();
        joins.extend(frame["join"]["connections"].as_u64());
    }
    assert_eq!(joins, [1, 2, 3, 4, 5]);
    drop(clients);
}
