//! Commands on an open raw WebSocket.

use std::{net::TcpListener, time::SystemTime};

use base64::Engine as _;
use tidegate_testkit::{DEADLINE, HttpHead, RawTcp, WsClient};

use super::{
    apart::{token_of, with_presence},
    rig::{Rig, config},
};
use crate::{
    auth::Algorithm,
    config::{ByteSize, Config, JwksUrl, JwtKey, List, Namespace, Setting as _},
};

/// A namespace `closed` that needs a token, and has history and presence.
fn with_closed() -> Config {
    let mut config = with_presence();
    config.auth.jwt.0[0].leeway = std::time::Duration::ZERO;
    let closed =
        Namespace { anonymous_subscribe: false, presence: true, ..config.namespaces.default.clone() };
    config.namespaces.named.insert("closed".into(), closed);
    config
}

/// For the namespace `closed`, for so many seconds.
fn closed_token(seconds: u64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    token_of(&serde_json::json!({"sub": "ada", "channels": ["closed:*"], "exp": now + seconds}))
}

#[test]
fn a_client_without_channels_subscribes_recovers_and_leaves() {
    let rig = Rig::start(config());
    let start = rig.publish("a", "1").unwrap();
    rig.publish("a", "2");
    let mut client = WsClient::connect(rig.address, "/ws?envelope=json");
    client.send_text(r#"{"ping":true,"id":1}"#);
    assert_eq!(client.expect_text(), r#"{"ok":{},"id":1}"#);
    client.send_text(&format!(r#"{{"subscribe":"a","since":"{start}","id":2}}"#));
    let told = client.expect_json();
    assert_eq!((&told["id"], &told["ok"]["recovered"]), (&2.into(), &true.into()), "{told}");
    assert_eq!(client.expect_json()["data"], "2");
    rig.publish("a", "3");
    assert_eq!(client.expect_json()["data"], "3");
    client.send_text(r#"{"subscribe":"a","id":3}"#);
    assert_eq!(client.expect_json()["error"]["code"], 409);
    client.send_text(r#"{"subscribe":"b","id":4}"#);
    assert_eq!(client.expect_json()["ok"]["channel"], "b");
    client.send_text(r#"{"history":{"channel":"a","limit":2},"id":5}"#);
    let history = client.expect_json();
    assert_eq!(history["ok"]["publications"].as_array().unwrap().len(), 2, "{history}");
    client.send_text(r#"{"unsubscribe":"a","id":6}"#);
    assert_eq!(client.expect_text(), r#"{"ok":{"channel":"a"},"id":6}"#);
    client.send_text(r#"{"unsubscribe":"a","id":7}"#);
    assert_eq!(client.expect_json()["error"]["code"], 404);
    client.send_text(r#"{"subscribe":"a b","id":8}"#);
    let refused = client.expect_json();
    assert_eq!((&refused["error"]["code"], &refused["id"]), (&400.into(), &8.into()));
    client.send_text(r#"{"publish":{"channel":"b","data":1},"id":9}"#);
    assert_eq!(client.expect_json()["error"]["code"], 403);
    client.send_text(r#"{"token":"x","id":10}"#);
    assert_eq!(client.expect_json()["error"]["code"], 401);
    rig.eventually_subscribers("a", 0);
    drop(client);
    rig.eventually_empty();
}

#[test]
fn a_publish_that_is_refused_late_is_told_with_its_id() {
    let mut config = config();
    config.limits.publish_bytes = ByteSize::kib(1);
    let rig = Rig::start(config);
    let mut client = WsClient::connect(rig.address, "/ws?channel=plain:a&envelope=json");
    let publish = |id: u32, bytes: usize| {
        format!(r#"{{"publish":{{"channel":"plain:a","data":"{}"}},"id":{id}}}"#, "x".repeat(bytes))
    };
    client.send_text(&publish(1, 2000));
    let told = client.expect_json();
    assert_eq!((&told["error"]["code"], &told["id"]), (&413.into(), &1.into()), "{told}");
    // One that waits for it is answered as well.
    client.send_text(&publish(2, 3));
    let mut told = [client.expect_json(), client.expect_json()];
    told.sort_by_key(|told| told["id"].is_null());
    assert_eq!((&told[0]["ok"].is_object(), &told[0]["id"]), (&true, &2.into()), "{told:?}");
    assert_eq!(told[1]["data"], "xxx");
    assert!(told[1]["user"].is_null(), "{told:?}");
}

#[test]
fn several_channels_come_back_each_from_its_position() {
    let rig = Rig::start(config());
    let (a, c) = (rig.publish("a", "a1").unwrap(), rig.publish("c", "c1").unwrap());
    for (channel, data) in [("a", "a2"), ("b", "b1"), ("c", "c2")] {
        rig.publish(channel, data);
    }
    let path = format!("/ws?channel=a&channel=b&channel=c&since={a},,{c}");
    let mut client = WsClient::connect(rig.address, &path);
    let mut missed = [client.expect_text(), client.expect_text()];
    missed.sort();
    assert_eq!(missed, ["a2", "c2"]);
    rig.publish("b", "b2");
    assert_eq!(client.expect_text(), "b2");
}

/// A subscription lasts no longer than the token that opened it; another one in time keeps it.
#[test]
fn a_subscription_ends_with_its_own_token_unless_that_is_renewed() {
    let rig = Rig::start(with_closed());
    let mut client = WsClient::connect(rig.address, "/ws?envelope=json&channel=open");
    let subscribe = |channel: &str, seconds: u64, id: u32| {
        format!(r#"{{"subscribe":"closed:{channel}","token":"{}","id":{id}}}"#, closed_token(seconds))
    };
    for (channel, id) in [("a", 1), ("b", 2)] {
        client.send_text(&subscribe(channel, 3, id));
        assert_eq!(client.expect_json()["ok"]["channel"], format!("closed:{channel}"));
    }
    let stays = format!(r#"{{"subscribe":"open","token":"{}","id":4}}"#, closed_token(3));
    client.send_text(&stays);
    assert_eq!(client.expect_json()["error"]["code"], 409, "it is not the token's that is bound to none");
    client.send_text(&subscribe("b", 3_600, 3));
    let renewed = client.expect_json();
    assert!(renewed["ok"]["expires"].is_u64() && renewed["id"] == 3, "{renewed}");
    let told = client.expect_json();
    assert_eq!(
        (&told["channel"], &told["unsubscribed"]["code"]),
        (&"closed:a".into(), &401.into()),
        "{told}"
    );
    for channel in ["closed:a", "closed:b", "open"] {
        rig.publish(channel, channel);
    }
    assert_eq!(
        [client.expect_json(), client.expect_json()].map(|told| told["data"].clone()),
        ["closed:b", "open"]
    );
    rig.eventually_subscribers("closed:a", 0);
}

#[test]
fn who_may_ask_about_a_channel_is_said_by_its_token_or_its_subscription() {
    let rig = Rig::start(with_closed());
    rig.publish("closed:a", "1");
    let mut client = WsClient::connect(rig.address, "/ws?envelope=json&channel=open");
    let token = closed_token(3_600);
    let history =
        |token: &str, id: u32| format!(r#"{{"history":{{"channel":"closed:a"}}{token},"id":{id}}}"#);
    let presence = |token: &str, id: u32| format!(r#"{{"presence":"closed:a"{token},"id":{id}}}"#);
    let with = format!(r#","token":"{token}""#);
    for ask in [&history as &dyn Fn(&str, u32) -> String, &presence] {
        client.send_text(&ask("", 1));
        assert_eq!(client.expect_json()["error"]["code"], 401);
        client.send_text(&ask(&with, 2));
        assert_eq!(client.expect_json()["ok"]["channel"], "closed:a");
    }
    client.send_text(&format!(r#"{{"subscribe":"closed:a","token":"{token}","id":3}}"#));
    assert_eq!(client.expect_json()["id"], 3);
    for ask in [&history as &dyn Fn(&str, u32) -> String, &presence] {
        client.send_text(&ask("", 4));
        assert_eq!(client.expect_json()["ok"]["channel"], "closed:a");
    }
}

/// The attacker's cost: tokens that wait for a key, four of them.
#[test]
fn few_commands_of_a_connection_wait_for_a_key() {
    // It takes connections and never answers.
    let keys = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config();
    config.auth.jwt = List(vec![JwtKey {
        algorithm: Some(Algorithm::Rs256),
        jwks_url: JwksUrl::from_text(&format!("http://{}/jwks", keys.local_addr().unwrap())),
        ..JwtKey::default()
    }]);
    let rig = Rig::start(config);
    let mut client = WsClient::connect(rig.address, "/ws?envelope=json&channel=open");
    let part = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    let token = format!("{}.{}.{}", part(r#"{"alg":"RS256","kid":"x"}"#), part("{}"), part("signature"));
    for id in 1..=5 {
        client.send_text(&format!(r#"{{"subscribe":"a","token":"{token}","id":{id}}}"#));
    }
    let told = client.expect_json();
    assert_eq!((&told["error"]["code"], &told["id"]), (&503.into(), &5.into()), "{told}");
}

/// A client that asks is told where each channel stands; to one that does not, the first frame is a publication.
#[test]
fn positions_are_told_on_open_to_who_asks() {
    let rig = Rig::start(config());
    let position = rig.publish("a", "1").unwrap();
    let mut asks =
        WsClient::connect(rig.address, "/ws?channel=a&channel=plain:b&envelope=json&positions=true");
    let told = asks.expect_json();
    let at = format!("{}:{}", told["subscribed"]["epoch"].as_str().unwrap(), told["subscribed"]["offset"]);
    assert_eq!((&told["channel"], at), (&"a".into(), position.to_string()), "{told}");
    let mut other = WsClient::connect(rig.address, "/ws?channel=a&envelope=json");
    rig.publish("a", "2");
    for client in [&mut asks, &mut other] {
        assert_eq!(client.expect_json()["data"], "2");
    }
}

/// Browsers close a connection for which none of the subprotocols that they offered was chosen.
#[test]
fn of_the_subprotocols_that_are_offered_one_is_chosen() {
    let rig = Rig::start(with_closed());
    let token = closed_token(3_600);
    let answer = |offered: &str| {
        let head = offer(&rig, "channel=a", offered);
        (head.status, head.header("sec-websocket-protocol").map(str::to_owned))
    };
    for (offered, chosen) in [
        ("chat", "chat"),
        ("chat.v2, chat", "chat.v2"),
        ("chat, tidegate.v1", "tidegate.v1"),
        (&format!("bearer.{token}, chat"), "chat"),
        (&format!("tidegate.v1, bearer.{token}"), "tidegate.v1"),
    ] {
        assert_eq!(answer(offered), (101, Some(chosen.to_owned())), "{offered}");
    }
    // A token is answered to nobody.
    for offered in [&format!("bearer.{token}"), "a b"] {
        assert_eq!(answer(offered), (400, None), "{offered}");
    }
}

fn offer(rig: &Rig, query: &str, protocols: &str) -> HttpHead {
    let mut connection = RawTcp::connect(rig.address);
    let request = format!(
        "GET /ws?{query} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: {protocols}\r\n\r\n"
    );
    connection.send(request.as_bytes());
    connection.read_head(DEADLINE).unwrap()
}

/// A token is one wherever it stands: who has it is not anonymous.
#[test]
fn a_token_in_the_subprotocols_counts_like_any_other() {
    let mut config = with_closed();
    config.limits.anonymous_subscriptions = 1;
    let rig = Rig::start(config);
    let status = |protocols: &str| offer(&rig, "channel=closed:a&channel=closed:b", protocols).status;
    let with_token = format!("tidegate.v1, bearer.{}", closed_token(3_600));
    assert_eq!([status("tidegate.v1"), status(&with_token)], [400, 101]);
}
