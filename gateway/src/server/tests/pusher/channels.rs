//! Public, private and encrypted channels: who may subscribe, and what subscribers are told.

use bytes::Bytes;
use serde_json::json;
use tidegate_backplane::{Channel, Payload};
use tidegate_testkit::{DEADLINE, WsClient, eventually};

use super::{
    super::rig::Rig,
    client::{Client, app, config},
};
use crate::app::apps::AppId;

#[test]
fn everyone_in_a_channel_gets_what_anyone_publishes() {
    let rig = Rig::start(config());
    let (mut a, mut b) = (Client::connect(&rig), Client::connect(&rig));
    a.subscribe("news");
    b.subscribe("news");
    let mut raw = WsClient::connect(rig.address, "/ws?channel=news");
    rig.publish_as("news", Some("goal"), r#"{"by": "x"}"#, None);
    rig.publish("news", "plain \"text\"");
    assert_eq!(raw.expect_text(), r#"{"by": "x"}"#);
    assert_eq!(raw.expect_text(), "plain \"text\"");
    for client in [&mut a, &mut b] {
        assert_eq!(client.expect_on("goal", "news"), json!({ "by": "x" }));
        assert_eq!(client.expect_on("message", "news"), json!("plain \"text\""));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let binary = crate::node::PublishRequest {
        channel: Channel::new("news").unwrap(),
        event: None,
        payload: Payload::Binary(Bytes::from_static(&[0, 255])),
        idempotency_key: None,
        sender: None,
        history: crate::node::PublishHistory::Namespace,
    };
    runtime.block_on(rig.node.publish(binary)).unwrap();
    assert_eq!(a.expect_on("binary", "news"), json!("AP8="));
}

#[test]
fn who_unsubscribes_gets_nothing_more() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    for channel in ["a", "b", "c"] {
        client.subscribe(channel);
    }
    client.send("pusher:unsubscribe", json!({ "channel": "b" }));
    client.expect_nothing();
    rig.eventually_subscribers("b", 0);
    for channel in ["a", "b", "c"] {
        rig.publish(channel, channel);
    }
    assert_eq!(client.expect_on("message", "a"), "a");
    assert_eq!(client.expect_on("message", "c"), "c");
    client.subscribe("b");
    rig.publish("b", "again");
    assert_eq!(client.expect_on("message", "b"), "again");
    for (channel, expect) in [("a", (1, 0)), ("b", (1, 0)), ("c", (1, 0))] {
        rig.eventually_attending(channel, expect);
    }
    drop(client);
    rig.eventually_empty();
    for channel in ["a", "b", "c"] {
        rig.eventually_attending(channel, (0, 0));
    }
}

#[test]
fn signatures_of_channels() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    for channel in ["private-a", "private-encrypted-a", "private-a@=,.;_-9"] {
        client.subscribe(channel);
    }
    // Signed with channel_data, which then counts, whatever the kind.
    let auth = client.auth("private-b", Some("{}"));
    client.send("pusher:subscribe", json!({ "channel": "private-b", "auth": auth, "channel_data": "{}" }));
    client.expect_on("pusher_internal:subscription_succeeded", "private-b");
    let other = Client::connect(&rig);
    let good = client.auth("private-c", None);
    for auth in [
        String::new(),
        "dev-key:".into(),
        "x".into(),
        good.replace("dev-key", "other-key"),
        good[..good.len() - 1].to_owned(),
        client.auth("private-d", None),
        client.auth("private-c", Some("{}")),
        other.auth("private-c", None),
    ] {
        client.send("pusher:subscribe", json!({ "channel": "private-c", "auth": auth }));
        client.expect_refusal("private-c", "AuthError", 401);
    }
    client.send("pusher:subscribe", json!({ "channel": "private-c" }));
    client.expect_refusal("private-c", "AuthError", 401);
    assert_eq!(rig.metric("tidegate_subscriptions_refused_total{reason=\"auth\"}"), 9.0);
    // The connection stays, and so do its channels.
    rig.publish("private-a", "1");
    assert_eq!(client.expect_on("message", "private-a"), 1);
}

#[test]
fn names_and_numbers_of_channels() {
    let mut config = config();
    config.limits.subscriptions = 3;
    app(&mut config).limits.channel_name_bytes = 20;
    let rig = Rig::start(config);
    let mut client = Client::connect(&rig);
    for name in ["", "a b", "a:b", "#a", "#watch-u", "a!b", "é", &"n".repeat(21)] {
        client.ask(name);
        if name.starts_with('#') {
            client.expect_refusal(name, "AuthError", 401);
        } else {
            client.expect_refusal(name, "RequestError", 400);
        }
    }
    client.subscribe(&"n".repeat(20));
    client.subscribe("b");
    client.ask("b");
    assert!(client.expect_error(None).contains("already subscribed"));
    client.subscribe("c");
    client.ask("d");
    assert!(client.expect_refusal("d", "LimitReached", 403).contains('3'));
    client.send("pusher:unsubscribe", json!({ "channel": "c" }));
    client.subscribe("d");
}

/// The attacker's cost: a client for whom nobody has signed has few channels.
#[test]
fn who_is_unknown_to_its_app_has_few_channels() {
    let mut config = config();
    config.limits.anonymous_subscriptions = 2;
    let rig = Rig::start(config);
    let mut client = Client::connect(&rig);
    client.subscribe("a");
    client.subscribe("b");
    client.ask("c");
    assert!(client.expect_refusal("c", "LimitReached", 403).contains("at most 2"));
    // A signature says who it is, of a channel or of a user.
    client.subscribe("private-a");
    client.subscribe("c");
    let mut user = Client::connect(&rig);
    user.sign_in(&json!({ "id": "u" }));
    for channel in ["a", "b", "c"] {
        user.subscribe(channel);
    }
}

#[test]
fn what_waits_for_the_backplane_is_answered_when_it_has() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    rig.backplane.subscription.shut();
    client.ask("a");
    client.ask("a");
    assert!(client.expect_error(None).contains("already subscribed"));
    client.expect_nothing();
    rig.backplane.subscription.open();
    client.expect_on("pusher_internal:subscription_succeeded", "a");
    rig.publish("a", "1");
    assert_eq!(client.expect_on("message", "a"), 1);
}

