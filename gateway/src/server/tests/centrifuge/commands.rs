//! Every command, and what it answers.

use serde_json::json;

use super::{
    super::apart::{token, token_of},
    Client, Rig, config, with_presence,
};

#[test]
fn subscribe_publish_and_unsubscribe() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    assert_eq!(client.ask("subscribe", json!({"channel": "plain:a"})), json!({}));
    assert_eq!(client.refused("subscribe", json!({"channel": "plain:a"})), 105);
    rig.publish("plain:a", "{\"n\":1}");
    assert_eq!(client.expect_publication("plain:a"), json!({"data": {"n": 1}}));
    rig.publish_as("plain:a", Some("goal"), "text", None);
    assert_eq!(client.expect_publication("plain:a"), json!({"data": "text", "tags": {"event": "goal"}}));
    let id = client.send("publish", json!({"channel": "plain:a", "data": ["\u{1f30a}"]}));
    let mut told = [client.next(), client.next()];
    told.sort_by_key(|told| told["id"].is_null());
    assert_eq!(told[0], json!({"id": id, "publish": {}}));
    assert_eq!(told[1]["push"]["pub"], json!({"data": ["\u{1f30a}"]}));
    assert_eq!(client.ask("unsubscribe", json!({"channel": "plain:a"})), json!({}));
    // Once more is no error: clients would come back for it.
    assert_eq!(client.ask("unsubscribe", json!({"channel": "plain:a"})), json!({}));
    rig.eventually_subscribers("plain:a", 0);
    drop(client);
    rig.eventually_empty();
}

#[test]
fn what_may_not_be_has_its_code() {
    let mut config = with_presence();
    config.limits.anonymous_subscriptions = 2;
    let closed = crate::config::Namespace { anonymous_subscribe: false, ..config.namespaces.default.clone() };
    config.namespaces.named.insert("closed".into(), closed);
    let rig = Rig::start(config);
    let mut client = Client::connect(&rig);
    for command in ["subscribe", "presence", "presence_stats", "history"] {
        assert_eq!(client.refused(command, json!({"channel": "closed:a"})), 103, "{command}");
        assert_eq!(client.refused(command, json!({"channel": "a b"})), 107, "{command}");
    }
    assert_eq!(client.refused("publish", json!({"channel": "closed:a", "data": 1})), 103);
    assert_eq!(client.refused("publish", json!({"channel": "a", "data": 1})), 103);
    assert_eq!(client.refused("presence", json!({"channel": "plain:a"})), 108);
    assert_eq!(client.refused("history", json!({"channel": "plain:a"})), 108);
    assert_eq!(client.refused("rpc", json!({"method": "x", "data": 1})), 104);
    assert_eq!(client.refused("sub_refresh", json!({"channel": "a", "token": "t"})), 103);
    assert_eq!(client.refused("subscribe", json!({"channel": "a", "type": 1})), 108);
    for channel in ["plain:1", "plain:2"] {
        client.ask("subscribe", json!({"channel": channel}));
    }
    assert_eq!(client.refused("subscribe", json!({"channel": "plain:3"})), 106);
}

#[test]
fn a_backplane_that_refuses_is_a_temporary_error() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    rig.backplane.refusals.store(1, std::sync::atomic::Ordering::Release);
    let id = client.send("subscribe", json!({"channel": "plain:a"}));
    let error = json!({"code": 100, "message": "internal server error", "temporary": true});
    assert_eq!(client.next(), json!({"id": id, "error": error}));
    client.ask("subscribe", json!({"channel": "plain:a"}));
}

#[test]
fn who_is_there_and_how_many() {
    let rig = Rig::start(with_presence());
    let info = json!({"sub": "bob", "channels": ["*"], "info": {"n": 1}});
    let mut ada = Client::connect_with(&rig, json!({"token": token()}));
    let mut bob = Client::connect_with(&rig, json!({"token": token_of(&info)}));
    ada.ask("subscribe", json!({"channel": "room:1"}));
    bob.ask("subscribe", json!({"channel": "room:1"}));
    tidegate_testkit::eventually("both are present", tidegate_testkit::DEADLINE, || {
        rig.present("room:1").len() == 2
    });
    let mut there = json!({});
    there[&ada.name] = json!({"user": "ada", "client": ada.name});
    there[&bob.name] = json!({"user": "bob", "client": bob.name, "conn_info": {"n": 1}});
    assert_eq!(ada.ask("presence", json!({"channel": "room:1"})), json!({ "presence": there }));
    let stats = ada.ask("presence_stats", json!({"channel": "room:1"}));
    assert_eq!(stats, json!({"num_clients": 2, "num_users": 2}));
    bob.ask("unsubscribe", json!({"channel": "room:1"}));
    tidegate_testkit::eventually("one is", tidegate_testkit::DEADLINE, || rig.present("room:1").len() == 1);
}

