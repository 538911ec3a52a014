//! What clients are told when a node ends: a close that pusher-js answers after a second, for it has no spread of its own.

use aws_lc_rs::hmac;
use serde_json::{Value, json};
use tidegate_testkit::{DEADLINE, Gateway, SHORT_DRAIN, WsClient};

use crate::site::Site;

#[test]
fn a_drain_closes_with_a_code_that_clients_answer_with_a_wait() {
    let gateway = Gateway::builder().config(SHORT_DRAIN).start();
    let path = "/app/dev-key?protocol=7";
    let mut clients: Vec<_> = (0..20).map(|_| WsClient::connect(gateway.public(), path)).collect();
    for client in &mut clients {
        assert_eq!(client.expect_json()["event"], "pusher:connection_established");
    }
    let exit = std::thread::spawn(move || gateway.terminate());
    for client in &mut clients {
        // 4200 to 4299 are answered at once, by all clients together.
        client.expect_close(1001);
    }
    assert_eq!(exit.join().unwrap().code, Some(0));
}

#[test]
fn a_node_that_is_gone_refuses_nobody_for_good() {
    let gateway = Gateway::start();
    let mut client = WsClient::connect(gateway.public(), "/app/dev-key?protocol=7");
    client.expect_json();
    gateway.kill();
    // No code at all: pusher-js comes back after a second.
    client.read_to_close(DEADLINE);
}

/// A client that is a member of `presence-room`, with what the answer said.
fn enter(gateway: &Gateway, user: &str) -> (WsClient, Value) {
    let mut client = WsClient::connect(gateway.public(), "/app/dev-key?protocol=7");
    let established: Value = data(&client.expect_json());
    let member = json!({ "user_id": user }).to_string();
    let signed = format!("{}:presence-room:{member}", established["socket_id"].as_str().unwrap());
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"dev-secret"), signed.as_bytes());
    let digits: String = signature.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let asked =
        json!({ "channel": "presence-room", "auth": format!("dev-key:{digits}"), "channel_data": member });
    client.send_text(&json!({ "event": "pusher:subscribe", "data": asked }).to_string());
    loop {
        let answer = client.expect_json();
        if answer["event"] == "pusher_internal:subscription_succeeded" {
            return (client, data(&answer));
        }
    }
}

fn data(message: &Value) -> Value {
    serde_json::from_str(message["data"].as_str().unwrap()).unwrap()
}

/// The next change of the members that a client is told.
fn change(client: &mut WsClient) -> (String, Value) {
    loop {
        let message = client.expect_json();
        let event = message["event"].as_str().unwrap();
        if event.starts_with("pusher_internal:member") {
            return (event.to_owned(), data(&message)["user_id"].clone());
        }
    }
}

#[test]
fn a_drain_tells_nobody_that_users_who_moved_left_and_came() {
    let mut site = Site::start(2);
    let (mut watcher, _) = enter(&site.gateways[1], "watcher");
    let (mut moved, _) = enter(&site.gateways[0], "moved");
    let added = |user: &str| ("pusher_internal:member_added".to_owned(), Value::from(user));
    let removed = |user: &str| ("pusher_internal:member_removed".to_owned(), Value::from(user));
    assert_eq!(change(&mut watcher), added("moved"));
    let (gone, _) = enter(&site.gateways[0], "gone");
    assert_eq!(change(&mut watcher), added("gone"));
    assert_eq!(change(&mut moved), added("gone"));

    let drained = site.gateways.remove(0);
    let exit = std::thread::spawn(move || drained.terminate());
    moved.expect_close(1001);
    let (moved, list) = enter(&site.gateways[0], "moved");
    let ids = list["presence"]["ids"].as_array().unwrap();
    assert!(ids.contains(&"moved".into()), "{list}");
    drop(gone);
    assert_eq!(exit.join().unwrap().code, Some(0));
    // Who did not come back has left, and nobody else has.
    assert_eq!(change(&mut watcher), removed("gone"));
    let (_third, list) = enter(&site.gateways[0], "third");
    assert_eq!(list["presence"]["count"], 3, "{list}");
    assert_eq!(change(&mut watcher), added("third"));
    drop(moved);
    assert_eq!(change(&mut watcher), removed("moved"));
}
