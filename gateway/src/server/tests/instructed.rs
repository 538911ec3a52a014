//! What an application asks of connections over REST, in the words of each protocol.

use std::time::SystemTime;

use serde_json::{Value, json};
use tidegate_testkit::{Answer, Rest, SseClient, WsClient};

use super::{
    apart::{token, token_of, with_presence},
    rig::Rig,
};
use crate::config::{Config, Namespace};

/// A namespace `closed` that nobody may subscribe to by themselves.
fn closed() -> Config {
    let mut config = with_presence();
    let closed = Namespace { anonymous_subscribe: false, ..config.namespaces.default.clone() };
    config.namespaces.named.insert("closed".into(), closed);
    config
}

fn rest(rig: &Rig) -> Rest {
    Rest::new(rig.address).with_key("dev-key")
}

#[track_caller]
fn post(rig: &Rig, path: &str, body: Value) -> Answer {
    rest(rig).post_json(path, &body)
}

/// So many connections did it, and so many could not.
#[track_caller]
fn did(rig: &Rig, path: &str, body: Value, done: u64, refused: u64) {
    let answer = post(rig, path, body.clone());
    let told = answer.json();
    let expect = json!({"connections": done, "refused": refused, "nodes": 1, "silent": []});
    assert_eq!((answer.status, told), (200, expect), "{path} {body}");
}

fn of(rig: &Rig, user: &str, query: &str) -> WsClient {
    WsClient::connect(rig.address, &format!("/ws?{query}&token={}", token_of(&json!({ "sub": user }))))
}

#[test]
fn an_enveloped_client_is_subscribed_and_is_told() {
    let rig = Rig::start(closed());
    let mut ada = of(&rig, "ada", "envelope=json");
    let _bob = of(&rig, "bob", "envelope=json");
    let first = rig.publish("closed:a", "1").unwrap();
    rig.publish("closed:a", "2");
    did(
        &rig,
        "/v1/subscribe",
        json!({"user": "ada", "channel": "closed:a", "since": first.to_string()}),
        1,
        0,
    );
    let epoch = first.epoch.to_string();
    let told = json!({"epoch": epoch, "offset": 1, "recovered": true});
    assert_eq!(ada.expect_json(), json!({"channel": "closed:a", "subscribed": told}));
    assert_eq!(ada.expect_json()["data"], "2");
    rig.publish("closed:a", "3");
    assert_eq!(ada.expect_json()["data"], "3");
    // Once is enough; and only the one who is.
    did(&rig, "/v1/subscribe", json!({"user": "ada", "channel": "closed:a"}), 0, 1);
    did(&rig, "/v1/unsubscribe", json!({"user": "bob", "channel": "closed:a"}), 0, 1);
    did(&rig, "/v1/subscribe", json!({"user": "eve", "channel": "closed:a"}), 0, 0);
    did(&rig, "/v1/unsubscribe", json!({"user": "ada", "channel": "closed:a"}), 1, 0);
    let told = json!({"code": 403, "message": "unsubscribed by the application"});
    assert_eq!(ada.expect_json(), json!({"channel": "closed:a", "unsubscribed": told}));
    rig.eventually_subscribers("closed:a", 0);
    // Without history there is no place to tell.
    did(&rig, "/v1/subscribe", json!({"user": "ada", "channel": "plain:a"}), 1, 0);
    let told = json!({"epoch": null, "offset": null, "recovered": false});
    assert_eq!(ada.expect_json(), json!({"channel": "plain:a", "subscribed": told}));
    for (result, count) in [("done", 3.0), ("already", 1.0), ("not_subscribed", 1.0)] {
        let sample = format!("tidegate_instructions_total{{result=\"{result}\"}}");
        assert_eq!(rig.metric(&sample), count, "{result}");
    }
}

