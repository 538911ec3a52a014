//! Names that a request may have for the host it is meant for, where pages of other names are to be kept out: one whose
//! name was rebound to this address is of the same origin as what is here.

use std::path::Path;

use subtle::ConstantTimeEq as _;

use crate::config::{ConfigError, Secret, Setting, read_secret};

/// A host's name in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName(Box<str>);

impl Setting for HostName {
    const EXPECTED: &'static str = r#"a host's name such as "gateway-1.example.org""#;
    const EXPECTED_LIST: &'static str = r#"a list of hosts' names such as ["gateway-1.example.org"]"#;

    fn from_text(text: &str) -> Option<Self> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        (!text.is_empty() && text.bytes().all(fits)).then(|| Self(text.to_ascii_lowercase().into()))
    }

    fn show(&self) -> String {
        format!("{:?}", self.0)
    }
}

/// Who may use the internal port, and for what.
#[derive(Debug, Default)]
pub struct InternalAccess {
    hosts: Vec<HostName>,
    drain_token: Option<Secret>,
}

impl InternalAccess {
    /// # Errors
    /// [`ConfigError`]: the file with the token cannot be used.
    pub fn new(hosts: &[HostName], drain_token_file: Option<&Path>) -> Result<Self, ConfigError> {
        let drain_token = drain_token_file.map(|path| read_secret("drain.token_file", path)).transpose()?;
        Ok(Self { hosts: hosts.to_vec(), drain_token })
    }

    /// Whether a request with this `Host` is meant for the internal port.
    pub fn allows_host(&self, host: &str) -> bool {
        is_local_name(host)
            || self.hosts.iter().any(|HostName(name)| name.eq_ignore_ascii_case(name_of(host)))
    }

    /// Whether this `Authorization` has the token for a drain.
    pub(crate) fn may_drain(&self, authorization: &[u8]) -> bool {
        let given = authorization.strip_prefix(b"Bearer ");
        given.zip(self.drain_token.as_ref()).is_some_and(|(given, token)| given.ct_eq(token.expose()).into())
    }
}

/// Whether a `Host` is empty, an address, a name without dots, or below a name that the internet does not have.
pub fn is_local_name(host: &str) -> bool {
    const LOCAL: [&str; 8] = ["localhost", "local", "internal", "svc", "lan", "home.arpa", "test", "invalid"];
    let name = name_of(host);
    let is_below = |local: &&str| {
        let begin = name.len().checked_sub(local.len()).filter(|begin| name.is_char_boundary(*begin));
        begin.is_some_and(|begin| name[..begin].ends_with('.') && name[begin..].eq_ignore_ascii_case(local))
    };
    !name.contains('.')
        || name.starts_with('[')
        || name.parse::<std::net::IpAddr>().is_ok()
        || LOCAL.iter().any(is_below)
}

/// Without its port.
fn name_of(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => name,
        _ => host,
    };
    name.trim_end_matches('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_outside_are_listed() {
        let hosts: Vec<_> =
            ["node-1.example.org"].iter().filter_map(|name| HostName::from_text(name)).collect();
        let access = InternalAccess::new(&hosts, None).expect("no file");
        for inside in [
            "",
            "127.0.0.1:9000",
            "[::1]:9000",
            "gateway:9000",
            "g-0.g.ns.svc.cluster.local:9000",
            "g.ns.SVC",
        ] {
            assert!(access.allows_host(inside), "{inside}");
        }
        assert!(access.allows_host("Node-1.example.org:9000"));
        for outside in
            ["example.org", "evil.example:9000", "node-1.example.org.evil.example", "127.0.0.1.evil.example"]
        {
            assert!(!access.allows_host(outside), "{outside}");
        }
    }
}
