//! What this node has in channels, for another process that is this node from then on. What was on its way is written again
//! there: such a channel counts as stale.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::fields::{Malformed, Reader, Writer};

use super::{Own, OwnChannel, OwnMember};
use crate::{Channel, Member, redis::leases::Written};

impl Own {
    /// Whether nothing waits to be written, or is on its way.
    pub(in crate::redis::presence) fn is_quiet(&self) -> bool {
        self.waiting == 0 && self.channels.values().all(|state| !state.is_busy)
    }

    pub(in crate::redis::presence) fn write(&self, out: &mut Writer) {
        let now = Instant::now();
        out.list(self.channels.iter(), |out, (channel, state)| {
            out.text(channel.as_str());
            out.u64(state.counted);
            out.list(state.members.values(), |out, own| {
                out.text(&own.member.connection);
                out.text(&own.member.user);
                out.option(own.member.info.as_deref(), Writer::text);
                out.bool(own.has_left);
                out.bool(own.is_kept);
                out.bool(own.is_told);
            });
            out.option(state.tells_counts, Writer::bool);
            out.bool(state.is_told);
            out.bool(state.is_stale || state.is_busy);
            out.bool(state.settles);
            out.option(state.settle_at, |out, at| {
                out.u64(at.saturating_duration_since(now).as_millis() as u64);
            });
            state.written.write(out, now);
        });
    }

    pub(in crate::redis::presence) fn take_in(&mut self, fields: &mut Reader<'_>) -> Result<(), Malformed> {
        let now = Instant::now();
        let channels = fields.list(|fields| {
            let channel = Channel::from_inside(fields.text()?).map_err(|_| Malformed)?;
            let mut state = OwnChannel { counted: fields.u64()?, ..OwnChannel::default() };
            for own in fields.list(read_member)? {
                state.leaving += u64::from(own.has_left);
                state.members.insert(own.member.connection.clone(), own);
            }
            state.tells_counts = fields.option(Reader::bool)?;
            state.is_told = fields.bool()?;
            state.is_stale = fields.bool()?;
            state.settles = fields.bool()?;
            let settle_at = fields.option(|fields| Ok(now + Duration::from_millis(fields.u64()?)))?;
            state.written = Written::read(fields, now)?;
            Ok((channel, state, settle_at))
        })?;
        for (channel, state, settle_at) in channels {
            self.channels.insert(channel.clone(), state);
            if let Some(at) = settle_at {
                self.settle_at(&channel, at);
            }
        }
        Ok(())
    }
}

fn read_member(fields: &mut Reader<'_>) -> Result<OwnMember, Malformed> {
    let member = Member {
        connection: fields.text()?.into(),
        user: fields.text()?.into(),
        info: fields.option(|fields| fields.text().map(Box::from))?,
    };
    Ok(OwnMember {
        member: Arc::new(member),
        has_left: fields.bool()?,
        is_kept: fields.bool()?,
        is_told: fields.bool()?,
    })
}
