//! Subscriptions that another process goes on with: what was handed over of each channel, and where it is subscribed.
//!
//! A channel in a repair is written as one whose subscription was interrupted: what waits for the repair is in the stream, or
//! is told as a gap.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::fields::{Malformed, Reader, Writer};

use super::{
    Subscriptions,
    entry::{Entry, State},
    keeper::LINGER,
    registry::Registry,
    sequence::{Sequence, SequenceParts},
    work::Due,
};
use crate::{
    Channel, Epoch, Position,
    redis::{
        contract::{LinkId, Seat, Session},
        envelope::{Place, Tag},
    },
};

impl Subscriptions {
    /// Nothing is subscribed, ended or looked at, until told otherwise. When this returns, nothing is at it.
    pub(crate) fn halt(&self, halts: bool) {
        self.registry.set_halted(halts);
    }

    /// Whether every subscription that was sent is confirmed, and nothing is asked.
    pub(crate) fn is_quiet(&self) -> bool {
        self.registry.is_quiet()
    }

    pub(crate) fn write(&self, out: &mut Writer) {
        let now = Instant::now();
        let mut entries = Vec::new();
        for entry in self.registry.entries(|_| true) {
            let parts = entry.locked(|state| Some((state.sequence.parts()?, state.holds, state.look_at)));
            entries.extend(parts.map(|parts| (entry, parts)));
        }
        out.list(entries.into_iter(), |out, (entry, (parts, holds, look_at))| {
            out.text(entry.channel.as_str());
            parts.write(out);
            out.option(holds, Seat::write);
            out.option(look_at, |out, at| {
                out.u64(at.saturating_duration_since(now).as_millis() as u64);
            });
        });
    }

    /// Takes in what another process was subscribed to; [`go_on`](Self::go_on) begins with it.
    pub(crate) fn take_in(&self, fields: &mut Reader<'_>) -> Result<(), Malformed> {
        let now = Instant::now();
        fields.list(|fields| {
            let channel = Channel::from_inside(fields.text()?).map_err(|_| Malformed)?;
            let sequence = Sequence::of(SequenceParts::read(fields)?);
            let holds = fields.option(Seat::read)?;
            let look_at = fields.option(|fields| Ok(now + Duration::from_millis(fields.u64()?)))?;
            self.registry.find_or_insert(&channel).locked(|state| {
                self.registry.count_in(holds);
                let was_confirmed = holds.is_some();
                let held = State { sequence, holds, look_at, was_confirmed, ..State::new() };
                *state = held;
            });
            Ok(())
        })?;
        Ok(())
    }

    /// Sessions that another process had.
    pub(crate) fn go_on_with(&self, link: LinkId, session: Session) {
        self.registry.set_session(link, session, true);
    }

    /// All who want a channel have said so.
    pub(crate) fn go_on(&self) {
        let (registry, now) = (&self.registry, Instant::now());
        for entry in registry.entries(|_| true) {
            registry.advance(&entry, |state, _| match state.holds {
                Some(_) => state.sequence.confirmed(),
                None => None,
            });
            registry.order(|work| timers(&entry, now, &mut work.timers));
        }
        registry.order(|work| work.is_all = true);
    }
}

/// When the channel is looked at, and when it ends if nobody has come for it.
fn timers(entry: &Arc<Entry>, now: Instant, timers: &mut Vec<(Instant, Arc<Entry>, Due)>) {
    entry.locked(|state| {
        timers.extend(state.look_at.map(|at| (at, Arc::clone(entry), Due::Look)));
        if !state.is_wanted && !std::mem::replace(&mut state.is_leaving, true) {
            let due = Due::Leave { generation: state.generation };
            timers.push((now + LINGER, Arc::clone(entry), due));
        }
    });
}

impl SequenceParts {
    fn write(&self, out: &mut Writer) {
        out.option(self.last, |out, Place { position, tag }| {
            out.u64(position.epoch.0);
            out.u64(position.offset);
            out.u64(tag.0);
        });
        out.u64(self.overlap);
        out.bool(self.has_plain);
        out.bool(self.is_lost);
        out.bool(self.is_live);
    }

    fn read(fields: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            last: fields.option(|fields| {
                let position = Position { epoch: Epoch(fields.u64()?), offset: fields.u64()? };
                Ok(Place { position, tag: Tag(fields.u64()?) })
            })?,
            overlap: fields.u64()?,
            has_plain: fields.bool()?,
            is_lost: fields.bool()?,
            is_live: fields.bool()?,
        })
    }
}

impl Registry {
    fn count_in(&self, holds: Option<Seat>) {
        let number = u64::from(holds.is_some());
        self.counters.confirmed.fetch_add(number, std::sync::atomic::Ordering::Relaxed);
    }
}
