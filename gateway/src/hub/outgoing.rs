//! A publication on its way out of this node, and the forms it takes on the wire. Each form is made at most once
//! per node, when the first subscriber needs it, and shared by reference between shards and queues.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use bytes::Bytes;
use tidegate_backplane::{
    CensusEvent, CensusKind, Channel, Gap, GapReason, Payload, Position, Publication, Sender,
};
use tidegate_wire::{
    deflate::Deflater,
    frame::{self, Opcode},
    pusher::{Access, ChannelKind, server, watched_user},
    raw::{self, Data, Envelope},
    sse,
};

use crate::{event, node::interest::Load};

/// A form on the wire. Connections of one channel and one encoding make a lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub(crate) enum Encoding {
    /// WebSocket, payload verbatim.
    Raw,
    /// The same, compressed where that pays.
    RawDeflated,
    /// WebSocket, JSON envelope in a text frame.
    Envelope,
    EnvelopeDeflated,
    /// Event stream, payload as data.
    Sse,
    /// Event stream, JSON envelope as data.
    SseEnvelope,
    /// Event streams of several channels: as `Sse`, but the id carries a position for each channel, so every
    /// connection gets bytes of its own.
    SseMany,
    SseManyEnvelope,
    /// WebSocket, an event of Pusher Channels.
    Pusher,
    PusherDeflated,
}

impl Encoding {
    pub(crate) const COUNT: usize = 10;

    /// Whether each connection gets bytes of its own.
    pub(crate) fn is_individual(self) -> bool {
        matches!(self, Self::SseMany | Self::SseManyEnvelope)
    }

    /// Whether the client can be told things between publications.
    pub(crate) fn carries_notices(self) -> bool {
        !matches!(self, Self::Raw | Self::RawDeflated)
    }

    /// Whether the client is told who is in the channel.
    pub(crate) fn tells_census(self) -> bool {
        self.is_pusher()
    }

    pub(crate) fn is_pusher(self) -> bool {
        matches!(self, Self::Pusher | Self::PusherDeflated)
    }

    pub(crate) fn is_sse(self) -> bool {
        matches!(self, Self::Sse | Self::SseEnvelope | Self::SseMany | Self::SseManyEnvelope)
    }

    /// The same without compression.
    pub(crate) fn plain(self) -> Self {
        match self {
            Self::RawDeflated => Self::Raw,
            Self::EnvelopeDeflated => Self::Envelope,
            Self::PusherDeflated => Self::Pusher,
            other => other,
        }
    }
}

/// What is told to the subscribers of a channel.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Publication(Arc<Publication>),
    Gap(Gap),
    /// Who is in the channel has changed. Only clients that are told who is there are told of it.
    Census(Arc<CensusEvent>),
}

/// Content on its way to the subscribers of this node. While it lives it counts as load of its channel; it is
/// dropped when the last shard has fanned it out.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) channel: Channel,
    pub(crate) content: Content,
    pub(crate) accepted: Instant,
    encoded: [OnceLock<Bytes>; Encoding::COUNT],
    _load: Load,
}

/// Makes encodings; one per thread, so that its buffers are reused.
#[derive(Debug)]
pub(crate) struct Encoder {
    deflater: Deflater,
    scratch: Vec<u8>,
    deflated: Vec<u8>,
}

/// Below this, deflate's own few bytes and both sides' time are not worth what it saves.
const DEFLATE_BYTES_MIN: usize = 256;

impl Content {
    pub(crate) fn position(&self) -> Option<Position> {
        match self {
            Self::Publication(publication) => publication.position,
            Self::Gap(gap) => gap.top,
            Self::Census(_) => None,
        }
    }

    pub(crate) fn sender(&self) -> Option<&Sender> {
        match self {
            Self::Publication(publication) => publication.sender.as_deref(),
            Self::Gap(_) | Self::Census(_) => None,
        }
    }
}

impl Outgoing {
    pub(crate) fn new(channel: Channel, content: Content, load: Load) -> Self {
        Self { channel, content, accepted: Instant::now(), encoded: Default::default(), _load: load }
    }

    pub(crate) fn position(&self) -> Option<Position> {
        self.content.position()
    }

    pub(crate) fn sender(&self) -> Option<&Sender> {
        self.content.sender()
    }

