//! Out of descriptors: refuse, count, keep serving, no spin.

use std::time::Duration;

use tidegate_testkit::net::SocketOptions;
use tidegate_testkit::{DEADLINE, Gateway, RawTcp, memory, observe};

/// Enough to start (two shards, Tokio, listeners) and little for clients.
const DESCRIPTORS_MAX: u32 = 200;

/// How long an exhausted gateway is watched, and how much CPU it may use meanwhile. A loop that retries `accept`
/// without end takes a whole core, so half of one tells them apart with a wide margin.
const WATCH: Duration = Duration::from_secs(2);
const CPU_SECONDS_MAX: f64 = 1.0;

/// Refused: reset, closed, or an answer that is not 101.
fn try_upgrade(gateway: &Gateway) -> Option<RawTcp> {
    let mut client = RawTcp::try_connect(gateway.public(), SocketOptions::default()).ok()?;
    client
        .try_send(
            b"GET /ws?channel=news HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        )
        .ok()?;
    let head = client.read_head(DEADLINE).ok()?;
    (head.status == 101).then_some(client)
}

#[test]
fn without_descriptors_it_refuses_counts_and_keeps_serving() {
    // The connection limit is lifted over the descriptors, so that accept itself fails.
    let gateway = Gateway::builder()
        .config("[limits]\nconnections = 100000\n")
        .descriptors_max(DESCRIPTORS_MAX)
        .start();
    let mut subscriber = gateway.subscribe("news");
    // Connections of these clients are kept alive, so they need no descriptor later.
    let (rest, internal) = (gateway.rest(), gateway.internal_rest());
    rest.publish("news", "before");
    assert_eq!(subscriber.expect_text(), "before");
    assert_eq!(internal.get("/metrics").status, 200);

    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..DESCRIPTORS_MAX * 2 {
        match try_upgrade(&gateway) {
            Some(client) => held.push(client),
            None => refused += 1,
        }
    }
    assert!(held.len() > 20, "{} clients got in", held.len());
    assert!(refused > 0, "{} clients got in under a limit of {DESCRIPTORS_MAX}", held.len());

    let refusals = |text: &str| {
        let line =
            text.lines().find(|line| line.starts_with("tidegate_handshakes_total{result=\"descriptors\"}"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    let scrape = internal.get("/metrics").text();
    assert!(refusals(&scrape) >= 1.0, "refusals are counted:\n{scrape}");

    let before = memory::cpu_seconds(gateway.pid());
    observe(WATCH);
    let used = memory::cpu_seconds(gateway.pid()) - before;
    assert!(used < CPU_SECONDS_MAX, "{used} s of CPU in {WATCH:?} with nothing to do");

    rest.publish("news", "during");
    assert_eq!(subscriber.expect_text(), "during");
    drop(held);
    tidegate_testkit::eventually("a new client gets in again", DEADLINE, || try_upgrade(&gateway).is_some());
    rest.publish("news", "after");
    assert_eq!(subscriber.expect_text(), "after");
}
