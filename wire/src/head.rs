//! The head of an HTTP/1 request (RFC 9112 §2–§5), read in place from the bytes received so far.

use std::{borrow::Cow, mem::MaybeUninit};

use percent_encoding::percent_decode_str;

/// Headers beyond this refuse the request. Browsers send 15 to 25.
pub const HEADERS_MAX: usize = 64;

/// What a proxy says of a request it passes on. A node takes what its clients may send and these beside it: else a
/// request that is good without a router before the node would not be with one.
pub const FORWARDING_HEADERS: [&str; 7] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-real-ip",
    "tidegate-router",
];

/// Of such headers at most so many, and so many bytes with their names, are not counted.
pub const FORWARDING_HEADERS_MAX: usize = 8;
pub const FORWARDING_BYTES_MAX: usize = 1024;

/// hyper counts a target's bytes with 16 bits.
const TARGET_BYTES_MAX: usize = 65_534;

/// Stands for a header value that is not UTF-8, or for one of several values where there can be one. No header of ours has
/// a meaning for it, so it is refused where its value counts, and is never taken for a header that is not there.
pub const UNREADABLE: &str = "\u{fffd}";

/// A request head that borrows the buffer it was read from.
pub struct Head<'b> {
    pub method: &'b str,
    /// The path as sent: percent-encoded, starting with `/`, or `*`.
    pub path: &'b str,
    /// What follows the first `?`, without it.
    pub query: Option<&'b str>,
    /// 0 or 1: HTTP/1.0 or HTTP/1.1.
    pub minor_version: u8,
    /// Bytes of the head, the empty line included; what follows them belongs to the next protocol.
    pub len: usize,
    headers: Vec<httparse::Header<'b>>,
}

/// Bytes that are not a request head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("the request line or a header is malformed: {0}")]
    Syntax(httparse::Error),
    #[error("the request has more than {HEADERS_MAX} headers")]
    HeadersTooMany,
    #[error("the request target is neither a path nor a URL")]
    Target,
    #[error("the Host header is missing, repeated, or no host")]
    Host,
}

/// A percent-encoding that is cut short, not hexadecimal, or not UTF-8 once decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a percent-encoding is malformed or not UTF-8")]
pub struct PercentError;

impl<'b> Head<'b> {
    /// Reads a head from the start of `buf`. `None`: it is not complete yet, and correct so far.
    ///
    /// # Errors
    /// [`HeadError`]: more bytes will not help. Folded header lines are malformed (RFC 9112 §5.2).
    pub fn parse(buf: &'b [u8]) -> Result<Option<Self>, HeadError> {
        let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX + FORWARDING_HEADERS_MAX];
        let mut request = httparse::Request::new(&mut []);
        let len = match request.parse_with_uninit_headers(buf, &mut headers) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(HeadError::HeadersTooMany),
            Err(error) => return Err(HeadError::Syntax(error)),
        };
        let (Some(method), Some(target), Some(minor_version)) =
            (request.method, request.path, request.version)
        else {
            return Ok(None);
        };
        let own = request.headers.iter().filter(|header| !is_forwarding(header.name)).count();
        if own > HEADERS_MAX {
            return Err(HeadError::HeadersTooMany);
        }
        let (path, query) = split_target(target)?;
        let headers = request.headers.to_vec();
        Ok(Some(Self { method, path, query, minor_version, len, headers }))
    }

    /// The header of that name. One that is not UTF-8, or is given twice, is there all the same: it reads as
    /// [`UNREADABLE`]. Which of two a proxy before us went by is not known (RFC 9110 §5.3).
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'b str> {
        let mut values = self.headers_named(name);
        let first = values.next()?;
        Some(if values.next().is_some() { UNREADABLE } else { first })
    }

    /// Every header of that name, in order; for one that is not UTF-8 stands [`UNREADABLE`].
    pub fn headers_named<'n>(&'n self, name: &'n str) -> impl Iterator<Item = &'b str> + 'n {
        self.octets_named(name).map(|value| simdutf8::basic::from_utf8(value).unwrap_or(UNREADABLE))
    }

    /// Every header of that name, in order, as the octets that it is (RFC 9110 §5.5).
    pub fn octets_named<'n>(&'n self, name: &'n str) -> impl Iterator<Item = &'b [u8]> + 'n {
        self.headers().filter(move |(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The headers of that name as one list (RFC 9110 §5.3): what [`crate::upgrade::Upgrade::negotiate`] asks for.
    #[must_use]
    pub fn header_joined(&self, name: &str) -> Option<Cow<'b, str>> {
        let mut values = self.headers_named(name);
        let mut joined = Cow::Borrowed(values.next()?);
        for value in values {
            let joined = joined.to_mut();
            joined.push_str(", ");
            joined.push_str(value);
        }
        Some(joined)
    }

    /// Every header, in order, with its raw value.
    pub fn headers(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> + '_ {
        self.headers.iter().map(|header| (header.name, header.value))
    }

    /// Bytes of the head without what a proxy has added, as far as that may be.
    #[must_use]
    pub fn own_len(&self) -> usize {
        let added = self.headers().filter(|(name, _)| is_forwarding(name));
        // `NAME: VALUE` and a line end.
        let added: usize = added.map(|(name, value)| name.len() + value.len() + 4).sum();
        self.len.saturating_sub(added.min(FORWARDING_BYTES_MAX))
    }

    /// Checks that it says which host is meant: once, and always in HTTP/1.1 (RFC 9112 §3.2). The value may be empty.
    ///
    /// # Errors
    /// [`HeadError::Host`].
    pub fn check_host(&self) -> Result<(), HeadError> {
        let mut hosts =
            self.headers().filter(|(name, _)| name.eq_ignore_ascii_case("host")).map(|(_, value)| value);
        let is_host = |host: &[u8]| host.is_empty() || std::str::from_utf8(host).is_ok_and(is_authority);
        match (hosts.next(), hosts.next()) {
            (None, _) if self.minor_version == 0 => Ok(()),
            (Some(host), None) if is_host(host) => Ok(()),
            _ => Err(HeadError::Host),
        }
    }
}

