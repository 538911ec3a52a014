//! The bytes of a publication on a pub/sub channel (the envelope) and in a stream (the body).
//!
//! All numbers are big-endian. `docs/adr/0008-redis-backplane.md` has the layout:
//!
//! ```text
//! envelope   version 1 | flags | [epoch 8 | offset 8 | previous tag 8 | tag 8] | [length 2 | event] | [sender] | payload
//! body                   flags | [                                      tag 8] | [length 2 | event] | [sender] | payload
//! presence   version 1 | 16    | number 8 | 4 | connections 4 | length 2 | connection | length 2 | user | info   joined
//!                                         | 5 | connections 4 | length 2 | connection | user                   left
//!                                         | 3 | subscriptions 8                                                count
//! sender     parts 1 | [length 2 | connection] | [length 2 | user]
//! ```
//!
//! With a position, the publisher makes a body; the script keeps it in the stream and makes an envelope of it. A
//! decoder copies what was received, and shares the payload out of the copy.

use std::sync::Arc;

use bytes::{Buf, Bytes};

use crate::{
    Epoch, Member, NewPublication, Payload, Position, PresenceEvent, PresenceKind, Publication, Sender,
};

const VERSION: u8 = 1;

const FLAG_POSITION: u8 = 1;
const FLAG_BINARY: u8 = 2;
const FLAG_EVENT: u8 = 4;
const FLAG_SENDER: u8 = 8;
/// Alone: what follows is no publication.
const FLAG_PRESENCE: u8 = 16;
const FLAGS: u8 = FLAG_POSITION | FLAG_BINARY | FLAG_EVENT | FLAG_SENDER;

/// Changes of presence.
const JOINED: u8 = 4;
const LEFT: u8 = 5;
const COUNT: u8 = 3;

const SENDER_CONNECTION: u8 = 1;
const SENDER_USER: u8 = 2;

/// 64 random bits that tell a publication from another one that was given the same position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Tag(pub(crate) u64);

impl Tag {
    /// The tag before the first publication of an epoch.
    pub(crate) const NONE: Self = Self(0);
}

/// Where a publication stands in its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) position: Position,
    pub(crate) tag: Tag,
}

/// What a node receives for a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// With a position: the tag of this publication and of the one before it.
    pub(crate) tags: Option<Tags>,
    pub(crate) publication: Publication,
}

/// What a node receives on the pub/sub channel of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    Publication(Envelope),
    Presence(PresenceEvent),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tags {
    pub(crate) previous: Tag,
    pub(crate) own: Tag,
}

/// Why bytes are not an envelope or a body of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EnvelopeError {
    #[error("the envelope is of version {0}, not {VERSION}")]
    Version(u8),
    #[error("the envelope has unknown or unfitting flags: {0:#04x}")]
    Flags(u8),
    #[error("the envelope ends too early")]
    Truncated,
    #[error("the envelope has offset 0, which no publication has")]
    Offset,
    #[error("the event name is not UTF-8")]
    Event,
    #[error("the sender has unknown parts or is not UTF-8")]
    Sender,
    #[error("the text payload is not UTF-8")]
    Text,
    #[error("the change of presence is of no known kind or not UTF-8")]
    Presence,
}

/// An event name or a part of a sender whose length does not fit into two bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the event name or the sender is {0} bytes long, 65535 are allowed")]
pub(crate) struct NameTooLong(usize);

impl Message {
    /// Reads what was received.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        match bytes {
            [VERSION, FLAG_PRESENCE, change @ ..] => decode_presence(change).map(Self::Presence),
            _ => Envelope::decode(bytes).map(Self::Publication),
        }
    }
}

impl Envelope {
    /// Reads what was received. It is copied once: a part of the buffer that it arrived in would keep all of that.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let mut bytes = Bytes::copy_from_slice(bytes);
        match take_u8(&mut bytes)? {
            VERSION => {}
            other => return Err(EnvelopeError::Version(other)),
        }
        let flags = take_flags(&mut bytes)?;
        if flags & FLAG_POSITION == 0 {
            let publication = take_publication(bytes, flags, None)?;
            return Ok(Self { tags: None, publication });
        }
        let epoch = Epoch(take_u64(&mut bytes)?);
        let offset = take_u64(&mut bytes)?;
        let previous = Tag(take_u64(&mut bytes)?);
        let own = Tag(take_u64(&mut bytes)?);
        if offset == 0 {
            return Err(EnvelopeError::Offset);
        }
        let publication = take_publication(bytes, flags, Some(Position { epoch, offset }))?;
        Ok(Self { tags: Some(Tags { previous, own }), publication })
    }
}

/// The envelope of a publication without position.
pub(crate) fn encode_plain(new: &NewPublication) -> Result<Vec<u8>, NameTooLong> {
    let mut out = with_room(2, new);
    out.push(VERSION);
    out.push(flags(new));
    put_publication(new, &mut out)?;
    Ok(out)
}

