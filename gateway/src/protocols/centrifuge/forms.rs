//! How clients of Centrifugo's protocol are told what happens in a channel. A gap is not said to all of them in the same
//! bytes: each subscribes again, from where it is.

use tidegate_backplane::{Channel, Member, Payload, PresenceKind, Publication};
use tidegate_wire::{
    centrifuge::{
        Encoding, Style, delta,
        message::ClientInfo,
        push::{self, Data, Published},
    },
    frame::{self, Opcode},
};

use crate::{
    hub::{
        content::Content,
        form::{Form, FormId, Said},
    },
    node::member_info::MemberInfo,
};

/// What carries what a client is told, and in which words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Carrier {
    /// Text frames of a WebSocket.
    Json,
    /// Binary frames of a WebSocket.
    Protobuf,
    /// An HTTP stream of JSON lines.
    Lines,
    /// An HTTP stream of Protobuf, each message after its length.
    Messages,
    /// Events of an event stream, in JSON.
    Events,
    /// The same three in JSON, to clients that send no commands.
    UniFrames,
    UniLines,
    UniEvents,
}

/// The place of the first form of this protocol in the list of all.
const FIRST: u8 = 12;

/// What clients of one carrier are told; or also who joins and leaves.
#[derive(Debug)]
pub(crate) struct Push {
    pub(crate) carrier: Carrier,
    pub(crate) tells_presence: bool,
    pub(crate) payloads: Payloads,
}

/// How payloads are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Payloads {
    Plain,
    /// Whole, to clients that are told differences afterwards: what those are of is a string in JSON.
    Whole,
    /// By how they differ from the one before.
    Delta,
}

impl Carrier {
    const ALL: [Self; 8] = [
        Self::Json,
        Self::Protobuf,
        Self::Lines,
        Self::Messages,
        Self::Events,
        Self::UniFrames,
        Self::UniLines,
        Self::UniEvents,
    ];

    /// Of a connection with this form.
    pub(super) fn of(form: FormId) -> Self {
        let is_its = |carrier: &Self| form.plain() == carrier.form();
        Self::ALL.into_iter().find(is_its).unwrap_or(Self::Json)
    }

    /// The form of its connections.
    pub(super) const fn form(self) -> FormId {
        self.form_with(Payloads::Plain, false)
    }

    /// The form of its subscriptions that are told by differences, from the second publication on.
    pub(super) fn form_of_deltas(self) -> FormId {
        self.form_with(Payloads::Whole, false)
    }

    const fn form_with(self, payloads: Payloads, presence: bool) -> FormId {
        FormId::new(FIRST + 6 * self as u8 + 2 * payloads as u8 + presence as u8)
    }

    pub(super) fn encoding(self) -> Encoding {
        match self {
            Self::Protobuf | Self::Messages => Encoding::Protobuf,
            _ => Encoding::Json,
        }
    }

    pub(super) fn is_json(self) -> bool {
        self.encoding() == Encoding::Json
    }

    /// Its clients send no commands.
    pub(super) fn is_uni(self) -> bool {
        matches!(self, Self::UniFrames | Self::UniLines | Self::UniEvents)
    }

    /// Its clients send commands by requests of their own.
    pub(super) fn is_emulated(self) -> bool {
        matches!(self, Self::Lines | Self::Messages | Self::Events)
    }

    /// It is a WebSocket.
    pub(super) fn is_framed(self) -> bool {
        self.opcode().is_some()
    }

    fn style(self) -> Style {
        Style { encoding: self.encoding(), is_bare: self.is_uni() }
    }

    fn opcode(self) -> Option<Opcode> {
        match self {
            Self::Json | Self::UniFrames => Some(Opcode::Text),
            Self::Protobuf => Some(Opcode::Binary),
            Self::Lines | Self::Messages | Self::Events | Self::UniLines | Self::UniEvents => None,
        }
    }

    /// Appends what it carries; JSON here has no line ends in it.
    fn put(self, out: &mut Vec<u8>, write: impl FnOnce(Style, &mut Vec<u8>)) {
        let (begin, end): (&[u8], &[u8]) = match self {
            Self::Events | Self::UniEvents => (b"data: ", b"\n\n"),
            Self::Lines | Self::UniLines => (b"", b"\n"),
            Self::Json | Self::Protobuf | Self::Messages | Self::UniFrames => (b"", b""),
        };
        let before = out.len();
        out.extend_from_slice(begin);
        write(self.style(), out);
        match out.len() == before + begin.len() {
            true => out.truncate(before),
            false => out.extend_from_slice(end),
        }
    }

    /// Appends something for one client.
    pub(super) fn put_one(self, out: &mut Vec<u8>, write: impl FnOnce(Style, &mut Vec<u8>)) {
        match self.opcode() {
            None => self.put(out, write),
            Some(opcode) => {
                let mut payload = Vec::new();
                self.put(&mut payload, write);
                frame::encode(opcode, &payload, out);
            }
        }
    }
}

