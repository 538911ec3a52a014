//! What a node says each second while somebody watches: a part of its metrics, and what no metric says.
//!
//! Metrics keep the names under which Prometheus scrapes them, without `tidegate_`: whoever sees a number in the console
//! finds it there. Those that are 0 are left out, but for buckets. Fields may be added; readers ignore those that they do not know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate_backplane::REPORT_BYTES_MAX;

use crate::node::connection_state::ConnectionState;

/// A node's report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Report {
    /// Since the process began: the clock of its rates, and, where it goes back, another process.
    pub(super) uptime_ms: u64,
    /// Why the node is not ready.
    pub(super) reasons: Vec<String>,
    /// What does not work though the node is ready.
    pub(super) missing: Vec<String>,
    /// By name and labels, as `disconnects_total{reason="drain"}`.
    pub(super) metrics: BTreeMap<String, f64>,
    /// `None` where nothing is between the nodes.
    pub(super) redis: Option<RedisState>,
    /// Those with the most subscribers, and those with the most deliveries, on this node.
    pub(super) channels: Vec<ChannelState>,
    /// Connections that were asked for and are here. No view has them.
    pub(super) connections: Vec<ConnectionState>,
}

/// The servers that carry publications, as one node sees them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct RedisState {
    pub(super) servers: u64,
    pub(super) connected: u64,
    /// The largest, from publishing to receiving.
    pub(super) lag_s: Option<f64>,
    /// Commands that wait for answers.
    pub(super) waiting: f64,
}

/// A channel on one node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ChannelState {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) app: Option<String>,
    pub(super) name: String,
    pub(super) subscribers: u64,
    /// A second; estimated where there are many.
    pub(super) publications: f64,
}

/// Families that are reported, as they are scraped.
const FAMILIES: [&str; 26] = [
    "connections",
    "connections_limit",
    "connections_opened_total",
    "disconnects_total",
    "handshakes_total",
    "subscriptions",
    "subscriptions_refused_total",
    "auth_failures_total",
    "budgets_spent_total",
    "messages_received_total",
    "messages_sent_total",
    "messages_dropped_total",
    "bytes_sent_total",
    "send_queue_bytes",
    "delivery_latency_seconds_bucket",
    "channels",
    "publish_requests_total",
    "publishes_local_total",
    "backplane_published_total",
    "backplane_gaps_total",
    "saturation",
    "shards_failed",
    "gaps_untold_total",
    "log_lines_dropped_total",
    "consumer_lag_seconds",
    "consumer_set_aside_total",
];

/// What is told to applications, under whatever names there are.
const OUTWARD: [&str; 2] = ["webhook", "hook"];

/// Longest sentence that a node says about itself; the backplane's may hold an address.
const SENTENCE_CHARACTERS_MAX: usize = 300;

impl Report {
    /// Takes what is reported out of an exposition.
    pub(super) fn of_exposition(openmetrics: &str) -> Self {
        let samples = openmetrics.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (series, value) = line.strip_prefix("tidegate_")?.rsplit_once(' ')?;
            Some((series, value.parse::<f64>().ok()?))
        });
        let (mut metrics, mut redis) = (BTreeMap::new(), None::<RedisState>);
        for (series, value) in samples {
            let family = series.split('{').next().unwrap_or(series);
            let is_reported =
                FAMILIES.contains(&family) || OUTWARD.iter().any(|name| family.starts_with(name));
            if is_reported && (value != 0.0 || family.ends_with("_bucket")) {
                metrics.insert(series.to_owned(), value);
            }
            match family {
                "backplane_connected" => {
                    let redis = redis.get_or_insert_default();
                    redis.servers += 1;
                    redis.connected += u64::from(value > 0.0);
                }
                "backplane_lag_seconds" => {
                    let redis = redis.get_or_insert_default();
                    redis.lag_s = Some(redis.lag_s.unwrap_or(0.0).max(value));
                }
                "backplane_queue_depth" => redis.get_or_insert_default().waiting += value,
                _ => {}
            }
        }
        Self { metrics, redis, ..Self::default() }
    }

    /// As it is kept, within its bound: what is longest and least needed goes first.
    pub(super) fn encode(mut self) -> String {
        for sentences in [&mut self.reasons, &mut self.missing] {
            sentences.truncate(8);
            for sentence in sentences {
                *sentence = sentence.chars().take(SENTENCE_CHARACTERS_MAX).collect();
            }
        }
        loop {
            let text = serde_json::to_string(&self).unwrap_or_default();
            if text.len() <= REPORT_BYTES_MAX {
                return text;
            }
            if !self.channels.is_empty() {
                self.channels.truncate(self.channels.len() / 2);
            } else if self.connections.pop().is_none() {
                self.metrics.clear();
                self.missing.push("it has more metrics than a report holds".to_owned());
            }
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= REPORT_BYTES_MAX).then(|| serde_json::from_slice(bytes).ok())?
    }

    /// A metric without labels, or 0.
    pub(super) fn metric(&self, name: &str) -> f64 {
        self.metrics.get(name).copied().unwrap_or(0.0)
    }

    /// The samples of a family with one label: the label's value, and the sample's.
    pub(super) fn family<'r>(&'r self, family: &'r str) -> impl Iterator<Item = (&'r str, f64)> {
        of_family(&self.metrics, family)
    }
}

/// The samples of a family with one label: the label's value, and the sample's.
pub(super) fn of_family<'m>(
    metrics: &'m BTreeMap<String, f64>,
    family: &'m str,
) -> impl Iterator<Item = (&'m str, f64)> {
    metrics
        .range(family.to_owned()..)
        .map_while(move |(series, &value)| {
            let labels = series.strip_prefix(family)?;
            Some((labels, value))
        })
        .filter_map(|(labels, value)| {
            let label = labels.strip_prefix('{')?.strip_suffix("\"}")?;
            Some((label.split_once("=\"")?.1, value))
        })
}
