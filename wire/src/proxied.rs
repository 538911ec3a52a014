//! The state of a router's client that goes on in another process: what a router that is upgraded gives to the one that takes
//! its place, with the client's descriptor and that of its connection to a gateway.
//!
//! The end of what either of them sends is not written: whoever reads the socket next finds it there.

use core::net::SocketAddr;

use crate::{
    fields::{Malformed, Reader, Writer},
    moving::{read_ip, write_ip},
};

/// Of this form; the first byte of each record.
pub const VERSION: u8 = 1;

/// One client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Client {
    Head(Head),
    Pair(Pair),
}

/// Its request is awaited. One descriptor: the client's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Who it is and where it connected to: the ends of its socket, or those that a balancer names.
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// The balancer's header is to come first.
    pub awaits_header: bool,
    /// What there is of it.
    pub received: Vec<u8>,
    /// Ticks in which it is to be complete; `None`: it has no such time.
    pub timer_in: Option<u32>,
}

/// Bytes move between it and a gateway. Two descriptors: the client's, and that of the connection to the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The gateway's name.
    pub node: Box<str>,
    /// Of the client's key.
    pub key: [u32; 2],
    /// What the client sends goes nowhere.
    pub is_deaf: bool,
    pub to_client: Side,
    pub to_node: Side,
}

/// One of the two connections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Side {
    /// Ticks since bytes last came from it.
    pub heard_ago: u32,
    /// Read from the other one and not taken by this one.
    pub unsent: Vec<u8>,
}

impl Client {
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u8(VERSION);
        match self {
            Self::Head(head) => {
                out.u8(0);
                write_end(&mut out, head.source);
                write_end(&mut out, head.destination);
                out.bool(head.awaits_header);
                out.bytes(&head.received);
                out.option(head.timer_in, Writer::u32);
            }
            Self::Pair(pair) => {
                out.u8(1);
                out.text(&pair.node);
                pair.key.iter().for_each(|&half| out.u32(half));
                out.bool(pair.is_deaf);
                for side in [&pair.to_client, &pair.to_node] {
                    out.u32(side.heard_ago);
                    out.bytes(&side.unsent);
                }
            }
        }
        out.into_bytes()
    }

    /// # Errors
    /// [`Malformed`]: it is of another form, and not to be guessed at.
    pub fn parse(record: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Reader::new(record);
        if fields.u8()? != VERSION {
            return Err(Malformed);
        }
        let client = match fields.u8()? {
            0 => Self::Head(Head {
                source: read_end(&mut fields)?,
                destination: read_end(&mut fields)?,
                awaits_header: fields.bool()?,
                received: fields.bytes()?.to_vec(),
                timer_in: fields.option(Reader::u32)?,
            }),
            1 => Self::Pair(Pair {
                node: fields.text()?.into(),
                key: [fields.u32()?, fields.u32()?],
                is_deaf: fields.bool()?,
                to_client: read_side(&mut fields)?,
                to_node: read_side(&mut fields)?,
            }),
            _ => return Err(Malformed),
        };
        fields.end()?;
        Ok(client)
    }
}

fn read_side(fields: &mut Reader<'_>) -> Result<Side, Malformed> {
    Ok(Side { heard_ago: fields.u32()?, unsent: fields.bytes()?.to_vec() })
}

/// What else an address of IPv6 says (flow, scope) is of the machine and not needed.
fn write_end(out: &mut Writer, end: SocketAddr) {
    write_ip(out, end.ip());
    out.u32(end.port().into());
}

fn read_end(fields: &mut Reader<'_>) -> Result<SocketAddr, Malformed> {
    let ip = read_ip(fields)?;
    let port = u16::try_from(fields.u32()?).map_err(|_| Malformed)?;
    Ok(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use core::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn client() -> impl Strategy<Value = Client> {
        let end = || any::<(IpAddr, u16)>().prop_map(|(ip, port)| SocketAddr::new(ip, port));
        let head = (end(), end(), any::<(bool, Vec<u8>, Option<u32>)>()).prop_map(
            |(source, destination, (awaits_header, received, timer_in))| {
                Client::Head(Head { source, destination, awaits_header, received, timer_in })
            },
        );
        let side = || any::<(u32, Vec<u8>)>().prop_map(|(heard_ago, unsent)| Side { heard_ago, unsent });
        let pair = ("[a-z0-9:]{1,20}", any::<([u32; 2], bool)>(), side(), side()).prop_map(
            |(node, (key, is_deaf), to_client, to_node)| {
                Client::Pair(Pair { node: node.into(), key, is_deaf, to_client, to_node })
            },
        );
        prop_oneof![head, pair]
    }

    proptest! {
        #[test]
        fn a_client_is_read_as_it_was_written(client in client(), cut in any::<prop::sample::Index>()) {
            let record = client.to_bytes();
            let again = Client::parse(&record);
            prop_assert_eq!(again, Ok(client));
            prop_assert!(Client::parse(&record[..cut.index(record.len())]).is_err());
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(mut record: Vec<u8>) {
            record.insert(0, VERSION);
            if let Ok(client) = Client::parse(&record) {
                prop_assert_eq!(client.to_bytes(), record);
            }
        }
    }

    /// The form of version 1, byte by byte: a change of it is a new version.
    #[test]
    fn the_form_does_not_change_under_its_number() {
        let pair = Client::Pair(Pair {
            node: "g1".into(),
            key: [1, 2],
            is_deaf: true,
            to_client: Side { heard_ago: 3, unsent: vec![0xAA] },
            to_node: Side::default(),
        });
        let golden: &[u8] = &[
            1, 1, 0, 0, 0, 2, b'g', b'1', 0, 0, 0, 1, 0, 0, 0, 2, 1, 0, 0, 0, 3, 0, 0, 0, 1, 0xAA, 0, 0, 0,
            0, 0, 0, 0, 0,
        ];
        assert_eq!(pair.to_bytes(), golden);
        let mut other = golden.to_vec();
        other[0] = VERSION + 1;
        assert_eq!(Client::parse(&other), Err(Malformed), "another version is not guessed at");
        let head = Client::Head(Head {
            source: ([192, 0, 2, 1], 258).into(),
            destination: ([127, 0, 0, 1], 80).into(),
            awaits_header: false,
            received: b"GET".to_vec(),
            timer_in: Some(5),
        });
        let golden: &[u8] = &[
            1, 0, 0, 0, 0, 4, 192, 0, 2, 1, 0, 0, 1, 2, 0, 0, 0, 4, 127, 0, 0, 1, 0, 0, 0, 80, 0, 0, 0, 0, 3,
            b'G', b'E', b'T', 1, 0, 0, 0, 5,
        ];
        assert_eq!(head.to_bytes(), golden);
    }
}
