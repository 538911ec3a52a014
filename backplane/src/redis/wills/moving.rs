//! Wills of a node that goes on in another process, which is the same instance to other nodes.

use std::{collections::BTreeSet, time::Instant};

use super::{Kept, Own, Wills};
use crate::{
    fields::{Malformed, Reader, Writer},
    redis::contract::Seat,
};

impl Wills {
    /// Whether nothing is being written, or told of other nodes.
    pub(crate) fn is_quiet(&self) -> bool {
        self.with(|own| !own.is_busy && own.telling == 0)
    }

    pub(crate) fn hand_on(&self, out: &mut Writer) {
        self.with(|own| own.write(out));
    }

    pub(crate) fn take_in(&self, fields: &mut Reader<'_>) -> Result<(), Malformed> {
        let own = Own::read(fields)?;
        self.with(|before| *before = own);
        Ok(())
    }
}

impl Own {
    fn write(&self, out: &mut Writer) {
        out.list(self.kept.iter(), |out, (connection, kept)| {
            out.text(connection);
            out.text(&kept.will);
            out.bool(kept.is_written);
        });
        // What was not written to its end is written again.
        out.bool(self.is_stale || self.is_busy);
        out.bool(self.has_lost_data);
        out.list(self.instances.iter(), |out, instance| out.text(instance));
        out.option(self.seat, Seat::write);
        out.list(self.missed.iter(), |out, connection| out.text(connection));
    }

    fn read(fields: &mut Reader<'_>) -> Result<Self, Malformed> {
        let text = |fields: &mut Reader<'_>| fields.text().map(Box::from);
        let kept = fields.list(|fields| {
            let connection = text(fields)?;
            Ok((connection, Kept { will: fields.text()?.into(), is_written: fields.bool()? }))
        })?;
        let mut own = Self {
            kept: kept.into_iter().collect(),
            is_stale: fields.bool()?,
            has_lost_data: fields.bool()?,
            instances: fields.list(text)?.into_iter().collect::<BTreeSet<_>>(),
            seat: fields.option(Seat::read)?,
            missed: fields.list(text)?.into_iter().collect(),
            ..Self::default()
        };
        // A lease that is renewed from now on says what they are.
        own.missed_at = (!own.missed.is_empty()).then(Instant::now);
        Ok(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut own = Own::default();
        own.kept.insert("n.1".into(), Kept { will: "{}".into(), is_written: true });
        own.instances.insert("n.9".into());
        own.missed.insert("n.2".into());
        own.is_busy = true;
        let mut out = Writer::default();
        own.write(&mut out);
        let written = out.into_bytes();
        let read = Own::read(&mut Reader::new(&written)).expect("its own form");
        assert_eq!((&*read.kept["n.1"].will, read.kept["n.1"].is_written), ("{}", true));
        assert!(read.is_stale && !read.is_busy && read.missed_at.is_some());
        assert_eq!((read.instances, read.missed), (own.instances, own.missed));
        for end in 0..written.len() {
            assert!(
                Own::read(&mut Reader::new(&written[..end])).is_err(),
                "{end} bytes of {}",
                written.len()
            );
        }
    }
}
