//! The proxy's side of a shard: what the reactor tells it goes to the phase that the connection is in.

use std::{
    collections::VecDeque,
    fmt,
    net::{SocketAddr, TcpStream},
    sync::{Arc, atomic::Ordering::Acquire},
    time::Duration,
};

use tidegate_ops::{
    seldom::Seldom,
    sweep::{SWEEP_PORTION, Sweep},
    tls::TlsHandshake,
};
use tidegate_reactor::{Closed, ConnectionId, Connections, Counters, Driver, Tick, Turn};

use super::{
    ConnectResult, Shared,
    lines::Lines,
    link::{End, Link, Phase},
    metrics::{CutReason, Direction, ProxyMetrics, RefusalReason},
};
use crate::{
    chooser::{Filling, Node},
    placement::KeyHash,
};

/// What other threads ask of a shard.
pub(crate) enum Command {
    /// Close everything that goes to a node.
    Cut { node: Arc<Node> },
    /// Close all clients evenly over the time.
    Drain { over: Duration },
    /// Look for clients that are to be asked to come back.
    Walk(Arc<Filling>),
    /// Do something once.
    Do(Work),
}

/// What a shard does once.
pub(super) type Work = Box<dyn FnOnce(&mut ProxyDriver, &mut Links) + Send>;

/// Drives one shard.
pub(crate) struct ProxyDriver {
    pub(super) shard: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: Arc<ProxyMetrics>,
    /// Clients to be closed by a drain.
    pub(super) drain: Option<Sweep>,
    /// Connections to nodes that are gone, and when they end at the latest: what a node has said before is read first.
    pub(super) cut: VecDeque<(ConnectionId, Tick)>,
    /// The look at all clients that is under way, and the slot it has come to.
    walk: Option<(Arc<Filling>, u32)>,
    /// Bytes passed on since the last turn, to clients and to nodes.
    pub(super) to_clients: u64,
    pub(super) to_nodes: u64,
    /// Reused for answers.
    pub(super) scratch: Vec<u8>,
    pub(super) without_header: Seldom,
    pub(super) loops: Seldom,
    pub(super) lineless: Seldom,
    pub(super) lines: Lines,
    /// What was exported of the reactor's counters.
    exported: Counters,
}

pub(super) type Links = Connections<Link>;

/// Slots looked at in a turn: at some 20 ns each, 40 µs.
const WALK_PORTION: u32 = 2_048;

