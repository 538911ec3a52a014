//! The gateway's side of a shard: what its reactor tells it goes to the session's phase, what other threads ask
//! goes to the session or the hub.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use tidegate_backplane::GapReason;
use tidegate_ops::{
    sweep::{SWEEP_PORTION, Sweep},
    tls::TlsHandshake,
};
use tidegate_reactor::{Closed, ConnectionId, Connections, Counters, Driver, Tick, Turn};
use tidegate_wire::deflate::Inflater;

use crate::{
    edge::door::Doorkeeper,
    hub::ChannelKey,
    metrics::{DisconnectReason, DropReason, HandshakeResult},
    node::shards::Order,
    session::{
        Ctx, Earlier, Head, Phase, Session,
        core::{Command, Core},
        leaving::{ComeBack, Leave},
        protocol::{Event, Transport},
    },
};

/// Drives one shard.
pub(crate) struct ShardDriver {
    inflater: Inflater,
    core: Core,
    door: Arc<Doorkeeper>,
    /// Once it drains: idle connections of publishers end at once, clients over a time.
    drain: Vec<Sweep>,
    /// Those who have to be closed for a gap.
    gap_closes: Option<Sweep<(ConnectionId, ChannelKey, GapReason)>>,
    /// Totals at the last export.
    exported: Counters,
    swept: Tick,
}

impl ShardDriver {
    pub(crate) fn new(core: Core, door: Arc<Doorkeeper>) -> Self {
        Self {
            inflater: Inflater::new(),
            core,
            door,
            drain: Vec::new(),
            gap_closes: None,
            exported: Counters::default(),
            swept: Tick(0),
        }
    }
}

impl Driver for ShardDriver {
    type Connection = Session;
    type Command = Command;

    fn on_connection(&mut self, socket: TcpStream, peer: SocketAddr) -> Option<(TcpStream, Session)> {
        self.door.take(self.core.shard, socket, peer)
    }

    fn on_exhausted(&mut self, socket: Option<TcpStream>) {
        self.door.turn_away(socket);
    }

    fn on_adopted(&mut self, connections: &mut Connections<Session>, id: ConnectionId) {
        self.core.tell_connections(connections);
        let timeout = self.core.shared.node.config().limits.handshake_timeout;
        connections.set_timer(id, connections.now().after(timeout));
        self.core.ctx(connections, id).begin_preamble();
    }

    fn on_bytes(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        bytes: &mut [u8],
    ) -> usize {
        let protocols = self.core.shared.protocols;
        let mut ctx = self.core.ctx(connections, id);
        let Some(session) = ctx.session_mut() else { return bytes.len() };
        match &mut session.phase {
            Phase::Head(_) => return ctx.read_head(bytes),
            Phase::Opening(opening) => {
                if let Err(refusal) = opening.receive(bytes) {
                    ctx.refuse(&refusal);
                }
            }
            Phase::Open(open) if open.protocol.of_list(protocols).transport() == Transport::Stream => {}
            Phase::Leaving(None) => {}
            Phase::Open(_) | Phase::Leaving(Some(_)) => return ctx.read_socket(bytes, &mut self.inflater),
        }
        bytes.len()
    }

    fn on_timer(&mut self, connections: &mut Connections<Session>, id: ConnectionId) {
        let Some(session) = connections.get(id) else { return };
        match &session.phase {
            Phase::Head(_) | Phase::Opening(_) => self.core.ctx(connections, id).time_out_handshake(),
            Phase::Open(_) => self.core.ctx(connections, id).beat(),
            Phase::Leaving(_) => connections.close(id),
        }
    }

    fn on_flushed(&mut self, connections: &mut Connections<Session>, id: ConnectionId) {
        self.core.ctx(connections, id).on_room();
    }

    fn on_end(&mut self, connections: &mut Connections<Session>, id: ConnectionId) {
        self.core.ctx(connections, id).request_ended();
    }

    fn on_recovered(&mut self, connections: &mut Connections<Session>, id: ConnectionId, dropped: u64) {
        self.core.ctx(connections, id).tell_dropped(dropped);
    }

