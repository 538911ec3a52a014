//! Event streams (WHATWG HTML, section 9.2), `GET /sse`.

pub(super) mod forms;

use tidegate_backplane::{Epoch, Position};
use tidegate_reactor::Tick;
use tidegate_wire::{
    fields::Writer,
    frame::CloseCode,
    head::Head,
    raw::{self, Query},
    sse,
};

use super::raw::{forms::put_list, since};
use crate::{
    app::apps::Apps,
    event,
    hub::{ChannelKey, form::FormId},
    metrics::Instructed,
    node::{
        instruction::{Message, What},
        roster::List,
    },
    session::{
        Ctx, LastPosition, Open,
        asking::Said,
        core::Core,
        leaving::Leave,
        opening::{Request, Stop},
        protocol::{Event, Protocol, Stays, Transport},
        refusal::Refusal,
    },
};

/// Clients that are sent away by a drain are told to wait between 1 and 5 s, so that they spread.
const DRAIN_RETRY_MS: (u64, u64) = (1000, 4000);

#[derive(Debug)]
pub(crate) struct Sse;

impl Protocol for Sse {
    fn name(&self) -> &'static str {
        "sse"
    }

    fn serves(&self, method: &str, path: &str, _dev: bool) -> bool {
        method == "GET" && path == "/sse"
    }

    fn accept(&self, core: &Core, head: &Head<'_>, _body: &[u8], said: &Said) -> Result<Request, Stop> {
        core.check_origin(head)?;
        let query = Query::parse(head.query).map_err(Refusal::from)?;
        let (channels, claims) = core.authorised_channels(head, &query, said)?;
        if channels.is_empty() {
            return Err(Refusal::NoChannel.into());
        }
        // A browser sends its last id as a header when it reconnects, a client that cannot set headers as a parameter.
        let last_id = head.header("last-event-id").or(query.last_event_id.as_deref());
        let since = match last_id.filter(|id| !id.is_empty()) {
            Some(id) => {
                let mut positions = positions_of(id);
                positions.resize(channels.len(), None);
                positions
            }
            None => since(&query, channels.len())?,
        };
        let cross_origin = head.header("origin").map(Box::from);
        let envelope = query.envelope;
        let join_leave = core.joins_of_url(&query, &channels)?;
        Ok(Request { envelope, join_leave, channels, since, claims, cross_origin, ..Request::bare(None) })
    }

    fn form(&self, request: &Request, _compression: bool) -> FormId {
        match (request.envelope, request.channels.len() > 1) {
            (false, false) => forms::EVENT,
            (true, false) => forms::ENVELOPED,
            (false, true) => forms::EVENT_OF_MANY,
            (true, true) => forms::ENVELOPED_OF_MANY,
        }
    }

    fn transport(&self) -> Transport {
        Transport::Stream
    }

    fn tells_positions(&self, _request: &Request) -> bool {
        true
    }

    fn write_answer(&self, request: &Request, out: &mut Vec<u8>) {
        match &request.cross_origin {
            Some(origin) => {
                let headers = [("Access-Control-Allow-Origin", &**origin), ("Vary", "Origin")];
                sse::write_response_head(out, &headers);
            }
            None => sse::write_response_head(out, &[]),
        }
    }

    fn on_event(&self, ctx: &mut Ctx<'_>, event: Event<'_>) {
        match event {
            Event::Dropped { messages, channel } => {
                let mut notice = Vec::new();
                raw::encode_dropped(channel, messages, &mut notice);
                let text = String::from_utf8_lossy(&notice);
                ctx.write(|out| sse::encode_event(None, Some(event::DROPPED), &text, out));
            }
            Event::HeartbeatDue => ctx.write(|out| out.extend_from_slice(sse::COMMENT_HEARTBEAT)),
            Event::Subscribed { key, position, told, list, .. } => {
                subscribed(ctx, key, position, told.is_empty());
                if let Some(list) = list {
                    tell_list(ctx, key, list);
                }
            }
            Event::Begun => {
                let rare = ctx.open().and_then(|open| open.rare.as_ref());
                let places = rare.map_or(&[][..], |rare| &rare.places).iter().map(LastPosition::position);
                if let Some(id) = sse::join_id(places) {
                    ctx.write(|out| sse::encode_id(&id, out));
                }
            }
            Event::Refused { error, .. } => ctx.leave(Leave::unavailable(error)),
            Event::Missed { reason, .. } => ctx.leave(Leave::Gap(reason)),
            Event::Welcome(json) => {
                ctx.write(|out| sse::encode_event(None, Some(event::CONNECTED), json, out))
            }
            Event::Opened { .. }
            | Event::PublishFailed(_)
            | Event::Silent
            | Event::Due
            | Event::GrantRefreshed { .. }
            | Event::Ready { .. } => {}
        }
    }

    /// The channels of a stream are those of its URL: its ids name a place in each of them, in their order.
    fn instructed(&self, ctx: &mut Ctx<'_>, what: &What) -> Instructed {
        let What::Send(message) = what else { return ctx.instructed(what) };
        send(ctx, message);
        Instructed::Done
    }

    fn recovers(&self, _open: &Open) -> bool {
        true
    }

    fn hand_on(&self, _core: &Core, _open: &Open, _now: Tick, _out: &mut Writer) -> Result<(), Stays> {
        Ok(())
    }

    fn understands(&self, own: &[u8], _apps: &Apps) -> bool {
        own.is_empty()
    }

    fn close_code(&self, _why: &Leave) -> Option<CloseCode> {
        None
    }

    fn write_farewell(&self, why: &Leave, spread: u64, _form: FormId, out: &mut Vec<u8>) {
        match why {
            Leave::ComeBack(_) => {
                let (least, range) = DRAIN_RETRY_MS;
                // A multiplicative hash spreads neighbours over the whole range.
                sse::encode_retry(least + spread.wrapping_mul(2_654_435_761) % range, out);
            }
            _ => sse::encode_event(None, Some(event::DISCONNECT), &why.text(), out),
        }
    }
}

