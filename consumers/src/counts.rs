//! What consumers count, and their families under `tidegate_consumer_`.

use std::{fmt, sync::Arc};

use tidegate_ops::metrics::{Collector, Counter, DescriptorEncoder, Gauge, Page};

use crate::batch::Settled;

/// Of one consumer. The configuration bounds how many there are.
#[derive(Debug, Default)]
pub struct CountsOf {
    pub(crate) name: Box<str>,
    pub(crate) read: Counter,
    pub(crate) published: Counter,
    pub(crate) duplicates: Counter,
    pub(crate) aside: Counter,
    /// Batches that have to be published later in part.
    pub(crate) retries: Counter,
    /// Connections that could not be made, or broke.
    pub(crate) failures: Counter,
    pub(crate) connected: Gauge,
    /// 1 while this node reads it.
    pub(crate) active: Gauge,
    /// Entries that wait in the store, as far as was counted.
    pub(crate) lag: Gauge,
    /// Age of the oldest of them, in milliseconds.
    pub(crate) lag_ms: Gauge,
    /// Entries that were set aside and are in the store.
    pub(crate) aside_now: Gauge,
}

/// Of all consumers of a node.
#[derive(Debug)]
pub struct Counts(pub Vec<Arc<CountsOf>>);

impl CountsOf {
    pub(crate) fn new(name: &str) -> Arc<Self> {
        Arc::new(Self { name: name.into(), ..Self::default() })
    }

    /// Counts what became of a batch.
    pub(crate) fn settled<I>(&self, settled: &Settled<I>) {
        self.published.add(settled.done.len() as u64);
        self.duplicates.add(settled.duplicates);
        self.aside.add(settled.aside.len() as u64);
        for (_, why) in &settled.aside {
            tracing::warn!(consumer = &*self.name, %why, "an entry was set aside");
        }
    }
}

impl Counts {
    fn counters(
        &self,
        page: &mut Page<'_>,
        name: &str,
        help: &str,
        of: impl Fn(&CountsOf) -> &Counter,
    ) -> fmt::Result {
        let values = self.0.iter().map(|counts| (&*counts.name, of(counts).get()));
        page.counters_by(name, help, "consumer", values)
    }

    fn gauges(
        &self,
        page: &mut Page<'_>,
        name: &str,
        help: &str,
        of: impl Fn(&CountsOf) -> f64,
    ) -> fmt::Result {
        let values = self.0.iter().map(|counts| (&*counts.name, of(counts)));
        page.gauges_by(name, help, "consumer", values)
    }
}

impl Collector for Counts {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        let page = &mut Page::new(encoder);
        self.counters(page, "consumer_read", "Entries that were read.", |it| &it.read)?;
        self.counters(page, "consumer_published", "Entries that were accepted.", |it| &it.published)?;
        let help = "Entries that had been published before, by their key.";
        self.counters(page, "consumer_duplicates", help, |it| &it.duplicates)?;
        let help = "Entries that never can be published and were set aside.";
        self.counters(page, "consumer_set_aside", help, |it| &it.aside)?;
        let help = "Batches of which a part has to be published later.";
        self.counters(page, "consumer_retries", help, |it| &it.retries)?;
        let help = "Connections to the store that could not be made, or broke.";
        self.counters(page, "consumer_failures", help, |it| &it.failures)?;
        let help = "1 while this node is connected to the store.";
        self.gauges(page, "consumer_connected", help, |it| it.connected.get() as f64)?;
        let help = "1 while this node is the one that reads the store.";
        self.gauges(page, "consumer_active", help, |it| it.active.get() as f64)?;
        let help = "Entries that wait in the store, as the node that reads it counts them, up to 100000.";
        self.gauges(page, "consumer_lag", help, |it| it.lag.get() as f64)?;
        let help = "Age of the oldest entry that waits.";
        self.gauges(page, "consumer_lag_seconds", help, |it| it.lag_ms.get() as f64 / 1000.0)?;
        let help = "Entries that were set aside and are still in the store, up to 100000.";
        self.gauges(page, "consumer_set_aside_now", help, |it| it.aside_now.get() as f64)
    }
}
