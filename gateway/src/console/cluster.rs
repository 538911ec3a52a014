//! The arithmetic of the console, without I/O: records and reports over time become views.
//!
//! Rates are differences of a node's counters over its own clock, so that neither the clocks of nodes nor the moments at
//! which they are read matter. A clock that went back is another process: it begins anew. So does a node that was not
//! watched for a while: what it counted meanwhile did not happen in this second.

use std::collections::{BTreeMap, HashMap, VecDeque};

use tidegate_backplane::{NodeRecord, REPORT_LEASE};

use super::{
    advice,
    ledger::Ledger,
    percentiles::Window,
    report::{Report, of_family},
    view::{Ceiling, ChannelView, NodeState, NodeView, Sample, State, Totals, View},
};

/// What one node has seen of the cluster while somebody watched.
#[derive(Debug)]
pub(super) struct Cluster {
    nodes: BTreeMap<Box<str>, Tracked>,
    taken_ms: u64,
    samples: VecDeque<Sample>,
    refusals: Ledger,
    closes: Ledger,
    latency: Window,
}

#[derive(Debug)]
struct Tracked {
    record: NodeRecord,
    /// Since when it is asked to report.
    asked_ms: u64,
    /// When it was last in the registry.
    listed_ms: u64,
    report: Option<Report>,
    reported_ms: u64,
    /// What its counters grew by between its last two reports, and in how many seconds.
    grown: BTreeMap<String, f64>,
    seconds: f64,
}

/// 15 minutes of a sample each second.
const SAMPLES_MAX: usize = 900;
const SAMPLES_MS: u64 = 900_000;
/// How long nodes that are gone are listed.
const GONE_MS: u64 = 300_000;
/// A node that is asked to report for so long and does not is silent.
const PATIENCE_MS: u64 = 4000;
/// Nodes and channels in a view.
const NODES_MAX: usize = 200;
const CHANNELS_MAX: usize = 20;
const REPORT_LEASE_MS: u64 = REPORT_LEASE.as_millis() as u64;

/// What the router's default load factor and floor are: it gives a node no more than 1.25 times its share.
const LOAD_FACTOR: f64 = 1.25;
const LOAD_FLOOR: u64 = 64;

/// From here on a resource is worth a look, and from there on it is the trouble.
const WARNING: f64 = 0.8;
const BAD: f64 = 0.95;

impl Default for Cluster {
    fn default() -> Self {
        Self {
            nodes: BTreeMap::new(),
            taken_ms: 0,
            samples: VecDeque::new(),
            refusals: Ledger::of_refusals(),
            closes: Ledger::of_closes(),
            latency: Window::default(),
        }
    }
}

impl Cluster {
    /// The points of the last 15 minutes, as far as somebody watched.
    pub(super) fn samples(&self) -> Vec<Sample> {
        self.samples.iter().copied().collect()
    }

    /// What the registry has now, each with what it reported last, if that is not too long ago.
    pub(super) fn take(
        &mut self,
        now_ms: u64,
        served_by: &str,
        records: Vec<(NodeRecord, Option<Report>)>,
    ) -> View {
        if now_ms.saturating_sub(self.taken_ms) > REPORT_LEASE_MS {
            // Nobody watched: who has gone since may have drained.
            self.nodes.clear();
        }
        self.taken_ms = now_ms;
        let mut refused = 0.0;
        let mut opened_and_closed = (0.0, 0.0);
        for (record, report) in records {
            let name = record.name.clone();
            let node = self.nodes.entry(name.clone()).or_insert_with(|| Tracked::new(record.clone(), now_ms));
            (node.record, node.listed_ms) = (record, now_ms);
            let is_new = match report {
                Some(report) => node.take(now_ms, report),
                None => false,
            };
            if is_new {
                let buckets = of_family(&node.grown, "delivery_latency_seconds_bucket");
                self.latency.add(now_ms, buckets);
                self.refusals.add(now_ms, &name, &node.grown);
                self.closes.add(now_ms, &name, &node.grown);
            }
        }
        self.nodes.retain(|_, node| now_ms.saturating_sub(node.listed_ms) < GONE_MS);
        for node in self.nodes.values_mut() {
            node.forget_old_report(now_ms);
            refused +=
                node.rate_where("handshakes_total", |result| !["accepted", "abandoned"].contains(&result));
            opened_and_closed.0 += node.rate("connections_opened_total");
            opened_and_closed.1 += node.rate_where("disconnects_total", |_| true);
        }
        let sample = self.sample(now_ms, refused, opened_and_closed);
        self.samples.push_back(sample);
        let is_old = |sample: &Sample| sample.at_ms + SAMPLES_MS < now_ms;
        while self.samples.len() > SAMPLES_MAX || self.samples.front().is_some_and(is_old) {
            self.samples.pop_front();
        }
        self.view(now_ms, served_by, sample)
    }

