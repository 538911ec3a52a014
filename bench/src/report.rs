//! What a storm found, as text for people and JSON for machines.

use std::collections::BTreeMap;
use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::order::OrderCounts;

/// A saturation at or above this is called the limit; the alerts of the product use the same line.
const SATURATED: f64 = 0.85;

/// A client thread that used this much of its core was itself a limit.
const CLIENT_BUSY: f64 = 0.9;

/// The outcome of one storm.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub url: String,
    pub connections: Connections,
    pub publishes: Publishes,
    pub deliveries: Deliveries,
    /// What the server said about itself; empty when no metrics URL was given.
    pub saturation: Vec<Saturation>,
    /// Metrics pages that could not be read.
    pub metrics_errors: Vec<String>,
    /// Share of a core used by the busiest client thread while publishing.
    pub client_busy: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Connections {
    pub asked: u32,
    pub opened: u64,
    /// Opened again after they had ended.
    pub returned: u64,
    pub seconds: f64,
    pub per_second: f64,
    pub handshake_us: Percentiles,
    /// Reason to count.
    pub failed: BTreeMap<String, u64>,
    /// Connections that ended before the storm did, by reason.
    pub ended: BTreeMap<String, u64>,
    pub pings_answered: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Publishes {
    pub seconds: f64,
    pub accepted: u64,
    pub per_second: f64,
    /// 429 and 503, by status.
    pub pushed_back: BTreeMap<u16, u64>,
    /// Every other answer, by status.
    pub refused: BTreeMap<u16, u64>,
    /// Connection lost before the answer; each was sent again.
    pub uncertain: u64,
    /// Due at the asked rate and never sent, because no connection was free.
    pub behind: u64,
    pub failed: BTreeMap<String, u64>,
    pub answer_us: Percentiles,
}

#[derive(Debug, Clone, Serialize)]
pub struct Deliveries {
    pub received: u64,
    pub per_second: f64,
    pub bytes: u64,
    /// Publish due to arrival.
    pub latency_us: Percentiles,
    #[serde(flatten)]
    pub order: OrderCounts,
    /// Messages of somebody else.
    pub foreign: u64,
}

/// Points of a distribution, microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    pub count: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

/// One `tidegate_saturation` series, between 0 and 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Saturation {
    pub source: String,
    pub resource: String,
    pub before: Option<f64>,
    pub after: f64,
}

impl From<&Histogram<u64>> for Percentiles {
    fn from(histogram: &Histogram<u64>) -> Self {
        Self {
            count: histogram.len(),
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        }
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count == 0 {
            return f.write_str("none");
        }
        let [p50, p90, p99, p999, max] = [self.p50, self.p90, self.p99, self.p999, self.max].map(Micros);
        write!(f, "p50 {p50}  p90 {p90}  p99 {p99}  p99.9 {p999}  max {max}")
    }
}

/// Microseconds in the unit a person would use.
struct Micros(u64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            us @ 0..1_000 => write!(f, "{us} µs"),
            us @ 1_000..1_000_000 => write!(f, "{:.1} ms", us as f64 / 1e3),
            us => write!(f, "{:.2} s", us as f64 / 1e6),
        }
    }
}

