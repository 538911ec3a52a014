//! One connection, first HTTP and then a WebSocket or an event stream; and what must not be taken for that.

use tidegate_testkit::{DEADLINE, Gateway, HttpHead, RawTcp, WsClient, eventually, masked_frame};

const UPGRADE: &str = "Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

fn upgrade(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\n{UPGRADE}")
}

fn publish(key: &str, body: &str, body_len: usize) -> String {
    format!(
        "POST /v1/channels/news/publish HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\
         Content-Length: {body_len}\r\n\r\n{body}"
    )
}

fn publish_whole(body: &str) -> String {
    publish("dev-key", body, body.len())
}

/// Reads an answer whole, so that the next one begins the rest.
#[track_caller]
fn answer(client: &mut RawTcp) -> HttpHead {
    let head = client.read_head(DEADLINE).expect("an answer");
    let length = head.header("content-length").map_or(0, |length| length.parse().expect("a number"));
    client.read_exact(length, DEADLINE).expect("its body");
    head
}

#[track_caller]
fn expect_status(client: &mut RawTcp, status: u16) -> HttpHead {
    let head = answer(client);
    assert_eq!(head.status, status, "{head:?}");
    head
}

/// A connection that was used for a publish.
#[track_caller]
fn used(gateway: &Gateway) -> RawTcp {
    let mut client = RawTcp::connect(gateway.public());
    client.send(publish_whole("first").as_bytes());
    expect_status(&mut client, 200);
    client
}

fn accepted(gateway: &Gateway) -> f64 {
    gateway.metric("tidegate_handshakes_total", &[("result", "accepted")])
}

#[test]
fn a_connection_that_published_becomes_a_websocket() {
    let gateway = Gateway::start();
    let mut client = used(&gateway);
    client.send(publish_whole("second").as_bytes());
    expect_status(&mut client, 200);
    client.send(upgrade("/ws?channel=news").as_bytes());
    let head = client.read_head(DEADLINE).expect("an answer");
    // RFC 6455 section 1.3: the key went back and forth unchanged.
    assert_eq!(head.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head:?}");
    gateway.rest().publish("news", "hello");
    assert_eq!(client.read_frame(DEADLINE).expect("a frame"), (0x81, b"hello".to_vec()));
    gateway.eventually_connections(1);
}

