//! RESP3 as it arrives: the end of each value is found in the received bytes, and messages are read where they lie.
//!
//! A value that is not complete is not looked at again from its beginning, and no declared length reserves memory.

use bytes::{Buf, BytesMut};
use redis::{RedisError, Value};

/// What one read may bring: a publication of 60 bytes arrives with a thousand others.
const READ_BYTES: usize = 64 * 1024;

/// A buffer that a long value has left behind is given back above this.
const KEPT_BYTES: usize = 1024 * 1024;

const HEADS: [&[u8]; 2] = [b">3\r\n$7\r\nmessage\r\n", b">3\r\n$8\r\nsmessage\r\n"];

/// Received and not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    bytes: BytesMut,
    scan: Scan,
}

/// How far the value at the beginning was looked at.
#[derive(Debug, Default)]
struct Scan {
    /// Where its next element begins.
    at: usize,
    /// Elements that are still to come, beside the first.
    open: usize,
    /// There is nothing new before so many bytes are there.
    needed: usize,
}

/// The server sent what is no RESP3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// A complete value.
pub(crate) enum Frame<'a> {
    /// A publication on a pub/sub channel.
    Message {
        channel: &'a [u8],
        payload: &'a [u8],
    },
    Value(Result<Value, RedisError>),
}

impl Inbound {
    /// With what another process has received of the same connection.
    pub(crate) fn of(received: &[u8]) -> Self {
        Self { bytes: received.into(), scan: Scan::default() }
    }

    /// What is not taken yet.
    pub(crate) fn received(&self) -> &[u8] {
        &self.bytes
    }

    /// Where to read into.
    pub(crate) fn room(&mut self) -> &mut BytesMut {
        if self.bytes.is_empty() && self.bytes.capacity() > KEPT_BYTES {
            self.bytes = BytesMut::new();
        }
        self.bytes.reserve(READ_BYTES / 4);
        if self.bytes.capacity() < READ_BYTES {
            self.bytes.reserve(READ_BYTES);
        }
        &mut self.bytes
    }

