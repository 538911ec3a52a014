//! The cluster's arithmetic: nodes that report, begin anew, say nothing, drain and are lost.

#![allow(clippy::unwrap_used)]

use tidegate_backplane::{NodeRecord, REPORT_BYTES_MAX};

use super::{
    cluster::Cluster,
    report::{ChannelState, Report},
    view::{NodeState, State, View},
};

fn record(name: &str, connections: u64) -> NodeRecord {
    NodeRecord {
        name: name.into(),
        address: "127.0.0.1:8000".into(),
        zone: None,
        version: "1.2.3".into(),
        connections,
        capacity: 1000,
        draining: false,
        handover: None,
    }
}

fn report(uptime_ms: u64, metrics: &[(&str, f64)]) -> Report {
    let metrics = metrics.iter().map(|(series, value)| ((*series).to_owned(), *value)).collect();
    Report { uptime_ms, metrics, ..Report::default() }
}

fn sent(uptime_ms: u64, messages: f64) -> Report {
    report(uptime_ms, &[("messages_sent_total", messages), ("saturation{resource=\"cpu\"}", 0.25)])
}

fn take(cluster: &mut Cluster, now_ms: u64, nodes: Vec<(&str, Option<Report>)>) -> View {
    let nodes = nodes.into_iter().map(|(name, report)| (record(name, 10), report)).collect();
    cluster.take(now_ms, "g1", nodes)
}

#[test]
fn rates_are_of_each_nodes_own_clock_and_summed() {
    let mut cluster = Cluster::default();
    take(&mut cluster, 0, vec![("g1", Some(sent(1000, 100.0))), ("g2", Some(sent(9000, 7.0)))]);
    // The second report of g1 comes 2 s after its first, that of g2 half a second after.
    let view =
        take(&mut cluster, 1000, vec![("g1", Some(sent(3000, 300.0))), ("g2", Some(sent(9500, 57.0)))]);
    assert_eq!(view.sample.deliveries, 100.0 + 100.0);
    assert_eq!((view.totals.connections, view.totals.capacity, view.totals.ready), (20, 2000, 2));
    // The same report once more changes nothing.
    let view =
        take(&mut cluster, 2000, vec![("g1", Some(sent(3000, 300.0))), ("g2", Some(sent(9500, 57.0)))]);
    assert_eq!(view.sample.deliveries, 200.0);
    assert_eq!(cluster.samples().len(), 3);
}

#[test]
fn a_process_that_begins_anew_and_one_that_was_not_watched_have_no_rates_at_first() {
    let mut cluster = Cluster::default();
    take(&mut cluster, 0, vec![("g1", Some(sent(50_000, 1000.0)))]);
    let view = take(&mut cluster, 1000, vec![("g1", Some(sent(500, 900.0)))]);
    assert_eq!(view.sample.deliveries, 0.0, "restarted");
    let view = take(&mut cluster, 2000, vec![("g1", Some(sent(1500, 950.0)))]);
    assert_eq!(view.sample.deliveries, 50.0);
    let view = take(&mut cluster, 602_000, vec![("g1", Some(sent(601_500, 99_999.0)))]);
    assert_eq!(view.sample.deliveries, 0.0, "not watched for ten minutes");
    assert_eq!(view.refusals, []);
}