#[test]
fn a_connection_that_published_becomes_an_event_stream() {
    let gateway = Gateway::start();
    let mut client = used(&gateway);
    client.send(b"GET /sse?channel=news HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    let head = client.read_head(DEADLINE).expect("an answer");
    assert_eq!(head.status, 200, "{head:?}");
    assert!(
        head.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream")),
        "{head:?}"
    );
    gateway.rest().publish("news", "hello");
    let mut text = String::new();
    while !text.contains("data: hello\n") && !text.contains("data:hello\n") {
        text.push_str(&String::from_utf8_lossy(&client.read_some(DEADLINE).expect("an event")));
    }
}

#[test]
fn requests_upgrade_and_first_frame_may_come_at_once() {
    let gateway = Gateway::start();
    let mut all = publish_whole("one").into_bytes();
    all.extend_from_slice(
        b"GET /v1/channels HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer dev-key\r\n\r\n",
    );
    all.extend_from_slice(upgrade("/echo").as_bytes());
    all.extend_from_slice(&masked_frame(0x81, b"early"));
    // In one piece; and cut so that a head, its end, or the frame comes later. The server reads the pieces one by
    // one or together, as it happens: each way must give the same.
    for cut in [all.len(), all.len() - 3, all.len() - 14, all.len() - 120, 20] {
        let mut client = RawTcp::connect(gateway.public());
        let (first, second) = all.split_at(cut);
        client.send(first);
        client.send(second);
        expect_status(&mut client, 200);
        expect_status(&mut client, 200);
        expect_status(&mut client, 101);
        assert_eq!(client.read_frame(DEADLINE).expect("the echo"), (0x81, b"early".to_vec()), "cut at {cut}");
    }
}

#[test]
fn an_upgrade_in_pieces_is_one_upgrade() {
    let gateway = Gateway::start();
    let mut client = used(&gateway);
    for piece in upgrade("/ws?channel=news").as_bytes().chunks(7) {
        client.send(piece);
    }
    expect_status(&mut client, 101);
}

#[test]
fn a_place_in_the_limits_is_kept_and_given_back_once() {
    let gateway = Gateway::builder().config("[limits]\nconnections = 2\n").start();
    for _ in 0..5 {
        let (mut first, mut second) = (used(&gateway), used(&gateway));
        first.send(upgrade("/ws?channel=news").as_bytes());
        expect_status(&mut first, 101);
        second.send(upgrade("/ws?channel=news").as_bytes());
        expect_status(&mut second, 101);
        let refusal = WsClient::try_connect(gateway.public(), "/ws?channel=news", &[]).expect_err("full");
        assert_eq!(refusal.status, 503, "{refusal:?}");
        gateway.eventually_connections(2);
        drop((first, second));
        gateway.eventually_connections(0);
        eventually("both places are free", DEADLINE, || {
            let held = [WsClient::try_connect(gateway.public(), "/ws?channel=news", &[]), {
                WsClient::try_connect(gateway.public(), "/ws?channel=news", &[])
            }];
            held.iter().all(Result::is_ok)
        });
        gateway.eventually_connections(0);
    }
}

#[test]
fn a_refused_upgrade_is_answered_by_the_shard() {
    let gateway = Gateway::start();
    let mut client = used(&gateway);
    client.send(upgrade("/ws").as_bytes());
    let head = expect_status(&mut client, 400);
    assert_eq!(head.header("content-type"), Some("application/problem+json"), "{head:?}");
    client.read_to_end(DEADLINE).expect("closed");
    gateway.eventually_connections(0);
}

#[test]
fn a_body_that_looks_like_an_upgrade_is_a_body() {
    let gateway = Gateway::start();
    let mut subscriber = gateway.subscribe("news");
    let mut client = used(&gateway);
    assert_eq!(subscriber.expect_text(), "first");
    let body = upgrade("/ws?channel=news");
    // With its head, and after it.
    client.send(publish_whole(&body).as_bytes());
    expect_status(&mut client, 200);
    client.send(publish("dev-key", "", body.len()).as_bytes());
    client.send(body.as_bytes());
    expect_status(&mut client, 200);
    client.send(
        b"POST /v1/channels/news/publish HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer dev-key\r\n\
          Transfer-Encoding: chunked\r\n\r\n",
    );
    client.send(format!("{:x}\r\n", body.len()).as_bytes());
    client.send(format!("{body}\r\n0\r\n\r\n").as_bytes());
    expect_status(&mut client, 200);
    for _ in 0..3 {
        assert_eq!(subscriber.expect_text(), body);
    }
    client.send(publish_whole("last").as_bytes());
    expect_status(&mut client, 200);
    assert_eq!(accepted(&gateway), 1.0, "the subscriber alone");
}

/// The body of a refused request is not read by the service. What of it comes later must not begin a request.
#[test]
fn the_unread_body_of_a_refused_request_is_not_adopted() {
    let gateway = Gateway::start();
    let body = upgrade("/ws?channel=news");
    for declared in [body.len(), body.len() + 1, 100_000, 1_000_000_000_000] {
        for in_one_piece in [true, false] {
            let mut client = RawTcp::connect(gateway.public());
            let request = publish("wrong-key", "", declared);
            if in_one_piece {
                client.send((request + &body).as_bytes());
                assert_eq!(answer(&mut client).status, 401);
            } else {
                client.send(request.as_bytes());
                assert_eq!(answer(&mut client).status, 401);
                // The server may have closed by now.
                drop(client.try_send(body.as_bytes()));
            }
            // Closed; or still there, if the server took the whole body: then what follows that is a request. Of
            // one byte too many in the body, the method misses its first letter.
            let sent = client.try_send(b"GET /v1/nothing HTTP/1.1\r\nHost: localhost\r\n\r\n");
            if sent.is_ok()
                && let Ok(next) = client.read_head(DEADLINE)
            {
                assert!(next.status == 404 && declared <= body.len() + 1, "{declared}: {next:?}");
            }
        }
    }
    assert_eq!(accepted(&gateway), 0.0);
}

/// RFC 9112 section 6.3: with both, the chunks count. Either both parsers see it so, or the request is refused.
#[test]
fn two_lengths_make_no_upgrade_of_a_body() {
    let gateway = Gateway::start();
    let hidden = upgrade("/ws?channel=news");
    let mut client = RawTcp::connect(gateway.public());
    let chunk = format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
    client.send(
        format!(
            "POST /v1/channels/news/publish HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer dev-key\r\n\
             Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"
        )
        .as_bytes(),
    );
    let head = answer(&mut client);
    assert!(matches!(head.status, 200 | 400), "{head:?}");
    assert_eq!(accepted(&gateway), 0.0);
}

#[test]
fn an_upgrade_with_a_body_is_no_upgrade() {
    let gateway = Gateway::start();
    let mut client = used(&gateway);
    client.send(upgrade("/ws?channel=news").replace("Host:", "Content-Length: 4\r\nHost:").as_bytes());
    client.send(b"body");
    expect_status(&mut client, 413);
    assert_eq!(accepted(&gateway), 0.0);
}

#[test]
fn a_draining_node_ends_idle_connections_and_answers_new_ones_once() {
    // The process outlives the test: what ends below ends because of the drain, not with the process. A shard closes one
    // client a second at least, the first subscriber last.
    let config = "shards = 1\n[drain]\nsettle = \"0s\"\nperiod = \"600s\"\nclose_wait = \"5s\"\n";
    let gateway = Gateway::builder().config(config).start();
    let mut idle = used(&gateway);
    let mut subscriber = gateway.subscribe("news");
    let _others = [(); 60].map(|()| gateway.subscribe("news"));
    assert_eq!(gateway.internal_rest().post("/drain", "text/plain", "").status, 202);
    idle.read_to_end(DEADLINE).expect("closed");

    let mut late = RawTcp::connect(gateway.public());
    late.send(publish_whole("late").as_bytes());
    let head = expect_status(&mut late, 200);
    assert_eq!(head.header("connection"), Some("close"), "{head:?}");
    late.read_to_end(DEADLINE).expect("closed");
    assert_eq!(subscriber.expect_text(), "late");
}
