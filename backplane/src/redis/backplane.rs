//! [`RedisBackplane`]: links, subscriptions and operations as one [`Backplane`].

use std::{
    fmt,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt, ready};
use tokio::{runtime::Handle, time::MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    contract::{Commands, Subscriber, Subscribing},
    control::{self, Orders},
    counters::{OperationCounters, Tallies},
    error::RedisStartError,
    history::Reader,
    leases::Doubt,
    links::{Halted, LinkCounters, LinkOptions, Links, Login},
    names::Prefix,
    nodes::Registry,
    options::RedisOptions,
    owner::Owner,
    presence::Presence,
    publish::Publisher,
    scripts,
    subscriptions::{SubscriptionCounters, Subscriptions},
    wills::Wills,
};
use crate::{
    Attendance, Backplane, BackplaneError, Channel, Control, History, HistoryQuery, Join, JoinError,
    NewPublication, NodeRecord, PresenceChannel, Published, Roll, Sink, gate::Gate,
};

/// The start waits so long for the subscription to orders. Without it, it is asked for again each tick.
const ORDERS_DEADLINE: Duration = Duration::from_secs(2);

/// Rounds of the node registry in the time of a lease.
const ROUNDS_PER_LEASE: u32 = 10;

/// A node of a deployment that meets on Redis.
pub struct RedisBackplane {
    pub(super) core: Arc<Core>,
}

pub(super) struct Core {
    pub(super) links: Links,
    commands: Arc<dyn Commands>,
    /// The links once more, for the orders, which the links own and which therefore have it weakly.
    _subscribing: Arc<dyn Subscribing>,
    pub(super) prefix: Prefix,
    publisher: Publisher,
    reader: Reader,
    pub(super) registry: Arc<Registry>,
    pub(super) presence: Arc<Presence>,
    pub(super) wills: Arc<Wills>,
    pub(super) subscriptions: Arc<Subscriptions>,
    pub(super) orders: Arc<Orders>,
    pub(super) doubt: Arc<Doubt>,
    pub(super) gate: Gate,
    /// Connections that stand still while another process may take over.
    pub(super) halted: Mutex<Vec<Halted>>,
    tallies: Arc<Tallies>,
    pub(super) runtime: Handle,
    tasks: TaskTracker,
    pub(super) stopping: CancellationToken,
}

/// What all parts count.
#[derive(Debug, Clone, PartialEq)]
pub struct RedisCounters {
    pub operations: OperationCounters,
    pub subscriptions: SubscriptionCounters,
    /// Of each server.
    pub links: Vec<LinkCounters>,
    /// Subscriptions of this node that are listed or counted.
    pub presence_subscriptions: u64,
    /// Slots of a Cluster without a server.
    pub slots_nowhere: u64,
}

impl RedisBackplane {
    /// One that [was started](Self::start).
    ///
    /// # Errors
    /// As those of the two.
    pub async fn connect(options: RedisOptions, sink: Arc<dyn Sink>) -> Result<Arc<Self>, RedisStartError> {
        let redis = Self::new(options, Arc::clone(&sink))?;
        redis.start(sink).await?;
        Ok(redis)
    }

    /// One without connections: it [makes some](Self::start), or [takes those in](Self::take_in) of another
    /// process whose place this one takes. On the Tokio runtime that this is called on.
    ///
    /// # Errors
    /// One sentence that says what to do.
    pub fn new(options: RedisOptions, sink: Arc<dyn Sink>) -> Result<Arc<Self>, RedisStartError> {
        Ok(Arc::new(Self { core: Arc::new(Core::new(options, sink)?) }))
    }

    /// Connects, and takes part from then on. Where there is a [`Host`](super::options::Host), it runs by now. Servers that
    /// are out of reach are tried as long as it takes; until one is there, [`health`](Backplane::health) says why none is.
    ///
    /// # Errors
    /// What trying again cannot help: one sentence that says what to do.
    pub async fn start(&self, sink: Arc<dyn Sink>) -> Result<(), RedisStartError> {
        let core = &self.core;
        if let Err(error) = core.links.start(core.owner(sink)).await {
            core.subscriptions.stop();
            return Err(error);
        }
        core.begin().await;
        Ok(())
    }

