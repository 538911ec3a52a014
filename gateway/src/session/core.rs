//! What a shard has beside its connections: the services that all of them use, and how other threads reach it.

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tidegate_backplane::{Channel, Epoch};
use tidegate_ops::{edge::Edge, seldom::Seldom};
use tidegate_reactor::{ConnectionId, Connections, Mail, Mailbox};
use tidegate_wire::deflate::Deflater;
use tokio::runtime::Handle;

use super::{
    Session, SocketIds,
    budget::Rates,
    ctx::Ctx,
    fanout::Farewell,
    plain_http::PlainHttp,
    protocol::{Protocol, Protocols},
    publishing::Legacies,
    told::{To, Told},
};
use crate::{
    admission::{AddressKey, Front},
    app::{
        apps::Apps,
        webhooks::{HookEvents, Webhooks},
    },
    auth::{ApiKeys, Authenticator, Origins},
    hooks::Hooks,
    hub::{
        Hub,
        content::{Content, gap_reason},
        form::Encoder,
        outgoing::Outgoing,
    },
    metrics::{Budgeted, Metrics, ShardMetrics},
    node::{
        Node,
        shards::{Order, ShardPort},
    },
};

/// What other threads ask of a shard.
pub(crate) enum Command {
    Order(Order),
    /// What a connection waited for has come.
    Continue(Continuation),
}

/// Goes on in the shard with what was waited for.
pub(crate) type Continuation = Box<dyn FnOnce(&mut Core, &mut Connections<Session>) + Send>;

impl From<Continuation> for Command {
    fn from(go_on: Continuation) -> Self {
        Self::Continue(go_on)
    }
}

/// How a shard is reached.
pub(crate) type ShardMailbox = Mailbox<Mail<Session, Command>>;

impl ShardPort for ShardMailbox {
    fn order(&self, order: Order) {
        self.send(Mail::Command(Command::Order(order)));
    }

    fn stop(&self) {
        self.send(Mail::Stop);
    }
}

/// What all shards share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) node: Arc<Node>,
    pub(crate) protocols: Protocols,
    pub(crate) front: Arc<Front>,
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) api_keys: Arc<ApiKeys>,
    pub(crate) apps: Arc<Apps>,
    pub(crate) webhooks: Arc<Webhooks>,
    pub(crate) hooks: Arc<Hooks>,
    pub(crate) hook_events: Arc<HookEvents>,
    pub(crate) origins: Arc<Origins>,
    pub(crate) edge: Arc<Edge>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) runtime: Handle,
    /// Serves the requests that are no protocol's.
    pub(crate) http: Arc<dyn PlainHttp>,
    pub(crate) started: Instant,
    /// Names this process's life in places of empty channels; see [`Fresh`](super::fresh::Fresh).
    pub(crate) life: Epoch,
}

/// Everything of a shard but its connections, and the inflater, which is lent to the decoder while messages are
/// handled.
pub(crate) struct Core {
    pub(crate) shard: usize,
    pub(crate) shared: Arc<Shared>,
    /// What one connection may cost.
    pub(crate) rates: Rates,
    pub(crate) hub: Hub,
    pub(crate) encoder: Encoder,
    /// Deflates what is for one connection.
    pub(crate) deflater: Deflater,
    pub(crate) mailbox: ShardMailbox,
    pub(crate) metrics: Arc<ShardMetrics>,
    /// Connections that were found in the fan-out under way and have to be closed for a gap.
    pub(crate) farewells: Vec<Farewell>,
    pub(crate) legacies: Legacies,
    /// Held once by each reply that is waited for.
    awaited: Arc<()>,
    /// How many questions to the application are under way of each open connection.
    pub(super) asked: HashMap<ConnectionId, u32>,
    pub(crate) socket_ids: SocketIds,
    /// Numbers the attempts to subscribe.
    pub(crate) attempts: u32,
    /// What each protocol keeps in a shard.
    pub(crate) rooms: Rooms,
    /// Connections that lack the balancer's header, for the log.
    pub(crate) without_header: Seldom,
    pub(crate) told: Told,
    /// What the front counts for this shard.
    pub(crate) connections_dealt: Arc<AtomicU64>,
    /// Connections whose requests were publishes: nobody's clients, as those that HTTP has.
    pub(crate) publishers: usize,
}

/// What each protocol keeps in a shard: whatever its [`Protocol::room`] gave.
pub(crate) struct Rooms(Vec<Box<dyn Any + Send>>);

impl Core {
    pub(crate) fn new(
        shard: usize,
        shared: Arc<Shared>,
        hub: Hub,
        mailbox: ShardMailbox,
        metrics: Arc<ShardMetrics>,
        connections_dealt: Arc<AtomicU64>,
    ) -> Self {
        Self {
            shard,
            encoder: Encoder::new(hub.forms()),
            rates: Rates::from(&shared.node.config().limits),
            hub,
            deflater: Deflater::new(1),
            mailbox,
            metrics,
            farewells: Vec::new(),
            legacies: Legacies::default(),
            awaited: Arc::default(),
            asked: HashMap::new(),
            socket_ids: SocketIds::new(shared.life, shard),
            attempts: 0,
            rooms: Rooms(shared.protocols.iter().map(|protocol| protocol.room()).collect()),
            without_header: Seldom::default(),
            told: Told::default(),
            connections_dealt,
            publishers: 0,
            shared,
        }
    }

