//! Raw WebSockets, `GET /ws`: publications verbatim, or in a JSON envelope.

mod commands;
pub(crate) mod echo;
pub(super) mod forms;
mod publishing;
mod subscribing;

use std::any::Any;

use tidegate_backplane::Position;
use tidegate_reactor::Tick;
use tidegate_wire::{
    frame::Opcode,
    head::Head,
    raw::{self, Query, QueryError, Since},
    upgrade::protocols,
};

use crate::{
    hub::form::FormId,
    session::{
        Ctx, Open,
        core::Core,
        leaving::Leave,
        opening::{Request, Stop},
        protocol::{Event, Protocol},
        refusal::Refusal,
    },
};
use commands::Commands;
use publishing::Refused;

/// The name of what is spoken here, for clients that name what they speak (RFC 6455 section 1.9). A client that names
/// others only is answered none, which browsers take for a refusal.
const SUBPROTOCOL: &str = "tidegate.v1";

/// [`Open::tag`] of a client that is told where it is in its channels, if it is enveloped: it named the subprotocol, or
/// asked with `positions=true`.
const TELLS_POSITIONS: u32 = 1;

/// What a client asked for that is told where it is in its channels.
#[derive(Debug)]
struct Asked {
    names_protocol: bool,
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

    fn accept(&self, core: &Core, head: &Head<'_>) -> Result<Request, Stop> {
        core.check_origin(head)?;
        let upgrade = core.upgrade(head)?;
        let query = Query::parse(head.query).map_err(Refusal::from)?;
        let (channels, claims) = core.authorised_channels(head, &query)?;
        let since = since(&query, channels.len())?;
        let envelope = query.envelope;
        if query.join_leave && !envelope {
            return Err(Refusal::from(QueryError::JoinLeave).into());
        }
        let join_leave = core.joins_of_url(&query, &channels)?;
        let offered = head.header_joined("sec-websocket-protocol");
        let names_protocol =
            offered.is_some_and(|offered| protocols(&offered).any(|name| name == SUBPROTOCOL));
        let asks = names_protocol || query.positions;
        let state = asks.then(|| Box::new(Asked { names_protocol }) as Box<dyn Any + Send>);
        Ok(Request { envelope, join_leave, channels, since, claims, state, ..Request::bare(Some(upgrade)) })
    }

    fn form(&self, request: &Request, compression: bool) -> FormId {
        let form = if request.envelope { forms::ENVELOPED } else { forms::VERBATIM };
        if compression && request.shares_deflate() { form.deflated() } else { form }
    }

    /// Verbatim clients have no words for it, and those that do not ask do not expect it: to one of them the first frame
    /// is a publication.
    fn tells_positions(&self, request: &Request) -> bool {
        request.envelope && request.state.is_some()
    }

    fn write_answer(&self, request: &Request, out: &mut Vec<u8>) {
        if let Some(upgrade) = &request.upgrade {
            let asked = request.state.as_ref().and_then(|state| state.downcast_ref::<Asked>());
            let names_protocol = asked.is_some_and(|asked| asked.names_protocol);
            upgrade.write_response(out, names_protocol.then_some(SUBPROTOCOL));
        }
    }

    fn on_text(&self, ctx: &mut Ctx<'_>, text: &str) {
        ctx.client_text(text);
    }

    fn on_binary(&self, ctx: &mut Ctx<'_>, bytes: &[u8]) {
        ctx.client_binary(bytes);
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
            Event::Opened { state } => {
                if let Some(open) = ctx.open_mut().filter(|_| state.is_some()) {
                    open.tag = TELLS_POSITIONS;
                }
            }
            Event::Due => ctx.end_granted(),
            Event::Begun | Event::HeartbeatDue => {}
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
