//! From a request to its node: what is forwarded, what is refused, and which node is asked next.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod support;

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use support::{Router, SWITCH, TestNode, edge, read_exact, read_head, read_to_end, reset, upgrade};
use tidegate_ops::budget::Rate;
use tidegate_router::proxy::{ConnectResult, Direction, Fallback, Options, RefusalReason};
use tidegate_testkit::{
    DEADLINE, eventually,
    net::{SocketOptions, free_address, source_address},
};
use tidegate_wire::{head::HEADERS_MAX, request::judge};

#[track_caller]
fn send(router: &Router, request: &str) -> TcpStream {
    let mut client = router.client();
    client.write_all(request.as_bytes()).unwrap();
    client
}

/// The whole answer to a request that no node is to see.
#[track_caller]
fn check_refused(router: &Router, request: &str, status: u16, problem: &str) {
    let answer = String::from_utf8(read_to_end(&mut send(router, request))).unwrap();
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:.200}\n{answer}");
    assert!(answer.contains(&format!("urn:tidegate:problem:{problem}\"")), "{answer}");
    assert_eq!(answer.contains("Retry-After: "), matches!(status, 429 | 502..=504), "{answer}");
}

#[test]
fn a_node_gets_the_head_of_an_upgrade_and_who_sent_it() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let request = "GET /ws?key=a HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
                   Sec-WebSocket-Key: k\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n\r\n";
    let mut client = send(&router, request);
    let mut upstream = node.accept();
    let expect = "GET /ws?key=a HTTP/1.1\r\nHost: h\r\nSec-WebSocket-Key: k\r\nConnection: Upgrade\r\n\
                  Upgrade: websocket\r\nX-Forwarded-For: 127.0.0.1\r\nForwarded: for=127.0.0.1;proto=http\r\n\
                  X-Forwarded-Proto: http\r\nTidegate-Router: ";
    let head = read_head(&mut upstream);
    assert_eq!(&head[..expect.len()], expect);
    assert_eq!(head.len(), expect.len() + 16 + 4, "an id, and the end");
    upstream.write_all(SWITCH).unwrap();
    assert_eq!(read_head(&mut client).as_bytes(), SWITCH);
}

#[test]
fn a_trusted_proxy_is_believed() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let options = SocketOptions { source: Some(source_address(1)), ..SocketOptions::default() };
    let mut client = router.client_with(options);
    let request =
        upgrade("/ws").replace("Host: h", "Host: h\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-Proto: https");
    client.write_all(request.as_bytes()).unwrap();
    let head = read_head(&mut node.accept());
    assert!(head.contains(&format!("X-Forwarded-For: 1.1.1.1, {}\r\n", source_address(1))), "{head}");
    assert!(head.contains("X-Forwarded-Proto: https\r\n"), "{head}");
}

#[test]
fn a_head_in_pieces_is_one_head() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let mut client = router.client();
    let request = upgrade("/ws?key=a");
    let (first, rest) = request.split_at(40);
    for piece in [first, &rest[..1], &rest[1..]] {
        client.write_all(piece.as_bytes()).unwrap();
        // A round trip of another connection: the shard has read the piece.
        check_refused(&router, "\x16\n", 400, "malformed-request");
    }
    assert!(read_head(&mut node.accept()).starts_with("GET /ws?key=a HTTP/1.1\r\n"));
}

#[test]
fn what_is_sent_too_early_waits_for_the_switch() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let early = "GET /evil HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n";
    let mut client = send(&router, &format!("{}{early}", upgrade("/ws?key=a")));
    let mut upstream = node.accept();
    read_head(&mut upstream);
    upstream.write_all(SWITCH).unwrap();
    read_head(&mut client);
    assert_eq!(read_exact(&mut upstream, early.len()), early.as_bytes());
}