impl Report {
    /// Nothing was lost, doubled or out of order, and every connection opened and stayed.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.connections.failed.is_empty()
            && self.connections.ended.is_empty()
            && self.deliveries.order == OrderCounts::default()
    }

    /// The most saturated resource, if the server reported any.
    #[must_use]
    pub fn limit(&self) -> Option<&Saturation> {
        self.saturation.iter().max_by(|left, right| left.after.total_cmp(&right.after))
    }

    fn verdict(&self) -> String {
        let client = if self.client_busy >= CLIENT_BUSY {
            " The load generator used its whole core: add threads or a machine before believing a ceiling."
        } else {
            ""
        };
        let server = match self.limit() {
            Some(Saturation { resource, after, .. }) if *after >= SATURATED => {
                format!("The limit was {resource}, at {:.0} %.", after * 100.0)
            }
            Some(Saturation { resource, after, .. }) => {
                format!("Nothing was saturated; closest was {resource}, at {:.0} %.", after * 100.0)
            }
            None => "What was saturated is unknown: no saturation metric was read.".to_owned(),
        };
        server + client
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, publishes, deliveries, .. } = self;
        writeln!(f, "storm of {}", self.url)?;
        writeln!(
            f,
            "  connections  {} of {} in {:.2} s, {:.0}/s",
            connections.opened, connections.asked, connections.seconds, connections.per_second
        )?;
        writeln!(f, "    handshake  {}", connections.handshake_us)?;
        write_counts(f, "    failed", &connections.failed)?;
        write_counts(f, "    ended", &connections.ended)?;
        if connections.returned > 0 {
            writeln!(f, "    came back  {}", connections.returned)?;
        }
        writeln!(
            f,
            "  publishes    {} in {:.2} s, {:.0}/s",
            publishes.accepted, publishes.seconds, publishes.per_second
        )?;
        writeln!(f, "    answer     {}", publishes.answer_us)?;
        write_counts(f, "    slowed", &publishes.pushed_back)?;
        write_counts(f, "    refused", &publishes.refused)?;
        write_counts(f, "    failed", &publishes.failed)?;
        if publishes.behind > 0 {
            writeln!(f, "    behind     {} were due and found no free connection", publishes.behind)?;
        }
        writeln!(f, "  deliveries   {}, {:.0}/s", deliveries.received, deliveries.per_second)?;
        writeln!(f, "    latency    {}", deliveries.latency_us)?;
        let OrderCounts { lost, duplicated, misordered } = deliveries.order;
        writeln!(f, "    lost {lost}, duplicated {duplicated}, out of order {misordered}")?;
        if deliveries.foreign > 0 {
            writeln!(f, "    {} messages were somebody else's", deliveries.foreign)?;
        }
        for Saturation { resource, before, after, .. } in &self.saturation {
            let before = before.map_or_else(|| "–".to_owned(), |before| format!("{before:.2}"));
            writeln!(f, "  saturation   {resource}: {before} before, {after:.2} under load")?;
        }
        for error in &self.metrics_errors {
            writeln!(f, "  metrics      {error}")?;
        }
        writeln!(f, "  {}", self.verdict())
    }
}

fn write_counts<K: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    label: &str,
    counts: &BTreeMap<K, u64>,
) -> fmt::Result {
    for (reason, count) in counts {
        writeln!(f, "{label:<15}{count} × {reason}")?;
    }
    Ok(())
}

/// The `tidegate_saturation` series of a Prometheus text page, resource to value.
#[must_use]
pub fn parse_saturation(page: &str) -> BTreeMap<String, f64> {
    page.lines()
        .filter_map(|line| {
            let (labels, value) = line.strip_prefix("tidegate_saturation{")?.rsplit_once('}')?;
            let resource = labels.split(',').find_map(|label| label.strip_prefix("resource=\""))?;
            let value = value.split_ascii_whitespace().next()?.parse().ok()?;
            Some((resource.trim_end_matches('"').to_owned(), value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saturation_is_read_from_a_metrics_page() {
        let page = "# TYPE tidegate_saturation gauge\n\
            tidegate_saturation{resource=\"descriptors\"} 0.75\n\
            tidegate_saturation{node=\"a\",resource=\"cpu\"} 0.5 1700000000\n\
            tidegate_saturation_other{resource=\"x\"} 1\n\
            tidegate_saturation{resource=\"bad\"} nonsense\n";
        let expected = BTreeMap::from([("cpu".to_owned(), 0.5), ("descriptors".to_owned(), 0.75)]);
        assert_eq!(parse_saturation(page), expected);
    }

    #[test]
    fn durations_read_naturally() {
        for (us, text) in [(0, "0 µs"), (999, "999 µs"), (1_500, "1.5 ms"), (2_340_000, "2.34 s")] {
            assert_eq!(Micros(us).to_string(), text);
        }
    }
}
