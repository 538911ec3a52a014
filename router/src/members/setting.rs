//! How a source of members is written: `static:HOST:PORT,HOST:PORT`, `dns:NAME:PORT`, `dns:_SERVICE._PROTOCOL.NAME` or
//! the URL of a Redis backplane.

use std::{fmt, net::Ipv6Addr};

use tidegate_ops::config::Setting;

/// Where the gateways are known from.
#[derive(Clone, PartialEq, Eq)]
pub enum MembersSetting {
    Static(Vec<HostPort>),
    Dns(DnsName),
    /// The URL, as gateways have it in `backplane`. It may hold a password.
    Redis(Box<str>),
}

/// A host and a port to connect to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// A name or an address; IPv6 without brackets.
    pub host: Box<str>,
    pub port: u16,
}

/// A name that stands for all gateways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsName {
    /// A and AAAA records: a headless Service.
    Addresses(HostPort),
    /// SRV records, which have ports, weights, and names that stay.
    Services(Box<str>),
}

impl Default for MembersSetting {
    fn default() -> Self {
        Self::Static(vec![HostPort { host: "127.0.0.1".into(), port: 8000 }])
    }
}

impl HostPort {
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port > 0)?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => address.parse::<Ipv6Addr>().ok().map(|_| address)?,
            None => host,
        };
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let fits = host.parse::<Ipv6Addr>().is_ok_and(|_| text.starts_with('['))
            || (!host.is_empty() && host.bytes().all(is_host));
        fits.then(|| Self { host: host.into(), port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addresses(name) => name.fmt(f),
            Self::Services(name) => f.write_str(name),
        }
    }
}

impl fmt::Debug for MembersSetting {
    /// Without the password of a URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.show())
    }
}

/// The same URLs as `backplane` takes.
const REDIS: [&str; 6] =
    ["redis", "rediss", "redis-sentinel", "rediss-sentinel", "redis-cluster", "rediss-cluster"];

impl Setting for MembersSetting {
    const EXPECTED: &'static str = r#""static:HOST:PORT,HOST:PORT", "dns:NAME:PORT", "dns:_SERVICE._PROTOCOL.NAME" or the URL of a Redis backplane"#;

    fn from_text(text: &str) -> Option<Self> {
        if let Some(list) = text.strip_prefix("static:") {
            let list: Option<Vec<_>> = list.split(',').map(|one| HostPort::parse(one.trim())).collect();
            return list.map(Self::Static);
        }
        if let Some(name) = text.strip_prefix("dns:") {
            return dns_name(name).map(Self::Dns);
        }
        let (scheme, rest) = text.split_once("://")?;
        (REDIS.contains(&scheme) && !rest.is_empty()).then(|| Self::Redis(text.into()))
    }

    fn show(&self) -> String {
        match self {
            Self::Static(list) => {
                let list: Vec<_> = list.iter().map(ToString::to_string).collect();
                format!("\"static:{}\"", list.join(","))
            }
            Self::Dns(name) => format!("\"dns:{name}\""),
            Self::Redis(url) => {
                let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
                format!("\"{scheme}://…\"")
            }
        }
    }
}

fn dns_name(text: &str) -> Option<DnsName> {
    let is_label = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if text.starts_with('_') {
        return text.bytes().all(is_label).then(|| DnsName::Services(text.into()));
    }
    HostPort::parse(text).map(DnsName::Addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_shown() {
        for good in [
            "static:127.0.0.1:8000",
            "static:gateway-0.gateway:8000,[::1]:8001",
            "dns:gateway.live.svc.cluster.local:8000",
            "dns:_ws._tcp.gateway.live.svc.cluster.local.",
        ] {
            let setting = MembersSetting::from_text(good);
            assert_eq!(setting.map(|setting| setting.show()), Some(format!("{good:?}")), "{good}");
        }
        let redis = MembersSetting::from_text("redis://user:hunter2@redis:6379/1");
        assert_eq!(redis.map(|setting| format!("{setting:?}")).as_deref(), Some("\"redis://…\""));
    }

    #[test]
    fn refused() {
        for bad in [
            "",
            "static:",
            "static:host",
            "static:host:0",
            "static:host:65536",
            "static:a:1,,b:1",
            "static:::1:8000",
            "static:[host]:1",
            "static:a b:1",
            "dns:gateway",
            "dns::8000",
            "dns:_ws._tcp.gateway:8000",
            "http://gateway:8000",
            "redis://",
        ] {
            assert_eq!(MembersSetting::from_text(bad), None, "{bad}");
        }
    }
}