    /// Ends all connections and tasks. What this node wrote of itself ends with its lease.
    pub async fn close(&self) {
        self.core.stopping.cancel();
        self.core.subscriptions.stop();
        self.core.links.stop().await;
        self.core.tasks.close();
        self.core.tasks.wait().await;
    }

    pub fn counters(&self) -> RedisCounters {
        let core = &self.core;
        RedisCounters {
            operations: core.tallies.read(),
            subscriptions: core.subscriptions.counters(),
            links: core.links.counters(),
            presence_subscriptions: core.presence.own_len(),
            slots_nowhere: core.links.slots_nowhere() as u64,
        }
    }
}

impl Backplane for RedisBackplane {
    fn publish(&self, publication: NewPublication) -> BoxFuture<'_, Result<Published, BackplaneError>> {
        self.core.gate.through(self.core.publisher.publish(publication)).boxed()
    }

    fn publish_flight(
        &self,
        publications: Vec<NewPublication>,
    ) -> BoxFuture<'_, Vec<Result<Published, BackplaneError>>> {
        let number = publications.len();
        let published = self.core.publisher.publish_flight(publications);
        let published = self.core.gate.through(async { Ok(published.await) });
        published.map(move |published| published.unwrap_or_else(|error| vec![Err(error); number])).boxed()
    }

    fn subscribe(
        &self,
        channel: &Channel,
        generation: u64,
    ) -> BoxFuture<'static, Result<(), BackplaneError>> {
        self.core.subscriptions.subscribe(channel, generation)
    }

    fn unsubscribe(&self, channel: &Channel, generation: u64) {
        self.core.subscriptions.unsubscribe(channel, generation);
    }

    fn history(
        &self,
        channel: &Channel,
        query: HistoryQuery,
    ) -> BoxFuture<'_, Result<History, BackplaneError>> {
        let channel = channel.clone();
        async move { self.core.reader.history(&channel, query).await }.boxed()
    }

    fn remove_history(&self, channel: &Channel) -> BoxFuture<'_, Result<(), BackplaneError>> {
        let channel = channel.clone();
        self.core.gate.through(async move { self.core.reader.forget(&channel).await }).boxed()
    }

    fn join(&self, channel: &Channel, join: Join) -> BoxFuture<'static, Result<Attendance, JoinError>> {
        self.core.presence.join(channel, join)
    }

    fn leave(
        &self,
        channel: &Channel,
        connection: Option<&str>,
    ) -> BoxFuture<'static, Result<Attendance, BackplaneError>> {
        if self.core.gate.tell_left(channel, connection) {
            return ready(Ok(Attendance::default())).boxed();
        }
        self.core.presence.leave(channel, connection)
    }

    fn roll(&self, channel: &Channel) -> BoxFuture<'static, Result<Roll, BackplaneError>> {
        let (presence, channel) = (Arc::clone(&self.core.presence), channel.clone());
        async move { presence.roll(&channel).await }.boxed()
    }

    fn attendance(&self, channel: &Channel) -> BoxFuture<'static, Result<Attendance, BackplaneError>> {
        let (presence, channel) = (Arc::clone(&self.core.presence), channel.clone());
        async move { presence.attendance(&channel).await }.boxed()
    }

    fn presence_channels(
        &self,
        app: Option<&str>,
        prefix: &str,
    ) -> BoxFuture<'static, Result<Vec<PresenceChannel>, BackplaneError>> {
        let presence = Arc::clone(&self.core.presence);
        let (app, prefix) = (app.map(str::to_owned), prefix.to_owned());
        async move { presence.channels(app.as_deref(), &prefix).await }.boxed()
    }

    fn keep_will(&self, connection: &str, will: Arc<str>) -> BoxFuture<'static, Result<(), BackplaneError>> {
        self.core.wills.keep(connection, will)
    }

    fn take_will_back(&self, connection: &str) {
        self.core.wills.take_back(connection);
    }

    fn announce(&self, node: NodeRecord) -> BoxFuture<'_, Result<(), BackplaneError>> {
        async move {
            match self.core.renew(Some(&node)).await? {
                true => Err(self.core.registry.refusal(&node.name)),
                false => Ok(()),
            }
        }
        .boxed()
    }

    fn retire(&self, name: &str) -> BoxFuture<'_, Result<(), BackplaneError>> {
        let name: Box<str> = name.into();
        async move { self.core.registry.retire(&name).await }.boxed()
    }

    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeRecord>, BackplaneError>> {
        async move {
            let records = self.core.registry.who_lives().await?;
            self.core.settle_owed();
            Ok(records)
        }
        .boxed()
    }

    fn report(&self, node: &str, report: String) -> BoxFuture<'_, Result<(), BackplaneError>> {
        let node: Box<str> = node.into();
        async move { self.core.registry.report(&node, report).await }.boxed()
    }

    fn reports(&self, nodes: &[Box<str>]) -> BoxFuture<'_, Result<Vec<Option<Vec<u8>>>, BackplaneError>> {
        let nodes = nodes.to_vec();
        async move { self.core.registry.reports(&nodes).await }.boxed()
    }

    fn control(&self, control: Control) -> BoxFuture<'_, Result<(), BackplaneError>> {
        let core = &self.core;
        core.gate.through(async move { control::send(&*core.commands, &core.prefix, &control).await }).boxed()
    }

    fn when_open<'b>(
        &'b self,
        act: Box<dyn FnOnce() + Send + 'b>,
    ) -> BoxFuture<'b, Result<(), BackplaneError>> {
        self.core.gate.when_open(act).boxed()
    }

    fn health(&self) -> Result<(), BackplaneError> {
        self.core.links.health()
    }

    fn missing(&self) -> Vec<String> {
        self.core.links.missing()
    }
}

