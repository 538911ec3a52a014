//! How much time a shard has had for its connections: the clock's, without what the shard was late itself.

use std::time::Duration;

use crate::wheel::{TICK, Tick};

/// A turn is some 10 ms when everything is at its bound. One that took longer was held up: by a machine with too few cores,
/// by a stop, by memory that had to be read back. Its peers waited meanwhile, and what they sent was not read.
const TURN_MAX: Duration = Duration::from_millis(50);

/// How much later than asked a wait may end without being late: what a timer of the kernel is off by, and a wake-up.
const WAKE_MAX: Duration = Duration::from_millis(5);

/// The time in which a shard attended to its connections. A peer that has said nothing for so long was listened to for so
/// long.
#[derive(Debug, Default)]
pub(crate) struct Attended(Duration);

impl Attended {
    /// One turn: what it was `busy` before, and what it then `waited`, for `intended` at most.
    pub(crate) fn turn(&mut self, busy: Duration, waited: Duration, intended: Duration) {
        self.0 += busy.min(TURN_MAX) + waited.min(intended.saturating_add(WAKE_MAX));
    }

    pub(crate) fn tick(&self) -> Tick {
        Tick((self.0.as_millis() / TICK.as_millis()) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_quiet_shard_attends_all_the_time() {
        let mut attended = Attended::default();
        (0..100).for_each(|_| attended.turn(MS, 999 * MS, 1000 * MS));
        assert_eq!(attended.tick(), Tick(400));
    }

    #[test]
    fn a_stop_is_no_time_for_anybody() {
        for (busy, waited) in [(30_000, 0), (0, 30_000)] {
            let mut attended = Attended::default();
            attended.turn(busy * MS, waited * MS, 100 * MS);
            assert_eq!(attended.tick(), Tick(0), "{busy} {waited}");
        }
    }

    /// A fifth of a core: each turn of 10 ms takes 250 ms by the clock.
    #[test]
    fn a_starved_shard_attends_a_part_of_the_time() {
        let mut attended = Attended::default();
        (0..100).for_each(|_| attended.turn(250 * MS, Duration::ZERO, Duration::ZERO));
        assert_eq!(attended.tick(), Tick(20));
    }
}
