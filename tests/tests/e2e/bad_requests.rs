//! REST calls that are wrong: the named status as a problem document, counted by its code.

use reqwest::Method;
use serde_json::json;
use tidegate_testkit::{DEADLINE, Gateway, RawTcp, WsClient};

/// Two keys: one that may do little and one that may do nothing but read.
const CONFIG: &str = "
[[auth.api_keys]]
name = \"news-publisher\"
key = \"news-publisher-key-0001\"
scopes = [\"publish\"]
channels = [\"news:*\"]

[[auth.api_keys]]
name = \"reader\"
key = \"reader-key-0000000000001\"
scopes = [\"read\"]

[limits]
publish_bytes = \"2KiB\"
body_bytes = \"8KiB\"
";

const PUBLISHER: &str = "news-publisher-key-0001";
const READER: &str = "reader-key-0000000000001";

fn gateway() -> Gateway {
    Gateway::builder().production().config(CONFIG).start()
}

/// Publishes "x" with a key and expects the status and its count.
#[track_caller]
fn check_publish(key: Option<&str>, channel: &str, body: &[u8], status: u16) {
    let gateway = gateway();
    let rest = gateway.rest().without_key();
    let rest = match key {
        Some(key) => rest.with_key(key),
        None => rest,
    };
    let answer = rest.post(&format!("/v1/channels/{channel}/publish"), "text/plain", body);
    if status == 200 {
        assert_eq!(answer.status, 200, "{}", answer.text());
    } else {
        answer.expect_problem(status);
    }
    if status == 401 {
        assert!(answer.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")));
    }
    let code = status.to_string();
    gateway.eventually_metric("tidegate_publish_requests_total", &[("code", &code)], |count| count == 1.0);
}

#[test]
fn a_good_key_in_its_channels_is_200() {
    check_publish(Some(PUBLISHER), "news:a", b"x", 200);
}

#[test]
fn a_missing_key_is_401() {
    check_publish(None, "news:a", b"x", 401);
}

#[test]
fn a_wrong_key_is_401() {
    check_publish(Some("news-publisher-key-0002"), "news:a", b"x", 401);
}

#[test]
fn the_development_key_is_wrong_in_production() {
    check_publish(Some("dev-key"), "news:a", b"x", 401);
}

#[test]
fn a_key_without_the_scope_is_403() {
    check_publish(Some(READER), "news:a", b"x", 403);
}

#[test]
fn a_key_for_other_channels_is_403() {
    check_publish(Some(PUBLISHER), "weather", b"x", 403);
}

#[test]
fn unknown_channel_characters_are_400() {
    check_publish(Some(PUBLISHER), "news:a%20b", b"x", 400);
    check_publish(Some(PUBLISHER), "news:%C3%A9", b"x", 400);
}

#[test]
fn text_that_is_no_utf8_is_400() {
    check_publish(Some(PUBLISHER), "news:a", &[0xFF], 400);
}

#[test]
fn a_payload_that_is_too_large_is_413() {
    check_publish(Some(PUBLISHER), "news:a", &[b'x'; 2049], 413);
}

#[test]
fn a_body_that_is_too_large_is_413_before_it_is_there() {
    // Declared far too large, and never sent: the answer must not wait for it.
    let gateway = gateway();
    let mut client = RawTcp::connect(gateway.public());
    let head = format!(
        "POST /v1/channels/news:a/publish HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {PUBLISHER}\r\n\
         Content-Length: 1000000000000\r\n\r\n"
    );
    client.send(head.as_bytes());
    assert_eq!(client.read_head(DEADLINE).expect("an answer").status, 413);
}

#[test]
fn a_chunked_body_is_bounded_too() {
    let gateway = gateway();
    let mut client = RawTcp::connect(gateway.public());
    let head = format!(
        "POST /v1/channels/news:a/publish HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {PUBLISHER}\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    );
    client.send(head.as_bytes());
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    for _ in 0..16 {
        client.send(chunk.as_bytes());
    }
    assert_eq!(client.read_head(DEADLINE).expect("an answer").status, 413);
}

/// Whoever is answered while it still sends reads the answer when it has sent all (RFC 9112 section 9.6): in a shard, by hyper,
/// and at the internal port.
#[test]
fn who_is_refused_may_go_on_sending() {
    let gateway = gateway();
    let length = "Content-Length: 2000000";
    let websocket = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let check = |address, request: &str, headers: &str, status: u16| {
        let head = format!("{request} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n");
        let (answer, body) = RawTcp::answer_before_body(address, &head);
        assert_eq!(answer.status, status, "{head}{answer:?}");
        assert!(String::from_utf8_lossy(&body).contains("urn:tidegate:problem:"), "{head}{body:?}");
    };
    for _ in 0..20 {
        check(gateway.public(), "GET /ws", websocket, 400);
        check(gateway.public(), "GET /ws?channel=news", &format!("{websocket}\r\n{length}"), 413);
        check(gateway.public(), "POST /emulation", length, 413);
        check(gateway.public(), "POST /v1/channels/news/publish", length, 401);
        check(
            gateway.public(),
            "POST /v1/publish",
            &format!("Authorization: Bearer {PUBLISHER}\r\n{length}"),
            413,
        );
        check(gateway.public(), "POST /v1/publish", "Transfer-Encoding: gzip", 400);
        check(gateway.internal(), "POST /nothing", length, 404);
    }
}

#[test]
fn bad_json_is_400_with_the_place() {
    let gateway = Gateway::start();
    let body = "{\n  \"channels\": [\"a\"],\n  \"data\": nope\n}";
    let problem = gateway.rest().post("/v1/publish", "application/json", body).expect_problem(400);
    assert_eq!(problem["at"]["line"], 3, "{problem}");
    assert!(problem["at"]["column"].as_u64().is_some_and(|column| column >= 11), "{problem}");
}

#[test]
fn a_field_of_the_wrong_type_is_400_with_its_path() {
    let gateway = Gateway::start();
    let body = json!({ "channels": ["a", 5], "data": "x" });
    let problem = gateway.rest().post_json("/v1/publish", &body).expect_problem(400);
    assert!(problem["at"]["path"].as_str().is_some_and(|path| path.contains("channels[1]")), "{problem}");
}

#[test]
fn an_unknown_path_is_404_and_a_wrong_method_405() {
    let gateway = Gateway::start();
    gateway.rest().get("/v1/nothing").expect_problem(404);
    let answer = gateway.rest().send(Method::DELETE, "/v1/channels", &[], None);
    answer.expect_problem(405);
    assert!(answer.header("allow").is_some_and(|allow| allow.contains("GET")), "{:?}", answer.headers);
}

#[test]
fn another_media_type_is_415() {
    let gateway = Gateway::start();
    gateway.rest().post("/v1/publish", "text/csv", "a,b").expect_problem(415);
}

#[test]
fn of_the_internal_endpoints_only_the_probes_are_public_and_without_details() {
    let gateway = Gateway::start();
    assert_eq!(gateway.rest().get("/metrics").status, 404);
    assert_eq!(gateway.internal_rest().get("/metrics").status, 200);
    assert_eq!(gateway.rest().post("/drain", "text/plain", "").status, 404);
    for path in ["/readyz", "/livez"] {
        assert!(!gateway.rest().get(path).text().contains('{'), "{path}");
        assert_eq!(gateway.internal_rest().get(path).status, 200, "{path}");
    }
}

#[test]
fn a_client_that_publishes_too_fast_is_held_back_and_counted() {
    let config = "[limits]\npublishes_per_second = 2\n[namespaces.default]\nclient_publish = \"anyone\"\n";
    let gateway = Gateway::builder().config(config).start();
    let mut bystander = gateway.subscribe("talk");
    let mut client = WsClient::connect(gateway.public(), "/ws?channel=talk");
    for number in 0..100 {
        client.send_text(&number.to_string());
    }
    assert_eq!(bystander.expect_text(), "0");
    let counted = || {
        let metrics = gateway.metrics();
        metrics.sum("tidegate_messages_dropped_total", &[("reason", "rate_limit")])
            + metrics.sum("tidegate_disconnects_total", &[("reason", "rate_limit")])
    };
    tidegate_testkit::eventually("the excess is counted", DEADLINE, || counted() >= 1.0);
}

#[test]
fn a_client_cannot_publish_events_of_the_gateway() {
    let gateway = Gateway::builder().config("[namespaces.default]\nclient_publish = \"anyone\"\n").start();
    let mut client = WsClient::connect(gateway.public(), "/ws?channel=talk&envelope=json");
    for (event, expect) in [("gap", "the gateway's own"), ("a\\nb", "no control characters")] {
        client.send_text(&format!(r#"{{"event":"{event}","data":1}}"#));
        let notice = client.expect_text();
        assert!(notice.contains(r#""code":400"#) && notice.contains(expect), "{notice}");
    }
    client.send_text(r#"{"event":"goal","data":1}"#);
    assert!(client.expect_text().contains(r#""event":"goal""#));
}

#[test]
fn a_client_without_the_right_cannot_publish() {
    let gateway = Gateway::start();
    let mut bystander = gateway.subscribe("talk");
    let mut client = WsClient::connect(gateway.public(), "/ws?channel=talk");
    client.send_text("not allowed");
    gateway.eventually_metric("tidegate_messages_dropped_total", &[("reason", "forbidden")], |count| {
        count == 1.0
    });
    gateway.rest().publish("talk", "allowed");
    assert_eq!(bystander.expect_text(), "allowed");
}