    fn on_command(&mut self, connections: &mut Connections<Session>, command: Command) {
        match command {
            Command::Continue(go_on) => go_on(&mut self.core, connections),
            Command::Order(Order::Deliver(outgoing)) => self.core.deliver(connections, &outgoing),
            Command::Order(Order::Disconnect { target, reason }) => {
                self.core.disconnect(connections, &target, &reason);
            }
            Command::Order(Order::Instruct { target, instruction, round }) => {
                self.core.instruct(connections, &target, &instruction, round.as_deref());
            }
            Command::Order(Order::AskBack { node, peers }) => self.core.ask_back(connections, &node, &peers),
            Command::Order(Order::LookUp(inquiry)) => self.core.look_up(connections, &inquiry),
            Command::Order(Order::AppsChanged) => {
                for protocol in self.core.protocols() {
                    protocol.on_apps_changed(&mut self.core, connections);
                }
            }
            Command::Order(Order::Drain { over }) => {
                // Who arrives later is refused by its handshake; see [`Stage::Closing`](crate::node::Stage).
                let all = (0..connections.slots()).filter_map(|slot| connections.in_slot(slot));
                let (idle, clients) =
                    all.partition(|id| connections.get(*id).is_some_and(Session::is_idle_publisher));
                let now = connections.now();
                self.drain = vec![Sweep::new(idle, now, Duration::ZERO), Sweep::new(clients, now, over)];
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
        self.core.ctx(connections, id).closed(session, closed);
    }

    fn on_turn(&mut self, connections: &mut Connections<Session>, busy: Duration) -> Turn {
        let turn = self.core.fan_out(connections);
        let closing = self.close_for_gaps(connections, turn);
        self.export(connections, busy);
        if connections.now() > self.swept {
            self.swept = connections.now();
            self.core.sweep_hub(connections);
            self.inflater.release();
        }
        match [turn, closing, self.drain_portion(connections)].contains(&Turn::More) {
            true => Turn::More,
            false => Turn::Idle,
        }
    }
}

impl ShardDriver {
    fn export(&mut self, connections: &Connections<Session>, busy: Duration) {
        let counters = connections.counters();
        self.core.metrics.bytes_received.add(counters.bytes_received - self.exported.bytes_received);
        self.core.metrics.bytes_sent.add(counters.bytes_sent - self.exported.bytes_sent);
        let unsent = counters.messages_unsent - self.exported.messages_unsent;
        if unsent > 0 {
            self.core.metrics.messages_dropped.add(DropReason::Disconnected, unsent);
        }
        let tls = &self.core.metrics.tls_handshakes;
        let resumed = counters.tls_resumed - self.exported.tls_resumed;
        tls.add(TlsHandshake::Resumed, resumed);
        tls.add(TlsHandshake::Full, counters.tls_handshakes - self.exported.tls_handshakes - resumed);
        tls.add(TlsHandshake::Failed, counters.tls_failures - self.exported.tls_failures);
        self.exported = *counters;
        self.core.metrics.send_queue_bytes.set(counters.queued_bytes as i64);
        self.core.metrics.subscriptions.set(self.core.hub.subscriptions() as i64);
        self.core.metrics.busy_ns.add(busy.as_nanos() as u64);
    }

    /// Closes those whom a gap can be told in no other way: a few at once, many over a time, as a drain does. Meanwhile
    /// they get nothing of the channel.
    fn close_for_gaps(&mut self, connections: &mut Connections<Session>, fan_out: Turn) -> Turn {
        let farewells =
            self.core.farewells.drain(..).map(|farewell| (farewell.id, farewell.key, farewell.reason));
        if self.gap_closes.is_none() && farewells.len() == 0 {
            return Turn::Idle;
        }
        let period = self.core.shared.node.config().drain.gap_period;
        let sweep = self.gap_closes.get_or_insert_with(|| Sweep::new(Vec::new(), connections.now(), period));
        farewells.for_each(|farewell| sweep.join(farewell));
        let (portion, turn) = match sweep.len() <= SWEEP_PORTION && fan_out == Turn::Idle {
            true => (sweep.take_rest(), Turn::Idle),
            false => sweep.next_portion(connections.now()),
        };
        if sweep.len() == 0 {
            self.gap_closes = None;
        }
        for (id, key, reason) in portion {
            self.core.ctx(connections, id).tell_protocol(Event::Missed { key, reason });
        }
        turn
    }

    fn drain_portion(&mut self, connections: &mut Connections<Session>) -> Turn {
        let mut more = Turn::Idle;
        for sweep in &mut self.drain {
            let (portion, turn) = sweep.next_portion(connections.now());
            for id in portion {
                self.core.ctx(connections, id).leave(Leave::ComeBack(ComeBack::Drain));
            }
            if turn == Turn::More {
                more = turn;
            }
        }
        more
    }
}

impl Ctx<'_> {
    /// The client of an event stream has closed its side. It may have gone, or only have said all that it had to say
    /// (RFC 9112 section 9.6): a heartbeat tells which, for the kernel of one that is gone answers it with a reset.
    fn request_ended(&mut self) {
        let Some(session) = self.connections.get(self.id) else { return };
        match &session.phase {
            // Its answer is still to come, and tells the same.
            Phase::Opening(_) => {}
            Phase::Open(open) => {
                open.protocol.of_list(self.core.shared.protocols).on_event(self, Event::HeartbeatDue);
            }
            // The same.
            Phase::Head(Head { earlier: Earlier::UnderWay, .. }) => {}
            Phase::Head(_) => self.connections.close(self.id),
            Phase::Leaving(_) => self.connections.close_when_flushed(self.id),
        }
    }

    /// A connection is gone: counts its end, and gives back what it held.
    fn closed(&mut self, session: Session, closed: Closed) {
        if matches!(&session.phase, Phase::Head(head) if head.earlier != Earlier::None) {
            self.core.publishers -= 1;
        }
        self.core.count_out(self.connections, session.address);
        let lasted = self.core.lasted(&session);
        match session.phase {
            Phase::Head(_) if closed == Closed::Tls => {
                self.core.metrics.handshakes.add(HandshakeResult::TlsFailed, 1);
            }
            Phase::Head(head) => {
                // One that never said anything is a browser's spare connection or a health check, not a failure.
                if head.received.is_some() {
                    self.core.metrics.handshakes.add(HandshakeResult::Abandoned, 1);
                }
            }
            Phase::Opening(opening) => {
                self.core.metrics.handshakes.add(HandshakeResult::Abandoned, 1);
                self.abandon_opening(*opening);
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
                self.ended(open, reason, lasted);
            }
            // Counted when it began to leave.
            Phase::Leaving(_) => {}
        }
    }
}
