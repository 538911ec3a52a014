//! Raw WebSockets, `GET /ws`: publications verbatim, or in a JSON envelope.

pub(crate) mod echo;
pub(super) mod forms;
mod publishing;

use tidegate_backplane::Position;
use tidegate_wire::{
    frame::Opcode,
    head::Head,
    raw::{self, Query},
};

use crate::{
    hub::form::FormId,
    session::{
        Ctx,
        access::upgrade,
        core::Core,
        opening::{Request, Stop},
        protocol::{Event, Protocol},
        refusal::Refusal,
    },
};
use publishing::Refused;

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
        let upgrade = upgrade(head)?;
        let query = Query::parse(head.query).map_err(Refusal::from)?;
        let (channels, claims) = core.authorised_channels(head, &query)?;
        let since = since(&query, channels.len())?;
        let envelope = query.envelope;
        Ok(Request { envelope, channels, since, claims, ..Request::bare(Some(upgrade)) })
    }

    fn form(&self, request: &Request, compression: bool) -> FormId {
        let form = if request.envelope { forms::ENVELOPED } else { forms::VERBATIM };
        if compression && request.shares_deflate() { form.deflated() } else { form }
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
            Event::Opened { .. } | Event::HeartbeatDue => {}
        }
    }
}

/// Positions to recover from, one place for each channel.
pub(crate) fn since(query: &Query, channels: usize) -> Result<Vec<Option<Position>>, Refusal> {
    let mut positions = match &query.since {
        Some(since) => vec![Some(Position { epoch: since.epoch.parse()?, offset: since.offset })],
        None => Vec::new(),
    };
    positions.resize(channels, None);
    Ok(positions)
}