/// A node that is gone and goes on sending is heard for so long.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl ProxyDriver {
    pub(super) fn new(shard: usize, shared: Arc<Shared>, metrics: Arc<ProxyMetrics>) -> Self {
        Self {
            shard,
            shared,
            metrics,
            drain: None,
            cut: VecDeque::new(),
            walk: None,
            to_clients: 0,
            to_nodes: 0,
            scratch: Vec::new(),
            without_header: Seldom::default(),
            loops: Seldom::default(),
            lineless: Seldom::default(),
            lines: Lines::default(),
            exported: Counters::default(),
        }
    }

    fn begin_drain(&mut self, links: &Links, over: Duration) {
        let is_pairs_client = |id: &ConnectionId| {
            matches!(links.get(*id), Some(Link { end: End::Client, phase: Phase::Piped(_) }))
        };
        let rest =
            (0..links.slots()).filter_map(|slot| links.in_slot(slot)).filter(is_pairs_client).collect();
        self.drain = Some(Sweep::new(rest, links.now(), over));
    }

    fn begin_cut(&mut self, links: &mut Links, node: &Arc<Node>) {
        self.shut_line(links, node.id(), ConnectResult::Removed);
        let by = links.now().after(LAST_WORDS);
        for slot in 0..links.slots() {
            let Some(id) = links.in_slot(slot) else { continue };
            let is_nodes = matches!(links.get(id).map(|link| &link.end), Some(End::Node(claim)) if Arc::ptr_eq(claim.node(), node));
            if is_nodes {
                links.read_out(id);
                self.cut.push_back((id, by));
            }
        }
    }

    /// A portion of the look at all clients. Most of them cost two reads of memory.
    fn walk_on(&mut self, links: &Links) -> Turn {
        let Some((filling, from)) = self.walk.take() else { return Turn::Idle };
        let end = from.saturating_add(WALK_PORTION).min(links.slots());
        for id in (from..end).filter_map(|slot| links.in_slot(slot)) {
            let Some(Link { end: End::Client, phase: Phase::Piped(pipe) }) = links.get(id) else { continue };
            let Some(End::Node(claim)) = links.get(pipe.peer).map(|link| &link.end) else { continue };
            if filling.is_asked(KeyHash::of_halves(pipe.key), claim.node())
                && let Some(address) = links.local_address(pipe.peer)
            {
                self.metrics.asked_back.add(1);
                filling.ask(claim.node(), address);
            }
        }
        if end == links.slots() {
            return Turn::Idle;
        }
        self.walk = Some((filling, end));
        Turn::More
    }

    pub(super) fn is_draining(&self) -> bool {
        self.shared.draining.load(Acquire)
    }

    /// A portion of what is to be closed.
    fn sweep(&mut self, links: &mut Links) -> Turn {
        for _ in 0..self.cut.len().min(SWEEP_PORTION) {
            match self.cut.pop_front() {
                Some((id, by)) if links.is_unread(id) && links.now() < by => self.cut.push_back((id, by)),
                Some((id, _)) => self.cut_node(links, id),
                None => break,
            }
        }
        if self.cut.is_empty() {
            self.cut = VecDeque::new();
        }
        let Some(drain) = &mut self.drain else { return self.more_if_cut() };
        let (portion, turn) = drain.next_portion(links.now());
        for id in portion {
            self.drain_client(links, id);
        }
        if turn == Turn::More { turn } else { self.more_if_cut() }
    }

    fn more_if_cut(&self) -> Turn {
        if self.cut.is_empty() { Turn::Idle } else { Turn::More }
    }

    fn export(&mut self, links: &Links, busy: Duration) {
        if self.to_clients > 0 {
            self.metrics.bytes.add(Direction::ToClients, std::mem::take(&mut self.to_clients));
        }
        if self.to_nodes > 0 {
            self.metrics.bytes.add(Direction::ToNodes, std::mem::take(&mut self.to_nodes));
        }
        let counters = links.counters();
        if counters.tls_handshakes + counters.tls_failures
            > self.exported.tls_handshakes + self.exported.tls_failures
        {
            self.export_tls(*counters);
        }
        self.metrics.queued_bytes.set(counters.queued_bytes as i64);
        self.metrics.busy_ns.add(busy.as_nanos() as u64);
    }

    fn export_tls(&mut self, counters: Counters) {
        let tls = &self.metrics.tls_handshakes;
        let resumed = counters.tls_resumed - self.exported.tls_resumed;
        tls.add(TlsHandshake::Resumed, resumed);
        tls.add(TlsHandshake::Full, counters.tls_handshakes - self.exported.tls_handshakes - resumed);
        tls.add(TlsHandshake::Failed, counters.tls_failures - self.exported.tls_failures);
        self.exported = counters;
    }
}

impl Driver for ProxyDriver {
    type Connection = Link;
    type Command = Command;

    fn on_connection(&mut self, socket: TcpStream, peer: SocketAddr) -> Option<(TcpStream, Link)> {
        self.shared.door.take(self.shard, socket, peer)
    }

    fn on_exhausted(&mut self, socket: Option<TcpStream>) {
        self.shared.door.turn_away(socket);
    }

    fn on_adopted(&mut self, links: &mut Links, id: ConnectionId) {
        links.set_timer(id, links.now().after(self.shared.options.head_timeout));
        self.begin_preamble(links, id);
    }

    fn on_bytes(&mut self, links: &mut Links, id: ConnectionId, bytes: &mut [u8]) -> usize {
        let used = bytes.len();
        let Some(link) = links.get_mut(id) else { return used };
        match &mut link.phase {
            Phase::Piped(pipe) if pipe.deaf => self.metrics.bytes.add(Direction::Ignored, bytes.len() as u64),
            Phase::Piped(pipe) => {
                let (direction, peer) = (link.end.direction(), pipe.peer);
                self.pass(links, direction, id, peer, bytes);
            }
            Phase::Head(head) if head.awaits_header() => self.read_proxy_header(links, id, bytes),
            Phase::Head(_) => self.read_head(links, id, bytes),
            Phase::Awaiting { client, .. } => {
                let client = *client;
                self.read_answer(links, client, id, bytes);
            }
            Phase::Relaying { client, .. } => {
                let client = *client;
                self.relay(links, client, id, bytes);
            }
            Phase::Line(_) => self.read_answers(links, id, bytes),
            // A client is not read while it waits; what it says after its end was decided is not heard.
            Phase::Waiting(_) | Phase::Leaving { .. } => {
                self.metrics.bytes.add(Direction::Ignored, bytes.len() as u64);
            }
        }
        used
    }

