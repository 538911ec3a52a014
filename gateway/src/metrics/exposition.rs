//! Renders the groups: OpenMetrics text by prometheus-client, and from that the older Prometheus text.

use std::{
    fmt::{self, Write},
    sync::Arc,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::{
    CONNECTION_BOUNDS, Counter, Counters, DELIVERY_BOUNDS, FANOUT_BOUNDS, Gauge, HANDSHAKE_BOUNDS, Histogram,
    Label, Metrics, PING_BOUNDS, ShardMetrics, lock, process::Process,
};

/// Everything as OpenMetrics text, the end mark included.
pub(super) fn encode(metrics: &Arc<Metrics>, text: &mut String) -> fmt::Result {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ProcessCollector));
    let ours = registry.sub_registry_with_prefix("tidegate");
    ours.register_collector(Box::new(GatewayCollector(Arc::clone(metrics))));
    for other in lock(&metrics.others).iter() {
        ours.register_collector(Box::new(OtherCollector(Arc::clone(other))));
    }
    text::encode(text, &registry)
}

/// Turns OpenMetrics text into the Prometheus format 0.0.4, which knows no `info`, no units and no end mark, and
/// wants a counter described under the name its samples have.
pub(super) fn to_prometheus(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len() + 1024);
    let mut help = "";
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            for text in ["# HELP ", name, suffix, " ", help, "\n# TYPE ", name, suffix, " ", kind, "\n"] {
                out.push_str(text);
            }
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// The families under `tidegate_`.
#[derive(Debug)]
struct GatewayCollector(Arc<Metrics>);

/// The families of the process, under the names every Prometheus client library uses.
#[derive(Debug)]
struct ProcessCollector;

/// Families of another module.
#[derive(Debug)]
struct OtherCollector(Arc<dyn Collector>);

/// One label and its value.
#[derive(Debug)]
struct Labelled<L>(L);

impl<L: Label> EncodeLabelSet for Labelled<L> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let mut label = encoder.encode_label();
        let mut key = label.encode_label_key()?;
        key.write_str(L::NAME)?;
        let mut value = key.encode_label_value()?;
        value.write_str(self.0.value())?;
        value.finish()
    }
}

impl Collector for GatewayCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let metrics = &*self.0;
        let shards = lock(&metrics.shards).clone();
        let mut page = Page { encoder };
        connections(&mut page, metrics, &shards)?;
        messages(&mut page, &shards)?;
        node(&mut page, metrics)
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let process = Process::read();
        let mut page = Page { encoder };
        if let Some(seconds) = process.cpu_seconds {
            page.counter_seconds("process_cpu", "User and system CPU time spent.", seconds)?;
        }
        let gauges = [
            (
                "process_resident_memory_bytes",
                "Resident memory.",
                process.resident_bytes.map(|bytes| bytes as f64),
            ),
            (
                "process_virtual_memory_bytes",
                "Virtual memory.",
                process.virtual_bytes.map(|bytes| bytes as f64),
            ),
            ("process_open_fds", "Open descriptors.", process.descriptors_open.map(|number| number as f64)),
            ("process_max_fds", "Descriptors allowed.", process.descriptors_max.map(|number| number as f64)),
            ("process_start_time_seconds", "Start, in seconds since 1970.", process.start_time_s),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                page.gauge(name, help, value)?;
            }
        }
        Ok(())
    }
}

impl Collector for OtherCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
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
    let closes = shards.iter().map(|shard| &shard.close_frames);
    page.counters("close_frames", "Close frames sent, by code.", closes)?;
    let errors = shards.iter().map(|shard| &shard.protocol_errors);
    page.counters("protocol_errors", "WebSocket frames that broke the protocol, by error.", errors)?;
    let handshakes = shards.iter().map(|shard| &shard.handshakes).chain([&node.handshakes]);
    page.counters("handshakes", "Handshakes that ended, by result.", handshakes)?;
    let seconds = shards.iter().map(|shard| &shard.handshake_seconds);
    page.histogram(
        "handshake_seconds",
        "From the first byte of the head to the answer.",
        seconds,
        HANDSHAKE_BOUNDS,
    )?;
    let durations = shards.iter().map(|shard| &shard.connection_duration_seconds);
    page.histogram(
        "connection_duration_seconds",
        "Age of connections at their end.",
        durations,
        CONNECTION_BOUNDS,
    )?;
    let pings = shards.iter().map(|shard| &shard.ping_rtt_seconds);
    page.histogram("ping_rtt_seconds", "From a ping to its pong.", pings, PING_BOUNDS)
}

