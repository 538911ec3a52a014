//! Applications that do not answer as they should, or not at all.

use std::time::Duration;

use tidegate_testkit::{DEADLINE, RawTcp, WsClient, eventually};

use super::{
    super::rig::Rig,
    application::{Application, Asked, yes},
};
use crate::config::{ByteSize, Config, HookAway, HookQuestion, Setting as _, WebhookUrl};

fn status(rig: &Rig) -> u16 {
    let mut socket = RawTcp::connect(rig.address);
    socket.send(
        b"GET /ws?channel=plain:a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
          Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    );
    socket.read_head(DEADLINE).unwrap().status
}

fn result(result: &str) -> String {
    format!("tidegate_hook_questions_total{{hook=\"app\",result=\"{result}\"}}")
}

fn tiny(mut config: Config) -> Config {
    let hook = config.hooks.0.get_mut("app").unwrap();
    (hook.answer_bytes, hook.state_bytes) = (ByteSize::new(64), ByteSize::new(8));
    config
}

#[test]
fn what_is_no_answer_is_none() {
    let application = Application::start(yes);
    let rig = Rig::start(tiny(application.config(&[HookQuestion::Connect])));
    for (answer, name) in [
        ((500, ""), "unusable"),
        ((503, "later"), "unusable"),
        ((200, "<html>"), "unusable"),
        ((200, r#"{"user":5}"#), "unusable"),
        ((200, r#"{"state":"123456789"}"#), "unusable"),
        ((307, "http://127.0.0.1:1/elsewhere"), "unusable"),
        ((200, &*format!("\"{}\"", "x".repeat(100))), "too_large"),
    ] {
        let (code, body) = (answer.0, answer.1.to_owned());
        application.turn(move |_| (code, body.clone()));
        let before = rig.metric(&result(name));
        assert_eq!(status(&rig), 503, "{answer:?}");
        assert_eq!(rig.metric(&result(name)), before + 1.0, "{answer:?}");
    }
    application.turn(yes);
    assert_eq!(status(&rig), 101);
}

#[test]
fn who_does_not_answer_in_time_has_not_answered() {
    let application = Application::start(yes);
    let mut config = application.config(&[HookQuestion::Connect]);
    config.hooks.0.get_mut("app").unwrap().timeout = Duration::from_millis(50);
    let rig = Rig::start(config);
    application.answers(false);
    assert_eq!(status(&rig), 503);
    assert_eq!(rig.metric(&result("timeout")), 1.0);
}

#[test]
fn where_nobody_is_there_the_policy_decides() {
    let application = Application::start(yes);
    let mut config = application.config(&[HookQuestion::Connect]);
    // A port that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    config.hooks.0.get_mut("app").unwrap().url = WebhookUrl::from_text(&format!("http://127.0.0.1:{port}/"));
    let rig = Rig::start(config.clone());
    assert_eq!(status(&rig), 503);
    config.hooks.0.get_mut("app").unwrap().away = HookAway::Allow;
    let rig = Rig::start(config);
    assert_eq!(status(&rig), 101);
    assert_eq!(rig.metric(&result("unreachable")), 1.0);
}

#[test]
fn a_failing_application_is_left_alone_until_it_answers() {
    let application = Application::start(|_: &Asked| (500, String::new()));
    let rig = Rig::start(application.config(&[HookQuestion::Message]));
    let mut client = WsClient::connect(rig.address, "/ws?envelope=json");
    let mut ask = || {
        client.send_text(r#"{"message":1,"id":1}"#);
        client.expect_json()["ok"].is_null()
    };
    let mut asked = 0;
    while rig.metric("tidegate_hook_circuit_open{") == 0.0 {
        assert!(ask() && asked < 100, "it opens");
        asked += 1;
    }
    let known = application.asked().len();
    ask();
    assert!(rig.metric(&result("circuit_open")) >= 1.0 && application.asked().len() == known);
    application.turn(|_| (200, "true".into()));
    eventually("it is asked again", DEADLINE, || {
        ask();
        rig.metric("tidegate_hook_circuit_open{") == 0.0
    });
    assert_eq!(rig.metric("tidegate_hook_circuit_openings_total"), 1.0);
}

/// One application that is stuck holds up those who ask it, and no other.
#[test]
fn a_stuck_application_delays_no_other() {
    let (stuck, quick) = (Application::start(yes), Application::start(yes));
    let mut config = stuck.config(&[HookQuestion::Message]);
    config.hooks.0.get_mut("app").unwrap().concurrency = 1;
    config.hooks.0.insert("quick".into(), quick.hook(&[HookQuestion::Connect]));
    let rig = Rig::start(config);
    stuck.answers(false);
    let mut waiting: Vec<WsClient> =
        (0..10).map(|_| WsClient::connect(rig.address, "/ws?envelope=json")).collect();
    for client in &mut waiting {
        client.send_text(r#"{"message":1,"id":1}"#);
    }
    stuck.eventually_asked(1);
    rig.eventually_metric("tidegate_hook_questions_under_way{hook=\"app\"}", 10.0);
    assert_eq!(status(&rig), 101);
    stuck.answers(true);
    for client in &mut waiting {
        assert_eq!(client.expect_text(), r#"{"ok":null,"id":1}"#);
    }
}