    /// One connection, with everything that it may use.
    pub(crate) fn ctx<'a>(
        &'a mut self,
        connections: &'a mut Connections<Session>,
        id: ConnectionId,
    ) -> Ctx<'a> {
        Ctx { core: self, connections, id }
    }

    pub(crate) fn protocols(&self) -> impl Iterator<Item = &'static dyn Protocol> + use<> {
        self.shared.protocols.iter().copied()
    }

    /// Milliseconds on the clock of [`Session::accepted_ms`].
    pub(crate) fn now_ms(&self) -> u32 {
        self.shared.started.elapsed().as_millis() as u32
    }

    /// Hands a publication or a notice to the hub, unless a protocol has it that nobody is told.
    pub(crate) fn deliver(&mut self, connections: &mut Connections<Session>, outgoing: &Arc<Outgoing>) {
        let is_told = matches!(outgoing.content, Content::Publication(_))
            || self.protocols().all(|protocol| protocol.on_notice(self, outgoing));
        if !is_told {
            return;
        }
        if let Content::Gap(gap) = &outgoing.content {
            let (channel, now_ms) = (outgoing.channel.clone(), self.now_ms());
            let text = format_args!("{}: a gap, {}", channel.name(), gap_reason(gap.reason));
            self.told.note(To::Channel(channel.clone()), now_ms, text);
        }
        let sender = outgoing.content.sender().and_then(|sender| sender.connection.as_deref());
        let except = sender.and_then(|name| self.socket_ids.find(name));
        let Some((key, watching)) = self.hub.deliver(outgoing, except) else { return };
        // Nearly always there is none.
        let watching = watching.to_vec();
        for id in watching {
            self.ctx(connections, id).delivered(key, &outgoing.content);
        }
    }

    /// Whether this node may have subscribers in these channels; a refusal is counted. Those that have some already cost
    /// nothing more. Shards that ask at the same moment may each get the last place.
    pub(crate) fn has_room_for(&self, channels: &[Channel]) -> bool {
        let node = &self.shared.node;
        let (interests, max) = (node.interests(), node.config().limits.channels as usize);
        let has = interests.len();
        let fits = max == 0
            || has + channels.len() <= max
            || has + channels.iter().filter(|channel| interests.get(channel).is_none()).count() <= max;
        if !fits {
            self.metrics.budgets_spent.add(Budgeted::Channels, 1);
        }
        fits
    }

    /// Names a connection in the cluster. The life of the process is a part, so that a node that was started again
    /// under its name gives no name a second time.
    pub(crate) fn connection_name(&self, id: ConnectionId) -> String {
        format!("{}-{}-{}-{}", self.life_name(), self.shard, id.slot, id.generation)
    }

    /// Names this life of the node.
    pub(crate) fn life_name(&self) -> String {
        format!("{}.{}", self.shared.node.config().node, self.shared.life)
    }

    /// Exports how many clients it has.
    pub(crate) fn tell_connections(&self, connections: &Connections<Session>) {
        self.metrics.connections.set(connections.len().saturating_sub(self.publishers) as i64);
    }

    /// A connection is no longer this shard's, and not handed to anyone who counts it.
    pub(crate) fn count_out(&self, connections: &Connections<Session>, address: AddressKey) {
        self.tell_connections(connections);
        self.connections_dealt.fetch_sub(1, Ordering::AcqRel);
        self.shared.front.release(address);
    }

    /// How long a connection has been here.
    pub(crate) fn lasted(&self, session: &Session) -> Duration {
        Duration::from_millis(u64::from(self.now_ms().wrapping_sub(session.accepted_ms)))
    }

    /// What other threads call to have the shard go on with `then`.
    pub(crate) fn reply<T: Send + 'static>(
        &self,
        then: impl FnOnce(&mut Core, &mut Connections<Session>, T) + Send + 'static,
    ) -> impl FnOnce(T) + Send + 'static {
        let (mailbox, awaited) = (self.mailbox.clone(), Arc::clone(&self.awaited));
        move |output| {
            let go_on: Continuation = Box::new(move |core, connections| {
                then(core, connections, output);
                drop(awaited);
            });
            mailbox.send(Mail::Command(Command::Continue(go_on)));
        }
    }

    /// How many answers are waited for that this shard goes on with.
    pub(crate) fn awaiting(&self) -> usize {
        Arc::strong_count(&self.awaited) - 1
    }

    /// Runs a future and goes on in the shard with its output. One that is ready at once, as the memory backplane's
    /// are, never leaves the thread; its output still queues up behind what was delivered before it.
    pub(crate) fn run<F>(
        &self,
        future: F,
        then: impl FnOnce(&mut Core, &mut Connections<Session>, F::Output) + Send + 'static,
    ) where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let reply = self.reply(then);
        self.detach(async move { reply(future.await) });
    }

    /// Polls a future once, as the runtime would: a shard's thread is in it. An error is the future, which has to
    /// wait.
    pub(crate) fn begin<F>(&self, mut future: Pin<Box<F>>) -> Result<F::Output, Pin<Box<F>>>
    where
        F: Future + Send + ?Sized,
    {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Ok(output),
            Poll::Pending => Err(future),
        }
    }

    /// Runs a future that nobody waits for.
    pub(crate) fn detach<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if let Err(waits) = self.begin(Box::pin(future)) {
            self.shared.runtime.spawn(waits);
        }
    }
}

impl Rooms {
    /// A protocol's own room, by its type.
    pub(crate) fn get<R: Any>(&self) -> &R {
        self.0.iter().find_map(|room| room.downcast_ref()).expect("the room of a protocol in the list")
    }

    pub(crate) fn get_mut<R: Any>(&mut self) -> &mut R {
        self.0.iter_mut().find_map(|room| room.downcast_mut()).expect("the room of a protocol in the list")
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("shard", &self.shard).field("hub", &self.hub).finish_non_exhaustive()
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order(order) => order.fmt(f),
            Self::Continue(_) => f.write_str("Continue"),
        }
    }
}
