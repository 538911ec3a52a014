//! What webhooks count.

use std::{fmt, sync::Arc};

use tidegate_ops::{
    label,
    metrics::{Collector, Counter, Counters, DescriptorEncoder, Gauge, Page},
};

use super::HookEvents;

label!(
    /// Why an event was not sent.
    WebhookDrop, "reason", {
        /// The queue of its address was full: the oldest make room for the newest.
        QueueFull = "queue_full",
        /// It was not taken within `webhooks.retry_for`.
        GivenUp = "given_up",
        /// The app or the address is no longer in the configuration.
        Removed = "removed",
        /// The node has ended.
        Drain = "drain",
    }
);

label!(
    /// How a request ended.
    WebhookResult, "result", {
        /// 2xx.
        Taken = "taken",
        /// Another status.
        Refused = "refused",
        /// No answer in time.
        Timeout = "timeout",
        /// No connection, or it broke.
        Failed = "failed",
    }
);

/// Of all addresses of apps together: a label for each would grow with the number of apps. Of each hook by itself.
#[derive(Debug, Default)]
pub(crate) struct WebhookMetrics {
    pub(super) events: Counter,
    /// Left out because another event says the same.
    pub(super) coalesced: Counter,
    pub(super) dropped: Counters<WebhookDrop>,
    pub(super) requests: Counters<WebhookResult>,
    pub(super) retries: Counter,
    pub(super) queue_bytes: Gauge,
}

/// The families under `tidegate_webhook_`.
#[derive(Debug)]
pub(crate) struct WebhookCollector(pub(super) Arc<WebhookMetrics>);

impl Collector for WebhookCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let metrics = &self.0;
        let mut page = Page::new(encoder);
        page.counter("webhook_events", "Events that a webhook was to be told.", metrics.events.get())?;
        page.counters("webhook_events_dropped", "Events that a webhook was not told.", [&metrics.dropped])?;
        page.counter(
            "webhook_events_coalesced",
            "Cache misses told a moment before, and numbers of subscriptions that a newer one replaced.",
            metrics.coalesced.get(),
        )?;
        page.counters("webhook_requests", "Requests to webhooks.", [&metrics.requests])?;
        page.counter("webhook_retries", "Requests that repeat a failed one.", metrics.retries.get())?;
        page.gauge(
            "webhook_queue_bytes",
            "Events that wait for webhooks, in bytes.",
            metrics.queue_bytes.get() as f64,
        )
    }
}

/// Of each hook that is told events, the families under `tidegate_hook_event`.
#[derive(Debug)]
pub(crate) struct HookEventCollector(pub(crate) Arc<HookEvents>);

impl Collector for HookEventCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page::new(encoder);
        let told = || self.0.told().iter().map(|told| (&*told.name, &*told.metrics));
        let events = told().map(|(name, metrics)| (name, metrics.events.get()));
        page.counters_by("hook_events", "Events that a hook was to be told.", "hook", events)?;
        let dropped = told().map(|(name, metrics)| (name, &metrics.dropped));
        page.counters_of("hook_events_dropped", "Events that a hook was not told.", "hook", dropped)?;
        let requests = told().map(|(name, metrics)| (name, &metrics.requests));
        page.counters_of("hook_event_requests", "Requests with events to a hook.", "hook", requests)?;
        let retries = told().map(|(name, metrics)| (name, metrics.retries.get()));
        let help = "Requests with events that repeat a failed one.";
        page.counters_by("hook_event_retries", help, "hook", retries)?;
        let waiting = told().map(|(name, metrics)| (name, metrics.queue_bytes.get() as f64));
        let help = "Events that wait for a hook, in bytes.";
        page.gauges_by("hook_event_queue_bytes", help, "hook", waiting)
    }
}
