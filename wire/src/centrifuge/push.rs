//! What all subscribers of a channel are told in the same bytes.

use prost::Message as _;

use super::{
    Encoding, encode,
    message::{ClientInfo, Info, Publication, Push, Reply, Subscribe, SubscribeResult, Unsubscribe},
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
}

/// A payload.
#[derive(Debug, Clone, Copy)]
pub enum Data<'a> {
    /// In JSON it is what it says where it is JSON, else a string.
    Text(&'a str),
    /// In JSON a string in base64.
    Binary(&'a [u8]),
}

/// Appends the push of a publication.
pub fn publication(channel: &str, published: &Published<'_>, encoding: Encoding, out: &mut Vec<u8>) {
    match encoding {
        Encoding::Json => {
            out.extend_from_slice(b"{\"push\":{\"channel\":");
            push_str(channel, out);
            out.extend_from_slice(b",\"pub\":");
            push_publication(published, out);
            out.extend_from_slice(b"}}");
        }
        Encoding::Protobuf => {
            let publication = Some(Box::new(Publication::from(published)));
            let push = Push { channel: channel.to_owned(), r#pub: publication, ..Push::default() };
            let reply = Reply { push: Some(Box::new(push)), ..Reply::default() };
            out.reserve(reply.encoded_len() + 5);
            encode(&reply, encoding, out);
        }
    }
}

/// Appends the push that somebody has joined a channel.
pub fn join(channel: &str, who: ClientInfo, encoding: Encoding, out: &mut Vec<u8>) {
    let join = Some(Info { info: Some(who) });
    let push = Push { channel: channel.to_owned(), join, ..Push::default() };
    encode(&Reply { push: Some(Box::new(push)), ..Reply::default() }, encoding, out);
}

/// Appends the push that somebody has left a channel.
pub fn leave(channel: &str, who: ClientInfo, encoding: Encoding, out: &mut Vec<u8>) {
    let leave = Some(Info { info: Some(who) });
    let push = Push { channel: channel.to_owned(), leave, ..Push::default() };
    encode(&Reply { push: Some(Box::new(push)), ..Reply::default() }, encoding, out);
}

/// Appends the push that a subscription has ended.
pub fn unsubscribe(channel: &str, why: Unsubscribe, encoding: Encoding, out: &mut Vec<u8>) {
    let push = Push { channel: channel.to_owned(), unsubscribe: Some(why), ..Push::default() };
    encode(&Reply { push: Some(Box::new(push)), ..Reply::default() }, encoding, out);
}

/// Appends the push that a subscription of the server has begun.
pub fn subscribe(
    channel: &str,
    begun: SubscribeResult,
    data: Vec<u8>,
    encoding: Encoding,
    out: &mut Vec<u8>,
) {
    let SubscribeResult { recoverable, epoch, offset, positioned, .. } = begun;
    let subscribe = Some(Subscribe { recoverable, epoch, offset, positioned, data });
    let push = Push { channel: channel.to_owned(), subscribe, ..Push::default() };
    encode(&Reply { push: Some(Box::new(push)), ..Reply::default() }, encoding, out);
}

/// Appends a ping.
pub fn ping(encoding: Encoding, out: &mut Vec<u8>) {
    encode(&Reply::default(), encoding, out);
}

fn push_publication(published: &Published<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"data\":");
    match published.data {
        Data::Text(text) => {
            if !push_value(text, out) {
                push_str(text, out);
            }
        }
        Data::Binary(bytes) => push_base64(bytes, out),
    }
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
    if let Some(epoch) = published.epoch {
        out.extend_from_slice(b",\"epoch\":");
        push_str(epoch, out);
    }
    out.push(b'}');
}

impl From<&Published<'_>> for Publication {
    fn from(published: &Published<'_>) -> Self {
        let data = match published.data {
            Data::Text(text) => text.as_bytes(),
            Data::Binary(bytes) => bytes,
        };
        let info = published.user.map(|user| ClientInfo { user: user.to_owned(), ..ClientInfo::default() });
        let tags = published.event.map(|event| (EVENT_TAG.to_owned(), event.to_owned()));
        Self {
            data: data.to_vec(),
            info,
            offset: published.offset,
            tags: tags.into_iter().collect(),
            epoch: published.epoch.unwrap_or_default().to_owned(),
        }
    }
}
