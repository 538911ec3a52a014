//! The state of a client's connection that goes on in another process: what a gateway that is upgraded gives to the one that
//! takes its place, with the connection's descriptor.
//!
//! Times are written as they were from the moment of writing: ticks or microseconds that have passed or are left, since the two
//! processes have no clock in common. Names are written where an index means something to one version only. A record
//! whose first byte is another [`VERSION`], or in which anything is not as expected, is not understood: its connection
//! stays where it is.

use core::net::IpAddr;

use crate::{
    decoder::Decoder,
    fields::{Malformed, Reader, Writer},
};

/// Of this form.
pub const VERSION: u8 = 2;

/// One connection.
#[derive(Debug)]
pub struct Connection {
    /// Its place in its shard, by which it is named everywhere else.
    pub slot: u32,
    pub generation: u32,
    /// Whose it is in the limits; `None`: nobody has said.
    pub address: Option<IpAddr>,
    /// Since it was accepted.
    pub age_ms: u32,
    pub kept: Kept,
    pub phase: Phase,
}

/// What the loop that serves a connection keeps of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// Ticks since bytes last came.
    pub heard_ago: u32,
    /// Ticks until its timer; `None`: it has none.
    pub timer_in: Option<u32>,
    /// Written and not sent: the rest of a frame, and what waits behind it.
    pub unsent: Vec<u8>,
    /// Messages that were dropped from its queue and that it has not been told of.
    pub dropped: u64,
    /// Read and not used yet.
    pub unused: Vec<u8>,
    /// It is read again when what is unsent has gone.
    pub awaits_flush: bool,
    /// The end of what the peer sends is not the end of the connection.
    pub is_half_open: bool,
}

/// How far it has come.
#[derive(Debug)]
pub enum Phase {
    /// Its request is awaited.
    Head {
        /// What there is of it.
        received: Vec<u8>,
        /// A balancer's header comes before it.
        awaits_header: bool,
        /// It had requests that were answered.
        is_answered: bool,
    },
    Open(Box<Open>),
}

/// An open connection.
#[derive(Debug)]
pub struct Open {
    pub protocol: Box<str>,
    pub form: Box<str>,
    /// Ticks since the ping that is under way was written.
    pub pinged_ago: Option<u32>,
    /// A number of its protocol.
    pub tag: u32,
    pub debts: Debts,
    pub decoder: Decoder,
    pub subscriptions: Vec<Subscription>,
    /// An event stream of several channels: where it is in each.
    pub places: Vec<(Box<str>, Option<Place>)>,
    pub claims: Option<Claims>,
    /// Ticks until its token expires.
    pub expires_in: Option<u32>,
    /// What its protocol keeps of it, in the protocol's form.
    pub own: Vec<u8>,
}

/// What is owed of its rates: units of 10 µs until it is paid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Debts {
    pub messages: u32,
    pub subscribes: u32,
    pub inflated_bytes: u32,
    /// Of one that has published: messages and bytes.
    pub published: Option<(u32, u32)>,
}

/// A position in a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub epoch: u64,
    pub offset: u64,
}

/// A subscription that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// The channel's name inside, with its app.
    pub channel: Box<str>,
    pub form: Box<str>,
    pub seen: Seen,
}

/// What the client has of the channel, where something of that may still come by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    pub through: Option<Place>,
    pub met: bool,
    pub is_new: bool,
    pub presence: Option<u64>,
}

/// What its token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    pub user: Option<Box<str>>,
    /// Milliseconds of the Unix clock.
    pub expires_ms: Option<u64>,
    pub info: Option<Box<str>>,
    pub app: Option<Box<str>>,
    pub channels: Vec<Box<str>>,
    /// `None`: those of `channels`.
    pub publish: Option<Vec<Box<str>>>,
    /// What is kept for the application, in a form of its own.
    pub known: Option<Vec<u8>>,
}

impl Connection {
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u8(VERSION);
        out.u32(self.slot);
        out.u32(self.generation);
        out.option(self.address, write_ip);
        out.u32(self.age_ms);
        self.kept.write(&mut out);
        match &self.phase {
            Phase::Head { received, awaits_header, is_answered } => {
                out.u8(0);
                out.bytes(received);
                out.bool(*awaits_header);
                out.bool(*is_answered);
            }
            Phase::Open(open) => {
                out.u8(1);
                open.write(&mut out);
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
        let connection = Self {
            slot: fields.u32()?,
            generation: fields.u32()?,
            address: fields.option(read_ip)?,
            age_ms: fields.u32()?,
            kept: Kept::read(&mut fields)?,
            phase: match fields.u8()? {
                0 => Phase::Head {
                    received: fields.bytes()?.to_vec(),
                    awaits_header: fields.bool()?,
                    is_answered: fields.bool()?,
                },
                1 => Phase::Open(Box::new(Open::read(&mut fields)?)),
                _ => return Err(Malformed),
            },
        };
        fields.end()?;
        Ok(connection)
    }
}

impl Kept {
    fn write(&self, out: &mut Writer) {
        out.u32(self.heard_ago);
        out.option(self.timer_in, Writer::u32);
        out.bytes(&self.unsent);
        out.u64(self.dropped);
        out.bytes(&self.unused);
        out.bool(self.awaits_flush);
        out.bool(self.is_half_open);
    }

