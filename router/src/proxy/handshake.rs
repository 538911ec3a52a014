//! From a client's first byte to its node's answer: the head, the choice, the attempts.

use std::{
    io,
    time::{Duration, Instant},
};

use tidegate_reactor::{Closed, ConnectionId, Written};
use tidegate_wire::{
    head::Head as RequestHead,
    proxy_v2::Addresses,
    request::{Judged, judge},
};

use super::{
    ConnectResult,
    answer::{self, Verdict},
    driver::{Links, ProxyDriver},
    http::HandOff,
    link::{Attempt, BodyLeft, End, Kind, Link, Phase},
    metrics::{Direction, Fallback, ProxyMetrics},
    refusal::Refusal,
    request::{self, Origin, Route},
};
use crate::chooser::{Claim, PassedOver};

/// Nodes asked for one client, each with the connect and the answer timeout: five of them, hung, are 35 s by default.
/// More than a handful that fail at once is no matter of one client's luck.
pub(super) const ATTEMPTS_MAX: u32 = 5;

/// A node that does not switch has so long to end its answer.
const RELAY_MAX: Duration = Duration::from_secs(10);

impl ProxyDriver {
    pub(super) fn read_head(&mut self, links: &mut Links, id: ConnectionId, bytes: &[u8]) {
        let Some(Phase::Head(head)) = links.get_mut(id).map(|link| &mut link.phase) else { return };
        if head.received.is_empty() {
            return self.take_head(links, id, bytes, bytes);
        }
        let mut received = std::mem::take(&mut head.received);
        received.extend_from_slice(bytes);
        self.take_head(links, id, &received, bytes);
    }

    /// `fresh` are the last bytes of `received`.
    fn take_head(&mut self, links: &mut Links, id: ConnectionId, received: &[u8], fresh: &[u8]) {
        let max = self.shared.options.head_bytes_max;
        match judge(received, fresh.len(), max) {
            Ok(None) => {
                if let Some(Phase::Head(head)) = links.get_mut(id).map(|link| &mut link.phase) {
                    head.received = received.to_vec();
                }
            }
            Err(error) => self.refuse(links, id, error.into()),
            Ok(Some(Judged { head, .. })) => {
                if let Err(refusal) = self.take_request(links, id, &head, received) {
                    self.refuse(links, id, refusal);
                }
            }
        }
    }

    fn take_request(
        &mut self,
        links: &mut Links,
        id: ConnectionId,
        head: &RequestHead<'_>,
        received: &[u8],
    ) -> Result<(), Refusal> {
        let Some(Phase::Head(state)) = links.get(id).map(|link| &link.phase) else { return Ok(()) };
        let ends = state.ends;
        if state.over {
            return Err(Refusal::NoCapacity);
        }
        if self.is_draining() {
            return Err(Refusal::Draining);
        }
        match request::route(head, received.len() > head.len) {
            Route::Http | Route::Assign => {
                self.hand_to_http(links, id, received);
                Ok(())
            }
            Route::Pair(kind) => {
                let limited = |retry_after| Refusal::RateLimit { retry_after };
                self.shared.door.take_handshake().map_err(limited)?;
                let attempt = self.plan(head, kind, ends, &received[head.len..]);
                self.begin(links, id, attempt);
                Ok(())
            }
        }
    }

    /// Where the request may go, and what is sent there.
    fn plan(&self, head: &RequestHead<'_>, kind: Kind, ends: Addresses, early: &[u8]) -> Attempt {
        let edge = &self.shared.edge;
        let peer = ends.source;
        let trust = &edge.trust;
        let client = request::client_address(head, peer, trust);
        let key = self.shared.options.key.key_of(head, client);
        let candidates = self.shared.chooser.candidates(&key.bytes, Instant::now());
        let origin = Origin { peer, trusted: trust.covers(peer.ip()), secure: edge.tls.is_some() };
        // What is added to a head: six headers of at most 60 bytes, of which three take the place of others.
        let mut request = Vec::with_capacity(head.len + 256);
        if self.shared.options.proxy_protocol_to_nodes {
            Addresses { source: client, ..ends }.write(&mut request);
        }
        request::write_forwarded(head, kind, origin, &mut request);
        Attempt { kind, request, early: early.to_vec(), candidates, tried: 0, node: None, answer: Vec::new() }
    }

    fn begin(&mut self, links: &mut Links, id: ConnectionId, attempt: Attempt) {
        let Some(link) = links.get_mut(id) else { return };
        link.phase = Phase::Waiting(Box::new(attempt));
        // Each attempt has its own time.
        links.set_timer(id, tidegate_reactor::Tick::NEVER);
        links.set_paused(id, true);
        self.try_next(links, id);
    }

