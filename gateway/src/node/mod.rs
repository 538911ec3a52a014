//! One node: its parts, its stage from serving to closing, and what it answers to front ends.

pub(crate) mod asking;
pub(crate) mod channels;
pub(crate) mod connection_state;
pub(crate) mod content;
pub(crate) mod drain;
pub(crate) mod form;
pub(crate) mod histories;
pub(crate) mod instruction;
pub(crate) mod interest;
pub(crate) mod member_info;
pub(crate) mod outgoing;
mod publish;
mod relay;
pub(crate) mod roster;
pub(crate) mod shards;
pub(crate) mod watching;

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
};

use tidegate_backplane::{
    Backplane, BackplaneError, Channel, Control, History, HistoryQuery, NodeRecord, Target,
};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_util::task::TaskTracker;

use self::{
    histories::Histories,
    interest::Interests,
    roster::{List, Rosters},
    shards::{Inquiry, Order},
    watching::Watching,
};
pub(crate) use self::{
    publish::{PublishError, PublishHistory, PublishOutcome, PublishRequest},
    relay::{Relay, spread},
};
use crate::{
    admission::Front,
    config::{BackplaneUrl, Config, Namespaces},
    metrics::Metrics,
};

/// Each has every node look at all its channels, a page at a time.
const LISTINGS_MAX: usize = 2;

/// A channel with subscribers on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChannelInfo {
    pub name: Channel,
    pub subscribers: u64,
}

/// Why the node is not ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not ready")]
pub(crate) struct NotReady {
    pub reasons: Vec<NotReadyReason>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotReadyReason {
    #[error("draining")]
    Draining,
    #[error("a shard has failed: the node drains and ends, to be started again")]
    ShardFailed,
    #[error(transparent)]
    Backplane(BackplaneError),
    /// Routers do not know this node: another one has its name.
    #[error("the node registry refuses this node: {0}")]
    Registry(BackplaneError),
}

/// Bounds that front ends apply while they read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The payload of one publication.
    pub payload_bytes_max: usize,
    /// The body of one request.
    pub body_bytes_max: usize,
}

/// How far the node is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Stage {
    Serving,
    /// Said that it drains, still accepting.
    Settling,
    /// Refusing new connections, closing old ones.
    Closing,
}

/// One node.
pub(crate) struct Node {
    config: Arc<Config>,
    backplane: Arc<dyn Backplane>,
    histories: Arc<Histories>,
    relay: Arc<Relay>,
    front: Arc<Front>,
    metrics: Arc<Metrics>,
    stage: AtomicU8,
    drain_asked: Notify,
    drain_was_asked: AtomicBool,
    /// Why the node registry refuses this node.
    registry_refusal: Mutex<Option<BackplaneError>>,
    shards_failed: AtomicU64,
    /// Clients that a drain has sent away and that are still present.
    moves: TaskTracker,
    /// Where routers of this machine hand sockets over.
    pub(crate) handover: OnceLock<Box<str>>,
    /// Questions for the channels of all nodes that are asked at the same time.
    listing: Semaphore,
}

impl Node {
    pub(crate) fn new(
        config: Arc<Config>,
        backplane: Arc<dyn Backplane>,
        relay: Arc<Relay>,
        front: Arc<Front>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let interests = Arc::clone(&relay.interests);
        let histories = Histories::new(Arc::clone(&backplane), interests, Arc::clone(&config));
        Self {
            config,
            backplane,
            histories: Arc::new(histories),
            relay,
            front,
            metrics,
            stage: AtomicU8::new(Stage::Serving as u8),
            drain_asked: Notify::new(),
            drain_was_asked: AtomicBool::new(false),
            registry_refusal: Mutex::default(),
            shards_failed: AtomicU64::new(0),
            moves: TaskTracker::new(),
            handover: OnceLock::new(),
            listing: Semaphore::new(LISTINGS_MAX),
        }
    }

    /// Its name in the cluster.
    pub(crate) fn name(&self) -> &str {
        &self.config.node
    }

