//! Server-sent events (WHATWG HTML §9.2): an event is encoded once and serves every client.

use std::fmt::Display;

use crate::http_answer::{push_header, push_status, write_stream_head};
use crate::json::push_u64;

pub const MEDIA_TYPE: &str = "text/event-stream; charset=utf-8";

/// A comment that clients ignore and proxies see as traffic.
pub const COMMENT_HEARTBEAT: &[u8] = b":\n\n";

/// In the head of a stream that only says when to come back: why. A router asks another node then.
pub const BUSY_HEADER: &str = "tidegate-busy";

/// The id of an event: a place for each channel of the stream's URL, in its order, empty where none is known: `k3:5` for one
/// channel, `k3:5,,z9:7` for three. A browser sends the last id back when it reconnects to the same URL, so the order is
/// all that both sides need. `None` when no channel has a place.
pub fn join_id(places: impl Iterator<Item = Option<impl Display>>) -> Option<String> {
    let (mut id, mut is_known) = (String::new(), false);
    for (nth, place) in places.enumerate() {
        if nth > 0 {
            id.push(',');
        }
        if let Some(place) = place {
            is_known = true;
            id.push_str(&place.to_string());
        }
    }
    is_known.then_some(id)
}

/// The places in an id.
pub fn split_id(id: &str) -> impl Iterator<Item = Option<&str>> {
    id.split(',').map(|place| (!place.is_empty()).then_some(place))
}

/// Appends a whole answer that has an event source come back: any status but 200 would end it for good (WHATWG HTML
/// §9.2.2), and a stream that ends is connected again after `retry_ms`. `why` is a word. `origin` is of the page that
/// asks; what it learns is no secret, so it may be any.
pub fn write_come_back(retry_ms: u64, why: &str, origin: Option<&str>, out: &mut Vec<u8>) {
    push_status(200, "OK", out);
    push_header("Content-Type", "text/event-stream; charset=utf-8", out);
    push_header("Cache-Control", "no-store", out);
    push_header("Connection", "close", out);
    push_header("Tidegate-Busy", why, out);
    if let Some(origin) = origin {
        push_header("Access-Control-Allow-Origin", origin, out);
        push_header("Access-Control-Allow-Credentials", "true", out);
        push_header("Vary", "Origin", out);
    }
    let mut body = Vec::new();
    encode_retry(retry_ms, &mut body);
    push_header("Content-Length", &body.len().to_string(), out);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&body);
}

/// Appends the head of an event stream.
pub fn write_response_head(out: &mut Vec<u8>, extra: &[(&str, &str)]) {
    write_stream_head(MEDIA_TYPE, extra, out);
}

/// Appends one event. `data` may hold any text; its line ends (`\r\n`, `\r`, `\n`) all arrive as `\n`, which is
/// how the format carries lines. `id` and `event` lose line ends and NUL, which it cannot carry.
pub fn encode_event(id: Option<&str>, event: Option<&str>, data: &str, out: &mut Vec<u8>) {
    if let Some(id) = id {
        push_field(b"id: ", id, out);
    }
    if let Some(event) = event {
        push_field(b"event: ", event, out);
    }
    let mut rest = data;
    loop {
        let line_len = memchr::memchr2(b'\r', b'\n', rest.as_bytes()).unwrap_or(rest.len());
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(&rest.as_bytes()[..line_len]);
        out.push(b'\n');
        let Some(after) = strip_line_end(&rest[line_len..]) else {
            break;
        };
        rest = after;
    }
    out.push(b'\n');
}

/// Appends the beginning of an event: its id. The rest is an event that was encoded without one.
pub fn begin_event(id: &str, out: &mut Vec<u8>) {
    push_field(b"id: ", id, out);
}

/// Appends an id without an event: nothing is dispatched, but it is what the client comes back with (WHATWG HTML
/// §9.2.6: an empty data buffer sets the last event id and ends the event).
pub fn encode_id(id: &str, out: &mut Vec<u8>) {
    push_field(b"id: ", id, out);
    out.push(b'\n');
}

/// Appends the time a client waits before it connects again.
pub fn encode_retry(retry_ms: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"retry: ");
    push_u64(retry_ms, out);
    out.extend_from_slice(b"\n\n");
}

fn push_field(name: &[u8], value: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend(value.bytes().filter(|byte| !matches!(byte, b'\0' | b'\r' | b'\n')));
    out.push(b'\n');
}

