//! The gateway's side of a shard: what its reactor tells it goes to the session's phase, what other threads ask
//! goes to the session or the hub.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use slab::Slab;
use tidegate_backplane::{BackplaneError, Channel, DisconnectTarget, Epoch, GapReason, History, Roll};
use tidegate_ops::{edge::Edge, sweep::Sweep, tls::TlsHandshake};
use tidegate_reactor::{Closed, ConnectionId, Connections, Counters, Driver, Mail, Mailbox, Tick, Turn};
use tidegate_wire::deflate::{Deflater, Inflater};
use tokio::runtime::Handle;

use crate::{
    app::apps::Apps,
    app::webhooks::Webhooks,
    auth::{ApiKeys, Authenticator, Origins},
    edge::admission::{AddressKey, Front},
    http::serve::HttpServer,
    hub::outgoing::{Encoder, Outgoing},
    hub::{ChannelKey, Delivery, Hub},
    metrics::{DisconnectReason, DropReason, HandshakeResult, Metrics, ShardMetrics},
    node::{Node, PublishError},
    protocols::pusher::{AppTable, Entered, Entrance, EntranceToken},
    session::{
        Open, Phase, Protocol, Session, SocketIds, budget::Rates, leaving::Leave, publishing::Legacies,
    },
};

/// What other threads ask of a shard.
#[derive(Debug)]
pub(crate) enum Command {
    /// Fan this out.
    Deliver(Arc<Outgoing>),
    /// Keys were fetched: look at the token again.
    KeysFetched(ConnectionId),
    /// The backplane has answered a subscription.
    Confirmed { id: ConnectionId, result: Result<(), BackplaneError> },
    /// History was read for a recovering connection.
    HistoryRead { id: ConnectionId, key: ChannelKey, result: Result<History, BackplaneError> },
    /// The backplane has answered a subscription of a client of Pusher Channels.
    Entered { token: EntranceToken, entered: Box<Entered> },
    /// Who is in a presence channel was read.
    ListRead { token: EntranceToken, list: Result<Arc<Roll>, BackplaneError> },
    /// The last event of a cache channel was read after a gap.
    LastRead { channel: Channel, result: Result<History, BackplaneError> },
    /// A client's publish has ended.
    Published { id: ConnectionId, result: Result<(), PublishError> },
    /// Close the connections of a user, or one.
    Disconnect { target: DisconnectTarget, reason: Box<str> },
    /// The list of apps is another one: those of an app that is gone or disabled must leave.
    AppsChanged,
    /// Close all connections, evenly over the time.
    Drain { over: Duration },
}

/// What all shards share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) node: Arc<Node>,
    pub(crate) front: Arc<Front>,
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) api_keys: Arc<ApiKeys>,
    pub(crate) apps: Arc<Apps>,
    pub(crate) webhooks: Arc<Webhooks>,
    pub(crate) origins: Arc<Origins>,
    pub(crate) edge: Arc<Edge>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) runtime: Handle,
    pub(crate) http: Arc<HttpServer>,
    pub(crate) started: Instant,
    /// Names this process's life in the ids of event streams; see [`Fresh`](crate::protocols::sse::ids::Fresh).
    pub(crate) life: Epoch,
}

/// Drives one shard.
#[derive(Debug)]
pub(crate) struct ShardDriver {
    pub(crate) inflater: Inflater,
    pub(crate) core: Core,
}

/// Everything but the inflater, which is lent to the decoder while messages are handled.
pub(crate) struct Core {
    pub(crate) shard: usize,
    pub(crate) shared: Arc<Shared>,
    /// What one connection may cost.
    pub(crate) rates: Rates,
    pub(crate) hub: Hub,
    pub(crate) encoder: Encoder,
    /// Deflates what is echoed.
    pub(crate) deflater: Deflater,
    pub(crate) mailbox: Mailbox<Mail<Session, Command>>,
    pub(crate) metrics: Arc<ShardMetrics>,
    /// Told of a gap in the fan-out under way; empty between calls.
    pub(crate) farewells: Vec<(ConnectionId, GapReason)>,
    pub(crate) legacies: Legacies,
    pub(crate) socket_ids: SocketIds,
    pub(crate) apps: AppTable,
    /// Subscriptions of clients of Pusher Channels that wait for the backplane: at most as many as one connection may
    /// have, for each.
    pub(crate) entrances: Slab<Entrance>,
    /// Reused for answers.
    pub(crate) scratch: Vec<u8>,
    /// What the front counts for this shard.
    pub(crate) connections_dealt: Arc<AtomicU64>,
    drain: Option<Sweep>,
    /// Totals at the last export.
    exported: Counters,
    swept: Tick,
}

