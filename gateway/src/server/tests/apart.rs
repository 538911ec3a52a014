//! A backplane that is not in this process: it answers late, has more than fits, and is away for a while.

use std::sync::atomic::Ordering;

use tidegate_backplane::Intake;
use tidegate_testkit::{DEADLINE, WsClient, eventually};

use super::rig::{Rig, config};
use crate::{
    auth::Algorithm,
    config::{Config, JwtKey, List, Namespace, Secret},
};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// A namespace `room` with presence, for tokens that are signed with [`SECRET`].
pub(super) fn with_presence() -> Config {
    let mut config = config();
    let room = Namespace { presence: true, ..config.namespaces.default.clone() };
    config.namespaces.named.insert("room".into(), room);
    config.auth.jwt = List(vec![JwtKey {
        algorithm: Some(Algorithm::Hs256),
        secret: Some(Secret::new(SECRET)),
        require_exp: false,
        ..JwtKey::default()
    }]);
    config
}

pub(super) fn token() -> String {
    token_of(&serde_json::json!({"sub": "ada", "channels": ["*"]}))
}

pub(super) fn token_of(claims: &serde_json::Value) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).unwrap()
}

#[test]
fn who_leaves_before_its_presence_was_written_does_not_stay_present() {
    let rig = Rig::start(with_presence());
    rig.backplane.joins.shut();
    let path = format!("/ws?channel=room:1&token={}", token());
    let client = WsClient::connect(rig.address, &path);
    rig.backplane.joins.eventually_arrived(1);
    let left = || rig.metric("tidegate_disconnects_total");
    drop(client);
    eventually("it has left", DEADLINE, || left() == 1.0);
    rig.backplane.joins.let_pass();
    let stays = WsClient::connect(rig.address, &path);
    rig.backplane.joins.open();
    eventually("the one that stays is present alone", DEADLINE, || rig.present("room:1").len() == 1);
    drop(stays);
    eventually("nobody is present", DEADLINE, || rig.present("room:1").is_empty());
}

/// It was in no lane yet, and is in the backplane all the same.
#[test]
fn who_leaves_while_it_recovers_does_not_stay_present() {
    let rig = Rig::start(with_presence());
    let start = rig.publish("room:1", "0").unwrap();
    for _ in 0..3 {
        rig.publish("room:1", &"x".repeat(60 * 1024)).unwrap();
    }
    rig.backplane.history.shut();
    let (address, path) = (rig.address, format!("/ws?channel=room:1&since={start}&token={}", token()));
    let client = std::thread::spawn(move || WsClient::connect(address, &path));
    rig.backplane.history.eventually_arrived(1);
    rig.backplane.history.let_pass();
    let mut client = client.join().unwrap();
    client.expect_text();
    rig.backplane.history.eventually_arrived(2);
    eventually("it is present", DEADLINE, || rig.present("room:1").len() == 1);
    drop(client);
    eventually("nobody is present", DEADLINE, || rig.present("room:1").is_empty());
}

/// A process that is started again under its name must not give a name to a second connection.
#[test]
fn names_of_connections_do_not_come_back_with_the_process() {
    let name = || {
        let mut config = with_presence();
        config.node = "gateway-0".into();
        let rig = Rig::start(config);
        let client = WsClient::connect(rig.address, &format!("/ws?channel=room:1&token={}", token()));
        let mut names = Vec::new();
        eventually("it is present", DEADLINE, || {
            names = rig.present("room:1");
            !names.is_empty()
        });
        drop(client);
        names.remove(0)
    };
    let (first, second) = (name(), name());
    assert!(first.starts_with("gateway-0.") && second.starts_with("gateway-0."), "{first} {second}");
    assert_ne!(first, second);
}

#[test]
fn what_was_published_elsewhere_is_bounded_here() {
    let rig = Rig::start(config());
    let mut client = WsClient::connect(rig.address, "/ws?channel=plain:a");
    let channel = tidegate_backplane::Channel::new("plain:a").unwrap();
    let interest = rig.relay.interests.get(&channel).unwrap();
    // Past what publishers of this node wait for, and what others may add to it.
    let first = interest.load(512 * 1024);
    assert_eq!(rig.hand_over("plain:a", None, "1"), Intake::Taken);
    assert_eq!(client.expect_text(), "1");
    let second = interest.load(512 * 1024);
    assert_eq!(rig.hand_over("plain:a", None, "2"), Intake::Full);
    drop(second);
    assert_eq!(rig.hand_over("plain:a", None, "2"), Intake::Taken);
    assert_eq!(client.expect_text(), "2");
    drop(first);
    assert_eq!(rig.hand_over("nobody:here", None, "3"), Intake::Taken);
    assert_eq!(rig.relay.unwanted.load(Ordering::Relaxed), 1);
}
