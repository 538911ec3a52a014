//! Centrifugo's clients, `GET /connection/websocket`: version 2 of its client protocol, in JSON or Protobuf.
//!
//! `commands` takes what clients ask, in order; `connecting` says who they are, `asking` has the application decide, `entering` what the server subscribes them to;
//! `subscribing` and `reading` and
//! `publishing` do what they ask; `heartbeat` pings them; `place` says where they are in a channel. A connection that is
//! idle and anonymous has nothing on the heap: where it stands, and when its next ping is due, is its tag. `http` is the
//! server API, and `ordered` what that asks of connections.

mod asking;
mod commands;
mod connecting;
mod entering;
pub(super) mod forms;
mod heartbeat;
pub(super) mod http;
mod ordered;
mod place;
mod publishing;
mod reading;
mod subscribing;

use std::{borrow::Cow, sync::Arc};

use tidegate_reactor::Tick;
use tidegate_wire::{
    centrifuge::{
        self, Encoding,
        code::{Disconnect, ErrorCode},
        message::Reply,
    },
    frame::{self, CloseCode},
    head::Head,
    upgrade::protocols,
};

use crate::{
    hooks::HandedOn,
    hub::{ChannelKey, form::FormId},
    metrics::DisconnectReason,
    problem::log_refusal,
    session::{
        Ctx, Open,
        asking::Said,
        core::Core,
        leaving::{ComeBack, Leave},
        opening::{Request, Stop},
        protocol::{Event, Protocol, ProtocolState},
        tokens::Grants,
    },
};
use commands::Waits;
use entering::Entering;
use subscribing::Asked;

#[derive(Debug)]
pub(crate) struct Centrifuge;

/// What a request asks for.
#[derive(Debug)]
struct Asks {
    encoding: Encoding,
    /// The subprotocol that it offers for that, if it does.
    subprotocol: Option<&'static str>,
}

/// What few connections have.
#[derive(Debug, Default)]
struct Client {
    /// When it is closed, until it has connected.
    stale: Option<Tick>,
    waits: Waits,
    /// What it sent and was not looked at yet: a frame.
    parked: Vec<u8>,
    /// Subscriptions that were asked for and not answered.
    subscribing: Vec<Asked>,
    grants: Grants,
    /// Subscriptions that the server has made, not the client.
    of_server: Vec<ChannelKey>,
    /// It connects with subscriptions of the server.
    entering: Option<Box<Entering>>,
    /// What its request said, until it has connected.
    request: Option<Arc<HandedOn>>,
}

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has to say who it is.
    New = 0,
    /// It has said so, and its token is looked at.
    Connecting = 1,
    Connected = 2,
    /// It was told that it cannot connect, and may say no more.
    Refused = 3,
}

const SUBPROTOCOL_PROTOBUF: &str = "centrifuge-protobuf";
const SUBPROTOCOL_JSON: &str = "centrifuge-json";

impl ProtocolState for Client {
    fn is_empty(&self) -> bool {
        self.stale.is_none()
            && self.waits == Waits::Nothing
            && self.parked.is_empty()
            && self.subscribing.is_empty()
            && self.grants.is_empty()
            && self.of_server.is_empty()
            && self.entering.is_none()
            && self.request.is_none()
    }
}

impl Protocol for Centrifuge {
    fn name(&self) -> &'static str {
        "centrifuge"
    }

    fn serves(&self, method: &str, path: &str, _dev: bool) -> bool {
        method == "GET" && path == "/connection/websocket"
    }

    fn accept(&self, core: &Core, head: &Head<'_>, _said: &Said) -> Result<Request, Stop> {
        core.check_origin(head)?;
        let upgrade = core.upgrade(head)?;
        Ok(Request { state: Some(Box::new(Asks::of(head))), ..Request::bare(Some(upgrade)) })
    }

    /// Its channels come later, each with its namespace, which may not allow compression.
    fn form(&self, request: &Request, _compression: bool) -> FormId {
        let form = match asks(request).map(|asks| asks.encoding) {
            Some(Encoding::Protobuf) => forms::PROTOBUF,
            Some(Encoding::Json) | None => forms::JSON,
        };
        if request.shares_deflate() { form.deflated() } else { form }
    }

    fn write_answer(&self, request: &Request, out: &mut Vec<u8>) {
        if let Some(upgrade) = &request.upgrade {
            upgrade.write_response(out, asks(request).and_then(|asks| asks.subprotocol));
        }
    }

    fn on_text(&self, ctx: &mut Ctx<'_>, text: &str) {
        ctx.frame(Encoding::Json, text.as_bytes());
    }

    fn on_binary(&self, ctx: &mut Ctx<'_>, bytes: &[u8]) {
        ctx.frame(Encoding::Protobuf, bytes);
    }

    fn on_event(&self, ctx: &mut Ctx<'_>, event: Event<'_>) {
        match event {
            Event::Opened { request, .. } => ctx.await_connect(request),
            Event::Subscribed { key, position, recovered, told, .. } => {
                ctx.subscribed(key, position, recovered, told);
            }
            Event::Refused { key, error } => {
                log_refusal("subscribe", error);
                ctx.answer_asked(key, |_, _| Err(ErrorCode::Internal));
            }
            Event::Ready { attempt } => ctx.ready_to_enter(attempt),
            Event::Missed { key, .. } => ctx.subscribe_again(key),
            Event::Due => ctx.on_due(),
            Event::GrantRefreshed { key, until } => ctx.grant_refreshed(key, until),
            Event::Instructed(text) => ctx.instructed(text),
            Event::PublishFailed(_)
            | Event::Dropped { .. }
            | Event::Silent
            | Event::Begun
            | Event::Welcome(_)
            | Event::HeartbeatDue => {}
        }
    }

    fn is_pinged(&self) -> bool {
        false
    }

    fn recovers(&self, _open: &Open) -> bool {
        true
    }

    fn is_binary(&self, open: &Open) -> bool {
        forms::encoding(open.form) == Encoding::Protobuf
    }

    fn due(&self, open: &Open) -> Option<Tick> {
        let client = open.state::<Client>();
        let ends = client.map_or([None, None], |client| [client.stale, client.grants.due()]);
        ends.into_iter().flatten().chain(heartbeat::due(open)).min()
    }

    fn close_code(&self, why: &Leave) -> Option<CloseCode> {
        let code = match why {
            Leave::ComeBack(ComeBack::Drain) => Disconnect::Shutdown,
            Leave::ComeBack(_) => Disconnect::ForceReconnect,
            Leave::Gap(_) => Disconnect::InsufficientState,
            Leave::TokenExpired => Disconnect::Expired,
            Leave::Forbidden(_) => Disconnect::PermissionDenied,
            Leave::RateLimit => Disconnect::TooManyRequests,
            Leave::Ordered(_) => Disconnect::Force,
            Leave::Own { .. } | Leave::Protocol(_) => return Some(why.code()),
        };
        Some(CloseCode(code as u16))
    }

    fn write_farewell(&self, why: &Leave, _spread: u64, out: &mut Vec<u8>) {
        let Some(code) = self.close_code(why) else { return };
        let text = match why {
            Leave::ComeBack(ComeBack::Drain) => Cow::Borrowed(Disconnect::Shutdown.text()),
            Leave::TokenExpired => Disconnect::Expired.text().into(),
            other => other.text().into(),
        };
        frame::encode_close(code, &text, out);
    }
}