/// Stands for an id that is not ours: no channel ever has this position, so the client is told of a gap.
const FOREIGN: Position = Position { epoch: Epoch(0), offset: 0 };

/// The positions in an id, one place for each channel of the URL.
fn positions_of(id: &str) -> Vec<Option<Position>> {
    sse::split_id(id).map(|place| Some(place?.parse().unwrap_or(FOREIGN))).collect()
}

/// Tells where a channel stands when nothing else does: without an id that names it, what the channel publishes during a
/// reconnect would be skipped in silence.
fn subscribed(ctx: &mut Ctx<'_>, key: ChannelKey, position: Option<Position>, is_new: bool) {
    let Some(place) = ctx.core.place(key, position) else { return };
    let Some(open) = ctx.open_mut() else { return };
    if matches!(open.form, forms::EVENT_OF_MANY | forms::ENVELOPED_OF_MANY) {
        open.rare_mut().advance(key, Some(place));
    } else if is_new {
        ctx.write(|out| sse::encode_id(&place.to_string(), out));
    }
}

/// Tells something that is no publication: an event without an id, so that the client's place stays what it is.
fn send(ctx: &mut Ctx<'_>, message: &Message) {
    let is_enveloped = ctx
        .open()
        .is_some_and(|open| matches!(open.form.plain(), forms::ENVELOPED | forms::ENVELOPED_OF_MANY));
    if is_enveloped {
        let mut notice = Vec::new();
        raw::encode_message(message.event.as_deref(), &message.data, &mut notice);
        let text = String::from_utf8_lossy(&notice);
        return ctx.write(|out| sse::encode_event(None, None, &text, out));
    }
    ctx.write(|out| sse::encode_event(None, message.event.as_deref(), &message.data, out));
}

/// Tells who is in a channel, to a stream that asked for it; one of several channels with its id, which may be news.
fn tell_list(ctx: &mut Ctx<'_>, key: ChannelKey, list: &List) {
    let mut notice = Vec::new();
    put_list(ctx.core.hub.channel(key), list, &mut notice);
    let rare = ctx.open_mut().and_then(|open| open.rare.as_mut());
    let id = rare.and_then(|rare| rare.advance(key, None));
    let text = String::from_utf8_lossy(&notice);
    ctx.answer_large(|out| sse::encode_event(id.as_deref(), Some(event::MEMBERS), &text, out));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_as_they_went() {
        let position = |epoch, offset| Some(Position { epoch: Epoch(epoch), offset });
        for places in [
            vec![position(723, 5)],
            vec![None, position(1, 0)],
            vec![position(u64::MAX, u64::MAX), None, position(36, 7)],
        ] {
            let id = sse::join_id(places.iter().copied()).expect("a position");
            assert_eq!(positions_of(&id), places, "{id}");
        }
        assert_eq!(positions_of("42"), [Some(FOREIGN)]);
        assert_eq!(positions_of("k3:5,x"), ["k3:5".parse().ok(), Some(FOREIGN)]);
    }
}
