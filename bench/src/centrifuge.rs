//! The little of Centrifugo's client protocol that a subscriber needs, in both encodings, and its server API's publish.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;

use crate::http::find;
use crate::target::Target;

/// Of the key that the measured gateway is given; such a secret has 32 bytes at least.
pub(crate) const SECRET: &str = "0123456789abcdef0123456789abcdef";

const CONNECT_ID: u32 = 1;
const SUBSCRIBE_ID: u32 = 2;

/// Where a stamp begins in a message, at most: behind an envelope with a short name.
const STAMP_WITHIN: usize = 80;

/// How a client speaks, and what it wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dialect {
    pub is_protobuf: bool,
    /// It asks for all that the channel has.
    pub recovers: bool,
}

/// What a server's frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packet<'a> {
    Subscribed,
    Ping,
    /// From the payload of a publication on.
    Message(&'a [u8]),
    Other,
}

impl Dialect {
    /// What a client opens.
    pub(crate) fn path(self) -> &'static str {
        if self.is_protobuf { "/connection/websocket?cf_protocol=protobuf" } else { "/connection/websocket" }
    }

    pub(crate) fn opcode(self) -> u8 {
        if self.is_protobuf { 0x2 } else { 0x1 }
    }

    /// Connects and subscribes, in one frame.
    pub(crate) fn hello(self, token: Option<&str>, channel: &str) -> Vec<u8> {
        if self.is_protobuf {
            let mut subscribe = field(1, channel.as_bytes());
            if self.recovers {
                subscribe.extend_from_slice(&[3 << 3, 1]);
            }
            let connect = token.map(|token| field(1, token.as_bytes())).unwrap_or_default();
            return [command(CONNECT_ID, 4, &connect), command(SUBSCRIBE_ID, 5, &subscribe)].concat();
        }
        let connect = json!({ "id": CONNECT_ID, "connect": { "token": token.unwrap_or_default() } });
        let subscribe = json!({ "channel": channel, "recover": self.recovers });
        format!("{connect}\n{}", json!({ "id": SUBSCRIBE_ID, "subscribe": subscribe })).into_bytes()
    }

    /// The answer to a [`Packet::Ping`].
    pub(crate) fn pong(self) -> &'static [u8] {
        if self.is_protobuf { &[0] } else { b"{}" }
    }

    /// Reads the head of a frame.
    pub(crate) fn packet(self, head: &[u8]) -> Packet<'_> {
        match self.is_protobuf {
            false if head == b"{}" => Packet::Ping,
            false if head.starts_with(br#"{"id":2,"subscribe":"#) => Packet::Subscribed,
            true if head == [0] => Packet::Ping,
            true if message(head).starts_with(&[1 << 3, 2, 6 << 3 | 2]) => Packet::Subscribed,
            false if !head.starts_with(br#"{"push":"#) => Packet::Other,
            true if message(head).first() != Some(&(4 << 3 | 2)) => Packet::Other,
            _ => {
                let within = &head[..head.len().min(STAMP_WITHIN)];
                find(within, b"T").map_or(Packet::Other, |at| Packet::Message(&head[at..]))
            }
        }
    }
}

/// A token of a user of its own, for ten minutes.
pub(crate) fn token(user: &str) -> String {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = part(&json!({ "alg": "HS256", "typ": "JWT" }));
    let signed = format!("{header}.{}", part(&json!({ "sub": user, "exp": now_s + 600 })));
    let signature = sign(&Key::new(HMAC_SHA256, SECRET.as_bytes()), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// `POST /api/publish` of a payload that holds nothing that JSON escapes: room for it is at the end, before two bytes.
pub(crate) fn write_publish(
    out: &mut Vec<u8>,
    target: &Target,
    key: &str,
    channel: &str,
    payload_bytes: usize,
) {
    let (before, after) = (format!(r#"{{"channel":"{channel}","data":""#), br#""}"#);
    let (authority, length) = (&target.authority, before.len() + payload_bytes + after.len());
    let head = format!(
        "POST {}/api/publish HTTP/1.1\r\nHost: {authority}\r\nX-API-Key: {key}\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{before}",
        target.prefix
    );
    out.clear();
    out.extend_from_slice(head.as_bytes());
    out.resize(out.len() + payload_bytes, b'.');
    out.extend_from_slice(after);
}

/// What stands after the payload in a request of [`write_publish`].
pub(crate) const PUBLISH_TAIL: usize = 2;

/// A message without its length.
fn message(head: &[u8]) -> &[u8] {
    let digits = head.iter().take_while(|&&byte| byte & 0x80 != 0).count();
    head.get(digits + 1..).unwrap_or_default()
}

/// A command of so many bytes after their number.
fn command(id: u32, number: u8, request: &[u8]) -> Vec<u8> {
    let mut command = vec![1 << 3, id as u8];
    command.extend(field(number, request));
    let mut out = varint(command.len());
    out.extend(command);
    out
}

/// A field with a length.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    out.extend(varint(bytes.len()));
    out.extend_from_slice(bytes);
    out
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn packets_are_told_apart() {
        let json = Dialect::default();
        for (head, expected) in [
            (&br#"{"id":1,"connect":{"client":"n"}}"#[..], Packet::Other),
            (br#"{"id":2,"subscribe":{}}"#, Packet::Subscribed),
            (br#"{"push":{"channel":"bench","pub":{"data":"T71de"}}}"#, Packet::Message(br#"T71de"}}}"#)),
            (br#"{"push":{"channel":"bench","join":{}}}"#, Packet::Other),
            (b"{}", Packet::Ping),
            (b"", Packet::Other),
        ] {
            assert_eq!(json.packet(head), expected);
        }
        let protobuf = Dialect { is_protobuf: true, ..json };
        let publication = field(4, b"T71de");
        let push = field(4, &[field(2, b"bench"), field(4, &publication)].concat());
        let push = [varint(push.len()), push].concat();
        for (head, expected) in [
            (&[4, 1 << 3, 1, 5 << 3 | 2, 0][..], Packet::Other),
            (&[4, 1 << 3, 2, 6 << 3 | 2, 0], Packet::Subscribed),
            (&push, Packet::Message(b"T71de")),
            (&[0], Packet::Ping),
            (b"", Packet::Other),
        ] {
            assert_eq!(protobuf.packet(head), expected, "{head:?}");
        }
    }

    #[test]
    fn a_request_says_how_long_it_is() {
        let (mut out, target) = (Vec::new(), Target::parse("http://127.0.0.1:1").unwrap());
        write_publish(&mut out, &target, "k", "c", 3);
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, r#"{"channel":"c","data":"..."}"#);
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    }
}