    fn read(fields: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            heard_ago: fields.u32()?,
            timer_in: fields.option(Reader::u32)?,
            unsent: fields.bytes()?.to_vec(),
            dropped: fields.u64()?,
            unused: fields.bytes()?.to_vec(),
            awaits_flush: fields.bool()?,
            is_half_open: fields.bool()?,
        })
    }
}

impl Open {
    fn write(&self, out: &mut Writer) {
        out.text(&self.protocol);
        out.text(&self.form);
        out.option(self.pinged_ago, Writer::u32);
        out.u32(self.tag);
        self.debts.write(out);
        self.decoder.write(out);
        out.list(self.subscriptions.iter(), |out, subscription| subscription.write(out));
        out.list(self.places.iter(), |out, (channel, place)| {
            out.text(channel);
            out.option(*place, write_place);
        });
        out.option(self.claims.as_ref(), |out, claims| claims.write(out));
        out.option(self.expires_in, Writer::u32);
        out.bytes(&self.own);
    }

    fn read(fields: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            protocol: fields.text()?.into(),
            form: fields.text()?.into(),
            pinged_ago: fields.option(Reader::u32)?,
            tag: fields.u32()?,
            debts: Debts::read(fields)?,
            decoder: Decoder::read(fields)?,
            subscriptions: fields.list(Subscription::read)?,
            places: fields.list(|fields| Ok((fields.text()?.into(), fields.option(read_place)?)))?,
            claims: fields.option(Claims::read)?,
            expires_in: fields.option(Reader::u32)?,
            own: fields.bytes()?.to_vec(),
        })
    }
}

impl Debts {
    fn write(&self, out: &mut Writer) {
        out.u32(self.messages);
        out.u32(self.subscribes);
        out.u32(self.inflated_bytes);
        out.option(self.published, |out, (messages, bytes)| {
            out.u32(messages);
            out.u32(bytes);
        });
    }

    fn read(fields: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            messages: fields.u32()?,
            subscribes: fields.u32()?,
            inflated_bytes: fields.u32()?,
            published: fields.option(|fields| Ok((fields.u32()?, fields.u32()?)))?,
        })
    }
}

impl Subscription {
    fn write(&self, out: &mut Writer) {
        out.text(&self.channel);
        out.text(&self.form);
        out.option(self.seen.through, write_place);
        out.bool(self.seen.met);
        out.bool(self.seen.is_new);
        out.option(self.seen.presence, Writer::u64);
    }

    fn read(fields: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            channel: fields.text()?.into(),
            form: fields.text()?.into(),
            seen: Seen {
                through: fields.option(read_place)?,
                met: fields.bool()?,
                is_new: fields.bool()?,
                presence: fields.option(Reader::u64)?,
            },
        })
    }
}

impl Claims {
    fn write(&self, out: &mut Writer) {
        out.option(self.user.as_deref(), Writer::text);
        out.option(self.expires_ms, Writer::u64);
        out.option(self.info.as_deref(), Writer::text);
        out.option(self.app.as_deref(), Writer::text);
        out.list(self.channels.iter(), |out, pattern| out.text(pattern));
        out.option(self.publish.as_ref(), |out, patterns| {
            out.list(patterns.iter(), |out, pattern| out.text(pattern));
        });
        out.option(self.known.as_deref(), Writer::bytes);
    }

    fn read(fields: &mut Reader<'_>) -> Result<Self, Malformed> {
        let text = |fields: &mut Reader<'_>| fields.text().map(Box::from);
        Ok(Self {
            user: fields.option(text)?,
            expires_ms: fields.option(Reader::u64)?,
            info: fields.option(text)?,
            app: fields.option(text)?,
            channels: fields.list(text)?,
            publish: fields.option(|fields| fields.list(text))?,
            known: fields.option(|fields| fields.bytes().map(<[u8]>::to_vec))?,
        })
    }
}

pub(crate) fn write_ip(out: &mut Writer, address: IpAddr) {
    match address {
        IpAddr::V4(ip) => out.bytes(&ip.octets()),
        IpAddr::V6(ip) => out.bytes(&ip.octets()),
    }
}

pub(crate) fn read_ip(fields: &mut Reader<'_>) -> Result<IpAddr, Malformed> {
    let bytes = fields.bytes()?;
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).map_err(|_| Malformed)
}

pub fn write_place(out: &mut Writer, place: Place) {
    out.u64(place.epoch);
    out.u64(place.offset);
}

pub fn read_place(fields: &mut Reader<'_>) -> Result<Place, Malformed> {
    Ok(Place { epoch: fields.u64()?, offset: fields.u64()? })
}

#[cfg(test)]
mod tests;
