//! What a protocol is to the session core: how its requests are accepted, what its messages do, and how its clients are
//! told what happens. `protocols/mod.rs` has the list; nothing else names one.

use std::{any::Any, sync::Arc};

use tidegate_backplane::{Channel, GapReason, JoinError, Position};
use tidegate_reactor::{Connections, Tick};
use tidegate_wire::{
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
    hooks::HandedOn,
    hub::{ChannelKey, form::FormId, outgoing::Outgoing},
    node::{PublishError, roster::List},
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
    /// The node asks something of it, in the words of the protocol's own interface.
    Instructed(&'e str),
}

/// A protocol. It keeps nothing itself: state of a shard is in [`room`](Self::room), that of a connection in
/// [`ProtocolState`] and [`Open::tag`].
pub(crate) trait Protocol: Sync + std::fmt::Debug {
    /// One word, for logs and tests.
    fn name(&self) -> &'static str;

    /// Whether a request without a body is for it.
    fn serves(&self, method: &str, path: &str, dev: bool) -> bool;

    /// What the request asks for and may have. Nothing that waits: what needs the backplane comes after.
    /// `said`: what the application has said of it.
    fn accept(&self, core: &Core, head: &Head<'_>, said: &Said) -> Result<Request, Stop>;

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

    /// Whether a client of it speaks in bytes, and not in text.
    fn is_binary(&self, open: &Open) -> bool {
        let _ = open;
        false
    }

    fn transport(&self) -> Transport {
        Transport::WebSocket
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

    /// Appends the last that a client is told. `spread` is any number that differs between clients.
    fn write_farewell(&self, why: &Leave, spread: u64, out: &mut Vec<u8>) {
        let _ = spread;
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

    /// Whether an open connection is signed in as a user of an app in the protocol's own way.
    fn is_user(&self, core: &Core, open: &Open, app: Option<&str>, user: &str) -> bool {
        let _ = (core, open, app, user);
        false
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

impl ProtocolId {
    /// The protocol that serves a request without a body.
    pub(crate) fn of(protocols: Protocols, method: &str, path: &str, dev: bool) -> Option<Self> {
        let at = protocols.iter().position(|protocol| protocol.serves(method, path, dev))?;
        u8::try_from(at).ok().map(Self)
    }

    pub(crate) fn of_list(self, protocols: Protocols) -> &'static dyn Protocol {
        protocols[usize::from(self.0)]
    }
}