    /// Takes the next value, if it is complete.
    pub(crate) fn take<T>(&mut self, read: impl FnOnce(Frame<'_>) -> T) -> Result<Option<T>, Malformed> {
        if let Some((channel, payload, end)) = message(&self.bytes) {
            self.scan = Scan::default();
            let taken = read(Frame::Message {
                channel: &self.bytes[channel.0..channel.1],
                payload: &self.bytes[payload.0..payload.1],
            });
            self.bytes.advance(end);
            return Ok(Some(taken));
        }
        if !self.scan.is_complete(&self.bytes)? {
            return Ok(None);
        }
        let end = self.scan.at;
        let taken = read(Frame::Value(value(&self.bytes[..end])));
        self.bytes.advance(end);
        self.scan = Scan::default();
        Ok(Some(taken))
    }
}

impl Scan {
    fn is_complete(&mut self, bytes: &[u8]) -> Result<bool, Malformed> {
        if bytes.len() < self.needed {
            return Ok(false);
        }
        loop {
            let Some((kind, line, after)) = line_at(bytes, self.at) else {
                // Lines are short, but for errors and simple strings, which are of some hundred bytes.
                self.needed = bytes.len() + 1;
                return Ok(false);
            };
            let more = match kind {
                b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => {
                    self.at = after;
                    0
                }
                b'$' | b'!' | b'=' => {
                    let end = length(line)?.map_or(after, |length| after + length + 2);
                    if bytes.len() < end {
                        self.needed = end;
                        return Ok(false);
                    }
                    self.at = end;
                    0
                }
                b'*' | b'~' | b'>' | b'%' | b'|' => {
                    self.at = after;
                    let count = length(line)?.unwrap_or(0);
                    // Pairs; an attribute stands before the value that it belongs to.
                    match kind {
                        b'%' => 2 * count,
                        b'|' => 2 * count + 1,
                        _ => count,
                    }
                }
                _ => return Err(Malformed),
            };
            self.open += more;
            if self.open == 0 {
                return Ok(true);
            }
            self.open -= 1;
        }
    }
}

/// Kind, rest of the line, and where the next one begins.
fn line_at(bytes: &[u8], at: usize) -> Option<(u8, &[u8], usize)> {
    let rest = bytes.get(at..)?;
    let end = rest.iter().position(|&byte| byte == b'\n')?;
    let line = rest.get(1..end.checked_sub(1)?)?;
    Some((rest[0], line, at + end + 1))
}

/// `None`: -1, there is nothing.
fn length(line: &[u8]) -> Result<Option<usize>, Malformed> {
    if line == b"-1" {
        return Ok(None);
    }
    number(line).map(Some).ok_or(Malformed)
}

fn number(line: &[u8]) -> Option<usize> {
    if line.is_empty() || line.len() > 10 || !line.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(line.iter().fold(0, |number, digit| number * 10 + usize::from(digit - b'0')))
}

type Range = (usize, usize);

/// Where channel and payload of a complete message are, and where it ends.
fn message(bytes: &[u8]) -> Option<(Range, Range, usize)> {
    let head = HEADS.iter().find(|head| bytes.starts_with(head))?;
    let channel = bulk(bytes, head.len())?;
    let payload = bulk(bytes, channel.1 + 2)?;
    Some((channel, payload, payload.1 + 2))
}

/// Where the content of a complete bulk string is.
fn bulk(bytes: &[u8], at: usize) -> Option<Range> {
    let (b'$', line, after) = line_at(bytes, at)? else { return None };
    let end = after + number(line)?;
    (bytes.len() >= end + 2).then_some((after, end))
}

/// The usual answers are read here, all others by the library.
fn value(frame: &[u8]) -> Result<Value, RedisError> {
    let content = frame.get(1..frame.len().saturating_sub(2)).unwrap_or_default();
    match frame.first() {
        Some(b':') if let Some(number) = number(content) => Ok(Value::Int(number as i64)),
        Some(b'$') if let Some((from, to)) = bulk(frame, 0) => {
            Ok(Value::BulkString(frame[from..to].to_vec()))
        }
        _ => redis::parse_redis_value(frame),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use redis::PushKind;

    use super::*;

    fn taken(inbound: &mut Inbound) -> Vec<Value> {
        let read = |frame: Frame<'_>| match frame {
            Frame::Value(value) => {
                let value = value.unwrap();
                let is_message = matches!(&value, Value::Push { kind: PushKind::Message, .. });
                assert!(!is_message, "messages are told apart, in whatever pieces they came");
                value
            }
            Frame::Message { channel, payload } => {
                let data = [channel, payload].map(|bytes| Value::BulkString(bytes.to_vec())).to_vec();
                Value::Push { kind: PushKind::Message, data }
            }
        };
        std::iter::from_fn(|| inbound.take(read).unwrap()).collect()
    }

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    const STREAM: &[u8] = b"+OK\r\n:17\r\n:-3\r\n$-1\r\n_\r\n$5\r\na\r\nbc\r\n>3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$4\r\n\r\n\r\n\r\n\
        *2\r\n*1\r\n:1\r\n%1\r\n+k\r\n$0\r\n\r\n>3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n-MOVED 1 h:1\r\n#t\r\n";

    fn values() -> Vec<Value> {
        let message = Value::Push { kind: PushKind::Message, data: vec![bulk("c"), bulk("\r\n\r\n")] };
        let subscribed = Value::Push { kind: PushKind::Subscribe, data: vec![bulk("c"), Value::Int(1)] };
        let map = Value::Map(vec![(Value::SimpleString("k".into()), bulk(""))]);
        let nested = Value::Array(vec![Value::Array(vec![Value::Int(1)]), map]);
        let error = redis::parse_redis_value(b"-MOVED 1 h:1\r\n").unwrap();
        let some = [Value::Okay, Value::Int(17), Value::Int(-3), Value::Nil, Value::Nil, bulk("a\r\nbc")];
        some.into_iter().chain([message, nested, subscribed, error, Value::Boolean(true)]).collect()
    }

    #[test]
    fn values_are_read_in_pieces_of_any_size() {
        for size in 1..=STREAM.len() {
            let mut inbound = Inbound::default();
            let mut read = Vec::new();
            for piece in STREAM.chunks(size) {
                inbound.room().extend_from_slice(piece);
                read.extend(taken(&mut inbound));
            }
            assert_eq!(read, values(), "pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_resp_is_told() {
        for bytes in [&b"?\r\n"[..], b"$x\r\n", b"$-2\r\n", b"*99999999999999999999\r\n"] {
            let mut inbound = Inbound::default();
            inbound.room().extend_from_slice(bytes);
            assert!(matches!(inbound.take(|_| ()), Err(Malformed)), "{bytes:?}");
        }
    }

    proptest! {
        /// No bytes make it panic, or take memory that was not received.
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut inbound = Inbound::default();
            inbound.room().extend_from_slice(&bytes);
            while let Ok(Some(())) = inbound.take(|_| ()) {}
        }
    }
}
