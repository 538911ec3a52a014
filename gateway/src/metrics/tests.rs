//! The exposition as a scraper reads it.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use tidegate_ops::metrics::{DescriptorEncoder, Page};

use super::*;

fn metrics() -> Arc<Metrics> {
    let metrics = Arc::new(Metrics::new(Bounds { listener: None }));
    for _ in 0..2 {
        let shard = metrics.shard();
        shard.connections.add(3);
        shard.connections_opened.add(5);
        shard.disconnects.add(DisconnectReason::SlowReader, 2);
        shard.close_frames.add(CloseCode::of(1009), 1);
        for code in [4010, 4401, 4403, 4999] {
            shard.close_frames.add(CloseCode::of(code), 1);
        }
        shard.send_queue_bytes.add(125);
        shard.handshakes.add(HandshakeResult::Accepted, 5);
        shard.delivery_latency_seconds.observe_many(Duration::from_millis(1), 10);
        shard.delivery_latency_seconds.observe(Duration::from_secs(60));
    }
    metrics.node.send_queue_permille.set(250);
    metrics.node.recovery_permille.set(500);
    metrics.node.connections_limit.set(20);
    metrics.node.channels.set(3);
    metrics.node.channels_limit.set(4);
    metrics.node.handshakes.add(HandshakeResult::Draining, 1);
    metrics.node.auth_failures.add(AuthFailure::KeyUnknown, 4);
    metrics.http.publish_requests.add(PublishCode::of(200), 7);
    metrics.http.publish_requests.add(PublishCode::of(418), 1);
    metrics
}

/// Samples by name and labels.
fn samples(text: &str) -> HashMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name, value.parse().unwrap()))
        .collect()
}

#[test]
fn shards_are_summed() {
    let text = metrics().openmetrics(Reader::Scrape);
    let samples = samples(&text);
    for (name, value) in [
        ("tidegate_connections", 6.0),
        ("tidegate_connections_opened_total", 10.0),
        (r#"tidegate_disconnects_total{reason="slow_reader"}"#, 4.0),
        (r#"tidegate_disconnects_total{reason="drain"}"#, 0.0),
        (r#"tidegate_close_frames_total{code="1009"}"#, 2.0),
        (r#"tidegate_close_frames_total{code="4010"}"#, 2.0),
        (r#"tidegate_close_frames_total{code="4401"}"#, 2.0),
        (r#"tidegate_close_frames_total{code="4403"}"#, 2.0),
        (r#"tidegate_close_frames_total{code="other"}"#, 2.0),
        (r#"tidegate_handshakes_total{result="accepted"}"#, 10.0),
        (r#"tidegate_handshakes_total{result="draining"}"#, 1.0),
        (r#"tidegate_auth_failures_total{reason="key_unknown"}"#, 4.0),
        (r#"tidegate_publish_requests_total{code="200"}"#, 7.0),
        (r#"tidegate_publish_requests_total{code="other"}"#, 1.0),
        (r#"tidegate_delivery_latency_seconds_bucket{le="0.0005"}"#, 0.0),
        (r#"tidegate_delivery_latency_seconds_bucket{le="0.001"}"#, 20.0),
        (r#"tidegate_delivery_latency_seconds_bucket{le="5.0"}"#, 20.0),
        (r#"tidegate_delivery_latency_seconds_bucket{le="+Inf"}"#, 22.0),
        ("tidegate_delivery_latency_seconds_count", 22.0),
        ("tidegate_delivery_latency_seconds_sum", 120.02),
        (r#"tidegate_saturation{resource="send_queue"}"#, 0.25),
        (r#"tidegate_saturation{resource="recovery"}"#, 0.5),
        (r#"tidegate_saturation{resource="connections"}"#, 0.3),
        (r#"tidegate_saturation{resource="channels"}"#, 0.75),
    ] {
        assert_eq!(samples.get(name), Some(&value), "{name}");
    }
}

#[test]
fn every_family_is_there_and_described() {
    let text = metrics().prometheus();
    let gateway = "connections connections_limit connections_opened_total disconnects_total close_frames_total protocol_errors_total \
                   handshakes_total handshake_seconds connection_duration_seconds subscriptions channels left_behind_bytes \
                   messages_received_total messages_sent_total bytes_received_total bytes_sent_total \
                   messages_dropped_total gaps_untold_total send_queue_bytes ping_rtt_seconds draining fanout_seconds \
                   delivery_latency_seconds publish_requests_total publishes_local_total auth_failures_total saturation build_info";
    for family in gateway.split_ascii_whitespace() {
        assert!(text.contains(&format!("# HELP tidegate_{family} ")), "{family}");
        assert!(text.contains(&format!("# TYPE tidegate_{family} ")), "{family}");
        assert!(text.contains(&format!("\ntidegate_{family}")), "{family} has no sample");
    }
    assert!(!text.contains("# UNIT") && !text.contains("# EOF") && !text.contains(" info\n"), "{text}");
}

#[cfg(target_os = "linux")]
#[test]
fn the_process_and_its_saturation_are_read_on_linux() {
    let metrics = metrics();
    let text = metrics.prometheus();
    let samples = samples(&text);
    for name in [
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_start_time_seconds",
        r#"tidegate_saturation{resource="descriptors"}"#,
        r#"tidegate_saturation{resource="memory"}"#,
    ] {
        assert!(samples.get(name).is_some_and(|value| *value > 0.0), "{name}: {text}");
    }
    assert!(samples.contains_key("process_cpu_seconds_total"));
    assert!(metrics.saturation(Reader::Scrape).iter().all(|(_, share)| (0.0..=1.0).contains(share)));
}

#[test]
fn another_module_adds_its_families() {
    #[derive(Debug)]
    struct Lag;
    impl Collector for Lag {
        fn encode(&self, encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
            Page::new(encoder).gauge("backplane_lag_seconds", "Lag.", 0.5)
        }
    }
    let metrics = metrics();
    metrics.register(Arc::new(Lag));
    assert_eq!(samples(&metrics.prometheus())["tidegate_backplane_lag_seconds"], 0.5);
}
