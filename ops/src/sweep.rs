//! Closing everyone, a little at a time.

use std::time::Duration;

use tidegate_reactor::{ConnectionId, Tick, Turn};

/// The connections that a drain still has to close, and what is known of each: for as long as it takes.
#[derive(Debug)]
pub struct Sweep<T = ConnectionId> {
    ends: Tick,
    rest: Vec<T>,
    acted: Tick,
}

/// Connections closed in one turn: at 10 µs each, and some 20 µs for both ends of a pair, under 3 ms.
pub const SWEEP_PORTION: usize = 128;

impl<T> Sweep<T> {
    pub fn new(rest: Vec<T>, now: Tick, over: Duration) -> Self {
        Self { ends: now.after(over), rest, acted: now }
    }

    /// One that is found after it has begun. In a drain, bounded by the handshakes that were under way.
    pub fn join(&mut self, one: T) {
        self.rest.push(one);
    }

    /// How many are left.
    #[expect(clippy::len_without_is_empty, reason = "it is compared with a portion")]
    pub fn len(&self) -> usize {
        self.rest.len()
    }

    /// All that are left, at once.
    pub fn take_rest(&mut self) -> Vec<T> {
        std::mem::take(&mut self.rest)
    }

    /// Those to close now: as large a part of the rest as the time since the last call is of the time left. Behind the
    /// plan, more go in the next turn instead of with the next tick.
    pub fn next_portion(&mut self, now: Tick) -> (Vec<T>, Turn) {
        let passed = now.0.saturating_sub(self.acted.0) as usize;
        let left = self.ends.0.saturating_sub(self.acted.0).max(1) as usize;
        let due = if now >= self.ends { self.rest.len() } else { (self.rest.len() * passed).div_ceil(left) };
        let portion = self.rest.split_off(self.rest.len() - due.min(SWEEP_PORTION));
        if due > SWEEP_PORTION {
            return (portion, Turn::More);
        }
        self.acted = now;
        (portion, Turn::Idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_closed_by_the_time_that_has_passed() {
        let portions = |clients: u32, over: u32, turns: &[u32]| {
            let rest = (0..clients).map(|slot| ConnectionId { slot, generation: 1 }).collect();
            let mut sweep = Sweep { ends: Tick(over), rest, acted: Tick(0) };
            turns.iter().map(|now| sweep.next_portion(Tick(*now)).0.len()).collect::<Vec<_>>()
        };
        assert_eq!(portions(120, 12, &[1, 2, 3, 3, 6]), [10, 10, 10, 0, 30]);
        assert_eq!(portions(120, 12, &[4, 8, 12, 16]), [40, 40, 40, 0], "a shard that slept through ticks");
        assert_eq!(portions(120, 12, &[3, 3, 3]), [30, 0, 0], "several turns in one tick");
        assert_eq!(portions(300, 1, &[1, 1, 1, 2]), [128, 128, 44, 0], "no turn is long");
        assert_eq!(portions(7, 100, &[200]), [7]);
        assert_eq!(portions(0, 4, &[1, 2]), [0, 0]);
    }
}