    /// Asks the next node in the client's order.
    fn try_next(&mut self, links: &mut Links, client: ConnectionId) {
        loop {
            let Some(Phase::Waiting(attempt)) = links.get_mut(client).map(|link| &mut link.phase) else {
                return;
            };
            let next = if attempt.tried < ATTEMPTS_MAX { attempt.candidates.next() } else { None };
            let Some(node) = next else { return self.refuse(links, client, Refusal::NoNode) };
            self.metrics.count_fallback(attempt.tried, attempt.candidates.passed_over());
            attempt.tried += 1;
            let address = node.socket();
            let claim = node.claim(Instant::now());
            match links.connect(address, Link::node(claim, client)) {
                Ok(id) => {
                    links.set_timer(id, links.now().after(self.shared.options.connect_timeout));
                    return self.send_request(links, client, id);
                }
                // No other node would be reached either.
                Err(error) if is_own_lack(&error) => {
                    tracing::warn!(%error, "no connection to a node can be made");
                    return self.refuse(links, client, Refusal::Descriptors);
                }
                Err(error) => {
                    tracing::debug!(%error, %address, "a node cannot be reached");
                    self.metrics.connects.add(ConnectResult::Refused, 1);
                    node.claim(Instant::now()).refused(Instant::now());
                }
            }
        }
    }

    /// At once, although the connection may not stand yet: over loopback it does, and elsewhere it waits in the queue.
    fn send_request(&mut self, links: &mut Links, client: ConnectionId, node: ConnectionId) {
        let Some(Phase::Waiting(attempt)) = links.get_mut(client).map(|link| &mut link.phase) else { return };
        attempt.node = Some(node);
        attempt.answer = Vec::new();
        let request = std::mem::take(&mut attempt.request);
        // A connection that was refused meanwhile reports its end later.
        let written = links.write_beyond_bound(node, &request);
        debug_assert!(!matches!(written, Written::Dropped(_)));
        if let Some(Phase::Waiting(attempt)) = links.get_mut(client).map(|link| &mut link.phase) {
            attempt.request = request;
        }
    }

    pub(super) fn read_answer(
        &mut self,
        links: &mut Links,
        client: ConnectionId,
        node: ConnectionId,
        bytes: &[u8],
    ) {
        let Some(Phase::Waiting(attempt)) = links.get_mut(client).map(|link| &mut link.phase) else {
            return links.close(node);
        };
        if attempt.kind == Kind::Stream {
            return self.open_pair(links, client, node, bytes);
        }
        // Most answers come whole.
        let received = match attempt.answer.is_empty() {
            true => None,
            false => {
                attempt.answer.extend_from_slice(bytes);
                Some(std::mem::take(&mut attempt.answer))
            }
        };
        let received = received.as_deref().unwrap_or(bytes);
        match answer::verdict(received) {
            Verdict::Switching => self.open_pair(links, client, node, received),
            Verdict::Unclear => keep_answer(links, client, received),
            Verdict::Other => match answer::other(received) {
                Ok(Some(other)) => self.begin_relay(links, client, node, &other, &received[other.len..]),
                Ok(None) => keep_answer(links, client, received),
                Err(error) => {
                    tracing::debug!(%error, "a node's answer is not passed on");
                    links.close(node);
                    self.refuse(links, client, Refusal::BadAnswer);
                }
            },
        }
    }

    /// The node does not switch: its answer is passed on, and then both connections end.
    fn begin_relay(
        &mut self,
        links: &mut Links,
        client: ConnectionId,
        node: ConnectionId,
        other: &answer::Other,
        body: &[u8],
    ) {
        if let Some(link) = links.get_mut(client) {
            link.phase = Phase::Leaving { node: Some(node) };
        }
        let Some(link) = links.get_mut(node) else { return };
        link.phase = Phase::Relaying { client, left: other.body };
        link.end.answered(&self.metrics);
        links.set_timer(node, links.now().after(RELAY_MAX));
        links.set_paused(client, false);
        self.pass(links, Direction::ToClients, node, client, &other.head);
        self.relay(links, client, node, body);
    }

    /// Passes on bytes of a body.
    pub(super) fn relay(
        &mut self,
        links: &mut Links,
        client: ConnectionId,
        node: ConnectionId,
        bytes: &[u8],
    ) {
        let Some(Phase::Relaying { left, .. }) = links.get_mut(node).map(|link| &mut link.phase) else {
            return;
        };
        let take = match left {
            BodyLeft::Unknown => bytes.len(),
            BodyLeft::Bytes(left) => {
                let take = bytes.len().min(*left as usize);
                *left -= take as u32;
                take
            }
        };
        let complete = *left == BodyLeft::Bytes(0);
        if take > 0 {
            self.pass(links, Direction::ToClients, node, client, &bytes[..take]);
        }
        if complete {
            links.close(node);
        }
    }