impl ShardDriver {
    pub(crate) fn new(
        shard: usize,
        shared: Arc<Shared>,
        hub: Hub,
        mailbox: Mailbox<Mail<Session, Command>>,
        metrics: Arc<ShardMetrics>,
        connections_dealt: Arc<AtomicU64>,
    ) -> Self {
        let socket_ids = SocketIds::new(shared.life, shard);
        let core = Core {
            shard,
            rates: Rates::from(&shared.node.config().limits),
            shared,
            hub,
            encoder: Encoder::new(),
            deflater: Deflater::new(1),
            mailbox,
            metrics,
            farewells: Vec::new(),
            legacies: Legacies::new(),
            socket_ids,
            apps: AppTable::default(),
            entrances: Slab::new(),
            scratch: Vec::new(),
            connections_dealt,
            drain: None,
            exported: Counters::default(),
            swept: Tick(0),
        };
        Self { inflater: Inflater::new(), core }
    }
}

impl Driver for ShardDriver {
    type Connection = Session;
    type Command = Command;

    fn on_adopted(&mut self, connections: &mut Connections<Session>, id: ConnectionId) {
        self.core.metrics.connections.set(connections.len() as i64);
        let timeout = self.core.shared.node.config().limits.handshake_timeout;
        connections.set_timer(id, connections.now().after(timeout));
        self.core.begin_preamble(connections, id);
    }

    fn on_bytes(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        bytes: &mut [u8],
    ) -> usize {
        let all = bytes.len();
        let Some(session) = connections.get_mut(id) else { return all };
        match &mut session.phase {
            Phase::Head(_) => {
                if let Some(rest) = self.core.read_head(connections, id, bytes) {
                    connections.give_back(id, &rest);
                }
            }
            Phase::Opening(opening) => {
                if let Err(refusal) = opening.receive(bytes) {
                    self.core.refuse(connections, id, &refusal);
                }
            }
            Phase::Open(Open { protocol: Protocol::Sse, .. }) | Phase::Leaving(None) => {}
            Phase::Open(_) => return self.read_socket(connections, id, bytes),
            Phase::Leaving(Some(_)) => self.read_last(connections, id, bytes),
        }
        all
    }

    fn on_timer(&mut self, connections: &mut Connections<Session>, id: ConnectionId) {
        let Some(session) = connections.get(id) else { return };
        match &session.phase {
            Phase::Head(_) | Phase::Opening(_) => self.core.time_out_handshake(connections, id),
            Phase::Open(_) => self.core.beat(connections, id),
            Phase::Leaving(_) => connections.close(id),
        }
    }

    fn on_recovered(&mut self, connections: &mut Connections<Session>, id: ConnectionId, dropped: u64) {
        self.core.tell_dropped(connections, id, dropped);
    }

    fn on_command(&mut self, connections: &mut Connections<Session>, command: Command) {
        match command {
            Command::Deliver(outgoing) => self.core.deliver(connections, &outgoing),
            Command::KeysFetched(id) => {
                if let Some(rest) = self.core.resume_head(connections, id) {
                    connections.give_back(id, &rest);
                }
            }
            Command::Confirmed { id, result } => {
                if let Some(rest) = self.core.confirmed(connections, id, result) {
                    connections.give_back(id, &rest);
                }
            }
            Command::HistoryRead { id, key, result } => {
                if let Some(rest) = self.core.history_read(connections, id, key, result) {
                    connections.give_back(id, &rest);
                }
            }
            Command::Published { id, result } => self.core.published(connections, id, result),
            Command::Disconnect { target, reason } => self.core.disconnect(connections, &target, &reason),
            Command::Entered { token, entered } => self.core.entered(connections, token, *entered),
            Command::ListRead { token, list } => self.core.list_read(connections, token, list),
            Command::LastRead { channel, result } => self.core.last_read(&channel, result),
            Command::AppsChanged => self.core.apps_changed(connections),
            Command::Drain { over } => {
                // Who arrives later is refused by its handshake; see [`Stage::Closing`](crate::node::Stage).
                let rest = (0..connections.slots()).filter_map(|slot| connections.in_slot(slot)).collect();
                self.core.drain = Some(Sweep::new(rest, connections.now(), over));
            }
        }
    }

    fn on_closed(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        session: Session,
        closed: Closed,
    ) {
        self.core.closed(connections, id, session, closed);
    }

    fn on_turn(&mut self, connections: &mut Connections<Session>, busy: Duration) -> Turn {
        let (hub, mut delivery) = self.core.delivery(connections);
        let turn = hub.run(&mut delivery);
        self.core.see_off(connections);
        self.core.export(connections, busy);
        if connections.now() > self.core.swept {
            self.core.swept = connections.now();
            self.core.hub.sweep(connections.now());
            self.inflater.release();
        }
        match self.core.drain_portion(connections) {
            Turn::More => Turn::More,
            Turn::Idle => turn,
        }
    }
}

