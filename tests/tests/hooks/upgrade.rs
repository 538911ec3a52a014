//! Applications of a gateway that is replaced by another process: each is asked and told by one of them at any moment.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};
use tidegate_testkit::redis::RedisServer;
use tidegate_testkit::{Closed, DEADLINE, Gateway, Inbox, Received, WsClient, end, eventually};
use tidegate_tests::application::{Application, Language, SECRET, SESSION};
use tidegate_tests::succession::{Program, Successors, next_text, refused};

use super::lives::{lives, short};

const EVENTS: &str =
    "events = [\"connected\", \"subscribed\", \"unsubscribed\", \"disconnected\"]\nbatch = true\n";

/// What was told of each connection, in order; an event that came twice is there twice.
fn told(inbox: &Inbox) -> BTreeMap<String, Vec<String>> {
    let mut told = BTreeMap::<String, Vec<String>>::new();
    for posted in inbox.posted() {
        let Value::Array(events) = serde_json::from_str(&posted.body).unwrap() else { panic!("{posted:?}") };
        for event in events {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            told.entry(text(&event["data"]["connection"])).or_default().push(text(&event["type"]));
        }
    }
    told
}

const LIFE: [&str; 4] =
    ["tidegate.connected", "tidegate.subscribed", "tidegate.unsubscribed", "tidegate.disconnected"];

/// Connections that stay, and others that come and go, over three upgrades: each event once, and in order; and wills.
#[test]
fn each_event_is_told_once_and_in_order() {
    let (redis, inbox) = (RedisServer::start(), Inbox::start());
    let config = format!(
        "[hooks.app]\nurl = \"{}\"\nevents = [\"connected\", \"disconnected\"]\nbatch = true\n[redis]\nlease = \"3s\"\n",
        inbox.url()
    );
    let start = |name: &str| Gateway::builder().backplane(&redis.url()).node(name).config(&config).start();
    let (gateway, other) = (start("one"), start("other"));
    let mut successors = Successors::default();
    let standing: Vec<WsClient> = (0..50).map(|_| gateway.subscribe("plain:a")).collect();
    let (stop, address) = (AtomicBool::new(false), gateway.public());
    let mut last = gateway.pid();
    thread::scope(|scope| {
        let come_and_go = || {
            while !stop.load(Ordering::Acquire) {
                short(address);
            }
        };
        let coming: Vec<_> = (0..2).map(|_| scope.spawn(come_and_go)).collect();
        for _ in 0..3 {
            let before = told(&inbox).len();
            eventually("some have come", DEADLINE, || told(&inbox).len() >= before + 30);
            last = successors.upgrade(gateway.pid(), gateway.internal());
        }
        stop.store(true, Ordering::Release);
        coming.into_iter().for_each(|coming| coming.join().unwrap());
    });
    let wills = || redis.command(&["KEYS", "tidegate:{!nodes}:w:*"]).elements().to_vec();
    let ended = |told: &BTreeMap<String, Vec<String>>| told.values().filter(|told| told.len() == 2).count();
    eventually("all that came and went is told", DEADLINE, || {
        let told = told(&inbox);
        ended(&told) + standing.len() == told.len()
    });
    let all = told(&inbox);
    assert!(all.len() >= standing.len() + 90, "{}", all.len());
    for (connection, told) in &all {
        assert_eq!(*told, ["tidegate.connected", "tidegate.disconnected"][..told.len()], "{connection}");
    }
    assert_eq!(wills().len(), 1, "those of one node");
    // The process that has taken over three times dies: others tell the ends of those that stood.
    end(last);
    drop(standing);
    eventually("the ends are told", DEADLINE * 2, || lives(&inbox).values().all(|life| life.ends.len() == 1));
    let lost = lives(&inbox).into_values().filter(|life| life.reasons.contains("node_lost")).count();
    assert_eq!(lost, 50);
    eventually("nothing is left in Redis", DEADLINE, || wills().is_empty());
    drop(other);
}

