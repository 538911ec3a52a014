//! What was refused, dropped and closed in the last minutes, by its reason: counts in cells of ten seconds.

use std::collections::{BTreeMap, VecDeque};

use super::{advice, report::of_family, view::Counted};

/// Counters that say no, or the end of something. In one place with their words.
#[derive(Debug)]
struct Kind {
    family: &'static str,
    what: &'static str,
    /// Values of the label that are no refusals.
    except: &'static [&'static str],
}

const REFUSALS: [Kind; 9] = [
    Kind { family: "handshakes_total", what: "connection refused", except: &["accepted", "abandoned"] },
    Kind { family: "auth_failures_total", what: "not let in", except: &[] },
    Kind { family: "subscriptions_refused_total", what: "subscription refused", except: &[] },
    Kind { family: "publish_requests_total", what: "publish refused", except: &["200", "207"] },
    Kind { family: "budgets_spent_total", what: "budget spent", except: &[] },
    Kind { family: "messages_dropped_total", what: "message dropped", except: &[] },
    Kind { family: "backplane_gaps_total", what: "gap told", except: &[] },
    Kind { family: "webhook_events_dropped_total", what: "webhook event dropped", except: &[] },
    Kind { family: "consumer_set_aside_total", what: "entry of a consumer set aside", except: &[] },
];

const CLOSES: [Kind; 1] = [Kind { family: "disconnects_total", what: "closed", except: &[] }];

const CELL_MS: u64 = 10_000;
/// 15 minutes.
const CELLS: u64 = 90;
const MINUTE_CELLS: u64 = 6;
/// Reasons are closed sets, and all of them together are fewer; a node of another version may have others.
const ENTRIES_MAX: usize = 200;

/// Counts by what and reason.
#[derive(Debug)]
pub(super) struct Ledger {
    kinds: &'static [Kind],
    entries: BTreeMap<(&'static str, String), Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    cells: VecDeque<(u64, f64)>,
    last_ms: u64,
    /// Where it happened last.
    node: String,
}

impl Ledger {
    pub(super) fn of_refusals() -> Self {
        Self { kinds: &REFUSALS, entries: BTreeMap::new() }
    }

    pub(super) fn of_closes() -> Self {
        Self { kinds: &CLOSES, entries: BTreeMap::new() }
    }

    /// Adds what a node's counters grew by, and gives how much that is together.
    pub(super) fn add(&mut self, now_ms: u64, node: &str, grown: &BTreeMap<String, f64>) -> f64 {
        let mut sum = 0.0;
        let counts = self.kinds.iter().flat_map(|kind| {
            let counts = of_family(grown, kind.family);
            counts
                .filter(move |(reason, count)| *count > 0.0 && !kind.except.contains(reason))
                .map(move |(reason, count)| (kind.what, reason, count))
        });
        for (what, reason, count) in counts {
            sum += count;
            let key = (what, reason.to_owned());
            if self.entries.len() >= ENTRIES_MAX && !self.entries.contains_key(&key) {
                continue;
            }
            let entry = self.entries.entry(key).or_default();
            (entry.last_ms, entry.node) = (now_ms, node.to_owned());
            let cell = now_ms / CELL_MS;
            match entry.cells.back_mut().filter(|(own, _)| *own == cell) {
                Some((_, own)) => *own += count,
                None => entry.cells.push_back((cell, count)),
            }
        }
        sum
    }

    /// All of the last 15 minutes, the most in the last minute first.
    pub(super) fn list(&mut self, now_ms: u64) -> Vec<Counted> {
        let oldest = (now_ms / CELL_MS).saturating_sub(CELLS - 1);
        self.entries.retain(|_, entry| {
            entry.cells.retain(|(cell, _)| *cell >= oldest);
            !entry.cells.is_empty()
        });
        let minute = (now_ms / CELL_MS).saturating_sub(MINUTE_CELLS - 1);
        let counted = self.entries.iter().map(|((what, reason), entry)| {
            let since = |first: u64| {
                entry.cells.iter().filter(|(cell, _)| *cell >= first).map(|(_, n)| n).sum::<f64>()
            };
            Counted {
                what: (*what).to_owned(),
                reason: reason.clone(),
                meaning: advice::meaning(reason).map(str::to_owned),
                last_minute: since(minute),
                last_quarter: since(0),
                node: entry.node.clone(),
                ago_s: now_ms.saturating_sub(entry.last_ms) / 1000,
            }
        });
        let mut counted: Vec<Counted> = counted.collect();
        counted.sort_by(|a, b| {
            (b.last_minute, b.last_quarter)
                .partial_cmp(&(a.last_minute, a.last_quarter))
                .unwrap_or(std::cmp::Ordering::Equal)
        });
        counted
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn refusals_are_counted_by_reason_and_forgotten_after_a_quarter_of_an_hour() {
        let mut ledger = Ledger::of_refusals();
        let grown = BTreeMap::from([
            ("handshakes_total{result=\"accepted\"}".to_owned(), 50.0),
            ("handshakes_total{result=\"node_limit\"}".to_owned(), 3.0),
            ("publish_requests_total{code=\"200\"}".to_owned(), 9.0),
            ("publish_requests_total{code=\"429\"}".to_owned(), 2.0),
        ]);
        assert_eq!(ledger.add(1_000_000, "g1", &grown), 5.0);
        ledger.add(1_120_000, "g2", &grown);
        let list = ledger.list(1_125_000);
        assert_eq!(list.len(), 2);
        assert_eq!((&*list[0].reason, list[0].last_minute, list[0].last_quarter), ("node_limit", 3.0, 6.0));
        assert!(list[0].meaning.as_ref().unwrap().contains("limits.connections"), "{:?}", list[0]);
        assert_eq!((&*list[1].what, &*list[1].node, list[1].ago_s), ("publish refused", "g2", 5));
        assert_eq!(ledger.list(1_120_000 + CELLS * CELL_MS), []);
    }
}
