//! Counter, gauge, labelled counters and histogram as plain atomics: an update is one relaxed add.

use std::{
    marker::PhantomData,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Duration,
};

use super::label::Label;

/// Most values a label has; an array of them is 192 bytes.
const LABEL_VALUES_MAX: usize = 24;
/// Most buckets a histogram has, the one without a bound included.
const BUCKETS_MAX: usize = 16;

/// Only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// Goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

/// One counter for each value of a label.
#[derive(Debug)]
pub struct Counters<L> {
    values: [AtomicU64; LABEL_VALUES_MAX],
    label: PhantomData<L>,
}

/// Durations in buckets with fixed bounds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    buckets: [AtomicU64; BUCKETS_MAX],
    /// In nanoseconds: 64 bits hold 584 years of summed durations.
    sum_ns: AtomicU64,
}

/// A histogram read at one moment, or the sum of several.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct HistogramTotal {
    pub(super) buckets: Vec<(f64, u64)>,
    pub(super) count: u64,
    pub(super) sum_s: f64,
}

impl Counter {
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Gauge {
    pub fn add(&self, amount: i64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl<L: Label> Default for Counters<L> {
    fn default() -> Self {
        const { assert!(L::ALL.len() <= LABEL_VALUES_MAX) };
        Self { values: Default::default(), label: PhantomData }
    }
}

impl<L: Label> Counters<L> {
    pub fn add(&self, label: L, amount: u64) {
        self.values[label.index()].fetch_add(amount, Ordering::Relaxed);
    }

    pub fn get(&self, label: L) -> u64 {
        self.values[label.index()].load(Ordering::Relaxed)
    }
}

impl Histogram {
    /// With these upper bounds in seconds, which must grow.
    pub const fn new(bounds: &'static [f64]) -> Self {
        assert!(bounds.len() < BUCKETS_MAX);
        Self { bounds, buckets: [const { AtomicU64::new(0) }; BUCKETS_MAX], sum_ns: AtomicU64::new(0) }
    }

    pub fn observe(&self, duration: Duration) {
        self.observe_many(duration, 1);
    }

    /// As many observations of one duration: a batch that left in one write.
    pub fn observe_many(&self, duration: Duration, number: u64) {
        let seconds = duration.as_secs_f64();
        let bucket = self.bounds.partition_point(|&bound| bound < seconds);
        self.buckets[bucket].fetch_add(number, Ordering::Relaxed);
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(nanos.saturating_mul(number), Ordering::Relaxed);
    }

    /// The sum of several histograms with the same bounds. The count is the sum of the buckets that were read,
    /// so the two never disagree, whatever is written meanwhile.
    pub(super) fn total<'a>(
        histograms: impl Iterator<Item = &'a Self>,
        bounds: &'static [f64],
    ) -> HistogramTotal {
        let mut buckets: Vec<(f64, u64)> =
            bounds.iter().copied().chain([f64::INFINITY]).map(|bound| (bound, 0)).collect();
        let mut sum_ns = 0u64;
        for histogram in histograms {
            debug_assert_eq!(histogram.bounds, bounds);
            for (total, bucket) in buckets.iter_mut().zip(&histogram.buckets) {
                total.1 += bucket.load(Ordering::Relaxed);
            }
            sum_ns = sum_ns.wrapping_add(histogram.sum_ns.load(Ordering::Relaxed));
        }
        let count = buckets.iter().map(|(_, count)| count).sum();
        HistogramTotal { buckets, count, sum_s: sum_ns as f64 / 1e9 }
    }
}
