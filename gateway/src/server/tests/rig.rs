//! A server without HTTP, and the backplane that can be held.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use tidegate_backplane::{
    Attendance, Backplane, BackplaneError, Channel, Control, Gap, GapReason, History, HistoryQuery, Intake,
    Join, JoinError, Member, MemoryBackplane, MemoryOptions, NewPublication, NodeRecord, Payload, Position,
    PresenceChannel, PresenceEvent, Publication, Published, Roll, Sender, Sink, Transition,
};
use tidegate_ops::succession::open;
use tidegate_testkit::{DEADLINE, eventually, eventually_some};
use tokio::{runtime::Runtime, sync::watch};
use tokio_util::task::TaskTracker;

use tidegate_reactor::{Listener, Shard};

use crate::{
    admission::Front,
    app::apps::Apps,
    config::{Config, Namespace},
    edge::door::Dealer,
    metrics::Metrics,
    node::{Node, PublishError, PublishHistory, PublishRequest, Relay},
    server::carrier::Carrier,
    server::{Handing, new_life},
    server::{Parts, runtime},
};

pub(super) struct Rig {
    pub(super) address: SocketAddr,
    pub(super) node: Arc<Node>,
    pub(super) relay: Arc<Relay>,
    pub(super) front: Arc<Front>,
    pub(super) backplane: Arc<Held>,
    pub(super) apps: Arc<Apps>,
    pub(super) dealer: Arc<Dealer>,
    metrics: Arc<Metrics>,
    runtime: Option<Runtime>,
    shards: Vec<thread::JoinHandle<()>>,
}

/// `--dev` with one shard, and a namespace `plain` without history.
pub(super) fn config() -> Config {
    let mut config = Config::dev();
    config.shards = std::num::NonZeroUsize::MIN;
    let plain = Namespace {
        history_size: 0,
        history_age: Duration::ZERO,
        client_publish: crate::config::ClientPublish::Anyone,
        ..config.namespaces.default.clone()
    };
    config.namespaces.named.insert("plain".into(), plain);
    config
}

impl Rig {
    pub(super) fn start(config: Config) -> Self {
        let config = Arc::new(config);
        let runtime = runtime(config.shards.get()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut held = None;
        let carry = |sink, _| {
            let backplane = Arc::new(Held::new(sink));
            let memory = Arc::clone(&backplane.memory);
            held = Some(Arc::clone(&backplane));
            Ok(Carrier::of_memory(backplane, memory))
        };
        let mut parts =
            Parts::build(&config, new_life().unwrap(), address, &runtime, TaskTracker::new(), carry).unwrap();
        let mailboxes: Vec<_> = parts.shards.iter().map(Shard::mailbox).collect();
        let shards = parts.start_shards().unwrap();
        open::<Handing>(&mailboxes, &Listener::new(listener).unwrap());
        let dealer = Arc::clone(&parts.doorkeeper.dealer);
        Self {
            address,
            node: Arc::clone(&parts.shared.node),
            relay: parts.relay,
            front: Arc::clone(&parts.shared.front),
            backplane: held.unwrap(),
            apps: Arc::clone(&parts.shared.apps),
            dealer,
            metrics: Arc::clone(&parts.shared.metrics),
            runtime: Some(runtime),
            shards,
        }
    }

    /// Publishes a text; its position where the channel has history.
    pub(super) fn publish(&self, channel: &str, text: &str) -> Option<Position> {
        self.publish_as(channel, None, text, None)
    }

    /// Publishes an event; a connection that sent it is not handed it. Again when there was no room for 5 s, as a starved
    /// machine has none.
    pub(super) fn publish_as(
        &self,
        channel: &str,
        event: Option<&str>,
        text: &str,
        connection: Option<&str>,
    ) -> Option<Position> {
        let sender =
            connection.map(|connection| Box::new(Sender { connection: Some(connection.into()), user: None }));
        let request = PublishRequest {
            channel: Channel::new(channel).unwrap(),
            event: event.map(Box::from),
            payload: Payload::Text(text.into()),
            idempotency_key: None,
            sender,
            history: PublishHistory::Namespace,
        };
        let runtime = self.runtime.as_ref().unwrap();
        eventually_some("room in the channel", DEADLINE, || {
            match runtime.block_on(self.node.publish(request.clone())) {
                Err(PublishError::Overloaded { .. }) => None,
                published => Some(published.unwrap().position),
            }
        })
    }

    pub(super) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.as_ref().unwrap().block_on(future)
    }

