//! What a router counts beside its proxy, and the families it shows, those of the proxy included.

use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Instant,
};

use tidegate_ops::{
    label,
    metrics::{self, Bounds, Collector, Counters, DescriptorEncoder, Gauge, Load, Page},
};

use crate::{
    chooser::{Chooser, PassedOver},
    proxy::ProxyStats,
};

label!(
    /// How a round of the members' source ended.
    Refresh, "result", {
        Ok = "ok",
        Failed = "failed",
    }
);

label!(
    /// Why an answer was not the first node of its key.
    Fallback, "reason", {
        /// It is over its bound.
        Full = "full",
        /// It refused somebody a moment ago.
        Avoided = "avoided",
    }
);

label!(
    /// What became of a key that was asked for.
    Assignment, "result", {
        Ok = "ok",
        NoNode = "no_node",
    }
);

label!(
    /// What a node is good for.
    NodeState, "state", {
        /// Gets new clients.
        Live = "live",
        /// Gets new clients when no other can take them: it refused somebody a moment ago.
        Avoided = "avoided",
        Draining = "draining",
        /// Does not answer its checks.
        Down = "down",
        /// Its host was never resolved.
        Unresolved = "unresolved",
    }
);

/// The counters of a router.
#[derive(Debug)]
pub struct Metrics {
    pub members_refreshes: Counters<Refresh>,
    pub assignment_fallbacks: Counters<Fallback>,
    pub assignments: Counters<Assignment>,
    /// Nodes whose host was never resolved.
    pub unresolved: Gauge,
    pub draining: Gauge,
    /// 1 while nearly all nodes look bad.
    pub panicking: Gauge,
    bounds: Bounds,
    load: Mutex<Load>,
    proxy: OnceLock<ProxyStats>,
    others: Mutex<Vec<Arc<dyn Collector>>>,
}

impl Metrics {
    pub fn new(bounds: Bounds) -> Self {
        Self {
            members_refreshes: Counters::default(),
            assignment_fallbacks: Counters::default(),
            assignments: Counters::default(),
            unresolved: Gauge::default(),
            draining: Gauge::default(),
            panicking: Gauge::default(),
            bounds,
            load: Mutex::default(),
            proxy: OnceLock::new(),
            others: Mutex::default(),
        }
    }

    /// The proxy counts for itself; only the first one is shown.
    pub fn set_proxy(&self, stats: ProxyStats) {
        self.proxy.get_or_init(|| stats);
    }

    /// Families of another module, shown with ours.
    pub fn add(&self, collector: Arc<dyn Collector>) {
        self.others.lock().unwrap_or_else(PoisonError::into_inner).push(collector);
    }

    pub(crate) fn note_passed_over(&self, passed_over: PassedOver) {
        let reason = match passed_over {
            PassedOver::Full => Fallback::Full,
            PassedOver::Avoided => Fallback::Avoided,
        };
        self.assignment_fallbacks.add(reason, 1);
    }

    /// Everything in the OpenMetrics text format.
    pub fn openmetrics(self: &Arc<Self>, chooser: &Arc<Chooser>) -> String {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let own = RouterCollector { metrics: Arc::clone(self), chooser: Arc::clone(chooser) };
        metrics::openmetrics(std::iter::once(Arc::new(own) as Arc<dyn Collector>).chain(others))
    }
}

/// The families under `tidegate_`.
#[derive(Debug)]
struct RouterCollector {
    metrics: Arc<Metrics>,
    chooser: Arc<Chooser>,
}

impl Collector for RouterCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (metrics, chooser) = (&*self.metrics, &*self.chooser);
        let mut page = Page::new(encoder);
        page.gauges("nodes", "Gateways known, by what they are good for.", &node_states(metrics, chooser))?;
        // A sample is a double, which holds 53 bits. What is left out makes two views equal once in 2^52.
        let digest = (chooser.digest() >> 12) as f64;
        page.gauge(
            "placement_digest",
            "The upper 52 bits of a hash of the members that take clients: equal views are equal.",
            digest,
        )?;
        page.counters(
            "members_refreshes",
            "Rounds of asking for the members.",
            [&metrics.members_refreshes],
        )?;
        page.counters(
            "assignment_fallbacks",
            "Answers of /v1/assign that were not the key's first gateway.",
            [&metrics.assignment_fallbacks],
        )?;
        page.counters("assignments", "Keys answered by /v1/assign.", [&metrics.assignments])?;
        page.gauge("draining", "1 while the process drains.", metrics.draining.get() as f64)?;
        page.gauge(
            "members_panic",
            "1 while nearly all gateways look bad, so that this router believes it of none.",
            metrics.panicking.get() as f64,
        )?;
        let mut busy = Vec::new();
        if let Some(proxy) = metrics.proxy.get() {
            proxy.encode(&mut page)?;
            busy = proxy.busy();
        }
        let mut load = metrics.load.lock().unwrap_or_else(PoisonError::into_inner);
        page.saturation(&load.read(&busy, &[], &metrics.bounds))?;
        page.build()
    }
}

fn node_states(metrics: &Metrics, chooser: &Chooser) -> Vec<(NodeState, f64)> {
    let now = Instant::now();
    let mut states = [0u32; 4];
    for (member, node) in chooser.members() {
        let state = match () {
            () if node.is_down() => NodeState::Down,
            () if member.draining => NodeState::Draining,
            () if node.is_avoided(now) => NodeState::Avoided,
            () => NodeState::Live,
        };
        states[state as usize] += 1;
    }
    let of = |state: NodeState| (state, f64::from(states[state as usize]));
    vec![
        of(NodeState::Live),
        of(NodeState::Avoided),
        of(NodeState::Draining),
        of(NodeState::Down),
        (NodeState::Unresolved, metrics.unresolved.get() as f64),
    ]
}
