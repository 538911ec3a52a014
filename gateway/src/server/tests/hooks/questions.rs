//! Each question over raw WebSockets and event streams: allowed, with what it says, and refused.

use std::time::{Duration, SystemTime};

use http::HeaderName;
use serde_json::json;
use tidegate_testkit::{DEADLINE, HttpHead, RawTcp, SseClient, WsClient};

use super::{
    super::rig::Rig,
    application::{Application, Asked, yes},
};
use crate::config::{ClientPublish, HeaderSetting, HookQuestion, Pattern, Secret};

/// The answer to a handshake.
fn shake(rig: &Rig, path: &str, headers: &str) -> HttpHead {
    let mut socket = RawTcp::connect(rig.address);
    socket.send(
        format!(
            "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{headers}\r\n"
        )
        .as_bytes(),
    );
    socket.read_head(DEADLINE).unwrap()
}

#[test]
fn who_connects_is_asked_with_what_is_handed_on_and_signed() {
    let application = Application::start(yes);
    let mut config = application.config(&[HookQuestion::Connect]);
    let hook = config.hooks.0.get_mut("app").unwrap();
    hook.secret = Some(Secret::new(b"whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"));
    hook.headers = vec![HeaderSetting(HeaderName::from_static("x-seat"))];
    (hook.cookies, hook.query) = (vec!["sid".into()], vec!["room".into()]);
    let rig = Rig::start(config);
    let headers = "X-Seat: 5\r\nX-Other: 6\r\nCookie: a=1; sid=s3; b=2\r\n";
    assert_eq!(shake(&rig, "/ws?channel=plain:a&room=r%201&other=1", headers).status, 101);
    let asked = application.asked();
    let said = asked[0].json();
    assert_eq!(said["channels"], json!(["plain:a"]));
    assert_eq!((&said["headers"], &said["cookies"]), (&json!({"x-seat": "5"}), &json!({"sid": "s3"})));
    assert_eq!((&said["query"], &said["client"]), (&json!({"room": "r 1"}), &json!("127.0.0.1")));
    assert_eq!((asked[0].kind(), asked[0].header("ce-protocol")), ("connect", "raw"));
    assert_eq!(asked[0].header("ce-id"), asked[0].header("webhook-id"));
    assert!(asked[0].header("webhook-signature").starts_with("v1,"));
    assert_eq!(said["connection"], asked[0].header("ce-connection"));
}