    fn sample(&self, at_ms: u64, refused: f64, (opened, closed): (f64, f64)) -> Sample {
        let sum = |of: fn(&Tracked) -> f64| self.nodes.values().map(of).fold(0.0, |sum, value| sum + value);
        Sample {
            at_ms,
            connections: self.listed(at_ms).map(|node| node.record.connections).sum(),
            deliveries: sum(|node| node.rate("messages_sent_total")),
            publishes: sum(Tracked::publishes),
            opened,
            closed,
            refused,
            p50_ms: self.latency.percentile(50.0),
            p99_ms: self.latency.percentile(99.0),
        }
    }

    fn listed(&self, now_ms: u64) -> impl Iterator<Item = &Tracked> {
        self.nodes.values().filter(move |node| node.listed_ms == now_ms)
    }

    fn view(&mut self, now_ms: u64, served_by: &str, sample: Sample) -> View {
        let shares = self.shares(now_ms);
        let nodes: Vec<NodeView> = self.nodes.values().map(|node| node.view(now_ms, shares)).collect();
        let ceiling = ceiling(&nodes);
        let refused_lately = sample.refused > 0.0;
        let (state, sentence) = judge(&nodes, ceiling.as_ref(), refused_lately);
        let (by_subscribers, by_rate) = self.channels();
        let mut view = View {
            at_ms: now_ms,
            served_by: served_by.to_owned(),
            state,
            sentence,
            ceiling,
            totals: self.totals(now_ms, &nodes),
            sample,
            nodes_more: nodes.len().saturating_sub(NODES_MAX) as u64,
            nodes,
            by_subscribers,
            by_rate,
            refusals: self.refusals.list(now_ms),
            closes: self.closes.list(now_ms),
        };
        // Those that need somebody come first, so they are not among those that are left out.
        view.nodes.sort_by_key(|node| std::cmp::Reverse(urgency(node.state)));
        view.nodes.truncate(NODES_MAX);
        view
    }

    /// All connections and all capacity that routers count.
    fn shares(&self, now_ms: u64) -> (u64, u64) {
        let live = self.listed(now_ms).filter(|node| !node.record.draining);
        live.fold((0, 0), |(connections, capacity), node| {
            (connections + node.record.connections, capacity + node.record.capacity)
        })
    }

