//! Requests that are balanced one by one.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
};

use support::{Router, SWITCH, TestNode, pair_of, read_exact, read_head, read_to_end, upgrade};
use tidegate_ops::budget::Rate;
use tidegate_router::proxy::{ConnectResult, CutReason, Fallback, Options, RefusalReason};
use tidegate_testkit::net::{SocketOptions, free_address, source_address};

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
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: +5",
        "Transfer-Encoding: chunked, identity",
        "Host: other",
    ] {
        let (mut client, mut upstream) = after_one_request(&router, &node);
        client.write_all(format!("POST / HTTP/1.1\r\nHost: h\r\n{lines}\r\n\r\nhello").as_bytes()).unwrap();
        let answer = String::from_utf8(read_to_end(&mut client)).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{lines}: {answer}");
        assert!(answer.contains("urn:tidegate:problem:malformed-request"), "{lines}: {answer}");
        // The kept connection to the node has carried nothing.
        upstream.set_nonblocking(true).unwrap();
        assert_eq!(upstream.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "{lines}");
        // A connection that the next round cannot use.
        drop(upstream);
        assert!(node.try_accept().is_none());
    }
}

/// Another route of it would be a request in the body of this one.
#[test]
fn bytes_that_look_like_a_request_are_a_body() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let (mut client, mut upstream) = after_one_request(&router, &node);
    let inner = upgrade("/ws?key=a");
    let chunked = format!("{:X}\r\n{inner}\r\n0\r\n\r\n", inner.len());
    for (framing, body) in [
        (format!("Content-Length: {}", inner.len()), &inner),
        ("Transfer-Encoding: chunked".into(), &chunked),
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n{body}");
        client.write_all(request.as_bytes()).unwrap();
        let head = read_head(&mut upstream);
        assert!(head.starts_with("POST / HTTP/1.1\r\n"), "{head}");
        assert_eq!(read_exact(&mut upstream, body.len()), body.as_bytes());
        upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        assert!(read_head(&mut client).starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(router.sum(|metrics| metrics.pairs_opened.get() as i64), 0);
}

#[test]
fn a_body_that_is_not_in_chunks_is_the_clients_fault() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let mut client = router.client();
    let request = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi";
    client.write_all(request.as_bytes()).unwrap();
    let mut upstream = node.accept();
    read_head(&mut upstream);
    assert_eq!(read_exact(&mut upstream, 5), b"2\r\nhi");
    client.write_all(b"there").unwrap();
    assert!(!read_to_end(&mut upstream).ends_with(b"0\r\n\r\n"), "the node sees that it is not whole");
    read_to_end(&mut client);
    assert!(!router.node(0).is_avoided(std::time::Instant::now()));
}

/// A pair like any other: cut with its node, and closed by a drain in its turn.
#[test]
fn an_upgrade_after_other_requests_is_a_pair() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let (kept, idle) = after_one_request(&router, &node);
    let (mut client, mut upstream) = pair_of(kept, &node);
    client.write_all(b"question").unwrap();
    assert_eq!(read_exact(&mut upstream, 8), b"question");
    upstream.write_all(b"answer").unwrap();
    assert_eq!(read_exact(&mut client, 6), b"answer");
    assert_eq!((router.sum(|metrics| metrics.pairs.get()), router.proxy.connections()), (1, 1));
    router.lose(0);
    assert_eq!(read_to_end(&mut client), b"");
    assert_eq!(router.sum(|metrics| metrics.cuts.get(CutReason::Node) as i64), 1);
    drop((client, upstream, idle));
    router.eventually_empty();

    router.find(0);
    let (kept, _upstream) = after_one_request(&router, &node);
    let (mut client, mut upstream) = pair_of(kept, &node);
    router.proxy.drain(std::time::Duration::from_secs(3600));
    upstream.write_all(b"still here").unwrap();
    assert_eq!(read_exact(&mut client, 10), b"still here");
}

/// Requests, an upgrade and what follows it, together or in pieces: each way gives the same.
#[test]
fn an_upgrade_may_come_with_the_requests_before_it() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let post = "POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello";
    let all = format!("{post}{}early", upgrade("/ws?key=a")).into_bytes();
    for cut in [all.len(), all.len() - 3, all.len() - 6, post.len() + 9, post.len(), post.len() - 2, 9] {
        let mut client = router.client();
        client.write_all(&all[..cut]).unwrap();
        client.write_all(&all[cut..]).unwrap();
        let (_, body, kept) = serve(&node, 5, "ok");
        assert_eq!(body, b"hello");
        // Nothing uses it again.
        drop(kept);
        let mut upstream = node.accept();
        assert!(read_head(&mut upstream).starts_with("GET /ws?key=a HTTP/1.1\r\n"), "{cut}");
        upstream.write_all(SWITCH).unwrap();
        assert_eq!(read_exact(&mut upstream, 5), b"early", "{cut}");
        assert!(read_head(&mut client).starts_with("HTTP/1.1 200 "), "the answers keep their order");
        assert_eq!(read_exact(&mut client, 2), b"ok");
        assert_eq!(read_head(&mut client).as_bytes(), SWITCH);
    }
    router.eventually_empty();
}

