//! The one judge of request heads: what is refused before anything is done with a request, and where its body ends.
//!
//! A connection's first request is read by a shard, later ones on their way to hyper. Both ask [`judge`], in the
//! gateway and in the router, so that no request means one thing here and another there.

use crate::{
    framing::{Framing, FramingError},
    head::{FORWARDING_BYTES_MAX, Head, HeadError},
};

/// A head that is whole and has one meaning.
#[derive(Debug)]
pub struct Judged<'b> {
    pub head: Head<'b>,
    /// How its body ends.
    pub framing: Framing,
}

/// Why a request goes no further, whatever it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error(transparent)]
    Framing(#[from] FramingError),
    #[error("the request head is larger than {max} bytes")]
    TooLarge { max: usize },
}

/// Reads the head at the start of `received`, of which the last `fresh` bytes are new. `None`: it is not complete yet,
/// and correct so far. `max` bounds it without what proxies add.
///
/// # Errors
/// [`RequestError`]: more bytes will not help, and the connection has no next request.
pub fn judge(received: &[u8], fresh: usize, max: usize) -> Result<Option<Judged<'_>>, RequestError> {
    // A head ends with a line end. Without a fresh one there is nothing new to parse, so that a head that trickles in
    // byte by byte is not parsed at every byte; unless it ended before, and what is new is of a body.
    let (before, new) = received.split_at(received.len().saturating_sub(fresh));
    let is_endless = received.len() > max.saturating_add(FORWARDING_BYTES_MAX);
    if !is_endless && !new.contains(&b'\n') && memchr::memmem::find(before, b"\n\r\n").is_none() {
        return Ok(None);
    }
    let Some(head) = Head::parse(received)? else {
        return if is_endless { Err(RequestError::TooLarge { max }) } else { Ok(None) };
    };
    if head.own_len() > max {
        return Err(RequestError::TooLarge { max });
    }
    // Of the protocol itself, not of a resource: no server of ours has a meaning for it.
    if head.path == "*" {
        return Err(HeadError::Target.into());
    }
    head.check_host()?;
    let framing = Framing::of(&head)?;
    Ok(Some(Judged { head, framing }))
}

impl RequestError {
    /// The HTTP status that answers it.
    #[must_use]
    pub fn status(self) -> (u16, &'static str) {
        match self {
            Self::Head(error) => error.status(),
            Self::Framing(FramingError::CodingUnknown) => (501, "Not Implemented"),
            Self::Framing(_) => (400, "Bad Request"),
            Self::TooLarge { .. } => (431, "Request Header Fields Too Large"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(lines: &str, expect: Result<Framing, RequestError>) {
        let text = format!("{}\r\n\r\n", lines.replace('\n', "\r\n"));
        let judged = judge(text.as_bytes(), text.len(), 4096).map(|judged| judged.expect("whole").framing);
        assert_eq!(judged, expect, "{lines}");
        // Byte by byte the same is said, and nothing before the end.
        for cut in 0..text.len() {
            let early = judge(&text.as_bytes()[..cut], 1, 4096);
            assert!(matches!(early, Ok(None)) || early.is_err() && expect.is_err(), "{lines:?} {cut}");
        }
    }

    #[test]
    fn a_body_whose_end_is_not_certain_is_refused() {
        use FramingError::{CodingUnknown, Encoding, Length, LengthAndEncoding, LengthRepeated};
        let cases = [
            ("Content-Length: 5\nContent-Length: 5", LengthRepeated),
            ("Content-Length: 5\nContent-Length: 6", LengthRepeated),
            ("Content-Length: 5, 5", Length),
            ("Content-Length: +5", Length),
            ("Content-Length: 0x5", Length),
            ("Content-Length:", Length),
            ("Content-Length: 18446744073709551616", Length),
            ("Content-Length: 5\nTransfer-Encoding: chunked", LengthAndEncoding),
            ("Transfer-Encoding: chunked\nContent-Length: 0", LengthAndEncoding),
            ("Transfer-Encoding: chunked\nTransfer-Encoding: chunked", Encoding),
            ("Transfer-Encoding: chunked, chunked", Encoding),
            ("Transfer-Encoding: chunked, identity", Encoding),
            ("Transfer-Encoding: gzip", Encoding),
            ("Transfer-Encoding: xchunked", Encoding),
            ("Transfer-Encoding:", Encoding),
            ("Transfer-Encoding: gzip, chunked", CodingUnknown),
            ("Transfer-Encoding: gzip\nTransfer-Encoding: chunked", CodingUnknown),
        ];
        for (lines, error) in cases {
            check(&format!("POST / HTTP/1.1\nHost: h\n{lines}"), Err(error.into()));
        }
        check("POST / HTTP/1.0\nTransfer-Encoding: chunked", Err(Encoding.into()));
    }

    #[test]
    fn a_body_whose_end_is_certain() {
        let chunked = Framing::CHUNKED;
        check("POST / HTTP/1.1\nHost: h\nTransfer-Encoding: Chunked", Ok(chunked));
        for (length, expect) in [("0", 0), ("00", 0), ("007", 7), ("18446744073709551615", u64::MAX)] {
            let lines = format!("POST / HTTP/1.1\nHost: h\nContent-Length: {length}");
            check(&lines, Ok(Framing::Length(expect)));
        }
        check("GET / HTTP/1.1\nHost: h", Ok(Framing::Length(0)));
    }

    /// Whoever reads the body as well asks again with more of it.
    #[test]
    fn a_head_stays_whole_while_its_body_comes() {
        let text = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc";
        for end in text.len() - 3..=text.len() {
            let judged = judge(&text.as_bytes()[..end], 1, 4096).expect("good");
            assert_eq!(judged.map(|judged| judged.framing), Some(Framing::Length(3)), "{end}");
        }
    }

    #[test]
    fn a_host_and_a_resource_are_named() {
        check("GET / HTTP/1.1", Err(HeadError::Host.into()));
        check("GET / HTTP/1.1\nHost: a\nHost: a", Err(HeadError::Host.into()));
        check("GET / HTTP/1.1\nHost: a/b@c", Err(HeadError::Host.into()));
        for target in ["*", "ftp://h/", "h:443", "/a#b", "/<", "/?\"", "/?<", "http://a@b/"] {
            check(&format!("GET {target} HTTP/1.1\nHost: h"), Err(HeadError::Target.into()));
        }
    }

    #[test]
    fn a_head_has_a_largest_size() {
        let head =
            |padding: usize| format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(padding));
        let max = head(10).len();
        let of = |padding: usize| {
            let text = head(padding);
            judge(text.as_bytes(), text.len(), max).map(|judged| judged.is_some())
        };
        assert_eq!(of(10), Ok(true));
        assert_eq!(of(11), Err(RequestError::TooLarge { max }));
        let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(max + FORWARDING_BYTES_MAX));
        assert_eq!(judge(endless.as_bytes(), 1, max).err(), Some(RequestError::TooLarge { max }));
        let forwarded = head(10).replace("\r\n\r\n", "\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n");
        assert!(judge(forwarded.as_bytes(), forwarded.len(), max).expect("good").is_some());
        // What comes after the head is not its size.
        let followed = format!("{}{}", head(0), "x".repeat(max));
        assert!(judge(followed.as_bytes(), followed.len(), max).expect("good").is_some());
    }
}