    fn totals(&self, now_ms: u64, nodes: &[NodeView]) -> Totals {
        let sum = |of: fn(&Tracked) -> f64| self.listed(now_ms).map(of).fold(0.0, |sum, value| sum + value);
        let metric = |name: &'static str| {
            let reports = self.listed(now_ms).filter_map(|node| node.report.as_ref());
            reports.map(|report| report.metric(name)).sum::<f64>() as u64
        };
        let lags = nodes.iter().filter_map(|node| node.redis_lag_ms);
        Totals {
            nodes: self.listed(now_ms).count() as u64,
            ready: nodes.iter().filter(|node| node.state == NodeState::Ready).count() as u64,
            connections: self.listed(now_ms).map(|node| node.record.connections).sum(),
            capacity: self.listed(now_ms).map(|node| node.record.capacity).sum(),
            subscriptions: metric("subscriptions"),
            bytes_sent: sum(|node| node.rate("bytes_sent_total")),
            received: sum(|node| node.rate("messages_received_total")),
            dropped: sum(|node| node.rate_where("messages_dropped_total", |_| true)),
            queued_bytes: metric("send_queue_bytes"),
            webhook_queue_bytes: nodes.iter().map(|node| node.webhook_queue_bytes).sum(),
            webhook_failures: sum(|node| {
                node.rate("webhook_retries_total") + node.rate_where("webhook_events_dropped_total", |_| true)
            }),
            redis_lag_ms: lags
                .fold(None, |most: Option<f64>, lag| Some(most.map_or(lag, |most| most.max(lag)))),
        }
    }

    /// The channels that nodes name, summed: by subscribers, and by deliveries.
    fn channels(&self) -> (Vec<ChannelView>, Vec<ChannelView>) {
        let mut channels = HashMap::<(Option<&str>, &str), ChannelView>::new();
        let reports = self.nodes.values().filter_map(|node| node.report.as_ref());
        for channel in reports.flat_map(|report| &report.channels) {
            let (app, name) = (channel.app.as_deref(), &*channel.name);
            let view = channels.entry((app, name)).or_insert_with(|| ChannelView {
                app: channel.app.clone(),
                name: channel.name.clone(),
                subscribers: 0,
                publications: 0.0,
                deliveries: 0.0,
            });
            view.subscribers += channel.subscribers;
            // Each node with a subscriber is handed all of them.
            view.publications = view.publications.max(channel.publications);
            view.deliveries += channel.publications * channel.subscribers as f64;
        }
        let mut all: Vec<ChannelView> = channels.into_values().collect();
        all.sort_by(|a, b| b.subscribers.cmp(&a.subscribers).then_with(|| a.name.cmp(&b.name)));
        let by_subscribers = all.iter().take(CHANNELS_MAX).cloned().collect();
        all.retain(|channel| channel.publications > 0.0);
        all.sort_by(|a, b| b.deliveries.total_cmp(&a.deliveries).then_with(|| a.name.cmp(&b.name)));
        all.truncate(CHANNELS_MAX);
        (by_subscribers, all)
    }
}

impl Tracked {
    fn new(record: NodeRecord, asked_ms: u64) -> Self {
        let (grown, seconds) = (BTreeMap::new(), 0.0);
        Self { record, asked_ms, listed_ms: asked_ms, report: None, reported_ms: 0, grown, seconds }
    }

    /// Takes a report in; true if it is another one than the last.
    fn take(&mut self, now_ms: u64, report: Report) -> bool {
        let last = self.report.take();
        let elapsed_ms = last.as_ref().map(|last| report.uptime_ms.checked_sub(last.uptime_ms));
        if elapsed_ms == Some(Some(0)) {
            self.report = last;
            return false;
        }
        (self.grown, self.seconds) = match (last, elapsed_ms.flatten()) {
            (Some(last), Some(elapsed_ms)) if elapsed_ms <= REPORT_LEASE_MS => {
                let growth = |(series, value): (&String, &f64)| {
                    let before = last.metrics.get(series).copied().unwrap_or(0.0);
                    // A bucket that did not grow is the lower edge of the next.
                    let is_told = *value > before || series.contains("_bucket{");
                    is_told.then(|| (series.clone(), (value - before).max(0.0)))
                };
                (report.metrics.iter().filter_map(growth).collect(), elapsed_ms as f64 / 1000.0)
            }
            // The first, or another process, or not watched for a while.
            _ => (BTreeMap::new(), 0.0),
        };
        (self.report, self.reported_ms) = (Some(report), now_ms);
        true
    }