    /// The bytes of a form that is the same for everyone. What a form cannot say is empty: a gap verbatim, and who is
    /// in a channel, but for clients of Pusher.
    pub(crate) fn encoded(&self, encoding: Encoding, encoder: &mut Encoder) -> Bytes {
        debug_assert!(!encoding.is_individual());
        self.encoded[encoding as usize]
            .get_or_init(|| match encoding.plain() {
                plain if plain == encoding => encoder.encode(&self.channel, &self.content, encoding),
                plain => {
                    let uncompressed = self.encoded(plain, encoder);
                    encoder.compress(&self.channel, &self.content, encoding).unwrap_or(uncompressed)
                }
            })
            .clone()
    }
}

impl Encoder {
    pub(crate) fn new() -> Self {
        // Level 3 costs about half of the default 6 and saves nearly the same on JSON.
        Self { deflater: Deflater::new(3), scratch: Vec::new(), deflated: Vec::new() }
    }

    /// One form of one content.
    pub(crate) fn encode(&mut self, channel: &Channel, content: &Content, encoding: Encoding) -> Bytes {
        let mut out = Vec::new();
        if encoding.is_sse() {
            let id = content.position().map(|position| position.to_string());
            self.encode_sse(channel, content, encoding, id.as_deref(), &mut out);
        } else if let Some((opcode, payload)) = self.message(channel, content, encoding) {
            out.reserve_exact(frame::encoded_len(payload.len()));
            frame::encode(opcode, payload, &mut out);
        }
        Bytes::from(out)
    }

    /// The event of an event stream, with the id it is given.
    pub(crate) fn encode_sse(
        &mut self,
        channel: &Channel,
        content: &Content,
        encoding: Encoding,
        id: Option<&str>,
        out: &mut Vec<u8>,
    ) {
        if matches!(content, Content::Census(_)) {
            return;
        }
        let Content::Publication(publication) = content else {
            self.scratch.clear();
            encode_content(channel, content, &mut self.scratch);
            return sse::encode_event(id, Some(event::GAP), utf8(&self.scratch), out);
        };
        let event = publication.event.as_deref();
        match (&publication.payload, encoding) {
            (_, Encoding::SseEnvelope | Encoding::SseManyEnvelope) => {
                self.scratch.clear();
                encode_content(channel, content, &mut self.scratch);
                sse::encode_event(id, event, utf8(&self.scratch), out);
            }
            (Payload::Text(text), _) => sse::encode_event(id, event, text, out),
            // An event stream is text: binary payloads come as base64, under a name of their own.
            (Payload::Binary(bytes), _) => {
                use base64::Engine as _;
                let text = base64::engine::general_purpose::STANDARD.encode(bytes);
                sse::encode_event(id, event.or(Some(event::BINARY)), &text, out);
            }
        }
    }

    fn compress(&mut self, channel: &Channel, content: &Content, encoding: Encoding) -> Option<Bytes> {
        let mut deflated = std::mem::take(&mut self.deflated);
        deflated.clear();
        let compressed = self.message_compressed(channel, content, encoding, &mut deflated);
        self.deflated = deflated;
        compressed
    }

    fn message_compressed(
        &mut self,
        channel: &Channel,
        content: &Content,
        encoding: Encoding,
        deflated: &mut Vec<u8>,
    ) -> Option<Bytes> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let message = message(channel, content, encoding.plain(), &mut scratch);
        let compressed = message.filter(|(_, payload)| payload.len() >= DEFLATE_BYTES_MIN).and_then(
            |(opcode, payload)| {
                self.deflater.compress(payload, deflated);
                (deflated.len() < payload.len()).then(|| {
                    let mut out = Vec::with_capacity(frame::encoded_len(deflated.len()));
                    frame::encode_compressed(opcode, deflated, &mut out);
                    Bytes::from(out)
                })
            },
        );
        self.scratch = scratch;
        compressed
    }

    fn message<'a>(
        &'a mut self,
        channel: &Channel,
        content: &'a Content,
        encoding: Encoding,
    ) -> Option<(Opcode, &'a [u8])> {
        message(channel, content, encoding, &mut self.scratch)
    }
}

