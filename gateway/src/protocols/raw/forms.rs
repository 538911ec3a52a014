//! How raw clients are told what happens in a channel: the payload as it is, or a JSON envelope.

use tidegate_backplane::{Channel, Payload, PresenceKind};
use tidegate_wire::{
    frame::Opcode,
    raw::{self, Data, Envelope, command},
};

use crate::{
    hub::{
        content::{Content, gap_reason},
        form::{Form, FormId, Said},
    },
    node::{
        member_info,
        roster::{List, ListForm},
    },
};

pub(crate) const VERBATIM: FormId = FormId::new(0);
pub(crate) const ENVELOPED: FormId = FormId::new(1);
pub(crate) const ENVELOPED_WITH_PRESENCE: FormId = FormId::new(7);

/// How a list is said here: members of a JSON object.
const MEMBERS: ListForm = ListForm::new(1);

/// Members are named up to so many bytes, as a page of history has: some 1,000 of 60 bytes without info.
const MEMBERS_BYTES_MAX: usize = 64 * 1024;

/// The payload of a publication, and nothing else.
#[derive(Debug)]
pub(crate) struct Verbatim;

/// A JSON object with the channel, the position, the event's name and the payload.
#[derive(Debug)]
pub(crate) struct Enveloped {
    pub(crate) tells_presence: bool,
}

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
        if self.tells_presence { ENVELOPED_WITH_PRESENCE } else { ENVELOPED }
    }

    fn says_presence(&self) -> bool {
        self.tells_presence
    }

    fn with_presence(&self) -> FormId {
        ENVELOPED_WITH_PRESENCE
    }

    fn say<'a>(&self, channel: &Channel, content: &'a Content, scratch: &'a mut Vec<u8>) -> Option<Said<'a>> {
        if self.tells_presence || !matches!(content, Content::Presence(_)) {
            put_json(channel, content, scratch);
        }
        (!scratch.is_empty()).then_some(Said::Message(Opcode::Text, scratch))
    }
}

/// The members `members` and `count` of a JSON object.
pub(in crate::protocols) fn members(list: &List) -> &[u8] {
    list.said(MEMBERS, |roll, out| {
        let members = roll.members.iter().map(|member| raw::Member {
            connection: &member.connection,
            user: &member.user,
            info: member_info::of_connection(member),
        });
        raw::push_members(members, roll.members.len(), MEMBERS_BYTES_MAX, out);
    })
}

/// The notice of who is in a channel.
pub(in crate::protocols) fn put_list(channel: &Channel, list: &List, out: &mut Vec<u8>) {
    out.push(b'{');
    command::push_channel(channel.name(), out);
    out.push(b',');
    out.extend_from_slice(members(list));
    out.push(b'}');
}

/// The JSON of an envelope or a notice; nothing where it says nothing here.
pub(in crate::protocols) fn put_json(channel: &Channel, content: &Content, out: &mut Vec<u8>) {
    let epoch = content.position().map(|position| position.epoch.to_string());
    let position = epoch.as_deref().zip(content.position().map(|position| position.offset));
    match content {
        Content::Presence(event) => match &event.kind {
            PresenceKind::Joined { member, connections } => {
                let (connection, user) = (&*member.connection, &*member.user);
                let member = raw::Member { connection, user, info: member_info::of_connection(member) };
                raw::encode_join(channel.name(), &member, *connections, out);
            }
            PresenceKind::Left { member, connections } => {
                raw::encode_leave(channel.name(), &member.connection, &member.user, *connections, out);
            }
            PresenceKind::Count { .. } => {}
        },
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
