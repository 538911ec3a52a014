//! What namespaces let clients do by themselves: subscribe, publish, read; channels of users, and private ones.

use serde_json::{Value, json};

use super::{super::apart::token_of, Client, Rig, with_presence};
use crate::config::{ClientPublish, ClientRead, Config, Namespace};

/// Nothing is open but what `namespace` opens for channels that begin with `x:`.
fn only(namespace: impl FnOnce(&mut Namespace)) -> Config {
    let mut config = with_presence();
    config.dev = false;
    let mut closed = config.namespaces.default.clone();
    (closed.anonymous_subscribe, closed.client_publish) = (false, ClientPublish::Token);
    config.namespaces.default = closed.clone();
    namespace(&mut closed);
    config.namespaces.named.insert("x".into(), closed);
    config
}

fn of(rig: &Rig, claims: &Value) -> Client {
    Client::connect_with(rig, json!({"token": token_of(claims)}))
}

#[track_caller]
fn check(client: &mut Client, command: &str, channel: &str, expect: Option<u64>) {
    let request = match command {
        "publish" => json!({"channel": channel, "data": 1}),
        _ => json!({ "channel": channel }),
    };
    let id = client.send(command, request);
    let told = loop {
        let told = client.next();
        if told["id"] == id {
            break told;
        }
    };
    assert_eq!(told["error"]["code"].as_u64(), expect, "{command} {channel}: {told}");
}

#[test]
fn a_namespace_is_open_to_users() {
    let rig = Rig::start(only(|x| x.user_subscribe = true));
    let mut anonymous = Client::connect(&rig);
    check(&mut anonymous, "subscribe", "x:1", Some(103));
    let mut ada = of(&rig, &json!({"sub": "ada"}));
    check(&mut ada, "subscribe", "x:1", None);
    check(&mut ada, "subscribe", "y:1", Some(103));
    check(&mut of(&rig, &json!({})), "subscribe", "x:1", Some(103));
}

#[test]
fn a_channel_that_names_users_is_theirs() {
    let rig = Rig::start(only(|x| (x.user_channels, x.anonymous_subscribe) = (true, true)));
    let (mut ada, mut bob) = (of(&rig, &json!({"sub": "ada"})), of(&rig, &json!({"sub": "bob"})));
    check(&mut ada, "subscribe", "x:#ada", None);
    check(&mut ada, "subscribe", "x:talk#ada,bob", None);
    check(&mut ada, "history", "x:#bob", Some(103));
    check(&mut ada, "publish", "x:#bob", Some(103));
    check(&mut bob, "subscribe", "x:talk#ada,bob", None);
    for foreign in ["x:#ada", "x:#", "x:#ad", "x:#ada,", "x:bob#ada", "x:#bob#ada"] {
        check(&mut bob, "subscribe", foreign, Some(103));
    }
    check(&mut Client::connect(&rig), "subscribe", "x:#ada", Some(103));
    // Whoever signed that meant it.
    check(&mut of(&rig, &json!({"sub": "eve", "channels": ["x:#*"]})), "subscribe", "x:#ada", None);
    // The others are open as before, and elsewhere `#` means nothing.
    check(&mut bob, "subscribe", "x:1", None);
    let rig = Rig::start(only(|x| x.anonymous_subscribe = true));
    check(&mut Client::connect(&rig), "subscribe", "x:#ada", None);
}

#[test]
fn a_private_channel_needs_a_right_of_its_own() {
    let rig = Rig::start(only(|x| x.anonymous_subscribe = true));
    let mut ada = of(&rig, &json!({"sub": "ada"}));
    check(&mut ada, "subscribe", "x:1", None);
    // It is of the namespace `x`.
    check(&mut ada, "subscribe", "$x:1", Some(103));
    let own = token_of(&json!({"sub": "ada", "channel": "$x:1"}));
    ada.ask("subscribe", json!({"channel": "$x:1", "token": own}));
    rig.publish("$x:1", "1");
    assert_eq!(ada.expect_publication("$x:1")["offset"], 1);
    check(&mut Client::connect(&rig), "subscribe", "$x:1", Some(103));
}

#[test]
fn who_may_publish_and_read() {
    let rig = Rig::start(only(|x| {
        (x.anonymous_subscribe, x.presence) = (true, true);
        x.client_publish = ClientPublish::Subscribed;
        (x.client_history, x.client_presence) = (ClientRead::Subscribed, ClientRead::Subscribed);
    }));
    let mut client = Client::connect(&rig);
    let commands = ["publish", "history", "presence", "presence_stats"];
    for command in commands {
        check(&mut client, command, "x:1", Some(103));
    }
    check(&mut client, "subscribe", "x:1", None);
    for command in commands {
        check(&mut client, command, "x:1", None);
    }
    let rig = Rig::start(only(|x| {
        (x.anonymous_subscribe, x.client_history) = (true, ClientRead::Never);
    }));
    let mut client = Client::connect(&rig);
    check(&mut client, "subscribe", "x:1", None);
    check(&mut client, "history", "x:1", Some(103));
}
