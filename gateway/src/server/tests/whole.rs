//! Requests that came whole, which their shard answers: several on a connection, before others that it does not answer, and
//! those whose answers have to wait.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use tidegate_testkit::{DEADLINE, eventually};

use super::rig::{Rig, config};
use crate::node::{Stage, shards::Order};

const READ: &str = "GET /v1/nodes HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer dev-key\r\n\r\n";

fn publish_as(key: &str, channel: &str, more: &str, body: &str) -> String {
    format!(
        "POST /v1/channels/{channel}/publish HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n{more}\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn publish(channel: &str, body: &str) -> String {
    publish_as("dev-key", channel, "", body)
}

/// By Centrifugo's server API.
fn api(body: &str) -> String {
    format!(
        "POST /api/publish HTTP/1.1\r\nHost: localhost\r\nX-API-Key: dev-key\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

/// One answer: its status, its headers without the date, its body.
fn answer(socket: &mut TcpStream) -> (u16, Vec<String>, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        let read = socket.read(&mut byte).unwrap();
        assert!(read > 0, "ended after {:?}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.trim_end().lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers: Vec<String> = lines.map(str::to_ascii_lowercase).collect();
    let length = headers.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    socket.read_exact(&mut body).unwrap();
    assert!(headers.iter().any(|line| line.starts_with("date: ")), "{headers:?}");
    headers.retain(|line| !line.starts_with("date: ") && !line.starts_with("content-length: "));
    headers.sort();
    (status, headers, String::from_utf8(body).unwrap())
}

fn ends(mut socket: TcpStream) {
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
}

/// Who sends its body apart from its head is answered by hyper: both say the same.
#[test]
fn an_answer_is_the_one_that_hyper_would_give() {
    let rig = Rig::start(config());
    let origin = "Origin: http://localhost:1\r\n";
    let requests = [
        publish("a%2Fb", "x"),
        publish("news?event=hello", "x"),
        publish("news?what=else", "x"),
        publish("bad%zz", "x"),
        publish_as("dev-key", "news", "Content-Type: application/octet-stream\r\n", "x"),
        publish_as("dev-key", "news", "Content-Encoding: gzip\r\n", "x"),
        publish_as("dev-key", "news", "Idempotency-Key: two words\r\n", "x"),
        publish_as("dev-key", "news", origin, "x"),
        publish("news", &"x".repeat(70_000)),
        api(r#"{"channel":"news","data":{"n":1}}"#),
        api(r#"{"channel":"two words","data":1}"#),
        api(r#"{"channel":"news"}"#),
        api("{"),
        api("{}").replace("X-API-Key", &format!("{origin}X-API-Key")),
    ];
    for request in &requests {
        let mut whole = connect(rig.address);
        whole.write_all(request.as_bytes()).unwrap();
        let (head, body) = request.split_at(request.find("\r\n\r\n").unwrap() + 4);
        let mut apart = connect(rig.address);
        apart.write_all(format!("{READ}{head}").as_bytes()).unwrap();
        assert_eq!(answer(&mut apart).0, 200);
        apart.write_all(body.as_bytes()).unwrap();
        let (told, expected) = (answer(&mut whole), answer(&mut apart));
        let position = |body: &str| body.replace(char::is_numeric, "");
        assert_eq!((told.0, &told.1, position(&told.2)), (expected.0, &expected.1, position(&expected.2)));
    }
}

#[test]
fn requests_of_one_connection_are_answered_in_order_by_whomever() {
    let rig = Rig::start(config());
    let mut socket = connect(rig.address);
    let upgrade = "GET /ws?channel=news HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let all =
        [publish("news", "x").repeat(40), READ.to_owned(), publish("news", "y"), upgrade.to_owned()].concat();
    socket.write_all(all.as_bytes()).unwrap();
    for offset in 1..=40 {
        assert!(answer(&mut socket).2.contains(&format!("\"offset\":{offset}")));
    }
    assert!(answer(&mut socket).2.contains("nodes"));
    assert!(answer(&mut socket).2.contains("\"offset\":41"));
    rig.eventually_subscribers("news", 1);

    // And a WebSocket straight after a publish.
    let mut socket = connect(rig.address);
    socket.write_all(format!("{}{upgrade}", publish("other", "x")).as_bytes()).unwrap();
    assert_eq!(answer(&mut socket).0, 200);
    rig.eventually_subscribers("news", 2);
}

/// Byte by byte, and cut anywhere.
#[test]
fn a_request_may_come_in_pieces() {
    let rig = Rig::start(config());
    let request = publish("news", "hello");
    let mut socket = connect(rig.address);
    socket.set_nodelay(true).unwrap();
    for cut in [0, 1, 20, request.len() - 6, request.len() - 1] {
        let (first, second) = request.split_at(cut);
        socket.write_all(format!("{request}{first}").as_bytes()).unwrap();
        assert_eq!(answer(&mut socket).0, 200);
        socket.write_all(second.as_bytes()).unwrap();
        assert_eq!(answer(&mut socket).0, 200, "{cut}");
    }
}

#[test]
fn what_follows_a_request_that_waits_waits_too() {
    let rig = Rig::start(config());
    rig.backplane.publishes.shut();
    let mut socket = connect(rig.address);
    socket.write_all(format!("{}{}", publish("news", "1"), publish("news", "2")).as_bytes()).unwrap();
    rig.backplane.publishes.eventually_arrived(1);
    socket.write_all(publish("news", "3").as_bytes()).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    for count in 1..=3 {
        rig.backplane.publishes.eventually_arrived(count);
        rig.backplane.publishes.let_pass();
        assert!(answer(&mut socket).2.contains(&format!("\"offset\":{count}")));
    }
    ends(socket);
    rig.eventually_empty();
}

#[test]
fn who_is_gone_has_published_all_the_same() {
    let rig = Rig::start(config());
    rig.backplane.publishes.shut();
    let mut socket = connect(rig.address);
    socket.write_all(publish("news", "1").as_bytes()).unwrap();
    rig.backplane.publishes.eventually_arrived(1);
    drop(socket);
    rig.backplane.publishes.open();
    rig.eventually_empty();
    eventually("its publish was accepted", DEADLINE, || {
        rig.metric("tidegate_publish_requests_total{code=\"200\"}") == 1.0
    });
}

#[test]
fn who_has_no_key_has_one_answer() {
    let rig = Rig::start(config());
    let mut socket = connect(rig.address);
    socket.write_all(publish_as("wrong", "news", "", "x").repeat(3).as_bytes()).unwrap();
    let (status, headers, _) = answer(&mut socket);
    assert_eq!(status, 401);
    assert!(headers.contains(&"connection: close".to_owned()), "{headers:?}");
    socket.shutdown(Shutdown::Write).unwrap();
    ends(socket);
    rig.eventually_empty();
}

#[test]
fn a_drain_ends_connections_that_have_published() {
    let rig = Rig::start(config());
    let mut quiet = connect(rig.address);
    quiet.write_all(publish("news", "1").as_bytes()).unwrap();
    assert_eq!(answer(&mut quiet).0, 200);
    rig.backplane.publishes.shut();
    let mut waiting = connect(rig.address);
    waiting.write_all(publish("news", "2").as_bytes()).unwrap();
    rig.backplane.publishes.eventually_arrived(2);
    rig.node.set_stage(Stage::Closing);
    rig.relay.to_all(&Order::Drain { over: Duration::ZERO });
    ends(quiet);
    rig.backplane.publishes.open();
    assert_eq!(answer(&mut waiting).0, 200);
    ends(waiting);
}
