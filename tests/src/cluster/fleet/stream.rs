//! From bytes to what a client sees: response heads, WebSocket frames, event streams. Written from the documents.

use serde_json::Value;

/// How a client receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `/ws` with `envelope=json`.
    Raw,
    /// `/sse`.
    Sse,
}

/// One thing that a client sees.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    Opened,
    Refused(u16),
    /// A publication whose payload is its number, and the position to come back with.
    Publication {
        number: u32,
        position: Option<String>,
    },
    /// A position without a publication.
    Position(String),
    Gap {
        unrecoverable: bool,
    },
    Ping(Vec<u8>),
    /// With code and reason, if they were said.
    Close(String),
}

/// The bytes of one connection, as far as they have come.
#[derive(Debug)]
pub(super) struct Stream {
    protocol: Protocol,
    opened: bool,
    pending: Vec<u8>,
    event: String,
    data: Option<String>,
    id: Option<String>,
}

impl Stream {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self { protocol, opened: false, pending: Vec::new(), event: String::new(), data: None, id: None }
    }

    /// What is complete now.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<Item> {
        self.pending.extend_from_slice(bytes);
        let mut items = Vec::new();
        if !self.opened {
            items.extend(self.head());
        }
        // What follows a refusal is its body.
        if !self.opened {
            return items;
        }
        let pending = std::mem::take(&mut self.pending);
        let used = match self.protocol {
            Protocol::Raw => frames(&pending, &mut items),
            Protocol::Sse => self.lines(&pending, &mut items),
        };
        self.pending = pending.get(used..).unwrap_or_default().to_vec();
        items
    }

    fn head(&mut self) -> Option<Item> {
        let end = self.pending.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
        let head: Vec<u8> = self.pending.drain(..end + 4).collect();
        let head = String::from_utf8_lossy(&head).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let expected = if self.protocol == Protocol::Raw { 101 } else { 200 };
        if status != expected {
            return Some(Item::Refused(status));
        }
        // An event source that is refused for a while is answered with a stream that ends: it was never open.
        if head.contains("\r\nTidegate-Busy: ") {
            return Some(Item::Refused(503));
        }
        self.opened = true;
        Some(Item::Opened)
    }

    /// Lines that are complete; gives the number of bytes they took.
    fn lines(&mut self, bytes: &[u8], items: &mut Vec<Item>) -> usize {
        let mut used = 0;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let Some(line) = line.strip_suffix(b"\n") else { break };
            used += line.len() + 1;
            let line = String::from_utf8_lossy(line).into_owned();
            let line = line.trim_end_matches('\r');
            match line.split_once(':').map(|(field, value)| (field, value.trim_start())) {
                Some(("event", value)) => value.clone_into(&mut self.event),
                Some(("data", value)) => self.data = Some(value.to_owned()),
                Some(("id", value)) => self.id = Some(value.to_owned()),
                None if line.is_empty() => items.extend(self.dispatch()),
                _ => {}
            }
        }
        used
    }

    fn dispatch(&mut self) -> Option<Item> {
        let event = std::mem::take(&mut self.event);
        match (event.as_str(), self.data.take()) {
            ("gap", Some(notice)) => {
                let notice: Value = serde_json::from_str(&notice).expect("a notice is JSON");
                Some(gap(&notice["gap"]))
            }
            ("", Some(data)) => {
                let number = data.parse().expect("a payload is a number");
                Some(Item::Publication { number, position: self.id.clone() })
            }
            ("", None) => self.id.clone().map(Item::Position),
            (other, data) => panic!("an event that nobody published: {other:?} {data:?}"),
        }
    }
}

/// Server frames that are complete (RFC 6455 section 5.2: unmasked); gives the number of bytes they took.
fn frames(bytes: &[u8], items: &mut Vec<Item>) -> usize {
    let mut used = 0;
    while let Some((opcode, payload, length)) = bytes.get(used..).and_then(frame) {
        used += length;
        match opcode {
            0x1 => items.push(message(payload)),
            0x8 => items.push(Item::Close(close(payload))),
            0x9 => items.push(Item::Ping(payload.to_vec())),
            other => panic!("frame with opcode {other}"),
        }
    }
    used
}