#[test]
fn a_node_that_does_not_switch_gets_nothing_more() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    for (answer, expect) in [
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", "no"),
        (
            "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nnoHTTP/1.1 200 OK\r\n\r\n",
            "no",
        ),
        ("HTTP/1.1 204 No Content\r\n\r\nxx", ""),
    ] {
        let evil = "GET /evil HTTP/1.1\r\nHost: h\r\n\r\n";
        let mut client = send(&router, &format!("{}{evil}", upgrade("/ws?key=a")));
        let mut upstream = node.accept();
        read_head(&mut upstream);
        let (first, rest) = answer.split_at(9);
        upstream.write_all(first.as_bytes()).unwrap();
        upstream.write_all(rest.as_bytes()).unwrap();
        let told = String::from_utf8(read_to_end(&mut client)).unwrap();
        assert!(told.ends_with(&format!("Connection: close\r\n\r\n{expect}")), "{told}");
        assert_eq!(read_to_end(&mut upstream), b"");
        drop(client);
        router.eventually_empty();
    }
}

#[test]
fn a_stream_is_piped_and_the_client_cannot_ask_for_more() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let mut client = send(&router, "GET /sse?key=a HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\n\r\n");
    let mut upstream = node.accept();
    let head = read_head(&mut upstream);
    assert!(head.contains("\r\nConnection: close\r\n") && !head.contains("keep-alive"), "{head}");
    upstream.write_all(b"HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n").unwrap();
    assert_eq!(read_head(&mut client), "HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(read_exact(&mut client, 9), b"data: 1\n\n");
    let evil = b"GET /evil HTTP/1.1\r\nHost: h\r\n\r\n";
    client.write_all(evil).unwrap();
    router.eventually("it is counted", evil.len() as i64, |metrics| {
        metrics.bytes.get(Direction::Ignored) as i64
    });
    upstream.write_all(b"data: 2\n\n").unwrap();
    assert_eq!(read_exact(&mut client, 9), b"data: 2\n\n");
    drop(client);
    assert_eq!(read_to_end(&mut upstream), b"");
}

#[test]
fn unclear_requests_are_refused_and_nothing_is_forwarded() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let long = format!("GET /ws HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(64 * 1024));
    check_refused(&router, &long, 431, "head-too-large");
    for malformed in [
        "GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        "GET /ws HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : h\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\n X: folded\r\n\r\n",
        "\x16\x03\x01\x02\n",
    ] {
        check_refused(&router, malformed, 400, "malformed-request");
    }
    assert!(node.try_accept().is_none());
    assert_eq!(router.sum(|metrics| metrics.refusals.get(RefusalReason::Malformed) as i64), 10);
    router.eventually_empty();
}

#[test]
fn a_head_that_does_not_end_is_refused_in_time() {
    let router = Router::with(
        &[free_address()],
        Options { head_timeout: Duration::from_millis(250), ..Options::default() },
    );
    check_refused(&router, "GET /ws HTTP/1.1\r\n", 408, "head-timeout");
    assert_eq!(read_to_end(&mut router.client()), b"");
    assert_eq!(router.sum(|metrics| metrics.refusals.get(RefusalReason::Timeout) as i64), 2);
}

/// A client whose first node fails is brought to the second.
fn check_next_node(
    options: Options,
    failing: SocketAddr,
    fail: impl Fn(&Router) -> Option<TcpStream>,
    result: ConnectResult,
) {
    let node = TestNode::start();
    let router = Router::with(&[failing, node.address], options);
    let mut client = send(&router, &upgrade(&format!("/ws?key={}", router.key_of(0))));
    let _asked = fail(&router);
    let mut upstream = node.accept();
    read_head(&mut upstream);
    upstream.write_all(SWITCH).unwrap();
    read_head(&mut client);
    client.write_all(b"!").unwrap();
    assert_eq!(read_exact(&mut upstream, 1), b"!");
    assert_eq!(router.sum(|metrics| metrics.connects.get(result) as i64), 1, "{result:?}");
    assert_eq!(router.sum(|metrics| metrics.fallbacks.get(Fallback::Failed) as i64), 1);
    assert_eq!((router.node(0).claims(), router.node(1).claims()), (0, 1));
    drop((client, upstream));
    router.eventually_empty();
}

#[test]
fn a_node_that_refuses_is_passed_over() {
    check_next_node(Options::default(), free_address(), |_| None, ConnectResult::Refused);
}

