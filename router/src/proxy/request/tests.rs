//! What requests are for, and the heads that nodes are sent.

use tidegate_ops::{
    config::Setting,
    trust::{ForwardedHeader, Network},
};

use super::*;

fn parse(text: &str) -> Head<'_> {
    Head::parse(text.as_bytes()).expect("a good head").expect("a whole head")
}

#[track_caller]
fn check(lines: &str, expect: Route) {
    let text = format!("{}\r\n\r\n", lines.replace('\n', "\r\n"));
    assert_eq!(route(&parse(&text), false), expect, "{lines}");
}

const UPGRADE: &str = "GET /ws HTTP/1.1\nHost: h\nUpgrade: websocket\nConnection: keep-alive, Upgrade";

#[test]
fn upgrades_and_streams_are_piped_and_the_rest_is_for_http() {
    check(UPGRADE, Route::Pair(Kind::Upgrade));
    check(&UPGRADE.replace("websocket", "WebSocket"), Route::Pair(Kind::Upgrade));
    check("GET /sse?channel=a HTTP/1.1\nHost: h", Route::Pair(Kind::Stream));
    check("GET /sse HTTP/1.1\nHost: h\nContent-Length: 00", Route::Pair(Kind::Stream));
    check("GET /sse HTTP/1.0", Route::Pair(Kind::Stream));
    check("GET /x HTTP/1.1\nHost: h\nAccept: text/event-stream;q=1, */*", Route::Pair(Kind::Stream));
    for other in [
        UPGRADE.replace("HTTP/1.1", "HTTP/1.0"),
        UPGRADE.replace("GET", "POST"),
        UPGRADE.replace("websocket", "h2c"),
        UPGRADE.replace(", Upgrade", ""),
        format!("{UPGRADE}\nContent-Length: 5"),
        format!("{UPGRADE}\nTransfer-Encoding: chunked"),
        "POST /sse HTTP/1.1\nHost: h".to_owned(),
        "GET /ssel HTTP/1.1\nHost: h".to_owned(),
        "GET /sse HTTP/1.1\nHost: h\nContent-Length: 1".to_owned(),
    ] {
        check(&other, Route::Http);
    }
}

#[test]
fn what_follows_a_request_for_a_stream_is_a_matter_of_http() {
    let text = "GET /sse HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(route(&parse(text), true), Route::Http);
    let text = format!("{}\r\n\r\n", UPGRADE.replace('\n', "\r\n"));
    assert_eq!(route(&parse(&text), true), Route::Pair(Kind::Upgrade));
}

const PEER: &str = "10.0.0.1:5000";

#[track_caller]
fn check_forwarded(lines: &str, kind: Kind, trusted: bool, expect: &str) {
    let text = format!("{}\r\n\r\n", lines.replace('\n', "\r\n"));
    let peer = PEER.parse().expect("an address");
    let mut out = Vec::new();
    write_forwarded(
        &parse(&text),
        kind,
        Origin { peer, trusted, secure: false, router: RouterId(1) },
        &mut out,
    );
    let out = String::from_utf8(out).expect("text").replace("\r\n", "\n");
    assert_eq!(out, format!("{expect}\n\n"));
    Head::parse(out.replace('\n', "\r\n").as_bytes()).expect("a good head").expect("a whole head");
}

#[test]
fn the_head_of_an_upgrade() {
    check_forwarded(
        "GET http://h/ws?channel=a HTTP/1.1\nHost: h\nUpgrade: h2c, websocket\nConnection: Upgrade, X-Hop, Host\n\
         X-Hop: 1\nKeep-Alive: 5\nSec-WebSocket-Key: k\nCookie: a=1\nX-Forwarded-For: 6.6.6.6\nForwarded: for=6.6.6.6\n\
         X-Forwarded-Proto: https\nX-Real-IP: 6.6.6.6",
        Kind::Upgrade,
        false,
        "GET /ws?channel=a HTTP/1.1\nHost: h\nSec-WebSocket-Key: k\nCookie: a=1\nConnection: Upgrade\n\
         Upgrade: websocket\nX-Forwarded-For: 10.0.0.1\nForwarded: for=10.0.0.1;proto=http\nX-Forwarded-Proto: http\nTidegate-Router: 0000000000000001",
    );
}

