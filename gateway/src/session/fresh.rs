//! Where a client is in a channel that had no publication yet.

use std::time::Duration;

use tidegate_backplane::{Epoch, Position};

/// The place of a channel that had no publication yet when the client joined it. It is written like a position:
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_place_is_of_this_life_and_knows_its_age() {
        let life = Epoch(99);
        let fresh = Fresh::of(Fresh::place(life, Duration::from_secs(5)), life).expect("ours");
        assert_eq!(fresh.away(Duration::from_secs(20)), Duration::from_secs(15));
        assert_eq!(Fresh::of(Position { epoch: Epoch(98), offset: 5000 }, life), None);
    }
}