/// What follows the line end at the start of `text`; `None` at the end of the text.
fn strip_line_end(text: &str) -> Option<&str> {
    text.strip_prefix("\r\n").or_else(|| text.strip_prefix(['\r', '\n']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_id_has_a_place_for_each_channel() {
        assert_eq!(join_id(["a", "b"].into_iter().map(Some)).as_deref(), Some("a,b"));
        assert_eq!(join_id([None, Some("a"), None].into_iter()).as_deref(), Some(",a,"));
        assert_eq!(join_id([None::<u8>, None].into_iter()), None);
        assert_eq!(split_id(",a,").collect::<Vec<_>>(), [None, Some("a"), None]);
    }

    /// What a browser dispatches.
    #[derive(Debug, PartialEq, Eq)]
    struct Event {
        id: String,
        event: String,
        data: String,
    }

    /// The interpretation of WHATWG HTML §9.2.6, over a whole stream.
    fn parse(stream: &[u8]) -> Vec<Event> {
        let text = std::str::from_utf8(stream).expect("an event stream is UTF-8");
        let lines = text.replace("\r\n", "\n").replace('\r', "\n");
        let (mut id, mut event, mut data) = (String::new(), String::new(), String::new());
        let mut events = Vec::new();
        for line in lines.split('\n') {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if line.is_empty() => {
                    if data.pop().is_some() {
                        events.push(Event { id: id.clone(), event: event.clone(), data: data.clone() });
                    }
                    (event, data) = (String::new(), String::new());
                }
                "id" if !value.contains('\0') => id = value.to_owned(),
                "event" => event = value.to_owned(),
                "data" => {
                    data.push_str(value);
                    data.push('\n');
                }
                _ => {}
            }
        }
        events
    }

    #[track_caller]
    fn check(id: Option<&str>, event: Option<&str>, data: &str, expected: &str) {
        let mut out = Vec::new();
        encode_event(id, event, data, &mut out);
        assert_eq!(String::from_utf8(out).expect("UTF-8"), expected);
    }

    #[test]
    fn events() {
        check(None, None, "hello", "data: hello\n\n");
        check(Some("k3f9:42"), Some("gap"), "{}", "id: k3f9:42\nevent: gap\ndata: {}\n\n");
        check(None, None, "", "data: \n\n");
        check(None, None, "a\nb\r\nc\rd\n", "data: a\ndata: b\ndata: c\ndata: d\ndata: \n\n");
        check(None, None, "\n\r", "data: \ndata: \ndata: \n\n");
        check(None, None, " data: x", "data:  data: x\n\n");
        check(Some("1\r\n2\0"), Some("a\n\ndata: x"), "y", "id: 12\nevent: adata: x\ndata: y\n\n");
    }

    #[test]
    fn heartbeats_and_retries_are_no_events() {
        let mut out = COMMENT_HEARTBEAT.to_vec();
        encode_retry(3_000, &mut out);
        assert!(out.ends_with(b"retry: 3000\n\n"));
        assert_eq!(parse(&out), []);
    }

    #[test]
    fn the_head_is_close_delimited() {
        let mut out = Vec::new();
        write_response_head(&mut out, &[("Access-Control-Allow-Origin", "*\r\nX: y")]);
        let expected = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-store\r\n\
                        X-Accel-Buffering: no\r\nConnection: close\r\nAccess-Control-Allow-Origin: *X: y\r\n\r\n";
        assert_eq!(String::from_utf8(out).expect("ASCII"), expected);
    }

    proptest! {
        #[test]
        fn events_read_back(
            id in "[^\r\n\0]{0,10}", event in "[^\r\n\0]{1,10}",
            data in prop::collection::vec(prop::sample::select(vec!["\r", "\n", "\r\n", ":", " ", "a", "é", "data"]), 0..12),
        ) {
            let data = data.concat();
            let mut out = COMMENT_HEARTBEAT.to_vec();
            encode_event(Some(&id), Some(&event), &data, &mut out);
            encode_event(None, None, "next", &mut out);
            let data = data.replace("\r\n", "\n").replace('\r', "\n");
            let next = Event { id: id.clone(), event: String::new(), data: "next".to_owned() };
            prop_assert_eq!(parse(&out), [Event { id, event, data }, next]);
        }

        #[test]
        fn nothing_escapes_its_event(id in any::<String>(), event in any::<String>(), data in any::<String>()) {
            let mut out = Vec::new();
            encode_event(Some(&id), Some(&event), &data, &mut out);
            let events = parse(&out);
            prop_assert_eq!(events.len(), 1);
            prop_assert_eq!(&events[0].data, &data.replace("\r\n", "\n").replace('\r', "\n"));
        }
    }

    #[test]
    fn who_is_to_come_back_gets_a_whole_answer() {
        let mut out = Vec::new();
        write_come_back(2500, "draining", Some("http://h"), &mut out);
        let text = String::from_utf8(out).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(
            head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("Tidegate-Busy: draining"),
            "{head}"
        );
        assert!(
            head.contains("Access-Control-Allow-Origin: http://h") && head.ends_with("Content-Length: 13"),
            "{head}"
        );
        assert_eq!(body, "retry: 2500\n\n");
    }
}
