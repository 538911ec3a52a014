//! Which web pages may connect: the `Origin` header against the configured rules.

use super::Setting;

/// One entry of `auth.allowed_origins`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginRule {
    /// `*`: every page, `null` included.
    Any,
    /// `same-origin`: the page's host and port are those of the request's `Host`.
    SameOrigin,
    /// `localhost`: pages of this machine, whatever their scheme and port: `localhost`, names below it, and loopback
    /// addresses.
    Localhost,
    /// `https://app.example.org`, in lower case and without a default port; or one of [`OPAQUE`].
    Exact(Box<str>),
    /// `https://*.example.org`: `https`, `.example.org` and the port, if it is not the default one.
    Subdomains { scheme: Box<str>, suffix: Box<str>, port: Option<u16> },
}

/// What browsers send for pages that have no host: sandboxed ones and files, and files of some embedded browsers.
const OPAQUE: [&str; 2] = ["null", "file://"];

/// The configured rules.
#[derive(Debug, Clone)]
pub struct Origins {
    rules: Vec<OriginRule>,
    /// Only names that nobody on the internet can have are taken for this host.
    local_hosts_only: bool,
}

/// The parts of an origin, RFC 6454 section 6.2.
struct Parts {
    scheme: String,
    host: String,
    /// `None`: the scheme's default.
    port: Option<u16>,
}

impl Origins {
    pub fn new(rules: &[OriginRule]) -> Self {
        Self { rules: rules.to_vec(), local_hosts_only: false }
    }

    /// Takes requests for addresses and local names only. A page whose own name was made to mean this machine (DNS
    /// rebinding) is of the same origin as what it then reaches.
    #[must_use]
    pub fn with_local_hosts_only(self, local_hosts_only: bool) -> Self {
        Self { local_hosts_only, ..self }
    }

    /// Whether requests for this `Host` are served.
    pub fn allows_host(&self, host: &str) -> bool {
        !self.local_hosts_only || tidegate_ops::hosts::is_local_name(host)
    }

    /// Whether a request with this `Origin` and `Host` is served at all. Where everybody knows the credentials (`--dev`)
    /// a page of another origin must reach nothing: a signed POST of plain text needs no preflight.
    pub fn admits(&self, origin: Option<&str>, host: &str) -> bool {
        !self.local_hosts_only || self.allows(origin, host)
    }

    /// Whether a request with this `Origin` and `Host` may go on. A request without an `Origin` does not come
    /// from a web page, and a program can send any `Origin` it likes: there is nothing to protect.
    pub fn allows(&self, origin: Option<&str>, host: &str) -> bool {
        if !self.allows_host(host) {
            return false;
        }
        let Some(origin) = origin else { return true };
        if self.rules.contains(&OriginRule::Any) {
            return true;
        }
        if let Some(opaque) = OPAQUE.into_iter().find(|opaque| *opaque == origin) {
            return self.rules.contains(&OriginRule::Exact(opaque.into()));
        }
        Parts::parse(origin).is_some_and(|parts| self.rules.iter().any(|rule| rule.allows(&parts, host)))
    }
}

impl OriginRule {
    fn allows(&self, origin: &Parts, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::SameOrigin => Parts::parse(&format!("{}://{host}", origin.scheme))
                .is_some_and(|own| own.text() == origin.text()),
            Self::Localhost => is_loopback_host(&origin.host),
            Self::Exact(text) => **text == origin.text(),
            Self::Subdomains { scheme, suffix, port } => {
                **scheme == origin.scheme
                    && *port == origin.port
                    && origin.host.strip_suffix(&**suffix).is_some_and(|labels| !labels.is_empty())
            }
        }
    }
}

impl Parts {
    /// `None` for what is no `scheme://host[:port]`, such as `null`.
    fn parse(origin: &str) -> Option<Self> {
        let (scheme, authority) = origin.split_once("://")?;
        let (host, port) = match authority.rsplit_once(':') {
            // The colons inside an IPv6 address are no port.
            Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok()?)),
            _ => (authority, None),
        };
        if !is_scheme(scheme) || !is_host(host) {
            return None;
        }
        let scheme = scheme.to_ascii_lowercase();
        let default = match scheme.as_str() {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        };
        Some(Self {
            host: host.to_ascii_lowercase(),
            port: port.filter(|port| Some(*port) != default),
            scheme,
        })
    }

    fn text(&self) -> String {
        match self.port {
            Some(port) => format!("{}://{}:{port}", self.scheme, self.host),
            None => format!("{}://{}", self.scheme, self.host),
        }
    }
}

/// Whether a host, as it stands in an origin, is this machine.
fn is_loopback_host(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match address.parse::<std::net::IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

fn is_scheme(scheme: &str) -> bool {
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

/// Names, IPv4 addresses and IPv6 addresses in brackets. Anything else, `@` and `/` above all, is no host.
fn is_host(host: &str) -> bool {
    match host.strip_prefix('[') {
        Some(address) => address.strip_suffix(']').is_some_and(|a| a.parse::<std::net::Ipv6Addr>().is_ok()),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)),
    }
}