    /// What was said too long ago is not said any more.
    fn forget_old_report(&mut self, now_ms: u64) {
        if now_ms.saturating_sub(self.reported_ms) > REPORT_LEASE_MS {
            self.report = None;
            self.grown.clear();
        }
    }

    fn rate(&self, counter: &str) -> f64 {
        self.per_second(self.grown.get(counter).copied().unwrap_or(0.0))
    }

    fn rate_where(&self, family: &str, is_wanted: impl Fn(&str) -> bool) -> f64 {
        let grown = of_family(&self.grown, family).filter(|(value, _)| is_wanted(value));
        // Not `sum`: that of nothing is -0.
        self.per_second(grown.fold(0.0, |sum, (_, count)| sum + count))
    }

    fn per_second(&self, count: f64) -> f64 {
        if self.seconds > 0.0 { count / self.seconds } else { 0.0 }
    }

    /// With Redis the node knows of all; in the memory of one, of those over REST.
    fn publishes(&self) -> f64 {
        let is_on_redis = self.report.as_ref().is_some_and(|report| report.redis.is_some());
        match is_on_redis {
            true => self.rate_where("backplane_published_total", |_| true),
            false => self.rate_where("publish_requests_total", |code| code.starts_with('2')),
        }
    }

    fn state(&self, now_ms: u64) -> NodeState {
        let is_ready = self.report.as_ref().map(|report| report.reasons.is_empty());
        match (self.listed_ms == now_ms, self.record.draining, is_ready) {
            (false, true, _) => NodeState::Gone,
            (false, false, _) => NodeState::Lost,
            (true, true, _) => NodeState::Draining,
            (true, false, None) if now_ms.saturating_sub(self.asked_ms) < PATIENCE_MS => NodeState::Asked,
            (true, false, None) => NodeState::Silent,
            (true, false, Some(true)) => NodeState::Ready,
            (true, false, Some(false)) => NodeState::NotReady,
        }
    }

    fn view(&self, now_ms: u64, shares: (u64, u64)) -> NodeView {
        let state = self.state(now_ms);
        let report = self.report.as_ref().filter(|_| !matches!(state, NodeState::Lost | NodeState::Gone));
        let record = &self.record;
        let is_listed = self.listed_ms == now_ms;
        let bound = (is_listed && !record.draining && shares.1 > 0).then(|| {
            let share = shares.0 as f64 * record.capacity as f64 / shares.1 as f64;
            ((share * LOAD_FACTOR).ceil() as u64).max(LOAD_FLOOR)
        });
        let redis = report.and_then(|report| report.redis.as_ref());
        NodeView {
            name: record.name.to_string(),
            address: record.address.to_string(),
            zone: record.zone.as_deref().map(str::to_owned),
            version: record.version.to_string(),
            state,
            notes: self.notes(now_ms, state, report),
            uptime_s: report.map(|report| report.uptime_ms / 1000),
            connections: if is_listed { record.connections } else { 0 },
            capacity: record.capacity,
            bound,
            deliveries: report.map_or(0.0, |_| self.rate("messages_sent_total")),
            publishes: report.map_or(0.0, |_| self.publishes()),
            saturation: report.map(saturation).unwrap_or_default(),
            redis_connected: redis.map(|redis| format!("{} of {}", redis.connected, redis.servers)),
            redis_lag_ms: redis.and_then(|redis| redis.lag_s).map(|seconds| seconds * 1000.0),
            webhook_queue_bytes: report.map_or(0, |report| report.metric("webhook_queue_bytes") as u64),
        }
    }

    fn notes(&self, now_ms: u64, state: NodeState, report: Option<&Report>) -> Vec<String> {
        let ago_s = now_ms.saturating_sub(self.listed_ms) / 1000;
        let mut notes: Vec<String> = match state {
            NodeState::Lost => vec![format!("left the registry {ago_s} s ago and did not drain")],
            NodeState::Gone => vec![format!("drained and left {ago_s} s ago")],
            NodeState::Silent => {
                vec!["tells nothing: it is of an older version, or cut off".to_owned()]
            }
            NodeState::Asked | NodeState::Ready | NodeState::NotReady | NodeState::Draining => Vec::new(),
        };
        if let Some(report) = report {
            let reasons = report.reasons.iter().filter(|reason| **reason != "draining");
            notes.extend(reasons.chain(&report.missing).cloned());
        }
        notes
    }
}

