//! All that a memory backplane knows, for a process that takes the place of its own: history with its positions, idempotency
//! keys, presence. Subscriptions are made again by the connections, which go along.
//!
//! Times are written as milliseconds that have passed, or are left, at the moment of writing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::fields::{Malformed, Reader, Writer};

use super::{
    MemoryBackplane,
    headcount::{Headcount, HeadcountParts},
    log::{Log, LogParts},
    table::State,
};
use crate::{Channel, Epoch, HistoryPolicy, Member, Payload, Position, Publication, Sender, Text};

/// Of this form.
const VERSION: u8 = 1;

impl MemoryBackplane {
    /// Everything, as of now. Nobody may publish, join or leave meanwhile, nor afterwards.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let now = self.options.clock.now();
        let mut channels = Vec::new();
        self.table.each(|channel, state| {
            state.age_history(&self.history, now);
            state.age_keys(&self.keys, self.options.idempotency_window, now);
            let log = state.history.held.as_ref().map(|log| log.parts());
            let keys = state.keys.held.as_ref().map_or_else(Vec::new, |keys| keys.parts());
            if log.is_some() || !keys.is_empty() {
                channels.push((channel.clone(), log, keys));
            }
        });
        let mut out = Writer::default();
        out.u8(VERSION);
        out.list(channels.into_iter(), |out, (channel, log, keys)| {
            out.text(channel.as_str());
            out.option(log, |out, log| write_log(out, log, now));
            out.list(keys.into_iter(), |out, (at, key, position)| {
                write_ago(out, at, now);
                out.text(&key);
                out.option(position, write_position);
            });
        });
        let (ended_at, presence) = self.presence.parts();
        out.u64(ended_at);
        out.list(presence.into_iter(), |out, (channel, parts)| {
            out.text(channel.as_str());
            write_headcount(out, &parts, now);
        });
        out.into_bytes()
    }

    /// Takes in what another process knew. Nothing was published, joined or left here before.
    ///
    /// # Errors
    /// [`Malformed`]: it is of another form. Some of it may be here then: this backplane is not to be used.
    pub fn take_in(&self, record: &[u8]) -> Result<(), Malformed> {
        let now = self.options.clock.now();
        let mut fields = Reader::new(record);
        if fields.u8()? != VERSION {
            return Err(Malformed);
        }
        fields.list(|fields| {
            let channel = read_channel(fields)?;
            let log = fields.option(|fields| read_log(fields, now))?;
            let keys = fields.list(|fields| {
                let at = read_ago(fields, now)?;
                Ok((at, fields.text()?, fields.option(read_position)?))
            })?;
            self.table.with(&channel, |entry, state| {
                if let Some(parts) = log {
                    let (log, costs) = Log::from_parts(parts);
                    state.history.held = Some(Box::new(log));
                    for bytes in costs {
                        self.history.keep(&channel, entry, &mut state.history, bytes);
                    }
                }
                let is_new = |state: &State, key: &str| {
                    state.keys.held.as_ref().is_none_or(|keys| keys.answer(key).is_none())
                };
                for (at, key, position) in keys {
                    if is_new(state, key) {
                        self.remember(&channel, entry, state, key, position, at);
                    }
                }
            });
            Ok(())
        })?;
        let ended_at = fields.u64()?;
        let presence = fields.list(|fields| Ok((read_channel(fields)?, read_headcount(fields, now)?)))?;
        self.presence.take_in(
            ended_at,
            presence.into_iter().map(|(channel, parts)| (channel, Headcount::from_parts(parts))),
        );
        fields.end()
    }
}

fn write_log(out: &mut Writer, log: LogParts, now: Instant) {
    out.u64(log.epoch.0);
    out.u64(log.top);
    out.u32(log.policy.size);
    out.u64(millis(log.policy.age));
    write_ago(out, log.used, now);
    out.list(log.kept.into_iter(), |out, (at, publication)| {
        write_ago(out, at, now);
        let text = |out: &mut Writer, text: &str| out.text(text);
        out.option(publication.event.as_deref(), text);
        out.bool(matches!(publication.payload, Payload::Text(_)));
        out.bytes(publication.payload.bytes());
        out.option(publication.sender.as_deref(), |out, sender| {
            out.option(sender.connection.as_deref(), text);
            out.option(sender.user.as_deref(), text);
        });
    });
}