/// What waits for an application that is away goes along, and is told when it is there, before what happens later.
#[test]
fn what_waits_for_an_application_goes_along() {
    let reserved = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let config =
        format!("[hooks.app]\nurl = \"http://{address}\"\n{EVENTS}[webhooks]\nretry_wait = \"50ms\"\n");
    let gateway = Gateway::builder().config(&config).start();
    let mut successors = Successors::default();
    let gone = gateway.subscribe("plain:a");
    let mut stays = gateway.subscribe("plain:b");
    drop(gone);
    gateway.eventually_connections(1);
    for _ in 0..2 {
        successors.upgrade(gateway.pid(), gateway.internal());
    }
    let inbox = Inbox::start_at(address);
    eventually("all is told", DEADLINE, || {
        let mut lengths: Vec<usize> = told(&inbox).values().map(Vec::len).collect();
        lengths.sort_unstable();
        lengths == [2, 4]
    });
    gateway.rest().publish("plain:b", "after");
    assert_eq!(next_text(&mut stays), "after");
    drop(stays);
    eventually("the other one is, too", DEADLINE, || told(&inbox).values().all(|told| told.len() == 4));
    for (connection, told) in told(&inbox) {
        assert_eq!(told, LIFE, "{connection}");
    }
}

/// Who was let in by the application is known to the next process as it was.
#[test]
fn whom_the_application_let_in_stays() {
    let application = Application::start(Language::Node);
    let gateway = Gateway::builder().config(&application.config(SECRET)).start();
    let mut successors = Successors::default();
    let path = "/ws?channel=room:1&envelope=json";
    let mut client = WsClient::try_connect(gateway.public(), path, SESSION).unwrap();
    for round in 0..3 {
        client.send_text(&json!({"message": round, "id": 1}).to_string());
        assert_eq!(client.expect_json(), json!({"ok": {"from": "ada", "echo": round}, "id": 1}));
        client.send_text(&json!({"publish": {"channel": "room:1", "data": "spam"}, "id": 2}).to_string());
        assert_eq!(client.expect_json()["error"]["code"], 403);
        client.send_text(&json!({"publish": {"channel": "room:1", "data": "hello"}, "id": 3}).to_string());
        let told = [client.expect_json(), client.expect_json()];
        assert!(told.iter().any(|told| told["data"] == "hello"), "{told:?}");
        successors.upgrade(gateway.pid(), gateway.internal());
    }
}

/// An application that hangs: whose question is under way is told to come back, and everybody else stays.
#[test]
fn who_waits_for_an_answer_is_told_to_come_back() {
    // It takes connections and answers nothing.
    let hangs = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let config = format!(
        "[hooks.app]\nurl = \"http://{}\"\nquestions = [\"message\"]\nevents = [\"connected\"]\ntimeout = \"30s\"\n",
        hangs.local_addr().unwrap()
    );
    let gateway = Gateway::builder().config(&config).start();
    let mut successors = Successors::default();
    let mut stays = gateway.subscribe("news");
    let mut asks = WsClient::connect(gateway.public(), "/ws?channel=news&envelope=json");
    asks.send_text(&json!({"message": 1, "id": 1}).to_string());
    gateway.eventually_metric("tidegate_hook_questions_under_way", &[("hook", "app")], |asked| asked == 1.0);
    successors.upgrade(gateway.pid(), gateway.internal());
    loop {
        match asks.next(DEADLINE) {
            Received::Closed(Closed::Frame { code, .. }) => break assert_eq!(code, 1012),
            Received::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
    gateway.rest().publish("news", "after");
    assert_eq!(next_text(&mut stays), "after");
}

/// A configuration with other events would not know what to tell of those who are there.
#[test]
fn another_configuration() {
    let program = Program::real();
    let hook = |name: &str, events: &str| {
        format!(
            "[hooks.{name}]\nurl = \"http://127.0.0.1:9/\"\nquestions = [\"message\"]\nevents = [{events}]\n"
        )
    };
    let first = hook("app", "\"connected\"");
    let builder = Gateway::builder().program(&program.path).config(&first);
    let file = builder.file("tidegate.toml", first.as_bytes());
    let gateway = builder.start();
    let mut client = gateway.subscribe("news");
    for other in [hook("app", "\"connected\", \"disconnected\""), hook("app", "\"channel.occupied\"")] {
        fs::write(&file, other).unwrap();
        let why = refused(gateway.internal());
        assert!(why.contains("needs a restart"), "{why}");
    }
    let mut successors = Successors::default();
    for other in [hook("other", "\"connected\""), String::new(), first] {
        fs::write(&file, other).unwrap();
        successors.upgrade(gateway.pid(), gateway.internal());
        gateway.rest().publish("news", "after");
        assert_eq!(next_text(&mut client), "after");
    }
}
