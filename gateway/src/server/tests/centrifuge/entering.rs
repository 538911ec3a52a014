//! Subscriptions of the server that a token has: told with the answer to `connect`, recovered when the client comes back.

use serde_json::{Value, json};

use super::{super::apart::token_of, Client, Rig, with_presence};
use crate::config::Config;

fn closed() -> Config {
    let mut config = with_presence();
    config.namespaces.default.anonymous_subscribe = false;
    for namespace in config.namespaces.named.values_mut() {
        namespace.anonymous_subscribe = false;
    }
    config
}

fn enter(rig: &Rig, claims: &Value, back: Value) -> (Client, Value) {
    let mut client = Client::open(rig);
    let told = client.ask("connect", json!({"token": token_of(claims), "subs": back}));
    (client, told["subs"].clone())
}

#[test]
fn a_client_is_subscribed_to_what_its_token_names() {
    let rig = Rig::start(closed());
    rig.publish("news", "{\"n\":1}");
    let claims = json!({"sub": "ada", "channels": ["open:*"], "subs": {"news": {"data": {"d": 1}}, "plain:a": {}, "room:1": null}});
    let (mut client, subs) = enter(&rig, &claims, json!({}));
    let names: Vec<_> = subs.as_object().unwrap().keys().collect();
    assert_eq!(names, ["news", "plain:a", "room:1"], "{subs}");
    let news = &subs["news"];
    assert_eq!(
        (&news["offset"], &news["recoverable"], &news["data"]),
        (&json!(1), &json!(true), &json!({"d": 1}))
    );
    assert_eq!(subs["plain:a"], json!({}));
    for channel in ["news", "plain:a", "room:1"] {
        rig.publish(channel, "2");
        assert_eq!(client.expect_publication(channel)["data"], 2);
        // It may not by itself.
        assert_eq!(client.refused("subscribe", json!({"channel": channel})), 103);
    }
    // `channels` is what it may subscribe to by itself.
    client.ask("subscribe", json!({"channel": "open:x"}));
    assert_eq!(rig.present("room:1").len(), 1);
    drop(client);
    rig.eventually_empty();
}

/// A token says of each how its client is there.
#[test]
fn a_subscription_of_the_server_may_be_unlisted_and_told_who_comes() {
    let rig = Rig::start(closed());
    let value = |value: bool| json!({ "value": value });
    let of = |user: &str, overrides: Value| {
        let room = json!({"data": 1, "b64data": "WzJd", "override": overrides});
        json!({"sub": user, "subs": {"room:1": room}})
    };
    let (mut told, subs) = enter(&rig, &of("ada", json!({"force_push_join_leave": value(true)})), json!({}));
    assert_eq!((&subs["room:1"]["data"], &subs["room:1"]["positioned"]), (&json!([2]), &json!(true)));
    let overrides = json!({
        "presence": value(false), "force_recovery": value(false), "force_positioning": value(false),
    });
    let (_unlisted, subs) = enter(&rig, &of("spy", overrides), json!({}));
    assert_eq!(subs["room:1"], json!({"data": [2]}));
    let (_bob, _) = enter(&rig, &of("bob", json!({})), json!({}));
    assert_eq!(told.next()["push"]["join"]["info"]["user"], "bob");
    assert_eq!(rig.present("room:1").len(), 2);
}

