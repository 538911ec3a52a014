//! Clients of Pusher Channels: asked about where their app's server has signed nothing.

use serde_json::json;
use tidegate_testkit::{DEADLINE, RawTcp, WsClient, eventually, masked_frame};

use super::{
    super::{
        pusher::client::{self, Client, PATH},
        rig::Rig,
    },
    application::{Application, Asked, yes},
};
use crate::config::{Config, HookEvent, HookQuestion};

const ASKED: [HookQuestion; 3] = [HookQuestion::Connect, HookQuestion::Subscribe, HookQuestion::Publish];

fn config(application: &Application, events: &[HookEvent]) -> Config {
    let mut config = client::config();
    let mut hook = application.hook(&ASKED);
    hook.events = events.to_vec();
    config.hooks.0.insert("app".into(), hook);
    config.webhooks.batch_wait = std::time::Duration::ZERO;
    config
}

fn answer(asked: &Asked) -> (u16, String) {
    match (asked.kind(), asked.headers.get("ce-channel").and_then(|name| name.to_str().ok())) {
        ("connect", _) => (200, json!({"user": "ada", "state": "7", "channels": ["open-*"]}).to_string()),
        ("subscribe", Some("no")) => (403, "members only".into()),
        ("publish", _) if &*asked.body == b"spam" => (403, "no spam".into()),
        ("publish", _) if &*asked.body == b"rude" => (200, "polite".into()),
        _ => (204, String::new()),
    }
}

#[test]
fn who_connects_subscribes_and_publishes_is_asked() {
    let application = Application::start(answer);
    let rig = Rig::start(config(&application, &[]));
    let (mut one, mut other) = (Client::connect(&rig), Client::connect(&rig));
    one.subscribe("news");
    one.subscribe("open-1");
    one.ask("no");
    assert_eq!(one.expect_refusal("no", "AuthError", 401), "members only");
    for client in [&mut one, &mut other] {
        client.subscribe("private-room");
    }
    one.send_event("private-room", "client-say", json!("spam"));
    assert_eq!(one.expect_error(None), "no spam");
    for said in ["rude", "hello"] {
        one.send_event("private-room", "client-say", json!(said));
    }
    for said in ["polite", "hello"] {
        let told = other.expect_on("client-say", "private-room");
        assert_eq!(told, said);
    }
    let asked = application.asked();
    let about = |kind: &str| asked.iter().filter(|asked| asked.kind() == kind).collect::<Vec<_>>();
    let channels: Vec<_> = about("subscribe").iter().map(|asked| asked.header("ce-channel")).collect();
    assert_eq!(channels, ["news", "no"], "what is signed, or allowed already, is asked about by nobody");
    let publish = about("publish")[0];
    let headers = ["ce-protocol", "ce-user", "ce-state", "ce-event"].map(|name| publish.header(name));
    assert_eq!(headers, ["pusher", "ada", "7", "client-say"]);
    assert_eq!(about("connect").len(), 2);
}

/// Nobody is told hello, or that it is connected, before the application has said so.
#[test]
fn who_is_refused_is_told_by_the_socket() {
    let application = Application::start(|_: &Asked| (403, "not on the list".into()));
    let rig = Rig::start(config(&application, &[HookEvent::Connected, HookEvent::Disconnected]));
    let refused = |code: u16| {
        let mut client = Client { socket: WsClient::connect(rig.address, PATH), id: String::new() };
        let text = client.expect_error(Some(code));
        assert_eq!(client.socket.expect_close(code), text);
        text
    };
    assert_eq!(refused(4009), "not on the list");
    application.turn(|_| (500, String::new()));
    refused(4100);
    application.turn(yes);
    let nobody = WsClient::connect(rig.address, "/app/nobody?protocol=7");
    Client { socket: nobody, id: String::new() }.expect_error(Some(4001));
    drop(Client::connect(&rig));
    let of = |kind: &str| application.asked().iter().filter(|asked| asked.kind() == kind).count();
    eventually("it is gone", DEADLINE, || of("disconnected") > 0);
    assert_eq!((of("connected"), of("disconnected")), (1, 1));
}

#[test]
fn what_comes_with_the_request_waits_for_the_answer() {
    let application = Application::start(yes);
    let rig = Rig::start(config(&application, &[]));
    application.answers(false);
    let mut client = RawTcp::upgrade(rig.address, PATH);
    client.send(&masked_frame(0x81, br#"{"event":"pusher:subscribe","data":{"channel":"a"}}"#));
    application.eventually_asked(1);
    application.answers(true);
    client.read_head(DEADLINE).unwrap();
    for expect in ["connection_established", "subscription_succeeded"] {
        let told = String::from_utf8(client.read_frame(DEADLINE).unwrap().1).unwrap();
        assert!(told.contains(expect), "{told}");
    }
    let kinds: Vec<_> = application.asked().iter().map(|asked| asked.kind().to_owned()).collect();
    assert_eq!(kinds, ["connect", "subscribe"]);
}