    /// Hands the node a publication that the backplane below does not know.
    pub(super) fn hand_over(&self, channel: &str, position: Option<Position>, text: &str) -> Intake {
        let payload = Payload::Text(text.into());
        let publication = Arc::new(Publication { position, event: None, payload, sender: None });
        self.relay.publication(&Channel::new(channel).unwrap(), publication)
    }

    /// Has the backplane lose continuity.
    pub(super) fn gap(&self, channel: &str, top: Option<Position>) {
        self.relay.gap(&Channel::new(channel).unwrap(), Gap { reason: GapReason::Reconnect, top });
    }

    /// Connections that the backplane knows as present.
    pub(super) fn present(&self, channel: &str) -> Vec<Box<str>> {
        let runtime = self.runtime.as_ref().unwrap();
        let list = runtime.block_on(self.node.presence(&Channel::new(channel).unwrap())).unwrap();
        list.unwrap().members.iter().map(|member| member.connection.clone()).collect()
    }

    /// Lists a connection of another node in a channel.
    pub(super) fn join(&self, channel: &str, connection: &str, info: &str) {
        let member =
            Member { connection: connection.into(), user: connection.into(), info: Some(info.into()) };
        let joined = self.backplane.memory.join(&Channel::new(channel).unwrap(), Join::listed(member));
        joined.now_or_never().unwrap().unwrap();
    }

    /// Subscriptions and users.
    pub(super) fn attending(&self, channel: &str) -> (u64, u64) {
        let attendance = self.backplane.memory.attendance(&Channel::new(channel).unwrap());
        let sums = attendance.now_or_never().unwrap().unwrap().sums;
        (sums.subscriptions, sums.users)
    }

    #[track_caller]
    pub(super) fn eventually_attending(&self, channel: &str, expect: (u64, u64)) {
        eventually(&format!("{expect:?} in {channel}"), DEADLINE, || self.attending(channel) == expect);
    }

    pub(super) fn left_behind_bytes(&self) -> usize {
        self.metrics.node.left_behind_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn subscribers(&self, channel: &str) -> u64 {
        self.node.subscribers(&Channel::new(channel).unwrap())
    }

    #[track_caller]
    pub(super) fn eventually_subscribers(&self, channel: &str, count: u64) {
        let what = format!("{count} subscribers of {channel}");
        eventually(&what, DEADLINE, || self.subscribers(channel) == count);
    }

    /// Sum of the samples whose name and labels begin like this.
    pub(super) fn metric(&self, sample: &str) -> f64 {
        let text = self.metrics.prometheus();
        let samples = text.lines().filter(|line| line.starts_with(sample));
        samples.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }

    #[track_caller]
    pub(super) fn eventually_metric(&self, sample: &str, value: f64) {
        let mut seen = f64::NAN;
        eventually(&format!("{sample} is {value}"), DEADLINE, || {
            seen = self.metric(sample);
            seen == value
        });
    }

    /// Waits until nothing is left of any client: no place in the limits, no subscription, no channel.
    #[track_caller]
    pub(super) fn eventually_empty(&self) {
        eventually("no connection counts", DEADLINE, || self.front.connections() == 0);
        self.eventually_metric("tidegate_connections ", 0.0);
        self.eventually_metric("tidegate_subscriptions ", 0.0);
        self.eventually_metric("tidegate_send_queue_bytes ", 0.0);
        // Channels linger for two seconds.
        eventually("no channel is held", DEADLINE, || self.relay.interests.len() == 0);
        let ended = self.metric("tidegate_disconnects_total");
        assert_eq!(self.metric("tidegate_connections_opened_total "), ended, "each end is counted once");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.backplane.history.open();
        self.backplane.subscription.open();
        self.backplane.joins.open();
        self.backplane.publishes.open();
        self.relay.stop_shards();
        let panicked = self.shards.drain(..).map(thread::JoinHandle::join).any(|ended| ended.is_err());
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
        assert!(!panicked || thread::panicking(), "a shard panicked");
    }
}

/// Lets futures pass while it is open, which it is at first.
pub(super) struct Gate {
    /// So many may pass, counted from the first.
    allowed: watch::Sender<usize>,
    arrived: AtomicUsize,
}

impl Gate {
    fn new() -> Self {
        Self { allowed: watch::Sender::new(usize::MAX), arrived: AtomicUsize::new(0) }
    }

