//! Event streams: the ids that carry positions.
//!
//! An id is a list of positions, one place for each channel of the URL, in its order, empty where none is known:
//! `k3:5` for one channel, `k3:5,,z9:7` for three. A browser sends the last id back when it reconnects to the
//! same URL, so the order is all that both sides need.

use std::{sync::Arc, time::Duration};

use tidegate_backplane::{Epoch, History, Position};

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

    /// As it was written.
    pub(crate) fn position(self, life: Epoch) -> Position {
        Position { epoch: life, offset: self.since_ms }
    }

    /// What a client's position says, if it is such a place of this process.
    pub(crate) fn of(position: Position, life: Epoch) -> Option<Self> {
        (position.epoch == life).then_some(Self { since_ms: position.offset })
    }

    /// What the whole history of a channel means for a client that had nothing of it: all of it was missed, and
    /// all of it is there if it begins with the first publication and nothing can have aged out before that one. Where
    /// the channel is empty, a stream that was away for longer than the age cannot know.
    pub(crate) fn missed(self, history: History, now: Duration, age: Duration) -> History {
        let away = now.saturating_sub(Duration::from_millis(self.since_ms));
        let first = history.publications.first().and_then(|first: &Arc<_>| first.position);
        let is_whole = match history.top {
            // Nothing is known of the channel: nothing was published, or it was and has aged out since.
            None => away < age,
            Some(_) => first.is_some_and(|first| first.offset == 1) && away < age,
        };
        History { continuous: is_whole, ..history }
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
    use tidegate_backplane::{Payload, Publication, Text};

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
    fn a_fresh_client_missed_what_is_there_from_the_first_on() {
        let life = Epoch(99);
        let fresh = Fresh::of(Fresh::place(life, Duration::from_secs(5)), life).expect("ours");
        assert_eq!(Fresh::of(Position { epoch: Epoch(98), offset: 5000 }, life), None);
        let publication = |offset| {
            Arc::new(Publication {
                position: Some(Position { epoch: Epoch(7), offset }),
                event: None,
                payload: Payload::Text(Text::new()),
                sender: None,
            })
        };
        let whole = |offsets: &[u64], now_s| {
            let publications: Vec<_> = offsets.iter().copied().map(publication).collect();
            let top = publications.last().and_then(|last| last.position);
            let history = History { publications, top, continuous: true };
            fresh.missed(history, Duration::from_secs(now_s), Duration::from_secs(60)).continuous
        };
        assert!(whole(&[], 20), "nothing was published");
        assert!(!whole(&[], 1000), "what was published may have aged out");
        assert!(whole(&[1, 2], 20));
        assert!(!whole(&[2, 3], 20), "the first is gone");
        assert!(!whole(&[1, 2], 66), "an earlier epoch may have aged out");
    }

    #[test]
    fn what_is_not_ours_is_a_gap() {
        assert_eq!(parse_event_id("42"), [Some(FOREIGN)]);
        assert_eq!(parse_event_id("k3:5,x"), ["k3:5".parse().ok(), Some(FOREIGN)]);
    }
}