impl Drop for RedisBackplane {
    fn drop(&mut self) {
        self.core.stopping.cancel();
        self.core.subscriptions.stop();
        let links = self.core.links.clone();
        self.core.runtime.spawn(async move { links.stop().await });
    }
}

impl fmt::Debug for RedisBackplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBackplane").field("registry", &self.core.registry).finish_non_exhaustive()
    }
}

impl Core {
    fn new(options: RedisOptions, sink: Arc<dyn Sink>) -> Result<Self, RedisStartError> {
        let RedisOptions {
            url,
            files,
            sentinel,
            prefix,
            node,
            life,
            lease,
            idempotency_window,
            replicas,
            presence_settle,
            host,
        } = options;
        let prefix = prefix.in_database(url.db);
        let login = Login { credentials: url.credentials.clone(), is_tls: url.tls, files, sentinel };
        let links = Links::new(LinkOptions {
            url,
            login,
            prefix: prefix.as_str().into(),
            instance: format!("{node}.{life:016x}").into(),
            node: node.clone(),
            replicas,
            scripts: scripts::codes(),
            host,
        })?;
        let vital = links.vital();
        let commands: Arc<dyn Commands> = Arc::new(links.clone());
        let subscribing: Arc<dyn Subscribing> = Arc::new(links.clone());
        let tallies = Arc::<Tallies>::default();
        let reader = Reader::new(commands.clone(), prefix.clone(), tallies.clone());
        let registry = Registry::new(vital.clone(), prefix.clone(), &node, life, lease, tallies.clone());
        let registry = Arc::new(registry);
        let subscriptions =
            Subscriptions::start(prefix.clone(), subscribing.clone(), reader.clone(), sink.clone());
        let subscriptions = Arc::new(subscriptions);
        let wills =
            Wills::new(vital.clone(), prefix.clone(), registry.clone(), sink.clone(), tallies.clone());
        let presence = Presence::new(
            vital,
            prefix.clone(),
            registry.clone(),
            sink.clone(),
            presence_settle,
            tallies.clone(),
        );
        let orders = Orders::new(Arc::downgrade(&subscribing), sink, &prefix, tallies.clone());
        Ok(Self {
            publisher: Publisher::new(
                commands.clone(),
                links.replicated(),
                prefix.clone(),
                idempotency_window,
                tallies.clone(),
            ),
            presence,
            wills,
            orders: Arc::new(orders),
            doubt: Arc::default(),
            gate: Gate::default(),
            halted: Mutex::default(),
            links,
            commands,
            _subscribing: subscribing,
            prefix,
            reader,
            registry,
            subscriptions,
            tallies,
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        })
    }

