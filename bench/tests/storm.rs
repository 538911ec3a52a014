//! Storm against the floor server and against servers that misbehave, over real sockets.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use tidegate_bench::floor;
use tidegate_bench::order::OrderCounts;
use tidegate_bench::storm::{PublishLoad, StormError, StormOptions, run};

fn options(address: SocketAddr) -> StormOptions {
    StormOptions {
        url: format!("ws://{address}"),
        connections: 100,
        duration: Duration::from_millis(300),
        ..StormOptions::default()
    }
}

/// A server that serves each connection with `serve` in a thread of its own.
fn server(serve: fn(TcpStream)) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || serve(stream.unwrap()));
        }
    });
    address
}

fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            break;
        }
        request.push(byte[0]);
    }
    let head = String::from_utf8(request).unwrap();
    let length =
        head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    let whole = stream.read_exact(&mut body).is_ok();
    assert!(whole || head.is_empty());
    head + std::str::from_utf8(&body).unwrap()
}

const UPGRADED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[test]
fn every_publication_reaches_every_subscriber_once() {
    for (channels, connections) in [(1, 100), (7, 100)] {
        let storm = StormOptions {
            channels,
            connections,
            publish: PublishLoad::Closed { publishers: 4, in_flight: 2 },
            threads: Some(2),
            ..options(floor::spawn().unwrap())
        };
        let report = run(&storm).unwrap();
        assert!(report.is_clean(), "{report}");
        assert_eq!((report.connections.opened, report.deliveries.foreign), (100, 0));
        assert!(report.publishes.accepted > 0);
        if channels == 1 {
            assert_eq!(report.deliveries.received, report.publishes.accepted * 100);
        }
        assert_eq!(report.deliveries.latency_us.count, report.deliveries.received);
    }
}

#[test]
fn a_rate_is_kept_and_large_payloads_pass() {
    let storm = StormOptions {
        publish: PublishLoad::PerSecond { rate: 100.0, publishers: 3 },
        payload_bytes: 100_000,
        connections: 10,
        ..options(floor::spawn().unwrap())
    };
    let report = run(&storm).unwrap();
    assert!(report.is_clean(), "{report}");
    // Thirty are due in 0.3 s; never more, and how many fewer depends on the machine.
    assert!((1..=31).contains(&report.publishes.accepted), "{report}");
    assert!(report.deliveries.bytes > report.deliveries.received * 100_000);
}

#[test]
fn connections_can_be_held_without_publishing() {
    let storm = StormOptions { publish: PublishLoad::Nothing, ..options(floor::spawn().unwrap()) };
    let report = run(&storm).unwrap();
    assert_eq!((report.connections.opened, report.deliveries.received), (100, 0));
    assert!(report.is_clean(), "{report}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["deliveries"]["lost"], 0);
}

#[test]
fn a_refused_connection_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = run(&options(address)).unwrap_err();
    assert!(matches!(error, StormError::NothingOpened { count: 100, .. }), "{error}");
    assert!(error.to_string().contains("connection refused"), "{error}");
}

#[test]
fn a_refusing_handshake_is_named() {
    let address = server(|mut stream| {
        read_request(&mut stream);
        stream.write_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n").unwrap();
    });
    let error = run(&StormOptions { connections: 3, ..options(address) }).unwrap_err();
    assert!(error.to_string().contains("status 401"), "{error}");
}

#[test]
fn more_connections_than_descriptors_is_said_before_the_first() {
    let storm = StormOptions { connections: u32::MAX, ..options("127.0.0.1:9".parse().unwrap()) };
    let error = run(&storm).unwrap_err();
    assert!(matches!(error, StormError::Descriptors { .. }), "{error}");
    assert!(error.to_string().contains("ulimit -n"), "{error}");
}

/// Answers the first publication with 503 and the rest with 200, and delivers nothing.
fn lossy(mut stream: TcpStream) {
    let mut refused = false;
    loop {
        let request = read_request(&mut stream);
        if request.starts_with("GET /metrics") {
            let body = "tidegate_saturation{resource=\"cpu\"} 0.97\n";
            write!(stream, "HTTP/1.0 200 OK\r\n\r\n{body}").unwrap();
            return;
        } else if request.starts_with("GET") {
            stream.write_all(UPGRADED).unwrap();
        } else if request.is_empty() {
            return;
        } else if refused {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        } else {
            refused = true;
            stream.write_all(b"HTTP/1.1 503 Busy\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n").unwrap();
        }
    }
}

#[test]
fn loss_push_back_and_saturation_are_reported() {
    let address = server(lossy);
    let storm = StormOptions {
        connections: 2,
        publish: PublishLoad::PerSecond { rate: 50.0, publishers: 1 },
        metrics_urls: vec![format!("http://{address}/metrics")],
        ..options(address)
    };
    let report = run(&storm).unwrap();
    let lost = report.publishes.accepted * 2;
    assert!(lost > 0);
    assert_eq!(report.deliveries.order, OrderCounts { lost, ..OrderCounts::default() });
    assert_eq!(report.publishes.pushed_back.get(&503), Some(&1));
    assert_eq!(report.limit().map(|limit| (limit.resource.as_str(), limit.after)), Some(("cpu", 0.97)));
    assert!(report.to_string().contains("The limit was cpu, at 97 %."), "{report}");
}

/// Answers `GET /sse` with two chunked events, cut in the middle of the first, and keeps the stream open.
fn event_stream(mut stream: TcpStream) {
    let request = read_request(&mut stream);
    assert!(request.starts_with("GET /sse?channel=storm-0 HTTP/1.1"), "{request}");
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    for part in [head, "9\r\ndata: one\r\n", "10\r\n\n\ndata: second\n\n\r\n"] {
        stream.write_all(part.as_bytes()).unwrap();
        stream.flush().unwrap();
    }
    // Until the client goes.
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn event_streams_are_counted() {
    let storm = StormOptions {
        connections: 3,
        sse: true,
        publish: PublishLoad::Nothing,
        ..options(server(event_stream))
    };
    let report = run(&storm).unwrap();
    assert!(report.is_clean(), "{report}");
    let deliveries = &report.deliveries;
    assert_eq!((report.connections.opened, deliveries.received, deliveries.foreign), (3, 6, 6));
}