#[test]
fn who_changes_its_mind_while_it_waits_is_let_out_again() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    rig.backplane.subscription.shut();
    let unsubscribe = |client: &mut Client, channel: &str| {
        client.send("pusher:unsubscribe", json!({ "channel": channel }));
    };
    for channel in ["a", "b", "cache-c"] {
        client.ask(channel);
        unsubscribe(&mut client, channel);
    }
    client.ask_as("presence-d", "u", json!(null));
    unsubscribe(&mut client, "presence-d");
    // This one changes it once more.
    client.ask("b");
    client.expect_nothing();
    rig.backplane.subscription.open();
    client.expect_on("pusher_internal:subscription_succeeded", "b");
    client.expect_nothing();
    for channel in ["a", "cache-c", "presence-d"] {
        rig.eventually_attending(channel, (0, 0));
        unsubscribe(&mut client, channel);
        assert!(client.expect_error(None).contains("not subscribed"));
    }
    drop(client);
    rig.eventually_empty();
}

#[test]
fn who_goes_while_it_waits_leaves_nothing_behind() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    rig.backplane.subscription.shut();
    for channel in ["a", "cache-b"] {
        client.ask(channel);
    }
    client.ask_as("presence-cache-c", "u", json!(null));
    client.expect_nothing();
    drop(client);
    eventually("it is gone", DEADLINE, || rig.front.connections() == 0);
    rig.backplane.subscription.open();
    rig.eventually_empty();
    for channel in ["a", "cache-b", "presence-cache-c"] {
        rig.eventually_attending(channel, (0, 0));
    }
}

#[test]
fn a_channel_that_cannot_be_had_now_ends_the_connection_so_that_it_comes_back() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    rig.backplane.refusals.store(1, std::sync::atomic::Ordering::Release);
    client.ask("a");
    client.expect_refusal("a", "ServerError", 503);
    client.expect_error(Some(4100));
    client.socket.expect_close(4100);
    rig.eventually_metric("tidegate_disconnects_total{reason=\"unavailable\"}", 1.0);
    let mut client = Client::connect(&rig);
    client.subscribe("a");
}

