//! A reader that stops: bounded in bytes, treated by its namespace's policy, told, counted; others unaffected.

use tidegate_testkit::net::SocketOptions;
use tidegate_testkit::{Closed, DEADLINE, Gateway, Received, WsClient};

/// 64 KiB, so that a few payloads fill it; the namespaces have one policy each.
const CONFIG: &str = "
[limits]
send_queue_bytes = \"64KiB\"
[namespaces.cut]
slow_reader = \"disconnect\"
[namespaces.lossy]
slow_reader = \"drop\"
[namespaces.live]
slow_reader = \"latest\"
";

const QUEUE_BYTES_MAX: f64 = 65_536.0;
const PAYLOAD_BYTES: usize = 8 * 1024;

/// Enough for any kernel buffer: 16,000 payloads are 128 MiB, far over `tcp_wmem`'s usual 4 MiB maximum.
const PUBLISHES_MAX: usize = 16_000;

/// A payload that begins with its number.
fn payload(number: usize) -> String {
    format!("{number:08}{}", "x".repeat(PAYLOAD_BYTES - 8))
}

struct Scene {
    gateway: Gateway,
    channel: String,
    stuck: WsClient,
    healthy: Vec<WsClient>,
    published: usize,
}

impl Scene {
    fn new(channel: &str, query: &str) -> Self {
        let gateway = Gateway::builder().config(CONFIG).start();
        // A small window, so that the sender feels soon that nobody reads.
        let options = SocketOptions { receive_buffer_bytes: Some(4096), ..SocketOptions::default() };
        let path = format!("/ws?channel={channel}{query}");
        let stuck = WsClient::try_connect_from(gateway.public(), &path, &[], options).expect("accepted");
        let healthy = (0..3).map(|_| gateway.subscribe(channel)).collect();
        Self { gateway, channel: channel.to_owned(), stuck, healthy, published: 0 }
    }

    /// Publishes until `metric` shows it, while every healthy reader gets each message before the next is sent and
    /// the stuck one's queue stays under its bound.
    fn publish_until(&mut self, metric: &str, reason: &str) {
        let rest = self.gateway.rest();
        while self.published < PUBLISHES_MAX {
            let payload = payload(self.published);
            rest.publish(&self.channel, &payload);
            self.published += 1;
            for reader in &mut self.healthy {
                assert_eq!(reader.expect_text(), payload);
            }
            if !self.published.is_multiple_of(16) {
                continue;
            }
            let metrics = self.gateway.metrics();
            let queued = metrics.sum("tidegate_send_queue_bytes", &[]);
            // One frame may be queued whole on top of what was there.
            let bound = QUEUE_BYTES_MAX + (PAYLOAD_BYTES + 10) as f64;
            assert!(queued <= bound, "{queued} bytes are queued for one stuck reader");
            if metrics.sum(metric, &[("reason", reason)]) >= 1.0 {
                return;
            }
        }
        panic!(
            "{} publications of {PAYLOAD_BYTES} bytes, and no {metric}{{reason={reason}}}",
            self.published
        );
    }

    /// One more message to everyone who still listens.
    fn publish_last(&mut self) -> String {
        let last = format!("last after {}", self.published);
        self.gateway.rest().publish(&self.channel, &last);
        for reader in &mut self.healthy {
            assert_eq!(reader.expect_text(), last);
        }
        last
    }
}

#[test]
fn disconnect_closes_the_stuck_reader_alone() {
    let mut scene = Scene::new("cut:a", "");
    scene.publish_until("tidegate_disconnects_total", "slow_reader");
    assert_eq!(scene.gateway.metric("tidegate_disconnects_total", &[("reason", "slow_reader")]), 1.0);
    scene.gateway.eventually_connections(3);
    scene.publish_last();
    let (received, closed) = scene.stuck.read_to_close(DEADLINE);
    assert!(received < scene.published, "it cannot have got what was not sent");
    // A close frame cannot overtake what fills the socket, so an abrupt end is right as well.
    assert!(matches!(closed, Closed::Abrupt | Closed::Frame { .. }));
    scene.gateway.eventually_metric("tidegate_send_queue_bytes", &[], |bytes| bytes == 0.0);
}

#[test]
fn drop_leaves_messages_out_and_says_so() {
    let mut scene = Scene::new("lossy:a", "&envelope=json");
    scene.publish_until("tidegate_messages_dropped_total", "queue_full");
    let mut dropped = 0;
    let mut seen = 0;
    // It reads again: what was queued, the notice, and (published now and then, since the notice may wait for the
    // next message) what is new.
    loop {
        match scene.stuck.next(std::time::Duration::from_millis(500)) {
            Received::Text(text) => {
                let message: serde_json::Value = serde_json::from_str(&text).unwrap();
                dropped += message["dropped"].as_u64().unwrap_or(0) as usize;
                seen += usize::from(message.get("data").is_some());
                if message["data"].as_str().is_some_and(|data| data.starts_with("last")) && dropped > 0 {
                    break;
                }
            }
            Received::Nothing => {
                scene.publish_last();
                scene.published += 1;
            }
            Received::Ping(_) | Received::Pong(_) => {}
            other => panic!("the policy is to drop, not to close: {other:?}"),
        }
        assert!(seen + dropped <= scene.published);
    }
    assert_eq!(seen + dropped, scene.published, "what is not delivered is told");
    let counted = scene.gateway.metric("tidegate_messages_dropped_total", &[("reason", "queue_full")]);
    assert_eq!(counted, dropped as f64);
}

#[test]
fn latest_keeps_the_newest() {
    let mut scene = Scene::new("live:a", "");
    scene.publish_until("tidegate_messages_dropped_total", "superseded");
    let last = scene.publish_last();
    // It reads again: old messages from the kernel's buffers, then, in order and with holes, up to the newest.
    let mut texts = Vec::new();
    while texts.last() != Some(&last) {
        texts.push(scene.stuck.expect_text());
    }
    assert!(texts.len() < scene.published);
    let numbers: Vec<&str> = texts.iter().filter(|text| **text != last).map(|text| &text[..8]).collect();
    assert!(numbers.is_sorted(), "order is kept: {numbers:?}");
    scene.gateway.eventually_connections(4);
}

#[test]
fn a_frozen_event_stream_is_bounded_too() {
    let gateway = Gateway::builder().config(CONFIG).start();
    let options = SocketOptions { receive_buffer_bytes: Some(4096), ..SocketOptions::default() };
    let mut stuck = tidegate_testkit::RawTcp::try_connect(gateway.public(), options).expect("accepted");
    stuck.send(b"GET /sse?channel=cut:a HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(stuck.read_head(DEADLINE).expect("an answer").status, 200);
    let mut healthy = gateway.subscribe("cut:a");
    let rest = gateway.rest();
    for number in 0..PUBLISHES_MAX {
        rest.publish("cut:a", &payload(number));
        assert_eq!(healthy.expect_text(), payload(number));
        if number % 16 == 0
            && gateway.metric("tidegate_disconnects_total", &[("reason", "slow_reader")]) == 1.0
        {
            return;
        }
    }
    panic!("an event stream that nobody reads was never cut");
}
