//! Event streams: the ids that carry positions.
//!
//! An id is a list of positions, one place for each channel of the URL, in its order, empty where none is known:
//! `k3:5` for one channel, `k3:5,,z9:7` for three. A browser sends the last id back when it reconnects to the
//! same URL, so the order is all that both sides need.

use std::time::Duration;

use tidegate_backplane::{Epoch, Position};

/// The place of a channel that had no publication yet when the stream was opened. It is written like a position:
/// the life of the process instead of an epoch, and when it was, in milliseconds of the shard's clock.
///
/// Without it, what is published while such a client reconnects would be skipped in silence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fresh {
    since_ms: u64,
}

impl Fresh {
    /// The place for a channel that is empty now.
    pub(crate) fn place(life: Epoch, now: Duration) -> Position {
        Position { epoch: life, offset: now.as_millis() as u64 }
    }

    /// What a client's position says, if it is such a place of this process.
    pub(crate) fn of(position: Position, life: Epoch) -> Option<Self> {
        (position.epoch == life).then_some(Self { since_ms: position.offset })
    }

    /// For how long the client has been away at most.
    pub(crate) fn away(self, now: Duration) -> Duration {
        now.saturating_sub(Duration::from_millis(self.since_ms))
    }
}

/// Stands for an id that is not ours: no channel ever has this position, so the client is told of a gap.
const FOREIGN: Position = Position { epoch: Epoch(0), offset: 0 };

/// The id of an event; `None` when no channel has a position.
pub(crate) fn event_id(positions: impl Iterator<Item = Option<Position>> + Clone) -> Option<String> {
    positions.clone().flatten().next()?;
    let places: Vec<String> =
        positions.map(|place| place.map(|place| place.to_string()).unwrap_or_default()).collect();
    Some(places.join(","))
}

/// The positions in an id.
pub(crate) fn parse_event_id(id: &str) -> Vec<Option<Position>> {
    id.split(',').map(|place| (!place.is_empty()).then(|| place.parse().unwrap_or(FOREIGN))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_as_they_went() {
        let position = |epoch, offset| Some(Position { epoch: Epoch(epoch), offset });
        for places in [
            vec![position(723, 5)],
            vec![None, position(1, 0)],
            vec![position(u64::MAX, u64::MAX), None, position(36, 7)],
        ] {
            let id = event_id(places.iter().copied()).expect("a position");
            assert_eq!(parse_event_id(&id), places, "{id}");
        }
        assert_eq!(event_id([None, None].into_iter()), None);
    }

    #[test]
    fn a_fresh_place_is_of_this_life_and_knows_its_age() {
        let life = Epoch(99);
        let fresh = Fresh::of(Fresh::place(life, Duration::from_secs(5)), life).expect("ours");
        assert_eq!(fresh.away(Duration::from_secs(20)), Duration::from_secs(15));
        assert_eq!(Fresh::of(Position { epoch: Epoch(98), offset: 5000 }, life), None);
    }

    #[test]
    fn what_is_not_ours_is_a_gap() {
        assert_eq!(parse_event_id("42"), [Some(FOREIGN)]);
        assert_eq!(parse_event_id("k3:5,x"), ["k3:5".parse().ok(), Some(FOREIGN)]);
    }
}
