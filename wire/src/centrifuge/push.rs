//! What all subscribers of a channel are told in the same bytes.

use super::{
    Encoding, encode,
    message::{
        ClientInfo, DataMessage, Disconnect, Info, Publication, Push, Reply, Subscribe, SubscribeResult,
        Unsubscribe,
    },
};
use crate::json::{push_base64, push_str, push_u64, push_value};

/// The name of the tag that holds the name of a publication's event.
pub const EVENT_TAG: &str = "event";

/// A publication as it is pushed.
#[derive(Debug, Clone, Copy)]
pub struct Published<'a> {
    pub data: Data<'a>,
    /// Who published it, if it was a client with a user.
    pub user: Option<&'a str>,
    /// 0 where the channel keeps no history.
    pub offset: u64,
    /// Told with the first publication of an epoch, to those who subscribed before there was one.
    pub epoch: Option<&'a str>,
    pub event: Option<&'a str>,
    /// `data` is how it differs from that of the publication before it.
    pub is_delta: bool,
}

/// A payload.
#[derive(Debug, Clone, Copy)]
pub enum Data<'a> {
    /// In JSON it is what it says where it is JSON, else a string.
    Text(&'a str),
    /// In JSON a string in base64.
    Binary(&'a [u8]),
    /// In JSON a string, whatever it says.
    String(&'a str),
}

impl Data<'_> {
    /// The value that it is in JSON.
    #[must_use]
    pub fn to_json(self) -> String {
        let mut json = Vec::new();
        push_data(self, &mut json);
        // What is written by hand is text: a part of one, a string, base64.
        String::from_utf8(json).unwrap_or_default()
    }
}

/// How a client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    pub encoding: Encoding,
    /// To a client that sends no commands: pushes, and no replies around them. In JSON only.
    pub is_bare: bool,
}

impl Style {
    /// Of a client that sends commands.
    #[must_use]
    pub fn of(encoding: Encoding) -> Self {
        Self { encoding, is_bare: false }
    }
}

