//! How long a program that has ended waits until it is started again. Pure.

use std::time::Duration;

/// Waits of one program.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// Ends in a row, each soon after its start.
    ends: u32,
}

/// After the first end: clients that have lost their connections are back in a second or two.
const FIRST: Duration = Duration::from_millis(200);

/// A program that ends again and again costs little by then, and one whose cause has gone is back within it.
const MOST: Duration = Duration::from_secs(30);

/// What has run for so long has not failed at its start.
const WELL: Duration = Duration::from_secs(60);

impl Backoff {
    /// The program has ended after it `ran` for so long.
    pub(super) fn ended(&mut self, ran: Duration) -> Duration {
        if ran >= WELL {
            self.ends = 0;
        }
        let wait = FIRST.saturating_mul(1 << self.ends.min(16)).min(MOST);
        self.ends = self.ends.saturating_add(1);
        wait
    }

    /// Ends in a row.
    pub(super) fn ends(&self) -> u32 {
        self.ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_begin_anew_after_a_good_run() {
        let mut backoff = Backoff::default();
        let soon = Duration::from_secs(1);
        let waits: Vec<u128> = (0..10).map(|_| backoff.ended(soon).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
        assert_eq!(backoff.ends(), 10);
        assert_eq!(backoff.ended(WELL), FIRST);
        assert_eq!(backoff.ends(), 1);
        assert_eq!(backoff.ended(soon), FIRST * 2);
        for _ in 0..100 {
            assert!(backoff.ended(soon) <= MOST);
        }
    }
}