    pub(super) fn shut(&self) {
        self.allowed.send_replace(self.arrived());
    }

    pub(super) fn open(&self) {
        self.allowed.send_replace(usize::MAX);
    }

    /// Lets those pass who have come.
    pub(super) fn let_pass(&self) {
        self.shut();
    }

    /// How many came to it since the start.
    pub(super) fn arrived(&self) -> usize {
        self.arrived.load(Ordering::Acquire)
    }

    #[track_caller]
    pub(super) fn eventually_arrived(&self, count: usize) {
        eventually(&format!("{count} at the gate"), DEADLINE, || self.arrived() == count);
    }

    fn pass(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut allowed = self.allowed.subscribe();
        let place = self.arrived.fetch_add(1, Ordering::AcqRel);
        async move {
            // An error says that the gate is gone, and with it the wall.
            if allowed.wait_for(|allowed| *allowed > place).await.is_err() {}
        }
    }
}

/// Memory whose answers and hand-overs can be held back, as those of a server far away are.
pub(super) struct Held {
    memory: Arc<MemoryBackplane>,
    sink: Arc<LateSink>,
    pub(super) history: Gate,
    pub(super) subscription: Gate,
    pub(super) joins: Gate,
    pub(super) publishes: Gate,
    /// So many subscriptions will be refused.
    pub(super) refusals: AtomicUsize,
}

/// Keeps what it is handed, in order, until it is told to go on.
struct LateSink {
    sink: Arc<dyn Sink>,
    kept: Mutex<Option<Vec<Handed>>>,
}

/// A publication as a sink is handed it.
type Handed = (Channel, Arc<Publication>);

impl Held {
    /// Tells what has lasted, as if so many seconds had passed.
    pub(super) fn sweep_after(&self, seconds: u64) {
        self.memory.sweep(std::time::Instant::now() + Duration::from_secs(seconds));
    }

    fn new(sink: Arc<dyn Sink>) -> Self {
        let sink = Arc::new(LateSink { sink, kept: Mutex::default() });
        let memory = MemoryBackplane::new(Arc::clone(&sink) as Arc<dyn Sink>, MemoryOptions::default());
        Self {
            memory: Arc::new(memory),
            sink,
            history: Gate::new(),
            subscription: Gate::new(),
            joins: Gate::new(),
            publishes: Gate::new(),
            refusals: AtomicUsize::new(0),
        }
    }

    /// From now on publications are in history before the node is handed them.
    pub(super) fn hold_publications(&self) {
        self.sink.kept.lock().unwrap().get_or_insert_default();
    }

    /// Hands over the first of what is held.
    pub(super) fn hand_over_one(&self) {
        let mut kept = self.sink.kept.lock().unwrap();
        let (channel, publication) = kept.as_mut().unwrap().remove(0);
        assert_eq!(self.sink.sink.publication(&channel, publication), Intake::Taken);
    }

    pub(super) fn hand_over(&self) {
        let mut kept = self.sink.kept.lock().unwrap();
        for (channel, publication) in kept.take().into_iter().flatten() {
            assert_eq!(self.sink.sink.publication(&channel, publication), Intake::Taken);
        }
    }
}

impl Sink for LateSink {
    fn publication(&self, channel: &Channel, publication: Arc<Publication>) -> Intake {
        let mut kept = self.kept.lock().unwrap();
        match &mut *kept {
            Some(kept) => {
                kept.push((channel.clone(), publication));
                Intake::Taken
            }
            None => self.sink.publication(channel, publication),
        }
    }

