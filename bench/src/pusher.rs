//! The little of Pusher Channels that a subscriber and a publisher need: frames, and signed requests to `/events`.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use md5::{Digest, Md5};

use crate::http::find;
use crate::target::Target;

/// The app of `tidegate gateway --dev`; other servers are given the same.
pub(crate) const APP_ID: &str = "1";
pub(crate) const APP_KEY: &str = "dev-key";
pub(crate) const APP_SECRET: &str = "dev-secret";

/// What a client opens.
pub(crate) const PATH: &str = "/app/dev-key?protocol=7&client=bench&version=1";
/// The answer to a [`Packet::Ping`].
pub(crate) const PONG: &[u8] = br#"{"event":"pusher:pong","data":{}}"#;

/// What a server's frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packet<'a> {
    /// The connection is established: now subscribe.
    Hello,
    Subscribed,
    Ping,
    /// What follows the opening quote of the data of an event `e`.
    Message(&'a [u8]),
    Other,
}

/// Reads the head of a frame. Servers write the members of the object in different orders.
pub(crate) fn packet(head: &[u8]) -> Packet<'_> {
    let is = |event: &[u8]| find(head, event).is_some();
    if is(br#""event":"e""#) {
        let data = br#""data":""#;
        find(head, data).map_or(Packet::Other, |at| Packet::Message(&head[at + data.len()..]))
    } else if is(br#""pusher_internal:subscription_succeeded""#) {
        Packet::Subscribed
    } else if is(br#""pusher:connection_established""#) {
        Packet::Hello
    } else if is(br#""pusher:ping""#) {
        Packet::Ping
    } else {
        Packet::Other
    }
}

/// Asks for a public channel.
pub(crate) fn subscribe(channel: &str) -> Vec<u8> {
    format!(r#"{{"event":"pusher:subscribe","data":{{"channel":"{channel}"}}}}"#).into_bytes()
}

/// Asks for a presence channel as the user of this number, with the signature that an application would give. `hello` is
/// the head of the frame that names the socket.
pub(crate) fn enter(hello: &[u8], channel: &str, user: usize) -> Vec<u8> {
    let key = br#"\"socket_id\":\""#;
    let socket_id = find(hello, key).map_or(&[][..], |at| &hello[at + key.len()..]);
    let socket_id = socket_id.split(|&byte| byte == b'\\').next().unwrap_or_default();
    let data = format!(r#"{{"user_id":"{user}"}}"#);
    let signed = [socket_id, format!(":{channel}:{data}").as_bytes()].concat();
    let signature = hex(sign(&Signer::new().secret, &signed).as_ref());
    let data = data.replace('"', r#"\""#);
    format!(
        r#"{{"event":"pusher:subscribe","data":{{"channel":"{channel}","channel_data":"{data}","auth":"{APP_KEY}:{signature}"}}}}"#
    )
    .into_bytes()
}

/// Signs requests as the server SDKs do.
#[derive(Debug)]
pub(crate) struct Signer {
    secret: Key,
}

impl Signer {
    pub(crate) fn new() -> Self {
        Self { secret: Key::new(HMAC_SHA256, APP_SECRET.as_bytes()) }
    }

    /// `POST /apps/ID/events` of an event `e` with this payload, which holds nothing that JSON escapes.
    pub(crate) fn write_request(&self, out: &mut Vec<u8>, target: &Target, channel: &str, payload: &str) {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let body = format!(r#"{{"name":"e","channels":["{channel}"],"data":"{payload}"}}"#);
        let md5 = hex(&Md5::digest(&body));
        let path = format!("{}/apps/{APP_ID}/events", target.prefix);
        let query = format!("auth_key={APP_KEY}&auth_timestamp={now_s}&auth_version=1.0&body_md5={md5}");
        let signature = hex(sign(&self.secret, format!("POST\n{path}\n{query}").as_bytes()).as_ref());
        let (authority, length) = (&target.authority, body.len());
        let request = format!(
            "POST {path}?{query}&auth_signature={signature} HTTP/1.1\r\nHost: {authority}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        out.clear();
        out.extend_from_slice(request.as_bytes());
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn packets_are_told_apart() {
        for (head, expected) in [
            (&br#"{"event":"pusher:connection_established","data":"{}"}"#[..], Packet::Hello),
            (
                br#"{"event":"pusher_internal:subscription_succeeded","channel":"bench","data":"{}"}"#,
                Packet::Subscribed,
            ),
            (br#"{"event":"pusher:ping","data":"{}"}"#, Packet::Ping),
            (br#"{"event":"e","channel":"bench","data":"T71de"}"#, Packet::Message(br#"T71de"}"#)),
            (br#"{"channel":"bench","event":"e","data":"T71de"}"#, Packet::Message(br#"T71de"}"#)),
            (br#"{"event":"pusher_internal:subscription_count","data":"{}"}"#, Packet::Other),
            (b"", Packet::Other),
        ] {
            assert_eq!(packet(head), expected);
        }
    }

    #[test]
    fn a_presence_channel_is_asked_for_with_the_signature_of_the_documentation() {
        let hello =
            br#"{"event":"pusher:connection_established","data":"{\"socket_id\":\"1234.1234\",\"activ"#;
        // printf '%s' '1234.1234:presence-a:{"user_id":"7"}' | openssl dgst -sha256 -hmac dev-secret
        let expected = r#"{"event":"pusher:subscribe","data":{"channel":"presence-a","channel_data":"{\"user_id\":\"7\"}","auth":"dev-key:f6561e82bbf68a1e9e70610c8ef216e8c97c0f31366d98a3b61988a29537e273"}}"#;
        assert_eq!(String::from_utf8(enter(hello, "presence-a", 7)).unwrap(), expected);
    }

    #[test]
    fn a_request_is_signed_over_what_it_sends() {
        let mut out = Vec::new();
        let target = Target::parse("http://127.0.0.1:1").unwrap();
        Signer::new().write_request(&mut out, &target, "c", "T1");
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, r#"{"name":"e","channels":["c"],"data":"T1"}"#);
        // printf '%s' '{"name":"e","channels":["c"],"data":"T1"}' | md5sum
        assert!(head.contains("body_md5=27f83d0b96b19aa97bce9df5d6341f92"), "{head}");
        let (query, signature) = head.split(' ').nth(1).unwrap().split_once("&auth_signature=").unwrap();
        let signed = format!("POST\n{}", query.replacen('?', "\n", 1));
        assert_eq!(signature, hex(sign(&Signer::new().secret, signed.as_bytes()).as_ref()));
    }
}
