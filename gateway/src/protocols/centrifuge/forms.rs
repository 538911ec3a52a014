//! How clients of Centrifugo's protocol are told what happens in a channel. A gap is not said to all of them in the same
//! bytes: each subscribes again, from where it is.

use tidegate_backplane::{Channel, Payload, PresenceKind, Publication};
use tidegate_wire::{
    centrifuge::{
        Encoding,
        message::ClientInfo,
        push::{self, Data, Published},
    },
    frame::Opcode,
};

use super::reading::info;
use crate::hub::{
    content::Content,
    form::{Form, FormId, Said},
};

pub(crate) const JSON: FormId = FormId::new(12);
pub(crate) const PROTOBUF: FormId = FormId::new(13);
pub(crate) const JSON_WITH_PRESENCE: FormId = FormId::new(14);
pub(crate) const PROTOBUF_WITH_PRESENCE: FormId = FormId::new(15);

/// A push in one of the two encodings.
#[derive(Debug)]
pub(crate) struct Push {
    pub(crate) id: FormId,
    pub(crate) with_presence: FormId,
}

impl Form for Push {
    fn id(&self) -> FormId {
        self.id
    }

    fn say<'a>(&self, channel: &Channel, content: &'a Content, scratch: &'a mut Vec<u8>) -> Option<Said<'a>> {
        let encoding = encoding(self.id);
        match content {
            Content::Publication(publication) => with_published(publication, |published| {
                push::publication(channel.name(), published, encoding, scratch);
            }),
            Content::Presence(event) if self.says_presence() => {
                push_presence(channel, &event.kind, encoding, scratch);
            }
            Content::Presence(_) | Content::Gap(_) => {}
        }
        (!scratch.is_empty()).then_some(Said::Message(opcode(encoding), scratch))
    }

    fn says_gaps(&self) -> bool {
        false
    }

    fn says_presence(&self) -> bool {
        self.id == self.with_presence
    }

    fn with_presence(&self) -> FormId {
        self.with_presence
    }
}

/// The encoding of a connection with this form.
pub(super) fn encoding(form: FormId) -> Encoding {
    match form.plain() {
        PROTOBUF | PROTOBUF_WITH_PRESENCE => Encoding::Protobuf,
        _ => Encoding::Json,
    }
}

pub(super) fn opcode(encoding: Encoding) -> Opcode {
    match encoding {
        Encoding::Json => Opcode::Text,
        Encoding::Protobuf => Opcode::Binary,
    }
}

/// Who leaves is named without its info: nobody keeps that.
fn push_presence(channel: &Channel, kind: &PresenceKind, encoding: Encoding, out: &mut Vec<u8>) {
    match kind {
        PresenceKind::Joined { member, .. } => push::join(channel.name(), info(member).1, encoding, out),
        PresenceKind::Left { connection, user, .. } => {
            let (user, client) = (String::from(&**user), String::from(&**connection));
            let who = ClientInfo { user, client, ..ClientInfo::default() };
            push::leave(channel.name(), who, encoding, out);
        }
        PresenceKind::Count { .. } => {}
    }
}

/// A publication in the protocol's words.
pub(super) fn with_published<T>(publication: &Publication, then: impl FnOnce(&Published<'_>) -> T) -> T {
    let data = match &publication.payload {
        Payload::Text(text) => Data::Text(text),
        Payload::Binary(bytes) => Data::Binary(bytes),
    };
    let offset = publication.position.map_or(0, |position| position.offset);
    // Who subscribed before there was an epoch learns it with the first publication.
    let first = publication.position.filter(|position| position.offset == 1);
    let epoch = first.map(|position| position.epoch.to_string());
    let user = publication.sender.as_deref().and_then(|sender| sender.user.as_deref());
    let event = publication.event.as_deref();
    then(&Published { data, user, offset, epoch: epoch.as_deref(), event })
}