#[test]
fn nodes_that_say_nothing_drain_or_are_lost_are_named() {
    let mut cluster = Cluster::default();
    let all = || vec![("g1", Some(sent(1000, 0.0))), ("g2", Some(sent(1000, 0.0))), ("old", None)];
    let view = take(&mut cluster, 1000, vec![("g1", None), ("g2", None), ("old", None)]);
    assert_eq!((view.state, &*view.sentence), (State::Good, "Asking 3 of 3 nodes how they are."));
    take(&mut cluster, 3000, all());
    let view = take(&mut cluster, 5000, all());
    let state = |view: &View, name: &str| view.nodes.iter().find(|node| node.name == name).unwrap().state;
    assert_eq!(state(&view, "old"), NodeState::Silent);
    assert_eq!(view.state, State::Warning);
    assert!(view.sentence.starts_with("2 of 3 nodes are ready; silent: old"), "{}", view.sentence);

    let view = take(&mut cluster, 6000, vec![("g1", Some(sent(2000, 0.0)))]);
    assert_eq!((state(&view, "g2"), view.state), (NodeState::Lost, State::Bad));
    assert!(view.sentence.contains("lost: g2, old"), "{}", view.sentence);
    assert_eq!(view.nodes[0].state, NodeState::Lost, "first those that need somebody");
    assert_eq!(view.totals.connections, 10, "who is lost has none");

    let mut draining = record("g1", 3);
    draining.draining = true;
    let view = cluster.take(7000, "g1", vec![(draining, Some(sent(3000, 0.0)))]);
    assert_eq!(state(&view, "g1"), NodeState::Draining);
    let view = cluster.take(8000, "g2", vec![(record("g2", 0), Some(sent(500, 0.0)))]);
    assert_eq!((state(&view, "g1"), state(&view, "g2")), (NodeState::Gone, NodeState::Ready));
    let view = take(&mut cluster, 20_000, vec![("g2", Some(sent(12_500, 0.0)))]);
    assert_eq!(view.nodes.len(), 1, "nobody watched in between: who has gone may have drained");
}

#[test]
fn a_node_whose_reports_stop_is_silent_after_their_lease() {
    let mut cluster = Cluster::default();
    take(&mut cluster, 1000, vec![("g1", Some(sent(1000, 0.0)))]);
    let view = take(&mut cluster, 2000, vec![("g1", Some(sent(2000, 500.0)))]);
    assert_eq!(view.sample.deliveries, 500.0);
    let view = take(&mut cluster, 5000, vec![("g1", None)]);
    assert_eq!(view.nodes[0].state, NodeState::Ready, "a missed report is none");
    let view = take(&mut cluster, 9000, vec![("g1", None)]);
    assert_eq!((view.nodes[0].state, view.sample.deliveries), (NodeState::Silent, 0.0));
}

#[test]
fn the_ceiling_is_the_fullest_resource_by_name_and_node() {
    let mut cluster = Cluster::default();
    let full = report(
        1000,
        &[("saturation{resource=\"cpu\"}", 0.5), ("saturation{resource=\"descriptors\"}", 0.96)],
    );
    let view = take(&mut cluster, 1000, vec![("g1", Some(sent(1000, 0.0))), ("g2", Some(full))]);
    let ceiling = view.ceiling.unwrap();
    assert_eq!((&*ceiling.resource, &*ceiling.node, ceiling.share), ("descriptors", "g2", 0.96));
    assert!(ceiling.advice.contains("LimitNOFILE"), "{}", ceiling.advice);
    assert_eq!(view.state, State::Bad);
    assert!(view.sentence.contains("fullest is descriptors of g2 with 96 %"), "{}", view.sentence);
}

#[test]
fn a_node_may_have_a_quarter_more_than_its_share() {
    let mut cluster = Cluster::default();
    let mut small = record("small", 100);
    small.capacity = 500;
    let nodes = vec![(record("large", 500), None), (small, None)];
    let view = cluster.take(1000, "g1", nodes);
    let bounds: Vec<Option<u64>> = view.nodes.iter().map(|node| node.bound).collect();
    assert_eq!(bounds, [Some(500), Some(250)]);
}

