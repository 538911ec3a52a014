//! How raw clients are told what happens in a channel: the payload as it is, or a JSON envelope.

use tidegate_backplane::{Channel, Payload};
use tidegate_wire::{
    frame::Opcode,
    raw::{self, Data, Envelope},
};

use crate::hub::{
    form::{Form, FormId, Said},
    outgoing::{Content, gap_reason},
};

pub(crate) const VERBATIM: FormId = FormId::new(0);
pub(crate) const ENVELOPED: FormId = FormId::new(1);

/// The payload of a publication, and nothing else.
#[derive(Debug)]
pub(crate) struct Verbatim;

/// A JSON object with the channel, the position, the event's name and the payload.
#[derive(Debug)]
pub(crate) struct Enveloped;

impl Form for Verbatim {
    fn id(&self) -> FormId {
        VERBATIM
    }

    fn say<'a>(&self, _: &Channel, content: &'a Content, _: &'a mut Vec<u8>) -> Option<Said<'a>> {
        let Content::Publication(publication) = content else { return None };
        Some(match &publication.payload {
            Payload::Text(text) => Said::Message(Opcode::Text, text.as_bytes()),
            Payload::Binary(bytes) => Said::Message(Opcode::Binary, bytes),
        })
    }

    fn says_gaps(&self) -> bool {
        false
    }
}

impl Form for Enveloped {
    fn id(&self) -> FormId {
        ENVELOPED
    }

    fn say<'a>(&self, channel: &Channel, content: &'a Content, scratch: &'a mut Vec<u8>) -> Option<Said<'a>> {
        put_json(channel, content, scratch);
        (!scratch.is_empty()).then_some(Said::Message(Opcode::Text, scratch))
    }
}

/// The JSON of an envelope or a gap notice. Who is in a channel is not told.
pub(in crate::protocols) fn put_json(channel: &Channel, content: &Content, out: &mut Vec<u8>) {
    let epoch = content.position().map(|position| position.epoch.to_string());
    let position = epoch.as_deref().zip(content.position().map(|position| position.offset));
    match content {
        Content::Presence(_) => {}
        Content::Gap(gap) => raw::encode_gap(channel.name(), gap_reason(gap.reason), position, out),
        Content::Publication(publication) => {
            let data = match &publication.payload {
                Payload::Text(text) => Data::Text(text),
                Payload::Binary(bytes) => Data::Binary(bytes),
            };
            let event = publication.event.as_deref();
            let user = publication.sender.as_deref().and_then(|sender| sender.user.as_deref());
            raw::encode_envelope(&Envelope { channel: channel.name(), position, event, user, data }, out);
        }
    }
}