/// The body of a publication that gets its position from the script.
pub(crate) fn encode_body(new: &NewPublication, tag: Tag) -> Result<Vec<u8>, NameTooLong> {
    let mut out = with_room(9, new);
    out.push(flags(new) | FLAG_POSITION);
    out.extend(tag.0.to_be_bytes());
    put_publication(new, &mut out)?;
    Ok(out)
}

/// Reads an entry of a stream.
pub(crate) fn decode_body(position: Position, bytes: Vec<u8>) -> Result<(Tag, Publication), EnvelopeError> {
    let mut bytes = Bytes::from(bytes);
    let flags = take_flags(&mut bytes)?;
    if flags & FLAG_POSITION == 0 {
        return Err(EnvelopeError::Flags(flags));
    }
    let tag = Tag(take_u64(&mut bytes)?);
    Ok((tag, take_publication(bytes, flags, Some(position))?))
}

/// A change of who is in a channel, as `scripts/presence.lua` writes it. Others were 1 and 2.
fn decode_presence(mut bytes: &[u8]) -> Result<PresenceEvent, EnvelopeError> {
    let sequence = bytes.try_get_u64().map_err(|_| EnvelopeError::Truncated)?;
    let kind = match bytes.try_get_u8().map_err(|_| EnvelopeError::Truncated)? {
        JOINED => {
            let connections = take_u32(&mut bytes)?;
            let (connection, user) = (take_text(&mut bytes)?, take_text(&mut bytes)?);
            let info = (!bytes.is_empty()).then(|| presence_text(bytes)).transpose()?;
            PresenceKind::Joined { member: Arc::new(Member { connection, user, info }), connections }
        }
        LEFT => {
            let connections = take_u32(&mut bytes)?;
            let (connection, user) = (take_text(&mut bytes)?, presence_text(bytes)?);
            PresenceKind::Left { member: Arc::new(Member { connection, user, info: None }), connections }
        }
        COUNT => {
            let subscriptions = bytes.try_get_u64().map_err(|_| EnvelopeError::Truncated)?;
            if !bytes.is_empty() {
                return Err(EnvelopeError::Presence);
            }
            PresenceKind::Count { subscriptions }
        }
        _ => return Err(EnvelopeError::Presence),
    };
    Ok(PresenceEvent { sequence, kind })
}

fn take_u32(bytes: &mut &[u8]) -> Result<u64, EnvelopeError> {
    bytes.try_get_u32().map(u64::from).map_err(|_| EnvelopeError::Truncated)
}

fn take_text(bytes: &mut &[u8]) -> Result<Box<str>, EnvelopeError> {
    let len = usize::from(bytes.try_get_u16().map_err(|_| EnvelopeError::Truncated)?);
    let (text, rest) = bytes.split_at_checked(len).ok_or(EnvelopeError::Truncated)?;
    *bytes = rest;
    presence_text(text)
}

fn presence_text(bytes: &[u8]) -> Result<Box<str>, EnvelopeError> {
    std::str::from_utf8(bytes).map(Into::into).map_err(|_| EnvelopeError::Presence)
}

fn with_room(head: usize, new: &NewPublication) -> Vec<u8> {
    let event = new.event.as_ref().map_or(0, |event| 2 + event.len());
    let sender = new.sender.as_ref().map_or(0, |sender| 5 + sender.len());
    Vec::with_capacity(head + event + sender + new.payload.bytes().len())
}

fn flags(new: &NewPublication) -> u8 {
    let binary = if matches!(new.payload, Payload::Binary(_)) { FLAG_BINARY } else { 0 };
    let event = if new.event.is_some() { FLAG_EVENT } else { 0 };
    let sender = if new.sender.is_some() { FLAG_SENDER } else { 0 };
    binary | event | sender
}

fn put_publication(new: &NewPublication, out: &mut Vec<u8>) -> Result<(), NameTooLong> {
    if let Some(event) = &new.event {
        put_name(event, out)?;
    }
    if let Some(Sender { connection, user }) = new.sender.as_deref() {
        let part = |part: &Option<_>, flag| if part.is_some() { flag } else { 0 };
        out.push(part(connection, SENDER_CONNECTION) | part(user, SENDER_USER));
        for name in [connection, user].into_iter().flatten() {
            put_name(name, out)?;
        }
    }
    out.extend_from_slice(new.payload.bytes());
    Ok(())
}

fn put_name(name: &str, out: &mut Vec<u8>) -> Result<(), NameTooLong> {
    let len = u16::try_from(name.len()).map_err(|_| NameTooLong(name.len()))?;
    out.extend(len.to_be_bytes());
    out.extend_from_slice(name.as_bytes());
    Ok(())
}

