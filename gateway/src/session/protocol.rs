//! What a protocol is to the session core: how its requests are accepted, what its messages do, and how its clients are
//! told what happens. `protocols/mod.rs` has the list; nothing else names one.

use std::{any::Any, sync::Arc};

use tidegate_backplane::{Channel, GapReason, JoinError, Position};
use tidegate_reactor::{Connections, Tick};
use tidegate_wire::{
    fields::Writer,
    frame::{self, CloseCode},
    head::Head,
};

use super::{
    Open, Session,
    asking::Said,
    core::Core,
    ctx::Ctx,
    leaving::Leave,
    opening::{Request, Stop},
    presence::Present,
    subscribing::Attempt,
};
use crate::{
    app::apps::{AppId, Apps},
    auth::Claims,
    hooks::HandedOn,
    hub::{ChannelKey, form::FormId, outgoing::Outgoing},
    metrics::Instructed,
    node::{PublishError, instruction::What, roster::List},
    subscription::Item,
};

/// The protocols of a process; a connection names its own by its index.
pub(crate) type Protocols = &'static [&'static dyn Protocol];

/// An index into [`Protocols`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ProtocolId(u8);

/// What carries a protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// Messages both ways (RFC 6455). The core answers pings, sends its own, and waits for the client's close frame.
    WebSocket,
    /// An answer without an end. What the client sends after its request is ignored.
    Stream,
}

