//! One node: takes publishes, waits where there is no room, hands them to the backplane, and spreads what the
//! backplane hands back to the shards that have subscribers.

pub(crate) mod drain;
pub(crate) mod form;
pub(crate) mod histories;
pub(crate) mod interest;
pub(crate) mod outgoing;
pub(crate) mod roster;
pub(crate) mod shards;
pub(crate) mod watching;

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tidegate_backplane::{
    Backplane, BackplaneError, CensusEvent, Channel, Control, DisconnectTarget, Gap, History, HistoryQuery,
    Intake, Member, NewPublication, NodeRecord, Payload, Position, Publication, Published, Sender, Sink,
    Transition,
};
use tidegate_reactor::waking_once;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::{
    admission::Front,
    app::{self, webhooks::TransitionHooks},
    config::{BackplaneAway, BackplaneUrl, Config, Namespaces},
    metrics::Metrics,
    node::histories::Histories,
    node::interest::{Interest, Interests},
    node::outgoing::{Content, Outgoing},
    node::roster::Rosters,
    node::shards::{Inquiry, Order, ShardPort, Shards},
    node::watching::Watching,
};

/// A publish as a front end asks for it.
#[derive(Debug, Clone)]
pub(crate) struct PublishRequest {
    pub channel: Channel,
    pub event: Option<Box<str>>,
    pub payload: Payload,
    pub idempotency_key: Option<Box<str>>,
    pub sender: Option<Box<Sender>>,
    pub history: PublishHistory,
}

/// What is kept of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum PublishHistory {
    /// What the channel's namespace says, or its app where the channel is of one that has a rule for it.
    #[default]
    Namespace,
    /// It is in no history and has no position.
    Never,
}

/// What became of a publish that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PublishOutcome {
    pub position: Option<Position>,
    /// The idempotency key was seen before, and nothing was published.
    pub duplicate: bool,
    /// The backplane was out of reach, and it went to subscribers on this node only.
    pub local: bool,
}

/// Why a publish was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PublishError {
    #[error("this node has more publications under way than it takes")]
    Overloaded { retry_after: Duration },
    #[error(transparent)]
    Backplane(#[from] BackplaneError),
    #[error("the payload has {bytes} bytes, {max} are allowed")]
    TooLarge { bytes: usize, max: usize },
}

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
    /// Clients that a drain has sent away and that are still in the census.
    moves: TaskTracker,
}

/// What the backplane calls: spreads to the shards.
pub(crate) struct Relay {
    /// What is published locally has one order on all shards.
    local_order: Mutex<()>,
    pub(crate) interests: Arc<Interests>,
    pub(crate) rosters: Arc<Rosters>,
    pub(crate) watching: Watching,
    shards: Shards,
    /// Publications handed over for channels that nobody here is subscribed to any more.
    pub(crate) unwanted: AtomicU64,
    /// Set once, before there is a backplane that tells of them.
    pub(crate) transition_hooks: OnceLock<TransitionHooks>,
}

/// Publications of one channel that go to the backplane together, and their payloads: as much as the channel takes
/// before its publishers wait.
const FLIGHT_MAX: usize = 64;
const FLIGHT_BYTES: usize = 64 * 1024;

/// How long a publish waits for room before it is refused. Longer than any fan-out of a healthy node takes.
const ROOM_PATIENCE: Duration = Duration::from_secs(5);

/// What a refused publisher is told to wait.
const OVERLOADED_RETRY_AFTER: Duration = Duration::from_secs(1);