/// How full a node's resources are, the fullest first.
fn saturation(report: &Report) -> Vec<(String, f64)> {
    let resources = report.family("saturation").map(|(resource, share)| (resource.to_owned(), share));
    let mut all: Vec<(String, f64)> = resources.collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all
}

fn ceiling(nodes: &[NodeView]) -> Option<Ceiling> {
    let fullest = nodes.iter().filter_map(|node| Some((node, node.saturation.first()?)));
    let (node, (resource, share)) = fullest.max_by(|a, b| a.1.1.total_cmp(&b.1.1))?;
    Some(Ceiling {
        resource: resource.clone(),
        node: node.name.clone(),
        share: *share,
        advice: advice::advice(resource).to_owned(),
    })
}

/// The first line: how it stands, and what is fullest.
fn judge(nodes: &[NodeView], ceiling: Option<&Ceiling>, is_refusing: bool) -> (State, String) {
    let named = |state: NodeState| {
        let mut names = nodes.iter().filter(|node| node.state == state).map(|node| &*node.name);
        let first: Vec<&str> = names.by_ref().take(3).collect();
        let more = names.count();
        let list = first.join(", ");
        if more > 0 { format!("{list} and {more} more") } else { list }
    };
    let count = |state: NodeState| nodes.iter().filter(|node| node.state == state).count();
    let mut parts = Vec::new();
    let mut state = State::Good;
    let all = nodes.iter().filter(|node| !matches!(node.state, NodeState::Lost | NodeState::Gone)).count();
    let (ready, draining) = (count(NodeState::Ready), count(NodeState::Draining));
    let asked = count(NodeState::Asked);
    parts.push(match (ready, all) {
        (_, all) if asked > 0 && ready + asked == all => {
            format!("Asking {asked} of {all} nodes how they are")
        }
        (1, 1) => "The node is ready".to_owned(),
        (ready, all) if ready == all => format!("All {all} nodes are ready"),
        (ready, all) => format!("{ready} of {all} nodes are ready"),
    });
    if ready + asked == 0 {
        state = State::Bad;
    }
    let troubles = [
        (NodeState::Lost, State::Bad, "lost"),
        (NodeState::NotReady, State::Bad, "not ready"),
        (NodeState::Silent, State::Warning, "silent"),
    ];
    for (trouble, severity, word) in troubles {
        if count(trouble) > 0 {
            state = state.max(severity);
            parts.push(format!("{word}: {}", named(trouble)));
        }
    }
    if draining > 0 {
        state = state.max(State::Warning);
        parts.push(format!("draining: {}", named(NodeState::Draining)));
    }
    if let Some(ceiling) = ceiling {
        if ceiling.share >= BAD {
            state = State::Bad;
        } else if ceiling.share >= WARNING {
            state = state.max(State::Warning);
        }
        let (resource, node, percent) = (&ceiling.resource, &ceiling.node, (ceiling.share * 100.0).round());
        parts.push(format!("fullest is {} of {node} with {percent} %", resource.replace('_', " ")));
    }
    if is_refusing {
        state = state.max(State::Warning);
        parts.push("connections are being refused".to_owned());
    }
    (state, format!("{}.", parts.join("; ")))
}

fn urgency(state: NodeState) -> u8 {
    match state {
        NodeState::Lost => 5,
        NodeState::NotReady => 4,
        NodeState::Silent => 3,
        NodeState::Draining => 2,
        NodeState::Asked | NodeState::Ready => 1,
        NodeState::Gone => 0,
    }
}
