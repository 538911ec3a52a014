//! Centrifugo's clients, under `/connection/`: version 2 of its client protocol, in JSON or Protobuf.
//!
//! Clients come over a WebSocket, or over an HTTP answer that goes on, and send their commands by requests of their own
//! (`emulation`); or they send none, and get what their token and their first message ask for. `opening` reads the
//! request of any of these. `commands` takes what clients ask, in order; `connecting` says who they are, `asking` has the application decide, `entering` what
//! the server subscribes them to; `subscribing` and `reading` and
//! `publishing` do what they ask; `heartbeat` pings them; `place` says where they are in a channel. A connection that is
//! idle and anonymous has nothing on the heap: where it stands, and when its next ping is due, is its tag. `http` is the
//! server API, and `ordered` what that asks of connections; `moving` is what goes along to another process.

mod asking;
mod commands;
mod connecting;
mod emulation;
mod entering;
pub(super) mod forms;
mod heartbeat;
pub(super) mod http;
mod moving;
mod opening;
mod ordered;
mod place;
mod publishing;
mod reading;
mod subscribing;

use std::{any::Any, borrow::Cow, sync::Arc};

use tidegate_reactor::Tick;
use tidegate_wire::{
    centrifuge::{
        Encoding,
        code::{Disconnect, ErrorCode},
        message::Reply,
        push,
    },
    fields::Writer,
    frame::{self, CloseCode},
    head::Head,
};

use crate::{
    app::apps::Apps,
    hooks::HandedOn,
    hub::{ChannelKey, form::FormId},
    metrics::{DisconnectReason, Instructed},
    node::instruction::What,
    problem::log_refusal,
    session::{
        Ctx, Open,
        asking::Said,
        core::Core,
        leaving::{ComeBack, Leave},
        opening::{Request, Stop},
        protocol::{Event, Protocol, ProtocolState, Stays, Transport},
        tokens::Grants,
    },
};
use commands::Waits;
use emulation::Sessions;
use entering::Entering;
use forms::Carrier;
use opening::{Asks, asks};
use subscribing::Asked;

/// Its clients by one of the ways in which they come.
#[derive(Debug)]
pub(crate) struct Centrifuge(pub(super) Way);

/// A way to come; those of `Uni` are for clients that send no commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    WebSocket,
    HttpStream,
    EventSource,
    UniWebSocket,
    UniHttpStream,
    UniEventSource,
}

/// What orders to connections name.
const NAME: &str = "centrifuge";

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
        NAME
    }

    fn serves(&self, method: &str, path: &str, _dev: bool) -> bool {
        path == self.0.path() && self.0.methods().contains(&method)
    }

    fn takes_body(&self) -> bool {
        self.0.methods().contains(&"POST")
    }

    fn accept(&self, core: &Core, head: &Head<'_>, body: &[u8], _said: &Said) -> Result<Request, Stop> {
        opening::accept(self.0, core, head, body)
    }

    fn transport(&self) -> Transport {
        match self.0 {
            Way::WebSocket | Way::UniWebSocket => Transport::WebSocket,
            Way::HttpStream | Way::EventSource | Way::UniHttpStream | Way::UniEventSource => {
                Transport::Stream
            }
        }
    }

    fn way(&self) -> &'static str {
        self.0.path().rsplit('/').next().unwrap_or_default()
    }

    fn is_event_source(&self) -> bool {
        matches!(self.0, Way::EventSource | Way::UniEventSource)
    }

    /// Its channels come later, each with its namespace, which may not allow compression.
    fn form(&self, request: &Request, _compression: bool) -> FormId {
        let form = asks(request).map_or(Carrier::Json, |asks| asks.carrier).form();
        if request.shares_deflate() { form.deflated() } else { form }
    }

    fn write_answer(&self, request: &Request, out: &mut Vec<u8>) {
        opening::write_answer(request, out);
    }

    fn on_text(&self, ctx: &mut Ctx<'_>, text: &str) {
        match self.0 {
            Way::UniWebSocket => ctx.first_of_uni(text.as_bytes()),
            _ => ctx.frame(Encoding::Json, text.as_bytes()),
        }
    }

    fn on_binary(&self, ctx: &mut Ctx<'_>, bytes: &[u8]) {
        ctx.frame(Encoding::Protobuf, bytes);
    }

    fn on_event(&self, ctx: &mut Ctx<'_>, event: Event<'_>) {
        match event {
            Event::Opened { state, request } => {
                ctx.await_connect(request);
                let asks = state.and_then(|state| state.downcast::<Asks>().ok());
                ctx.take_first(asks.map(|asks| asks.first).unwrap_or_default());
            }
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
            Event::HeartbeatDue => ctx.ping(),
            Event::Silent => ctx.cut(Disconnect::NoPong, &"a ping was not answered"),
            Event::PublishFailed(_) | Event::Dropped { .. } | Event::Begun | Event::Welcome(_) => {}
        }
    }

    fn instructed(&self, ctx: &mut Ctx<'_>, what: &What) -> Instructed {
        ctx.centrifuge_instructed(what)
    }

    /// Who sends nothing answers no pings of the protocol, but those of the WebSocket.
    fn is_pinged(&self) -> bool {
        self.0 == Way::UniWebSocket
    }

    fn room(&self) -> Box<dyn Any + Send> {
        Box::new(Sessions::new())
    }

    fn is_connected(&self, open: &Open) -> bool {
        Stage::of(open) == Stage::Connected
    }

    fn lists_anonymous(&self) -> bool {
        true
    }

    fn recovers(&self, _open: &Open) -> bool {
        true
    }

    fn is_binary(&self, open: &Open) -> bool {
        !Carrier::of(open.form).is_json()
    }

    fn hand_on(&self, core: &Core, open: &Open, now: Tick, out: &mut Writer) -> Result<(), Stays> {
        moving::hand_on(core, open, now, out)
    }

    fn understands(&self, own: &[u8], _apps: &Apps) -> bool {
        moving::understands(own)
    }

    fn go_on(&self, core: &mut Core, open: &mut Open, now: Tick, own: &[u8]) {
        moving::go_on(core, open, now, own);
    }

    fn due(&self, open: &Open) -> Option<Tick> {
        let client = open.state::<Client>();
        let ends = client.map_or([None, None], |client| [client.stale, client.grants.due()]);
        ends.into_iter().flatten().chain(heartbeat::due(open)).min()
    }

    fn close_code(&self, why: &Leave) -> Option<CloseCode> {
        (self.transport() == Transport::WebSocket).then(|| code_of(why))
    }

    fn write_farewell(&self, why: &Leave, _spread: u64, form: FormId, out: &mut Vec<u8>) {
        let code = code_of(why);
        let text = match why {
            Leave::ComeBack(ComeBack::Drain) => Cow::Borrowed(Disconnect::Shutdown.text()),
            Leave::TokenExpired => Disconnect::Expired.text().into(),
            other => other.text().into(),
        };
        match self.transport() {
            Transport::WebSocket => frame::encode_close(code, &text, out),
            Transport::Stream => {
                Carrier::of(form).put_one(out, |style, out| push::disconnect(code.0, &text, style, out));
            }
        }
    }
}

