//! Raw WebSockets, `GET /ws`: publications verbatim, or in a JSON envelope.

mod asking;
mod commands;
pub(crate) mod echo;
pub(super) mod forms;
mod instructed;
mod publishing;
mod subscribing;

use std::any::Any;

use tidegate_backplane::Position;
use tidegate_reactor::Tick;
use tidegate_wire::{
    fields::Writer,
    frame::Opcode,
    head::Head,
    raw::{self, Query, QueryError, Since},
    upgrade::{UpgradeError, protocols},
};

use crate::{
    app::apps::Apps,
    hub::form::FormId,
    metrics::Instructed,
    node::instruction::What,
    session::{
        Ctx, Open,
        asking::Said,
        core::Core,
        leaving::Leave,
        opening::{Request, Stop},
        protocol::{Event, Protocol, Stays},
        refusal::Refusal,
    },
};
use commands::Commands;
use publishing::Refused;

/// The name of what is spoken here, for clients that name what they speak (RFC 6455 section 1.9).
const SUBPROTOCOL: &str = "tidegate.v1";

/// [`Open::tag`] of a client that is told where it is in its channels, if it is enveloped: it named the subprotocol, or
/// asked with `positions=true`.
const TELLS_POSITIONS: u32 = 1;

/// What a client asked for beside channels.
#[derive(Debug)]
struct Asked {
    /// The subprotocol that is chosen among those it offers.
    protocol: Option<Box<str>>,
    tells_positions: bool,
}

fn asked(request: &Request) -> Option<&Asked> {
    request.state.as_ref().and_then(|state| state.downcast_ref())
}

/// One of the offered subprotocols: ours, else the first. What payloads are is between those who publish and those who
/// listen, and browsers close a connection for which none of what they offered was chosen. A token is no protocol, and
/// nobody is answered one.
fn choose(offered: &str) -> Result<Option<&str>, UpgradeError> {
    let names = || protocols(offered).filter(|name| !name.starts_with("bearer."));
    let chosen = names().find(|name| *name == SUBPROTOCOL).or_else(|| names().next());
    if chosen.is_none() && !offered.trim().is_empty() { Err(UpgradeError::Protocol) } else { Ok(chosen) }
}

#[derive(Debug)]
pub(crate) struct Raw;