#[test]
fn each_protocol_says_a_message_in_its_own_words() {
    let rig = Rig::start(closed());
    let mut enveloped = of(&rig, "ada", "envelope=json");
    let mut verbatim = of(&rig, "ada", "channel=plain:a");
    let path = |query: &str| format!("/sse?channel=plain:a{query}&token={}", token());
    let mut stream = SseClient::connect(rig.address, &path(""), None);
    let mut enveloped_stream = SseClient::connect(rig.address, &path("&envelope=json"), None);
    rig.eventually_subscribers("plain:a", 3);
    did(&rig, "/v1/send", json!({"user": "ada", "event": "invoice", "data": {"id": 7}}), 4, 0);
    let message = json!({"message": {"event": "invoice", "data": {"id": 7}}});
    assert_eq!(enveloped.expect_json(), message);
    assert_eq!(verbatim.expect_text(), r#"{"id":7}"#);
    let event = stream.expect_event();
    assert_eq!((&*event.event, &*event.data), ("invoice", r#"{"id":7}"#));
    let event = enveloped_stream.expect_event();
    let data: Value = serde_json::from_str(&event.data).unwrap();
    assert_eq!(data, message);
    // The channels of a stream are those of its URL.
    did(&rig, "/v1/subscribe", json!({"user": "ada", "channel": "plain:b"}), 2, 2);
}

#[test]
fn a_connection_ends_when_the_application_says() {
    let rig = Rig::start(closed());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let [mut ada, mut bob] = ["ada", "bob"].map(|user| of(&rig, user, "envelope=json"));
    did(&rig, "/v1/refresh", json!({"user": "ada", "expires_at": now + 3600}), 1, 0);
    did(&rig, "/v1/refresh", json!({"user": "bob", "expires_at": now + 1}), 1, 0);
    bob.expect_close(4401);
    did(&rig, "/v1/refresh", json!({"user": "ada", "expired": true}), 1, 0);
    ada.expect_close(4401);
    for body in [json!({"user": "ada"}), json!({"user": "ada", "expired": true, "expires_at": 1})] {
        assert_eq!(post(&rig, "/v1/refresh", body).status, 400);
    }
}

#[test]
fn connections_are_listed_in_pages() {
    let rig = Rig::start(closed());
    let clients: Vec<_> = (0..5).map(|n| of(&rig, &format!("u{n}"), "channel=plain:a")).collect();
    let _ada = of(&rig, "ada", "envelope=json");
    let list = |query: &str| {
        let answer = rest(&rig).get(&format!("/v1/connections{query}"));
        assert_eq!(answer.status, 200, "{query}");
        answer.json()
    };
    let users = |told: &Value| -> Vec<String> {
        let connections = told["connections"].as_array().unwrap().iter();
        connections.map(|own| own["user"].as_str().unwrap().to_owned()).collect()
    };
    let told = list("?user=ada");
    let ada = &told["connections"][0];
    assert_eq!(
        (&ada["protocol"], &ada["subscriptions"], &told["next"]),
        (&json!("raw"), &json!(0), &Value::Null)
    );
    assert_eq!(
        (users(&told), &told["nodes"], &told["silent"]),
        (vec!["ada".to_owned()], &json!(1), &json!([]))
    );
    assert_eq!(users(&list("?channel=plain:a")).len(), clients.len());
    assert_eq!(users(&list("?channel=plain:a&user=u3")), ["u3"]);
    assert!(users(&list("?channel=other&user=u3")).is_empty());
    assert_eq!(list("?user=nobody")["connections"], json!([]));
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let told = list(&format!("?channel=plain:a&limit=2{after}"));
        let page = users(&told);
        assert!(page.len() <= 2, "{told}");
        seen.extend(page);
        match told["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(seen, ["u0", "u1", "u2", "u3", "u4"]);
    assert_eq!(list("")["connections"].as_array().unwrap().len(), 6);
    for query in ["?user=", "?limit=101", "?channel=a%20b", "?node=x"] {
        assert_eq!(rest(&rig).get(&format!("/v1/connections{query}")).status, 400, "{query}");
    }
}

#[test]
fn bad_orders_are_refused() {
    let rig = Rig::start(closed());
    for path in ["/v1/subscribe", "/v1/unsubscribe", "/v1/refresh", "/v1/send"] {
        let refused = Rest::new(rig.address).post_json(path, &json!({})).status;
        assert_eq!(refused, 401, "{path}");
        for body in
            [json!({}), json!({"user": "a", "connection": "b", "channel": "c", "data": 1, "expired": true})]
        {
            assert_eq!(post(&rig, path, body.clone()).status, 400, "{path} {body}");
        }
    }
    assert_eq!(post(&rig, "/v1/subscribe", json!({"user": "a", "channel": "b c"})).status, 400);
    assert_eq!(post(&rig, "/v1/subscribe", json!({"user": "a", "channel": "b", "since": "7"})).status, 400);
    let large = json!({"user": "a", "data": "x".repeat(70_000)});
    assert_eq!(post(&rig, "/v1/send", large).status, 413);
    assert_eq!(post(&rig, "/v1/send", json!({"user": "a", "data": 1, "event": "gap"})).status, 400);
}

#[test]
fn an_instruction_that_cannot_be_read_is_counted() {
    let rig = Rig::start(closed());
    let target = tidegate_backplane::Target::Everyone { app: None };
    let order = tidegate_backplane::Control::Instruct { target, text: r#"{"what":"dance"}"#.into() };
    rig.block_on(tidegate_backplane::Backplane::control(&*rig.backplane, order)).unwrap();
    rig.eventually_metric("tidegate_instructions_total{result=\"unreadable\"}", 1.0);
}
