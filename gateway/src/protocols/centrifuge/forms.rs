//! How clients of Centrifugo's protocol are told what happens in a channel. A gap is not said to all of them in the same
//! bytes: each subscribes again, from where it is.

use tidegate_backplane::{Channel, Payload, Publication};
use tidegate_wire::{
    centrifuge::{
        Encoding,
        push::{self, Data, Published},
    },
    frame::Opcode,
};

use crate::hub::{
    content::Content,
    form::{Form, FormId, Said},
};

pub(crate) const JSON: FormId = FormId::new(12);
pub(crate) const PROTOBUF: FormId = FormId::new(13);

/// A push in one of the two encodings.
#[derive(Debug)]
pub(crate) struct Push {
    pub(crate) id: FormId,
}

impl Form for Push {
    fn id(&self) -> FormId {
        self.id
    }

    fn say<'a>(&self, channel: &Channel, content: &'a Content, scratch: &'a mut Vec<u8>) -> Option<Said<'a>> {
        let Content::Publication(publication) = content else { return None };
        let encoding = encoding(self.id);
        with_published(publication, |published| {
            push::publication(channel.name(), published, encoding, scratch)
        });
        Some(Said::Message(opcode(encoding), scratch))
    }

    fn says_gaps(&self) -> bool {
        false
    }
}

/// The encoding of a connection with this form.
pub(super) fn encoding(form: FormId) -> Encoding {
    if form.plain() == PROTOBUF { Encoding::Protobuf } else { Encoding::Json }
}

pub(super) fn opcode(encoding: Encoding) -> Opcode {
    match encoding {
        Encoding::Json => Opcode::Text,
        Encoding::Protobuf => Opcode::Binary,
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
