//! Goodbyes: what a client is told when the connection ends, and how it is counted.

use std::{sync::Arc, time::Duration};

use tidegate_backplane::{DisconnectTarget, GapReason};
use tidegate_reactor::{ConnectionId, Connections};
use tidegate_wire::{
    decoder::DecodeError,
    frame::{self, CloseCode, Opcode},
    pusher::{Code, server},
    sse,
};

use super::{Open, Phase, Present, Protocol, Session, refusal::Refusal};
use crate::{
    app::apps::AppId,
    auth::Claims,
    event,
    hub::outgoing::gap_reason,
    hub::{ChannelKey, Delivery},
    metrics::{self, DisconnectReason},
    shard::Core,
};

/// Continuity was lost and the protocol has no other way to say it.
pub(crate) const GAP: CloseCode = CloseCode(4010);
/// The token has expired.
const TOKEN_EXPIRED: CloseCode = CloseCode(4401);
/// Closed by `POST /v1/disconnect`.
const DISCONNECTED: CloseCode = CloseCode(4403);

/// Clients that are sent away by a drain are told to wait between 1 and 5 s, so that they spread.
const DRAIN_RETRY_MS: (u64, u64) = (1000, 4000);

/// Why the gateway ends a connection.
#[derive(Debug)]
pub(crate) enum Leave {
    Drain,
    Gap(GapReason),
    TokenExpired,
    /// The client published what it may not.
    Forbidden(&'static str),
    RateLimit,
    Protocol(DecodeError),
    Ordered(Box<str>),
    /// A client of Pusher Channels is told one of its codes.
    Pusher(Code),
}

impl Leave {
    fn code(&self) -> CloseCode {
        match self {
            Self::Drain => CloseCode::SERVICE_RESTART,
            Self::Gap(_) => GAP,
            Self::TokenExpired => TOKEN_EXPIRED,
            Self::Forbidden(_) | Self::RateLimit => CloseCode::POLICY_VIOLATION,
            Self::Protocol(error) => error.close_code(),
            Self::Ordered(_) => DISCONNECTED,
            Self::Pusher(code) => (*code).into(),
        }
    }

    /// The code in Pusher's words. Its clients come back at once after 4200, without any wait of their own, so a drain
    /// says 'going away': after that they wait for a second, and no page is told of an error.
    fn pusher_code(&self) -> CloseCode {
        match self {
            Self::Drain => CloseCode::GOING_AWAY,
            Self::Ordered(_) => Code::UNAUTHORIZED.into(),
            other => other.code(),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Drain => "this node is draining".to_owned(),
            Self::Gap(reason) => format!("gap: {}", gap_reason(*reason)),
            Self::TokenExpired => "the token has expired".to_owned(),
            Self::Forbidden(why) => (*why).to_owned(),
            Self::RateLimit => "publishing faster than allowed".to_owned(),
            Self::Protocol(error) => error.to_string(),
            Self::Ordered(reason) => reason.to_string(),
            Self::Pusher(code) => code.message().to_owned(),
        }
    }

    /// The same for a client that has not been answered yet.
    fn into_refusal(self) -> Refusal {
        match self {
            Self::Ordered(reason) => Refusal::Ordered(reason),
            // The rest happens to open connections only.
            _ => Refusal::Draining,
        }
    }