    /// A node that was asked is gone without an answer.
    pub(super) fn node_failed(
        &mut self,
        links: &mut Links,
        client: ConnectionId,
        claim: Claim,
        failure: Option<ConnectResult>,
        closed: Closed,
    ) {
        let Some(Phase::Waiting(attempt)) = links.get(client).map(|link| &link.phase) else { return };
        let begun_answer = !attempt.answer.is_empty();
        let failure = failure.unwrap_or(match closed {
            Closed::Failed(
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::TimedOut,
            ) => ConnectResult::Refused,
            _ => ConnectResult::Closed,
        });
        self.metrics.connects.add(failure, 1);
        claim.refused(Instant::now());
        // A request for an upgrade or a stream has no body and changes nothing (RFC 9110 §9.2.2): it may be asked
        // again. Not so when the client has seen, or would have to be denied, a part of an answer.
        if begun_answer {
            return self.refuse(links, client, Refusal::BadAnswer);
        }
        self.try_next(links, client);
    }

    pub(super) fn time_out_head(&mut self, links: &mut Links, id: ConnectionId) {
        let silent = matches!(
            links.get(id).map(|link| &link.phase),
            Some(Phase::Head(head)) if head.received.is_empty()
        );
        // A connection that never said anything is a browser's spare one, or a health check. Before its request a
        // client would not read an answer as one.
        if silent || self.is_before_request(links, id) {
            self.metrics.refusals.add(Refusal::HeadTimeout.reason(), 1);
            return links.close(id);
        }
        self.refuse(links, id, Refusal::HeadTimeout);
    }

    /// The node has not taken the connection, or has not answered.
    pub(super) fn time_out_node(&mut self, links: &mut Links, id: ConnectionId) {
        let stands = !links.is_connecting(id);
        let timed_out = if stands { ConnectResult::Silent } else { ConnectResult::Timeout };
        self.abandon_node(links, id, timed_out);
    }

    pub(super) fn abandon_node(&mut self, links: &mut Links, id: ConnectionId, why: ConnectResult) {
        if let Some(Phase::Awaiting { failure, .. }) = links.get_mut(id).map(|link| &mut link.phase) {
            *failure = Some(why);
        }
        links.close(id);
    }

    /// Answers a request and ends its connection.
    pub(super) fn refuse(&mut self, links: &mut Links, id: ConnectionId, refusal: Refusal) {
        self.metrics.refusals.add(refusal.reason(), 1);
        tracing::debug!(%refusal, "request refused");
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        refusal.write(u64::from(id.generation), &mut out);
        links.write_beyond_bound(id, &out);
        self.scratch = out;
        self.leave(links, id);
    }

    fn hand_to_http(&mut self, links: &mut Links, id: ConnectionId, received: &[u8]) {
        match links.release(id) {
            Ok(Some(released)) => {
                self.metrics.http_connections.add(1);
                self.shared.door.left_shard(self.shard);
                if let Phase::Head(head) = released.connection.phase {
                    let hand_off = HandOff {
                        socket: released.socket,
                        received: received.to_vec().into(),
                        ends: head.ends,
                        tls: released.tls,
                    };
                    self.shared.http.take(hand_off);
                }
            }
            // On its way out already: its end is still to be reported.
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "a socket could not leave the reactor"),
        }
    }

    /// A client's place is free.
    pub(super) fn count_client_out(&self, link: &Link) {
        self.shared.door.left_shard(self.shard);
        match &link.phase {
            Phase::Head(head) if head.over => self.shared.door.release_turned_away(),
            _ => self.shared.door.release(),
        }
    }
}

impl End {
    /// What comes from it goes there.
    pub(super) fn direction(&self) -> Direction {
        match self {
            Self::Client => Direction::ToNodes,
            Self::Node(_) => Direction::ToClients,
        }
    }

    /// The node has answered.
    pub(super) fn answered(&self, metrics: &ProxyMetrics) {
        if let Self::Node(claim) = self {
            claim.connected();
            metrics.connects.add(ConnectResult::Answered, 1);
        }
    }
}

impl ProxyMetrics {
    /// A node is tried after so many others.
    pub(super) fn count_fallback(&self, tried: u32, passed_over: Option<PassedOver>) {
        let fallback = match (tried, passed_over) {
            (1.., _) => Fallback::Failed,
            (0, Some(PassedOver::Full)) => Fallback::Full,
            (0, Some(PassedOver::Avoided)) => Fallback::Avoided,
            (0, None) => return,
        };
        self.fallbacks.add(fallback, 1);
    }
}

fn keep_answer(links: &mut Links, client: ConnectionId, received: &[u8]) {
    if let Some(Phase::Waiting(attempt)) = links.get_mut(client).map(|link| &mut link.phase) {
        attempt.answer = received.to_vec();
    }
}

/// Whether it is this process or machine that lacks something: descriptors (EMFILE, ENFILE), a local port
/// (EADDRNOTAVAIL), memory.
fn is_own_lack(error: &io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::OutOfMemory)
        || matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}