fn take_publication(
    mut bytes: Bytes,
    flags: u8,
    position: Option<Position>,
) -> Result<Publication, EnvelopeError> {
    let event = match flags & FLAG_EVENT {
        0 => None,
        _ => Some(take_name(&mut bytes, EnvelopeError::Event)?),
    };
    let sender = match flags & FLAG_SENDER {
        0 => None,
        _ => Some(Box::new(take_sender(&mut bytes)?)),
    };
    let payload = match flags & FLAG_BINARY {
        // Subscribers are promised UTF-8, and a WebSocket client closes on anything else.
        0 => Payload::Text(bytes.try_into().map_err(|_| EnvelopeError::Text)?),
        _ => Payload::Binary(bytes),
    };
    Ok(Publication { position, event, payload, sender })
}

fn take_sender(bytes: &mut Bytes) -> Result<Sender, EnvelopeError> {
    let parts = take_u8(bytes)?;
    if parts & !(SENDER_CONNECTION | SENDER_USER) != 0 {
        return Err(EnvelopeError::Sender);
    }
    let mut part = |flag| match parts & flag {
        0 => Ok(None),
        _ => take_name(bytes, EnvelopeError::Sender).map(Some),
    };
    Ok(Sender { connection: part(SENDER_CONNECTION)?, user: part(SENDER_USER)? })
}

fn take_name(bytes: &mut Bytes, not_text: EnvelopeError) -> Result<Box<str>, EnvelopeError> {
    let len = usize::from(bytes.try_get_u16().map_err(|_| EnvelopeError::Truncated)?);
    if bytes.len() < len {
        return Err(EnvelopeError::Truncated);
    }
    let name = bytes.split_to(len);
    std::str::from_utf8(&name).map(Into::into).map_err(|_| not_text)
}

fn take_flags(bytes: &mut Bytes) -> Result<u8, EnvelopeError> {
    match take_u8(bytes)? {
        flags if flags & !FLAGS == 0 => Ok(flags),
        flags => Err(EnvelopeError::Flags(flags)),
    }
}

fn take_u8(bytes: &mut Bytes) -> Result<u8, EnvelopeError> {
    bytes.try_get_u8().map_err(|_| EnvelopeError::Truncated)
}

fn take_u64(bytes: &mut Bytes) -> Result<u64, EnvelopeError> {
    bytes.try_get_u64().map_err(|_| EnvelopeError::Truncated)
}

/// Decodes arbitrary bytes both ways; what decodes encodes to the same bytes.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn check_decoders(bytes: &[u8]) {
    match Message::decode(bytes) {
        Ok(Message::Publication(envelope)) => assert_eq!(encode_envelope(&envelope), bytes),
        Ok(Message::Presence(event)) => assert_eq!(encode_presence(&event), bytes),
        Err(_) => {}
    }
    let position = Position { epoch: Epoch(1), offset: 1 };
    if let Ok((tag, publication)) = decode_body(position, bytes.to_vec()) {
        let body = encode_body(&as_new(&publication), tag).expect("a length that was read fits");
        assert_eq!(body, bytes);
    }
}

/// What the script makes.
#[cfg(any(test, feature = "fuzz"))]
fn encode_presence(event: &PresenceEvent) -> Vec<u8> {
    let mut out = [&[VERSION, FLAG_PRESENCE], &event.sequence.to_be_bytes()[..]].concat();
    let number = |number: u64| u32::try_from(number).expect("a number that was read fits").to_be_bytes();
    let put_text = |text: &str, out: &mut Vec<u8>| put_name(text, out).expect("a length that was read fits");
    match &event.kind {
        PresenceKind::Joined { member, connections } => {
            out.push(JOINED);
            out.extend(number(*connections));
            put_text(&member.connection, &mut out);
            put_text(&member.user, &mut out);
            out.extend_from_slice(member.info.as_deref().unwrap_or_default().as_bytes());
        }
        PresenceKind::Left { member, connections } => {
            out.push(LEFT);
            out.extend(number(*connections));
            put_text(&member.connection, &mut out);
            out.extend_from_slice(member.user.as_bytes());
        }
        PresenceKind::Count { subscriptions } => {
            out.push(COUNT);
            out.extend(subscriptions.to_be_bytes());
        }
    }
    out
}

/// What the publisher and the script make together.
#[cfg(any(test, feature = "fuzz"))]
fn encode_envelope(envelope: &Envelope) -> Vec<u8> {
    let new = as_new(&envelope.publication);
    let (Some(tags), Some(position)) = (envelope.tags, envelope.publication.position) else {
        return encode_plain(&new).expect("a length that was read fits");
    };
    let body = encode_body(&new, tags.own).expect("a length that was read fits");
    let head = [position.epoch.0, position.offset, tags.previous.0].map(u64::to_be_bytes).concat();
    [&[VERSION, body[0]], &*head, &body[1..]].concat()
}

#[cfg(any(test, feature = "fuzz"))]
fn as_new(publication: &Publication) -> NewPublication {
    NewPublication {
        channel: crate::Channel::new("c").expect("a name"),
        event: publication.event.clone(),
        payload: publication.payload.clone(),
        history: None,
        idempotency_key: None,
        sender: publication.sender.clone(),
    }
}

#[cfg(test)]
mod tests;