impl Protocol for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn serves(&self, method: &str, path: &str, _dev: bool) -> bool {
        method == "GET" && path == "/ws"
    }

    fn accept(&self, core: &Core, head: &Head<'_>, _body: &[u8], said: &Said) -> Result<Request, Stop> {
        core.check_origin(head)?;
        let upgrade = core.upgrade(head)?;
        let query = Query::parse(head.query).map_err(Refusal::from)?;
        let (channels, claims) = core.authorised_channels(head, &query, said)?;
        let since = since(&query, channels.len())?;
        let envelope = query.envelope;
        if query.join_leave && !envelope {
            return Err(Refusal::from(QueryError::JoinLeave).into());
        }
        let join_leave = core.joins_of_url(&query, &channels)?;
        let offered = head.header_joined("sec-websocket-protocol").unwrap_or_default();
        let protocol = choose(&offered).map_err(Refusal::from)?.map(Box::from);
        let tells_positions = query.positions || protocol.as_deref() == Some(SUBPROTOCOL);
        let asks = tells_positions || protocol.is_some();
        let state = asks.then(|| Box::new(Asked { protocol, tells_positions }) as Box<dyn Any + Send>);
        Ok(Request { envelope, join_leave, channels, since, claims, state, ..Request::bare(Some(upgrade)) })
    }

    fn form(&self, request: &Request, compression: bool) -> FormId {
        let form = if request.envelope { forms::ENVELOPED } else { forms::VERBATIM };
        if compression && request.shares_deflate() { form.deflated() } else { form }
    }

    /// Verbatim clients have no words for it, and those that do not ask do not expect it: to one of them the first frame
    /// is a publication.
    fn tells_positions(&self, request: &Request) -> bool {
        request.envelope && asked(request).is_some_and(|asked| asked.tells_positions)
    }

    fn write_answer(&self, request: &Request, out: &mut Vec<u8>) {
        if let Some(upgrade) = &request.upgrade {
            let protocol = asked(request).and_then(|asked| asked.protocol.as_deref());
            upgrade.write_response(out, protocol);
        }
    }

    fn on_text(&self, ctx: &mut Ctx<'_>, text: &str) {
        ctx.client_text(text);
    }

    fn on_binary(&self, ctx: &mut Ctx<'_>, bytes: &[u8]) {
        ctx.client_binary(bytes);
    }

    /// Who is told positions can say where it was.
    fn recovers(&self, open: &Open) -> bool {
        open.form.plain() != forms::VERBATIM
    }

    fn on_event(&self, ctx: &mut Ctx<'_>, event: Event<'_>) {
        match event {
            Event::PublishFailed(error) => ctx.refuse_publish(&Refused::Failed(error)),
            Event::Dropped { messages, channel } => {
                if ctx.open().is_some_and(|open| open.form.plain() == forms::ENVELOPED) {
                    let mut notice = Vec::new();
                    raw::encode_dropped(channel, messages, &mut notice);
                    ctx.write_frame(Opcode::Text, &notice);
                }
            }
            Event::Silent => ctx.give_up_silent(),
            Event::Subscribed { key, position, recovered, list, .. } => {
                ctx.raw_subscribed(key, position, recovered, list);
            }
            Event::Refused { key, error } => ctx.raw_refused(key, error),
            Event::Missed { reason, .. } => ctx.leave(Leave::Gap(reason)),
            Event::Welcome(json) => {
                if ctx.open().is_some_and(|open| open.form.plain() == forms::ENVELOPED) {
                    let mut notice = Vec::new();
                    raw::encode_connected(json, &mut notice);
                    ctx.write_frame(Opcode::Text, &notice);
                }
            }
            Event::Opened { state, .. } => {
                let asked = state.and_then(|state| state.downcast::<Asked>().ok());
                if asked.is_some_and(|asked| asked.tells_positions)
                    && let Some(open) = ctx.open_mut()
                {
                    open.tag = TELLS_POSITIONS;
                }
            }
            Event::Due => ctx.end_granted(),
            Event::GrantRefreshed { key, until: Some(until) } => ctx.grant_until(key, until, true),
            Event::GrantRefreshed { key, until: None } => ctx.end_granted_one(key),
            Event::Begun | Event::HeartbeatDue | Event::Ready { .. } => {}
        }
    }

    fn instructed(&self, ctx: &mut Ctx<'_>, what: &What) -> Instructed {
        ctx.raw_instructed(what)
    }

    fn hand_on(&self, core: &Core, open: &Open, now: Tick, out: &mut Writer) -> Result<(), Stays> {
        open.state::<Commands>().map_or(Ok(()), |commands| commands.hand_on(core, now, out))
    }

    fn understands(&self, own: &[u8], _apps: &Apps) -> bool {
        Commands::parse(own).is_ok()
    }

    fn go_on(&self, core: &mut Core, open: &mut Open, now: Tick, own: &[u8]) {
        if let Ok(granted) = Commands::parse(own)
            && !granted.is_empty()
        {
            open.state_or_default::<Commands>().go_on(core, now, &granted);
        }
    }

    fn due(&self, open: &Open) -> Option<Tick> {
        open.state::<Commands>().and_then(Commands::due)
    }
}

/// Positions to recover from, one place for each channel.
pub(crate) fn since(query: &Query, channels: usize) -> Result<Vec<Option<Position>>, Refusal> {
    let position = |since: &Since| -> Result<_, Refusal> {
        Ok(Position { epoch: since.epoch.parse()?, offset: since.offset })
    };
    let places = query.since.iter().map(|place| place.as_ref().map(position).transpose());
    let mut positions = places.collect::<Result<Vec<_>, _>>()?;
    positions.resize(channels, None);
    Ok(positions)
}