fn read_log(fields: &mut Reader<'_>, now: Instant) -> Result<LogParts, Malformed> {
    let (epoch, top) = (Epoch(fields.u64()?), fields.u64()?);
    let policy = HistoryPolicy { size: fields.u32()?, age: Duration::from_millis(fields.u64()?) };
    let used = read_ago(fields, now)?;
    let mut kept = fields.list(|fields| {
        let at = read_ago(fields, now)?;
        let text = |fields: &mut Reader<'_>| fields.text().map(Box::from);
        let event = fields.option(text)?;
        let payload = match fields.bool()? {
            true => Payload::Text(Text::from(fields.text()?)),
            false => Payload::Binary(bytes::Bytes::copy_from_slice(fields.bytes()?)),
        };
        let sender = fields.option(|fields| {
            Ok(Box::new(Sender { connection: fields.option(text)?, user: fields.option(text)? }))
        })?;
        Ok((at, Publication { position: None, event, payload, sender }))
    })?;
    // Offsets have no holes: the newest has the top.
    let before = top.checked_sub(kept.len() as u64).ok_or(Malformed)?;
    for (nth, (_, publication)) in (1..).zip(&mut kept) {
        publication.position = Some(Position { epoch, offset: before + nth });
    }
    let kept = kept.into_iter().map(|(at, publication)| (at, Arc::new(publication))).collect();
    Ok(LogParts { epoch, top, policy, used, kept })
}

fn write_headcount(out: &mut Writer, parts: &HeadcountParts, now: Instant) {
    out.u64(parts.sequence);
    out.list(parts.members.iter(), |out, member| {
        out.text(&member.connection);
        out.text(&member.user);
        out.option(member.info.as_deref(), Writer::text);
    });
    out.u64(parts.counted);
    out.list(parts.left.iter(), |out, (user, due)| {
        out.text(user);
        write_in(out, *due, now);
    });
    out.option(parts.vacated, |out, due| write_in(out, due, now));
    out.bool(parts.tells_counts);
    out.u64(parts.told);
    out.option(parts.told_at, |out, at| write_ago(out, at, now));
    out.option(parts.count_due, |out, due| write_in(out, due, now));
}

fn read_headcount(fields: &mut Reader<'_>, now: Instant) -> Result<HeadcountParts, Malformed> {
    Ok(HeadcountParts {
        sequence: fields.u64()?,
        members: fields.list(|fields| {
            Ok(Arc::new(Member {
                connection: fields.text()?.into(),
                user: fields.text()?.into(),
                info: fields.option(|fields| fields.text().map(Box::from))?,
            }))
        })?,
        counted: fields.u64()?,
        left: fields.list(|fields| Ok((fields.text()?.into(), read_in(fields, now)?)))?,
        vacated: fields.option(|fields| read_in(fields, now))?,
        tells_counts: fields.bool()?,
        told: fields.u64()?,
        told_at: fields.option(|fields| read_ago(fields, now))?,
        count_due: fields.option(|fields| read_in(fields, now))?,
    })
}

fn read_channel(fields: &mut Reader<'_>) -> Result<Channel, Malformed> {
    Channel::from_inside(fields.text()?).map_err(|_| Malformed)
}

fn write_position(out: &mut Writer, position: Position) {
    out.u64(position.epoch.0);
    out.u64(position.offset);
}

fn read_position(fields: &mut Reader<'_>) -> Result<Position, Malformed> {
    Ok(Position { epoch: Epoch(fields.u64()?), offset: fields.u64()? })
}

fn write_ago(out: &mut Writer, at: Instant, now: Instant) {
    out.u64(millis(now.saturating_duration_since(at)));
}

/// What is older than the clock of this machine is as old as that.
fn read_ago(fields: &mut Reader<'_>, now: Instant) -> Result<Instant, Malformed> {
    Ok(now.checked_sub(Duration::from_millis(fields.u64()?)).unwrap_or(now))
}

fn write_in(out: &mut Writer, due: Instant, now: Instant) {
    out.u64(millis(due.saturating_duration_since(now)));
}

fn read_in(fields: &mut Reader<'_>, now: Instant) -> Result<Instant, Malformed> {
    now.checked_add(Duration::from_millis(fields.u64()?)).ok_or(Malformed)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
