//! What apps count.

use std::{fmt, sync::Arc};

use tidegate_ops::{
    label,
    metrics::{Collector, Counters, DescriptorEncoder, Page},
};

use super::Apps;

label!(
    /// What came of reading the list of apps again.
    ReloadResult, "result", {
        Replaced = "replaced",
        /// Something in it is wrong: the list is as it was.
        Refused = "refused",
    }
);

#[derive(Debug, Default)]
pub(super) struct AppMetrics {
    pub(super) reloads: Counters<ReloadResult>,
}

/// The families under `tidegate_app`.
#[derive(Debug)]
pub(crate) struct AppCollector(pub(crate) Arc<Apps>);

impl Collector for AppCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page::new(encoder);
        page.gauge("apps", "Apps in the list, disabled ones included.", self.0.len() as f64)?;
        page.counters("app_reloads", "Times that the list of apps was read again.", [&self.0.metrics.reloads])
    }
}
