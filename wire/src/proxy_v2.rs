//! The PROXY protocol, version 2: who the client is, said by the proxy before the client's first byte.
//!
//! Source: `proxy-protocol.txt` of HAProxy, section 2.2. Version 1, which is text, is refused: a listener that speaks
//! both could be told apart only by guessing.

// Addresses as values; nothing here has a socket.
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Begins every header; no HTTP request and no TLS record begins with it.
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// A longer header is refused. The addresses take 52 bytes; the rest is for attributes, of which a client
/// certificate is the largest that proxies add (1 to 2 KiB).
pub const HEADER_BYTES_MAX: usize = 4096;

/// What a proxy says about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// `None`: the proxy connects on its own behalf (a health check), or does not know. Then the connection's own
    /// addresses hold.
    pub addresses: Option<Addresses>,
    /// Bytes of the header; what follows them is the client's.
    pub len: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// What the client connected to.
    pub destination: SocketAddr,
}

/// Bytes that are not a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("the connection does not begin with a PROXY protocol v2 header")]
    Signature,
    #[error("the PROXY protocol has the version {0}, expected 2")]
    Version(u8),
    #[error("the PROXY protocol has the unknown command {0}")]
    Command(u8),
    #[error("the PROXY protocol has the unknown address family and transport {0:#04x}")]
    Family(u8),
    #[error("the PROXY protocol header is too short for its addresses")]
    TooShort,
    #[error("the PROXY protocol header is larger than {HEADER_BYTES_MAX} bytes")]
    TooLong,
}

/// Signature, version and command, family and transport, length.
const FIXED_BYTES: usize = 16;
const INET_BYTES: usize = 4 + 4 + 2 + 2;
const INET6_BYTES: usize = 16 + 16 + 2 + 2;
const UNIX_BYTES: usize = 108 + 108;

impl Header {
    /// Reads a header from the start of `bytes`. `None`: it is not complete yet, and correct so far.
    ///
    /// # Errors
    /// [`HeaderError`]: more bytes will not help.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, HeaderError> {
        let begun = bytes.len().min(SIGNATURE.len());
        if bytes[..begun] != SIGNATURE[..begun] {
            return Err(HeaderError::Signature);
        }
        let Some(&command) = bytes.get(12) else { return Ok(None) };
        if command >> 4 != 2 {
            return Err(HeaderError::Version(command >> 4));
        }
        if command & 0xF > 1 {
            return Err(HeaderError::Command(command & 0xF));
        }
        let Some(&family) = bytes.get(13) else { return Ok(None) };
        let address_bytes = match (family >> 4, family & 0xF) {
            (0, 0..=2) => 0,
            (1, 0..=2) => INET_BYTES,
            (2, 0..=2) => INET6_BYTES,
            (3, 0..=2) => UNIX_BYTES,
            _ => return Err(HeaderError::Family(family)),
        };
        let Some(length) = bytes.get(14..16) else { return Ok(None) };
        let len = FIXED_BYTES + usize::from(u16::from_be_bytes([length[0], length[1]]));
        if len > HEADER_BYTES_MAX {
            return Err(HeaderError::TooLong);
        }
        let is_proxied = command & 0xF == 1;
        // What a proxy says on its own behalf is to be skipped, whatever it is.
        if is_proxied && len < FIXED_BYTES + address_bytes {
            return Err(HeaderError::TooShort);
        }
        let Some(header) = bytes.get(..len) else { return Ok(None) };
        let addresses = if is_proxied { addresses(family >> 4, &header[FIXED_BYTES..]) } else { None };
        Ok(Some(Self { addresses, len }))
    }
}

impl Addresses {
    /// Appends the header that names them, over TCP.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&SIGNATURE);
        let ports = [self.source.port().to_be_bytes(), self.destination.port().to_be_bytes()];
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                out.extend_from_slice(&[0x21, 0x11, 0, INET_BYTES as u8]);
                out.extend_from_slice(&source.octets());
                out.extend_from_slice(&destination.octets());
            }
            // One family for both: an IPv4 address has its place among those of IPv6 (RFC 4291 section 2.5.5.2).
            (source, destination) => {
                out.extend_from_slice(&[0x21, 0x21, 0, INET6_BYTES as u8]);
                out.extend_from_slice(&as_v6(source).octets());
                out.extend_from_slice(&as_v6(destination).octets());
            }
        }
        out.extend_from_slice(ports.as_flattened());
    }
}

/// Appends the header of a connection that a proxy makes on its own behalf.
pub fn write_local(out: &mut Vec<u8>) {
    out.extend_from_slice(&SIGNATURE);
    out.extend_from_slice(&[0x20, 0, 0, 0]);
}

/// `body` has the length that the family takes.
fn addresses(family: u8, body: &[u8]) -> Option<Addresses> {
    match family {
        1 => {
            let (source, rest) = body.split_first_chunk::<4>()?;
            let (destination, ports) = rest.split_first_chunk::<4>()?;
            pair(Ipv4Addr::from(*source).into(), Ipv4Addr::from(*destination).into(), ports)
        }
        2 => {
            let (source, rest) = body.split_first_chunk::<16>()?;
            let (destination, ports) = rest.split_first_chunk::<16>()?;
            pair(Ipv6Addr::from(*source).into(), Ipv6Addr::from(*destination).into(), ports)
        }
        _ => None,
    }
}

