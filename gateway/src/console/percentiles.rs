//! Percentiles from the differences of a histogram's buckets, over a short while.

use std::collections::{BTreeMap, VecDeque};

/// Long enough for percentiles at 100 deliveries a second to mean something, short enough to show what changes.
const WINDOW_MS: u64 = 10_000;

/// The buckets of the last while: how many more were at most so much, by the bound in microseconds.
#[derive(Debug, Default)]
pub(super) struct Window {
    added: VecDeque<(u64, BTreeMap<u64, f64>)>,
}

/// What no finite bound holds.
const UNBOUNDED: u64 = u64::MAX;

impl Window {
    /// Adds what a node's buckets grew by: bounds in seconds as they are scraped, and counts up to each of them.
    pub(super) fn add<'b>(&mut self, now_ms: u64, buckets: impl Iterator<Item = (&'b str, f64)>) {
        let bound = |text: &str| match text.parse::<f64>() {
            Ok(seconds) if seconds.is_finite() => Some((seconds * 1e6).round() as u64),
            Ok(_) => Some(UNBOUNDED),
            Err(_) => None,
        };
        let buckets: BTreeMap<u64, f64> =
            buckets.filter_map(|(text, count)| Some((bound(text)?, count))).collect();
        self.added.push_back((now_ms, buckets));
        while self.added.front().is_some_and(|(at, _)| at + WINDOW_MS < now_ms) {
            self.added.pop_front();
        }
    }

    /// So many of a hundred took at most this long, in milliseconds; `None` where nothing was counted. What is beyond
    /// the largest bound is said to be there.
    pub(super) fn percentile(&self, of_hundred: f64) -> Option<f64> {
        let mut sums = BTreeMap::<u64, f64>::new();
        for (bound, count) in self.added.iter().flat_map(|(_, buckets)| buckets) {
            *sums.entry(*bound).or_default() += count;
        }
        let total = *sums.values().next_back()?;
        let wanted = total * of_hundred / 100.0;
        if total <= 0.0 {
            return None;
        }
        let (mut below, mut below_us) = (0.0, 0_u64);
        for (bound, count) in sums {
            if count >= wanted {
                if bound == UNBOUNDED {
                    break;
                }
                // Within a bucket they are thought to be spread evenly.
                let part = if count > below { (wanted - below) / (count - below) } else { 1.0 };
                return Some((below_us as f64 + part * (bound - below_us) as f64) / 1000.0);
            }
            (below, below_us) = (count, bound);
        }
        Some(below_us as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(buckets: &[(&str, f64)], of_hundred: f64, expect: Option<f64>) {
        let mut window = Window::default();
        window.add(0, buckets.iter().copied());
        let found = window.percentile(of_hundred);
        let is_near = |(found, expect): (f64, f64)| (found - expect).abs() < 1e-9;
        assert!(found.zip(expect).map_or(found == expect, is_near), "{buckets:?} {of_hundred}: {found:?}");
    }

    #[test]
    fn a_percentile_lies_in_its_bucket() {
        let buckets = [("0.001", 50.0), ("0.01", 90.0), ("1.0", 100.0), ("+Inf", 100.0)];
        check(&buckets, 50.0, Some(1.0));
        check(&buckets, 25.0, Some(0.5));
        check(&buckets, 70.0, Some(5.5));
        check(&buckets, 95.0, Some(505.0));
        check(&[("0.001", 0.0), ("+Inf", 0.0)], 50.0, None);
        check(&[], 50.0, None);
        // All are slower than the largest bound.
        check(&[("0.5", 0.0), ("+Inf", 9.0)], 99.0, Some(500.0));
    }

    #[test]
    fn what_is_long_ago_does_not_count_and_nodes_are_summed() {
        let mut window = Window::default();
        window.add(0, [("0.001", 100.0), ("+Inf", 100.0)].into_iter());
        window.add(WINDOW_MS + 1, [("0.001", 0.0), ("0.002", 1.0), ("+Inf", 1.0)].into_iter());
        window.add(WINDOW_MS + 1, [("0.001", 0.0), ("0.002", 1.0), ("+Inf", 1.0)].into_iter());
        assert_eq!(window.percentile(100.0), Some(2.0));
    }
}