#[test]
fn a_node_that_ends_without_an_answer_is_passed_over() {
    let failing = TestNode::start();
    let fail = |_: &Router| {
        read_head(&mut failing.accept());
        None
    };
    check_next_node(Options::default(), failing.address, fail, ConnectResult::Closed);
    let fail = |_: &Router| {
        reset(failing.accept());
        None
    };
    check_next_node(Options::default(), failing.address, fail, ConnectResult::Closed);
}

#[test]
fn a_node_that_is_silent_is_passed_over() {
    let failing = TestNode::start();
    let options = Options { answer_timeout: Duration::from_millis(250), ..Options::default() };
    check_next_node(options, failing.address, |_| None, ConnectResult::Silent);
}

#[test]
fn a_node_that_does_not_take_connections_is_passed_over() {
    // A queue for one connection, and one in it: the next is not answered by the kernel.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let _waiting = TcpStream::connect(address).unwrap();
    let options = Options { connect_timeout: Duration::from_millis(500), ..Options::default() };
    check_next_node(options, address, |_| None, ConnectResult::Timeout);
}

#[test]
fn a_node_that_is_removed_while_it_is_asked_is_passed_over() {
    let failing = TestNode::start();
    let fail = |router: &Router| {
        let mut asked = failing.accept();
        read_head(&mut asked);
        router.lose(0);
        Some(asked)
    };
    check_next_node(Options::default(), failing.address, fail, ConnectResult::Removed);
}

#[test]
fn without_a_node_the_client_is_told_to_come_back() {
    let router = Router::start(&[free_address(), free_address()]);
    check_refused(&router, &upgrade("/ws?key=a"), 503, "no-node");
    assert_eq!(router.sum(|metrics| metrics.connects.get(ConnectResult::Refused) as i64), 2);
    check_refused(&Router::start(&[]), &upgrade("/ws?key=a"), 503, "no-node");
    router.eventually_empty();
}

#[test]
fn what_is_no_http_is_no_answer() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    for answer in ["SSH-2.0-x\r\n", "HTTP/1.1 1"] {
        let mut client = send(&router, &upgrade("/ws?key=a"));
        let mut upstream = node.accept();
        read_head(&mut upstream);
        upstream.write_all(answer.as_bytes()).unwrap();
        drop(upstream);
        let told = String::from_utf8(read_to_end(&mut client)).unwrap();
        assert!(told.starts_with("HTTP/1.1 502 "), "{told}");
    }
}

#[test]
fn limits_are_told() {
    let node = TestNode::start();
    let router = Router::with(&[node.address], Options { connections_max: 1, ..Options::default() });
    let one = router.client();
    check_refused(&router, &upgrade("/ws?key=a"), 503, "no-capacity");
    drop(one);
    let options = Options { handshakes: Rate { per_second: 1, at_once: 1 }, ..Options::default() };
    let router = Router::with(&[node.address], options);
    let _first = support::pair(&router, &node);
    check_refused(&router, &upgrade("/ws?key=a"), 429, "too-many-handshakes");
}

#[test]
fn a_client_that_leaves_while_its_node_is_asked_leaves_nothing() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let client = send(&router, &upgrade("/ws?key=a"));
    let mut upstream = node.accept();
    read_head(&mut upstream);
    reset(client);
    upstream.write_all(SWITCH).unwrap();
    assert_eq!(read_to_end(&mut upstream), b"");
    drop(upstream);
    router.eventually_empty();
}

/// Answers the next request on a node, and ends.
fn answer_next(node: &TestNode, answer: &str) -> String {
    let mut upstream = node.accept();
    let head = read_head(&mut upstream);
    upstream.write_all(answer.as_bytes()).unwrap();
    head
}

const FULL: &str = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 4\r\n\r\nfull";

