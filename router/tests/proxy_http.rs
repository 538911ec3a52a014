//! Requests that are balanced one by one.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
};

use support::{Router, SWITCH, TestNode, read_exact, read_head, read_to_end, upgrade};
use tidegate_router::proxy::{ConnectResult, Fallback, Options, RefusalReason};
use tidegate_testkit::net::free_address;

/// Answers one request on a node: its head, and its body of `body` bytes.
fn serve(node: &TestNode, body: usize, answer: &str) -> (String, Vec<u8>, TcpStream) {
    let mut upstream = node.accept();
    let head = read_head(&mut upstream);
    let body = read_exact(&mut upstream, body);
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
    upstream.write_all(answer.as_bytes()).unwrap();
    (head, body, upstream)
}

#[test]
fn the_requests_of_one_connection_go_to_the_nodes_of_their_keys() {
    let nodes = [TestNode::start(), TestNode::start()];
    let router = Router::start(&[nodes[0].address, nodes[1].address]);
    let mut client = router.client();
    for index in [0, 1] {
        let target = format!("/v1/x?key={}", router.key_of(index));
        let request = format!(
            "POST {target} HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nX-Forwarded-For: 6.6.6.6\r\n\
             Connection: X-Hop\r\nX-Hop: 1\r\nExpect: 100-continue\r\n\r\nhello"
        );
        client.write_all(request.as_bytes()).unwrap();
        let (head, body, _upstream) = serve(&nodes[index], 5, "ok");
        assert!(head.starts_with(&format!("POST {target} HTTP/1.1\r\n")), "{head}");
        let lower = head.to_lowercase();
        assert!(
            lower.contains("\r\nx-forwarded-for: 127.0.0.1\r\n") && lower.contains("\r\nhost: h\r\n"),
            "{head}"
        );
        assert!(!lower.contains("x-hop") && !lower.contains("expect"), "{head}");
        assert_eq!(body, b"hello");
        let mut answer = read_head(&mut client);
        if answer.starts_with("HTTP/1.1 100") {
            answer = read_head(&mut client);
        }
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert_eq!(read_exact(&mut client, 2), b"ok");
    }
    drop(client);
    router.eventually_empty();
}

#[test]
fn a_request_whose_node_refuses_goes_to_the_next_with_its_body() {
    let node = TestNode::start();
    let router = Router::start(&[free_address(), node.address]);
    let mut client = router.client();
    let body = "x".repeat(100_000);
    let target = format!("/v1/x?key={}", router.key_of(0));
    let request =
        format!("POST {target} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let writing = thread::spawn(move || {
        client.write_all(request.as_bytes()).unwrap();
        client
    });
    let (_, received, _upstream) = serve(&node, body.len(), "ok");
    assert!(received == body.as_bytes());
    let mut client = writing.join().unwrap();
    assert!(read_head(&mut client).starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(router.sum(|metrics| metrics.connects.get(ConnectResult::Refused) as i64), 1);
    assert_eq!(router.sum(|metrics| metrics.fallbacks.get(Fallback::Failed) as i64), 1);
}

#[test]
fn a_request_that_a_node_may_have_acted_on_is_not_sent_twice() {
    let nodes = [TestNode::start(), TestNode::start()];
    let router = Router::start(&[nodes[0].address, nodes[1].address]);
    let mut client = router.client();
    let target = format!("/v1/x?key={}", router.key_of(0));
    client
        .write_all(format!("POST {target} HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi").as_bytes())
        .unwrap();
    let mut upstream = nodes[0].accept();
    read_head(&mut upstream);
    read_exact(&mut upstream, 2);
    drop(upstream);
    let answer = String::from_utf8(read_to_end(&mut client)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("bad-answer"), "{answer}");
    assert!(nodes[1].try_accept().is_none());
}

/// A client that has had one request served on its connection.
fn after_one_request(router: &Router, node: &TestNode) -> (TcpStream, TcpStream) {
    let mut client = router.client();
    client.write_all(b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let (_, _, upstream) = serve(node, 0, "ok");
    read_head(&mut client);
    read_exact(&mut client, 2);
    (client, upstream)
}

#[test]
fn a_later_request_that_is_unclear_is_refused() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    for lines in [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: +5",
        "Transfer-Encoding: chunked, identity",
        "Host: other",
    ] {
        let (mut client, mut upstream) = after_one_request(&router, &node);
        client.write_all(format!("POST / HTTP/1.1\r\nHost: h\r\n{lines}\r\n\r\nhello").as_bytes()).unwrap();
        let answer = String::from_utf8(read_to_end(&mut client)).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{lines}: {answer}");
        // The kept connection to the node has carried nothing.
        upstream.set_nonblocking(true).unwrap();
        assert_eq!(upstream.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "{lines}");
        // A connection that the next round cannot use.
        drop(upstream);
        assert!(node.try_accept().is_none());
    }
}

/// hyper drops the length before anybody sees it; what the node gets has one meaning (RFC 9112 §6.3).
#[test]
fn a_later_request_with_two_framings_is_framed_anew() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let (mut client, mut upstream) = after_one_request(&router, &node);
    let request =
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX";
    client.write_all(request.as_bytes()).unwrap();
    let head = read_head(&mut upstream).to_lowercase();
    assert!(
        !head.contains("content-length") && head.contains("\r\ntransfer-encoding: chunked\r\n"),
        "{head}"
    );
    assert_eq!(read_exact(&mut upstream, 5), b"0\r\n\r\n");
    upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
    assert!(read_head(&mut client).starts_with("HTTP/1.1 200 "));
}

#[test]
fn an_upgrade_after_other_requests_is_served() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let mut client = router.client();
    client.write_all(b"GET /v1/x HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\n\r\n").unwrap();
    let (_, _, mut upstream) = serve(&node, 0, "ok");
    read_head(&mut client);
    read_exact(&mut client, 2);
    client.write_all(upgrade("/ws?key=a").as_bytes()).unwrap();
    // On the connection that the first request has left, which is kept.
    let head = read_head(&mut upstream).to_lowercase();
    assert!(head.contains("\r\nconnection: upgrade\r\n"), "{head}");
    let switch = String::from_utf8_lossy(SWITCH).replace("Upgrade: w", "Connection: upgrade\r\nUpgrade: w");
    upstream.write_all(switch.as_bytes()).unwrap();
    assert!(read_head(&mut client).starts_with("HTTP/1.1 101 "));
    client.write_all(b"question").unwrap();
    assert_eq!(read_exact(&mut upstream, 8), b"question");
    upstream.write_all(b"answer").unwrap();
    assert_eq!(read_exact(&mut client, 6), b"answer");
    drop(client);
    assert_eq!(read_to_end(&mut upstream), b"");
    assert_eq!(router.proxy.connections(), 1);
    drop(upstream);
    router.eventually_empty();
}

#[test]
fn without_a_node_and_while_draining_requests_are_refused() {
    let mut router = Router::with(&[free_address()], Options::default());
    let mut client = router.client();
    let mut early = router.client();
    client.write_all(b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let answer = String::from_utf8(read_to_end(&mut client)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("no-node"), "{answer}");
    router.proxy.drain(std::time::Duration::ZERO).unwrap();
    early.write_all(b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let answer = String::from_utf8(read_to_end(&mut early)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("draining"), "{answer}");
    assert_eq!(router.sum(|metrics| metrics.refusals.get(RefusalReason::NoNode) as i64), 1);
}
