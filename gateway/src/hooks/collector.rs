//! What all hooks have counted, as a page of metrics: a hook's label is its name in the configuration.

use std::{fmt, sync::Arc};

use tidegate_ops::metrics::{Collector, DescriptorEncoder, Page};

use super::{hook::Hook, metrics::LATENCY_BOUNDS};

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