/// What happens to an open connection.
#[derive(Debug)]
pub(crate) enum Event<'e> {
    /// Its request was answered and it is open. `state`: what [`Protocol::accept`] left in the [`Request`].
    Opened { state: Option<Box<dyn Any + Send>>, request: Option<Arc<HandedOn>> },
    /// The application was asked whether a subscription that it has allowed goes on. `until`: how long, if it does.
    GrantRefreshed { key: ChannelKey, until: Option<Option<Tick>> },
    /// The application has let it in, with this for its client: JSON.
    Welcome(&'e str),
    /// All that could be told at once of the channels of its request was told.
    Begun,
    /// A subscription stands. `position`: where the client is in the channel. `recovered`: what it missed follows,
    /// without a hole. `told`: what it is told next, of the first page at most; a protocol whose answer holds it takes it.
    /// `list`: who is in the channel, where it was asked for.
    Subscribed {
        key: ChannelKey,
        position: Option<Position>,
        recovered: bool,
        told: &'e mut Vec<Item>,
        list: Option<&'e List>,
    },
    /// One of several that its client is told of together could be told now.
    Ready { attempt: Attempt },
    /// A subscription cannot be had.
    Refused { key: ChannelKey, error: &'e JoinError },
    /// A message that it sent was not published.
    PublishFailed(PublishError),
    /// So many messages did not fit into its queue; of one channel, or of any (then the name is empty).
    Dropped { messages: u64, channel: &'e str },
    /// Its ping was not answered in time.
    Silent,
    /// The time between two heartbeats has passed; streams only.
    HeartbeatDue,
    /// What [`Protocol::due`] said has come.
    Due,
    /// The client has missed something of a channel, and the form of the connection cannot say so. It gets nothing of the
    /// channel until its subscription, or the connection, was ended.
    Missed { key: ChannelKey, reason: GapReason },
}

/// Why a connection does not go along to another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stays {
    /// Something is under way that may have ended in a moment.
    NotNow,
    /// It has something that is not handed on, or leaves already.
    Ever,
}

impl Stays {
    /// Stays for now, unless nothing is under way.
    pub(crate) fn unless(is_idle: bool) -> Result<(), Self> {
        if is_idle { Ok(()) } else { Err(Self::NotNow) }
    }
}

/// A protocol. It keeps nothing itself: state of a shard is in [`room`](Self::room), that of a connection in
/// [`ProtocolState`] and [`Open::tag`].
pub(crate) trait Protocol: Sync + std::fmt::Debug {
    /// One word, for logs and tests.
    fn name(&self) -> &'static str;

    /// Whether a request is for it, which has no body unless the protocol [takes](Self::takes_body) one.
    fn serves(&self, method: &str, path: &str, dev: bool) -> bool;

    /// Whether its requests may have a body. It is a client's first message, and as long as one may be.
    fn takes_body(&self) -> bool {
        false
    }

    /// What the request asks for and may have. Nothing that waits: what needs the backplane comes after.
    /// `said`: what the application has said of it.
    fn accept(&self, core: &Core, head: &Head<'_>, body: &[u8], said: &Said) -> Result<Request, Stop>;

    /// The form in which its publications come. `compression`: all of its channels allow it.
    fn form(&self, request: &Request, compression: bool) -> FormId;

    fn on_text(&self, ctx: &mut Ctx<'_>, text: &str) {
        let _ = (ctx, text);
    }

    fn on_binary(&self, ctx: &mut Ctx<'_>, bytes: &[u8]) {
        let _ = (ctx, bytes);
    }

    fn on_event(&self, ctx: &mut Ctx<'_>, event: Event<'_>);

    /// How a subscription of an open connection is present in its channel.
    fn presence(&self, core: &Core, open: &Open, channel: &Channel) -> Present {
        core.present_by_token(open, channel)
    }

    /// Whether who has no user is listed, with an empty one.
    fn lists_anonymous(&self) -> bool {
        false
    }

    /// Whether a subscriber whose form says who comes and goes was given the list of a channel.
    fn is_given_list(&self, channel: &Channel) -> bool {
        let _ = channel;
        true
    }

    /// Whether it joins channels itself where a subscription is counted.
    fn counts_itself(&self) -> bool {
        false
    }

    /// Gives back what an open connection has beside its places in the hub. It is not open any more, or gone.
    fn on_end(&self, ctx: &mut Ctx<'_>, open: &mut Open) {
        let _ = (ctx, open);
    }

    /// Whether a gap, or a change of who is in a channel, is told to this shard's subscribers at all.
    fn on_notice(&self, core: &Core, outgoing: &Outgoing) -> bool {
        let _ = (core, outgoing);
        true
    }

    /// The list of apps is another one.
    fn on_apps_changed(&self, core: &mut Core, connections: &mut Connections<Session>) {
        let _ = (core, connections);
    }

    /// Whether it has said who it is, so that the application is told that it is connected. One whose clients say so on the
    /// open connection calls [`Ctx::tell_connected`] then.
    fn is_connected(&self, open: &Open) -> bool {
        let _ = open;
        true
    }

    /// Whether a client of it speaks in bytes, and not in text.
    fn is_binary(&self, open: &Open) -> bool {
        let _ = open;
        false
    }

    fn transport(&self) -> Transport {
        Transport::WebSocket
    }

    /// How its clients come, as hooks are told it.
    fn way(&self) -> &'static str {
        match self.transport() {
            Transport::WebSocket => "websocket",
            Transport::Stream => "sse",
        }
    }

    /// Whether the client may be a browser's event source, for which any answer but 200 is final.
    fn is_event_source(&self) -> bool {
        self.transport() == Transport::Stream
    }

    /// Whether a client is told where its channels stand, also where nothing was published yet.
    fn tells_positions(&self, request: &Request) -> bool {
        let _ = request;
        false
    }

    /// Appends what the client is answered before anything else.
    fn write_answer(&self, request: &Request, out: &mut Vec<u8>) {
        if let Some(upgrade) = &request.upgrade {
            upgrade.write_response(out, None);
        }
    }

    /// The code of the close frame, where there is one.
    fn close_code(&self, why: &Leave) -> Option<CloseCode> {
        Some(why.code())
    }

    /// Appends the last that a client with this form is told. `spread` is any number that differs between clients.
    fn write_farewell(&self, why: &Leave, spread: u64, form: FormId, out: &mut Vec<u8>) {
        let _ = (spread, form);
        if let Some(code) = self.close_code(why) {
            frame::encode_close(code, &why.text(), out);
        }
    }

    /// Whether the core pings its clients when they are silent. One whose clients expect pings of the protocol says when
    /// by [`due`](Self::due).
    fn is_pinged(&self) -> bool {
        true
    }

    /// Whether a client that comes back can say where it was in its channels, and so misses nothing of those with history.
    fn recovers(&self, open: &Open) -> bool {
        let _ = open;
        false
    }

    /// When something ends that it keeps of an open connection; [`Event::Due`] says so then.
    fn due(&self, open: &Open) -> Option<Tick> {
        let _ = open;
        None
    }

    /// Whose an open connection is: by its token, or in the protocol's own way.
    fn identity<'o>(&self, core: &'o Core, open: &'o Open) -> Identity<'o> {
        let _ = core;
        Identity::of(open.claims().map(|claims| &**claims))
    }

    /// Does what a server asks of an open connection, and says what came of it.
    fn instructed(&self, ctx: &mut Ctx<'_>, what: &What) -> Instructed {
        ctx.instructed(what)
    }

    /// Appends what it keeps of an open connection, for another process that goes on with it. An error: the connection
    /// stays.
    fn hand_on(&self, core: &Core, open: &Open, now: Tick, out: &mut Writer) -> Result<(), Stays> {
        let _ = (core, open, now, out);
        Err(Stays::Ever)
    }

    /// Whether it could go on with what another process has written so, with these apps.
    fn understands(&self, own: &[u8], apps: &Apps) -> bool {
        let _ = (own, apps);
        false
    }

    /// Goes on with it. The subscriptions stand already.
    fn go_on(&self, core: &mut Core, open: &mut Open, now: Tick, own: &[u8]) {
        let _ = (core, open, now, own);
    }

    /// What it keeps in a shard, found again by its type ([`Rooms::get`](super::core::Rooms::get)).
    fn room(&self) -> Box<dyn Any + Send> {
        Box::new(())
    }
}

/// What a protocol keeps of a connection that few of its connections need: a box in [`Rare`](super::Rare).
pub(crate) trait ProtocolState: Any + Send + std::fmt::Debug {
    /// Whether nothing is in it, so that the box can go.
    fn is_empty(&self) -> bool;
}

/// The app and the user of a connection; of the default app where none is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Identity<'a> {
    pub(crate) app: Option<&'a str>,
    pub(crate) user: Option<&'a str>,
}

