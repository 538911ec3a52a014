//! The request head: complete or not, ours or HTTP's, let in or refused.

use std::{
    ops::ControlFlow,
    sync::{Arc, atomic::Ordering},
};

use tidegate_ops::{edge::Preamble, http::QUIET_MAX};
use tidegate_reactor::Tick;
use tidegate_wire::{
    framing::Framing,
    head::Head as RequestHead,
    request::{Judged, RequestError, judge},
};

use crate::{
    admission::Over,
    metrics::{Budgeted, HandshakeResult},
    node::Stage,
    session::{
        Ctx, Earlier, Head, Phase,
        asking::Said,
        budget::Share,
        opening::{Opening, Request, Stop},
        plain_http::{Answer, HandOff},
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
enum Arrival<'s> {
    New,
    /// Let in only to be told so.
    TurnedAway(Over),
    /// Read again, with the keys its token needed, or with what the application has said; its handshake has been admitted.
    Resumed(&'s Said),
}

impl Ctx<'_> {
    /// Takes bytes of a head, or of what precedes it. The answer is how many of them its part in this turn was enough for.
    pub(crate) fn read_head(&mut self, bytes: &[u8]) -> usize {
        let all = bytes.len();
        let Some(head) = self.head_mut() else { return all };
        if matches!(head.preamble, Preamble::Proxy) {
            self.read_proxy_header(bytes);
            return all;
        }
        let arrival = head.over.map_or(Arrival::New, Arrival::TurnedAway);
        let Some(mut received) = head.received.take() else {
            if head.earlier == Earlier::UnderWay {
                head.received = Some(Box::new(bytes.to_vec()));
                return all;
            }
            let used = self.take_head(bytes, arrival, bytes);
            return used + self.answer_more(&bytes[used..]);
        };
        received.extend_from_slice(bytes);
        if head.earlier == Earlier::UnderWay {
            head.received = Some(received);
            return all;
        }
        let used = self.take_head(&received, arrival, bytes);
        self.resume(&received[used..]);
        all
    }

    /// Answers what follows a request that was answered here, as long as this can be done here. What cannot is given back:
    /// before the connection is given away, its answers have to be sent.
    fn answer_more(&mut self, bytes: &[u8]) -> usize {
        let max = self.core.shared.node.config().limits.head_bytes.bytes();
        let (mut used, mut share) = (0, Share::begin(self.connections.is_crowded()));
        while used < bytes.len() && self.head_mut().is_some_and(|head| head.earlier == Earlier::Answered) {
            if share.count() == ControlFlow::Break(()) {
                self.core.metrics.budgets_spent.add(Budgeted::Turn, 1);
                break;
            }
            let next = &bytes[used..];
            match judge(next, next.len(), max) {
                Ok(Some(judged)) => match self.answer_whole(&judged, next) {
                    Some(taken) => used += taken,
                    None => break,
                },
                _ => break,
            }
        }
        used
    }

    /// `fresh` are the last bytes of `received`. The answer is how many of `received` are used.
    fn take_head(&mut self, received: &[u8], arrival: Arrival<'_>, fresh: &[u8]) -> usize {
        let max = self.core.shared.node.config().limits.head_bytes.bytes();
        let judged = judge(received, fresh.len(), max);
        if !matches!(arrival, Arrival::TurnedAway(_)) && self.awaits_body(&judged, received) {
            self.keep_head(received, fresh);
            return received.len();
        }
        if matches!(arrival, Arrival::New)
            && let Err(over) = self.take_address_handshake(&judged)
        {
            match &judged {
                Ok(Some(Judged { head, .. })) => match self.route(head) {
                    Route::Shard(protocol) => self.refuse_request(protocol, head, &Refusal::Over(over)),
                    Route::Http => self.refuse(&Refusal::Over(over)),
                },
                _ => self.refuse(&Refusal::Over(over)),
            }
            return received.len();
        }
        match judged {
            Ok(None) => self.keep_head(received, fresh),
            Err(error) => self.refuse(&error.into()),
            Ok(Some(judged)) => match (arrival, self.route(&judged.head)) {
                (Arrival::TurnedAway(over), Route::Shard(protocol)) => {
                    self.refuse_request(protocol, &judged.head, &Refusal::Over(over));
                }
                (Arrival::TurnedAway(over), Route::Http) => {
                    let origin = self.core.readable_origin(&judged.head);
                    self.refuse_as(&Refusal::Over(over), None, origin);
                }
                (_, Route::Http) => match self.answer_whole(&judged, received) {
                    Some(used) => return used,
                    None => self.hand_to_http(received),
                },
                (_, Route::Shard(protocol)) => match self.body_len(judged.framing) {
                    Ok(len) => self.accept(arrival, protocol, &judged.head, len, received),
                    Err(refusal) => self.refuse_request(protocol, &judged.head, &refusal),
                },
            },
        }
        received.len()
    }

    /// Answers a request that came whole, if it is of those that a shard answers; how many bytes it had.
    fn answer_whole(&mut self, judged: &Judged<'_>, received: &[u8]) -> Option<usize> {
        let Framing::Length(length) = judged.framing else { return None };
        let end = judged.head.len.checked_add(usize::try_from(length).ok()?)?;
        let body = received.get(judged.head.len..end)?;
        let answering = self.core.shared.http.answer_whole(&judged.head, body)?;
        match self.core.begin(answering) {
            Ok(answer) => self.put_answer(answer),
            Err(waits) => {
                self.set_earlier(Earlier::UnderWay);
                // A client that has said all may close its side and still wait for what it is answered.
                self.connections.set_half_open(self.id);
                self.connections.set_paused(self.id, true);
                self.run(waits, |ctx, answer| ctx.answer_late(answer));
            }
        }
        Some(end)
    }

    fn answer_late(&mut self, answer: Answer) {
        let Some(head) = self.head_mut() else { return };
        let received = head.received.take().unwrap_or_default();
        self.connections.set_paused(self.id, false);
        self.resume(&received);
        self.put_answer(answer);
        if received.is_empty() && self.connections.has_ended(self.id) {
            self.connections.close_when_flushed(self.id);
        }
    }

    fn put_answer(&mut self, Answer { bytes, is_last }: Answer) {
        if self.head_mut().is_none() {
            return;
        }
        self.set_earlier(Earlier::Answered);
        self.answer(|out| out.extend_from_slice(&bytes));
        if is_last || self.core.shared.node.stage() == Stage::Closing {
            self.end_answered();
        }
    }

    /// Has the client close, or ends the connection when it is late with that.
    fn end_answered(&mut self) {
        self.set_earlier(Earlier::None);
        if let Some(session) = self.session_mut() {
            session.phase = Phase::Leaving(None);
        }
        self.connections.shut_when_flushed(self.id);
        self.set_leave_timer();
    }

    /// Its limit stays where it was, in the head that is being read.
    fn keep_head(&mut self, received: &[u8], fresh: &[u8]) {
        let Some(head) = self.head_mut() else { return };
        let began = head.received.replace(Box::new(received.to_vec())).is_none();
        if began && head.earlier == Earlier::Answered && fresh.len() == received.len() {
            let timeout = self.core.shared.node.config().limits.handshake_timeout;
            self.connections.set_timer(self.id, self.connections.now().after(timeout));
        }
    }

    /// Whether more is to come of the body of a shard's request.
    fn awaits_body(&self, judged: &Result<Option<Judged<'_>>, RequestError>, received: &[u8]) -> bool {
        let Ok(Some(Judged { head, framing })) = judged else { return false };
        matches!(self.route(head), Route::Shard(_))
            && self.body_len(*framing).is_ok_and(|len| received.len() - head.len < len)
    }

    /// The length of the body of a shard's request: it is said before, and is that of one message at most.
    fn body_len(&self, framing: Framing) -> Result<usize, Refusal> {
        let max = self.core.shared.node.config().limits.message_bytes.bytes();
        match framing {
            Framing::Length(len) => usize::try_from(len).ok().filter(|len| *len <= max),
            Framing::Chunked(_) => None,
        }
        .ok_or(Refusal::Body { max })
    }

    /// What was waited for is there: reads the same head again.
    pub(crate) fn resume_head(&mut self) {
        let Some(session) = self.connections.get_mut(self.id) else { return };
        let Phase::Opening(opening) = &mut session.phase else { return };
        let Some((received, said)) = opening.take_unread_head() else { return };
        session.phase = Phase::Head(Head::default());
        self.take_head(&received, Arrival::Resumed(&said), &received);
    }

    pub(crate) fn time_out_handshake(&mut self) {
        let (now, quiet) = (self.connections.now(), self.connections.silent(self.id));
        let is_late = self.connections.has_unhandled(self.id);
        let mut silent = false;
        if let Some(head) = self.head_mut() {
            silent = head.received.is_none();
            let waits = match head.earlier {
                // It is the shard that is late: what came is read first.
                Earlier::None => is_late.then_some(Tick(now.0 + 1)),
                Earlier::UnderWay => Some(now.after(QUIET_MAX)),
                Earlier::Answered => (silent && quiet < QUIET_MAX).then(|| now.after(QUIET_MAX - quiet)),
            };
            if let Some(due) = waits {
                return self.connections.set_timer(self.id, due);
            }
            if silent && head.earlier == Earlier::Answered {
                return self.connections.close(self.id);
            }
        }
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
        self.set_earlier(Earlier::None);
        let Some(address) = self.connections.get(self.id).map(|session| session.address) else { return };
        match self.connections.release(self.id) {
            Ok(Some(released)) => {
                self.core.tell_connections(self.connections);
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

    /// `received` begins with the head and a body of so many bytes.
    fn accept(
        &mut self,
        arrival: Arrival<'_>,
        protocol: ProtocolId,
        head: &RequestHead<'_>,
        body_len: usize,
        received: &[u8],
    ) {
        self.set_earlier(Earlier::None);
        let asks_of = protocol.of_list(self.core.shared.protocols);
        let (body, rest) = received[head.len..].split_at(body_len);
        let checked = self.check(arrival, protocol, head, body);
        if matches!(checked, Err(Stop::NeedsKeys(_) | Stop::Asks(_)))
            && asks_of.transport() == Transport::Stream
        {
            self.connections.set_half_open(self.id);
        }
        match checked {
            Ok(request) => self.begin_opening(request, rest),
            Err(Stop::Refused(refusal)) => self.refuse_request(protocol, head, &refusal),
            Err(Stop::NeedsKeys(fetch)) => {
                self.wait_before_opening(protocol, received, Said::default(), 0);
                let authenticator = self.core.shared.authenticator.clone();
                self.run(async move { authenticator.fetch(fetch).await }, |ctx, ()| ctx.resume_head());
            }
            Err(Stop::Asks(asks)) => {
                let said = match arrival {
                    Arrival::Resumed(said) => said.clone(),
                    Arrival::New | Arrival::TurnedAway(_) => Said::default(),
                };
                self.wait_before_opening(protocol, received, said, asks.len());
                self.ask_before_opening(asks, head, asks_of);
            }
        }
    }

    fn refuse_request(&mut self, protocol: ProtocolId, head: &RequestHead<'_>, refusal: &Refusal) {
        let origin = self.core.readable_origin(head);
        self.refuse_as(refusal, Some(protocol), origin);
    }

    /// Keeps the head until what it depends on is known.
    fn wait_before_opening(&mut self, protocol: ProtocolId, received: &[u8], said: Said, asked: usize) {
        if let Some(session) = self.connections.get_mut(self.id) {
            session.phase =
                Phase::Opening(Box::new(Opening::before(protocol, received.to_vec(), said, asked)));
        }
    }

    /// Everything that can be said about a request without waiting for anyone but the keys and the application.
    fn check(
        &self,
        arrival: Arrival<'_>,
        protocol: ProtocolId,
        head: &RequestHead<'_>,
        body: &[u8],
    ) -> Result<Request, Stop> {
        let shared = &self.core.shared;
        if shared.node.stage() == Stage::Closing {
            return Err(Refusal::Draining.into());
        }
        // Where this node ends TLS, the handshake was taken before that.
        let is_new = !matches!(arrival, Arrival::Resumed(_)) && shared.edge.tls.is_none();
        if is_new {
            shared.front.check_handshake().map_err(Refusal::Over)?;
        }
        let nothing = Said::default();
        let said = if let Arrival::Resumed(said) = arrival { said } else { &nothing };
        if let Some(no) = &said.no {
            return Err(Refusal::from(no.clone()).into());
        }
        let checked = protocol.of_list(shared.protocols).accept(self.core, head, body, said);
        // The node's handshakes are for those that could be accepted: who sends what is refused is out of its own.
        if is_new && !matches!(checked, Err(Stop::Refused(_))) {
            shared.front.take_handshake().map_err(Refusal::Over)?;
        }
        let mut request = Request { protocol, ..checked? };
        request.welcome = said.connect.as_ref().and_then(|reply| reply.data.clone());
        request.handed_on = self.handed_on(head);
        if let (Some(claims), Some(handed_on)) = (&mut request.claims, &request.handed_on)
            && shared.hooks.keeps_requests()
        {
            claims.keep_request(Arc::clone(handed_on));
        }
        Ok(request)
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
        let (has_body, dev) = (head.has_body(), shared.node.config().dev);
        match ProtocolId::of(shared.protocols, head.method, head.path, has_body, dev) {
            Some(protocol) => Route::Shard(protocol),
            None => Route::Http,
        }
    }
}
