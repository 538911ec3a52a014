//! From a client's first byte to its node's answer: the head, the choice, the attempts.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tidegate_reactor::{Closed, ConnectionId, Written};
use tidegate_wire::{
    head::Head as RequestHead,
    proxy_v2::Addresses,
    request::{Judged, judge},
};

use super::{
    ConnectResult, Shared,
    answer::{self, Verdict},
    budget::{ATTEMPTS_MAX, RetryBudget},
    driver::{Links, ProxyDriver},
    http::HandOff,
    link::{Attempt, BodyLeft, End, Kind, Link, Phase},
    metrics::{Direction, Fallback, ProxyMetrics},
    refusal::Refusal,
    request::{self, Origin, Route},
};
use crate::{
    chooser::{Claim, Node, PassedOver},
    lack::is_own_lack,
};

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
                    let is_stream = request::route(&head, false) == Route::Pair(Kind::Stream);
                    let asked_by = is_stream.then(|| request::page_of(&head));
                    self.refuse_to(links, id, refusal, asked_by);
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
            Route::Pair(_) if request::is_loop(head, self.shared.router) => {
                self.note_loop(ends);
                Err(Refusal::Loop)
            }
            Route::Pair(kind) => {
                let limited = |retry_after| Refusal::RateLimit { retry_after };
                let client = request::client_address(head, ends.source, &self.shared.edge.trust);
                self.shared.door.take_handshake(ends.source.ip(), client.ip()).map_err(limited)?;
                let attempt = self.plan(head, kind, (ends, client), received);
                self.begin(links, id, attempt);
                Ok(())
            }
        }
    }

    /// Where the request may go.
    fn plan(
        &self,
        head: &RequestHead<'_>,
        kind: Kind,
        (ends, client): (Addresses, SocketAddr),
        received: &[u8],
    ) -> Attempt {
        let key = self.shared.options.key.key_of(head, client);
        let (chooser, now) = (&self.shared.chooser, Instant::now());
        let candidates = match key.is_fallback {
            true => chooser.candidates_anywhere(&key.bytes, now),
            false => chooser.candidates(&key.bytes, now),
        };
        self.shared.door.retries.deposit();
        Attempt {
            kind,
            page: if kind == Kind::Stream { request::page_of(head) } else { None },
            ends,
            received: received.to_vec(),
            head_len: head.len,
            line: None,
            candidates,
            next: None,
            tried: 0,
            asked: Instant::now(),
            node: None,
            answer: Vec::new(),
        }
    }

    fn note_loop(&self, ends: Addresses) {
        if let Some(left_out) = self.loops.ask() {
            tracing::error!(
                from = %ends.source, left_out,
                "a request came back to this router: a gateway advertises the router's address; set --advertise"
            );
        }
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
    pub(super) fn try_next(&mut self, links: &mut Links, client: ConnectionId) {
        loop {
            let Some(Phase::Waiting(attempt)) = links.get_mut(client).map(|link| &mut link.phase) else {
                return;
            };
            let next = match attempt.next.take() {
                Some(node) => Ok(node),
                None => attempt.next_node(&self.shared.door.retries),
            };
            let node = match next {
                Ok(node) => node,
                Err(refusal) => return self.refuse(links, client, refusal),
            };
            self.metrics.count_fallback(attempt.tried, attempt.candidates.passed_over());
            attempt.tried += 1;
            attempt.asked = Instant::now();
            let (address, asked) = (node.socket(), attempt.asked);
            if self.hand_over(links, client, &node) {
                return;
            }
            match links.connect(address, Link::node(node.claim(asked), client)) {
                Ok(id) => {
                    links.set_timer(id, links.now().after(self.shared.options.connect_timeout));
                    return self.send_request(links, client, id);
                }
                // No other node would be reached either.
                Err(error) if is_own_lack(&error) => {
                    self.metrics.connects.add(ConnectResult::Lack, 1);
                    tracing::warn!(%error, "no connection to a node can be made");
                    return self.refuse(links, client, Refusal::Descriptors);
                }
                Err(error) => {
                    tracing::debug!(%error, %address, "a node cannot be reached");
                    self.metrics.connects.add(ConnectResult::Refused, 1);
                    node.claim(asked).refused(asked, Instant::now());
                }
            }
        }
    }

    /// At once, although the connection may not stand yet: over loopback it does, and elsewhere it waits in the queue.
    fn send_request(&mut self, links: &mut Links, client: ConnectionId, node: ConnectionId) {
        let Some(Phase::Waiting(attempt)) = links.get_mut(client).map(|link| &mut link.phase) else { return };
        attempt.node = Some(node);
        attempt.answer = Vec::new();
        let mut request = std::mem::take(&mut self.scratch);
        request.clear();
        self.shared.write_request(attempt, &mut request);
        // A connection that was refused meanwhile reports its end later.
        let written = links.write_beyond_bound(node, &request);
        debug_assert!(!matches!(written, Written::Dropped(_)));
        self.scratch = request;
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
        let kind = attempt.kind;
        // Most answers come whole.
        let received = match attempt.answer.is_empty() {
            true => None,
            false => {
                attempt.answer.extend_from_slice(bytes);
                Some(std::mem::take(&mut attempt.answer))
            }
        };
        let received = received.as_deref().unwrap_or(bytes);
        match (answer::verdict(received), answer::other(received)) {
            (Verdict::Switching, _) if kind == Kind::Upgrade => self.open_pair(links, client, node, received),
            (Verdict::Unclear, _) | (_, Ok(None)) => keep_answer(links, client, received),
            (_, Ok(Some(other))) if other.is_busy && self.has_next(links, client) => {
                self.abandon_node(links, node, ConnectResult::Busy);
            }
            // An event source takes no other status than 200 for a reason to come back.
            (_, Ok(Some(other))) if kind == Kind::Stream && other.is_busy && other.status != 200 => {
                links.close(node);
                self.refuse(links, client, Refusal::NoNode);
            }
            (_, Ok(Some(_))) if kind == Kind::Stream => self.open_pair(links, client, node, received),
            (_, Ok(Some(other))) => self.begin_relay(links, client, node, &other, &received[other.len..]),
            (_, Err(error)) => {
                tracing::debug!(%error, "a node's answer is not passed on");
                links.close(node);
                self.refuse(links, client, Refusal::BadAnswer);
            }
        }
    }

    /// Whether there is another node to ask for a client whose node is busy. If not, the client gets the answer of this
    /// one, which says best why.
    fn has_next(&self, links: &mut Links, client: ConnectionId) -> bool {
        let Some(Phase::Waiting(attempt)) = links.get_mut(client).map(|link| &mut link.phase) else {
            return false;
        };
        attempt.next = attempt.next_node(&self.shared.door.retries).ok();
        attempt.next.is_some()
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
        let (begun_answer, asked) = (!attempt.answer.is_empty(), attempt.asked);
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
        claim.refused(asked, Instant::now());
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
        let asked_by = match links.get_mut(id).map(|link| &mut link.phase) {
            Some(Phase::Waiting(attempt)) if attempt.kind == Kind::Stream => Some(attempt.page.take()),
            _ => None,
        };
        self.refuse_to(links, id, refusal, asked_by);
    }

    /// `asked_by`: an event stream was asked for, by this page if it is one.
    fn refuse_to(
        &mut self,
        links: &mut Links,
        id: ConnectionId,
        refusal: Refusal,
        asked_by: Option<Option<Box<str>>>,
    ) {
        self.metrics.refusals.add(refusal.reason(), 1);
        tracing::debug!(%refusal, "request refused");
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        let spread = u64::from(id.generation);
        match asked_by {
            Some(page) => refusal.write_to_stream(spread, page.as_deref(), &mut out),
            None => refusal.write(spread, &mut out),
        }
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

impl Shared {
    /// What a node is sent where bytes go through this router. It is made when it is sent: a node that is given the socket
    /// is sent none.
    fn write_request(&self, attempt: &Attempt, out: &mut Vec<u8>) {
        // It was read before, from the same bytes.
        let Ok(Some(head)) = RequestHead::parse(&attempt.received) else { return };
        let peer = attempt.ends.source;
        let trust = &self.edge.trust;
        if self.options.proxy_protocol_to_nodes {
            let client = request::client_address(&head, peer, trust);
            Addresses { source: client, ..attempt.ends }.write(out);
        }
        let origin = Origin {
            peer,
            trusted: trust.covers(peer.ip()),
            secure: self.edge.tls.is_some(),
            router: self.router,
        };
        request::write_forwarded(&head, attempt.kind, origin, out);
    }
}

impl Attempt {
    /// What came after the head.
    pub(super) fn early(&self) -> &[u8] {
        self.received.get(self.head_len..).unwrap_or_default()
    }

    /// The next node to ask, as long as asking goes on.
    fn next_node(&mut self, retries: &RetryBudget) -> Result<Arc<Node>, Refusal> {
        if self.tried >= ATTEMPTS_MAX {
            return Err(Refusal::NoNode);
        }
        let node = self.candidates.next().ok_or(Refusal::NoNode)?;
        if self.tried > 0 && !retries.withdraw() {
            return Err(Refusal::RetryBudget);
        }
        Ok(node)
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
