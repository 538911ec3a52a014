//! Where a load goes: a `ws://` or `http://` URL, resolved once.

use std::net::{SocketAddr, ToSocketAddrs};

/// A resolved server. Paths of requests are appended to `prefix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// First address the name resolved to.
    pub address: SocketAddr,
    /// Value of the `Host` header.
    pub authority: String,
    /// Path of the URL without a trailing slash; empty for a bare origin.
    pub prefix: String,
}

/// Why a URL cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("the URL {url:?} has no scheme this client speaks: use ws://HOST:PORT or http://HOST:PORT")]
    Scheme { url: String },
    #[error(
        "the URL {url:?} is encrypted and storm speaks plain TCP: point it at a port behind the TLS termination"
    )]
    Encrypted { url: String },
    #[error("the host of {url:?} has no address: check the name and the port")]
    Resolve {
        url: String,
        #[source]
        source: Option<std::io::Error>,
    },
}

impl Target {
    /// Parses and resolves `ws://HOST[:PORT][/PREFIX]` (or `http://`); the port defaults to 80.
    pub fn parse(url: &str) -> Result<Self, TargetError> {
        if url.starts_with("wss://") || url.starts_with("https://") {
            return Err(TargetError::Encrypted { url: url.to_owned() });
        }
        let rest = url
            .strip_prefix("ws://")
            .or_else(|| url.strip_prefix("http://"))
            .ok_or_else(|| TargetError::Scheme { url: url.to_owned() })?;
        let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
        let path = path.split(['?', '#']).next().unwrap_or("");
        let resolve = |source| TargetError::Resolve { url: url.to_owned(), source };
        let address = with_port(authority)
            .to_socket_addrs()
            .map_err(|source| resolve(Some(source)))?
            .next()
            .ok_or_else(|| resolve(None))?;
        Ok(Self { address, authority: authority.to_owned(), prefix: path.trim_end_matches('/').to_owned() })
    }

    /// The target of a server known by address.
    #[must_use]
    pub fn of(address: SocketAddr) -> Self {
        Self { address, authority: address.to_string(), prefix: String::new() }
    }
}

/// An authority has a port if something numeric follows its last colon outside of brackets (RFC 3986 §3.2).
fn with_port(authority: &str) -> String {
    let port = authority.rsplit_once(':').map(|(_, port)| port);
    let has_port =
        port.is_some_and(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    if has_port { authority.to_owned() } else { format!("{authority}:80") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[track_caller]
    fn check(url: &str, address: &str, authority: &str, prefix: &str) {
        let target = Target::parse(url).unwrap();
        assert_eq!(
            (target.address, target.authority.as_str(), target.prefix.as_str()),
            (address.parse().unwrap(), authority, prefix)
        );
    }

    #[test]
    fn urls_resolve() {
        check("ws://127.0.0.1:8000", "127.0.0.1:8000", "127.0.0.1:8000", "");
        check("http://127.0.0.1:8000/", "127.0.0.1:8000", "127.0.0.1:8000", "");
        check("ws://127.0.0.1/edge/?x=1", "127.0.0.1:80", "127.0.0.1", "/edge");
        check("ws://[::1]:9", "[::1]:9", "[::1]:9", "");
        check("ws://[::1]", "[::1]:80", "[::1]", "");
    }

    #[test]
    fn unusable_urls_say_why() {
        assert!(matches!(Target::parse("wss://x"), Err(TargetError::Encrypted { .. })));
        assert!(matches!(Target::parse("127.0.0.1:80"), Err(TargetError::Scheme { .. })));
        assert!(matches!(Target::parse("ws://127.0.0.1:99999"), Err(TargetError::Resolve { .. })));
    }
}
