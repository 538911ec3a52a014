//! Requests that are not clear: a 4xx from the router, and nothing of them reaches a gateway.

use tidegate_testkit::{DEADLINE, Gateway, RawTcp};

use crate::site::Router;

#[test]
fn unclear_requests_are_refused_and_not_forwarded() {
    let gateway = Gateway::start();
    let router = Router::of(&[&gateway], "");
    router.eventually_live(1);
    let opened = || gateway.metric("tidegate_handshakes_total", &[]);
    let before = opened();
    let long = format!("GET /ws?channel=news HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(64 * 1024));
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                   Sec-WebSocket-Version: 13\r\n";
    let publish = "POST /v1/channels/news/publish HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer dev-key\r\n";
    let cases = [
        (long, 431),
        (format!("GET /ws?channel=news HTTP/1.1\r\n{upgrade}\r\n"), 400),
        (format!("GET /ws?channel=news HTTP/1.1\r\nHost: a\r\nHost: b\r\n{upgrade}\r\n"), 400),
        (format!("{publish}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"), 400),
        (format!("{publish}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400),
        (format!("{publish}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"), 400),
        ("\u{16}\u{3}\u{1}\r\n\r\n".to_owned(), 400),
    ];
    for (request, status) in &cases {
        let mut client = RawTcp::connect(router.public);
        client.send(request.as_bytes());
        let answer = String::from_utf8(client.read_to_end(DEADLINE).unwrap()).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:.200}\n{answer}");
        assert!(answer.contains("urn:tidegate:problem:"), "{answer}");
    }
    let refused = ["malformed", "too_large"]
        .map(|reason| router.metric("tidegate_refusals_total", &[("reason", reason)]));
    assert_eq!(refused, [6.0, 1.0]);
    assert_eq!((opened(), router.metric("tidegate_upstream_connects_total", &[])), (before, 0.0));
}

#[test]
fn without_a_gateway_clients_are_told_to_come_back() {
    let router = Router::start("static:127.0.0.1:1", "");
    let mut client = RawTcp::upgrade(router.public, "/ws?channel=news");
    let head = client.read_head(DEADLINE).unwrap();
    assert_eq!(head.status, 503);
    assert!(head.header("retry-after").is_some(), "{head:?}");
    let answer = router.rest().post("/v1/channels/news/publish", "text/plain", "x");
    assert_eq!(answer.expect_problem(503)["type"], "urn:tidegate:problem:no-node");
    assert_eq!(tidegate_testkit::Rest::new(router.internal).get("/readyz").status, 503);
}
