//! The request head: complete or not, ours or HTTP's, let in or refused.

use std::sync::{Arc, atomic::Ordering};

use tidegate_ops::edge::Preamble;
use tidegate_reactor::Tick;
use tidegate_wire::{
    head::Head as RequestHead,
    request::{Judged, RequestError, judge},
};

use crate::{
    admission::Over,
    auth::KeyFetch,
    metrics::HandshakeResult,
    node::Stage,
    session::{
        Ctx, Head, Phase,
        hand_off::HandOff,
        opening::{Opening, Request, Stop},
        protocol::{ProtocolId, Transport},
        refusal::Refusal,
    },
};

/// What a request is for.
enum Route {
    Shard(ProtocolId),
    Http,
}

/// How a head came to be read.
#[derive(Clone, Copy)]
enum Arrival {
    New,
    /// Let in only to be told so.
    TurnedAway(Over),
    /// Read again, with the keys its token needed; its handshake has been admitted.
    Resumed,
}

impl Ctx<'_> {
    /// Takes bytes of a head, or of what precedes it.
    pub(crate) fn read_head(&mut self, bytes: &[u8]) {
        let Some(Phase::Head(head)) = self.connections.get_mut(self.id).map(|session| &mut session.phase)
        else {
            return;
        };
        if matches!(head.preamble, Preamble::Proxy) {
            return self.read_proxy_header(bytes);
        }
        let arrival = head.over.map_or(Arrival::New, Arrival::TurnedAway);
        match head.received.take() {
            None => self.take_head(bytes, arrival, bytes),
            Some(mut received) => {
                received.extend_from_slice(bytes);
                self.take_head(&received, arrival, bytes)
            }
        }
    }

    /// `fresh` are the last bytes of `received`.
    fn take_head(&mut self, received: &[u8], arrival: Arrival, fresh: &[u8]) {
        let max = self.core.shared.node.config().limits.head_bytes.bytes();
        let judged = judge(received, fresh.len(), max);
        if matches!(arrival, Arrival::New)
            && let Err(over) = self.take_address_handshake(&judged)
        {
            return match &judged {
                Ok(Some(Judged { head, .. })) => match self.route(head) {
                    Route::Shard(protocol) => self.refuse_request(protocol, head, &Refusal::Over(over)),
                    Route::Http => self.refuse(&Refusal::Over(over)),
                },
                _ => self.refuse(&Refusal::Over(over)),
            };
        }
        match judged {
            Ok(None) => {
                // Its limit stays where it was, in the head that is being read.
                if let Some(Phase::Head(head)) =
                    self.connections.get_mut(self.id).map(|session| &mut session.phase)
                {
                    head.received = Some(Box::new(received.to_vec()));
                }
            }
            Err(error) => self.refuse(&error.into()),
            Ok(Some(Judged { head, .. })) => match (arrival, self.route(&head)) {
                (Arrival::TurnedAway(over), Route::Shard(protocol)) => {
                    self.refuse_request(protocol, &head, &Refusal::Over(over));
                }
                (Arrival::TurnedAway(over), Route::Http) => {
                    let origin = self.core.readable_origin(&head);
                    self.refuse_as(&Refusal::Over(over), None, origin);
                }
                (_, Route::Http) => self.hand_to_http(received),
                (_, Route::Shard(protocol)) => self.accept(arrival, protocol, &head, received),
            },
        }
    }

    /// Keys were fetched: reads the same head again.
    pub(crate) fn resume_head(&mut self) {
        let Some(session) = self.connections.get_mut(self.id) else { return };
        let Phase::Opening(opening) = &mut session.phase else { return };
        let Some(received) = opening.take_unread_head() else { return };
        session.phase = Phase::Head(Head::default());
        self.take_head(&received, Arrival::Resumed, &received)
    }

    pub(crate) fn time_out_handshake(&mut self) {
        let is_head = self.session().is_some_and(|session| matches!(session.phase, Phase::Head(_)));
        if is_head && self.connections.has_unhandled(self.id) {
            // It is the shard that is late: what came is read first.
            return self.connections.set_timer(self.id, Tick(self.connections.now().0 + 1));
        }
        let silent = self
            .connections
            .get(self.id)
            .is_some_and(|session| matches!(&session.phase, Phase::Head(head) if head.received.is_none()));
        if let Some(Phase::Opening(opening)) = self.connections.get(self.id).map(|session| &session.phase) {
            let refusal = opening.timed_out();
            self.refuse(&refusal);
        } else if silent || self.is_before_request() {
            self.core.metrics.handshakes.add(HandshakeResult::Timeout, 1);
            self.connections.close(self.id);
        } else {
            self.refuse(&Refusal::HeadTimeout);
        }
    }

    fn hand_to_http(&mut self, received: &[u8]) {
        let Some(address) = self.connections.get(self.id).map(|session| session.address) else { return };
        match self.connections.release(self.id) {
            Ok(Some(released)) => {
                self.core.metrics.connections.set(self.connections.len() as i64);
                self.core.connections_dealt.fetch_sub(1, Ordering::AcqRel);
                let hand_off = HandOff {
                    socket: released.socket,
                    received: received.to_vec().into(),
                    tls: released.tls,
                    address,
                };
                Arc::clone(&self.core.shared.http).take(hand_off);
            }
            // On its way out already: its end is still to be reported.
            Ok(None) => {}
            // The reactor ends it, and counts it out when it reports that.
            Err(error) => tracing::warn!(%error, "a socket could not leave the reactor"),
        }
    }

    fn accept(&mut self, arrival: Arrival, protocol: ProtocolId, head: &RequestHead<'_>, received: &[u8]) {
        match self.check(arrival, protocol, head) {
            Ok(request) => self.begin_opening(request, &received[head.len..]),
            Err(Stop::Refused(refusal)) => self.refuse_request(protocol, head, &refusal),
            Err(Stop::NeedsKeys(fetch)) => {
                if protocol.of_list(self.core.shared.protocols).transport() == Transport::Stream {
                    self.connections.set_half_open(self.id);
                }
                self.wait_for_keys(protocol, fetch, received);
            }
        }
    }

    fn refuse_request(&mut self, protocol: ProtocolId, head: &RequestHead<'_>, refusal: &Refusal) {
        let origin = self.core.readable_origin(head);
        self.refuse_as(refusal, Some(protocol), origin);
    }

    fn wait_for_keys(&mut self, protocol: ProtocolId, fetch: KeyFetch, received: &[u8]) {
        if let Some(session) = self.connections.get_mut(self.id) {
            session.phase = Phase::Opening(Box::new(Opening::before_keys(protocol, received.to_vec())));
        }
        let authenticator = self.core.shared.authenticator.clone();
        self.run(async move { authenticator.fetch(fetch).await }, |ctx, ()| ctx.resume_head());
    }

    /// Everything that can be said about a request without waiting for anyone but the keys.
    fn check(&self, arrival: Arrival, protocol: ProtocolId, head: &RequestHead<'_>) -> Result<Request, Stop> {
        let shared = &self.core.shared;
        if shared.node.stage() == Stage::Closing {
            return Err(Refusal::Draining.into());
        }
        // Where this node ends TLS, the handshake was taken before that.
        let is_new = !matches!(arrival, Arrival::Resumed) && shared.edge.tls.is_none();
        if is_new {
            shared.front.check_handshake().map_err(Refusal::Over)?;
        }
        let checked = protocol.of_list(shared.protocols).accept(self.core, head);
        // The node's handshakes are for those that could be accepted: who sends what is refused is out of its own.
        if is_new && !matches!(checked, Err(Stop::Refused(_))) {
            shared.front.take_handshake().map_err(Refusal::Over)?;
        }
        Ok(Request { protocol, ..checked? })
    }

    /// Heads that are refused count, too; those of HTTP have budgets of their own. Where this node ends TLS, it was taken
    /// when the connection was accepted, or named by a proxy.
    fn take_address_handshake(
        &mut self,
        judged: &Result<Option<Judged<'_>>, RequestError>,
    ) -> Result<(), Over> {
        match judged {
            Ok(Some(Judged { head, .. })) => match self.route(head) {
                Route::Http => return Ok(()),
                Route::Shard(_) => self.name_client(head)?,
            },
            Ok(None) => return Ok(()),
            Err(_) => {}
        }
        match self.session() {
            Some(session) if self.core.shared.edge.tls.is_none() => {
                self.core.shared.front.take_handshake_of(session.address)
            }
            _ => Ok(()),
        }
    }

    fn route(&self, head: &RequestHead<'_>) -> Route {
        let shared = &self.core.shared;
        match ProtocolId::of(shared.protocols, head.method, head.path, shared.node.config().dev) {
            Some(protocol) if !head.has_body() => Route::Shard(protocol),
            _ => Route::Http,
        }
    }
}
