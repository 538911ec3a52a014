//! Handshakes that are wrong, late, too many or not allowed: the named answer, counted with its result.

use std::time::{Duration, Instant};

use tidegate_testkit::net::{SocketOptions, connect};
use tidegate_testkit::{DEADLINE, Gateway, HttpHead, RawTcp, ReadError, WsClient};

const GOOD: &[(&str, &str)] = &[
    ("Host", "localhost"),
    ("Upgrade", "websocket"),
    ("Connection", "keep-alive, Upgrade"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("Sec-WebSocket-Version", "13"),
];

/// Sends a GET of `/ws` with the good headers changed by `changes` (an empty value leaves the header out).
fn answer(gateway: &Gateway, changes: &[(&str, &str)]) -> HttpHead {
    let mut client = RawTcp::connect(gateway.public());
    let mut request = "GET /ws?channel=news HTTP/1.1\r\n".to_owned();
    for (name, good) in GOOD {
        let value = changes.iter().find(|(changed, _)| changed == name).map_or(*good, |(_, value)| value);
        if !value.is_empty() {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    request.push_str("\r\n");
    client.send(request.as_bytes());
    client.read_head(DEADLINE).expect("an answer")
}

#[track_caller]
fn check(changes: &[(&str, &str)], status: u16) {
    let gateway = Gateway::start();
    assert_eq!(answer(&gateway, changes).status, status, "{changes:?}");
    gateway
        .eventually_metric("tidegate_handshakes_total", &[("result", "bad_request")], |count| count == 1.0);
}

#[test]
fn the_sample_handshake_of_the_rfc_is_accepted() {
    let gateway = Gateway::start();
    let head = answer(&gateway, &[]);
    assert_eq!(head.status, 101);
    // RFC 6455 section 1.3.
    assert_eq!(head.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    gateway.eventually_metric("tidegate_handshakes_total", &[("result", "accepted")], |count| count == 1.0);
}

#[test]
fn a_missing_or_malformed_key_is_400() {
    check(&[("Sec-WebSocket-Key", "")], 400);
    check(&[("Sec-WebSocket-Key", "c2hvcnQ=")], 400);
}

/// RFC 9112 section 3.2, for both protocols.
#[test]
fn a_host_is_named_exactly_once() {
    check(&[("Host", "")], 400);
    check(&[("Host", "a\r\nHost: b")], 400);
    let gateway = Gateway::start();
    for hosts in ["", "Host: a\r\nHost: b\r\n", "Host: a/b\r\n"] {
        let mut client = RawTcp::connect(gateway.public());
        client.send(format!("GET /sse?channel=news HTTP/1.1\r\n{hosts}\r\n").as_bytes());
        assert_eq!(client.read_head(DEADLINE).expect("an answer").status, 400, "{hosts:?}");
    }
}

#[test]
fn other_methods_are_405() {
    let gateway = Gateway::start();
    for request in ["POST /ws", "HEAD /sse?channel=news", "POST /echo"] {
        let mut client = RawTcp::connect(gateway.public());
        client.send(format!("{request} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        let head = client.read_head(DEADLINE).expect("an answer");
        assert_eq!((head.status, head.header("allow")), (405, Some("GET")), "{request}");
    }
}

#[test]
fn another_version_is_426_with_the_right_one() {
    let gateway = Gateway::start();
    let head = answer(&gateway, &[("Sec-WebSocket-Version", "8")]);
    assert_eq!((head.status, head.header("sec-websocket-version")), (426, Some("13")));
}

#[test]
fn bytes_that_are_no_http_are_400() {
    let gateway = Gateway::start();
    let mut client = RawTcp::connect(gateway.public());
    client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n");
    assert_eq!(client.read_head(DEADLINE).expect("an answer").status, 400);
    client.read_to_end(DEADLINE).expect("closed");
}

#[test]
fn a_head_without_an_end_is_431() {
    let gateway = Gateway::start();
    let mut client = RawTcp::connect(gateway.public());
    client.send(b"GET /ws?channel=news HTTP/1.1\r\nHost: localhost\r\n");
    // 16 KiB is the default bound of a head; the answer may come at any byte after that.
    let line = format!("X-Padding: {}\r\n", "x".repeat(1000));
    for _ in 0..20 {
        client.send(line.as_bytes());
    }
    assert_eq!(client.read_head(DEADLINE).expect("an answer").status, 431);
}

#[test]
fn no_channel_and_bad_channel_are_400() {
    let gateway = Gateway::start();
    for query in
        ["", "?channel=", "?channel=a%20b", "?channel=%C3%A9", &format!("?channel={}", "x".repeat(201))]
    {
        let refusal = WsClient::try_connect(gateway.public(), &format!("/ws{query}"), &[]).expect_err(query);
        assert_eq!(refusal.status, 400, "{query}: {refusal:?}");
        assert!(
            refusal.header("content-type").is_some_and(|kind| kind.contains("problem+json")),
            "{refusal:?}"
        );
        assert!(refusal.body.contains("channel"), "{query}: {refusal:?}");
    }
}

#[test]
fn too_many_channels_are_refused() {
    let gateway = Gateway::builder().config("[limits]\nsubscriptions = 2\n").start();
    let refusal = WsClient::try_connect(gateway.public(), "/ws?channel=a&channel=b&channel=c", &[]);
    assert_eq!(refusal.expect_err("three channels").status, 400);
}

#[test]
fn without_a_token_production_refuses_with_401() {
    let gateway = Gateway::builder().production().start();
    let refusal = WsClient::try_connect(gateway.public(), "/ws?channel=news", &[]).expect_err("no token");
    assert!(matches!(refusal.status, 401 | 403), "{refusal:?}");
    let rejected = gateway.metric("tidegate_handshakes_total", &[("result", "unauthorized")])
        + gateway.metric("tidegate_handshakes_total", &[("result", "forbidden")]);
    assert_eq!(rejected, 1.0);
}

#[test]
fn echo_exists_in_development_only() {
    let gateway = Gateway::builder().production().start();
    assert_eq!(WsClient::try_connect(gateway.public(), "/echo", &[]).expect_err("no echo").status, 404);
}

#[test]
fn a_page_of_another_origin_is_403() {
    let config = "[auth]\nallowed_origins = [\"https://app.example.org\"]\n";
    let gateway = Gateway::builder().config(config).start();
    let connect = |origin| WsClient::try_connect(gateway.public(), "/ws?channel=news", &[("Origin", origin)]);
    connect("https://app.example.org").expect("allowed");
    let refusal = connect("https://evil.example.org").expect_err("not allowed");
    assert_eq!(refusal.status, 403);
    assert!(refusal.body.contains("urn:tidegate:problem:origin-refused"), "{refusal:?}");
    gateway.eventually_metric("tidegate_handshakes_total", &[("result", "origin_refused")], |count| {
        count == 1.0
    });
}

#[test]
fn connections_of_one_address_are_limited() {
    let gateway = Gateway::builder().config("[limits]\nconnections_per_address = 2\n").start();
    let _held = [gateway.subscribe("news"), gateway.subscribe("news")];
    let refusal = WsClient::try_connect(gateway.public(), "/ws?channel=news", &[]).expect_err("the third");
    assert!(matches!(refusal.status, 429 | 503), "{refusal:?}");
    assert!(refusal.header("retry-after").is_some(), "{refusal:?}");
    gateway
        .eventually_metric("tidegate_handshakes_total", &[("result", "address_limit")], |count| count >= 1.0);
    // Another address is not held to it.
    let options =
        SocketOptions { source: Some(tidegate_testkit::net::source_address(7)), ..SocketOptions::default() };
    WsClient::try_connect_from(gateway.public(), "/ws?channel=news", &[], options).expect("another address");
}

#[test]
fn connections_of_the_node_are_limited() {
    let gateway = Gateway::builder().config("[limits]\nconnections = 3\n").start();
    let mut held: Vec<WsClient> = (0..3).map(|_| gateway.subscribe("news")).collect();
    let refusal = WsClient::try_connect(gateway.public(), "/ws?channel=news", &[]).expect_err("the fourth");
    assert_eq!(refusal.status, 503, "{refusal:?}");
    assert!(refusal.header("retry-after").is_some(), "{refusal:?}");
    gateway.eventually_metric("tidegate_handshakes_total", &[("result", "node_limit")], |count| count >= 1.0);
    // A place that becomes free is given again.
    held.pop();
    gateway.eventually_connections(2);
    gateway.subscribe("news");
}

#[test]
fn the_handshake_rate_is_limited() {
    let config = "[limits]\nhandshakes_per_second = 1\nhandshakes_burst = 2\n";
    let gateway = Gateway::builder().config(config).start();
    let mut refusals = Vec::new();
    let mut held = Vec::new();
    // Far more at once than two and one a second, however slow the machine is.
    for _ in 0..50 {
        match WsClient::try_connect(gateway.public(), "/ws?channel=news", &[]) {
            Ok(client) => held.push(client),
            Err(refusal) => refusals.push(refusal),
        }
    }
    assert!(held.len() >= 2, "the burst gets through");
    let refusal = refusals.first().expect("more than the rate is refused");
    assert_eq!(refusal.status, 429, "{refusal:?}");
    assert!(refusal.header("retry-after").is_some_and(|wait| wait.parse::<u32>().is_ok()), "{refusal:?}");
    let counted = gateway.metric("tidegate_handshakes_total", &[("result", "rate_limit")]);
    assert_eq!(counted, refusals.len() as f64);
}

#[test]
fn a_thousand_trickled_handshakes_are_cut_and_a_good_one_passes() {
    const TRICKLERS: usize = 1000;
    let gateway = Gateway::builder().config("[limits]\nhandshake_timeout = \"3s\"\n").start();
    let mut tricklers: Vec<RawTcp> = (0..TRICKLERS)
        .map(|index| {
            let source = Some(tidegate_testkit::net::source_address(index / 100));
            let options = SocketOptions { source, ..SocketOptions::default() };
            let mut client = RawTcp::try_connect(gateway.public(), options).expect("accepted");
            client.send(b"GET /ws?channel=news HTTP/1.1\r\nX: ");
            client
        })
        .collect();
    // Some say nothing at all.
    let mut silent: Vec<_> =
        (0..10).map(|_| connect(gateway.public(), SocketOptions::default()).expect("accepted")).collect();

    let mut good = gateway.subscribe("news");
    gateway.rest().publish("news", "through");
    assert_eq!(good.expect_text(), "through");

    // One byte each, round after round: the clock of a handshake starts with the connection, not with the last byte.
    let give_up = Instant::now() + DEADLINE;
    while !tricklers.is_empty() {
        assert!(Instant::now() < give_up, "{} handshakes still trickle", tricklers.len());
        tricklers.retain_mut(|client| {
            let alive = client.try_send(b"x").is_ok();
            alive && matches!(client.read_some(Duration::from_millis(1)), Err(ReadError::Deadline))
        });
    }
    for client in &mut silent {
        client.set_read_timeout(Some(DEADLINE)).expect("a positive time-out");
        let mut answer = Vec::new();
        // A reset is an end as well.
        drop(std::io::Read::read_to_end(client, &mut answer));
    }
    let cut = (TRICKLERS + silent.len()) as f64;
    gateway.eventually_metric("tidegate_handshakes_total", &[("result", "timeout")], |count| count == cut);
    gateway.rest().publish("news", "still");
    assert_eq!(good.expect_text(), "still");
    gateway.eventually_connections(1);
}
