//! Who may say who a client is: networks of trusted proxies, and what they write into a request.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{choice, config::Setting};

/// A network, or one address: `10.0.0.0/8`, `192.0.2.7`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network(IpNet);

choice! {
    /// The header in which proxies name a client. One of them is read and never both: a client can send the other one
    /// itself, and a proxy passes on what it does not know.
    ForwardedHeader, r#""x-forwarded-for" or "forwarded""#, "a list of these words", {
        XForwardedFor = "x-forwarded-for",
        /// RFC 7239.
        Forwarded = "forwarded",
    }
}

/// A list of networks.
#[derive(Debug, Clone, Default)]
pub struct Networks(Vec<IpNet>);

/// The proxies that are believed, and where they write.
#[derive(Debug, Clone)]
pub struct Trust {
    networks: Networks,
    header: ForwardedHeader,
}

impl Setting for Network {
    const EXPECTED: &'static str = r#"a network such as "10.0.0.0/8", or an address"#;
    const EXPECTED_LIST: &'static str = r#"a list of networks such as ["10.0.0.0/8", "2001:db8::/32"]"#;

    fn from_text(text: &str) -> Option<Self> {
        let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?;
        // Set bits beyond the prefix are a mistake: 10.1.0.0/8 may have been meant as 10.1.0.0/16.
        (network == network.trunc()).then_some(Self(network))
    }

    fn show(&self) -> String {
        format!("\"{}\"", self.0)
    }
}

impl Network {
    /// Addresses that the internet does not route: loopback, RFC 1918, RFC 6598 (balancers of providers), RFC 4193, and
    /// the link's own.
    pub fn private() -> Vec<Self> {
        let blocks = [
            "127.0.0.0/8",
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "100.64.0.0/10",
            "169.254.0.0/16",
            "::1/128",
            "fc00::/7",
            "fe80::/10",
        ];
        blocks.iter().filter_map(|block| Self::from_text(block)).collect()
    }
}

impl Networks {
    pub fn new(networks: &[Network]) -> Self {
        Self(networks.iter().map(|network| network.0).collect())
    }

    /// Whether an address is in one of them.
    pub fn cover(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

impl Trust {
    pub fn new(networks: &[Network], header: ForwardedHeader) -> Self {
        Self { networks: Networks::new(networks), header }
    }

    /// Whether an address is that of a trusted proxy.
    pub fn covers(&self, address: IpAddr) -> bool {
        self.networks.cover(address)
    }

    /// The header to give to [`client`](Self::client).
    pub fn header(&self) -> &'static str {
        self.header.word()
    }

    /// The client of a request that came from a trusted proxy: of the addresses in its headers, in the order in which
    /// those came, the rightmost that is not a trusted proxy's; or the leftmost if all are. `None`: nobody is named.
    ///
    /// Each proxy appends the address that it was connected from, so what is right of an address is known from the
    /// trusted ones, and what is left of the first untrusted one anybody may have written.
    ///
    /// Values are octets, and are read from the right: what a client wrote on the left, whatever it is, changes nothing of
    /// what a proxy appended.
    pub fn client<'a>(&self, values: impl DoubleEndedIterator<Item = &'a [u8]>) -> Option<IpAddr> {
        let has_quotes = matches!(self.header, ForwardedHeader::Forwarded);
        let mut client = None;
        for mut value in values.rev() {
            while let Some(element) = take_last(&mut value, has_quotes) {
                let element = str::from_utf8(element).ok().map(str::trim);
                if element == Some("") {
                    continue;
                }
                let named = element.and_then(|element| match self.header {
                    ForwardedHeader::XForwardedFor => address(element),
                    ForwardedHeader::Forwarded => forwarded_for(element).and_then(address),
                });
                // Hidden or garbled: who wrote it, the one to the right, is as far as can be seen.
                let Some(named) = named else { return client };
                client = Some(named);
                if !self.covers(named) {
                    return client;
                }
            }
        }
        client
    }
}

/// Takes the last element of a list, what follows its last comma that is not within quotes (RFC 9110 section 5.6.1).
/// A quote that nothing closes can only be left of what a proxy wrote.
fn take_last<'a>(list: &mut &'a [u8], has_quotes: bool) -> Option<&'a [u8]> {
    if list.is_empty() {
        return None;
    }
    let mut is_quoted = false;
    let comma = (0..list.len()).rev().find(|&at| {
        let escapes = list[..at].iter().rev().take_while(|&&byte| byte == b'\\').count();
        if has_quotes && list[at] == b'"' && escapes % 2 == 0 {
            is_quoted = !is_quoted;
        }
        list[at] == b',' && !is_quoted
    });
    let (rest, element) = match comma {
        Some(at) => (&list[..at], &list[at + 1..]),
        None => (&list[..0], *list),
    };
    *list = rest;
    Some(element)
}

