//! Goodbyes: what a client is told when the connection ends, and how it is counted.

use std::{borrow::Cow, collections::HashSet, net::SocketAddr, time::Duration};

use tidegate_backplane::{GapReason, JoinError};
use tidegate_reactor::Connections;
use tidegate_wire::{
    decoder::{DecodeError, Decoder},
    frame::CloseCode,
};

use super::{Ctx, Earlier, Head, Open, Phase, Session, core::Core, protocol::Transport, refusal::Refusal};
use crate::{
    hub::{Subscription, content::gap_reason},
    metrics::{self, DisconnectReason},
    problem::log_refusal,
};

/// Continuity was lost and the protocol has no other way to say it.
pub(crate) const GAP: CloseCode = CloseCode(4010);
/// The token has expired.
const TOKEN_EXPIRED: CloseCode = CloseCode(4401);
/// Closed by `POST /v1/disconnect`.
const DISCONNECTED: CloseCode = CloseCode(4403);

/// Why the gateway ends a connection.
#[derive(Debug)]
pub(crate) enum Leave {
    /// The client is to come back at once, to this node or to another one.
    ComeBack(ComeBack),
    Gap(GapReason),
    TokenExpired,
    /// The client published what it may not.
    Forbidden(&'static str),
    RateLimit,
    Protocol(DecodeError),
    Ordered(Box<str>),
    /// For a reason of the client's protocol, with a code of its own.
    Own {
        code: CloseCode,
        text: Cow<'static, str>,
        reason: DisconnectReason,
    },
}

/// Why a client is asked to come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ComeBack {
    /// The node drains.
    Drain,
    /// The connection is as old as it may be.
    Age,
    /// The node that the client belongs to has room again.
    Room,
}

impl ComeBack {
    fn text(self) -> &'static str {
        match self {
            Self::Drain => "this node is draining",
            Self::Age => "this connection is as old as it may be",
            Self::Room => "another node has room",
        }
    }

    fn reason(self) -> DisconnectReason {
        match self {
            Self::Drain => DisconnectReason::Drain,
            Self::Age => DisconnectReason::MaxAge,
            Self::Room => DisconnectReason::Moved,
        }
    }
}

impl Leave {
    /// The backplane cannot do what the connection lives on; the client may come back.
    pub(crate) fn unavailable(error: &JoinError) -> Self {
        let (code, reason) = (CloseCode::TRY_AGAIN_LATER, DisconnectReason::Unavailable);
        Self::Own { code, text: error.to_string().into(), reason }
    }

    pub(crate) fn code(&self) -> CloseCode {
        match self {
            Self::ComeBack(_) => CloseCode::SERVICE_RESTART,
            Self::Gap(_) => GAP,
            Self::TokenExpired => TOKEN_EXPIRED,
            Self::Forbidden(_) | Self::RateLimit => CloseCode::POLICY_VIOLATION,
            Self::Protocol(error) => error.close_code(),
            Self::Ordered(_) => DISCONNECTED,
            Self::Own { code, .. } => *code,
        }
    }

    /// The same in words.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::ComeBack(why) => why.text().to_owned(),
            Self::Gap(reason) => format!("gap: {}", gap_reason(*reason)),
            Self::TokenExpired => "the token has expired".to_owned(),
            Self::Forbidden(why) => (*why).to_owned(),
            Self::RateLimit => "publishing faster than allowed".to_owned(),
            Self::Protocol(error) => error.to_string(),
            Self::Ordered(reason) => reason.to_string(),
            Self::Own { text, .. } => text.clone().into_owned(),
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
            Self::ComeBack(why) => why.reason(),
            Self::Gap(_) => DisconnectReason::Gap,
            Self::TokenExpired => DisconnectReason::TokenExpired,
            Self::Forbidden(_) => DisconnectReason::Forbidden,
            Self::RateLimit => DisconnectReason::RateLimit,
            Self::Ordered(_) => DisconnectReason::Ordered,
            Self::Own { reason, .. } => *reason,
            Self::Protocol(error) => match error.close_code() {
                CloseCode::INVALID_PAYLOAD => DisconnectReason::InvalidUtf8,
                CloseCode::MESSAGE_TOO_BIG => DisconnectReason::MessageTooLarge,
                _ => DisconnectReason::ProtocolError,
            },
        }
    }
}

/// Ends the connection of a client that loses nothing by coming back.
impl Ctx<'_> {
    fn ask_back(&mut self) {
        if self.would_miss_nothing() {
            self.leave(Leave::ComeBack(ComeBack::Room));
        } else {
            self.core.metrics.moves_declined.add(1);
        }
    }

    /// Whether all that is published while it is away will be there when it comes back.
    fn would_miss_nothing(&self) -> bool {
        let Some(open) = self.open() else { return false };
        let (hub, namespaces) = (&self.core.hub, self.core.shared.node.namespaces());
        let has_history = |subscription: &Subscription| {
            namespaces.of(hub.channel(hub.channel_of(*subscription))).history_size > 0
        };
        open.protocol.of_list(self.core.shared.protocols).recovers(open)
            && open.subscription_count() == open.subscriptions.as_slice().len()
            && open.subscriptions.as_slice().iter().all(has_history)
    }
}

