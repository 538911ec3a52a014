//! Clients of Pusher Channels: carries out what `tidegate_wire::pusher::session` decides.
//!
//! `opening` says hello, or why not; `messages` takes what clients say; `entering` subscribes; `users` signs in; `events` publishes; `delivering` is what of a fan-out is
//! for them alone; `leaving` gives back; `moving` is what goes along to another process. What a connection has that few have is
//! [`Pusher`], a box in `Rare`: a public channel needs nothing of it.

mod delivering;
mod entering;
mod events;
pub(super) mod forms;
pub(super) mod http;
mod leaving;
mod messages;
mod moving;
mod opening;
mod users;

use std::{any::Any, sync::Arc};

use tidegate_backplane::Channel;
use tidegate_reactor::{Connections, Tick};
use tidegate_wire::{
    fields::Writer,
    frame::{self, CloseCode, Opcode},
    head::Head,
    pusher::{
        self, Code, is_pusher_path, server,
        session::{Place, Stage},
    },
};

use events::EventRefused;
use opening::Wanted;

use crate::{
    app::apps::{App, Apps},
    hub::{ChannelKey, form::FormId, outgoing::Outgoing},
    metrics::{DisconnectReason, Instructed},
    node::instruction::What,
    session::{
        Ctx, Open, Session,
        asking::Said,
        core::{Core, Rooms},
        leaving::Leave,
        opening::{Request, Stop},
        presence::Present,
        protocol::{Event, Identity, Protocol, ProtocolState, Stays},
    },
};

/// Seconds that a client is silent before it pings, as hosted Pusher tells them. The gateway pings sooner itself.
const ACTIVITY_TIMEOUT_S: u64 = 120;

#[derive(Debug)]
pub(crate) struct PusherChannels;

/// What a shard has for this protocol.
#[derive(Debug, Default)]
struct Room {
    apps: AppTable,
}

/// An app, as the sessions of a shard name it in [`Open::tag`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct AppKey(u32);

/// The apps that connections of this shard belong to or did: as many as were ever configured.
#[derive(Debug, Default)]
struct AppTable(Vec<Arc<App>>);

/// What few connections have.
#[derive(Debug, Default)]
struct Pusher {
    /// Who it is, when it is signed in.
    user: Option<Box<pusher::Identity>>,
    /// Users of the watchlist who are subscribed to, and of whom it was not told yet whether they are online.
    watched: Vec<ChannelKey>,
}

impl AppTable {
    /// Names an app, and keeps its newest form.
    fn intern(&mut self, app: Arc<App>) -> AppKey {
        let known = self.0.iter().position(|known| known.id == app.id);
        let at = known.unwrap_or_else(|| {
            self.0.push(Arc::clone(&app));
            self.0.len() - 1
        });
        self.0[at] = app;
        AppKey(at as u32 + 1)
    }

    /// `None`: of a connection that belongs to no app.
    fn get(&self, key: AppKey) -> Option<&Arc<App>> {
        self.0.get((key.0 as usize).checked_sub(1)?)
    }
}

impl Rooms {
    fn pusher(&self) -> &Room {
        self.get()
    }

    fn pusher_mut(&mut self) -> &mut Room {
        self.get_mut()
    }
}

impl ProtocolState for Pusher {
    fn is_empty(&self) -> bool {
        self.user.is_none() && self.watched.is_empty()
    }
}

impl Open {
    fn pusher(&self) -> Option<&Pusher> {
        self.state()
    }

    fn pusher_mut(&mut self) -> &mut Pusher {
        self.state_or_default()
    }

    fn stage(&self) -> Stage {
        match self.pusher().and_then(|pusher| pusher.user.as_deref()) {
            Some(_) => Stage::SignedIn,
            None => Stage::Established,
        }
    }
}

impl Ctx<'_> {
    /// The app of an open connection.
    fn app_of(&self) -> Option<Arc<App>> {
        let open = self.connections.get(self.id).and_then(Session::open)?;
        self.core.rooms.pusher().apps.get(AppKey(open.tag)).cloned()
    }

    /// A connection's place in a channel.
    fn place_in(&self, open: &Open, key: Option<ChannelKey>) -> Place {
        match key {
            Some(key) if open.is_subscribing(key) => Place::Entering,
            Some(key)
                if open.subscriptions.as_slice().iter().any(|&own| self.core.hub.channel_of(own) == key) =>
            {
                Place::Inside
            }
            _ => Place::Outside,
        }
    }

    /// Writes one message to one client, as an [`answer`](Ctx::answer).
    fn tell(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.answer(|out| frame_of(write, out));
    }
}