/// The `for` parameter of an element of `Forwarded` (RFC 7239 section 4), without quotes.
fn forwarded_for(element: &str) -> Option<&str> {
    let mut parameters = split_unquoted(element, ';').filter_map(|parameter| parameter.split_once('='));
    let (_, value) = parameters.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    let value = value.trim();
    Some(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
}

fn split_unquoted(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |character| {
        let was_escaped = std::mem::take(&mut escaped);
        match character {
            '"' if !was_escaped => quoted = !quoted,
            '\\' if quoted && !was_escaped => escaped = true,
            _ => {}
        }
        character == separator && !quoted
    })
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80` (RFC 7239 section 6).
fn address(text: &str) -> Option<IpAddr> {
    let bare = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            (port.is_empty() || port.starts_with(':')).then_some(address)?
        }
        // A second colon makes it IPv6 without a port.
        None => {
            text.split_once(':').filter(|(_, port)| !port.contains(':')).map_or(text, |(address, _)| address)
        }
    };
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn trust(header: ForwardedHeader) -> Trust {
        let networks = ["10.0.0.0/8", "2001:db8::/32", "192.0.2.7"];
        Trust::new(&networks.map(|network| Network::from_text(network).unwrap()), header)
    }

    #[track_caller]
    fn check(header: ForwardedHeader, values: &[&str], expect: Option<&str>) {
        let client = trust(header).client(values.iter().map(|value| value.as_bytes()));
        assert_eq!(client, expect.map(|address| address.parse().unwrap()), "{values:?}");
    }

    #[test]
    fn the_rightmost_untrusted_address_is_the_client() {
        let header = ForwardedHeader::XForwardedFor;
        check(header, &["198.51.100.1"], Some("198.51.100.1"));
        check(header, &["198.51.100.1, 10.0.0.1"], Some("198.51.100.1"));
        check(header, &["6.6.6.6, 198.51.100.1, 10.0.0.1"], Some("198.51.100.1"));
        check(header, &["6.6.6.6", "198.51.100.1", "10.0.0.1, 192.0.2.7"], Some("198.51.100.1"));
        check(header, &["10.0.0.3, 10.0.0.2"], Some("10.0.0.3"));
        check(header, &[], None);
        check(header, &["", " , "], None);
    }

    #[test]
    fn what_is_no_address_ends_the_search() {
        let header = ForwardedHeader::XForwardedFor;
        check(header, &["198.51.100.1, unknown, 10.0.0.1"], Some("10.0.0.1"));
        check(header, &["198.51.100.1, "], Some("198.51.100.1"));
        check(header, &["unknown"], None);
        check(header, &["198.51.100.1:x:"], None);
        check(header, &["[2001:db8::1"], None);
    }

    #[test]
    fn addresses_come_with_and_without_ports() {
        let header = ForwardedHeader::XForwardedFor;
        for (text, expect) in [
            ("198.51.100.1:1234", "198.51.100.1"),
            ("2001:db9::1", "2001:db9::1"),
            ("[2001:db9::1]", "2001:db9::1"),
            ("[2001:db9::1]:80", "2001:db9::1"),
            ("::ffff:198.51.100.1", "198.51.100.1"),
        ] {
            check(header, &[text], Some(expect));
        }
    }

    #[test]
    fn forwarded_is_read_by_its_grammar() {
        let header = ForwardedHeader::Forwarded;
        check(header, &["for=198.51.100.1"], Some("198.51.100.1"));
        check(
            header,
            &[r#"proto=https; For="[2001:db9::1]:80";by=10.0.0.1, for=10.0.0.2"#],
            Some("2001:db9::1"),
        );
        check(header, &[r#"for="6.6.6.6, for=7.7.7.7";by=x, for=198.51.100.1"#], Some("198.51.100.1"));
        check(header, &["for=_hidden, for=10.0.0.2"], Some("10.0.0.2"));
        check(header, &["by=10.0.0.2"], None);
        check(header, &["198.51.100.1"], None);
    }

    /// A proxy appends its own element to whatever the client sent.
    #[test]
    fn what_a_client_wrote_does_not_hide_what_a_proxy_appended() {
        let check = |header, value: &[u8]| {
            let client = trust(header).client(std::iter::once(value));
            assert_eq!(client, Some("198.51.100.1".parse().unwrap()), "{}", value.escape_ascii());
        };
        check(ForwardedHeader::XForwardedFor, b"\xff, 198.51.100.1");
        check(ForwardedHeader::XForwardedFor, b"\", 198.51.100.1");
        check(ForwardedHeader::Forwarded, b"for=\"6.6.6.6, for=198.51.100.1");
        check(ForwardedHeader::Forwarded, b"for=\xff, for=\"198.51.100.1\", for=10.0.0.1");
        check(ForwardedHeader::Forwarded, b"for=\"\\\", for=198.51.100.1");
    }

    #[test]
    fn networks_are_exact() {
        assert!(Network::from_text("10.1.0.0/8").is_none(), "bits beyond the prefix");
        assert!(Network::from_text("10.0.0.0/33").is_none());
        assert!(Network::from_text("localhost").is_none());
        let trust = trust(ForwardedHeader::Forwarded);
        for (address, expect) in [
            ("10.255.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("11.0.0.1", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("2001:db8:ffff::1", true),
        ] {
            assert_eq!(trust.covers(address.parse().unwrap()), expect, "{address}");
        }
    }
}
