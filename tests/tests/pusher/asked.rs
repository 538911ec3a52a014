//! Hooks: an application that decides for pusher-js where nothing was signed, and is told what its clients do.

use std::collections::BTreeMap;

use serde_json::Value;
use tidegate_testkit::redis::RedisServer;
use tidegate_testkit::{DEADLINE, Gateway, Tool, eventually};
use tidegate_tests::answers::{Answers, Asked, answer, yes};

use crate::script::run;

fn decide(asked: &Asked) -> Vec<u8> {
    let no = |why: &str| answer(403, "text/plain", why.as_bytes());
    let json = |body: &str| answer(200, "application/json", body.as_bytes());
    match (asked.kind(), asked.header("ce-channel")) {
        ("connect", _) if asked.path == "/closed" => no("not on the list"),
        ("connect", _) => json(r#"{"user":"ada","state":"7"}"#),
        ("subscribe", "members") => no("members only"),
        ("publish", _) if asked.body.contains("spam") => no("no spam"),
        ("publish", _) if asked.body.contains("rude") => json(r#"{"text":"polite"}"#),
        _ => yes(asked),
    }
}

#[test]
fn pusher_js_is_asked_about_and_its_connections_and_subscriptions_are_told() {
    let (redis, application) = (RedisServer::start(), Answers::start(decide));
    let start = |node: &str, path: &str| {
        let hook = format!(
            "[hooks.app]\nurl = \"http://{}{path}\"\nquestions = [\"connect\", \"subscribe\", \"publish\"]\n\
             events = [\"connected\", \"disconnected\", \"subscribed\", \"unsubscribed\"]\ntimeout = \"30s\"\n[webhooks]\ntimeout = \"30s\"\n",
            application.address
        );
        Gateway::builder().backplane(&redis.url()).node(node).config(&hook).start()
    };
    let gateways = [start("a", "/a"), start("b", "/b"), start("closed", "/closed")];
    run(Tool::node("pusher/asked.cjs"), "asked.cjs", &gateways);
    let told =
        |kind: &str| application.asked().into_iter().filter(|asked| asked.kind() == kind).collect::<Vec<_>>();
    eventually("both connections are told to be gone", DEADLINE, || told("disconnected").len() == 2);
    let mut lives = BTreeMap::<String, Vec<String>>::new();
    for event in application.asked() {
        let Ok(body) = serde_json::from_str::<Value>(&event.body) else { continue };
        let (kind, channel) = (event.kind(), event.header("ce-channel"));
        if ["connected", "disconnected", "subscribed", "unsubscribed"].contains(&kind) {
            assert_eq!((&body["user"], &body["protocol"]), (&"ada".into(), &"pusher".into()), "{body}");
            let life = lives.entry(event.header("ce-connection").to_owned()).or_default();
            life.push(format!("{kind} {channel}").trim_end().to_owned());
        }
    }
    let room = ["connected", "subscribed private-room", "unsubscribed private-room", "disconnected"];
    let news = [
        "connected",
        "subscribed news",
        "subscribed private-room",
        "unsubscribed news",
        "unsubscribed private-room",
        "disconnected",
    ];
    let mut lives: Vec<_> = lives.into_values().collect();
    lives.sort();
    assert_eq!(lives, [&news[..], &room[..]]);
    for event in told("publish") {
        assert_eq!((event.header("ce-event"), event.header("ce-state")), ("client-say", "7"));
    }
    let subscribed: Vec<_> =
        told("subscribe").iter().map(|asked| asked.header("ce-channel").to_owned()).collect();
    assert_eq!(subscribed, ["news", "members"], "nobody is asked about what is signed");
}