#[test]
fn a_stream_after_other_requests_is_a_pair() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let (mut client, _kept) = after_one_request(&router, &node);
    client.write_all(b"GET /sse?key=a HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let mut upstream = node.accept();
    let head = read_head(&mut upstream);
    assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
    upstream.write_all(b"HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n").unwrap();
    assert!(read_head(&mut client).starts_with("HTTP/1.1 200 "));
    assert_eq!(read_exact(&mut client, 9), b"data: 1\n\n");
    assert_eq!(router.sum(|metrics| metrics.pairs.get()), 1);
}

/// Upgrades on kept connections take from the same bucket as all others.
#[test]
fn handshakes_on_kept_connections_are_counted() {
    let node = TestNode::start();
    // The second token comes after a day.
    let options = Options { handshakes: Rate { per_second: 1, at_once: 1 }, ..Options::default() };
    let router = Router::with(&[node.address], options);
    let (first, idle) = after_one_request(&router, &node);
    drop(idle);
    let (mut second, _idle) = after_one_request(&router, &node);
    let _pair = pair_of(first, &node);
    second.write_all(upgrade("/ws?key=a").as_bytes()).unwrap();
    let answer = String::from_utf8(read_to_end(&mut second)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
}

/// The answer comes while the body is under way. A client that sends all of it first must not lose the answer.
#[test]
fn who_is_refused_may_finish_sending() {
    let router = Router::start(&[free_address()]);
    let body = "x".repeat(8_000_000);
    for (framing, status) in
        [("Content-Length: 8000000", 503), ("Content-Length: 5\r\nContent-Length: 6", 400)]
    {
        let mut client = router.client();
        let request = format!("POST / HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n{body}");
        client.write_all(request.as_bytes()).unwrap();
        let answer = String::from_utf8(read_to_end(&mut client)).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    router.eventually_empty();
}

#[test]
fn without_a_node_and_while_draining_requests_are_refused() {
    let router = Router::with(&[free_address()], Options::default());
    let mut client = router.client();
    let mut early = router.client();
    client.write_all(b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let answer = String::from_utf8(read_to_end(&mut client)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("no-node"), "{answer}");
    router.proxy.drain(std::time::Duration::ZERO);
    early.write_all(b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let answer = String::from_utf8(read_to_end(&mut early)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("draining"), "{answer}");
    assert_eq!(router.sum(|metrics| metrics.refusals.get(RefusalReason::NoNode) as i64), 1);
}

/// A header of a trusted balancer is no header of one hop, whatever `Connection` says; and octets stay octets.
#[test]
fn a_client_cannot_have_a_balancers_header_removed() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let mut client =
        router.client_with(SocketOptions { source: Some(source_address(0)), ..SocketOptions::default() });
    client
        .write_all(
            b"GET /v1/x HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: \xff, 9.9.9.9\r\n\
              Connection: X-Forwarded-For, Host, X-Forwarded-Proto\r\nX-Forwarded-Proto: https\r\n\r\n",
        )
        .unwrap();
    let mut upstream = node.accept();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend(read_exact(&mut upstream, 1));
    }
    let lower = head.to_ascii_lowercase();
    let has = |bytes: &[u8]| lower.windows(bytes.len()).any(|window| window == bytes);
    assert!(has(b"\r\nx-forwarded-for: \xff, 9.9.9.9, 127.0.1."), "{}", head.escape_ascii());
    assert!(has(b"\r\nx-forwarded-proto: https\r\n") && has(b"\r\nhost: h\r\n"), "{}", head.escape_ascii());
}

/// RFC 9110 section 15.5.22: 426 says to what.
#[test]
fn who_is_to_upgrade_is_told_to_what() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let mut client = router.client();
    client.write_all(b"GET /ws HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let mut upstream = node.accept();
    read_head(&mut upstream);
    let answer = "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\nContent-Length: 0\r\n\r\n";
    upstream.write_all(answer.as_bytes()).unwrap();
    let head = read_head(&mut client).to_lowercase();
    assert!(head.contains("\r\nupgrade: websocket\r\n") && head.contains("connection: upgrade"), "{head}");
}