impl Ctx<'_> {
    /// Tells a client that it has to go, takes its subscriptions, and waits a bounded time for its answer.
    pub(crate) fn leave(&mut self, why: Leave) {
        let Some(session) = self.connections.get_mut(self.id) else { return };
        match &mut session.phase {
            Phase::Leaving(_) => {}
            // Its request will be answered or refused when it is complete, or time out. One that has said nothing
            // may have come a moment ago with a request under way: closing it would be a reset without an answer. One whose
            // request was answered has that risk with any server that keeps connections.
            Phase::Head(Head { earlier: Earlier::Answered, received: None, .. }) => {
                self.connections.close(self.id)
            }
            Phase::Head(_) => {}
            Phase::Opening(_) => self.refuse(&why.into_refusal()),
            Phase::Open(_) => {
                let Phase::Open(open) = std::mem::replace(&mut session.phase, Phase::Leaving(None)) else {
                    return;
                };
                self.leave_open(open, &why);
            }
        }
    }

    fn leave_open(&mut self, mut open: Open, why: &Leave) {
        let decoder = std::mem::replace(&mut open.decoder, Decoder::new(false));
        let (protocol, form) = (open.protocol.of_list(self.core.shared.protocols), open.form);
        self.end_open(open, why);
        if !matches!(why, Leave::ComeBack(_)) {
            log_refusal("closed", &format_args!("{} {}", why.code().0, why.text()));
        }
        let spread = u64::from(self.id.generation);
        self.write(|out| protocol.write_farewell(why, spread, form, out));
        // A client that broke the protocol is not listened to any more (RFC 6455 section 7.1.7); others answer
        // the close frame, and are closed then.
        if protocol.transport() == Transport::Stream || matches!(why, Leave::Protocol(_)) {
            self.connections.shut_when_flushed(self.id);
        } else if let Some(session) = self.connections.get_mut(self.id) {
            session.phase = Phase::Leaving(Some(decoder));
            // Publishes that wait may have paused it, and its answer would never be read.
            self.connections.set_paused(self.id, false);
            self.connections.set_held(self.id, false);
        }
    }

    /// Ends an open connection, and bounds how long its socket lasts.
    fn end_open(&mut self, open: Open, why: &Leave) {
        if let Leave::Protocol(error) = why {
            self.core.metrics.protocol_errors.add((*error).into(), 1);
        }
        if let Some(code) = open.protocol.of_list(self.core.shared.protocols).close_code(why) {
            self.core.metrics.close_frames.add(metrics::CloseCode::of(code.0), 1);
        }
        let lasted = self.session().map(|session| self.core.lasted(session)).unwrap_or_default();
        self.ended(open, why.reason(), lasted);
        self.set_leave_timer();
    }

    /// An open connection has ended: counts that, tells the application, and gives back what it held.
    pub(crate) fn ended(&mut self, open: Open, reason: DisconnectReason, lasted: Duration) {
        self.core.metrics.disconnects.add(reason, 1);
        self.core.metrics.connection_duration_seconds.observe(lasted);
        self.tell_disconnected(&open, reason, lasted);
        self.unsubscribe(open);
    }

    pub(crate) fn set_leave_timer(&mut self) {
        let wait = self.core.shared.node.config().drain.close_wait.max(Duration::from_secs(1));
        self.connections.set_timer(self.id, self.connections.now().after(wait));
    }

    /// Gives back what an open connection held in the hub and in presence.
    fn unsubscribe(&mut self, mut open: Open) {
        for &subscription in open.subscriptions.as_slice() {
            self.leave_of(&open, self.core.hub.channel_of(subscription), true);
        }
        for key in open.under_way_keys() {
            self.leave_of(&open, key, false);
        }
        open.protocol.of_list(self.core.shared.protocols).on_end(self, &mut open);
        let mut rare = open.rare.unwrap_or_default();
        for unsettled in std::mem::take(&mut rare.unsettled) {
            self.abandon(unsettled);
        }
        // Leaving may move another's place, but its own others stay findable: a connection is in a lane once.
        for &subscription in open.subscriptions.as_slice() {
            self.part(subscription);
        }
        if let Some(publisher) = rare.publisher {
            self.publish_rest(*publisher);
        }
    }
}

impl Core {
    /// A router asks that these of its connections, by the other ends of their sockets, come back: the node that they belong
    /// to has room. Those that would miss something stay.
    pub(crate) fn ask_back(
        &mut self,
        connections: &mut Connections<Session>,
        node: &str,
        peers: &[SocketAddr],
    ) {
        if node != self.shared.node.name() {
            return;
        }
        let peers: HashSet<SocketAddr> = peers.iter().copied().map(canonical).collect();
        for slot in 0..connections.slots() {
            let Some(id) = connections.in_slot(slot) else { continue };
            if connections.peer_address(id).is_some_and(|peer| peers.contains(&canonical(peer))) {
                self.ctx(connections, id).ask_back();
            }
        }
    }
}

/// An IPv4 address that came in on an IPv6 socket is the same address.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