fn close(payload: &[u8]) -> String {
    let Some((code, reason)) = payload.split_first_chunk() else { return String::new() };
    format!("{} {}", u16::from_be_bytes(*code), String::from_utf8_lossy(reason))
}

/// Opcode, payload, and length of the whole frame.
fn frame(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (&first, &short) = (bytes.first()?, bytes.get(1)?);
    let (header, length) = match short & 0x7F {
        126 => (4, usize::from(u16::from_be_bytes(*bytes.get(2..4)?.first_chunk()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(*bytes.get(2..10)?.first_chunk()?)).ok()?),
        length => (2, usize::from(length)),
    };
    Some((first & 0x0F, bytes.get(header..header + length)?, header + length))
}

fn message(payload: &[u8]) -> Item {
    let message: Value = serde_json::from_slice(payload).expect("an envelope is JSON");
    if let Some(notice) = message.get("gap") {
        return gap(notice);
    }
    let number = message["data"].as_str().and_then(|data| data.parse().ok());
    let number = number.unwrap_or_else(|| panic!("no numbered publication: {message}"));
    let position = match (&message["epoch"], &message["offset"]) {
        (Value::String(epoch), Value::Number(offset)) => Some(format!("{epoch}:{offset}")),
        _ => None,
    };
    Item::Publication { number, position }
}

fn gap(notice: &Value) -> Item {
    Item::Gap { unrecoverable: notice["reason"] == "unrecoverable" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(protocol: Protocol, bytes: &[u8], expect: &[Item]) {
        for size in 1..=bytes.len() {
            let mut stream = Stream::new(protocol);
            let items: Vec<Item> = bytes.chunks(size).flat_map(|piece| stream.push(piece)).collect();
            assert_eq!(items, expect, "pieces of {size}");
        }
    }

    #[test]
    fn streams_are_read_in_pieces_of_any_size() {
        let publication = || Item::Publication { number: 3, position: Some("k:4".to_owned()) };
        let sse = b"HTTP/1.1 200 OK\r\n\r\nid: k:3\n\nid: k:4\ndata: 3\n\n:\n\
            event: gap\nid: k:9\ndata: {\"channel\":\"a\",\"gap\":{\"reason\":\"reconnect\"}}\n\n";
        let position = Item::Position("k:3".to_owned());
        check(
            Protocol::Sse,
            sse,
            &[Item::Opened, position, publication(), Item::Gap { unrecoverable: false }],
        );

        let mut raw = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
        let messages = [
            r#"{"channel":"a","epoch":"k","offset":4,"data":"3"}"#,
            r#"{"channel":"a","gap":{"reason":"unrecoverable","epoch":null,"offset":null}}"#,
        ];
        for message in messages {
            raw.extend_from_slice(&[0x81, u8::try_from(message.len()).expect("a short message")]);
            raw.extend_from_slice(message.as_bytes());
        }
        raw.extend_from_slice(b"\x89\x01p\x88\x02\x03\xe8");
        let expect = [
            Item::Opened,
            publication(),
            Item::Gap { unrecoverable: true },
            Item::Ping(b"p".to_vec()),
            Item::Close("1000 ".into()),
        ];
        check(Protocol::Raw, &raw, &expect);
    }

    #[test]
    fn a_refusal_gives_its_status() {
        let refusal = b"HTTP/1.1 503 Service Unavailable\r\n\r\n{\"status\":503}";
        check(Protocol::Raw, refusal, &[Item::Refused(503)]);
        let refusal = b"HTTP/1.1 200 OK\r\nTidegate-Busy: away\r\n\r\nretry: 1000\n\n";
        check(Protocol::Sse, refusal, &[Item::Refused(503)]);
    }
}
