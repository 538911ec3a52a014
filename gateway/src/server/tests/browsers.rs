//! What browsers and their stand-ins do: origins, event streams from other pages, header values of any octets.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use tidegate_testkit::{DEADLINE, SseClient};

use super::rig::{Rig, config};
use crate::config::{Config, OriginRule};

const PAGE: &str = "https://app.example.org";

/// In production: tokens are needed, and one page may connect.
fn production() -> Config {
    let mut config = config();
    config.dev = false;
    config.namespaces.default.anonymous_subscribe = false;
    config.auth.allowed_origins = vec![OriginRule::Exact(PAGE.into())];
    config
}

/// The head of the answer to these octets.
fn head(address: SocketAddr, request: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.write_all(request).unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
        let read = socket.read(&mut buffer).unwrap();
        assert!(read > 0, "the answer ended early: {}", answer.escape_ascii());
        answer.extend_from_slice(&buffer[..read]);
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    text.split_once("\r\n\r\n").unwrap().0.to_ascii_lowercase()
}

fn get(path: &str, headers: &[&[u8]]) -> Vec<u8> {
    let mut request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n").into_bytes();
    for header in headers {
        request.extend_from_slice(header);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    request
}

fn upgrade(headers: &[&[u8]]) -> Vec<u8> {
    let fixed: [&[u8]; 4] = [
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    get("/ws?channel=news", &[&fixed[..], headers].concat())
}

#[track_caller]
fn is(head: &str, status: u16) {
    assert!(head.starts_with(&format!("http/1.1 {status} ")), "{head}");
}

/// Without this header a page cannot tell a refusal from a network that is down, and asks again for ever.
#[test]
fn a_page_can_read_why_its_event_stream_is_refused() {
    let rig = Rig::start(production());
    let refused = head(rig.address, &get("/sse?channel=news", &[format!("Origin: {PAGE}").as_bytes()]));
    is(&refused, 401);
    assert!(refused.contains(&format!("access-control-allow-origin: {PAGE}")), "{refused}");
    assert!(refused.contains("vary: origin"), "{refused}");
    let bad = head(rig.address, &get("/sse", &[format!("Origin: {PAGE}").as_bytes()]));
    is(&bad, 400);
    assert!(bad.contains("access-control-allow-origin"), "{bad}");
    let stranger = head(rig.address, &get("/sse?channel=news", &[b"Origin: https://evil.example"]));
    is(&stranger, 403);
    assert!(!stranger.contains("access-control-allow-origin"), "{stranger}");
}

/// A value that cannot be read is not a header that is not there.
#[test]
fn values_are_octets() {
    let mut config = production();
    config.namespaces.default.anonymous_subscribe = true;
    let rig = Rig::start(config);
    is(&head(rig.address, &upgrade(&[])), 101);
    is(&head(rig.address, &upgrade(&[b"X-Name: caf\xe9"])), 101);
    is(&head(rig.address, &upgrade(&[b"Origin: https://evil.example\xff"])), 403);
    is(&head(rig.address, &upgrade(&[b"Authorization: Bearer a.b.c\xff"])), 401);
    // Nor is one of two the one that counts: a proxy before us may have gone by the other.
    let (good, evil) = (format!("Origin: {PAGE}"), &b"Origin: https://evil.example"[..]);
    is(&head(rig.address, &upgrade(&[good.as_bytes()])), 101);
    is(&head(rig.address, &upgrade(&[good.as_bytes(), evil])), 403);
    is(&head(rig.address, &upgrade(&[evil, good.as_bytes()])), 403);
    for wrong in
        [&b"Authorization: Bearer"[..], b"Authorization: Bearer ", b"Authorization: Bearer no-key-of-ours"]
    {
        is(&head(rig.address, &upgrade(&[wrong])), 401);
    }
    is(&head(rig.address, &upgrade(&[b"Authorization: Bearer a", b"Authorization: Bearer a"])), 401);
    // Browsers send their token among the subprotocols, where only one can be meant, too.
    for wrong in [
        &b"Sec-WebSocket-Protocol: tidegate.v1, bearer.a.b.c\xff"[..],
        b"Sec-WebSocket-Protocol: tidegate.v1\r\nSec-WebSocket-Protocol: bearer.a.b.c\xff",
        b"Sec-WebSocket-Protocol: tidegate.v1, bearer.",
        b"Sec-WebSocket-Protocol: tidegate.v1, bearer.a b",
        b"Sec-WebSocket-Protocol: tidegate.v1, bearer.a/b=",
        b"Sec-WebSocket-Protocol: bearer.a.b.c, bearer.d.e.f",
    ] {
        is(&head(rig.address, &upgrade(&[wrong])), 401);
    }
    is(&head(rig.address, &upgrade(&[b"Sec-WebSocket-Protocol: tidegate.v1, other"])), 101);
    // What a proxy asks its own clients for is not meant for us.
    is(&head(rig.address, &upgrade(&[b"Authorization: Basic eDp5"])), 101);
}

/// Also where no channel is named yet.
#[test]
fn wrong_credentials_are_not_none() {
    let rig = Rig::start(config());
    let bare = |headers: &[&[u8]]| {
        let text = String::from_utf8(upgrade(headers)).unwrap();
        text.replace("?channel=news", "?envelope=json").into_bytes()
    };
    is(&head(rig.address, &bare(&[])), 101);
    is(&head(rig.address, &bare(&[b"Authorization: Bearer dev-key"])), 101);
    is(&head(rig.address, &bare(&[b"Authorization: Bearer no-key-of-ours"])), 401);
}

#[test]
fn an_event_id_that_cannot_be_read_is_a_gap() {
    let rig = Rig::start(config());
    rig.publish("news", "1");
    let mut socket = TcpStream::connect(rig.address).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.write_all(&get("/sse?channel=news", &[b"Last-Event-ID: \xe9"])).unwrap();
    let mut told = String::new();
    let mut buffer = [0; 4096];
    while !told.contains("event: gap") && !told.contains("event:gap") {
        let read = socket.read(&mut buffer).unwrap();
        assert!(read > 0, "{told}");
        told.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
}

/// Clients that cannot set headers send the last id in the query.
#[test]
fn a_last_event_id_may_be_a_parameter() {
    let rig = Rig::start(config());
    let first = rig.publish("news", "1").unwrap();
    rig.publish("news", "2");
    let mut client = SseClient::connect(rig.address, &format!("/sse?channel=news&lastEventId={first}"), None);
    assert_eq!(client.expect_event().data, "2");
}

/// The same request, to the app whose secret everybody knows.
fn to_app(request: Vec<u8>) -> Vec<u8> {
    String::from_utf8(request).unwrap().replace("/ws?channel=news", "/app/dev-key?protocol=7").into_bytes()
}

/// In development the credentials are known to everybody, so only this machine's pages may use them.
#[test]
fn in_development_pages_of_this_machine_may_connect_and_no_others() {
    let mut config = config();
    config.auth.allowed_origins = Config::dev().auth.allowed_origins;
    let rig = Rig::start(config);
    for origin in ["http://localhost:5173", "http://127.0.0.1:3000", "http://localhost"] {
        is(&head(rig.address, &upgrade(&[format!("Origin: {origin}").as_bytes()])), 101);
    }
    for origin in ["https://evil.example", "null"] {
        let asked = upgrade(&[format!("Origin: {origin}").as_bytes()]);
        is(&head(rig.address, &asked), 403);
        is(&head(rig.address, &to_app(asked)), 403);
    }
    let rebound = |request: Vec<u8>| {
        let text = String::from_utf8(request).unwrap();
        text.replace("Host: localhost", "Host: evil.example:8000").into_bytes()
    };
    is(&head(rig.address, &to_app(upgrade(&[b"Origin: http://localhost:5173"]))), 101);
    is(&head(rig.address, &to_app(rebound(upgrade(&[])))), 403);
    is(&head(rig.address, &rebound(upgrade(&[b"Origin: http://evil.example:8000"]))), 403);
    is(&head(rig.address, &rebound(get("/sse?channel=news", &[]))), 403);
    is(&head(rig.address, &rebound(get("/v1/nodes", &[b"Authorization: Bearer dev-key"]))), 403);
    is(&head(rig.address, &get("/v1/nodes", &[b"Authorization: Bearer dev-key"])), 200);
    // A page needs no preflight for a POST of plain text, and Pusher's requests are signed in their query.
    let post = |path: &str, origin: &[u8]| {
        let key: &[u8] = b"Authorization: Bearer dev-key";
        let request = get(path, &[key, origin, b"Content-Type: text/plain", b"Content-Length: 0"]);
        [b"POST", &request[3..]].concat()
    };
    for path in ["/v1/channels/news/publish", "/apps/1/events?auth_key=dev-key", "/apps/1/batch_events"] {
        for origin in [&b"Origin: https://evil.example"[..], b"Origin: null", b"Origin: http://localhost\xff"]
        {
            is(&head(rig.address, &post(path, origin)), 403);
        }
    }
    is(&head(rig.address, &post("/v1/channels/news/publish", b"Origin: http://localhost:5173")), 200);
}