/// The WebSocket message of a content; `None` when the encoding cannot say it.
fn message<'a>(
    channel: &Channel,
    content: &'a Content,
    encoding: Encoding,
    scratch: &'a mut Vec<u8>,
) -> Option<(Opcode, &'a [u8])> {
    match (encoding, content) {
        (Encoding::Pusher, _) => {
            scratch.clear();
            encode_pusher(channel, content, scratch);
            return (!scratch.is_empty()).then_some((Opcode::Text, scratch));
        }
        (_, Content::Census(_)) => return None,
        (Encoding::Envelope, _) => {
            scratch.clear();
            encode_content(channel, content, scratch);
            return Some((Opcode::Text, scratch));
        }
        _ => {}
    }
    match content {
        Content::Gap(_) | Content::Census(_) => None,
        Content::Publication(publication) => Some(match &publication.payload {
            Payload::Text(text) => (Opcode::Text, text.as_bytes()),
            Payload::Binary(bytes) => (Opcode::Binary, bytes),
        }),
    }
}

/// What clients of Pusher Channels are told, if anything.
fn encode_pusher(channel: &Channel, content: &Content, out: &mut Vec<u8>) {
    let name = channel.name();
    match content {
        Content::Publication(publication) => {
            let base64;
            let (data, unnamed) = match &publication.payload {
                Payload::Text(text) => (&**text, server::EVENT_UNNAMED),
                Payload::Binary(bytes) => {
                    use base64::Engine as _;
                    base64 = base64::engine::general_purpose::STANDARD.encode(bytes);
                    (&*base64, server::EVENT_BINARY)
                }
            };
            let event = publication.event.as_deref().unwrap_or(unnamed);
            let tells_user = ChannelKind::of(name).access == Access::Presence;
            let sender = content.sender().filter(|_| tells_user);
            let user_id = sender.and_then(|sender| sender.user.as_deref());
            server::event(&server::Event { channel: name, event, data, user_id }, out);
        }
        Content::Gap(gap) => {
            let text = format!("events of this channel were missed: {}", gap_reason(gap.reason));
            server::error(None, &text, Some(name), out);
        }
        Content::Census(event) => encode_census(name, &event.kind, out),
    }
}

/// Whoever subscribes to `#watch-USER` is told of that user; the others are told of who is in their channel.
fn encode_census(name: &str, kind: &CensusKind, out: &mut Vec<u8>) {
    let one = std::iter::once::<&str>;
    match (watched_user(name), kind) {
        (Some(user), CensusKind::Joined(_)) => server::watchlist(one(user), std::iter::empty(), out),
        (Some(user), CensusKind::Left { .. }) => server::watchlist(std::iter::empty(), one(user), out),
        (Some(_), CensusKind::Count { .. }) => {}
        (None, CensusKind::Joined(user)) => server::member_added(name, &user.id, user.info.as_deref(), out),
        (None, CensusKind::Left { user }) => server::member_removed(name, user, out),
        (None, CensusKind::Count { subscriptions }) => server::subscription_count(name, *subscriptions, out),
    }
}

/// The JSON of an envelope or a gap notice.
fn encode_content(channel: &Channel, content: &Content, out: &mut Vec<u8>) {
    let epoch = content.position().map(|position| position.epoch.to_string());
    let position = epoch.as_deref().zip(content.position().map(|position| position.offset));
    match content {
        Content::Census(_) => {}
        Content::Gap(gap) => raw::encode_gap(channel.name(), gap_reason(gap.reason), position, out),
        Content::Publication(publication) => {
            let data = match &publication.payload {
                Payload::Text(text) => Data::Text(text),
                Payload::Binary(bytes) => Data::Binary(bytes),
            };
            let event = publication.event.as_deref();
            raw::encode_envelope(&Envelope { channel: channel.name(), position, event, data }, out);
        }
    }
}

/// The word for a gap's reason in notices and close frames.
pub(crate) fn gap_reason(reason: GapReason) -> &'static str {
    match reason {
        GapReason::Reconnect => "reconnect",
        GapReason::Overflow => "overflow",
        GapReason::Hole => "hole",
        GapReason::Unrecoverable => "unrecoverable",
    }
}

/// What the encoders of JSON write is text.
fn utf8(json: &[u8]) -> &str {
    simdutf8::basic::from_utf8(json).expect("JSON")
}