#[test]
fn a_trusted_proxy_is_added_to() {
    check_forwarded(
        "GET /sse HTTP/1.1\nHost: h\nX-Forwarded-For: 1.1.1.1\nx-forwarded-for: 2.2.2.2\nForwarded: for=1.1.1.1\n\
         X-Forwarded-Proto: https\nX-Real-IP: 1.1.1.1\nConnection: keep-alive, close",
        Kind::Stream,
        true,
        "GET /sse HTTP/1.1\nHost: h\nX-Forwarded-Proto: https\nX-Real-IP: 1.1.1.1\nConnection: close\n\
         X-Forwarded-For: 1.1.1.1, 2.2.2.2, 10.0.0.1\nForwarded: for=1.1.1.1, for=10.0.0.1;proto=http\n\
         Tidegate-Router: 0000000000000001",
    );
}

#[test]
fn ipv6_is_quoted_and_a_mapped_address_is_not() {
    let value = |peer: &str| {
        let peer = peer.parse().expect("an address");
        let origin = Origin { peer, trusted: false, secure: true, router: RouterId(1) };
        String::from_utf8(forwarded_value(Vec::new(), origin)).expect("text")
    };
    assert_eq!(value("[2001:db8::1]:1"), "for=\"[2001:db8::1]\";proto=https");
    assert_eq!(value("[::ffff:1.2.3.4]:1"), "for=1.2.3.4;proto=https");
}

#[test]
fn the_client_is_the_last_address_that_is_no_trusted_proxy() {
    let network = Network::from_text("10.0.0.0/8").expect("a network");
    let trust = Trust::new(&[network], ForwardedHeader::XForwardedFor);
    let check = |peer: &str, values: &[&str], expect: &str| {
        let lines: String = values.iter().map(|value| format!("X-Forwarded-For: {value}\r\n")).collect();
        let text = format!("GET / HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
        let client = client_address(&parse(&text), peer.parse().expect("an address"), &trust);
        assert_eq!(client.ip().to_string(), expect, "{peer} {values:?}");
    };
    check("9.9.9.9:1", &["1.1.1.1"], "9.9.9.9");
    check("10.0.0.1:1", &[], "10.0.0.1");
    check("10.0.0.1:1", &["6.6.6.6, 1.1.1.1"], "1.1.1.1");
    check("10.0.0.1:1", &["6.6.6.6, 1.1.1.1", "10.0.0.2"], "1.1.1.1");
    check("10.0.0.1:1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3");
    check("10.0.0.1:1", &["1.1.1.1, unknown, 10.0.0.2"], "10.0.0.2");
}

#[test]
fn a_request_that_comes_back_is_known() {
    let text = |list: &str| format!("GET /ws HTTP/1.1\r\nHost: h\r\nTidegate-Router: {list}\r\n\r\n");
    let origin =
        |router| Origin { peer: "10.0.0.1:1".parse().expect("good"), trusted: false, secure: false, router };
    let check = |list: &str, own: u64, is_own: bool, next: &str| {
        let (text, router) = (text(list), RouterId(own));
        let head = parse(&text);
        assert_eq!(is_loop(&head, router), is_own, "{list}");
        assert_eq!(routers_value(head.header(ROUTER_HEADER), origin(router)), next, "{list}");
    };
    check("", 2, false, "0000000000000002");
    check("0000000000000001", 2, false, "0000000000000001, 0000000000000002");
    check(
        "0000000000000001, 0000000000000002",
        2,
        true,
        "0000000000000001, 0000000000000002, 0000000000000002",
    );
    check("anything", 2, false, "0000000000000002");
}