impl Push {
    /// Appends a publication. `before`: the one that its clients had last, where it may be told by how it differs.
    fn put_publication(
        &self,
        channel: &Channel,
        it: &Publication,
        before: Option<&Publication>,
        out: &mut Vec<u8>,
    ) {
        self.carrier.put(out, |style, out| {
            with_published(it, |published| match (self.payloads, self.carrier.encoding()) {
                (Payloads::Plain, _) => push::publication(channel.name(), published, style, out),
                (_, Encoding::Json) => {
                    let whole = published.data.to_json();
                    let before = before.map(|before| with_published(before, |it| it.data.to_json()));
                    let delta = before.and_then(|before| shorter_delta(before.as_bytes(), whole.as_bytes()));
                    let delta = delta.and_then(|delta| String::from_utf8(delta).ok());
                    let (is_delta, text) = delta.map_or((false, whole), |delta| (true, delta));
                    let told = Published { data: Data::String(&text), is_delta, ..*published };
                    push::publication(channel.name(), &told, style, out);
                }
                (_, Encoding::Protobuf) => {
                    let whole = it.payload.bytes();
                    let delta = before.and_then(|before| shorter_delta(before.payload.bytes(), whole));
                    let data = Data::Binary(delta.as_deref().unwrap_or(whole));
                    let told = Published { data, is_delta: delta.is_some(), ..*published };
                    push::publication(channel.name(), &told, style, out);
                }
            });
        });
    }

    fn said<'a>(&self, said: &'a [u8]) -> Option<Said<'a>> {
        if said.is_empty() {
            return None;
        }
        Some(match self.carrier.opcode() {
            Some(opcode) => Said::Message(opcode, said),
            None => Said::Bytes(said),
        })
    }
}

impl Form for Push {
    fn id(&self) -> FormId {
        self.carrier.form_with(self.payloads, self.tells_presence)
    }

    fn say<'a>(&self, channel: &Channel, content: &'a Content, scratch: &'a mut Vec<u8>) -> Option<Said<'a>> {
        match content {
            Content::Publication(publication) => self.put_publication(channel, publication, None, scratch),
            Content::Presence(event) if self.tells_presence => {
                self.carrier.put(scratch, |style, out| push_presence(channel, &event.kind, style, out));
            }
            Content::Presence(_) | Content::Gap(_) => {}
        }
        self.said(scratch)
    }

    fn next(&self) -> Option<FormId> {
        let next = || self.carrier.form_with(Payloads::Delta, self.tells_presence);
        (self.payloads == Payloads::Whole).then(next)
    }

    fn tells_difference(&self) -> bool {
        self.payloads == Payloads::Delta
    }

    fn say_after<'a>(
        &self,
        channel: &Channel,
        content: &'a Content,
        before: &Content,
        scratch: &'a mut Vec<u8>,
    ) -> Option<Said<'a>> {
        let (Content::Publication(it), Content::Publication(before)) = (content, before) else {
            return self.say(channel, content, scratch);
        };
        self.put_publication(channel, it, Some(before), scratch);
        self.said(scratch)
    }

    fn says_gaps(&self) -> bool {
        false
    }

    fn says_presence(&self) -> bool {
        self.tells_presence
    }

    fn with_presence(&self) -> FormId {
        self.carrier.form_with(self.payloads, true)
    }
}

/// How a payload differs from the one before, where that is less than the payload.
fn shorter_delta(before: &[u8], whole: &[u8]) -> Option<Vec<u8>> {
    let mut delta = Vec::new();
    delta::create(before, whole, &mut delta);
    (delta.len() < whole.len()).then_some(delta)
}

fn push_presence(channel: &Channel, kind: &PresenceKind, style: Style, out: &mut Vec<u8>) {
    let (PresenceKind::Joined { member, .. } | PresenceKind::Left { member, .. }) = kind else { return };
    if MemberInfo::of(member).is_quiet {
        return;
    }
    let (name, who) = (channel.name(), client_info(member));
    match kind {
        PresenceKind::Joined { .. } => push::join(name, who, style, out),
        _ => push::leave(name, who, style, out),
    }
}

/// A member in the protocol's words.
pub(super) fn client_info(member: &Member) -> ClientInfo {
    let MemberInfo { of_connection, of_subscription, .. } = MemberInfo::of(member);
    let octets = |info: Option<&str>| info.unwrap_or_default().as_bytes().to_vec();
    ClientInfo {
        user: member.user.to_string(),
        client: member.connection.to_string(),
        conn_info: octets(of_connection),
        chan_info: octets(of_subscription),
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
    then(&Published { data, user, offset, epoch: epoch.as_deref(), event, is_delta: false })
}