fn code_of(why: &Leave) -> CloseCode {
    let code = match why {
        Leave::ComeBack(ComeBack::Drain) => Disconnect::Shutdown,
        Leave::ComeBack(_) => Disconnect::ForceReconnect,
        Leave::Gap(_) => Disconnect::InsufficientState,
        Leave::TokenExpired => Disconnect::Expired,
        Leave::Forbidden(_) => Disconnect::PermissionDenied,
        Leave::RateLimit => Disconnect::TooManyRequests,
        Leave::Ordered(_) => Disconnect::Force,
        Leave::Own { .. } | Leave::Protocol(_) => return why.code(),
    };
    CloseCode(code as u16)
}

impl Way {
    fn path(self) -> &'static str {
        match self {
            Self::WebSocket => "/connection/websocket",
            Self::HttpStream => "/connection/http_stream",
            Self::EventSource => "/connection/sse",
            Self::UniWebSocket => "/connection/uni_websocket",
            Self::UniHttpStream => "/connection/uni_http_stream",
            Self::UniEventSource => "/connection/uni_sse",
        }
    }

    fn methods(self) -> &'static [&'static str] {
        match self {
            Self::WebSocket | Self::UniWebSocket => &["GET"],
            Self::HttpStream | Self::UniHttpStream => &["POST"],
            Self::EventSource | Self::UniEventSource => &["GET", "POST"],
        }
    }
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

    fn carrier(&self) -> Option<Carrier> {
        self.open().map(|open| Carrier::of(open.form))
    }

    /// Answers a command. Who sends commands by requests of their own is not slowed by TCP, so that what it is answered
    /// counts against the bound of its queue; where that is full already, also what is larger than the bound.
    fn send_reply(&mut self, reply: Reply) {
        let Some(carrier) = self.carrier() else { return };
        let bound = self.core.shared.node.config().limits.send_queue_bytes.bytes();
        if carrier.is_emulated() && self.connections.queued_bytes(self.id) > bound {
            if let Some(open) = self.open_mut() {
                open.rare_mut().reason = Some(DisconnectReason::SlowReader);
            }
            return self.connections.close(self.id);
        }
        let put = |out: &mut Vec<u8>| carrier.put_one(out, |style, out| push::reply(reply, style, out));
        match carrier.is_emulated() {
            true => self.answer_large(put),
            false => self.answer(put),
        }
    }

    /// Answers a command that is not carried out. Who sends none has asked to connect, and is told why it cannot.
    fn deny_command(&mut self, id: u32, code: ErrorCode, why: &dyn std::fmt::Display) {
        log_refusal("command", &format_args!("{} {why}", code as u32));
        match (self.carrier().is_some_and(Carrier::is_uni), code) {
            (true, ErrorCode::TokenExpired) => self.cut(Disconnect::Expired, why),
            (true, _) => self.cut(Disconnect::ServerError, why),
            (false, _) => self.send_reply(Reply { id, error: Some(code.into()), ..Reply::default() }),
        }
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