impl Asks {
    /// Protobuf where the subprotocol says so, or the address, for clients that cannot name one.
    fn of(head: &Head<'_>) -> Self {
        let offered = head.header_joined("sec-websocket-protocol");
        let offers = |name| offered.as_deref().is_some_and(|it| protocols(it).any(|offer| offer == name));
        let says =
            |query: &str| query.split('&').any(|it| matches!(it, "cf_protocol=protobuf" | "format=protobuf"));
        if offers(SUBPROTOCOL_PROTOBUF) {
            return Self { encoding: Encoding::Protobuf, subprotocol: Some(SUBPROTOCOL_PROTOBUF) };
        }
        let encoding = if head.query.is_some_and(says) { Encoding::Protobuf } else { Encoding::Json };
        Self { encoding, subprotocol: offers(SUBPROTOCOL_JSON).then_some(SUBPROTOCOL_JSON) }
    }
}

fn asks(request: &Request) -> Option<&Asks> {
    request.state.as_ref()?.downcast_ref()
}

/// The bits of a tag that are a [`Stage`]; the others are the heartbeat's.
const STAGE_BITS: u32 = 2;

impl Stage {
    fn of(open: &Open) -> Self {
        match open.tag & ((1 << STAGE_BITS) - 1) {
            0 => Self::New,
            1 => Self::Connecting,
            2 => Self::Connected,
            _ => Self::Refused,
        }
    }
}

impl Ctx<'_> {
    fn stage(&self) -> Option<Stage> {
        self.open().map(Stage::of)
    }

    fn set_stage(&mut self, stage: Stage) {
        if let Some(open) = self.open_mut() {
            open.tag = open.tag >> STAGE_BITS << STAGE_BITS | stage as u32;
        }
    }

    fn client_mut(&mut self) -> Option<&mut Client> {
        self.open_mut()?.state_mut::<Client>()
    }

    fn drop_idle(&mut self) {
        if let Some(open) = self.open_mut() {
            open.drop_empty_rare();
        }
    }

    /// Answers a command.
    fn send_reply(&mut self, reply: &Reply) {
        let Some(encoding) = self.open().map(|open| forms::encoding(open.form)) else { return };
        let mut payload = Vec::new();
        centrifuge::encode(reply, encoding, &mut payload);
        self.answer(|out| frame::encode(forms::opcode(encoding), &payload, out));
    }

    /// Answers a command that is not carried out.
    fn deny_command(&mut self, id: u32, code: ErrorCode, why: &dyn std::fmt::Display) {
        log_refusal("command", &format_args!("{} {why}", code as u32));
        self.send_reply(&Reply { id, error: Some(code.into()), ..Reply::default() });
    }

    /// Closes the connection with a code that says whether its client comes back.
    fn cut(&mut self, code: Disconnect, why: &dyn std::fmt::Display) {
        log_refusal("connection", &format_args!("{} {why}", code as u16));
        let reason = match code {
            Disconnect::NoPong => DisconnectReason::PingTimeout,
            Disconnect::TooManyRequests => DisconnectReason::RateLimit,
            Disconnect::BadRequest | Disconnect::Stale => DisconnectReason::ProtocolError,
            _ => DisconnectReason::Forbidden,
        };
        self.leave(Leave::Own { code: CloseCode(code as u16), text: code.text().into(), reason });
    }
}
