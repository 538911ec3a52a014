//! What the gateway counts: narrow groups of plain atomics, summed and rendered when somebody scrapes.
//!
//! [`Metrics`] is made once by the composition root. Each shard takes its own [`ShardMetrics`], so that two
//! shards never write to one cache line; the node and the HTTP side have one group each. Handles are fields:
//! nothing is looked up by name or label while the gateway works.

mod backplane;
mod exposition;
mod labels;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize},
    time::Duration,
};

pub(crate) use backplane::{MemoryCollector, RedisCollector};
pub(crate) use labels::{
    AuthFailure, Budgeted, CloseCode, DisconnectReason, DropReason, HandshakeResult, Heartbeat, Instructed,
    ProtocolError, PublishCode, SubscriptionRefusal,
};
pub(crate) use tidegate_ops::metrics::{
    Bounds, Collector, Counter, Counters, Gauge, Histogram, Listener, Resource,
};
use tidegate_ops::{
    metrics::{Load, openmetrics},
    tls::TlsHandshake,
};

/// Upper bounds in seconds. A connection knows the millisecond it was accepted in, so there is no bound below; a slow
/// handshake waits for the client, for keys or for history.
pub(crate) const HANDSHAKE_BOUNDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// From a page that is left at once to a client that stays for days.
pub(crate) const CONNECTION_BOUNDS: &[f64] =
    &[1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0, 604_800.0];
/// From the loopback to a sleeping phone.
pub(crate) const PING_BOUNDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// One send costs about 6 µs, so 15,000 subscribers take about 90 ms.
pub(crate) const FANOUT_BOUNDS: &[f64] =
    &[0.00001, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0];
/// Publish accepted to written; the alert stands at 0.5 s, so there is a bound at 0.5.
pub(crate) const DELIVERY_BOUNDS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// All of one process.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub node: NodeMetrics,
    pub http: HttpMetrics,
    shards: Mutex<Vec<Arc<ShardMetrics>>>,
    others: Mutex<Vec<Arc<dyn Collector>>>,
    bounds: Bounds,
    /// Shares of the time since the last scrape, and since the last report to those who watch: neither shortens what
    /// the other one measures.
    scraped: Mutex<Load>,
    watched: Mutex<Load>,
}

/// Who reads the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    Scrape,
    Console,
}

/// What one shard counts. Only that shard writes it.
#[derive(Debug)]
pub(crate) struct ShardMetrics {
    pub connections: Gauge,
    pub connections_opened: Counter,
    pub disconnects: Counters<DisconnectReason>,
    /// Close frames that the gateway sent.
    pub close_frames: Counters<CloseCode>,
    /// Frames that broke the protocol; each ended its connection.
    pub protocol_errors: Counters<ProtocolError>,
    pub handshakes: Counters<HandshakeResult>,
    pub handshake_seconds: Histogram,
    pub tls_handshakes: Counters<TlsHandshake>,
    pub connection_duration_seconds: Histogram,
    pub subscriptions: Gauge,
    /// Subscriptions that clients of Pusher Channels were refused; each was told.
    pub subscriptions_refused: Counters<SubscriptionRefusal>,
    pub messages_received: Counter,
    /// Times that a budget was spent.
    pub budgets_spent: Counters<Budgeted>,
    pub inflated_bytes: Counter,
    pub messages_sent: Counter,
    pub bytes_received: Counter,
    pub bytes_sent: Counter,
    pub messages_dropped: Counters<DropReason>,
    /// Clients that could not be told of a gap, and stay.
    pub gaps_untold: Counter,
    /// Bytes that wait in outbound queues now.
    pub send_queue_bytes: Gauge,
    pub heartbeats: Counters<Heartbeat>,
    /// Connections that a router asked to come back and that would miss something.
    pub moves_declined: Counter,
    pub ping_rtt_seconds: Histogram,
    /// From taking a batch of publications out of the mailbox to its last write.
    pub fanout_seconds: Histogram,
    /// From the moment this node has a publication to its write, one observation per delivery. With the memory
    /// backplane that moment is the publish; with Redis, the lag comes before it.
    pub delivery_latency_seconds: Histogram,
    /// Time the loop was not waiting, for saturation.
    pub busy_ns: Counter,
}

/// What the node counts beside its shards.
#[derive(Debug)]
pub(crate) struct NodeMetrics {
    pub connections_limit: Gauge,
    /// Channels with a subscriber here.
    pub channels: Gauge,
    pub channels_limit: Gauge,
    /// How full, in the last second, the fullest channel was of what it may have on its way out before its
    /// publishers wait, or the node of what all channels together may; in thousandths.
    pub send_queue_permille: Gauge,
    /// How much of `limits.recovery_bytes` was in use at the last look, in thousandths.
    pub recovery_permille: Gauge,
    /// The fullest of places for questions and queues of events.
    pub hooks_permille: Gauge,
    /// 1000 where there are hooks.
    pub hooks_bound: Gauge,
    /// What clients who left had sent and is not published yet: the number that its bound is kept with.
    pub left_behind_bytes: AtomicUsize,
    /// 1 while draining.
    pub draining: Gauge,
    /// Shards that have failed; the process drains and ends.
    pub shards_failed: Gauge,
    pub auth_failures: Counters<AuthFailure>,
    /// Publishes that went to this node's subscribers only.
    pub publishes_local: Counter,
    /// What came of what servers asked of connections.
    pub instructions: Counters<Instructed>,
    /// Handshakes that end at the door, before they are a connection of a shard.
    pub handshakes: Counters<HandshakeResult>,
    /// Connections taken over from routers of this machine.
    pub handovers: Counter,
}

