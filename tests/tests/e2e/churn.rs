//! A hundred thousand short connections: what they took comes back.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tidegate_testkit::net::{SocketOptions, connect, source_address};
use tidegate_testkit::{DEADLINE, Gateway, eventually, masked_frame, memory};

const CONNECTIONS: usize = 100_000;

/// Clients at work at the same time; two cores are busy with fewer.
const WORKERS: usize = 8;

/// Held open together by the first wave, so that the high-water mark is one worth coming back from.
const WAVE: usize = 5_000;

/// Source addresses: a proper close leaves a port in TIME_WAIT for 60 s, and one address has about 28,000 ports.
const SOURCES: usize = 40;

/// What may stay: allocator caches and tables that grew, in all 8 MiB. That is 83 bytes per connection, less than
/// the smallest thing worth leaking: a slab entry, a channel's name with its table entry, a socket's buffer.
const GROWTH_BYTES_MAX: u64 = 8 * 1024 * 1024;

#[test]
fn a_hundred_thousand_short_connections_leave_nothing_behind() {
    // What the kernel may hold in the accept queue is refused by nobody; the default rate limit is off in --dev.
    let gateway = Gateway::start();
    let pid = gateway.pid();
    wave(&gateway);
    gateway.eventually_connections(0);
    // The start is measured after one wave: threads have their stacks and tables their size.
    let descriptors = memory::descriptors(pid);
    let start = memory::pss_bytes(pid);

    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let index @ 0..CONNECTIONS = next.fetch_add(1, Ordering::Relaxed) {
                    short_connection(&gateway, index);
                }
            });
        }
    });

    gateway.eventually_connections(0);
    gateway.eventually_metric("tidegate_connections_opened_total", &[], |opened| {
        opened >= (CONNECTIONS + WAVE) as f64
    });
    gateway.eventually_metric("tidegate_subscriptions", &[], |held| held == 0.0);
    gateway.eventually_metric("tidegate_channels", &[], |held| held <= 50.0);
    eventually("descriptors come back", DEADLINE, || memory::descriptors(pid) <= descriptors + 8);
    eventually(&format!("memory comes back to {start} bytes"), DEADLINE, || {
        memory::pss_bytes(pid) <= start + GROWTH_BYTES_MAX
    });
}

/// Opens many at once, subscribed each to its own channel, and lets all go.
fn wave(gateway: &Gateway) {
    let held: Vec<TcpStream> = (0..WAVE).map(|index| open(gateway, index, true)).collect();
    gateway.eventually_connections(WAVE);
    drop(held);
}

/// Connects, upgrades, and ends in one of the ways that clients end.
fn short_connection(gateway: &Gateway, index: usize) {
    let reset = !index.is_multiple_of(4);
    let mut stream = open(gateway, index, reset);
    if !reset {
        stream.write_all(&masked_frame(0x88, &1000u16.to_be_bytes())).expect("the server reads");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("the server answers the close and ends the stream");
        assert_eq!(rest, [0x88, 2, 0x03, 0xE8], "an echo of code 1000 and nothing else");
    }
}

/// A connection whose upgrade was answered with 101.
fn open(gateway: &Gateway, index: usize, reset_on_close: bool) -> TcpStream {
    let source = Some(source_address(index % SOURCES));
    let mut stream =
        connect(gateway.public(), SocketOptions { source, reset_on_close, receive_buffer_bytes: None })
            .expect("the gateway accepts");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a positive time-out");
    let request = format!(
        "GET /ws?channel=churn-{} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        index % 1000
    );
    stream.write_all(request.as_bytes()).expect("the gateway reads");
    let mut head = Vec::new();
    let mut byte = [0; 512];
    while !head.ends_with(b"\r\n\r\n") {
        let count = stream.read(&mut byte).expect("the gateway answers");
        assert!(count > 0, "closed before the 101: {}", String::from_utf8_lossy(&head));
        head.extend_from_slice(&byte[..count]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream
}