#[cfg(test)]
mod tests {
    use tidegate_backplane::{Text, User};

    use super::*;

    #[track_caller]
    fn check(channel: &str, content: Content, expect: &str) {
        let channel = Channel::in_app("2", channel).expect("a channel");
        let frame = Encoder::new().encode(&channel, &content, Encoding::Pusher);
        // The header of a frame is 2 bytes, or 4 from 126 on.
        let header = if frame.get(1) == Some(&126) { 4 } else { 2.min(frame.len()) };
        assert_eq!(utf8(&frame[header..]), expect);
    }

    fn publication(payload: Payload, event: Option<&str>, user: Option<&str>) -> Content {
        let sender = Box::new(Sender { connection: Some("1.2".into()), user: user.map(Box::from) });
        let event = event.map(Box::from);
        Content::Publication(Arc::new(Publication { position: None, event, payload, sender: Some(sender) }))
    }

    #[test]
    fn publications_as_clients_of_pusher_are_told_them() {
        let text = || Payload::Text(Text::from_static("{\"a\":1}"));
        let binary = || Payload::Binary(Bytes::from_static(&[0, 255]));
        let data = r#""data":"{\"a\":1}""#;
        check(
            "a",
            publication(text(), None, None),
            &format!(r#"{{"event":"message","channel":"a",{data}}}"#),
        );
        check("a", publication(text(), Some("e"), None), &format!(r#"{{"event":"e","channel":"a",{data}}}"#));
        check("a", publication(binary(), None, None), r#"{"event":"binary","channel":"a","data":"AP8="}"#);
        check("a", publication(binary(), Some("e"), None), r#"{"event":"e","channel":"a","data":"AP8="}"#);
        // Only presence channels tell users.
        let told = format!(r#"{{"event":"e","channel":"presence-a",{data},"user_id":"u"}}"#);
        check("presence-a", publication(text(), Some("e"), Some("u")), &told);
        let told = format!(r#"{{"event":"e","channel":"private-a",{data}}}"#);
        check("private-a", publication(text(), Some("e"), Some("u")), &told);
    }

    #[test]
    fn gaps_and_changes_as_clients_of_pusher_are_told_them() {
        let gap = Gap { reason: GapReason::Hole, top: None };
        let told = r#"{"event":"pusher:error","channel":"a","data":{"code":null,"message":"events of this channel were missed: hole"}}"#;
        check("a", Content::Gap(gap), told);
        let census = |kind| Content::Census(Arc::new(CensusEvent { sequence: 1, kind }));
        let user = User { id: "u".into(), info: Some("[1]".into()) };
        let joined = || census(CensusKind::Joined(user.clone()));
        let left = || census(CensusKind::Left { user: "u".into() });
        let count = || census(CensusKind::Count { subscriptions: 7 });
        let told = r#"{"event":"pusher_internal:member_added","channel":"presence-a","data":"{\"user_id\":\"u\",\"user_info\":[1]}"}"#;
        check("presence-a", joined(), told);
        let told = r#"{"event":"pusher_internal:member_removed","channel":"presence-a","data":"{\"user_id\":\"u\"}"}"#;
        check("presence-a", left(), told);
        let told = r#"{"event":"pusher_internal:subscription_count","channel":"a","data":"{\"subscription_count\":7}"}"#;
        check("a", count(), told);
        let status = |status: &str| {
            format!(
                r#"{{"event":"pusher_internal:watchlist_events","data":"{{\"events\":[{{\"name\":\"{status}\",\"user_ids\":[\"u\"]}}]}}"}}"#
            )
        };
        check("#watch-u", joined(), &status("online"));
        check("#watch-u", left(), &status("offline"));
        check("#watch-u", count(), "");
    }

    #[test]
    fn others_are_not_told_who_is_there() {
        let channel = Channel::new("a").expect("a channel");
        let content = Content::Census(Arc::new(CensusEvent {
            sequence: 1,
            kind: CensusKind::Left { user: "u".into() },
        }));
        for encoding in [Encoding::Raw, Encoding::Envelope, Encoding::Sse, Encoding::SseEnvelope] {
            assert_eq!(Encoder::new().encode(&channel, &content, encoding), Bytes::new(), "{encoding:?}");
        }
    }
}
