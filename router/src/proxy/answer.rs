//! What a node says to a request for an upgrade: whether it switches, and what is passed on if it does not. Pure.

use tidegate_wire::sse;

use super::link::BodyLeft;

/// What the beginning of an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// More bytes are needed.
    Unclear,
    Switching,
    Other,
}

/// An answer that is no switch, as the client gets it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Other {
    /// With `Connection: close`: what the client would send next has nobody to go to.
    pub(super) head: Vec<u8>,
    /// Bytes of the node's own head.
    pub(super) len: usize,
    pub(super) body: BodyLeft,
    /// The node takes no client now, and another one may: it is full or drains (503, or a stream that only says when to
    /// come back), or is no node (508).
    pub(super) is_busy: bool,
    pub(super) status: u16,
}

/// Not an HTTP answer that can be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an answer")]
pub(super) struct BadAnswer;

/// Most bytes of a node's head: its own limit for requests is the same.
const HEAD_BYTES_MAX: usize = 16 * 1024;

const HEADERS_MAX: usize = 64;

const SWITCHING: &[u8] = b"HTTP/1.1 101";

pub(super) fn verdict(received: &[u8]) -> Verdict {
    match received.get(..SWITCHING.len()) {
        Some(begin) if begin == SWITCHING => match received.get(SWITCHING.len()) {
            None => Verdict::Unclear,
            Some(b' ' | b'\r') => Verdict::Switching,
            Some(_) => Verdict::Other,
        },
        None if SWITCHING.starts_with(received) => Verdict::Unclear,
        _ => Verdict::Other,
    }
}

/// Reads the head of an answer that is no switch. `None`: it is not complete yet.
pub(super) fn other(received: &[u8]) -> Result<Option<Other>, BadAnswer> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let len = match response.parse(received).map_err(|_| BadAnswer)? {
        httparse::Status::Complete(len) => len,
        httparse::Status::Partial if received.len() > HEAD_BYTES_MAX => return Err(BadAnswer),
        httparse::Status::Partial => return Ok(None),
    };
    let status = response.code.filter(|status| (200..600).contains(status)).ok_or(BadAnswer)?;
    let reason = response.reason.unwrap_or_default();
    let mut head = format!("HTTP/1.1 {status} {reason}\r\n").into_bytes();
    let hop = ["connection", "keep-alive", "proxy-connection"];
    for header in response.headers.iter() {
        if !hop.iter().any(|name| header.name.eq_ignore_ascii_case(name)) {
            head.extend_from_slice(header.name.as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(header.value);
            head.extend_from_slice(b"\r\n");
        }
    }
    head.extend_from_slice(b"Connection: close\r\n\r\n");
    let is_busy = matches!(status, 503 | 508)
        || response.headers.iter().any(|header| header.name.eq_ignore_ascii_case(sse::BUSY_HEADER));
    Ok(Some(Other { head, len, body: body(status, response.headers), is_busy, status }))
}

/// How long the body of an answer to a GET is (RFC 9112 §6.3). One in chunks is passed on until the node ends.
fn body(status: u16, headers: &[httparse::Header<'_>]) -> BodyLeft {
    let named = |name: &str| headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    if matches!(status, 204 | 304) {
        return BodyLeft::Bytes(0);
    }
    if named("transfer-encoding").is_some() {
        return BodyLeft::Unknown;
    }
    named("content-length")
        .and_then(|header| str::from_utf8(header.value).ok()?.trim().parse().ok())
        .map_or(BodyLeft::Unknown, BodyLeft::Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_is_known_by_its_status() {
        let answer = b"HTTP/1.1 101 Switching Protocols\r\n";
        for cut in 0..answer.len() {
            let expect = if cut <= 12 { Verdict::Unclear } else { Verdict::Switching };
            assert_eq!(verdict(&answer[..cut]), expect, "{cut}");
        }
        for other in ["HTTP/1.1 200 OK", "HTTP/1.1 1010", "HTTP/1.0 101 x", "SSH-2.0-x", "x"] {
            assert_eq!(verdict(other.as_bytes()), Verdict::Other, "{other}");
        }
    }

    #[track_caller]
    fn check(answer: &str, expect_head: &str, body: BodyLeft) {
        let answer = answer.replace('\n', "\r\n");
        for cut in 0..answer.len() {
            let complete = answer.as_bytes()[..cut].windows(4).any(|end| end == b"\r\n\r\n");
            assert_eq!(other(&answer.as_bytes()[..cut]).map(|other| other.is_some()), Ok(complete), "{cut}");
        }
        let other = other(answer.as_bytes()).expect("good").expect("whole");
        assert_eq!(String::from_utf8(other.head).expect("text"), expect_head.replace('\n', "\r\n"));
        assert_eq!((&answer[other.len..], other.body), ("body", body));
    }

    #[test]
    fn another_answer_ends_the_connection() {
        check(
            "HTTP/1.1 403 Forbidden\nContent-Length: 4\nConnection: keep-alive\nKeep-Alive: 5\nX: y\n\nbody",
            "HTTP/1.1 403 Forbidden\nContent-Length: 4\nX: y\nConnection: close\n\n",
            BodyLeft::Bytes(4),
        );
        check(
            "HTTP/1.0 200 OK\nTransfer-Encoding: chunked\nContent-Length: 4\n\nbody",
            "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nContent-Length: 4\nConnection: close\n\n",
            BodyLeft::Unknown,
        );
        check(
            "HTTP/1.1 304 Not Modified\nContent-Length: 9\n\nbody",
            "HTTP/1.1 304 Not Modified\nContent-Length: 9\nConnection: close\n\n",
            BodyLeft::Bytes(0),
        );
    }

    #[test]
    fn who_takes_no_client_now_says_so() {
        for (answer, expect) in [
            ("HTTP/1.1 503 Busy\r\n\r\n", true),
            ("HTTP/1.1 508 Loop Detected\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\nTidegate-Busy: draining\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\n\r\n", false),
            ("HTTP/1.1 429 Too Many Requests\r\n\r\n", false),
        ] {
            let other = other(answer.as_bytes()).expect("good").expect("whole");
            assert_eq!(other.is_busy, expect, "{answer}");
        }
    }

    #[test]
    fn what_is_no_answer_is_not_passed_on() {
        for bad in [
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 999 x\r\n\r\n",
            "\x16\x03\x01\x02",
        ] {
            assert_eq!(other(bad.as_bytes()), Err(BadAnswer), "{bad:?}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(HEAD_BYTES_MAX));
        assert_eq!(other(endless.as_bytes()), Err(BadAnswer));
    }
}
