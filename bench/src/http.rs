//! The client side of HTTP/1.1: a resumable response parser, and blocking requests for what is rare.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::target::Target;

/// Longest response head accepted; hyper's own default is of this order.
const HEAD_MAX: usize = 16 * 1024;

/// A GET of a metrics page that takes longer than this is given up.
const GET_TIMEOUT: Duration = Duration::from_secs(5);

/// The head of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResponseHead {
    pub status: u16,
    /// Seconds of `Retry-After`, when it was a number (RFC 9110 §10.2.3).
    pub retry_after_s: Option<u32>,
    /// The server will close after this response.
    pub close: bool,
    /// The accept value of a WebSocket upgrade was the expected one (RFC 6455 §4.1).
    pub accepted: bool,
    body: Body,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Body {
    #[default]
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

impl ResponseHead {
    /// The body comes in chunks (RFC 9112 §7.1).
    #[must_use]
    pub fn is_chunked(&self) -> bool {
        self.body == Body::Chunked
    }
}

/// A response this client does not understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResponseFault {
    #[error("the response does not begin with an HTTP/1.1 status line")]
    StatusLine,
    #[error("the response head is longer than 16 KiB")]
    HeadTooLong,
    #[error("a header line has no colon or a length that is no number")]
    Header,
    #[error("a chunk size is no hexadecimal number")]
    Chunk,
}

/// `Sec-WebSocket-Key` of every handshake and the accept value that answers it (the pair of RFC 6455 §1.3). A
/// fixed pair saves a SHA-1 per connection on the side that must not become the limit.
pub const WEBSOCKET_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const WEBSOCKET_ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Parses the head at the start of `bytes`; `None` if it is not all there yet. Returns its length too.
pub fn parse_head(bytes: &[u8]) -> Result<Option<(ResponseHead, usize)>, ResponseFault> {
    let Some(end) = find(bytes, b"\r\n\r\n") else {
        return if bytes.len() > HEAD_MAX { Err(ResponseFault::HeadTooLong) } else { Ok(None) };
    };
    let mut lines = bytes[..end].split(|&byte| byte == b'\n').map(|line| line.trim_ascii_end());
    let mut head = ResponseHead { status: status(lines.next().unwrap_or(b""))?, ..ResponseHead::default() };
    head.body = match head.status {
        // RFC 9112 §6.3: these have no body whatever the headers say.
        100..=199 | 204 | 304 => Body::None,
        _ => Body::UntilClose,
    };
    for line in lines {
        let colon = line.iter().position(|&byte| byte == b':').ok_or(ResponseFault::Header)?;
        header(&mut head, &line[..colon], line[colon + 1..].trim_ascii())?;
    }
    head.close |= head.body == Body::UntilClose;
    Ok(Some((head, end + 4)))
}

fn status(line: &[u8]) -> Result<u16, ResponseFault> {
    line.strip_prefix(b"HTTP/1.1 ")
        .or_else(|| line.strip_prefix(b"HTTP/1.0 "))
        .and_then(|rest| rest.get(..3))
        .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
        .ok_or(ResponseFault::StatusLine)
}

fn header(head: &mut ResponseHead, name: &[u8], value: &[u8]) -> Result<(), ResponseFault> {
    let text = || std::str::from_utf8(value).unwrap_or("");
    if name.eq_ignore_ascii_case(b"content-length") {
        if matches!(head.body, Body::UntilClose) {
            head.body = Body::Length(text().parse().map_err(|_| ResponseFault::Header)?);
        }
    } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
        if head.body != Body::None && value.to_ascii_lowercase().ends_with(b"chunked") {
            head.body = Body::Chunked;
        }
    } else if name.eq_ignore_ascii_case(b"connection") {
        head.close |= value.eq_ignore_ascii_case(b"close");
    } else if name.eq_ignore_ascii_case(b"retry-after") {
        head.retry_after_s = text().parse().ok();
    } else if name.eq_ignore_ascii_case(b"sec-websocket-accept") {
        head.accepted = value == WEBSOCKET_ACCEPT;
    }
    Ok(())
}

