//! Clients and gateways that are slow, through a router: it holds a bounded number of bytes, and others are served.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
};

use tidegate_testkit::{
    DEADLINE, Gateway, Stop, WsClient, eventually, frame, masked_frame,
    net::{SocketOptions, connect},
};

use crate::site::Router;

/// What a router holds for one direction of one pair at most.
const QUEUE_BYTES_MAX: f64 = 65_536.0;
const PAYLOAD_BYTES: usize = 32 * 1024;

/// 128 MiB: more than all buffers of the kernel on the way.
const PUBLISHES_MAX: usize = 4_000;

/// 64 MiB of [`PAYLOAD_BYTES`]: as many.
const FRAMES: usize = 2_000;

const QUEUED: &str = "tidegate_send_queue_bytes";

/// The client that stands still is felt by the gateway, whose policy ends it; the router held little for it.
#[test]
fn a_slow_client_is_the_gateways_matter() {
    let config = "[limits]\nsend_queue_bytes = \"64KiB\"\n[namespaces.cut]\nslow_reader = \"disconnect\"\n";
    let gateway = Gateway::builder().config(config).start();
    let router = Router::of(&[&gateway], "");
    router.eventually_live(1);
    let narrow = SocketOptions { receive_buffer_bytes: Some(4096), ..SocketOptions::default() };
    let path = "/ws?channel=cut:news";
    let mut stuck = WsClient::try_connect_from(router.public, path, &[], narrow).expect("accepted");
    let mut healthy = WsClient::connect(router.public, path);
    let slow = || gateway.metric("tidegate_disconnects_total", &[("reason", "slow_reader")]);
    let rest = gateway.rest();
    let mut published = 0;
    while slow() == 0.0 {
        assert!(published < PUBLISHES_MAX, "the gateway never feels that its client does not read");
        for _ in 0..4 {
            let payload = format!("{published:08}{}", "x".repeat(PAYLOAD_BYTES - 8));
            rest.publish("cut:news", &payload);
            published += 1;
            assert_eq!(healthy.expect_text(), payload);
        }
        let queued = router.metric(QUEUED, &[]);
        assert!(queued <= QUEUE_BYTES_MAX, "{queued} bytes are queued in the router");
    }
    // What was under way still comes, and then the end.
    let (received, _) = stuck.read_to_close(DEADLINE);
    assert!((1..published).contains(&received), "{received} of {published}");
    rest.publish("cut:news", "still here");
    assert_eq!(healthy.expect_text(), "still here");
    router.eventually_metric("tidegate_proxied_connections", &[], 1.0);
}

/// A gateway that stands still does not fill the router, and gets all of it afterwards.
#[test]
fn a_slow_gateway_stops_its_clients() {
    let mut gateway = Gateway::start();
    // It is to be slow, not lost.
    let router = Router::of(&[&gateway], "[health]\nfailures = 1000000\n");
    router.eventually_live(1);
    let mut client = upgraded(&router, "/echo");
    let mut other = upgraded(&router, "/echo");
    gateway.process().signal(Stop::Freeze);
    let mut writer = client.try_clone().unwrap();
    let masked = masked_frame(0x82, &[7; PAYLOAD_BYTES]);
    let writing = thread::spawn(move || (0..FRAMES).try_for_each(|_| writer.write_all(&masked)));
    eventually("the router's queue is filled", DEADLINE, || router.metric(QUEUED, &[]) > 0.0);
    let queued = router.metric(QUEUED, &[]);
    assert!(queued <= QUEUE_BYTES_MAX, "{queued} bytes are queued in the router");
    assert!(!writing.is_finished());
    gateway.process().signal(Stop::Thaw);
    let echo = frame(0x82, &[7; PAYLOAD_BYTES]);
    let mut received = vec![0; echo.len()];
    for number in 0..FRAMES {
        client.read_exact(&mut received).unwrap();
        assert!(received == echo, "echo {number}");
    }
    writing.join().unwrap().unwrap();
    other.write_all(&masked_frame(0x82, b"!")).unwrap();
    let mut received = [0; 3];
    other.read_exact(&mut received).unwrap();
    assert_eq!(received, *frame(0x82, b"!"));
    router.eventually_metric(QUEUED, &[], 0.0);
}

fn upgraded(router: &Router, path: &str) -> TcpStream {
    let mut socket = connect(router.public, SocketOptions::default()).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    socket
}