/// What the HTTP side counts.
#[derive(Debug)]
pub(crate) struct HttpMetrics {
    pub publish_requests: Counters<PublishCode>,
}

impl Metrics {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            node: NodeMetrics {
                connections_limit: Gauge::default(),
                channels: Gauge::default(),
                channels_limit: Gauge::default(),
                send_queue_permille: Gauge::default(),
                recovery_permille: Gauge::default(),
                hooks_permille: Gauge::default(),
                hooks_bound: Gauge::default(),
                left_behind_bytes: AtomicUsize::new(0),
                draining: Gauge::default(),
                shards_failed: Gauge::default(),
                auth_failures: Counters::default(),
                publishes_local: Counter::default(),
                instructions: Counters::default(),
                handshakes: Counters::default(),
                handovers: Counter::default(),
            },
            http: HttpMetrics { publish_requests: Counters::default() },
            shards: Mutex::default(),
            others: Mutex::default(),
            bounds,
            scraped: Mutex::default(),
            watched: Mutex::default(),
        }
    }

    /// The group of one more shard; it is part of every later scrape.
    pub(crate) fn shard(&self) -> Arc<ShardMetrics> {
        let shard = Arc::new(ShardMetrics::default());
        lock(&self.shards).push(Arc::clone(&shard));
        shard
    }

    /// Adds families of another module. They come under the prefix `tidegate`.
    pub(crate) fn register(&self, collector: Arc<dyn Collector>) {
        lock(&self.others).push(collector);
    }

    /// All families in the OpenMetrics text format.
    pub(crate) fn openmetrics(self: &Arc<Self>, reader: Reader) -> String {
        let ours: Arc<dyn Collector> = Arc::new(exposition::GatewayCollector(Arc::clone(self), reader));
        openmetrics(std::iter::once(ours).chain(lock(&self.others).iter().cloned()))
    }

    /// All families in the Prometheus text format 0.0.4.
    #[cfg(test)]
    pub(crate) fn prometheus(self: &Arc<Self>) -> String {
        tidegate_ops::metrics::to_prometheus(&self.openmetrics(Reader::Scrape))
    }

    /// How much of each resource is in use, from 0 to 1; a resource that cannot be read is left out.
    pub(crate) fn saturation(&self, reader: Reader) -> Vec<(Resource, f64)> {
        let shards = lock(&self.shards);
        let busy: Vec<Duration> =
            shards.iter().map(|shard| Duration::from_nanos(shard.busy_ns.get())).collect();
        let connections = shards.iter().map(|shard| shard.connections.get()).sum();
        drop(shards);
        let node = &self.node;
        let known = [
            (Resource::SendQueue, node.send_queue_permille.get(), 1000),
            (Resource::Recovery, node.recovery_permille.get(), 1000),
            (Resource::Connections, connections, node.connections_limit.get()),
            (Resource::Channels, node.channels.get(), node.channels_limit.get()),
            (Resource::Hooks, node.hooks_permille.get(), node.hooks_bound.get()),
        ];
        let known: Vec<_> = known
            .into_iter()
            .filter(|(.., bound)| *bound > 0)
            .map(|(resource, used, bound)| (resource, used as f64 / bound as f64))
            .collect();
        let load = match reader {
            Reader::Scrape => &self.scraped,
            Reader::Console => &self.watched,
        };
        lock(load).read(&busy, &known, &self.bounds)
    }
}

impl Default for ShardMetrics {
    fn default() -> Self {
        Self {
            connections: Gauge::default(),
            connections_opened: Counter::default(),
            disconnects: Counters::default(),
            close_frames: Counters::default(),
            protocol_errors: Counters::default(),
            handshakes: Counters::default(),
            handshake_seconds: Histogram::new(HANDSHAKE_BOUNDS),
            tls_handshakes: Counters::default(),
            connection_duration_seconds: Histogram::new(CONNECTION_BOUNDS),
            subscriptions: Gauge::default(),
            subscriptions_refused: Counters::default(),
            messages_received: Counter::default(),
            budgets_spent: Counters::default(),
            inflated_bytes: Counter::default(),
            messages_sent: Counter::default(),
            bytes_received: Counter::default(),
            bytes_sent: Counter::default(),
            messages_dropped: Counters::default(),
            gaps_untold: Counter::default(),
            send_queue_bytes: Gauge::default(),
            heartbeats: Counters::default(),
            moves_declined: Counter::default(),
            ping_rtt_seconds: Histogram::new(PING_BOUNDS),
            fanout_seconds: Histogram::new(FANOUT_BOUNDS),
            delivery_latency_seconds: Histogram::new(DELIVERY_BOUNDS),
            busy_ns: Counter::default(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
