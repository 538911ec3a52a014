//! Which part of a request is the key that places its client. Pure: a request head in, bytes out.

use std::{borrow::Cow, fmt, net::SocketAddr};

use tidegate_wire::head::Head;

/// Where the key is taken from. Clients with equal keys meet on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyRule {
    /// The first query parameter of that name, decoded.
    Query(Box<str>),
    /// The first header of that name.
    Header(Box<str>),
    /// The first cookie of that name.
    Cookie(Box<str>),
    /// The path as it was sent, without the query.
    Path,
    /// The client's address without its port.
    ClientIp,
}

/// A key, and whether the request had it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key<'h> {
    pub bytes: Cow<'h, [u8]>,
    /// The request had no key, or an empty one: this is the client's address and port, so that such clients spread
    /// over all nodes instead of meeting on one.
    pub is_fallback: bool,
}

/// A text that is no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {}", KeyRule::EXPECTED)]
pub struct KeyRuleError;

impl KeyRule {
    /// Completes the sentence 'expected …'.
    pub const EXPECTED: &'static str = r#""query:NAME", "header:NAME", "cookie:NAME", "path" or "client-ip""#;

    /// The key of a request head. `client` is who sent it: the peer, or whom a trusted proxy named.
    pub fn key_of<'h>(&self, head: &Head<'h>, client: SocketAddr) -> Key<'h> {
        self.key_of_parts(head.path, head.query, |name| head.headers_named(name).next(), client)
    }

    /// The same of a request that somebody else parsed: its path as sent, its query, and the value of the first header of
    /// a name, whatever its case.
    pub fn key_of_parts<'h>(
        &self,
        path: &'h str,
        query: Option<&'h str>,
        header: impl Fn(&str) -> Option<&'h str>,
        client: SocketAddr,
    ) -> Key<'h> {
        let found: Option<Cow<'h, [u8]>> = match self {
            Self::Query(name) => query.and_then(|query| of_query(query, name)),
            Self::Header(name) => header(name).map(|value| value.trim_ascii().as_bytes().into()),
            // RFC 6265 §5.4: a client sends one such header.
            Self::Cookie(name) => header("cookie").and_then(|all| of_cookies(all, name)).map(Cow::from),
            Self::Path => Some(path.as_bytes().into()),
            Self::ClientIp => Some(client.ip().to_canonical().to_string().into_bytes().into()),
        };
        match found.filter(|key| !key.is_empty()) {
            Some(bytes) => Key { bytes, is_fallback: false },
            None => Key { bytes: spread(client).into(), is_fallback: true },
        }
    }
}

impl std::str::FromStr for KeyRule {
    type Err = KeyRuleError;

    fn from_str(text: &str) -> Result<Self, KeyRuleError> {
        let (kind, name) = text.split_once(':').unwrap_or((text, ""));
        // The same letters fit a header (RFC 9110 §5.1) and a cookie (RFC 6265 §4.1.1). A query parameter may have any.
        let token = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
        match (kind, text.contains(':')) {
            ("query", _) if !name.is_empty() => Ok(Self::Query(name.into())),
            ("header", _) if token => Ok(Self::Header(name.into())),
            ("cookie", _) if token => Ok(Self::Cookie(name.into())),
            ("path", false) => Ok(Self::Path),
            ("client-ip", false) => Ok(Self::ClientIp),
            _ => Err(KeyRuleError),
        }
    }
}

impl fmt::Display for KeyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query(name) => write!(f, "query:{name}"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Path => f.write_str("path"),
            Self::ClientIp => f.write_str("client-ip"),
        }
    }
}

/// What is not UTF-8 once decoded becomes U+FFFD: it is hashed, not interpreted.
fn of_query<'h>(query: &'h str, name: &str) -> Option<Cow<'h, [u8]>> {
    let (_, value) = form_urlencoded::parse(query.as_bytes()).find(|(own, _)| own == name)?;
    Some(match value {
        Cow::Borrowed(value) => Cow::Borrowed(value.as_bytes()),
        Cow::Owned(value) => Cow::Owned(value.into_bytes()),
    })
}

/// RFC 6265 §4.2.1: `name=value` pairs with semicolons between them.
fn of_cookies<'h>(cookies: &'h str, name: &str) -> Option<&'h [u8]> {
    let pairs = cookies.split(';').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(own, value)| (own.trim(), value.trim()))
        .find(|(own, _)| *own == name)
        .map(|(_, value)| value.as_bytes())
}

/// A client's port differs with each connection.
fn spread(client: SocketAddr) -> Vec<u8> {
    SocketAddr::new(client.ip().to_canonical(), client.port()).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const FALLBACK: &str = "192.0.2.7:4000";

    #[track_caller]
    fn check(rule: &str, request: &str, expect: &str) {
        let text = format!("GET {request}\r\n\r\n");
        let head = Head::parse(text.as_bytes()).unwrap().unwrap();
        // As a dual-stack listener sees an IPv4 client.
        let client: SocketAddr = "[::ffff:192.0.2.7]:4000".parse().unwrap();
        let key = rule.parse::<KeyRule>().unwrap().key_of(&head, client);
        assert_eq!(std::str::from_utf8(&key.bytes).unwrap(), expect, "{rule} {request:?}");
        assert_eq!(key.is_fallback, expect == FALLBACK, "{rule} {request:?}");
    }

    #[test]
    fn queries() {
        check("query:room", "/ws?room=lobby HTTP/1.1", "lobby");
        check("query:room", "/ws?a=b&room=a%20b&room=c HTTP/1.1", "a b");
        check("query:room", "/ws?room=a+b HTTP/1.1", "a b");
        check("query:ro om", "/ws?ro+om=%C3%A9 HTTP/1.1", "é");
        check("query:room", "/ws?room=%FF HTTP/1.1", "\u{fffd}");
        for missing in ["/ws", "/ws?", "/ws?room", "/ws?room=", "/ws?Room=a", "/ws?bedroom=a"] {
            check("query:room", &format!("{missing} HTTP/1.1"), FALLBACK);
        }
    }

    #[test]
    fn headers() {
        check("header:x-room", "/ HTTP/1.1\r\nX-Room:  lobby \r\nx-room: other", "lobby");
        check("header:x-room", "/ HTTP/1.1\r\nX-Room:", FALLBACK);
        check("header:x-room", "/ HTTP/1.1\r\nHost: a", FALLBACK);
    }

    #[test]
    fn cookies() {
        check("cookie:room", "/ HTTP/1.1\r\nCookie: a=b; room=lobby; room=c", "lobby");
        check("cookie:room", "/ HTTP/1.1\r\nCookie: a=b;room=x=y", "x=y");
        for missing in ["a=room", "room", "room=", "Room=a", "bedroom=a", ""] {
            check("cookie:room", &format!("/ HTTP/1.1\r\nCookie: {missing}"), FALLBACK);
        }
    }

    #[test]
    fn path_and_address() {
        check("path", "/rooms/a%20b?x=y HTTP/1.1", "/rooms/a%20b");
        check("path", "http://host?x HTTP/1.1", "/");
        check("client-ip", "/ HTTP/1.1", "192.0.2.7");
    }

    #[test]
    fn rules() {
        for good in ["query:a", "query:a:b", "header:X-Room", "cookie:a.b", "path", "client-ip"] {
            assert_eq!(good.parse::<KeyRule>().unwrap().to_string(), good);
        }
        for bad in
            ["", "query", "query:", "header:", "header:a b", "cookie:a;b", "path:", "client-ip:x", "Path"]
        {
            assert_eq!(bad.parse::<KeyRule>(), Err(KeyRuleError), "{bad}");
        }
    }
}