impl Protocol for PusherChannels {
    fn name(&self) -> &'static str {
        "pusher"
    }

    fn serves(&self, method: &str, path: &str, _dev: bool) -> bool {
        method == "GET" && is_pusher_path(path)
    }

    /// Pages of any origin may connect: nothing is granted for what a browser sends along, but for signatures that a
    /// page has to ask its own server for. In `--dev` everybody knows the secret.
    fn accept(&self, core: &Core, head: &Head<'_>, _body: &[u8], _said: &Said) -> Result<Request, Stop> {
        if core.shared.node.config().dev {
            core.check_origin(head)?;
        }
        let upgrade = core.upgrade(head)?;
        let wanted: Wanted = opening::wanted_app(core, head);
        Ok(Request { state: Some(Box::new(wanted)), ..Request::bare(Some(upgrade)) })
    }

    /// Its channels come later, each with its namespace, which may not allow compression.
    fn form(&self, request: &Request, _compression: bool) -> FormId {
        if request.shares_deflate() { forms::EVENT.deflated() } else { forms::EVENT }
    }

    fn on_text(&self, ctx: &mut Ctx<'_>, text: &str) {
        ctx.pusher_text(text);
    }

    fn on_binary(&self, ctx: &mut Ctx<'_>, _bytes: &[u8]) {
        ctx.pusher_binary();
    }

    fn on_event(&self, ctx: &mut Ctx<'_>, event: Event<'_>) {
        match event {
            Event::Opened { state, .. } => {
                if let Some(wanted) = state.and_then(|state| state.downcast::<Wanted>().ok()) {
                    ctx.establish(*wanted);
                }
            }
            Event::PublishFailed(error) => ctx.refuse_event(None, &EventRefused::Failed(error)),
            Event::Dropped { messages, channel } => {
                let text = format!("{messages} messages were dropped: this connection reads too slowly");
                let channel = (!channel.is_empty()).then_some(channel);
                ctx.write(|out| frame_of(|notice| server::error(None, &text, channel, notice), out));
            }
            Event::Silent => ctx.leave(leave_with(Code::NO_PONG)),
            Event::Subscribed { key, told, list, .. } => ctx.granted(key, told.is_empty(), list),
            Event::Refused { key, error } => ctx.fail_entrance(key, &error.clone().into()),
            Event::Missed { reason, .. } => ctx.leave(Leave::Gap(reason)),
            Event::Begun
            | Event::Welcome(_)
            | Event::GrantRefreshed { .. }
            | Event::HeartbeatDue
            | Event::Due
            | Event::Ready { .. } => {}
        }
    }

    fn counts_itself(&self) -> bool {
        true
    }

    fn presence(&self, _core: &Core, _open: &Open, channel: &Channel) -> Present {
        entering::present_in(channel.name())
    }

    fn is_given_list(&self, channel: &Channel) -> bool {
        entering::is_given_list(channel.name())
    }

    fn on_end(&self, ctx: &mut Ctx<'_>, open: &mut Open) {
        ctx.pusher_left(open);
    }

    fn on_notice(&self, core: &Core, outgoing: &Outgoing) -> bool {
        delivering::on_notice(core, outgoing)
    }

    fn on_apps_changed(&self, core: &mut Core, connections: &mut Connections<Session>) {
        opening::apps_changed(core, connections);
    }

    /// Its clients come back at once after 4200, without any wait of their own, so who is asked to come back is told 'going away': after that
    /// they wait for a second, and no page is told of an error.
    fn close_code(&self, why: &Leave) -> Option<CloseCode> {
        Some(match why {
            Leave::ComeBack(_) => CloseCode::GOING_AWAY,
            Leave::Ordered(_) | Leave::TokenExpired => Code::UNAUTHORIZED.into(),
            other => other.code(),
        })
    }

    /// Before the close frame goes an error, but for who is asked to come back.
    fn write_farewell(&self, why: &Leave, _spread: u64, _form: FormId, out: &mut Vec<u8>) {
        let Some(code) = self.close_code(why) else { return };
        let text = why.text();
        if !matches!(why, Leave::ComeBack(_)) {
            frame_of(|error| server::error(Some(Code(code.0)), &text, None, error), out);
        }
        frame::encode_close(code, &text, out);
    }

    fn identity<'o>(&self, core: &'o Core, open: &'o Open) -> Identity<'o> {
        let app = core.rooms.pusher().apps.get(AppKey(open.tag)).and_then(|own| own.prefix());
        let user = open.pusher().and_then(|pusher| pusher.user.as_deref()).map(|user| &*user.id);
        Identity { app, user }
    }

    /// Its clients subscribe by themselves: the protocol has no words for a subscription that they did not ask for.
    fn instructed(&self, ctx: &mut Ctx<'_>, what: &What) -> Instructed {
        let What::Send(message) = what else { return ctx.instructed(what) };
        ctx.send_to_user(message);
        Instructed::Done
    }

    fn hand_on(&self, core: &Core, open: &Open, _now: Tick, out: &mut Writer) -> Result<(), Stays> {
        moving::hand_on(core, open, out)
    }

    fn understands(&self, own: &[u8], apps: &Apps) -> bool {
        moving::understands(own, apps)
    }

    fn go_on(&self, core: &mut Core, open: &mut Open, _now: Tick, own: &[u8]) {
        moving::go_on(core, open, own);
    }

    fn room(&self) -> Box<dyn Any + Send> {
        Box::<Room>::default()
    }
}

/// Whether a connection speaks this protocol: the number in its tag is an app only then.
fn is_pusher(core: &Core, open: &Open) -> bool {
    open.protocol.of_list(core.shared.protocols).name() == PusherChannels.name()
}

/// A client is told one of Pusher's codes.
fn leave_with(code: Code) -> Leave {
    let reason = match code {
        Code::NO_PONG => DisconnectReason::PingTimeout,
        Code::OVER_CAPACITY => DisconnectReason::Unavailable,
        _ => DisconnectReason::Forbidden,
    };
    Leave::Own { code: code.into(), text: code.message().into(), reason }
}

/// Appends a text frame.
fn frame_of(write: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
    let mut text = Vec::new();
    write(&mut text);
    frame::encode(Opcode::Text, &text, out);
}
