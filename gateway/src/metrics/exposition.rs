//! The families of a gateway.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use tidegate_ops::metrics::{Collector, DescriptorEncoder, Page};

use super::{
    CONNECTION_BOUNDS, Counter, DELIVERY_BOUNDS, FANOUT_BOUNDS, Gauge, HANDSHAKE_BOUNDS, Metrics,
    PING_BOUNDS, Reader, ShardMetrics, lock,
};

/// The families under `tidegate_`.
#[derive(Debug)]
pub(super) struct GatewayCollector(pub(super) Arc<Metrics>, pub(super) Reader);

impl Collector for GatewayCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let metrics = &*self.0;
        let shards = lock(&metrics.shards).clone();
        let mut page = Page::new(encoder);
        connections(&mut page, metrics, &shards)?;
        messages(&mut page, &shards)?;
        node(&mut page, metrics, self.1)
    }
}

fn connections(page: &mut Page<'_>, metrics: &Metrics, shards: &[Arc<ShardMetrics>]) -> fmt::Result {
    let node = &metrics.node;
    page.gauge("connections", "Connections now.", gauges(shards, |shard| &shard.connections))?;
    page.gauge("connections_limit", "Connections the node takes.", node.connections_limit.get() as f64)?;
    let opened = counters(shards, |shard| &shard.connections_opened);
    page.counter("connections_opened", "Connections that finished their handshake.", opened)?;
    let ended = shards.iter().map(|shard| &shard.disconnects);
    page.counters("disconnects", "Connections that ended, by reason.", ended)?;
    page.counter(
        "moves_declined",
        "Connections that a router asked to come back and that stay, as they would miss something.",
        counters(shards, |shard| &shard.moves_declined),
    )?;
    let closes = shards.iter().map(|shard| &shard.close_frames);
    page.counters("close_frames", "Close frames sent, by code.", closes)?;
    let errors = shards.iter().map(|shard| &shard.protocol_errors);
    page.counters("protocol_errors", "WebSocket frames that broke the protocol, by error.", errors)?;
    let handshakes = shards.iter().map(|shard| &shard.handshakes).chain([&node.handshakes]);
    page.counters("handshakes", "Handshakes that ended, by result.", handshakes)?;
    page.counter("handovers", "Connections taken over from routers of this machine.", node.handovers.get())?;
    let seconds = shards.iter().map(|shard| &shard.handshake_seconds);
    page.histogram(
        "handshake_seconds",
        "From accepting the connection to the answer, TLS included.",
        seconds,
        HANDSHAKE_BOUNDS,
    )?;
    let tls = shards.iter().map(|shard| &shard.tls_handshakes);
    page.counters("tls_handshakes", "TLS sessions that began or broke off, by result.", tls)?;
    let durations = shards.iter().map(|shard| &shard.connection_duration_seconds);
    page.histogram(
        "connection_duration_seconds",
        "Age of connections at their end.",
        durations,
        CONNECTION_BOUNDS,
    )?;
    let heartbeats = shards.iter().map(|shard| &shard.heartbeats);
    page.counters("heartbeats", "Heartbeats that were due, by outcome.", heartbeats)?;
    let pings = shards.iter().map(|shard| &shard.ping_rtt_seconds);
    page.histogram("ping_rtt_seconds", "From a ping to its pong.", pings, PING_BOUNDS)
}

fn messages(page: &mut Page<'_>, shards: &[Arc<ShardMetrics>]) -> fmt::Result {
    page.gauge("subscriptions", "Subscriptions now.", gauges(shards, |shard| &shard.subscriptions))?;
    let refused = shards.iter().map(|shard| &shard.subscriptions_refused);
    page.counters(
        "subscriptions_refused",
        "Subscriptions refused to clients of Pusher, by reason.",
        refused,
    )?;
    let sums = [
        ("messages_received", "Messages from clients.", counters(shards, |shard| &shard.messages_received)),
        (
            "messages_sent",
            "Messages written or queued for clients.",
            counters(shards, |shard| &shard.messages_sent),
        ),
        (
            "inflated_bytes",
            "Bytes that compressed messages of clients inflated to.",
            counters(shards, |shard| &shard.inflated_bytes),
        ),
        (
            "gaps_untold",
            "Clients that could not be told of a gap, and stayed.",
            counters(shards, |shard| &shard.gaps_untold),
        ),
        ("bytes_received", "Bytes from clients.", counters(shards, |shard| &shard.bytes_received)),
        ("bytes_sent", "Bytes written to clients.", counters(shards, |shard| &shard.bytes_sent)),
    ];
    for (name, help, value) in sums {
        page.counter(name, help, value)?;
    }
    let dropped = shards.iter().map(|shard| &shard.messages_dropped);
    page.counters("messages_dropped", "Messages that were not delivered, by reason.", dropped)?;
    let spent = shards.iter().map(|shard| &shard.budgets_spent);
    page.counters(
        "budgets_spent",
        "Times that a connection, or the node, had spent a budget, by budget.",
        spent,
    )?;
    let queued = gauges(shards, |shard| &shard.send_queue_bytes);
    page.gauge("send_queue_bytes", "Bytes that wait for a socket.", queued)?;
    let fanouts = shards.iter().map(|shard| &shard.fanout_seconds);
    page.histogram(
        "fanout_seconds",
        "From taking publications to their last write.",
        fanouts,
        FANOUT_BOUNDS,
    )?;
    let latencies = shards.iter().map(|shard| &shard.delivery_latency_seconds);
    page.histogram(
        "delivery_latency_seconds",
        "From this node having a publication to its write, per delivery.",
        latencies,
        DELIVERY_BOUNDS,
    )
}

fn node(page: &mut Page<'_>, metrics: &Metrics, reader: Reader) -> fmt::Result {
    let node = &metrics.node;
    page.gauge("channels", "Channels with a subscriber on this node.", node.channels.get() as f64)?;
    page.gauge(
        "left_behind_bytes",
        "Bytes that clients who left had sent and that are not published yet.",
        node.left_behind_bytes.load(Ordering::Relaxed) as f64,
    )?;
    page.gauge("draining", "1 while the process drains.", node.draining.get() as f64)?;
    page.gauge(
        "shards_failed",
        "Shards that have failed; the process drains and ends.",
        node.shards_failed.get() as f64,
    )?;
    let publishes = &metrics.http.publish_requests;
    page.counters("publish_requests", "Publish requests over REST, by status.", [publishes])?;
    let local = "Publishes that went to this node's subscribers only, because the backplane was away.";
    page.counter("publishes_local", local, node.publishes_local.get())?;
    let what = "What came of what servers asked of connections, by result.";
    page.counters("instructions", what, [&node.instructions])?;
    let failures = &node.auth_failures;
    page.counters("auth_failures", "Who was not let in, by reason.", [failures])?;
    page.saturation(&metrics.saturation(reader))?;
    page.build()
}

fn gauges(shards: &[Arc<ShardMetrics>], of: impl Fn(&ShardMetrics) -> &Gauge) -> f64 {
    shards.iter().map(|shard| of(shard).get()).sum::<i64>() as f64
}

fn counters(shards: &[Arc<ShardMetrics>], of: impl Fn(&ShardMetrics) -> &Counter) -> u64 {
    shards.iter().map(|shard| of(shard).get()).sum()
}
