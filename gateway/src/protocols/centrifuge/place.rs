//! Where a client is in a channel, as it is told and as it comes back.
//!
//! An epoch is any text to a client. A channel that had no publication yet has none; its clients are told a stand-in, the
//! life of the process and when that was, with a dot between. They come back with it, and with the offset of what they
//! were told since.

use std::time::Duration;

use tidegate_backplane::{Channel, Epoch, Position};

use crate::{session::core::Core, subscription::Want};

/// Told instead of an epoch that cannot be one: it is of no channel.
const NO_EPOCH: Epoch = Epoch(0);

/// The epoch and offset of a place.
pub(super) fn tell(core: &Core, place: Position) -> (String, u64) {
    match place.epoch == core.shared.life {
        true => (format!("{}.{}", place.epoch, place.offset), 0),
        false => (place.epoch.to_string(), place.offset),
    }
}

/// What of its past a client wants that was at this place.
pub(super) fn want(core: &Core, channel: &Channel, epoch: &str, offset: u64) -> Want {
    if core.shared.node.namespaces().of(channel).history().is_none() {
        return Want::Live;
    }
    // Of whatever epoch the channel has.
    if epoch.is_empty() {
        return Want::SinceEmpty { offset, away: Duration::ZERO, history_age: Duration::MAX };
    }
    let Some(position) = stand_in(epoch) else {
        let epoch = epoch.parse().unwrap_or(NO_EPOCH);
        return core.want(channel, Some(Position { epoch, offset }), true);
    };
    match core.want(channel, Some(position), true) {
        Want::SinceEmpty { away, history_age, .. } => Want::SinceEmpty { offset, away, history_age },
        // Of another process: nobody knows what was between.
        other => other,
    }
}

fn stand_in(epoch: &str) -> Option<Position> {
    let (life, since) = epoch.split_once('.')?;
    Some(Position { epoch: life.parse().ok()?, offset: since.parse().ok()? })
}