impl Core {
    /// Whether this node has fewer channels than it may have, as of the last second.
    pub(crate) fn has_room_for_channels(&self) -> bool {
        let max = i64::from(self.shared.node.config().limits.channels);
        max == 0 || self.shared.metrics.node.channels.get() < max
    }

    /// Milliseconds on the clock of [`Session::accepted_ms`].
    pub(crate) fn now_ms(&self) -> u32 {
        self.shared.started.elapsed().as_millis() as u32
    }

    pub(crate) fn delivery<'a>(
        &'a mut self,
        connections: &'a mut Connections<Session>,
    ) -> (&'a mut Hub, Delivery<'a>) {
        let (encoder, farewells) = (&mut self.encoder, &mut self.farewells);
        let socket_ids = self.socket_ids;
        let delivery = Delivery { connections, encoder, metrics: &self.metrics, socket_ids, farewells };
        (&mut self.hub, delivery)
    }

    /// Names a connection in the cluster. The life of the process is a part, so that a node that was started again
    /// under its name gives no name a second time.
    pub(crate) fn connection_name(&self, id: ConnectionId) -> String {
        let (node, life) = (&self.shared.node.config().node, self.shared.life);
        format!("{node}.{life}-{}-{}-{}", self.shard, id.slot, id.generation)
    }

    fn closed(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        session: Session,
        closed: Closed,
    ) {
        self.count_out(connections, session.address);
        let lasted = self.lasted(&session);
        match session.phase {
            Phase::Head(_) if closed == Closed::Tls => {
                self.metrics.handshakes.add(HandshakeResult::TlsFailed, 1);
            }
            Phase::Head(head) => {
                // One that never said anything is a browser's spare connection or a health check, not a failure.
                if head.received.is_some() {
                    self.metrics.handshakes.add(HandshakeResult::Abandoned, 1);
                }
            }
            Phase::Opening(opening) => {
                self.metrics.handshakes.add(HandshakeResult::Abandoned, 1);
                self.abandon_opening(connections, id, *opening);
            }
            Phase::Open(open) => {
                let reason = open.rare.as_ref().and_then(|rare| rare.reason).unwrap_or(match closed {
                    Closed::Overflow => DisconnectReason::SlowReader,
                    // An event stream's heartbeat was not acknowledged in time.
                    Closed::Failed(io::ErrorKind::TimedOut) => DisconnectReason::PingTimeout,
                    Closed::Tls => DisconnectReason::ProtocolError,
                    Closed::Peer | Closed::Failed(_) => DisconnectReason::ClientGone,
                    Closed::Local => DisconnectReason::Internal,
                });
                self.metrics.disconnects.add(reason, 1);
                self.metrics.connection_duration_seconds.observe(lasted);
                self.unsubscribe(connections, id, open);
            }
            // Counted when it began to leave.
            Phase::Leaving(_) => {}
        }
    }

    /// A connection is no longer this shard's, and not handed to anyone who counts it.
    pub(crate) fn count_out(&self, connections: &Connections<Session>, address: AddressKey) {
        self.metrics.connections.set(connections.len() as i64);
        self.connections_dealt.fetch_sub(1, Ordering::AcqRel);
        self.shared.front.release(address);
    }

    /// How long a connection has been here.
    pub(crate) fn lasted(&self, session: &Session) -> Duration {
        Duration::from_millis(u64::from(self.now_ms().wrapping_sub(session.accepted_ms)))
    }

    fn export(&mut self, connections: &Connections<Session>, busy: Duration) {
        let counters = connections.counters();
        self.metrics.bytes_received.add(counters.bytes_received - self.exported.bytes_received);
        self.metrics.bytes_sent.add(counters.bytes_sent - self.exported.bytes_sent);
        let unsent = counters.messages_unsent - self.exported.messages_unsent;
        if unsent > 0 {
            self.metrics.messages_dropped.add(DropReason::Disconnected, unsent);
        }
        let tls = &self.metrics.tls_handshakes;
        let resumed = counters.tls_resumed - self.exported.tls_resumed;
        tls.add(TlsHandshake::Resumed, resumed);
        tls.add(TlsHandshake::Full, counters.tls_handshakes - self.exported.tls_handshakes - resumed);
        tls.add(TlsHandshake::Failed, counters.tls_failures - self.exported.tls_failures);
        self.exported = *counters;
        self.metrics.send_queue_bytes.set(counters.queued_bytes as i64);
        self.metrics.subscriptions.set(self.hub.subscriptions() as i64);
        self.metrics.busy_ns.add(busy.as_nanos() as u64);
    }

    fn drain_portion(&mut self, connections: &mut Connections<Session>) -> Turn {
        let Some(plan) = &mut self.drain else { return Turn::Idle };
        let (portion, turn) = plan.next_portion(connections.now());
        for id in portion {
            self.leave(connections, id, Leave::Drain);
        }
        turn
    }
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("shard", &self.shard).field("hub", &self.hub).finish_non_exhaustive()
    }
}