#[test]
fn what_it_says_of_a_connection_counts() {
    let says =
        r#"{"user":"ada","subscribe":["closed:b"],"channels":["closed:*"],"data":{"hi":1},"state":"s 1"}"#;
    let application = Application::start(move |asked: &Asked| match asked.kind() {
        "connect" => (200, says.into()),
        _ => (200, "\"pong\"".into()),
    });
    let mut config = application.config(&[HookQuestion::Connect, HookQuestion::Message]);
    config.namespaces.default.anonymous_subscribe = false;
    let rig = Rig::start(config);
    let mut client = WsClient::connect(rig.address, "/ws?envelope=json&channel=closed:a");
    assert_eq!(client.expect_json(), json!({"connected": {"data": {"hi": 1}}}));
    rig.publish("closed:b", "1");
    assert_eq!(client.expect_json()["channel"], "closed:b");
    client.send_text(r#"{"subscribe":"closed:c","id":1}"#);
    assert_eq!(client.expect_json()["ok"]["channel"], "closed:c");
    client.send_text(r#"{"subscribe":"other","id":2}"#);
    assert_eq!(client.expect_json()["error"]["code"], 403);
    client.send_text(r#"{"message":{"a":[1]},"id":3}"#);
    assert_eq!(client.expect_text(), r#"{"ok":"pong","id":3}"#);
    let asked = application.asked();
    assert_eq!((&*asked[1].body, asked[1].header("ce-user")), (&br#"{"a":[1]}"#[..], "ada"));
    assert_eq!((asked[1].header("ce-state"), asked[1].header("content-type")), ("s%201", "application/json"));
    let mut stream = SseClient::connect(rig.address, "/sse?channel=closed:a", None);
    assert_eq!(stream.expect_event().data, r#"{"hi":1}"#);
}

#[test]
fn no_is_told_in_its_words() {
    let application = Application::start(|_: &Asked| (403, "not on the list".into()));
    let rig = Rig::start(application.config(&[HookQuestion::Connect]));
    for (status, path) in [(403, "/ws?channel=plain:a"), (403, "/sse?channel=plain:a")] {
        let head = shake(&rig, path, "");
        assert_eq!(head.status, status, "{path}");
    }
    application.turn(|_| (422, "no seats left".into()));
    assert_eq!(shake(&rig, "/ws?channel=plain:a", "").status, 422);
    rig.eventually_metric("tidegate_hook_questions_total{hook=\"app\",result=\"no\"}", 3.0);
    rig.eventually_metric("tidegate_handshakes_total{result=\"application_refused\"}", 3.0);
}

#[test]
fn credentials_are_asked_about_by_nobody() {
    let application = Application::start(|_: &Asked| (403, String::new()));
    let rig = Rig::start(application.config(&[HookQuestion::Connect]));
    let head = shake(&rig, "/ws?channel=plain:a", "Authorization: Bearer dev-key\r\n");
    assert_eq!((head.status, application.asked().len()), (101, 0));
}

#[test]
fn subscriptions_are_allowed_one_by_one() {
    let application = Application::start(|asked: &Asked| match asked.json()["channel"].as_str() {
        Some("plain:no") => (403, "closed".into()),
        _ => (204, String::new()),
    });
    let mut config = application.config(&[HookQuestion::Subscribe]);
    config.namespaces.default.anonymous_subscribe = false;
    config.hooks.0.get_mut("app").unwrap().channels = vec![Pattern::new("plain:*").unwrap()];
    let rig = Rig::start(config);
    assert_eq!(shake(&rig, "/ws?channel=plain:a&channel=plain:no", "").status, 403);
    assert_eq!(shake(&rig, "/sse?channel=other", "").status, 401, "nobody is asked about it");
    let mut client = WsClient::connect(rig.address, "/ws?envelope=json&channel=plain:a&channel=plain:b");
    client.send_text(r#"{"subscribe":"plain:no","id":1}"#);
    let refused = client.expect_json();
    assert_eq!(
        (&refused["error"]["code"], &refused["error"]["message"]),
        (&403.into(), &"plain:no: closed".into())
    );
    client.send_text(r#"{"subscribe":"plain:c","id":2}"#);
    assert_eq!(client.expect_json()["ok"]["channel"], "plain:c");
    for channel in ["plain:a", "plain:b", "plain:c"] {
        rig.publish(channel, "1");
        assert_eq!(client.expect_json()["channel"], channel);
    }
}

#[test]
fn publications_are_changed_and_refused() {
    let application = Application::start(|asked: &Asked| match &*asked.body {
        b"1" => (200, "{\"was\":1}".into()),
        b"2" => (400, "not that".into()),
        _ => (204, String::new()),
    });
    let mut config = application.config(&[HookQuestion::Publish]);
    config.namespaces.default.client_publish = ClientPublish::Never;
    let rig = Rig::start(config);
    let mut client = WsClient::connect(rig.address, "/ws?envelope=json&channel=a");
    client.send_text(r#"{"publish":{"channel":"a","data":1},"id":1}"#);
    let (one, other) = (client.expect_json(), client.expect_json());
    let (published, answer) = if one["id"] == 1 { (other, one) } else { (one, other) };
    assert_eq!((&published["data"], &answer["id"]), (&json!({"was": 1}), &1.into()));
    client.send_text(r#"{"publish":{"channel":"a","data":2},"id":2}"#);
    assert_eq!(client.expect_json()["error"], json!({"code": 400, "message": "not that"}));
    let mut verbatim = WsClient::connect(rig.address, "/ws?channel=a");
    verbatim.send_text("three");
    assert_eq!(
        (verbatim.expect_text(), client.expect_json()["data"].take()),
        ("three".into(), json!("three"))
    );
    assert_eq!(application.asked()[2].header("ce-channel"), "a");
}

/// Commands behind a question wait for its answer; other connections do not.
#[test]
fn a_connection_that_waits_is_held_and_nobody_else() {
    let application =
        Application::start(|asked: &Asked| (200, String::from_utf8(asked.body.to_vec()).unwrap()));
    let rig = Rig::start(application.config(&[HookQuestion::Message]));
    let mut client = WsClient::connect(rig.address, "/ws?envelope=json");
    let mut other = WsClient::connect(rig.address, "/ws?channel=plain:a");
    application.answers(false);
    for text in [r#"{"message":1,"id":1}"#, r#"{"ping":true,"id":2}"#, r#"{"message":2,"id":3}"#] {
        client.send_text(text);
    }
    application.eventually_asked(1);
    rig.publish("plain:a", "x");
    assert_eq!(other.expect_text(), "x");
    application.answers(true);
    let told: Vec<String> = (0..3).map(|_| client.expect_text()).collect();
    assert_eq!(told, [r#"{"ok":1,"id":1}"#, r#"{"ok":{},"id":2}"#, r#"{"ok":2,"id":3}"#]);
}

#[test]
fn what_is_over_is_asked_about_again() {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let application = Application::start(move |asked: &Asked| match asked.kind() {
        "connect" => (200, json!({"user": "ada", "expires": now() + 1, "state": "1"}).to_string()),
        _ if asked.header("ce-state") == "1" => {
            (200, json!({"expires": now() + 1, "state": "2"}).to_string())
        }
        _ => (403, String::new()),
    });
    let mut config = application.config(&[HookQuestion::Connect, HookQuestion::Refresh]);
    config.heartbeat.interval = Duration::from_millis(500);
    let rig = Rig::start(config);
    let mut client = WsClient::connect(rig.address, "/ws?channel=plain:a");
    client.expect_close(4401);
    let states: Vec<_> =
        application.asked()[1..].iter().map(|asked| asked.header("ce-state").to_owned()).collect();
    assert_eq!(states, ["1", "2"]);
}