fn messages(page: &mut Page<'_>, shards: &[Arc<ShardMetrics>]) -> fmt::Result {
    page.gauge("subscriptions", "Subscriptions now.", gauges(shards, |shard| &shard.subscriptions))?;
    let sums = [
        ("messages_received", "Messages from clients.", counters(shards, |shard| &shard.messages_received)),
        (
            "messages_sent",
            "Messages written or queued for clients.",
            counters(shards, |shard| &shard.messages_sent),
        ),
        ("bytes_received", "Bytes from clients.", counters(shards, |shard| &shard.bytes_received)),
        ("bytes_sent", "Bytes written to clients.", counters(shards, |shard| &shard.bytes_sent)),
    ];
    for (name, help, value) in sums {
        page.counter(name, help, value)?;
    }
    let dropped = shards.iter().map(|shard| &shard.messages_dropped);
    page.counters("messages_dropped", "Messages that were not delivered, by reason.", dropped)?;
    let queued = gauges(shards, |shard| &shard.send_queue_bytes);
    page.gauge("send_queue_bytes", "Bytes that wait in outbound queues.", queued)?;
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
        "From publish accepted to written.",
        latencies,
        DELIVERY_BOUNDS,
    )
}

fn node(page: &mut Page<'_>, metrics: &Metrics) -> fmt::Result {
    let node = &metrics.node;
    page.gauge("channels", "Channels with a subscriber on this node.", node.channels.get() as f64)?;
    page.gauge("draining", "1 while the node drains.", node.draining.get() as f64)?;
    let publishes = &metrics.http.publish_requests;
    page.counters("publish_requests", "Publish requests over REST, by status.", [publishes])?;
    let failures = &node.auth_failures;
    page.counters("auth_failures", "Who was not let in, by reason.", [failures])?;
    page.saturation(metrics)?;
    page.build()
}

fn gauges(shards: &[Arc<ShardMetrics>], of: impl Fn(&ShardMetrics) -> &Gauge) -> f64 {
    shards.iter().map(|shard| of(shard).get()).sum::<i64>() as f64
}

fn counters(shards: &[Arc<ShardMetrics>], of: impl Fn(&ShardMetrics) -> &Counter) -> u64 {
    shards.iter().map(|shard| of(shard).get()).sum()
}

/// Writes families one below the other.
struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Page<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn counter_seconds(&mut self, name: &str, help: &str, seconds: f64) -> fmt::Result {
        let mut metric =
            self.encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, f64>(&seconds, None)
    }

    /// Every value of the label, also those that are 0: a series that appears with its first event has no rate.
    fn counters<'c, L: Label>(
        &mut self,
        name: &str,
        help: &str,
        groups: impl IntoIterator<Item = &'c Counters<L>>,
    ) -> fmt::Result {
        let mut totals = vec![0u64; L::ALL.len()];
        for group in groups {
            for label in L::ALL {
                totals[label.index()] += group.get(*label);
            }
        }
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for label in L::ALL {
            let set = Labelled(*label);
            family.encode_family(&set)?.encode_counter::<NoLabelSet, _, u64>(&totals[label.index()], None)?;
        }
        Ok(())
    }

    fn histogram<'h>(
        &mut self,
        name: &str,
        help: &str,
        group: impl Iterator<Item = &'h Histogram>,
        bounds: &'static [f64],
    ) -> fmt::Result {
        let total = Histogram::total(group, bounds);
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(total.sum_s, total.count, &total.buckets, None)
    }

    fn saturation(&mut self, metrics: &Metrics) -> fmt::Result {
        let help = "Share of a resource that is in use; 1 is the ceiling.";
        let mut family = self.encoder.encode_descriptor("saturation", help, None, MetricType::Gauge)?;
        for (resource, share) in metrics.saturation() {
            family.encode_family(&Labelled(resource))?.encode_gauge(&share)?;
        }
        Ok(())
    }

    fn build(&mut self) -> fmt::Result {
        let labels = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("os", std::env::consts::OS),
            ("arch", std::env::consts::ARCH),
        ];
        let help = "What is running; the value is always 1.";
        self.encoder.encode_descriptor("build", help, None, MetricType::Info)?.encode_info(&labels)
    }
}