/// One keep-alive connection's incoming responses. Bodies are counted, not kept.
#[derive(Debug, Default)]
pub struct ResponseReader {
    /// A head or chunk-size line that a read cut; empty otherwise.
    partial: Vec<u8>,
    current: Option<ResponseHead>,
    body: BodyReader,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum BodyReader {
    #[default]
    Done,
    Bytes(u64),
    ChunkSize,
    ChunkData(u64),
    /// Lines after the last chunk, up to an empty one.
    Trailer,
    UntilClose,
}

impl ResponseReader {
    /// Takes the next bytes and reports every response they complete. A response that lasts until the
    /// connection closes is reported at its head: its body changes nothing.
    pub fn feed(&mut self, bytes: &[u8], mut on: impl FnMut(ResponseHead)) -> Result<(), ResponseFault> {
        let joined;
        let mut rest = if self.partial.is_empty() {
            bytes
        } else {
            self.partial.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.partial);
            &joined
        };
        while !rest.is_empty() {
            let used = match self.body {
                BodyReader::Done => self.take_head(rest, &mut on)?,
                BodyReader::Bytes(left) => Some(self.take_bytes(rest, left, BodyReader::Bytes)),
                BodyReader::ChunkData(left) => Some(self.take_bytes(rest, left, BodyReader::ChunkData)),
                BodyReader::ChunkSize | BodyReader::Trailer => self.take_line(rest)?,
                BodyReader::UntilClose => Some(rest.len()),
            };
            let Some(used) = used else {
                self.partial.extend_from_slice(rest);
                break;
            };
            rest = &rest[used..];
            self.finish(&mut on);
        }
        Ok(())
    }

    fn take_head(
        &mut self,
        bytes: &[u8],
        on: &mut impl FnMut(ResponseHead),
    ) -> Result<Option<usize>, ResponseFault> {
        let Some((head, used)) = parse_head(bytes)? else {
            return Ok(None);
        };
        self.body = match head.body {
            Body::None | Body::Length(0) => BodyReader::Done,
            Body::Length(length) => BodyReader::Bytes(length),
            Body::Chunked => BodyReader::ChunkSize,
            Body::UntilClose => BodyReader::UntilClose,
        };
        if self.body == BodyReader::UntilClose {
            on(head);
        } else {
            self.current = Some(head);
        }
        Ok(Some(used))
    }

    fn take_bytes(&mut self, bytes: &[u8], left: u64, again: fn(u64) -> BodyReader) -> usize {
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let left = left - take as u64;
        self.body = match again(left) {
            BodyReader::Bytes(0) => BodyReader::Done,
            BodyReader::ChunkData(0) => BodyReader::ChunkSize,
            unfinished => unfinished,
        };
        take
    }

    /// A chunk-size line or a trailer line (RFC 9112 §7.1).
    fn take_line(&mut self, bytes: &[u8]) -> Result<Option<usize>, ResponseFault> {
        let Some(end) = find(bytes, b"\r\n") else {
            return if bytes.len() > HEAD_MAX { Err(ResponseFault::Chunk) } else { Ok(None) };
        };
        if self.body == BodyReader::Trailer {
            if end == 0 {
                self.body = BodyReader::Done;
            }
            return Ok(Some(end + 2));
        }
        let digits = bytes[..end].split(|&byte| byte == b';').next().unwrap_or(b"").trim_ascii();
        let size = std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .and_then(|size| size.checked_add(2))
            .ok_or(ResponseFault::Chunk)?;
        // The data is followed by an empty line, counted with it.
        self.body = if size == 2 { BodyReader::Trailer } else { BodyReader::ChunkData(size) };
        Ok(Some(end + 2))
    }