fn pair(source: IpAddr, destination: IpAddr, ports: &[u8]) -> Option<Addresses> {
    let (&source_port, rest) = ports.split_first_chunk::<2>()?;
    let &destination_port = rest.first_chunk::<2>()?;
    let at = |ip: IpAddr, port| SocketAddr::new(ip.to_canonical(), u16::from_be_bytes(port));
    Some(Addresses { source: at(source, source_port), destination: at(destination, destination_port) })
}

fn as_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    /// A header from its parts.
    fn header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, body].concat()
    }

    fn named(source: &str, destination: &str) -> Option<Addresses> {
        Some(Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() })
    }

    #[track_caller]
    fn check(bytes: &[u8], expect: Option<Addresses>) {
        let whole = Header { addresses: expect, len: bytes.len() };
        assert_eq!(Header::parse(bytes), Ok(Some(whole)));
        let longer = [bytes, b"GET / HTTP/1.1\r\n"].concat();
        assert_eq!(Header::parse(&longer), Ok(Some(whole)), "what follows does not matter");
        for end in 0..bytes.len() {
            assert_eq!(Header::parse(&bytes[..end]), Ok(None), "{end} bytes are not all");
        }
    }

    /// The bytes of the specification: signature 0D 0A 0D 0A 00 0D 0A 51 55 49 54 0A, then 21 for a proxied
    /// connection, 11 for TCP over IPv4 with 12 bytes of addresses, 21 for TCP over IPv6 with 36.
    #[test]
    fn golden_headers() {
        let v4 = b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A\x21\x11\x00\x0C\
                   \xC0\x00\x02\x01\xC6\x33\x64\x02\x30\x39\x01\xBB";
        check(v4, named("192.0.2.1:12345", "198.51.100.2:443"));
        let v6 = b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A\x21\x21\x00\x24\
                   \x20\x01\x0D\xB8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\
                   \x20\x01\x0D\xB8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\xFF\xFF\x00\x50";
        check(v6, named("[2001:db8::1]:65535", "[2001:db8::2]:80"));
        for (bytes, addresses) in [
            (&v4[..], named("192.0.2.1:12345", "198.51.100.2:443")),
            (v6, named("[2001:db8::1]:65535", "[2001:db8::2]:80")),
        ] {
            let mut out = Vec::new();
            addresses.unwrap().write(&mut out);
            assert_eq!(out, bytes);
        }
        let mut local = Vec::new();
        write_local(&mut local);
        assert_eq!(local, b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00");
        check(&local, None);
    }

    #[test]
    fn what_names_nobody_is_skipped() {
        check(&header(0x20, 0x11, &[0; 12]), None);
        check(&header(0x20, 0x11, &[0; 3]), None);
        check(&header(0x21, 0x00, b""), None);
        check(&header(0x21, 0x00, b"anything"), None);
        check(&header(0x21, 0x31, &[b'/'; 216]), None);
    }

    #[test]
    fn attributes_behind_the_addresses_are_skipped() {
        let body = [&[10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2][..], &[0x04, 0, 3, 0, 0, 0]].concat();
        check(&header(0x21, 0x11, &body), named("10.0.0.1:1", "10.0.0.2:2"));
    }

    #[test]
    fn an_address_in_ipv6_clothes_is_ipv4() {
        let mixed = Addresses {
            source: "10.0.0.1:1".parse().unwrap(),
            destination: "[2001:db8::2]:2".parse().unwrap(),
        };
        let mut out = Vec::new();
        mixed.write(&mut out);
        check(&out, Some(mixed));
    }

    #[test]
    fn each_mistake_has_its_name() {
        let rows = [
            (b"GET / HTTP/1.1\r\n".to_vec(), HeaderError::Signature),
            (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n".to_vec(), HeaderError::Signature),
            (b"\x16\x03\x01".to_vec(), HeaderError::Signature),
            (header(0x11, 0x11, &[0; 12]), HeaderError::Version(1)),
            (header(0x22, 0x11, &[0; 12]), HeaderError::Command(2)),
            (header(0x21, 0x13, &[0; 12]), HeaderError::Family(0x13)),
            (header(0x21, 0x41, &[0; 12]), HeaderError::Family(0x41)),
            (header(0x21, 0x11, &[0; 11]), HeaderError::TooShort),
            (header(0x21, 0x21, &[0; 35]), HeaderError::TooShort),
            (header(0x21, 0x11, &[0; 4081]), HeaderError::TooLong),
        ];
        for (bytes, expect) in rows {
            assert_eq!(Header::parse(&bytes), Err(expect));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(source: SocketAddr, destination: SocketAddr) {
            let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
            let mut out = Vec::new();
            Addresses { source, destination }.write(&mut out);
            let read = Header::parse(&out).unwrap().unwrap();
            prop_assert_eq!(read.len, out.len());
            let expect = Addresses { source: canonical(source), destination: canonical(destination) };
            prop_assert_eq!(read.addresses, Some(expect));
        }

        /// More bytes never change what was decided, and nothing is read beyond the declared length.
        #[test]
        fn a_decision_stands(tail in proptest::collection::vec(any::<u8>(), 0..80), more in any::<[u8; 8]>()) {
            let bytes = [&SIGNATURE[..], &tail].concat();
            let longer = [&bytes[..], &more].concat();
            match Header::parse(&bytes) {
                Ok(None) => {}
                decided => prop_assert_eq!(Header::parse(&longer), decided),
            }
        }
    }
}