    fn reason(&self) -> DisconnectReason {
        match self {
            Self::Drain => DisconnectReason::Drain,
            Self::Gap(_) => DisconnectReason::Gap,
            Self::TokenExpired => DisconnectReason::TokenExpired,
            Self::Forbidden(_) => DisconnectReason::Forbidden,
            Self::RateLimit => DisconnectReason::RateLimit,
            Self::Ordered(_) => DisconnectReason::Ordered,
            Self::Pusher(Code::NO_PONG) => DisconnectReason::PingTimeout,
            Self::Pusher(Code::OVER_CAPACITY) => DisconnectReason::Unavailable,
            Self::Pusher(_) => DisconnectReason::Forbidden,
            Self::Protocol(error) => match error.close_code() {
                CloseCode::INVALID_PAYLOAD => DisconnectReason::InvalidUtf8,
                CloseCode::MESSAGE_TOO_BIG => DisconnectReason::MessageTooLarge,
                _ => DisconnectReason::ProtocolError,
            },
        }
    }
}

impl Core {
    /// Tells a client that it has to go, takes its subscriptions, and waits a bounded time for its answer.
    pub(crate) fn leave(&mut self, connections: &mut Connections<Session>, id: ConnectionId, why: Leave) {
        let Some(session) = connections.get_mut(id) else { return };
        match &mut session.phase {
            Phase::Leaving(_) => {}
            // Its request will be answered or refused when it is complete, or time out. One that has said nothing
            // may have come a moment ago with a request under way: closing it would be a reset without an answer.
            Phase::Head(_) => {}
            Phase::Opening(_) => self.refuse(connections, id, &why.into_refusal()),
            Phase::Open(_) => {
                let Phase::Open(open) = std::mem::replace(&mut session.phase, Phase::Leaving(None)) else {
                    return;
                };
                self.leave_open(connections, id, open, &why);
            }
        }
    }

    fn leave_open(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        mut open: Open,
        why: &Leave,
    ) {
        let decoder = std::mem::replace(&mut open.decoder, tidegate_wire::decoder::Decoder::new(false));
        let protocol = open.protocol;
        let is_stream = protocol == Protocol::Sse;
        self.end_open(connections, id, open, why);
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        match protocol {
            Protocol::Sse => write_stream_farewell(why, u64::from(id.generation), &mut out),
            Protocol::Pusher => write_pusher_farewell(why, &mut out),
            Protocol::Raw | Protocol::Echo => frame::encode_close(why.code(), &why.text(), &mut out),
        }
        connections.write(id, &out);
        self.scratch = out;
        // A client that broke the protocol is not listened to any more (RFC 6455 section 7.1.7); others answer
        // the close frame, and are closed then.
        if is_stream || matches!(why, Leave::Protocol(_)) {
            connections.shut_when_flushed(id);
        } else if let Some(session) = connections.get_mut(id) {
            session.phase = Phase::Leaving(Some(decoder));
            // A publish under way had paused it, and its answer would never be read.
            connections.set_paused(id, false);
        }
    }

    /// What follows a fan-out for those who were told of a gap in it.
    pub(crate) fn see_off(&mut self, connections: &mut Connections<Session>) {
        for (id, reason) in std::mem::take(&mut self.farewells) {
            let Some(session) = connections.get_mut(id) else { continue };
            if matches!(session.phase, Phase::Open(_))
                && let Phase::Open(open) = std::mem::replace(&mut session.phase, Phase::Leaving(None))
            {
                self.end_open(connections, id, open, &Leave::Gap(reason));
            }
        }
    }

    /// Counts the end of an open connection, gives back what it held, and bounds how long its socket lasts.
    fn end_open(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        open: Open,
        why: &Leave,
    ) {
        self.metrics.disconnects.add(why.reason(), 1);
        if let Leave::Protocol(error) = why {
            self.metrics.protocol_errors.add((*error).into(), 1);
        }
        let code = match open.protocol {
            Protocol::Sse => None,
            Protocol::Pusher => Some(why.pusher_code()),
            Protocol::Raw | Protocol::Echo => Some(why.code()),
        };
        if let Some(code) = code {
            self.metrics.close_frames.add(metrics::CloseCode::of(code.0), 1);
        }
        self.observe_duration(connections, id);
        self.unsubscribe(connections, id, open);
        self.set_leave_timer(connections, id);
    }

    /// To be called once, when a connection stops being open.
    pub(crate) fn observe_duration(&self, connections: &Connections<Session>, id: ConnectionId) {
        if let Some(session) = connections.get(id) {
            self.metrics.connection_duration_seconds.observe(self.lasted(session));
        }
    }

    pub(crate) fn set_leave_timer(&self, connections: &mut Connections<Session>, id: ConnectionId) {
        let wait = self.shared.node.config().drain.close_wait.max(Duration::from_secs(1));
        connections.set_timer(id, connections.now().after(wait));
    }

