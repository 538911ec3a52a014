//! How event streams are told what happens in a channel.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tidegate_backplane::{Channel, Payload, PresenceKind};
use tidegate_wire::sse;

use crate::{
    event,
    hub::{
        content::Content,
        form::{Form, FormId, Said},
    },
    protocols::raw::forms::put_json,
};

pub(crate) const EVENT: FormId = FormId::new(2);
pub(crate) const ENVELOPED: FormId = FormId::new(3);
pub(crate) const EVENT_OF_MANY: FormId = FormId::new(4);
pub(crate) const ENVELOPED_OF_MANY: FormId = FormId::new(5);
pub(crate) const EVENT_WITH_PRESENCE: FormId = FormId::new(8);
pub(crate) const ENVELOPED_WITH_PRESENCE: FormId = FormId::new(9);
pub(crate) const EVENT_OF_MANY_WITH_PRESENCE: FormId = FormId::new(10);
pub(crate) const ENVELOPED_OF_MANY_WITH_PRESENCE: FormId = FormId::new(11);

/// An event with the payload, or an envelope, as its data.
#[derive(Debug)]
pub(crate) struct StreamEvent {
    pub(crate) id: FormId,
    /// The same for those who are told who joins and leaves.
    pub(crate) with_presence: FormId,
    pub(crate) is_enveloped: bool,
    /// Of a stream of several channels: its id has the position of each, so it differs from stream to stream, and goes
    /// before what is said here.
    pub(crate) is_of_many: bool,
}

impl Form for StreamEvent {
    fn id(&self) -> FormId {
        self.id
    }

    fn say<'a>(&self, channel: &Channel, content: &'a Content, scratch: &'a mut Vec<u8>) -> Option<Said<'a>> {
        let id = content.position().filter(|_| !self.is_of_many).map(|position| position.to_string());
        let id = id.as_deref();
        match content {
            Content::Presence(event) if self.says_presence() => {
                let name = match event.kind {
                    PresenceKind::Joined { .. } => event::JOIN,
                    PresenceKind::Left { .. } => event::LEAVE,
                    PresenceKind::Count { .. } => return None,
                };
                sse::encode_event(None, Some(name), &json(channel, content), scratch);
            }
            Content::Presence(_) => return None,
            Content::Gap(_) => sse::encode_event(id, Some(event::GAP), &json(channel, content), scratch),
            Content::Publication(publication) => {
                let name = publication.event.as_deref();
                match &publication.payload {
                    _ if self.is_enveloped => sse::encode_event(id, name, &json(channel, content), scratch),
                    Payload::Text(text) => sse::encode_event(id, name, text, scratch),
                    // An event stream is text: binary payloads come as base64, under a name of their own.
                    Payload::Binary(bytes) => {
                        let name = name.or(Some(event::BINARY));
                        sse::encode_event(id, name, &STANDARD.encode(bytes), scratch);
                    }
                }
            }
        }
        Some(Said::Bytes(scratch))
    }

    fn says_presence(&self) -> bool {
        self.id == self.with_presence
    }

    fn with_presence(&self) -> FormId {
        self.with_presence
    }

    fn has_heads(&self) -> bool {
        self.is_of_many
    }
}

fn json(channel: &Channel, content: &Content) -> String {
    let mut json = Vec::new();
    put_json(channel, content, &mut json);
    String::from_utf8(json).expect("JSON of texts is text")
}