#[test]
fn apps_do_not_meet() {
    let mut config = config();
    let mut other = app(&mut config).clone();
    other.key = Some("other-key".into());
    config.apps.0.insert(AppId::new("2").unwrap(), other);
    let rig = Rig::start(config);
    let mut own = Client::connect(&rig);
    let mut other = Client::connect_to(rig.address, "/app/other-key?protocol=7");
    own.subscribe("news");
    other.subscribe("news");
    rig.publish("news", "1");
    assert_eq!(own.expect_on("message", "news"), 1);
    other.expect_nothing();
    assert_eq!((rig.attending("news"), rig.subscribers("news")), ((1, 0), 1));
    // A signature of one app is none of the other.
    own.ask("private-a");
    own.expect_on("pusher_internal:subscription_succeeded", "private-a");
    other.ask("private-a");
    other.expect_refusal("private-a", "AuthError", 401);
}

#[test]
fn counts_are_told_where_the_app_wants_it() {
    let mut config = config();
    app(&mut config).subscription_count = true;
    let rig = Rig::start(config);
    let count = |client: &mut Client, expect: u64| {
        let data = client.expect_on("pusher_internal:subscription_count", "a");
        assert_eq!(data, json!({ "subscription_count": expect }));
    };
    let mut first = Client::connect(&rig);
    first.subscribe("a");
    count(&mut first, 1);
    let mut second = Client::connect(&rig);
    second.subscribe("a");
    rig.eventually_attending("a", (2, 0));
    first.expect_nothing();
    rig.backplane.sweep_after(2);
    count(&mut second, 2);
    count(&mut first, 2);
    drop(second);
    rig.eventually_attending("a", (1, 0));
    rig.backplane.sweep_after(4);
    count(&mut first, 1);
    // A presence channel has its own events.
    assert_eq!(first.subscribe_as("presence-a", "u"), ["u"]);
    first.expect_nothing();
}

#[test]
fn others_cannot_read_what_needs_a_signature() {
    let mut config = config();
    config.dev = false;
    let rig = Rig::start(config);
    for channel in ["private-a", "presence-a", "%23server-to-user-u", "%23watch-u"] {
        let refusal = WsClient::try_connect(rig.address, &format!("/ws?channel={channel}"), &[]).err();
        assert_eq!(refusal.map(|refusal| refusal.status), Some(401), "{channel}");
    }
    WsClient::connect(rig.address, "/ws?channel=cache-a");
}

/// Without an app the names are nobody's but the raw clients'.
#[test]
fn names_say_nothing_where_there_is_no_app() {
    let mut config = super::super::rig::config();
    (config.dev, config.default_app) = (false, None);
    config.apps.0.clear();
    let rig = Rig::start(config);
    for name in ["cache-a", "private-cache-a", "presence-a"] {
        WsClient::connect(rig.address, &format!("/ws?channel={name}"));
        for text in ["1", "2", "3"] {
            rig.publish(name, text);
        }
        let all = tidegate_backplane::HistoryQuery::newest(10);
        let channel = tidegate_backplane::Channel::new(name).unwrap();
        let history = rig.block_on(rig.node.history(&channel, all)).unwrap();
        assert_eq!(history.publications.len(), 3, "{name}");
    }
}

#[test]
fn who_watches_whom_is_not_a_clients_to_end() {
    let mut config = config();
    config.limits.subscriptions = 1;
    let rig = Rig::start(config);
    let mut client = Client::connect(&rig);
    client.sign_in(&json!({ "id": "w", "watchlist": ["u"] }));
    client.expect("pusher_internal:watchlist_events");
    client.send("pusher:unsubscribe", json!({ "channel": "#watch-u" }));
    assert_eq!(client.expect_error(None), "not subscribed");
    client.subscribe("a");
    client.ask("b");
    client.expect_refusal("b", "LimitReached", 403);
    let mut user = Client::connect(&rig);
    user.sign_in(&json!({ "id": "u" }));
    client.expect("pusher_internal:watchlist_events");
}