    /// Channels of an app with subscribers on this node, in order of their names.
    pub(crate) fn channels(
        &self,
        app: Option<&str>,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Vec<ChannelInfo> {
        let found = self.relay.interests.list(app, |name| name.starts_with(prefix), after, limit);
        found.into_iter().map(|(name, subscribers)| ChannelInfo { name, subscribers }).collect()
    }

    /// Subscribers of a channel on this node.
    pub(crate) fn subscribers(&self, channel: &Channel) -> u64 {
        self.relay.interests.get(channel).map_or(0, |interest| interest.subscribers.load(Ordering::Relaxed))
    }

    pub(crate) async fn history(
        &self,
        channel: &Channel,
        query: HistoryQuery,
    ) -> Result<History, BackplaneError> {
        self.backplane.history(channel, query).await
    }

    /// Removes the history of a channel. Another node that has just read it may hand it out for some seconds more.
    pub(crate) async fn remove_history(&self, channel: &Channel) -> Result<(), BackplaneError> {
        self.backplane.remove_history(channel).await?;
        if let Some(interest) = self.relay.interests.get(channel) {
            interest.hand();
        }
        Ok(())
    }

    /// Reads of history for subscriptions that recover.
    pub(crate) fn histories(&self) -> &Arc<Histories> {
        &self.histories
    }

    /// Who is in a channel; `None` where its namespace keeps no presence. A channel that has subscribers here is answered
    /// from its roster, with all that had happened when it was asked.
    pub(crate) async fn presence(&self, channel: &Channel) -> Result<Option<Arc<List>>, BackplaneError> {
        if !self.namespaces().of(channel).presence {
            return Ok(None);
        }
        if self.relay.interests.get(channel).is_some() {
            let at_least = self.backplane.attendance(channel).await?.sequence;
            let (reply, list) = oneshot::channel();
            // Whoever asked may be gone.
            self.relay.rosters.read(channel, at_least, move |list| drop(reply.send(list)));
            if let Ok(Ok(list)) = list.await {
                return Ok(Some(list));
            }
        }
        let roll = self.backplane.roll(channel).await?;
        Ok(Some(Arc::new(List::new(roll))))
    }

    /// Closes connections, on whichever node they are.
    pub(crate) async fn disconnect(&self, target: Target, reason: Box<str>) -> Result<(), BackplaneError> {
        self.backplane.control(Control::Disconnect { target, reason }).await
    }

    pub(crate) async fn nodes(&self) -> Result<Vec<NodeRecord>, BackplaneError> {
        self.backplane.nodes().await
    }

    /// Whether new connections should come here.
    pub(crate) fn readiness(&self) -> Result<(), NotReady> {
        let draining = (self.stage() > Stage::Serving).then_some(NotReadyReason::Draining);
        let away = self.backplane.health().err().map(NotReadyReason::Backplane);
        let failed = (self.shards_failed() > 0).then_some(NotReadyReason::ShardFailed);
        let refused = self.registry_refusal.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let refused = refused.map(NotReadyReason::Registry);
        let reasons: Vec<_> = draining.into_iter().chain(failed).chain(away).chain(refused).collect();
        if reasons.is_empty() { Ok(()) } else { Err(NotReady { reasons }) }
    }

    /// What does not work though the rest does, one sentence each.
    pub(crate) fn missing(&self) -> Vec<String> {
        self.backplane.missing()
    }

    /// What came of announcing this node. That the registry is away says nothing of this node.
    pub(crate) fn note_announced(&self, result: &Result<(), BackplaneError>) {
        let refusal = match result {
            Ok(()) => None,
            Err(error @ BackplaneError::Refused(_)) => Some(error.clone()),
            Err(_) => return,
        };
        *self.registry_refusal.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
    }

    /// Begins to drain; the process ends when it is done. More calls change nothing.
    pub(crate) fn drain(&self) {
        if self.stage() == Stage::Serving {
            self.set_stage(Stage::Settling);
        }
        self.drain_was_asked.store(true, Ordering::Release);
        self.drain_asked.notify_waiters();
    }

    /// A shard has failed, with so many connections: the node serves nobody new, and drains those of the others.
    pub(crate) fn shard_failed(&self, connections: u64) {
        let failed = self.shards_failed.fetch_add(1, Ordering::AcqRel) + 1;
        self.metrics.node.shards_failed.set(failed as i64);
        self.front.forget(connections);
        self.drain();
    }

    /// Shards that have failed.
    pub(crate) fn shards_failed(&self) -> u64 {
        self.shards_failed.load(Ordering::Acquire)
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            payload_bytes_max: self.config.limits.publish_bytes.bytes(),
            body_bytes_max: self.config.limits.body_bytes.bytes(),
        }
    }

    /// Client connections, HTTP included.
    pub(crate) fn connections(&self) -> u64 {
        self.front.connections()
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn namespaces(&self) -> &Namespaces {
        &self.config.namespaces
    }

    pub(crate) fn backplane(&self) -> &Arc<dyn Backplane> {
        &self.backplane
    }

    pub(crate) fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            stage if stage == Stage::Serving as u8 => Stage::Serving,
            stage if stage == Stage::Settling as u8 => Stage::Settling,
            _ => Stage::Closing,
        }
    }

    /// Whether those who leave now are likely to go on at another node.
    pub(crate) fn is_moving_clients(&self) -> bool {
        self.stage() == Stage::Closing && self.config.backplane != BackplaneUrl::Memory
    }

    /// What is given back when a client that moved has had its time to arrive.
    pub(crate) fn moves(&self) -> &TaskTracker {
        &self.moves
    }

    pub(crate) fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Release);
        self.metrics.node.draining.set(i64::from(stage > Stage::Serving));
    }

    /// The channels that have subscribers on this node.
    pub(crate) fn interests(&self) -> &Interests {
        &self.relay.interests
    }

    /// Exports how full the node's bounds are.
    pub(crate) fn note_bounds(&self) {
        let interests = &self.relay.interests;
        self.metrics.node.channels.set(interests.len() as i64);
        self.metrics.node.send_queue_permille.set(interests.take_peak_permille() as i64);
        let recovery = self.histories.usage();
        self.metrics.node.recovery_permille.set((recovery.bytes * 1000 / recovery.bytes_max.max(1)) as i64);
    }

    pub(crate) async fn drain_asked(&self) {
        let asked = self.drain_asked.notified();
        if !self.drain_was_asked.load(Ordering::Acquire) {
            asked.await;
        }
    }

    /// What it does more while somebody watches.
    pub(crate) fn watching(&self) -> &Watching {
        &self.relay.watching
    }

    /// Has the shards look connections up.
    pub(crate) fn look_up(&self, inquiry: Arc<Inquiry>) {
        self.relay.to_all(&Order::LookUp(inquiry));
    }

    /// Who is in the presence channels of this node's subscribers.
    pub(crate) fn rosters(&self) -> &Arc<Rosters> {
        &self.relay.rosters
    }

    /// What this node says of itself.
    pub(crate) fn record(&self) -> NodeRecord {
        NodeRecord {
            name: self.config.node.clone(),
            address: self.config.advertised(),
            zone: self.config.zone.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            connections: self.connections(),
            capacity: self.front.connections_max(),
            draining: self.stage() > Stage::Serving,
            handover: self.handover.get().cloned(),
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("name", &self.config.node)
            .field("stage", &self.stage())
            .finish_non_exhaustive()
    }
}