impl<'a> Identity<'a> {
    pub(crate) fn of(claims: Option<&'a Claims>) -> Self {
        claims.map_or(Self::default(), |claims| Self {
            app: claims.app.as_deref().map(AppId::as_str),
            user: claims.user.as_deref(),
        })
    }
}

impl ProtocolId {
    /// The protocol that serves a request.
    pub(crate) fn of(
        protocols: Protocols,
        method: &str,
        path: &str,
        has_body: bool,
        dev: bool,
    ) -> Option<Self> {
        let serves = |protocol: &&dyn Protocol| {
            protocol.serves(method, path, dev) && (!has_body || protocol.takes_body())
        };
        let at = protocols.iter().position(serves)?;
        u8::try_from(at).ok().map(Self)
    }

    /// What another process finds it by: a protocol may have several ways to come.
    pub(crate) fn to_text(self, protocols: Protocols) -> Box<str> {
        let protocol = self.of_list(protocols);
        format!("{} {}", protocol.name(), protocol.way()).into()
    }

    pub(crate) fn of_text(protocols: Protocols, text: &str) -> Option<Self> {
        let named = text.rsplit_once(' ')?;
        let at = protocols.iter().position(|protocol| (protocol.name(), protocol.way()) == named)?;
        u8::try_from(at).ok().map(Self)
    }

    pub(crate) fn of_list(self, protocols: Protocols) -> &'static dyn Protocol {
        protocols[usize::from(self.0)]
    }
}
