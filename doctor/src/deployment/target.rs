//! The URL of a deployment.

use std::fmt;

use http::Uri;

/// A `http`, `https`, `ws` or `wss` URL. Paths of requests are appended to its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    shown: String,
    authority: String,
    host: String,
    port: u16,
    encrypted: bool,
    prefix: String,
}

/// Why a URL cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("{url:?} is no URL; expected one such as https://gate.example.org")]
    Form {
        url: String,
        #[source]
        source: http::uri::InvalidUri,
    },
    #[error("{url:?} needs a scheme that a gateway speaks: http, https, ws or wss")]
    Scheme { url: String },
    #[error("{url:?} names no host")]
    Host { url: String },
    #[error("{url:?} has a user or password in it; give a token with --token")]
    UserInfo { url: String },
}

impl Target {
    /// # Errors
    /// [`TargetError`], which says what is expected.
    pub fn parse(url: &str) -> Result<Self, TargetError> {
        let named = || url.to_owned();
        let uri: Uri = url.parse().map_err(|source| TargetError::Form { url: named(), source })?;
        let encrypted = match uri.scheme_str() {
            Some("http" | "ws") => false,
            Some("https" | "wss") => true,
            _ => return Err(TargetError::Scheme { url: named() }),
        };
        let authority = uri.authority().ok_or_else(|| TargetError::Host { url: named() })?;
        if authority.as_str().contains('@') {
            return Err(TargetError::UserInfo { url: named() });
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(TargetError::Host { url: named() });
        }
        Ok(Self {
            shown: named(),
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(if encrypted { 443 } else { 80 }),
            authority: authority.to_string(),
            encrypted,
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// Name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The value of `Host`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    pub fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// A path below this URL's own.
    pub fn path(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[track_caller]
    fn check(url: &str, host: &str, port: u16, encrypted: bool, path: &str) {
        let target = Target::parse(url).unwrap();
        assert_eq!((target.host(), target.port(), target.is_encrypted()), (host, port, encrypted), "{url}");
        assert_eq!(target.path("/ws"), path, "{url}");
    }

    #[test]
    fn urls_are_read() {
        check("http://127.0.0.1:8000", "127.0.0.1", 8000, false, "/ws");
        check("wss://gate.example.org", "gate.example.org", 443, true, "/ws");
        check("https://gate.example.org/live/?x=1", "gate.example.org", 443, true, "/live/ws");
        check("ws://[::1]", "::1", 80, false, "/ws");
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for url in
            ["gate.example.org:80", "/ws", "ftp://gate", "http://", "http://user:word@gate", "http://a b"]
        {
            assert!(Target::parse(url).is_err(), "{url}");
        }
    }
}