impl Setting for OriginRule {
    const EXPECTED: &'static str =
        r#"an origin such as "https://app.example.org" or "https://*.example.org""#;
    const EXPECTED_LIST: &'static str = r#"a list of origins: "https://app.example.org", "https://*.example.org", "same-origin", "localhost", "null", "*""#;

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "*" => return Some(Self::Any),
            "same-origin" => return Some(Self::SameOrigin),
            "localhost" => return Some(Self::Localhost),
            _ if OPAQUE.contains(&text) => return Some(Self::Exact(text.into())),
            _ => {}
        }
        match text.split_once("://*.") {
            None => Parts::parse(text).map(|parts| Self::Exact(parts.text().into())),
            Some((scheme, domain)) => {
                let parts = Parts::parse(&format!("{scheme}://{domain}"))?;
                Some(Self::Subdomains {
                    scheme: parts.scheme.into(),
                    suffix: format!(".{}", parts.host).into(),
                    port: parts.port,
                })
            }
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Any => "\"*\"".to_owned(),
            Self::SameOrigin => "\"same-origin\"".to_owned(),
            Self::Localhost => "\"localhost\"".to_owned(),
            Self::Exact(text) => format!("\"{text}\""),
            Self::Subdomains { scheme, suffix, port } => {
                format!("\"{scheme}://*{suffix}{}\"", port.map(|port| format!(":{port}")).unwrap_or_default())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "gate.example.org:8000";

    fn check(rules: &[&str], origin: Option<&str>, expect: bool) {
        let parsed: Vec<_> =
            rules.iter().map(|rule| OriginRule::from_text(rule).expect("a valid rule")).collect();
        assert_eq!(Origins::new(&parsed).allows(origin, HOST), expect, "{rules:?} against {origin:?}");
    }

    #[test]
    fn no_origin_is_no_browser() {
        check(&[], None, true);
        check(&["https://a.example"], None, true);
    }

    #[test]
    fn empty_list_keeps_pages_out() {
        check(&[], Some("https://a.example"), false);
        check(&[], Some("http://gate.example.org:8000"), false);
    }

    #[test]
    fn a_rebound_name_is_no_local_one() {
        let rules = [OriginRule::SameOrigin, OriginRule::Localhost];
        let origins = Origins::new(&rules).with_local_hosts_only(true);
        for host in [
            "",
            "localhost:8000",
            "127.0.0.1:8000",
            "[::1]:8000",
            "[::1]",
            "gateway",
            "app.localhost",
            "x.svc.cluster.local",
        ] {
            assert!(origins.allows(None, host), "{host}");
        }
        for host in ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example."]
        {
            assert!(!origins.allows(None, host), "{host}");
            assert!(!origins.allows(Some(&format!("http://{host}")), host), "{host}");
        }
        assert!(Origins::new(&rules).allows(Some("http://a.example"), "a.example"));
    }

    #[test]
    fn pages_without_a_host() {
        for origin in ["null", "file://"] {
            check(&[origin], Some(origin), true);
            check(&["same-origin", "localhost"], Some(origin), false);
        }
        check(&["null"], Some("file://"), false);
    }

    #[test]
    fn localhost() {
        for origin in
            ["http://localhost:5173", "https://127.0.0.1", "http://[::1]:3000", "http://app.localhost"]
        {
            check(&["localhost"], Some(origin), true);
        }
        for origin in
            ["http://localhost.example.org", "http://notlocalhost", "http://10.0.0.1", "http://128.0.0.1"]
        {
            check(&["localhost"], Some(origin), false);
        }
    }

    #[test]
    fn any() {
        check(&["*"], Some("https://a.example"), true);
        check(&["*"], Some("null"), true);
    }

    #[test]
    fn exact() {
        for (origin, expect) in [
            ("https://app.example.org", true),
            ("HTTPS://APP.example.org", true),
            ("https://app.example.org:443", true),
            ("https://app.example.org:8443", false),
            ("http://app.example.org", false),
            ("https://app.example.org.evil.example", false),
            ("https://evil.example/https://app.example.org", false),
            ("https://app.example.org@evil.example", false),
            ("null", false),
            ("", false),
        ] {
            check(&["https://app.example.org"], Some(origin), expect);
        }
    }

    #[test]
    fn subdomains() {
        for (origin, expect) in [
            ("https://a.example.org", true),
            ("https://a.b.example.org", true),
            ("https://example.org", false),
            ("https://.example.org", false),
            ("https://evilexample.org", false),
            ("https://a.example.org.evil.example", false),
            ("https://evil.example#.example.org", false),
            ("https://evil.example/.example.org", false),
            ("http://a.example.org", false),
            ("https://a.example.org:8443", false),
        ] {
            check(&["https://*.example.org"], Some(origin), expect);
        }
        check(&["http://*.example.org:3000"], Some("http://a.example.org:3000"), true);
    }

    #[test]
    fn same_origin() {
        check(&["same-origin"], Some("http://gate.example.org:8000"), true);
        check(&["same-origin"], Some("https://GATE.example.org:8000"), true);
        check(&["same-origin"], Some("http://gate.example.org"), false);
        check(&["same-origin"], Some("http://other.example.org:8000"), false);
        let rules = [OriginRule::SameOrigin];
        assert!(Origins::new(&rules).allows(Some("https://gate.example.org"), "gate.example.org:443"));
        assert!(Origins::new(&rules).allows(Some("http://[::1]:8000"), "[::1]:8000"));
        assert!(!Origins::new(&rules).allows(Some("http://[::1]:8000"), ""));
    }

    #[test]
    fn rules_that_are_none() {
        for text in
            ["example.org", "https://", "https://a b", "https://*", "https://a.*.org", "https://x/path", ""]
        {
            assert_eq!(OriginRule::from_text(text), None, "{text:?}");
        }
    }
}