    fn gap(&self, channel: &Channel, gap: Gap) {
        self.sink.gap(channel, gap);
    }

    fn control(&self, control: Control) {
        self.sink.control(control);
    }

    fn presence(&self, channel: &Channel, event: Arc<PresenceEvent>) {
        self.sink.presence(channel, event);
    }

    fn transition(&self, channel: &Channel, transition: Transition) {
        self.sink.transition(channel, transition);
    }
}

impl Backplane for Held {
    fn publish(&self, publication: NewPublication) -> BoxFuture<'_, Result<Published, BackplaneError>> {
        let pass = self.publishes.pass();
        async move {
            pass.await;
            self.memory.publish(publication).await
        }
        .boxed()
    }

    /// As one.
    fn publish_flight(
        &self,
        publications: Vec<NewPublication>,
    ) -> BoxFuture<'_, Vec<Result<Published, BackplaneError>>> {
        let pass = self.publishes.pass();
        async move {
            pass.await;
            self.memory.publish_flight(publications).await
        }
        .boxed()
    }

    fn subscribe(
        &self,
        channel: &Channel,
        generation: u64,
    ) -> BoxFuture<'static, Result<(), BackplaneError>> {
        let refused =
            self.refusals.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
        let subscribed = match refused {
            Ok(_) => futures_util::future::ready(Err(BackplaneError::Unavailable("refused".into()))).boxed(),
            Err(_) => self.memory.subscribe(channel, generation),
        };
        let pass = self.subscription.pass();
        async move {
            pass.await;
            subscribed.await
        }
        .boxed()
    }

    fn unsubscribe(&self, channel: &Channel, generation: u64) {
        self.memory.unsubscribe(channel, generation);
    }

    /// The read is made at once, its answer may be late.
    fn history(
        &self,
        channel: &Channel,
        query: HistoryQuery,
    ) -> BoxFuture<'_, Result<History, BackplaneError>> {
        let history = self.memory.history(channel, query);
        let pass = self.history.pass();
        async move {
            pass.await;
            history.await
        }
        .boxed()
    }

    fn remove_history(&self, channel: &Channel) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.memory.remove_history(channel)
    }

    /// It joins at once, the answer may be late.
    fn join(&self, channel: &Channel, join: Join) -> BoxFuture<'static, Result<Attendance, JoinError>> {
        let (joined, pass) = (self.memory.join(channel, join), self.joins.pass());
        async move {
            pass.await;
            joined.await
        }
        .boxed()
    }

    fn leave(
        &self,
        channel: &Channel,
        connection: Option<&str>,
    ) -> BoxFuture<'static, Result<Attendance, BackplaneError>> {
        self.memory.leave(channel, connection)
    }

    fn roll(&self, channel: &Channel) -> BoxFuture<'static, Result<Roll, BackplaneError>> {
        self.memory.roll(channel)
    }

    fn attendance(&self, channel: &Channel) -> BoxFuture<'static, Result<Attendance, BackplaneError>> {
        self.memory.attendance(channel)
    }

    fn presence_channels(
        &self,
        app: Option<&str>,
        prefix: &str,
    ) -> BoxFuture<'static, Result<Vec<PresenceChannel>, BackplaneError>> {
        self.memory.presence_channels(app, prefix)
    }

    fn announce(&self, node: NodeRecord) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.memory.announce(node)
    }

    fn retire(&self, name: &str) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.memory.retire(name)
    }

    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeRecord>, BackplaneError>> {
        self.memory.nodes()
    }

    fn report(&self, node: &str, report: String) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.memory.report(node, report)
    }

    fn reports(&self, nodes: &[Box<str>]) -> BoxFuture<'_, Result<Vec<Option<Vec<u8>>>, BackplaneError>> {
        self.memory.reports(nodes)
    }

    fn control(&self, control: Control) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.memory.control(control)
    }

    fn health(&self) -> Result<(), BackplaneError> {
        self.memory.health()
    }
}
