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

/// The families under `tidegate_app`. The label `app` has the apps of the configuration.
#[derive(Debug)]
pub(crate) struct AppCollector(pub(crate) Arc<Apps>);

impl Collector for AppCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page::new(encoder);
        let connections = self.0.connections();
        let connections = connections.iter().map(|(app, open)| (app.as_str(), f64::from(*open)));
        page.gauges_by("app_connections", "Open connections of an app.", "app", connections)?;
        page.counters("app_reloads", "Times that the list of apps was read again.", [&self.0.metrics.reloads])
    }
}