impl std::fmt::Debug for Head<'_> {
    /// Without the headers' values and the query: they carry credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Head")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("minor_version", &self.minor_version)
            .field("len", &self.len)
            .field("headers", &self.headers.len())
            .finish_non_exhaustive()
    }
}

impl HeadError {
    /// The HTTP status that answers it.
    #[must_use]
    pub fn status(self) -> (u16, &'static str) {
        match self {
            Self::Syntax(httparse::Error::Version) => (505, "HTTP Version Not Supported"),
            Self::Syntax(_) | Self::Target | Self::Host => (400, "Bad Request"),
            Self::HeadersTooMany => (431, "Request Header Fields Too Large"),
        }
    }
}

fn is_forwarding(name: &str) -> bool {
    // Most headers of a request begin with another letter.
    matches!(name.as_bytes(), [b'f' | b'F' | b'x' | b'X' | b't' | b'T', ..])
        && FORWARDING_HEADERS.iter().any(|other| name.eq_ignore_ascii_case(other))
}

/// Decodes a path segment. `+` stays what it is.
///
/// # Errors
/// [`PercentError`]: a broken escape or bytes that are not UTF-8. Nothing is guessed: two spellings of a bad name
/// must not become one good name, so what the decoder would leave as it stands is an error here.
pub fn percent_decode(segment: &str) -> Result<Cow<'_, str>, PercentError> {
    if !segment.as_bytes().contains(&b'%') {
        return Ok(Cow::Borrowed(segment));
    }
    let begins_with_digits = |rest: &str| matches!(rest.as_bytes(), [high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit());
    if !segment.split('%').skip(1).all(begins_with_digits) {
        return Err(PercentError);
    }
    percent_decode_str(segment).decode_utf8().map_err(|_| PercentError)
}

/// Decodes a key or value of a query (`application/x-www-form-urlencoded`): as [`percent_decode`], and `+` is a
/// space.
///
/// # Errors
/// The same.
pub fn form_decode(text: &str) -> Result<Cow<'_, str>, PercentError> {
    match text.contains('+') {
        false => percent_decode(text),
        true => percent_decode(&text.replace('+', " ")).map(|decoded| Cow::Owned(decoded.into_owned())),
    }
}

/// Path and query of a request target (RFC 9112 §3.2): origin-form, absolute-form (its authority is dropped: one
/// gateway serves whatever name it is reached by) or `*`.
fn split_target(target: &str) -> Result<(&str, Option<&str>), HeadError> {
    let origin = match target {
        "*" => return Ok((target, None)),
        _ if target.starts_with('/') => target,
        _ => strip_authority(target).ok_or(HeadError::Target)?,
    };
    let path_len = origin.bytes().position(|byte| byte == b'?').unwrap_or(origin.len());
    let (path, rest) = origin.split_at(path_len);
    let query = rest.strip_prefix('?');
    // A fragment never belongs into a request; RFC 9112 §3.2 has no place for it. The others are what neither RFC 3986
    // nor browsers leave unescaped. hyper takes exactly what is left.
    let is_clear = |byte: u8| !matches!(byte, b'#' | b'<' | b'>');
    let is_path = path.bytes().all(|byte| is_clear(byte) && byte != b'`');
    let is_query = query.unwrap_or_default().bytes().all(|byte| is_clear(byte) && byte != b'"');
    match target.len() <= TARGET_BYTES_MAX && is_path && is_query {
        true => Ok((if path.is_empty() { "/" } else { path }, query)),
        false => Err(HeadError::Target),
    }
}

