//! The head of an HTTP/1 request (RFC 9112 §2–§5), read in place from the bytes received so far.

use std::borrow::Cow;

/// Headers beyond this refuse the request. Browsers send 15 to 25.
pub const HEADERS_MAX: usize = 64;

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
    headers: [httparse::Header<'b>; HEADERS_MAX],
    headers_len: usize,
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
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        let len = match request.parse(buf) {
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
        let headers_len = request.headers.len();
        let (path, query) = split_target(target)?;
        Ok(Some(Self {
            method,
            path,
            query,
            minor_version,
            len,
            headers,
            headers_len,
        }))
    }

    /// The first header of that name; `None` when there is none or it is not UTF-8.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'b str> {
        self.headers_named(name).next()
    }

    /// Every header of that name, in order; those that are not UTF-8 are left out.
    pub fn headers_named<'n>(&'n self, name: &'n str) -> impl Iterator<Item = &'b str> + 'n {
        self.headers()
            .filter(move |(own, _)| own.eq_ignore_ascii_case(name))
            .filter_map(|(_, value)| simdutf8::basic::from_utf8(value).ok())
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
        self.headers[..self.headers_len]
            .iter()
            .map(|header| (header.name, header.value))
    }

    /// Whether a body follows the head (RFC 9112 §6.3). `Content-Length: 0` counts as none; anything unclear
    /// counts as a body, so that nothing which might be one is read as the next protocol.
    #[must_use]
    pub fn has_body(&self) -> bool {
        self.headers().any(|(name, value)| {
            name.eq_ignore_ascii_case("transfer-encoding")
                || (name.eq_ignore_ascii_case("content-length") && value.trim_ascii() != b"0")
        })
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
            .field("headers", &self.headers_len)
            .finish_non_exhaustive()
    }
}

impl HeadError {
    /// The HTTP status that answers it.
    #[must_use]
    pub fn status(self) -> (u16, &'static str) {
        match self {
            Self::Syntax(httparse::Error::Version) => (505, "HTTP Version Not Supported"),
            Self::Syntax(_) | Self::Target => (400, "Bad Request"),
            Self::HeadersTooMany => (431, "Request Header Fields Too Large"),
        }
    }
}

/// Decodes a path segment. `+` stays what it is.
///
/// # Errors
/// [`PercentError`]: a broken escape or bytes that are not UTF-8. Nothing is guessed: two spellings of a bad name
/// must not become one good name.
pub fn percent_decode(segment: &str) -> Result<Cow<'_, str>, PercentError> {
    decode(segment, false)
}

/// Decodes a key or value of a query (`application/x-www-form-urlencoded`): as [`percent_decode`], and `+` is a
/// space.
pub(crate) fn form_decode(text: &str) -> Result<Cow<'_, str>, PercentError> {
    decode(text, true)
}

fn decode(text: &str, plus_is_space: bool) -> Result<Cow<'_, str>, PercentError> {
    let is_special = |byte: &u8| *byte == b'%' || (plus_is_space && *byte == b'+');
    let Some(first) = text.bytes().position(|byte| is_special(&byte)) else {
        return Ok(Cow::Borrowed(text));
    };
    let mut decoded = Vec::with_capacity(text.len());
    decoded.extend_from_slice(&text.as_bytes()[..first]);
    let mut bytes = text.as_bytes()[first..].iter();
    while let Some(&byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => hex(bytes.next())? << 4 | hex(bytes.next())?,
            b'+' if plus_is_space => b' ',
            _ => byte,
        });
    }
    String::from_utf8(decoded)
        .map(Cow::Owned)
        .map_err(|_| PercentError)
}

fn hex(digit: Option<&u8>) -> Result<u8, PercentError> {
    let digit = char::from(*digit.ok_or(PercentError)?);
    digit
        .to_digit(16)
        .map(|value| value as u8)
        .ok_or(PercentError)
}

/// Path and query of a request target (RFC 9112 §3.2): origin-form, absolute-form (its authority is dropped: one
/// gateway serves whatever name it is reached by) or `*`.
fn split_target(target: &str) -> Result<(&str, Option<&str>), HeadError> {
    let origin = match target {
        "*" => return Ok((target, None)),
        _ if target.starts_with('/') => target,
        _ => strip_authority(target).ok_or(HeadError::Target)?,
    };
    // A fragment never belongs into a request; RFC 9112 §3.2 has no place for it.
    if origin.contains('#') {
        return Err(HeadError::Target);
    }
    match origin.split_once('?') {
        Some(("", query)) => Ok(("/", Some(query))),
        Some((path, query)) => Ok((path, Some(query))),
        None if origin.is_empty() => Ok(("/", None)),
        None => Ok((origin, None)),
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
    (authority_len > 0).then(|| &rest[authority_len..])
}