    pub(super) fn owner(&self, sink: Arc<dyn Sink>) -> Arc<dyn Subscriber> {
        let doubt = Arc::downgrade(&self.doubt);
        Arc::new(Owner::new(Arc::clone(&self.subscriptions), Arc::clone(&self.orders), doubt, sink))
    }

    async fn begin(self: &Arc<Self>) {
        // Either may be out of reach while others of a list are not: the ticks go on with it.
        if self.links.health().is_ok() {
            if tokio::time::timeout(ORDERS_DEADLINE, self.orders.until_confirmed()).await.is_err() {
                tracing::warn!("orders to all nodes are not received yet");
            }
            if let Err(error) = self.renew(None).await {
                tracing::warn!(%error, "the node registry is out of reach");
            }
        }
        self.keep();
    }

    /// Does from now on what is due.
    pub(super) fn keep(self: &Arc<Self>) {
        let each = self.registry.lease() / ROUNDS_PER_LEASE;
        self.tasks.spawn(Presence::keep(Arc::downgrade(&self.presence), self.stopping.clone()));
        let doubt = Arc::clone(&self.doubt);
        self.tasks.spawn(tick(Arc::downgrade(self), doubt, each, self.stopping.clone()));
    }

    /// A round of the registry, and what follows from it. True: another living process has the record's name.
    async fn renew(self: &Arc<Self>, record: Option<&NodeRecord>) -> Result<bool, BackplaneError> {
        let refused = self.registry.renew(record).await?;
        self.settle_owed();
        Ok(refused)
    }

    /// What follows from the rounds before.
    fn settle_owed(self: &Arc<Self>) {
        let owed = self.registry.take_owed();
        if owed.lapsed {
            tracing::info!(instance = %self.registry.instance(), "presence is written again");
            self.presence.begin_again(owed.has_lost_data);
            self.wills.begin_again(owed.has_lost_data);
        }
        for instance in owed.ended {
            self.tasks.spawn(remove(Arc::clone(self), instance));
        }
    }
}

/// Keeps the lease, the subscription to orders, and what of presence is stale; until the backplane is dropped.
async fn tick(core: Weak<Core>, doubt: Arc<Doubt>, each: Duration, stopping: CancellationToken) {
    let mut ticks = tokio::time::interval(each);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = doubt.raised() => {}
            () = stopping.cancelled() => return,
        }
        let Some(core) = core.upgrade() else { return };
        core.orders.subscribe();
        if !core.registry.is_fresh()
            && let Err(error) = core.renew(None).await
        {
            tracing::debug!(%error, "the lease was not renewed");
            continue;
        }
        core.wills.sweep();
        core.presence.sweep(doubt.take()).await;
    }
}

/// Whoever is told of the instance after another lease begins again with what fails.
async fn remove(core: Arc<Core>, instance: Box<str>) {
    let removed = async {
        core.wills.remove_instance(&instance).await?;
        core.presence.remove_instance(&instance).await?;
        core.registry.forget(&instance).await
    };
    match removed.await {
        Ok(()) => tracing::info!(%instance, "what a dead instance left was removed"),
        Err(error) => tracing::debug!(%instance, %error, "what a dead instance left is removed later"),
    }
}