#[test]
fn a_client_of_a_node_that_is_full_goes_to_the_next() {
    let nodes = [TestNode::start(), TestNode::start()];
    let router = Router::start(&[nodes[0].address, nodes[1].address]);
    for (request, answer) in [
        (upgrade(&format!("/ws?key={}", router.key_of(0))), String::from_utf8(SWITCH.to_vec()).unwrap()),
        (
            format!("GET /sse?key={} HTTP/1.1\r\nHost: h\r\n\r\n", router.key_of(0)),
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n".to_owned(),
        ),
    ] {
        // Until the node of the last round is no longer avoided.
        eventually("the first node is tried again", DEADLINE, || !router.node(0).is_avoided(Instant::now()));
        let mut client = router.client();
        client.write_all(request.as_bytes()).unwrap();
        answer_next(&nodes[0], FULL);
        let mut upstream = nodes[1].accept();
        read_head(&mut upstream);
        upstream.write_all(answer.as_bytes()).unwrap();
        assert_eq!(read_head(&mut client), answer);
    }
    assert_eq!(router.sum(|metrics| metrics.connects.get(ConnectResult::Busy) as i64), 2);
    assert_eq!(router.sum(|metrics| metrics.fallbacks.get(Fallback::Failed) as i64), 2);
}

#[test]
fn when_all_are_full_the_last_says_so_and_a_stream_comes_back() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let mut client = router.client();
    client.write_all(upgrade("/ws?key=a").as_bytes()).unwrap();
    answer_next(&node, FULL);
    let answer = String::from_utf8(read_to_end(&mut client)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("\r\n\r\nfull"), "{answer}");
    let mut client = router.client();
    client.write_all(b"GET /sse?key=a HTTP/1.1\r\nHost: h\r\nOrigin: http://page\r\n\r\n").unwrap();
    answer_next(&node, FULL);
    let answer = String::from_utf8(read_to_end(&mut client)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\r\n\r\nretry: "), "{answer}");
    assert!(answer.contains("Access-Control-Allow-Origin: http://page"), "{answer}");
}

#[test]
fn what_is_asked_again_has_a_budget() {
    let dead: Vec<_> = (0..3).map(|_| free_address()).collect();
    let options = Options { retries_percent: 0, retries_burst: 3, ..Options::default() };
    let router = Router::with(&dead, options);
    for _ in 0..10 {
        let mut client = router.client();
        client.write_all(upgrade("/ws?key=a").as_bytes()).unwrap();
        assert!(String::from_utf8(read_to_end(&mut client)).unwrap().starts_with("HTTP/1.1 503 "));
    }
    // Each client is tried once; three further attempts are all that there are.
    assert_eq!(router.sum(|metrics| metrics.connects.get(ConnectResult::Refused) as i64), 13);
    assert!(router.sum(|metrics| metrics.refusals.get(RefusalReason::RetryBudget) as i64) >= 8);
}

/// A gateway that advertises the router's own address: one round, not as many as there are places.
#[test]
fn a_request_that_comes_back_to_its_router_is_refused() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let router = Router::on(&address.to_string(), &[address], Options::default(), edge(None));
    for request in
        [upgrade("/ws?key=a"), "GET /v1/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".to_owned()]
    {
        let mut client = router.client();
        client.write_all(request.as_bytes()).unwrap();
        let answer = String::from_utf8(read_to_end(&mut client)).unwrap();
        assert!(answer.starts_with("HTTP/1.1 508 "), "{answer}");
    }
    assert_eq!(router.sum(|metrics| metrics.refusals.get(RefusalReason::Loop) as i64), 2);
}

/// What a client may send to a node it may send through a router.
#[test]
fn forwarding_headers_push_nothing_over_a_bound() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let base = upgrade("/ws?key=a");
    let base = base.strip_suffix("\r\n").unwrap();
    let many = format!("{base}{}\r\n", "A: b\r\n".repeat(HEADERS_MAX - 3));
    let long = format!("{base}A: {}\r\n\r\n", "x".repeat(16 * 1024 - base.len() - 7));
    for request in [many, long] {
        assert!(
            judge(request.as_bytes(), request.len(), 16 * 1024).unwrap().is_some(),
            "good without a router"
        );
        let mut client = router.client();
        client.write_all(request.as_bytes()).unwrap();
        let head = answer_next(&node, std::str::from_utf8(SWITCH).unwrap());
        assert!(head.len() > request.len(), "something was added");
        assert!(judge(head.as_bytes(), head.len(), 16 * 1024).unwrap().is_some(), "and good behind it");
    }
}