    fn on_connected(&mut self, links: &mut Links, id: ConnectionId) {
        if let Some(Link { phase: Phase::Awaiting { .. }, .. }) = links.get(id) {
            links.set_timer(id, links.now().after(self.shared.options.answer_timeout));
        }
    }

    fn on_flushed(&mut self, links: &mut Links, id: ConnectionId) {
        let source = match links.get(id).map(|link| &link.phase) {
            Some(Phase::Piped(pipe)) => Some(pipe.peer),
            Some(Phase::Leaving { node }) => *node,
            _ => None,
        };
        if let Some(source) = source {
            links.set_paused(source, false);
        }
    }

    fn on_end(&mut self, links: &mut Links, id: ConnectionId) {
        self.end(links, id);
    }

    fn on_timer(&mut self, links: &mut Links, id: ConnectionId) {
        match links.get(id).map(|link| &link.phase) {
            Some(Phase::Head(_)) => self.time_out_head(links, id),
            Some(Phase::Awaiting { .. }) => self.time_out_node(links, id),
            Some(Phase::Piped(_)) => self.time_out_half(links, id),
            Some(Phase::Leaving { .. }) => {
                self.metrics.cuts.add(CutReason::Lingered, 1);
                links.close(id);
            }
            Some(Phase::Relaying { .. }) => links.close(id),
            Some(Phase::Waiting(_)) => self.time_out_offer(links, id),
            Some(Phase::Line(_)) | None => {}
        }
    }

    /// Nothing is dropped from queues here: they only hold what `pass` has put there.
    fn on_recovered(&mut self, _: &mut Links, _: ConnectionId, _: u64) {}

    fn on_command(&mut self, links: &mut Links, command: Command) {
        match command {
            Command::Cut { node } => self.begin_cut(links, &node),
            Command::Drain { over } => self.begin_drain(links, over),
            Command::Walk(filling) => self.walk = Some((filling, 0)),
            Command::Do(work) => work(self, links),
        }
    }

    fn on_closed(&mut self, links: &mut Links, id: ConnectionId, link: Link, closed: Closed) {
        if matches!(link.end, End::Client) && !matches!(link.phase, Phase::Line(_)) {
            self.count_client_out(&link);
        }
        match link.phase {
            Phase::Head(_) if closed == Closed::Tls => self.metrics.refusals.add(RefusalReason::TlsFailed, 1),
            Phase::Head(_) | Phase::Leaving { node: None } => {}
            Phase::Leaving { node: Some(node) } => links.close(node),
            Phase::Waiting(attempt) => {
                if let Some(node) = attempt.node {
                    links.close(node);
                }
            }
            Phase::Awaiting { client, failure } => {
                if let End::Node(claim) = link.end {
                    self.node_failed(links, client, claim, failure, closed);
                }
            }
            Phase::Relaying { client, .. } => self.leave(links, client),
            Phase::Piped(pipe) => self.part(links, id, pipe.peer),
            Phase::Line(node) => self.line_closed(links, node, id),
        }
    }

    fn on_turn(&mut self, links: &mut Links, busy: Duration) -> Turn {
        let turn = self.sweep(links);
        let walking = self.walk_on(links);
        self.offer_fresh(links);
        self.export(links, busy);
        if turn == Turn::More { turn } else { walking }
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cut { .. } => "Cut",
            Self::Drain { .. } => "Drain",
            Self::Walk(_) => "Walk",
            Self::Do(_) => "Do",
        })
    }
}

impl fmt::Debug for ProxyDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyDriver").field("shard", &self.shard).finish_non_exhaustive()
    }
}