#[test]
fn what_was_missed_is_in_the_answer_to_connect() {
    let rig = Rig::start(closed());
    rig.publish("news", "1");
    let claims = json!({"sub": "ada", "subs": {"news": {}, "sport": {}, "plain:a": {}}});
    let (client, subs) = enter(&rig, &claims, json!({}));
    let (epoch, fresh) = (subs["news"]["epoch"].clone(), subs["sport"]["epoch"].clone());
    drop(client);
    rig.publish("news", "2");
    rig.publish("sport", "3");
    let back = json!({
        "news": {"recover": true, "epoch": epoch, "offset": 1},
        "sport": {"recover": true, "epoch": fresh},
        "other": {"recover": true, "epoch": "x", "offset": 7},
    });
    let (mut client, subs) = enter(&rig, &claims, back);
    for (channel, data, offset) in [("news", 2, 2), ("sport", 3, 1)] {
        let told = &subs[channel];
        assert_eq!((&told["recovered"], &told["was_recovering"]), (&json!(true), &json!(true)), "{told}");
        let publications = told["publications"].as_array().unwrap();
        assert_eq!(
            (publications.len(), &publications[0]["data"], &publications[0]["offset"]),
            (1, &json!(data), &json!(offset))
        );
    }
    let lost = json!({"news": {"recover": true, "epoch": "zz", "offset": 1}});
    rig.publish("news", "4");
    assert_eq!(client.expect_publication("news")["offset"], 3);
    let (_other, subs) = enter(&rig, &claims, lost);
    let news = &subs["news"];
    assert_eq!(
        (&news["was_recovering"], &news["recovered"], &news["offset"]),
        (&json!(true), &Value::Null, &json!(3))
    );
}

/// What is published while the last of them is read comes after the answer, once and in order.
#[test]
fn nothing_is_pushed_before_the_answer() {
    let rig = Rig::start(closed());
    rig.publish("news", "1");
    rig.backplane.history.shut();
    let claims = json!({"sub": "ada", "subs": {"news": {}, "plain:a": {}}});
    let mut client = Client::open(&rig);
    let commands = format!(
        "{}\n{}",
        json!({"id": 1, "connect": {"token": token_of(&claims)}}),
        json!({"id": 2, "presence_stats": {"channel": "room:1"}})
    );
    client.socket.send_text(&commands);
    rig.backplane.history.eventually_arrived(1);
    rig.publish("news", "2");
    rig.publish("plain:a", "3");
    rig.backplane.history.open();
    let told = client.next();
    assert_eq!((&told["id"], told["connect"]["subs"].as_object().unwrap().len()), (&json!(1), 2), "{told}");
    let offset = told["connect"]["subs"]["news"]["offset"].as_u64().unwrap();
    assert_eq!(client.next()["error"]["code"], 103);
    rig.publish("news", "4");
    let next = client.expect_publication("news");
    assert_eq!(next["offset"].as_u64(), Some(offset + 1), "{next}");
}

#[test]
fn who_cannot_be_subscribed_connects_again() {
    let mut config = closed();
    config.limits.subscriptions = 2;
    let rig = Rig::start(config);
    let connect = |subs: Value| {
        let mut client = Client::open(&rig);
        client.send("connect", json!({"token": token_of(&json!({"sub": "ada", "subs": subs}))}));
        client
    };
    assert_eq!(connect(json!({"a": {}, "b": {}, "c": {}})).socket.expect_close(3505), "channel limit");
    assert_eq!(connect(json!({"a b": {}})).socket.expect_close(3500), "invalid token");
    rig.backplane.refusals.store(1, std::sync::atomic::Ordering::Relaxed);
    let told = connect(json!({"d": {}, "e": {}})).next();
    assert_eq!((&told["error"]["code"], &told["error"]["temporary"]), (&json!(100), &json!(true)));
    rig.eventually_empty();
}

/// As Centrifugo's tokens name them, where the key says that they do.
#[test]
fn the_claim_channels_subscribes_where_its_key_says_so() {
    let mut config = closed();
    config.auth.jwt.0[0].subscribe_channels = true;
    let rig = Rig::start(config);
    let claims =
        json!({"sub": "ada", "channels": ["news", "room:*", "plain:a"], "subs": {"news": {"data": 1}}});
    let (mut client, subs) = enter(&rig, &claims, json!({}));
    let names: Vec<_> = subs.as_object().unwrap().keys().collect();
    assert_eq!(names, ["news", "plain:a"], "{subs}");
    assert_eq!(subs["news"]["data"], 1);
    rig.publish("plain:a", "2");
    assert_eq!(client.expect_publication("plain:a")["data"], 2);
    assert_eq!(client.refused("subscribe", json!({"channel": "news"})), 105);
    client.ask("subscribe", json!({"channel": "room:1"}));
}