    /// Gives back what an open connection held in the hub and in presence.
    pub(crate) fn unsubscribe(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        mut open: Open,
    ) {
        if open.protocol == Protocol::Pusher {
            self.pusher_left(id, &mut open);
        }
        let rare = open.rare.unwrap_or_default();
        if let Some(present) = rare.present {
            for &subscription in open.subscriptions.as_slice() {
                self.leave_presence(id, self.hub.channel_of(subscription), present.clone());
            }
        }
        // Leaving may move another's place, but its own others stay findable: a connection is in a lane once.
        for &subscription in open.subscriptions.as_slice() {
            self.hub.part(subscription, connections);
        }
        if let Some(publisher) = rare.publisher {
            self.publish_rest(id, publisher);
        }
    }

    fn leave_presence(&self, id: ConnectionId, key: ChannelKey, present: Present) {
        let channel = self.hub.channel(key).clone();
        if !self.shared.node.namespaces().of(&channel).presence {
            return;
        }
        let (backplane, name) = (Arc::clone(self.shared.node.backplane()), self.connection_name(id));
        self.detach(async move {
            present.await;
            if let Err(error) = backplane.leave(&channel, &name).await {
                tracing::warn!(%error, "a presence entry could not be removed");
            }
        });
    }

    /// Whether it is a user's: signed in with Pusher, or by a token.
    fn is_of_user(
        &self,
        connections: &Connections<Session>,
        id: ConnectionId,
        app: Option<&str>,
        user: &str,
    ) -> bool {
        let Some(session) = connections.get(id) else { return false };
        let is_theirs = |claims: &Claims| {
            claims.user.as_deref() == Some(user) && claims.app.as_deref().map(AppId::as_str) == app
        };
        if session.claims().is_some_and(is_theirs) {
            return true;
        }
        let own_app = session.open().and_then(|open| self.apps.get(open.app));
        own_app.is_some_and(|own| own.prefix() == app)
            && self.user(connections, id).is_some_and(|own| &*own.id == user)
    }

    /// Closes the connections that an operator named.
    pub(crate) fn disconnect(
        &mut self,
        connections: &mut Connections<Session>,
        target: &DisconnectTarget,
        reason: &str,
    ) {
        // A walk over all connections: 20,000 take about a millisecond, and orders are rare.
        let ids: Vec<ConnectionId> = (0..connections.slots())
            .filter_map(|slot| connections.in_slot(slot))
            .filter(|&id| match target {
                DisconnectTarget::Connection(name) => {
                    **name == self.connection_name(id) || self.socket_ids.find(name) == Some(id)
                }
                DisconnectTarget::User { app, user } => {
                    self.is_of_user(connections, id, app.as_deref(), user)
                }
            })
            .collect();
        for id in ids {
            self.leave(connections, id, Leave::Ordered(reason.into()));
        }
    }
}

/// The error that goes before a close frame, for those that Pusher has a code for or that it would tell so, and the
/// close frame.
fn write_pusher_farewell(why: &Leave, out: &mut Vec<u8>) {
    let code = why.pusher_code();
    let text = why.text();
    if !matches!(why, Leave::Drain) {
        let mut error = Vec::new();
        server::error(Some(Code(code.0)), &text, None, &mut error);
        frame::encode(Opcode::Text, &error, out);
    }
    frame::encode_close(code, &text, out);
}

/// Says within a fan-out that there is a gap, to a client that can be told by a close frame only. Nothing is
/// written to it afterwards; [`Core::see_off`] does the rest when the hub is free.
pub(crate) fn close_for_gap(delivery: &mut Delivery<'_>, id: ConnectionId, reason: GapReason) {
    let why = Leave::Gap(reason);
    let mut out = Vec::new();
    frame::encode_close(why.code(), &why.text(), &mut out);
    delivery.connections.write(id, &out);
    delivery.connections.shut_when_flushed(id);
    delivery.farewells.push((id, reason));
}

fn write_stream_farewell(why: &Leave, spread: u64, out: &mut Vec<u8>) {
    match why {
        Leave::Drain => {
            let (least, range) = DRAIN_RETRY_MS;
            // A multiplicative hash spreads neighbours over the whole range.
            sse::encode_retry(least + spread.wrapping_mul(2_654_435_761) % range, out);
        }
        _ => sse::encode_event(None, Some(event::DISCONNECT), &why.text(), out),
    }
}