#[test]
fn history_is_read_in_both_directions() {
    let rig = Rig::start(config());
    let epoch = rig.publish("a", "1").unwrap().epoch.to_string();
    for number in 2..=5 {
        rig.publish("a", &number.to_string());
    }
    let mut client = Client::connect(&rig);
    let mut check = |request: serde_json::Value, expect: &[u64]| {
        let mut asked = json!({"channel": "a"});
        asked.as_object_mut().unwrap().extend(request.as_object().unwrap().clone());
        let told = client.ask("history", asked);
        assert_eq!((&told["epoch"], &told["offset"]), (&json!(epoch), &json!(5)), "{told}");
        let offsets = told["publications"].as_array().map_or(Vec::new(), |publications| {
            publications.iter().map(|it| it["offset"].as_u64().unwrap()).collect()
        });
        assert_eq!(offsets, expect, "{request}");
    };
    check(json!({}), &[]);
    check(json!({"limit": 2}), &[1, 2]);
    check(json!({"limit": -1}), &[1, 2, 3, 4, 5]);
    check(json!({"limit": 2, "reverse": true}), &[5, 4]);
    check(json!({"limit": 2, "since": {"epoch": epoch, "offset": 2}}), &[3, 4]);
    check(json!({"limit": 10, "since": {"offset": 4}}), &[5]);
    check(json!({"limit": 2, "since": {"epoch": epoch, "offset": 4}, "reverse": true}), &[3, 2]);
    check(json!({"limit": 9, "since": {"epoch": epoch, "offset": 3}, "reverse": true}), &[2, 1]);
    check(json!({"limit": 9, "since": {"epoch": epoch, "offset": 0}, "reverse": true}), &[]);
    for since in [json!({"epoch": "other", "offset": 1}), json!({"epoch": "_", "offset": 1})] {
        let refused = client.refused("history", json!({"channel": "a", "limit": 1, "since": since}));
        assert_eq!(refused, 112, "{since}");
    }
    // Nothing was published there.
    assert_eq!(client.ask("history", json!({"channel": "b", "limit": 9})), json!({}));
}

#[test]
fn a_drain_and_an_order_say_whether_to_come_back() {
    let rig = Rig::start(with_presence());
    let mut client = Client::connect_with(&rig, json!({"token": token()}));
    let target = tidegate_backplane::Target::User { app: None, user: "ada".into() };
    rig.block_on(rig.node.disconnect(target, "because".into())).unwrap();
    assert_eq!(client.socket.expect_close(3503), "because");
}

/// What is refused for now says so: clients try again by themselves.
#[test]
fn who_asks_too_fast_is_told_to_try_again() {
    let mut config = config();
    config.limits.subscriptions = 2;
    config.limits.subscribes_per_second = 1;
    config.limits.publishes_per_second = 1;
    let rig = Rig::start(config);
    let mut client = Client::connect(&rig);
    let commands = (0..30).flat_map(|n| {
        let channel = json!({"channel": "plain:a"});
        let publish = json!({"channel": "plain:b", "data": n});
        [("subscribe", channel.clone()), ("unsubscribe", channel), ("publish", publish)]
    });
    let commands: Vec<_> = (100..).zip(commands).collect();
    let lines = commands.iter().map(|(id, (name, request))| json!({"id": id, *name: request}).to_string());
    client.socket.send_text(&lines.collect::<Vec<_>>().join("\n"));
    let refused = json!({"code": 111, "message": "too many requests", "temporary": true});
    let mut told: Vec<_> = commands.iter().map(|_| client.next()).collect();
    told.sort_by_key(|told| told["id"].as_u64());
    for name in ["subscribe", "publish"] {
        let of_name = commands.iter().zip(&told).filter(|((_, (own, _)), _)| *own == name);
        let errors: Vec<_> = of_name.filter_map(|(_, told)| told.get("error")).collect();
        assert!(!errors.is_empty() && errors.len() < 30, "{name}: {errors:?}");
        assert!(errors.iter().all(|error| **error == refused), "{name}: {errors:?}");
    }
}
