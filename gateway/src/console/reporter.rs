//! Says each second what this node is, while somebody watches; waits while nobody does.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tidegate_backplane::Channel;
use tokio::time::MissedTickBehavior;

use super::report::{ChannelState, Report};
use crate::{
    metrics::{Metrics, Reader},
    node::{Node, connection_state::ConnectionState, shards::Inquiry},
};

const EVERY: Duration = Duration::from_secs(1);

/// Channels that are told for their subscribers, and as many for their deliveries.
const CHANNELS_MAX: usize = 20;

/// Channels whose subscribers are looked at in a round: about a millisecond. A node with a million is gone through in
/// 50 s, and keeps the largest that it found.
const LOOKED_AT_MAX: usize = 20_000;

/// What is kept from one report to the next.
#[derive(Debug)]
struct Reporter {
    node: Arc<Node>,
    metrics: Arc<Metrics>,
    started: Instant,
    reported: Instant,
    largest: Vec<Channel>,
    stripe: usize,
    inquiry: Option<Arc<Inquiry>>,
}

/// Reports until the process ends.
pub(crate) async fn run(node: Arc<Node>, metrics: Arc<Metrics>) {
    let now = Instant::now();
    let mut reporter = Reporter {
        node,
        metrics,
        started: now,
        reported: now,
        largest: Vec::new(),
        stripe: 0,
        inquiry: None,
    };
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        reporter.node.watching().until_on().await;
        ticks.tick().await;
        if let Some(names) = reporter.node.watching().current(Instant::now()) {
            let report = reporter.report(names).encode();
            // Those who watch see that nothing comes; a server that is away is said elsewhere.
            if let Err(error) = reporter.node.backplane().report(reporter.node.name(), report).await {
                tracing::debug!(%error, "those who watch could not be told about this node");
            }
        } else {
            (reporter.largest, reporter.inquiry) = (Vec::new(), None);
        }
    }
}

impl Reporter {
    fn report(&mut self, names: Vec<Box<str>>) -> Report {
        let now = Instant::now();
        let seconds = (now - mem::replace(&mut self.reported, now)).as_secs_f64();
        let readiness = self.node.readiness();
        let reasons = readiness.err().map(|not_ready| not_ready.reasons).unwrap_or_default();
        Report {
            uptime_ms: (now - self.started).as_millis() as u64,
            reasons: reasons.iter().map(ToString::to_string).collect(),
            missing: self.node.missing(),
            channels: self.channels(seconds),
            connections: self.connections(names),
            ..Report::of_exposition(&self.metrics.openmetrics(Reader::Console))
        }
    }

    /// What the shards said of the connections that the last report asked for; asks for those of the next.
    fn connections(&mut self, names: Vec<Box<str>>) -> Vec<ConnectionState> {
        let inquiry = Arc::new(Inquiry { names, found: Mutex::default() });
        let is_asked = !inquiry.names.is_empty();
        if is_asked {
            self.node.look_up(Arc::clone(&inquiry));
        }
        let last = mem::replace(&mut self.inquiry, is_asked.then_some(inquiry));
        let found =
            |last: Arc<Inquiry>| mem::take(&mut *last.found.lock().unwrap_or_else(PoisonError::into_inner));
        last.map(found).unwrap_or_default()
    }

    fn channels(&mut self, seconds: f64) -> Vec<ChannelState> {
        let mut counts = self.node.watching().rates.take();
        let (found, stripe) = self.node.interests().largest(self.stripe, LOOKED_AT_MAX, CHANNELS_MAX);
        self.stripe = stripe;
        let subscribers = |channel: &Channel| self.node.subscribers(channel);
        let mut sizes: HashMap<Channel, u64> = found.into_iter().collect();
        sizes.extend(self.largest.drain(..).map(|channel| {
            let subscribers = subscribers(&channel);
            (channel, subscribers)
        }));
        let mut largest: Vec<(Channel, u64)> = sizes.into_iter().filter(|(_, size)| *size > 0).collect();
        largest.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        largest.truncate(CHANNELS_MAX);
        self.largest = largest.iter().map(|(channel, _)| channel.clone()).collect();

        let known: HashSet<&Channel> = self.largest.iter().collect();
        let busy = counts.keys().filter(|channel| !known.contains(*channel));
        let mut busy: Vec<(Channel, u64)> =
            busy.map(|channel| (channel.clone(), self.node.subscribers(channel))).collect();
        busy.sort_by_cached_key(|(channel, subscribers)| {
            std::cmp::Reverse(counts.get(channel).copied().unwrap_or(0) * subscribers)
        });
        busy.truncate(CHANNELS_MAX);
        let both = largest.into_iter().chain(busy);
        both.map(|(channel, subscribers)| ChannelState {
            app: channel.app().map(str::to_owned),
            name: channel.name().to_owned(),
            subscribers,
            publications: counts.remove(&channel).unwrap_or(0) as f64 / seconds.max(0.001),
        })
        .collect()
    }
}