    fn finish(&mut self, on: &mut impl FnMut(ResponseHead)) {
        if self.body == BodyReader::Done
            && let Some(head) = self.current.take()
        {
            on(head);
        }
    }
}

pub(crate) fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

/// Fetches a page over a fresh connection; the body as text, or what went wrong as an I/O error.
pub fn get(target: &Target, path: &str) -> std::io::Result<String> {
    exchange(target, &format!("GET {path}"), "")
}

/// The same for a `POST` of JSON.
pub fn post(target: &Target, path: &str, json: &str) -> std::io::Result<String> {
    exchange(target, &format!("POST {path}"), json)
}

fn exchange(target: &Target, what: &str, json: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&target.address, GET_TIMEOUT)?;
    stream.set_read_timeout(Some(GET_TIMEOUT))?;
    let body = match json {
        "" => String::new(),
        json => format!("content-type: application/json\r\ncontent-length: {}\r\n", json.len()),
    };
    // HTTP/1.0: the answer is not chunked and ends with the connection.
    let authority = &target.authority;
    let head = format!("{what} HTTP/1.0\r\nhost: {authority}\r\nconnection: close\r\n{body}\r\n");
    stream.write_all((head + json).as_bytes())?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response)?;
    let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let (head, used) = parse_head(&response).map_err(|_| invalid())?.ok_or_else(invalid)?;
    if head.status != 200 {
        return Err(std::io::Error::other(format!("status {}", head.status)));
    }
    Ok(String::from_utf8_lossy(&response[used..]).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(response: &[u8], pieces: usize) -> Result<Vec<(u16, Option<u32>, bool)>, ResponseFault> {
        let mut reader = ResponseReader::default();
        let mut seen = Vec::new();
        for piece in response.chunks(pieces) {
            reader.feed(piece, |head| seen.push((head.status, head.retry_after_s, head.close)))?;
        }
        Ok(seen)
    }

    #[track_caller]
    fn check(response: &str, expected: &[(u16, Option<u32>, bool)]) {
        for pieces in (1..response.len()).chain([usize::MAX]) {
            let seen = read(response.as_bytes(), pieces).unwrap();
            assert_eq!(seen, expected, "pieces of {pieces}");
        }
    }

    #[test]
    fn responses_are_told_apart() {
        check(
            "HTTP/1.1 200 OK\r\ncontent-length: 22\r\n\r\n{\"epoch\":1,\"offset\":2}HTTP/1.1 204 No Content\r\n\r\n",
            &[(200, None, false), (204, None, false)],
        );
        check(
            "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
            &[(429, Some(3), false), (200, None, false)],
        );
        check("HTTP/1.1 503 X\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno", &[(503, None, true)]);
        check("HTTP/1.0 200 OK\r\n\r\nuntil the end", &[(200, None, true)]);
    }

    #[test]
    fn chunks_are_counted() {
        check(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\n{\"a\"\r\nB;x=y\r\n0123456789a\r\n0\r\nt: v\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            &[(200, None, false), (200, None, false)],
        );
    }

    #[test]
    fn faults_are_named() {
        assert_eq!(read(b"SSH-2.0-x\r\n\r\n", 100), Err(ResponseFault::StatusLine));
        assert_eq!(read(b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", 100), Err(ResponseFault::Header));
        let chunk = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n";
        assert_eq!(read(chunk, 100), Err(ResponseFault::Chunk));
        assert_eq!(read(&[b'a'; HEAD_MAX + 1], usize::MAX), Err(ResponseFault::HeadTooLong));
    }

    #[test]
    fn an_upgrade_is_recognised() {
        let response = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x81\x00";
        let (head, used) = parse_head(response).unwrap().unwrap();
        assert_eq!((head.status, head.accepted, used), (101, true, response.len() - 2));
        let other = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: no\r\n\r\n";
        assert!(!parse_head(other).unwrap().unwrap().0.accepted);
    }
}
