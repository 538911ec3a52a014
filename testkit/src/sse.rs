//! An event-stream client, written from the WHATWG specification and not from our encoder.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::tcp::{HttpHead, RawTcp, ReadError};
use crate::wait::DEADLINE;

/// A subscriber over `text/event-stream`.
#[derive(Debug)]
pub struct SseClient {
    connection: RawTcp,
    head: HttpHead,
    body: Body,
    parser: Parser,
}

/// One dispatched event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseEvent {
    /// `message` unless the stream named another.
    pub event: String,
    pub data: String,
    /// The last event id at the time of dispatch; empty before the first.
    pub id: String,
}

impl SseClient {
    /// Opens `path`, with `Last-Event-ID` when given.
    ///
    /// # Panics
    /// When the answer is not 200 with the event-stream type.
    #[track_caller]
    pub fn connect(address: SocketAddr, path: &str, last_event_id: Option<&str>) -> Self {
        match Self::try_connect(address, path, last_event_id) {
            Ok(client) => client,
            Err((head, body)) => panic!("event stream {path}: {head:?} {body}"),
        }
    }

    /// Opens `path`; an answer that is no event stream comes back with its body.
    ///
    /// # Errors
    /// Head and body of the refusal.
    ///
    /// # Panics
    /// When there is no HTTP answer at all.
    #[track_caller]
    pub fn try_connect(
        address: SocketAddr,
        path: &str,
        last_event_id: Option<&str>,
    ) -> Result<Self, (HttpHead, String)> {
        let mut connection = RawTcp::connect(address);
        let resume = last_event_id.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{resume}\r\n");
        connection.send(request.as_bytes());
        let head = match connection.read_head(DEADLINE) {
            Ok(head) => head,
            Err(error) => panic!("event stream {path}: {error}"),
        };
        let is_stream =
            head.header("content-type").is_some_and(|value| value.starts_with("text/event-stream"));
        if head.status != 200 || !is_stream {
            let body = connection.read_some(Duration::from_secs(5)).unwrap_or_default();
            return Err((head, String::from_utf8_lossy(&body).into_owned()));
        }
        let chunked =
            head.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        let body = if chunked { Body::Chunked(Chunks::default()) } else { Body::UntilClose };
        Ok(Self { connection, head, body, parser: Parser::default() })
    }

    pub fn head(&self) -> &HttpHead {
        &self.head
    }

    /// Comments seen so far (heartbeats are comments).
    pub fn comments(&self) -> usize {
        self.parser.comments
    }

    /// The next event.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn next(&mut self, deadline: Duration) -> Result<SseEvent, ReadError> {
        let give_up = Instant::now() + deadline;
        loop {
            if let Some(event) = self.parser.events.pop_front() {
                return Ok(event);
            }
            self.read_more(left_until(give_up))?;
        }
    }

    /// The next event, which must come.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn expect_event(&mut self) -> SseEvent {
        match self.next(DEADLINE) {
            Ok(event) => event,
            Err(error) => panic!("expected an event: {error}"),
        }
    }

    /// Reads until a comment came, which is what a heartbeat looks like.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn expect_comment(&mut self) {
        let (seen, give_up) = (self.parser.comments, Instant::now() + DEADLINE);
        while self.parser.comments == seen {
            if let Err(error) = self.read_more(left_until(give_up)) {
                panic!("expected a comment: {error}");
            }
        }
    }

    /// The id that the client would come back with, which must come, with or without an event.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn expect_id(&mut self) -> String {
        let give_up = Instant::now() + DEADLINE;
        while self.parser.last_id.is_empty() {
            if let Err(error) = self.read_more(left_until(give_up)) {
                panic!("expected an id: {error}");
            }
        }
        self.parser.last_id.clone()
    }

    /// Reads up to the end of the stream and gives the events before it.
    ///
    /// # Panics
    /// When the server keeps the stream open.
    #[track_caller]
    pub fn expect_end(&mut self) -> Vec<SseEvent> {
        let give_up = Instant::now() + DEADLINE;
        loop {
            match self.read_more(left_until(give_up)) {
                Ok(()) => {}
                Err(ReadError::Closed) => return self.parser.events.drain(..).collect(),
                Err(error) => panic!("expected the end of the stream: {error}"),
            }
        }
    }

    fn read_more(&mut self, deadline: Duration) -> Result<(), ReadError> {
        let bytes = self.connection.read_some(deadline)?;
        match &mut self.body {
            Body::UntilClose => self.parser.push(&bytes),
            Body::Chunked(chunks) => {
                let content =
                    chunks.push(&bytes).ok_or_else(|| ReadError::NotHttp("a chunk size".to_owned()))?;
                self.parser.push(&content);
                if chunks.ended {
                    return Err(ReadError::Closed);
                }
            }
        }
        Ok(())
    }
}

