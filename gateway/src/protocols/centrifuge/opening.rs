//! The request of a client, by whichever way it comes: what it may have, what carries what it is told, and its first
//! message, where a request has room for it.

use std::borrow::Cow;

use tidegate_wire::{head::Head, http_answer, sse, upgrade::protocols};

use super::{Way, forms::Carrier};
use crate::session::{
    core::Core,
    opening::{Request, Stop},
};

const SUBPROTOCOL_PROTOBUF: &str = "centrifuge-protobuf";
const SUBPROTOCOL_JSON: &str = "centrifuge-json";

/// What a request asks for.
#[derive(Debug)]
pub(super) struct Asks {
    pub(super) carrier: Carrier,
    /// The subprotocol that it offers for that, if it does.
    subprotocol: Option<&'static str>,
    /// What came with the request.
    pub(super) first: Vec<u8>,
}

pub(super) fn asks(request: &Request) -> Option<&Asks> {
    request.state.as_ref()?.downcast_ref()
}

pub(super) fn accept(way: Way, core: &Core, head: &Head<'_>, body: &[u8]) -> Result<Request, Stop> {
    core.check_origin(head)?;
    let upgrade = match way {
        Way::WebSocket | Way::UniWebSocket => Some(core.upgrade(head)?),
        _ => None,
    };
    let cross_origin = head.header("origin").map(Box::from);
    let state = Some(Box::new(Asks::of(way, head, body)) as _);
    Ok(Request { cross_origin, state, ..Request::bare(upgrade) })
}

pub(super) fn write_answer(request: &Request, out: &mut Vec<u8>) {
    let Some(asks) = asks(request) else { return };
    if let Some(upgrade) = &request.upgrade {
        return upgrade.write_response(out, asks.subprotocol);
    }
    let media_type = match asks.carrier {
        Carrier::Events | Carrier::UniEvents => sse::MEDIA_TYPE,
        Carrier::Messages => "application/octet-stream",
        _ => "application/json",
    };
    let origin = request.cross_origin.as_deref();
    let cross = origin.map(|origin| [("Access-Control-Allow-Origin", origin), ("Vary", "Origin")]);
    http_answer::write_stream_head(media_type, cross.as_ref().map_or(&[], |cross| cross), out);
    if matches!(asks.carrier, Carrier::Events | Carrier::UniEvents) {
        // Browsers say that an event stream is open when something has come.
        out.extend_from_slice(sse::COMMENT_HEARTBEAT);
    }
}

impl Asks {
    fn of(way: Way, head: &Head<'_>, body: &[u8]) -> Self {
        let of_carrier = |carrier| Self { carrier, subprotocol: None, first: body.to_vec() };
        match way {
            Way::WebSocket => Self::of_web_socket(head),
            Way::UniWebSocket => of_carrier(Carrier::UniFrames),
            Way::HttpStream if head.header("content-type") == Some("application/octet-stream") => {
                of_carrier(Carrier::Messages)
            }
            Way::HttpStream => of_carrier(Carrier::Lines),
            Way::UniHttpStream => of_carrier(Carrier::UniLines),
            Way::EventSource => Self { first: first(head, body), ..of_carrier(Carrier::Events) },
            Way::UniEventSource => Self { first: first(head, body), ..of_carrier(Carrier::UniEvents) },
        }
    }

    /// Protobuf where the subprotocol says so, or the address, for clients that cannot name one.
    fn of_web_socket(head: &Head<'_>) -> Self {
        let offered = head.header_joined("sec-websocket-protocol");
        let offers = |name| offered.as_deref().is_some_and(|it| protocols(it).any(|offer| offer == name));
        let says =
            |query: &str| query.split('&').any(|it| matches!(it, "cf_protocol=protobuf" | "format=protobuf"));
        let (carrier, subprotocol) = match offers(SUBPROTOCOL_PROTOBUF) {
            true => (Carrier::Protobuf, Some(SUBPROTOCOL_PROTOBUF)),
            false if head.query.is_some_and(says) => (Carrier::Protobuf, None),
            false => (Carrier::Json, offers(SUBPROTOCOL_JSON).then_some(SUBPROTOCOL_JSON)),
        };
        Self { carrier, subprotocol, first: Vec::new() }
    }
}

/// The first message of an event stream: a browser can put it nowhere but into the address.
fn first(head: &Head<'_>, body: &[u8]) -> Vec<u8> {
    if !body.is_empty() {
        return body.to_vec();
    }
    let pairs = form_urlencoded::parse(head.query.unwrap_or_default().as_bytes());
    let mut named = pairs.filter(|(name, _)| matches!(&**name, "cf_connect" | "connect"));
    named.next().map(|(_, value): (_, Cow<'_, str>)| value.into_owned().into_bytes()).unwrap_or_default()
}