impl Node {
    pub(crate) fn new(
        config: Arc<Config>,
        backplane: Arc<dyn Backplane>,
        relay: Arc<Relay>,
        front: Arc<Front>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let limits = &config.limits;
        let largest = limits.message_bytes.max(limits.publish_bytes).bytes();
        let histories = Histories::new(Arc::clone(&backplane), limits.recovery_bytes.bytes(), largest);
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
        }
    }

    /// Publishes, after waiting for room in the channel if it has to. The answer means: in history where there
    /// is one, and on its way to every subscriber; or, where the namespace allows it and the backplane is away, to
    /// those on this node.
    pub(crate) async fn publish(&self, request: PublishRequest) -> Result<PublishOutcome, PublishError> {
        self.check_size(&request)?;
        self.wait_for_room(&request.channel).await?;
        let (publication, local) = self.prepare(request);
        self.settle(self.backplane.publish(publication).await, local)
    }

    /// As [`publish`](Self::publish), for several to one channel: they keep their order, and a flight of them waits for
    /// room, and for the backplane, as one.
    pub(crate) async fn publish_in_order(
        &self,
        requests: Vec<PublishRequest>,
    ) -> Vec<Result<PublishOutcome, PublishError>> {
        let mut outcomes = Vec::with_capacity(requests.len());
        let mut flight = Vec::new();
        let mut bytes = 0;
        for request in requests {
            if let Err(error) = self.check_size(&request) {
                self.send_flight(std::mem::take(&mut flight), &mut outcomes).await;
                outcomes.push(Err(error));
                continue;
            }
            let payload_bytes = request.payload.bytes().len();
            if flight.len() == FLIGHT_MAX || bytes + payload_bytes > FLIGHT_BYTES {
                self.send_flight(std::mem::take(&mut flight), &mut outcomes).await;
                bytes = 0;
            }
            bytes += payload_bytes;
            flight.push(request);
        }
        self.send_flight(flight, &mut outcomes).await;
        outcomes
    }

    async fn send_flight(
        &self,
        flight: Vec<PublishRequest>,
        outcomes: &mut Vec<Result<PublishOutcome, PublishError>>,
    ) {
        let Some(first) = flight.first() else { return };
        if let Err(error) = self.wait_for_room(&first.channel).await {
            outcomes.extend(flight.iter().map(|_| Err(error.clone())));
            return;
        }
        let (publications, locals): (Vec<_>, Vec<_>) =
            flight.into_iter().map(|request| self.prepare(request)).unzip();
        let results = self.backplane.publish_flight(publications).await;
        outcomes.extend(results.into_iter().zip(locals).map(|(result, local)| self.settle(result, local)));
    }

    fn check_size(&self, request: &PublishRequest) -> Result<(), PublishError> {
        let (bytes, max) = (request.payload.bytes().len(), self.limits().payload_bytes_max);
        if bytes > max { Err(PublishError::TooLarge { bytes, max }) } else { Ok(()) }
    }

    async fn wait_for_room(&self, channel: &Channel) -> Result<(), PublishError> {
        match self.relay.interests.get(channel) {
            Some(interest) if !interest.room(ROOM_PATIENCE).await => {
                Err(PublishError::Overloaded { retry_after: OVERLOADED_RETRY_AFTER })
            }
            _ => Ok(()),
        }
    }

    /// What the backplane is given, and, where the namespace allows it, what goes to this node's subscribers without it.
    fn prepare(&self, request: PublishRequest) -> (NewPublication, Option<PublishRequest>) {
        let namespace = self.namespaces().of(&request.channel);
        let local = (namespace.backplane_away == BackplaneAway::Local).then(|| request.clone());
        let history = match request.history {
            PublishHistory::Namespace => {
                app::kept_of(&self.config, &request.channel).or_else(|| namespace.history())
            }
            PublishHistory::Never => None,
        };
        let PublishRequest { channel, event, payload, idempotency_key, sender, history: _ } = request;
        (NewPublication { channel, event, payload, history, idempotency_key, sender }, local)
    }

    fn settle(
        &self,
        result: Result<Published, BackplaneError>,
        local: Option<PublishRequest>,
    ) -> Result<PublishOutcome, PublishError> {
        match (result, local) {
            // Not `Unconfirmed`: that one may have been published, and would come twice.
            (Err(BackplaneError::Unavailable(_)), Some(request)) => Ok(self.publish_locally(request)),
            (result, _) => Ok(result?.into()),
        }
    }

    fn publish_locally(&self, request: PublishRequest) -> PublishOutcome {
        let PublishRequest { channel, event, payload, sender, .. } = request;
        self.relay.publish_locally(&channel, Publication { position: None, event, payload, sender });
        self.metrics.node.publishes_local.add(1);
        PublishOutcome { position: None, duplicate: false, local: true }
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
        let found = self.relay.interests.list(app, prefix, after, limit);
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

    /// Reads of history for subscriptions that recover.
    pub(crate) fn histories(&self) -> &Arc<Histories> {
        &self.histories
    }

    /// The members of a channel; `None` where its namespace keeps no presence.
    pub(crate) async fn presence(&self, channel: &Channel) -> Result<Option<Vec<Member>>, BackplaneError> {
        match self.namespaces().of(channel).presence {
            true => self.backplane.presence(channel).await.map(Some),
            false => Ok(None),
        }
    }

    /// Closes connections, on whichever node they are.
    pub(crate) async fn disconnect(
        &self,
        target: DisconnectTarget,
        reason: Box<str>,
    ) -> Result<(), BackplaneError> {
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
        }
    }
}

