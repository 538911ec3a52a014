//! What a process says to the one that takes its place, and hears from it: one record each over a `SOCK_SEQPACKET` pair, with
//! descriptors where it says so.
//!
//! ```text
//! predecessor                                  successor
//!    Listeners + listening sockets  ─────────►  binds nothing, builds everything
//!                                   ◄─────────  Ready, or Refused
//!    (serves on; then nothing more is read)
//!    State + a file, Sockets + sockets ──────►  reads it
//!                                   ◄─────────  Taken: all but these; or Refused
//!    Go                             ─────────►  serves
//!                                   ◄─────────  Serving
//!    Left (who was not taken)       ─────────►  gives back what it had in presence
//!    Told (what happened to it)     ─────────►  tells the application
//! ```

use crate::fields::{Malformed, Reader, Writer};

/// Of these records. The first byte of each.
pub const VERSION: u8 = 1;

/// Sockets in one record: the kernel passes 253 at most.
pub const SOCKETS_MAX: usize = 200;

/// Largest record; what is longer (the state) goes as a file. Of a socket's usual buffer of 208 KiB.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;

/// Connections that a successor may refuse one by one; if it understands fewer, it refuses them all.
pub const REFUSED_MAX: usize = 8 * 1024;

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// With the listening sockets: public, internal.
    Listeners {
        /// Its name, and this life of it.
        node: Box<str>,
        life: u64,
        /// Threads that serve connections: their numbers are in the names of connections.
        shards: u32,
    },
    /// It has built everything and could serve.
    Ready,
    /// It cannot take over, for a reason that a person reads.
    Refused {
        why: Box<str>,
    },
    /// With a file: everything but the sockets.
    State {
        sockets: u32,
    },
    /// With as many sockets, in the order of the state.
    Sockets {
        number: u32,
    },
    /// The state was understood, but for the connections at these places, which stay where they are.
    Taken {
        refused: Vec<u32>,
    },
    /// From here on everything is the successor's.
    Go,
    Serving,
    /// A connection that stayed behind has left a channel. `None`: one that was only counted.
    Left {
        channel: Box<str>,
        connection: Option<Box<str>>,
    },
    /// Something that an application is to be told, in JSON.
    Told {
        event: Box<[u8]>,
        /// The end of a connection, whose will is kept until it is taken.
        is_end: bool,
    },
}

impl Step {
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u8(VERSION);
        match self {
            Self::Listeners { node, life, shards } => {
                out.u8(0);
                out.text(node);
                out.u64(*life);
                out.u32(*shards);
            }
            Self::Ready => out.u8(1),
            Self::Refused { why } => {
                out.u8(2);
                out.text(why);
            }
            Self::State { sockets } => {
                out.u8(3);
                out.u32(*sockets);
            }
            Self::Sockets { number } => {
                out.u8(4);
                out.u32(*number);
            }
            Self::Taken { refused } => {
                out.u8(5);
                out.list(refused.iter(), |out, at| out.u32(*at));
            }
            Self::Go => out.u8(6),
            Self::Serving => out.u8(7),
            Self::Left { channel, connection } => {
                out.u8(8);
                out.text(channel);
                out.option(connection.as_deref(), Writer::text);
            }
            Self::Told { event, is_end } => {
                out.u8(9);
                out.bytes(event);
                out.bool(*is_end);
            }
        }
        out.into_bytes()
    }

    /// # Errors
    /// [`Malformed`]: it is no record of this version.
    pub fn parse(record: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Reader::new(record);
        if fields.u8()? != VERSION {
            return Err(Malformed);
        }
        let text = |fields: &mut Reader<'_>| fields.text().map(Box::from);
        let step = match fields.u8()? {
            0 => Self::Listeners { node: text(&mut fields)?, life: fields.u64()?, shards: fields.u32()? },
            1 => Self::Ready,
            2 => Self::Refused { why: text(&mut fields)? },
            3 => Self::State { sockets: fields.u32()? },
            4 => Self::Sockets { number: fields.u32()? },
            5 => Self::Taken { refused: fields.list(Reader::u32)? },
            6 => Self::Go,
            7 => Self::Serving,
            8 => Self::Left { channel: text(&mut fields)?, connection: fields.option(text)? },
            9 => Self::Told { event: fields.bytes()?.into(), is_end: fields.bool()? },
            _ => return Err(Malformed),
        };
        fields.end()?;
        Ok(step)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_step_is_read_as_it_was_written() {
        let steps = [
            Step::Listeners { node: "n".into(), life: 7, shards: 2 },
            Step::Ready,
            Step::Refused { why: "no".into() },
            Step::State { sockets: 3 },
            Step::Sockets { number: 200 },
            Step::Taken { refused: (0..REFUSED_MAX as u32).collect() },
            Step::Go,
            Step::Serving,
            Step::Left { channel: "a".into(), connection: None },
            Step::Left { channel: "a".into(), connection: Some("n.1".into()) },
            Step::Told { event: b"{}".as_slice().into(), is_end: true },
        ];
        for step in steps {
            let record = step.to_bytes();
            assert!(record.len() <= RECORD_BYTES_MAX, "{step:?}");
            assert_eq!(Step::parse(&record).as_ref(), Ok(&step));
            let mut other = record.clone();
            other[0] = VERSION + 1;
            assert_eq!(Step::parse(&other), Err(Malformed), "another version");
            for cut in 0..record.len() {
                assert_eq!(Step::parse(&record[..cut]), Err(Malformed), "{step:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(mut record: Vec<u8>) {
            record.insert(0, VERSION);
            if let Ok(step) = Step::parse(&record) {
                prop_assert_eq!(step.to_bytes(), record);
            }
        }
    }
}
