//! What a hook counts.

use tidegate_ops::{
    label,
    metrics::{Counters, Gauge, Histogram},
};

label!(
    /// How a question ended.
    HookResult, "result", {
        /// The application has said yes.
        Yes = "yes",
        /// It has said no.
        No = "no",
        /// No answer in time.
        Timeout = "timeout",
        /// No connection, or it broke.
        Unreachable = "unreachable",
        /// A status of 300 to 399 or of 500 and above, or what cannot be read.
        Unusable = "unusable",
        /// More than `answer_bytes`.
        TooLarge = "too_large",
        /// Too many wait already.
        Busy = "busy",
        /// It was not asked: its circuit is open.
        CircuitOpen = "circuit_open",
    }
);

pub(super) const LATENCY_BOUNDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[derive(Debug)]
pub(super) struct HookMetrics {
    pub(super) results: Counters<HookResult>,
    /// From the question to its answer, the wait for its turn included; of those that were sent.
    pub(super) latency_seconds: Histogram,
    pub(super) under_way: Gauge,
}

impl Default for HookMetrics {
    fn default() -> Self {
        Self {
            results: Counters::default(),
            latency_seconds: Histogram::new(LATENCY_BOUNDS),
            under_way: Gauge::default(),
        }
    }
}