impl From<Published> for PublishOutcome {
    fn from(Published { position, duplicate }: Published) -> Self {
        Self { position, duplicate, local: false }
    }
}

impl Relay {
    pub(crate) fn new(shards: Vec<Box<dyn ShardPort>>) -> Self {
        let shards: Shards = shards.into();
        let (interests, unwanted) = (Arc::new(Interests::new()), AtomicU64::new(0));
        let rosters = Arc::new(Rosters::new(Arc::clone(&interests), Arc::clone(&shards)));
        let transition_hooks = OnceLock::new();
        let watching = Watching::default();
        Self {
            local_order: Mutex::default(),
            interests,
            rosters,
            watching,
            shards,
            unwanted,
            transition_hooks,
        }
    }

    /// Spreads what the backplane could not be given. Whether it comes before or after what the backplane hands over
    /// at the same time may differ from shard to shard.
    fn publish_locally(&self, channel: &Channel, publication: Publication) {
        let Some(interest) = self.interests.get(channel) else { return };
        let payload_bytes = publication.payload.bytes().len();
        let _in_order = self.local_order.lock().unwrap_or_else(PoisonError::into_inner);
        self.spread(&interest, channel, Content::Publication(Arc::new(publication)), payload_bytes);
    }

    fn spread(&self, interest: &Arc<Interest>, channel: &Channel, content: Content, payload_bytes: usize) {
        self.watching.published(channel);
        spread(&self.shards, interest, channel, content, payload_bytes);
    }

    pub(crate) fn to_all(&self, order: &Order) {
        for shard in self.shards.iter() {
            shard.order(order.clone());
        }
    }

    pub(crate) fn stop_shards(&self) {
        for shard in self.shards.iter() {
            shard.stop();
        }
    }
}

/// Puts content into the mailboxes of the shards that have subscribers of its channel.
pub(crate) fn spread(
    shards: &Shards,
    interest: &Arc<Interest>,
    channel: &Channel,
    content: Content,
    payload_bytes: usize,
) {
    let load = interest.load(payload_bytes);
    let outgoing = Arc::new(Outgoing::new(channel.clone(), content, load));
    for shard in interest.shards() {
        shards[shard].order(Order::Deliver(Arc::clone(&outgoing)));
    }
}

impl Sink for Relay {
    fn publication(&self, channel: &Channel, publication: Arc<Publication>) -> Intake {
        let Some(interest) = self.interests.get(channel) else {
            self.unwanted.fetch_add(1, Ordering::Relaxed);
            return Intake::Taken;
        };
        if !interest.takes_more() {
            return Intake::Full;
        }
        let payload_bytes = publication.payload.bytes().len();
        self.spread(&interest, channel, Content::Publication(publication), payload_bytes);
        Intake::Taken
    }

    fn together(&self, hand_over: &mut dyn FnMut()) {
        waking_once(hand_over);
    }

    fn gap(&self, channel: &Channel, gap: Gap) {
        if let Some(interest) = self.interests.get(channel) {
            self.spread(&interest, channel, Content::Gap(gap), 0);
        }
    }

    fn control(&self, control: Control) {
        match control {
            Control::Disconnect { target, reason } => {
                self.to_all(&Order::Disconnect { target, reason });
            }
            Control::Watch { connections } => self.watching.renew(connections, Instant::now()),
        }
    }

    fn census(&self, channel: &Channel, event: Arc<CensusEvent>) {
        self.rosters.event(channel, event);
    }

    fn census_lost(&self, channel: &Channel) {
        self.rosters.lost(channel);
    }

    fn transition(&self, channel: &Channel, transition: Transition) {
        if let Some(hooks) = self.transition_hooks.get() {
            hooks.tell(channel, &transition);
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

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("shards", &self.shards.len()).finish_non_exhaustive()
    }
}
