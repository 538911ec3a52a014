//! What hooks count, each for itself: their names are those of the configuration.

use std::{fmt, sync::Arc};

use tidegate_ops::{
    label,
    metrics::{Collector, Counters, DescriptorEncoder, Gauge, Histogram, Page},
};

use super::hook::Hook;

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

const LATENCY_BOUNDS: &[f64] =
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

/// The families under `tidegate_hook_`.
#[derive(Debug)]
pub(crate) struct HookCollector(pub(super) Vec<Arc<Hook>>);

impl Collector for HookCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page::new(encoder);
        let hooks = || self.0.iter().map(|hook| (hook.name(), hook));
        let results = hooks().map(|(name, hook)| (name, &hook.metrics.results));
        page.counters_of(
            "hook_questions",
            "Questions to an application, by how they ended.",
            "hook",
            results,
        )?;
        let latencies = hooks().map(|(name, hook)| (name, &hook.metrics.latency_seconds));
        let help = "From a question to its answer.";
        page.histogram_of("hook_latency_seconds", help, "hook", LATENCY_BOUNDS, latencies)?;
        let under_way = hooks().map(|(name, hook)| (name, hook.metrics.under_way.get() as f64));
        page.gauges_by("hook_questions_under_way", "Questions that wait for an answer.", "hook", under_way)?;
        let open = hooks().map(|(name, hook)| (name, f64::from(u8::from(hook.is_open()))));
        page.gauges_by("hook_circuit_open", "1: the application fails, and is only probed.", "hook", open)?;
        let opened = hooks().map(|(name, hook)| (name, hook.times_opened()));
        page.counters_by("hook_circuit_openings", "How often the circuit has opened.", "hook", opened)
    }
}
