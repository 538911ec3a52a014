//! What a router and a gateway of one machine say to each other about a client's socket that changes hands.
//!
//! Each message is one record of a `SOCK_SEQPACKET` socket. A record of [`Offers`] has a descriptor with it for each: the
//! client's socket, in the same order. Some time later the gateway says in [`Answers`] whether it has taken them. All numbers
//! are big-endian.
//!
//! ```text
//! offers    version (1) | { number (4) | source | destination | length (4) | what was read from the client } …
//! address   4 (1) | IPv4 (4) | port (2)     or     6 (1) | IPv6 (16) | port (2)
//! answers   version (1) | { number (4) | answer (1) } …
//! ```

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::proxy_v2::Addresses;

/// Of this form. A record of another one is not read: its connection ends, and the router brings the client to the
/// gateway as if there were no hand-over.
pub const VERSION: u8 = 2;

/// Largest offer: a reactor reads 64 KiB at once, and a head that came in parts is longer by 16 KiB at most by default.
pub const OFFER_BYTES_MAX: usize = 128 * 1024;

/// Offers in one record at most. A system call for 32 costs each of them a tenth of a microsecond.
pub const OFFERS_MAX: usize = 32;

/// A record with so many bytes gets no further offer: the first one alone may be longer.
pub const OFFERS_BYTES: usize = 32 * 1024;

/// Numbers and addresses of one, both of IPv6.
pub const OFFER_OVERHEAD_MAX: usize = 4 + 2 * 19 + 4;

/// Answers in one record at most.
pub const ANSWERS_MAX: usize = 64;

/// Largest record of answers.
pub const ANSWERS_BYTES_MAX: usize = 1 + ANSWERS_MAX * ANSWER_BYTES;

const ANSWER_BYTES: usize = 5;

/// A client's socket, offered to a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer<'a> {
    /// What the answer names it by; of this connection.
    pub number: u32,
    /// Who the client is and where it connected to: the ends of the socket, or those that a balancer's header named.
    pub ends: Addresses,
    /// What was read of the socket.
    pub received: &'a [u8],
}

/// Offers of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offers<'a>(Vec<Offer<'a>>);

/// What becomes of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The socket is the gateway's, and the router lets go of it.
    Taken,
    /// The gateway takes no more clients; it has not touched the socket.
    Draining,
    /// It has as many as it may have.
    Full,
    /// The socket did not arrive: the gateway is out of descriptors.
    Descriptors,
}

/// Answers to some offers, in the order in which they are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers(Vec<(u32, Answer)>);

/// A record that is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandoverError {
    #[error(
        "the record has the form {0}, expected {VERSION}: the router and the gateway are of different versions"
    )]
    Version(u8),
    #[error("the record is shorter than what it must hold")]
    TooShort,
    #[error("the record has more than {OFFERS_MAX} offers")]
    TooMany,
    #[error("the record has the unknown address family {0}")]
    Family(u8),
    #[error("the record has the unknown answer {0}")]
    Answer(u8),
}

impl<'a> Offer<'a> {
    /// Appends it to a record that [`Offers::begin`] has begun. What was read is shorter than 4 GiB.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.number.to_be_bytes());
        write_address(self.ends.source, out);
        write_address(self.ends.destination, out);
        out.extend_from_slice(&(self.received.len() as u32).to_be_bytes());
        out.extend_from_slice(self.received);
    }

    fn read(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), HandoverError> {
        let (number, rest) = bytes.split_first_chunk().ok_or(HandoverError::TooShort)?;
        let (source, rest) = read_address(rest)?;
        let (destination, rest) = read_address(rest)?;
        let (length, rest) = rest.split_first_chunk().ok_or(HandoverError::TooShort)?;
        let length = u32::from_be_bytes(*length) as usize;
        let (received, rest) = rest.split_at_checked(length).ok_or(HandoverError::TooShort)?;
        let ends = Addresses { source, destination };
        Ok((Self { number: u32::from_be_bytes(*number), ends, received }, rest))
    }
}

impl<'a> Offers<'a> {
    /// Begins a record, to which offers are appended.
    pub fn begin(out: &mut Vec<u8>) {
        out.push(VERSION);
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`HandoverError`]: it has no offers of this version.
    pub fn parse(record: &'a [u8]) -> Result<Self, HandoverError> {
        let mut rest = body(record)?;
        let mut offers = Vec::new();
        while offers.is_empty() || !rest.is_empty() {
            if offers.len() == OFFERS_MAX {
                return Err(HandoverError::TooMany);
            }
            let (offer, behind) = Offer::read(rest)?;
            offers.push(offer);
            rest = behind;
        }
        Ok(Self(offers))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Offer<'a>> {
        self.0.iter()
    }
}

impl Answers {
    /// `None`: there are more than fit in a record.
    pub fn new(answers: Vec<(u32, Answer)>) -> Option<Self> {
        (answers.len() <= ANSWERS_MAX).then_some(Self(answers))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, Answer)> + '_ {
        self.0.iter().copied()
    }

    /// Appends the record.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        for (number, answer) in &self.0 {
            out.extend_from_slice(&number.to_be_bytes());
            out.push(answer.code());
        }
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`HandoverError`]: it is no record of answers of this version.
    pub fn parse(record: &[u8]) -> Result<Self, HandoverError> {
        let (answers, rest) = body(record)?.as_chunks::<ANSWER_BYTES>();
        if !rest.is_empty() || answers.len() > ANSWERS_MAX {
            return Err(HandoverError::TooShort);
        }
        let read = |[a, b, c, d, code]: &[u8; ANSWER_BYTES]| {
            Ok((u32::from_be_bytes([*a, *b, *c, *d]), Answer::of(*code)?))
        };
        answers.iter().map(read).collect::<Result<_, _>>().map(Self)
    }
}