/// What follows `scheme://authority`; empty, or starting with `/`, `?` or `#`.
fn strip_authority(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_once("://")?;
    let known = ["http", "https", "ws", "wss"];
    if !known.iter().any(|name| scheme.eq_ignore_ascii_case(name)) {
        return None;
    }
    let authority_len = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(authority_len);
    is_authority(authority).then_some(rest)
}

/// `HOST` or `HOST:PORT`, the host a name or an address (RFC 3986 §3.2.2), one of IPv6 also with its zone. User names have
/// no meaning here.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((host, port))) => (host, port.strip_prefix(':').or(port.is_empty().then_some(""))),
        Some(None) => return false,
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, Some("")),
        },
    };
    let is_v6 = text.starts_with('[');
    let of_host = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'.' | b'_' | b'~')
            || (is_v6 && matches!(byte, b':' | b'%'))
    };
    let is_port = |port: &str| {
        port.is_empty() || port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
    };
    !host.is_empty() && host.bytes().all(of_host) && port.is_some_and(is_port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(head: &str) -> Head<'_> {
        Head::parse(head.as_bytes()).expect("a good head").expect("a whole head")
    }

    #[test]
    fn one_host_is_named() {
        let check = |version: u8, hosts: &[&str], expect| {
            let lines: String = hosts.iter().map(|host| format!("Host: {host}\r\n")).collect();
            let head = format!("GET /sse HTTP/1.{version}\r\n{lines}\r\n");
            assert_eq!(parse(&head).check_host(), expect, "{head:?}");
        };
        for host in [
            "localhost",
            "example.com:8000",
            "my_host:",
            "127.0.0.1:80",
            "[::1]:8000",
            "[fe80::1%25eth0]",
            "",
        ] {
            check(1, &[host], Ok(()));
            check(0, &[host], Ok(()));
        }
        check(0, &[], Ok(()));
        check(1, &[], Err(HeadError::Host));
        for version in [0, 1] {
            check(version, &["a", "a"], Err(HeadError::Host));
            for host in
                ["a, b", "a b", "a/b", "user@a", "é", "[::1", "::1", "a:99999", "a:+1", "a:b", ":80", "a\"b"]
            {
                check(version, &[host], Err(HeadError::Host));
            }
        }
    }

    #[test]
    fn a_browsers_upgrade() {
        let text = "GET /ws?channel=a&channel=b HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\n\
                    Cookie: a=1\r\nX-Forwarded-For: 1.1.1.1\r\nx-forwarded-for: 2.2.2.2\r\n\r\nrest";
        let head = parse(text);
        assert_eq!((head.method, head.path, head.query), ("GET", "/ws", Some("channel=a&channel=b")));
        assert_eq!(head.minor_version, 1);
        assert_eq!(&text[head.len..], "rest");
        assert_eq!(head.header("HOST"), Some("example.com"));
        assert_eq!(head.header("origin"), None);
        assert_eq!(head.headers_named("X-Forwarded-For").collect::<Vec<_>>(), ["1.1.1.1", "2.2.2.2"]);
        assert_eq!(head.header_joined("X-Forwarded-For").as_deref(), Some("1.1.1.1, 2.2.2.2"));
        assert_eq!(head.headers().count(), 5);
        assert!(!head.has_body());
    }

    #[test]
    fn incomplete_is_not_malformed() {
        let text = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for cut in 0..text.len() {
            assert!(Head::parse(&text.as_bytes()[..cut]).expect("good so far").is_none(), "{cut}");
        }
        assert_eq!(parse(text).len, text.len());
    }

    #[test]
    fn targets() {
        type Split = Result<(&'static str, Option<&'static str>), HeadError>;
        let cases: &[(&str, Split)] = &[
            ("/", Ok(("/", None))),
            ("/a/b?", Ok(("/a/b", Some("")))),
            ("/a?b?c", Ok(("/a", Some("b?c")))),
            ("/a//http://x", Ok(("/a//http://x", None))),
            ("//evil/path", Ok(("//evil/path", None))),
            ("http://h:1/ws?x=1", Ok(("/ws", Some("x=1")))),
            ("WSS://h", Ok(("/", None))),
            ("http://h?x=1", Ok(("/", Some("x=1")))),
            ("*", Ok(("*", None))),
            ("http:///path", Err(HeadError::Target)),
            ("ftp://h/", Err(HeadError::Target)),
            ("example.com:443", Err(HeadError::Target)),
            ("path", Err(HeadError::Target)),
            ("?x", Err(HeadError::Target)),
            ("/a#b", Err(HeadError::Target)),
            ("http://h#b", Err(HeadError::Target)),
            ("http://a@h/", Err(HeadError::Target)),
            ("http://h:x/", Err(HeadError::Target)),
            ("http://[::1/", Err(HeadError::Target)),
            ("http://[::1]:80/a", Ok(("/a", None))),
            ("/a\"{|}^\\?`{|}^\\", Ok(("/a\"{|}^\\", Some("`{|}^\\")))),
            ("/a<", Err(HeadError::Target)),
            ("/a`", Err(HeadError::Target)),
            ("/a?\"", Err(HeadError::Target)),
            ("/a?<", Err(HeadError::Target)),
        ];
        for (target, expected) in cases {
            let text = format!("GET {target} HTTP/1.1\r\n\r\n");
            let actual = Head::parse(text.as_bytes()).map(|head| head.map(|head| (head.path, head.query)));
            assert_eq!(actual, expected.map(Some), "{target}");
        }
    }

    #[test]
    fn malformed_heads() {
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX + 1));
        let cases: &[(&str, &[u8], u16)] = &[
            ("folded header", b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", 400),
            ("space before the colon", b"GET / HTTP/1.1\r\nHost : b\r\n\r\n", 400),
            ("NUL in a value", b"GET / HTTP/1.1\r\nA: b\0c\r\n\r\n", 400),
            ("bare CR in a value", b"GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", 400),
            ("no header name", b"GET / HTTP/1.1\r\n: b\r\n\r\n", 400),
            ("control character in the target", b"GET /\x01 HTTP/1.1\r\n\r\n", 400),
            ("target that is not UTF-8", b"GET /\xFF HTTP/1.1\r\n\r\n", 400),
            ("bad method", b"G(T / HTTP/1.1\r\n\r\n", 400),
            ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
            ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xFC\x03\x03", 400),
            ("too many headers", many.as_bytes(), 431),
        ];
        for (name, bytes, status) in cases {
            let error = Head::parse(bytes).expect_err(name);
            assert_eq!(error.status().0, *status, "{name}: {error}");
        }
        let most = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX));
        assert_eq!(parse(&most).headers().count(), HEADERS_MAX);
        let forwarded = "x-forwarded-FOR: 1.1.1.1\r\n".repeat(FORWARDING_HEADERS_MAX);
        let most = format!("GET / HTTP/1.1\r\n{}{forwarded}\r\n", "A: b\r\n".repeat(HEADERS_MAX));
        let head = parse(&most);
        assert_eq!(head.headers().count(), HEADERS_MAX + FORWARDING_HEADERS_MAX);
        assert_eq!(head.own_len(), most.len() - forwarded.len());
    }

    #[test]
    fn headers_that_are_not_utf_8_are_there_and_unreadable() {
        let head = Head::parse(b"GET / HTTP/1.1\r\nA: \xFF\r\nA: b\r\n\r\n").expect("good").expect("whole");
        assert_eq!(head.header("a"), Some("\u{fffd}"));
        assert_eq!(head.headers().next(), Some(("A", &b"\xFF"[..])));
    }

    #[test]
    fn bodies() {
        for (header, expected) in [
            ("Content-Length: 0", false),
            ("Content-Length: 00", false),
            ("Content-Length: x", true),
            ("Content-Length: 0\r\nContent-Length: 0", true),
            ("Content-Length: 5", true),
            ("content-length: 0, 5", true),
            ("Transfer-Encoding: chunked", true),
            ("X: y", false),
        ] {
            assert_eq!(
                parse(&format!("GET / HTTP/1.1\r\n{header}\r\n\r\n")).has_body(),
                expected,
                "{header}"
            );
        }
    }

    #[test]
    fn credentials_are_not_in_debug_output() {
        let head = "GET /ws?token=hunter2 HTTP/1.1\r\nAuthorization: hunter2\r\n\r\n";
        assert!(!format!("{:?}", parse(head)).contains("hunter2"));
    }

    #[test]
    fn percent_encodings() {
        for (encoded, decoded) in [("", ""), ("a+b%2B", "a b+"), ("%41%2f%C3%a9", "A/é"), ("100%25", "100%")]
        {
            assert_eq!(form_decode(encoded).as_deref(), Ok(decoded), "{encoded}");
        }
        for bad in ["%", "%4", "%4g", "%+4", "%é", "%FF", "a%C3"] {
            assert_eq!(form_decode(bad), Err(PercentError), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_escaped_reads_back(text in any::<String>()) {
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(form_decode(&encoded).expect("escaped"), text);
        }
    }
}