/// How the body is delimited (RFC 9112 section 6.3).
#[derive(Debug)]
enum Body {
    UntilClose,
    Chunked(Chunks),
}

/// Takes chunked framing off (RFC 9112 section 7.1).
#[derive(Debug, Default)]
struct Chunks {
    pending: Vec<u8>,
    ended: bool,
}

impl Chunks {
    /// The content of the chunks that are complete; `None` when a size is no number.
    fn push(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.pending.extend_from_slice(bytes);
        let mut content = Vec::new();
        while let Some(line_end) = self.pending.windows(2).position(|pair| pair == b"\r\n") {
            let line = String::from_utf8_lossy(self.pending.get(..line_end)?).into_owned();
            let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
            let start = line_end + 2;
            if size == 0 {
                self.ended = true;
                break;
            }
            let Some(chunk) = self.pending.get(start..start + size) else { break };
            if self.pending.len() < start + size + 2 {
                break;
            }
            content.extend_from_slice(chunk);
            self.pending.drain(..start + size + 2);
        }
        Some(content)
    }
}

/// The line and field rules of the specification's section 9.2.6.
#[derive(Debug, Default)]
struct Parser {
    pending: Vec<u8>,
    event: String,
    data: Vec<String>,
    last_id: String,
    events: VecDeque<SseEvent>,
    comments: usize,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        while let Some(end) = self.pending.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            // A CR at the very end may be half of a CRLF: its other half decides where the next line begins.
            let cr = self.pending.get(end) == Some(&b'\r');
            let next = self.pending.get(end + 1);
            if cr && next.is_none() {
                break;
            }
            let terminator = if cr && next == Some(&b'\n') { 2 } else { 1 };
            let line: Vec<u8> = self.pending.drain(..end + terminator).take(end).collect();
            self.line(&String::from_utf8_lossy(&line));
        }
    }

    fn line(&mut self, line: &str) {
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => self.comments += 1,
            "event" => value.clone_into(&mut self.event),
            "data" => self.data.push(value.to_owned()),
            "id" if !value.contains('\0') => value.clone_into(&mut self.last_id),
            _ => {}
        }
    }

    fn dispatch(&mut self) {
        let event = std::mem::take(&mut self.event);
        if self.data.is_empty() {
            return;
        }
        let data = std::mem::take(&mut self.data).join("\n");
        let event = if event.is_empty() { "message".to_owned() } else { event };
        self.events.push_back(SseEvent { event, data, id: self.last_id.clone() });
    }
}

/// Comments come for as long as a stream stands: they do not make a deadline later.
fn left_until(give_up: Instant) -> Duration {
    give_up.saturating_duration_since(Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str =
        "retry: 5\n\n: hello\nid: e:1\ndata: a\ndata: b\n\r\nevent: gap\rdata:{}\r\r\ndata\n\nid: x\n\n";

    fn expected() -> Vec<SseEvent> {
        let event =
            |event: &str, data: &str| SseEvent { event: event.into(), data: data.into(), id: "e:1".into() };
        vec![event("message", "a\nb"), event("gap", "{}"), event("message", "")]
    }

    #[test]
    fn events_are_the_same_however_the_stream_is_split() {
        for size in 1..=STREAM.len() {
            let mut parser = Parser::default();
            STREAM.as_bytes().chunks(size).for_each(|piece| parser.push(piece));
            assert_eq!(Vec::from(parser.events), expected(), "pieces of {size}");
            assert_eq!((parser.comments, parser.last_id.as_str()), (1, "x"));
        }
    }

    #[test]
    fn chunks_are_joined_however_the_stream_is_split() {
        let wire = b"3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n";
        for size in 1..=wire.len() {
            let mut chunks = Chunks::default();
            let content: Vec<u8> =
                wire.chunks(size).flat_map(|piece| chunks.push(piece).expect("valid chunks")).collect();
            assert_eq!(content, b"abcd", "pieces of {size}");
            assert!(chunks.ended);
        }
        assert_eq!(Chunks::default().push(b"zz\r\n"), None);
    }
}