#[test]
fn channels_are_summed_over_nodes() {
    let mut cluster = Cluster::default();
    let with = |channels: &[(&str, u64, f64)]| {
        let channels = channels.iter().map(|(name, subscribers, publications)| ChannelState {
            app: None,
            name: (*name).to_owned(),
            subscribers: *subscribers,
            publications: *publications,
        });
        Some(Report { uptime_ms: 1, channels: channels.collect(), ..Report::default() })
    };
    let nodes = vec![
        ("g1", with(&[("room:a", 5, 10.0), ("quiet", 100, 0.0)])),
        ("g2", with(&[("room:a", 7, 10.0), ("one", 1, 20.0)])),
    ];
    let view = take(&mut cluster, 1000, nodes);
    let names: Vec<(&str, u64)> =
        view.by_subscribers.iter().map(|channel| (&*channel.name, channel.subscribers)).collect();
    assert_eq!(names, [("quiet", 100), ("room:a", 12), ("one", 1)]);
    let rates: Vec<(&str, f64, f64)> = view
        .by_rate
        .iter()
        .map(|channel| (&*channel.name, channel.publications, channel.deliveries))
        .collect();
    assert_eq!(rates, [("room:a", 10.0, 120.0), ("one", 20.0, 20.0)]);
}

#[test]
fn refusals_and_latency_are_of_the_differences() {
    let mut cluster = Cluster::default();
    let at = |uptime_ms: u64, refused: f64, fast: f64, all: f64| {
        let metrics = [
            ("handshakes_total{result=\"node_limit\"}", refused),
            ("delivery_latency_seconds_bucket{le=\"0.001\"}", fast),
            ("delivery_latency_seconds_bucket{le=\"0.01\"}", all),
            ("delivery_latency_seconds_bucket{le=\"+Inf\"}", all),
        ];
        vec![("g1", Some(report(uptime_ms, &metrics)))]
    };
    let view = take(&mut cluster, 100_000, at(1000, 50.0, 1000.0, 9000.0));
    assert_eq!((view.sample.p50_ms, view.refusals.len()), (None, 0), "all of it was before");
    let view = take(&mut cluster, 101_000, at(2000, 54.0, 1100.0, 9100.0));
    assert_eq!((view.sample.p50_ms, view.sample.p99_ms), (Some(0.5), Some(0.99)));
    assert_eq!((view.refusals[0].last_minute, view.sample.refused), (4.0, 4.0));
    assert!(view.sentence.contains("connections are being refused"), "{}", view.sentence);
}

#[test]
fn a_report_is_a_part_of_the_exposition() {
    let text = "# TYPE tidegate_connections gauge\ntidegate_connections 3\ntidegate_gaps_untold_total 0\n\
                tidegate_disconnects_total{reason=\"drain\"} 2\ntidegate_unknown_total 4\nprocess_x 5\n\
                tidegate_webhook_queue_bytes 10\ntidegate_backplane_connected{server=\"a:1\"} 1\n\
                tidegate_backplane_connected{server=\"b:1\"} 0\ntidegate_backplane_lag_seconds{server=\"a:1\"} 0.5\n# EOF\n";
    let report = Report::of_exposition(text);
    let series: Vec<&str> = report.metrics.keys().map(String::as_str).collect();
    assert_eq!(series, ["connections", "disconnects_total{reason=\"drain\"}", "webhook_queue_bytes"]);
    let redis = report.redis.as_ref().unwrap();
    assert_eq!((redis.servers, redis.connected, redis.lag_s), (2, 1, Some(0.5)));
    assert_eq!(Report::decode(report.clone().encode().as_bytes()), Some(report));
}

#[test]
fn a_report_is_bounded_whatever_channels_are_called() {
    let channel = |number: usize| ChannelState { name: format!("{number:0>200}"), ..ChannelState::default() };
    let mut report = report(1, &[("connections", 1.0)]);
    report.channels = (0..500).map(channel).collect();
    report.missing = vec!["x".repeat(1000); 20];
    let text = report.encode();
    assert!(text.len() <= REPORT_BYTES_MAX, "{}", text.len());
    let report = Report::decode(text.as_bytes()).unwrap();
    assert!(report.channels.len() > 20 && report.metric("connections") == 1.0);
    assert_eq!(Report::decode(&vec![b' '; REPORT_BYTES_MAX + 1]), None);
    assert_eq!(Report::decode(b"{\"later\":true}"), Some(Report::default()));
}
