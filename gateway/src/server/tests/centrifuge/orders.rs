//! What the server API asks of connections: subscribe, unsubscribe, disconnect, refresh.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tidegate_testkit::Rest;

use super::{super::apart::token_of, Client, Rig, with_presence};
use crate::config::Config;

fn of(rig: &Rig, user: &str) -> Client {
    Client::connect_with(rig, json!({"token": token_of(&json!({ "sub": user }))}))
}

#[track_caller]
fn api(rig: &Rig, method: &str, params: Value) {
    let rest = Rest::new(rig.address).with_key("dev-key");
    let answer = rest.post_json(&format!("/api/{method}"), &params);
    assert_eq!((answer.status, answer.json()), (200, json!({"result": {}})), "{method} {params}");
}

/// Channels that nobody may subscribe to by themselves.
fn closed() -> Config {
    let mut config = with_presence();
    config.namespaces.default.anonymous_subscribe = false;
    for namespace in config.namespaces.named.values_mut() {
        namespace.anonymous_subscribe = false;
    }
    config
}

#[test]
fn an_application_subscribes_its_users() {
    let rig = Rig::start(closed());
    let (mut ada, mut other, mut bob) = (of(&rig, "ada"), of(&rig, "ada"), of(&rig, "bob"));
    rig.publish("news", "{\"n\":1}");
    assert_eq!(ada.refused("subscribe", json!({"channel": "news"})), 103);
    api(&rig, "subscribe", json!({"user": "ada", "channel": "news", "data": {"why": "x"}}));
    for client in [&mut ada, &mut other] {
        let told = client.next();
        let begun = &told["push"]["subscribe"];
        assert_eq!((&told["push"]["channel"], &begun["data"]), (&json!("news"), &json!({"why": "x"})));
        assert_eq!(
            (&begun["offset"], &begun["recoverable"], &begun["positioned"]),
            (&json!(1), &json!(true), &json!(true))
        );
    }
    rig.publish("news", "{\"n\":2}");
    assert_eq!(ada.expect_publication("news")["data"], json!({"n": 2}));
    assert_eq!(other.expect_publication("news")["offset"], 2);
    // Once is enough.
    api(&rig, "subscribe", json!({"user": "ada", "channel": "news"}));
    // Of one client what was missed, after the push.
    let since = json!({"offset": 0, "epoch": ""});
    let whom = json!({"user": "bob", "client": bob.name, "channel": "news", "recover_since": since});
    api(&rig, "subscribe", whom);
    assert_eq!(bob.next()["push"]["subscribe"]["offset"], Value::Null);
    for n in 1..=2 {
        let told = bob.expect_publication("news");
        assert_eq!((&told["offset"], &told["data"]), (&json!(n), &json!({ "n": n })));
    }
    rig.eventually_subscribers("news", 3);

    // A user of that name and another connection are not meant.
    api(&rig, "unsubscribe", json!({"user": "ada", "client": bob.name, "channel": "news"}));
    api(&rig, "unsubscribe", json!({"user": "ada", "channel": "news"}));
    let taken =
        json!({"push": {"channel": "news", "unsubscribe": {"code": 2000, "reason": "server unsubscribe"}}});
    assert_eq!((ada.next(), other.next()), (taken.clone(), taken));
    rig.eventually_subscribers("news", 1);
    bob.ask("ping", json!({}));
    ada.ask("ping", json!({}));
}

#[test]
fn a_gap_in_what_the_server_subscribed_to_is_a_new_connection() {
    let rig = Rig::start(closed());
    let mut ada = of(&rig, "ada");
    api(&rig, "subscribe", json!({"user": "ada", "channel": "news"}));
    assert!(ada.next()["push"]["subscribe"].is_object());
    rig.gap("news", None);
    assert_eq!(ada.socket.expect_close(3010), "insufficient state");
    rig.eventually_empty();
}

#[test]
fn an_application_ends_and_extends_connections() {
    let rig = Rig::start(closed());
    let (mut ada, mut bob) = (of(&rig, "ada"), of(&rig, "bob"));
    let mut stays = of(&rig, "ada");
    let custom = json!({"code": 4100, "reason": "go away"});
    api(&rig, "disconnect", json!({"user": "ada", "whitelist": [stays.name], "disconnect": custom}));
    assert_eq!(ada.socket.expect_close(4100), "go away");
    stays.ask("ping", json!({}));
    api(&rig, "disconnect", json!({"user": "ada"}));
    assert_eq!(stays.socket.expect_close(3503), "force disconnect");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let soon = (now + Duration::from_secs(2)).as_secs();
    api(&rig, "refresh", json!({"user": "bob", "expire_at": soon}));
    bob.ask("ping", json!({}));
    assert_eq!(bob.socket.expect_close(3005), "connection expired");
    let mut bob = of(&rig, "bob");
    api(&rig, "refresh", json!({"user": "bob", "expired": true}));
    assert_eq!(bob.socket.expect_close(3005), "connection expired");
}

#[test]
fn an_application_sends_and_subscribes_over_v1() {
    let rig = Rig::start(closed());
    let mut ada = of(&rig, "ada");
    let rest = Rest::new(rig.address).with_key("dev-key");
    let did = json!({"connections": 1, "refused": 0, "nodes": 1, "silent": []});
    let message = json!({"user": "ada", "data": {"id": 7}});
    assert_eq!(rest.post_json("/v1/send", &message).json(), did);
    assert_eq!(ada.next(), json!({"push": {"message": {"data": {"id": 7}}}}));
    assert_eq!(rest.post_json("/v1/subscribe", &json!({"user": "ada", "channel": "news"})).json(), did);
    assert_eq!(ada.next()["push"]["channel"], "news");
    assert_eq!(rest.post_json("/v1/refresh", &json!({"user": "ada", "expired": true})).json(), did);
    assert_eq!(ada.socket.expect_close(3005), "connection expired");
    // Who has not connected yet is nobody's.
    let _open = Client::open(&rig);
    let none = json!({"connections": 0, "refused": 0, "nodes": 1, "silent": []});
    assert_eq!(rest.post_json("/v1/send", &message).json(), none);
}

/// What others see of a subscription that an application's server makes; the server asks who is there, too.
#[test]
fn an_application_says_what_others_see() {
    let rig = Rig::start(with_presence());
    let (ada, mut nobody) = (of(&rig, "ada"), Client::connect(&rig));
    nobody.ask("subscribe", json!({"channel": "room:1", "join_leave": true}));
    api(&rig, "subscribe", json!({"user": "ada", "channel": "room:1", "info": {"seat": 1}}));
    let joined = nobody.next()["push"]["join"]["info"].take();
    assert_eq!(joined, json!({"user": "ada", "client": ada.name, "chan_info": {"seat": 1}}));
    let rest = Rest::new(rig.address).with_key("dev-key");
    let listed = rest.post_json("/api/presence", &json!({"channel": "room:1"})).json();
    let expect =
        json!({ ada.name.as_str(): joined, nobody.name.as_str(): {"user": "", "client": nobody.name} });
    assert_eq!(listed["result"]["presence"], expect);
    let wrong = json!({"user": "ada", "channel": "room:2", "b64info": "?"});
    assert_eq!(rest.post_json("/api/subscribe", &wrong).json()["error"]["code"], 107);
}