impl Answer {
    fn code(self) -> u8 {
        match self {
            Self::Taken => 0,
            Self::Draining => 1,
            Self::Full => 2,
            Self::Descriptors => 3,
        }
    }

    fn of(code: u8) -> Result<Self, HandoverError> {
        match code {
            0 => Ok(Self::Taken),
            1 => Ok(Self::Draining),
            2 => Ok(Self::Full),
            3 => Ok(Self::Descriptors),
            other => Err(HandoverError::Answer(other)),
        }
    }
}

fn body(record: &[u8]) -> Result<&[u8], HandoverError> {
    match record.split_first() {
        Some((&VERSION, body)) => Ok(body),
        Some((&version, _)) => Err(HandoverError::Version(version)),
        None => Err(HandoverError::TooShort),
    }
}

fn write_address(address: SocketAddr, out: &mut Vec<u8>) {
    match address.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&address.port().to_be_bytes());
}

fn read_address(bytes: &[u8]) -> Result<(SocketAddr, &[u8]), HandoverError> {
    let (&family, bytes) = bytes.split_first().ok_or(HandoverError::TooShort)?;
    let (ip, rest) = match family {
        4 => {
            let (ip, rest) = bytes.split_first_chunk::<4>().ok_or(HandoverError::TooShort)?;
            (IpAddr::V4(Ipv4Addr::from(*ip)), rest)
        }
        6 => {
            let (ip, rest) = bytes.split_first_chunk::<16>().ok_or(HandoverError::TooShort)?;
            (IpAddr::V6(Ipv6Addr::from(*ip)), rest)
        }
        other => return Err(HandoverError::Family(other)),
    };
    let (port, rest) = rest.split_first_chunk().ok_or(HandoverError::TooShort)?;
    Ok((SocketAddr::new(ip, u16::from_be_bytes(*port)), rest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn address() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), any::<u16>()).prop_map(SocketAddr::from)
    }

    fn answer() -> impl Strategy<Value = Answer> {
        (0_u8..4).prop_map(|code| Answer::of(code).unwrap())
    }

    proptest! {
        #[test]
        fn offers_are_read_as_they_were_written(
            list in proptest::collection::vec((any::<u32>(), address(), address(), any::<Vec<u8>>()), 1..=OFFERS_MAX),
        ) {
            let offer = |(number, source, destination, received): &'_ (u32, _, _, Vec<u8>)| {
                (*number, Addresses { source: *source, destination: *destination }, received.clone())
            };
            let owned: Vec<_> = list.iter().map(offer).collect();
            let offers: Vec<Offer<'_>> =
                owned.iter().map(|(number, ends, received)| Offer { number: *number, ends: *ends, received }).collect();
            let mut record = Vec::new();
            Offers::begin(&mut record);
            let first = {
                offers[0].write(&mut record);
                record.len()
            };
            for cut in 0..first {
                prop_assert_eq!(Offers::parse(&record[..cut]), Err(HandoverError::TooShort));
            }
            prop_assert!(first <= 1 + OFFER_OVERHEAD_MAX + offers[0].received.len());
            offers[1..].iter().for_each(|offer| offer.write(&mut record));
            prop_assert_eq!(Offers::parse(&record), Ok(Offers(offers)));
        }

        #[test]
        fn answers_are_read_as_they_were_written(
            list in proptest::collection::vec((any::<u32>(), answer()), 0..=ANSWERS_MAX),
        ) {
            let answers = Answers::new(list).unwrap();
            let mut record = Vec::new();
            answers.write(&mut record);
            prop_assert!(record.len() <= ANSWERS_BYTES_MAX);
            prop_assert_eq!(Answers::parse(&record), Ok(answers));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(record: Vec<u8>) {
            if let Ok(offers) = Offers::parse(&record) {
                let mut again = Vec::new();
                Offers::begin(&mut again);
                offers.iter().for_each(|offer| offer.write(&mut again));
                prop_assert_eq!(&again, &record);
            }
            if let Ok(answers) = Answers::parse(&record) {
                let mut again = Vec::new();
                answers.write(&mut again);
                prop_assert_eq!(&again, &record);
            }
        }
    }

    #[test]
    fn another_version_is_not_guessed_at() {
        assert_eq!(Offers::parse(&[1, 0, 0]), Err(HandoverError::Version(1)));
        assert_eq!(Answers::parse(&[0]), Err(HandoverError::Version(0)));
        assert_eq!(Answers::parse(&[VERSION, 0, 0, 0, 1, 9]), Err(HandoverError::Answer(9)));
        assert_eq!(Answers::parse(&[VERSION, 0]), Err(HandoverError::TooShort));
        assert_eq!(Answers::new(vec![(0, Answer::Taken); ANSWERS_MAX + 1]), None);
    }
}
