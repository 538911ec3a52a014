//! Where a load goes: a `ws://` or `http://` URL, resolved once.

use std::net::{SocketAddr, ToSocketAddrs};

/// A resolved server. Paths of requests are appended to `prefix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The first address that the name resolved to, to which publishers go.
    pub address: SocketAddr,
    /// All of them; subscribers take them in turn.
    pub addresses: Vec<SocketAddr>,
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
        let found = with_port(authority).to_socket_addrs().map_err(|source| resolve(Some(source)))?;
        let mut addresses: Vec<SocketAddr> = found.collect();
        let address = *addresses.first().ok_or_else(|| resolve(None))?;
        // A name such as `localhost` has addresses of both families, and a server is often on one of them only.
        addresses.retain(|other| other.is_ipv4() == address.is_ipv4());
        let prefix = path.trim_end_matches('/').to_owned();
        Ok(Self { address, addresses, authority: authority.to_owned(), prefix })
    }

    /// The target of a server known by address.
    #[must_use]
    pub fn of(address: SocketAddr) -> Self {
        Self { address, addresses: vec![address], authority: address.to_string(), prefix: String::new() }
    }

    /// The same server, reached at one address: that of a relay, with the name that it knows itself by.
    #[must_use]
    pub fn via(mut self, address: SocketAddr) -> Self {
        (self.address, self.addresses) = (address, vec![address]);
        self
    }

    /// Where a connection goes; the same one goes elsewhere when it comes back.
    #[must_use]
    pub fn address_of(&self, index: u32, attempt: u32) -> SocketAddr {
        let turn = index.wrapping_add(attempt) as usize % self.addresses.len().max(1);
        self.addresses.get(turn).copied().unwrap_or(self.address)
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
        let mut many = Target::of("127.0.0.1:1".parse().unwrap());
        many.addresses.push("127.0.0.2:1".parse().unwrap());
        let ports = [many.address_of(0, 0), many.address_of(1, 0), many.address_of(1, 1)];
        assert_eq!(ports.map(|address| address.ip().to_string()), ["127.0.0.1", "127.0.0.2", "127.0.0.1"]);
        assert!(matches!(Target::parse("127.0.0.1:80"), Err(TargetError::Scheme { .. })));
        assert!(matches!(Target::parse("ws://127.0.0.1:99999"), Err(TargetError::Resolve { .. })));
    }
}