/// Appends the push of a publication.
pub fn publication(channel: &str, published: &Published<'_>, style: Style, out: &mut Vec<u8>) {
    match style.encoding {
        Encoding::Json => {
            let (begin, end) = if style.is_bare { ("{", "}") } else { ("{\"push\":{", "}}") };
            out.extend_from_slice(begin.as_bytes());
            out.extend_from_slice(b"\"channel\":");
            push_str(channel, out);
            out.extend_from_slice(b",\"pub\":");
            push_publication(published, out);
            out.extend_from_slice(end.as_bytes());
        }
        Encoding::Protobuf => {
            let publication = Some(Box::new(Publication::from(published)));
            push(Push { channel: channel.to_owned(), r#pub: publication, ..Push::default() }, style, out);
        }
    }
}

/// Appends a push.
pub fn push(push: Push, style: Style, out: &mut Vec<u8>) {
    reply(Reply { push: Some(Box::new(push)), ..Reply::default() }, style, out);
}

/// Appends a reply. Of one to a command of a client that sends none only what it can be told is left.
pub fn reply(reply: Reply, style: Style, out: &mut Vec<u8>) {
    if !style.is_bare {
        return encode(&reply, style.encoding, out);
    }
    let Reply { push, connect, .. } = reply;
    let push = push.map_or_else(
        || Push { connect: connect.map(|result| Box::new((*result).into())), ..Push::default() },
        |push| *push,
    );
    // Writing to memory does not fail, and every field can be written.
    let written = serde_json::to_writer(&mut *out, &push);
    debug_assert!(written.is_ok(), "{push:?}: {written:?}");
}

/// Appends the push that somebody has joined a channel.
pub fn join(channel: &str, who: ClientInfo, style: Style, out: &mut Vec<u8>) {
    let join = Some(Info { info: Some(who) });
    push(Push { channel: channel.to_owned(), join, ..Push::default() }, style, out);
}

/// Appends the push that somebody has left a channel.
pub fn leave(channel: &str, who: ClientInfo, style: Style, out: &mut Vec<u8>) {
    let leave = Some(Info { info: Some(who) });
    push(Push { channel: channel.to_owned(), leave, ..Push::default() }, style, out);
}

/// Appends the push that a subscription has ended.
pub fn unsubscribe(channel: &str, why: Unsubscribe, style: Style, out: &mut Vec<u8>) {
    push(Push { channel: channel.to_owned(), unsubscribe: Some(why), ..Push::default() }, style, out);
}

/// Appends the push that a subscription of the server has begun.
pub fn subscribe(channel: &str, begun: SubscribeResult, data: Vec<u8>, style: Style, out: &mut Vec<u8>) {
    let SubscribeResult { recoverable, epoch, offset, positioned, .. } = begun;
    let subscribe = Some(Subscribe { recoverable, epoch, offset, positioned, data });
    push(Push { channel: channel.to_owned(), subscribe, ..Push::default() }, style, out);
}

/// Appends the push that the connection ends, where nothing else can say so.
pub fn disconnect(code: u16, reason: &str, style: Style, out: &mut Vec<u8>) {
    let (code, reason) = (u32::from(code), reason.to_owned());
    let disconnect = Some(Disconnect { code, reason, ..Disconnect::default() });
    push(Push { disconnect, ..Push::default() }, style, out);
}

/// Appends a message for one client, which is no publication. In JSON the text is what it says where it is JSON, else a
/// string.
pub fn message(text: &str, style: Style, out: &mut Vec<u8>) {
    let data = match style.encoding {
        Encoding::Json => {
            let mut value = Vec::new();
            if !push_value(text, &mut value) {
                push_str(text, &mut value);
            }
            value
        }
        Encoding::Protobuf => text.as_bytes().to_vec(),
    };
    push(Push { message: Some(DataMessage { data }), ..Push::default() }, style, out);
}

/// Appends a ping.
pub fn ping(style: Style, out: &mut Vec<u8>) {
    reply(Reply::default(), style, out);
}

fn push_data(data: Data<'_>, out: &mut Vec<u8>) {
    match data {
        Data::Text(text) => {
            if !push_value(text, out) {
                push_str(text, out);
            }
        }
        Data::Binary(bytes) => push_base64(bytes, out),
        Data::String(text) => push_str(text, out),
    }
}

fn push_publication(published: &Published<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"data\":");
    push_data(published.data, out);
    if let Some(user) = published.user {
        out.extend_from_slice(b",\"info\":{\"user\":");
        push_str(user, out);
        out.push(b'}');
    }
    if published.offset > 0 {
        out.extend_from_slice(b",\"offset\":");
        push_u64(published.offset, out);
    }
    if let Some(event) = published.event {
        out.extend_from_slice(b",\"tags\":{\"event\":");
        push_str(event, out);
        out.push(b'}');
    }
    if published.is_delta {
        out.extend_from_slice(b",\"delta\":true");
    }
    if let Some(epoch) = published.epoch {
        out.extend_from_slice(b",\"epoch\":");
        push_str(epoch, out);
    }
    out.push(b'}');
}

impl From<&Published<'_>> for Publication {
    fn from(published: &Published<'_>) -> Self {
        let data = match published.data {
            Data::Text(text) | Data::String(text) => text.as_bytes(),
            Data::Binary(bytes) => bytes,
        };
        let info = published.user.map(|user| ClientInfo { user: user.to_owned(), ..ClientInfo::default() });
        let tags = published.event.map(|event| (EVENT_TAG.to_owned(), event.to_owned()));
        Self {
            data: data.to_vec(),
            info,
            offset: published.offset,
            tags: tags.into_iter().collect(),
            delta: published.is_delta,
            epoch: published.epoch.unwrap_or_default().to_owned(),
        }
    }
}
