//! One judge for every head, the first of a connection and later ones; and clients that close their side.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
};

use tidegate_backplane::{Channel, HistoryQuery};
use tidegate_testkit::{DEADLINE, eventually};

use super::rig::{Rig, config};

const GOOD: &str = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
const KEY: &str = "Authorization: Bearer dev-key\r\n";

fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

/// All that is answered to these bytes and the end after them.
fn answers(address: SocketAddr, request: &[u8]) -> String {
    let mut socket = connect(address);
    socket.write_all(request).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut answers = Vec::new();
    socket.read_to_end(&mut answers).unwrap();
    String::from_utf8_lossy(&answers).into_owned()
}

/// Status, type and detail of the last answer.
fn refusal(answers: &str) -> (String, String, String) {
    let at = answers.rfind("HTTP/1.1 ").unwrap_or_else(|| panic!("no answer: {answers}"));
    let (_, body) = answers[at..].split_once("\r\n\r\n").unwrap();
    let problem: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("bare: {answers}"));
    let text = |name: &str| problem[name].as_str().unwrap().to_owned();
    (answers[at + 9..at + 12].to_owned(), text("type"), text("detail"))
}

/// By two rule books a request would mean one thing as the first of a connection and another as the second.
#[test]
fn a_later_head_is_judged_as_the_first() {
    let rig = Rig::start(config());
    let many = (0..65).map(|number| format!("X-{number}: 1\r\n")).collect::<String>();
    let publish = format!("POST /v1/channels/news/publish HTTP/1.1\r\nHost: localhost\r\n{KEY}");
    let heads = [
        "GET /v1/nodes HTTP/1.1\r\n\r\n".to_owned(),
        "GET /v1/nodes HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_owned(),
        "GET /v1/nodes HTTP/1.1\r\nHost: a/b@c\r\n\r\n".to_owned(),
        "GET /v1/nodes#x HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        "GET ftp://localhost/v1/nodes HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        "CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        "GET /v1/nodes?<a HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        "GET /v1/nodes?\"a HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        "GET /v1/nodes HTTP/2.0\r\nHost: localhost\r\n\r\n".to_owned(),
        "GET /v1/nodes HTTP/1.1\r\nHost: localhost\r\nX : a\r\n\r\n".to_owned(),
        "GET /v1/nodes HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n".to_owned(),
        format!("GET /v1/nodes HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"),
        format!("GET /v1/nodes HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(20_000)),
        format!("{publish}Content-Length: 1\r\nContent-Length: 1\r\n\r\na"),
        format!("{publish}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"),
        format!("{publish}Transfer-Encoding: gzip, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"),
    ];
    for head in &heads {
        let first = refusal(&answers(rig.address, head.as_bytes()));
        let later = answers(rig.address, format!("{GOOD}{head}").as_bytes());
        assert!(later.starts_with("HTTP/1.1 200 "), "{later}");
        assert_eq!(refusal(&later), first, "{head}");
    }
    assert_eq!(kept(&rig), 0);
}

/// RFC 9112 section 9.6: who closes its side after a request is answered, or what was done for it is not known.
#[test]
fn who_closes_its_side_after_a_request_is_answered() {
    let rig = Rig::start(config());
    let publish = format!(
        "POST /v1/channels/news/publish HTTP/1.1\r\nHost: localhost\r\n{KEY}Content-Length: 1\r\n\r\n1"
    );
    let read = format!("GET /v1/nodes HTTP/1.1\r\nHost: localhost\r\n{KEY}\r\n");
    for _ in 0..20 {
        for request in [&publish, &read] {
            let answer = answers(rig.address, request.as_bytes());
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
    }
    // Of several at once, each.
    let all = answers(rig.address, publish.repeat(20).as_bytes());
    assert_eq!(all.matches("HTTP/1.1 200 ").count(), 20, "{all}");
    assert_eq!(kept(&rig), 40);
}

fn kept(rig: &Rig) -> usize {
    let channel = Channel::new("news").unwrap();
    rig.block_on(rig.node.history(&channel, HistoryQuery::newest(1000))).unwrap().publications.len()
}

/// An event stream has no end, so it goes on for who has closed its side; who has gone is found at once.
#[test]
fn an_event_stream_goes_on_for_who_closes_its_side() {
    let rig = Rig::start(config());
    let mut socket = connect(rig.address);
    socket.write_all(b"GET /sse?channel=news HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    rig.eventually_subscribers("news", 1);
    let mut told = String::new();
    let mut until = |socket: &mut TcpStream, what: &str| {
        let mut buffer = [0; 4096];
        while !told.contains(what) {
            let read = socket.read(&mut buffer).unwrap();
            assert!(read > 0, "the stream was cut: {told}");
            told.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    };
    until(&mut socket, "text/event-stream");
    for text in ["one", "two"] {
        rig.publish("news", text);
        until(&mut socket, text);
    }
    // Its end has come before: that it is gone, only a write can find.
    drop(socket);
    eventually("nobody is subscribed", DEADLINE, || {
        rig.publish("news", "three");
        rig.subscribers("news") == 0
    });
    // Who closes both sides is found with the end.
    let mut socket = connect(rig.address);
    socket.write_all(b"GET /sse?channel=news HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    rig.eventually_subscribers("news", 1);
    drop(socket);
    rig.eventually_subscribers("news", 0);
    rig.eventually_empty();
}

/// Clients wait a second for this before they send a body after all.
#[test]
fn who_asks_before_the_body_is_told() {
    let rig = Rig::start(config());
    let ask = |key: &str, length: usize| {
        let mut socket = connect(rig.address);
        let head = format!(
            "POST /v1/channels/news/publish HTTP/1.1\r\nHost: localhost\r\n{key}Expect: 100-continue\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).unwrap();
        let mut told = [0; 12];
        socket.read_exact(&mut told).unwrap();
        (socket, String::from_utf8_lossy(&told).into_owned())
    };
    let (mut socket, told) = ask(KEY, 1);
    assert_eq!(told, "HTTP/1.1 100");
    socket.write_all(b"1").unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("HTTP/1.1 200 "), "{answer}");
    assert_eq!(ask("", 1).1, "HTTP/1.1 401");
    assert_eq!(ask(KEY, 10_000_000).1, "HTTP/1.1 413");
    assert_eq!(kept(&rig), 1);
}
