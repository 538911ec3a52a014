//! One timer wheel for a whole shard: coarse ticks, one entry of four bytes for an armed connection, lazily
//! re-armed. Moving a deadline further away, which is what traffic does, touches no bucket.

use std::{collections::VecDeque, time::Duration};

/// The grain of every timeout. Heartbeats and handshake limits are seconds; a quarter of one is fine enough, and
/// an idle shard wakes at most four times a second.
pub const TICK: Duration = Duration::from_millis(250);

/// Buckets: 256 × 250 ms = 64 s, more than the usual heartbeat, so that most deadlines need one visit. Later
/// deadlines wait in the last bucket and move on from there.
const BUCKETS: u32 = 256;

/// Ticks since the shard started. 2^32 × 250 ms is 34 years.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Tick(pub u32);

impl Tick {
    /// No deadline.
    pub const NEVER: Tick = Tick(u32::MAX);

    /// The first tick that is at least `duration` after `self`.
    pub fn after(self, duration: Duration) -> Tick {
        let ticks = duration.as_millis().div_ceil(TICK.as_millis()).max(1);
        Tick(self.0.saturating_add(u32::try_from(ticks).unwrap_or(u32::MAX)).min(u32::MAX - 1))
    }

    /// Since the shard started.
    pub fn duration(self) -> Duration {
        TICK * self.0
    }

    /// The time from `earlier` to `self`, zero when `earlier` is later.
    pub fn since(self, earlier: Tick) -> Duration {
        TICK * self.0.saturating_sub(earlier.0)
    }
}

/// When a connection is due and which wheel entry is its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timer {
    /// When the driver wants to be called.
    pub(crate) due: Tick,
    /// The tick of the connection's one valid wheel entry; entries of other ticks are stale.
    armed: Tick,
}

impl Timer {
    pub(crate) const OFF: Timer = Timer { due: Tick::NEVER, armed: Tick::NEVER };
}

/// What a drained entry means.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Visit {
    /// The deadline has come.
    Due,
    /// Stale, or moved to a later bucket.
    NotYet,
}

#[derive(Debug)]
pub(crate) struct Wheel {
    buckets: Vec<Vec<u32>>,
    /// Every bucket up to and including this tick has been moved to `expired`.
    reached: Tick,
    /// Slots whose bucket has come, not visited yet, with that bucket's tick; visited in this order, so that under
    /// load none is overtaken for good.
    expired: VecDeque<(u32, Tick)>,
    /// Entries in buckets.
    waiting: usize,
}

impl Wheel {
    pub(crate) fn new() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| Vec::new()).collect(),
            reached: Tick(0),
            expired: VecDeque::new(),
            waiting: 0,
        }
    }

    /// Sets a connection's deadline.
    pub(crate) fn set(&mut self, slot: u32, timer: &mut Timer, due: Tick) {
        timer.due = due;
        if due < timer.armed {
            self.arm(slot, timer);
        }
    }

    /// Moves what has come due to the list that [`next_expired`](Self::next_expired) gives out.
    pub(crate) fn advance(&mut self, now: Tick) {
        // Entries are armed less than a turn of the wheel ahead: after a long pause one turn finds them all.
        let last = now.0.min(self.reached.0 + BUCKETS - 1);
        for tick in self.reached.0 + 1..=last {
            // Its memory goes too: lazily re-armed entries wander over all buckets, and what each once needed
            // would stay in all 256 of them.
            let bucket = std::mem::take(&mut self.buckets[(tick % BUCKETS) as usize]);
            self.waiting -= bucket.len();
            self.expired.extend(bucket.into_iter().map(|slot| (slot, Tick(tick))));
        }
        self.reached = self.reached.max(now);
    }

    pub(crate) fn next_expired(&mut self) -> Option<(u32, Tick)> {
        let next = self.expired.pop_front();
        if next.is_none() && self.expired.capacity() > 1024 {
            self.expired = VecDeque::new();
        }
        next
    }

    pub(crate) fn has_expired(&self) -> bool {
        !self.expired.is_empty()
    }

    /// Decides what an expired entry of a live connection means, and re-arms it if its deadline has moved on.
    pub(crate) fn visit(&mut self, slot: u32, entry: Tick, timer: &mut Timer) -> Visit {
        if timer.armed != entry {
            return Visit::NotYet;
        }
        timer.armed = Tick::NEVER;
        if timer.due <= self.reached {
            timer.due = Tick::NEVER;
            return Visit::Due;
        }
        if timer.due != Tick::NEVER {
            self.arm(slot, timer);
        }
        Visit::NotYet
    }

    /// Ticks until a bucket with entries comes, or `most` when none comes before.
    pub(crate) fn ticks_to_next(&self, most: u32) -> u32 {
        let is_due = |ahead: &u32| !self.buckets[((self.reached.0 + ahead) % BUCKETS) as usize].is_empty();
        if self.waiting == 0 { most } else { (1..most).find(is_due).unwrap_or(most) }
    }

    fn arm(&mut self, slot: u32, timer: &mut Timer) {
        let earliest = self.reached.0 + 1;
        let at = timer.due.0.clamp(earliest, self.reached.0 + BUCKETS - 1);
        timer.armed = Tick(at);
        self.buckets[(at % BUCKETS) as usize].push(slot);
        self.waiting += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the wheel to `until` and returns the ticks at which slot 0 came due.
    fn fires(wheel: &mut Wheel, timer: &mut Timer, from: u32, until: u32) -> Vec<u32> {
        let mut fired = Vec::new();
        for now in from..=until {
            wheel.advance(Tick(now));
            while let Some((slot, entry)) = wheel.next_expired() {
                if wheel.visit(slot, entry, timer) == Visit::Due {
                    fired.push(now);
                }
            }
        }
        fired
    }

    #[test]
    fn a_deadline_fires_once_at_its_tick() {
        for due in [1, 2, 255, 256, 257, 1000] {
            let (mut wheel, mut timer) = (Wheel::new(), Timer::OFF);
            wheel.set(0, &mut timer, Tick(due));
            assert_eq!(fires(&mut wheel, &mut timer, 1, 3000), [due]);
            assert_eq!((wheel.ticks_to_next(4), wheel.waiting), (4, 0));
        }
    }

    #[test]
    fn later_is_lazy_and_earlier_is_prompt() {
        let (mut wheel, mut timer) = (Wheel::new(), Timer::OFF);
        wheel.set(0, &mut timer, Tick(10));
        wheel.set(0, &mut timer, Tick(20));
        wheel.set(0, &mut timer, Tick(15));
        wheel.set(0, &mut timer, Tick(5));
        wheel.set(0, &mut timer, Tick(30));
        assert_eq!(fires(&mut wheel, &mut timer, 1, 100), [30]);
        wheel.set(0, &mut timer, Tick(150));
        wheel.set(0, &mut timer, Tick(120));
        assert_eq!(fires(&mut wheel, &mut timer, 101, 400), [120]);
    }

    #[test]
    fn off_never_fires_and_the_past_fires_next() {
        let (mut wheel, mut timer) = (Wheel::new(), Timer::OFF);
        wheel.set(0, &mut timer, Tick(10));
        wheel.set(0, &mut timer, Tick::NEVER);
        assert_eq!(fires(&mut wheel, &mut timer, 1, 600), Vec::<u32>::new());
        wheel.set(0, &mut timer, Tick(3));
        assert_eq!(fires(&mut wheel, &mut timer, 601, 602), [601]);
    }

    #[test]
    fn a_long_pause_loses_nothing() {
        let (mut wheel, mut timer) = (Wheel::new(), Timer::OFF);
        wheel.set(0, &mut timer, Tick(10));
        assert_eq!(fires(&mut wheel, &mut timer, 5000, 5000), [5000]);
    }

    #[test]
    fn the_oldest_deadline_is_visited_first() {
        let (mut wheel, mut early, mut late) = (Wheel::new(), Timer::OFF, Timer::OFF);
        wheel.set(1, &mut late, Tick(3));
        wheel.set(0, &mut early, Tick(2));
        assert_eq!(wheel.ticks_to_next(4), 2);
        wheel.advance(Tick(3));
        assert_eq!(wheel.next_expired(), Some((0, Tick(2))));
        assert_eq!(wheel.next_expired(), Some((1, Tick(3))));
        assert!(!wheel.has_expired());
    }

    #[test]
    fn a_slot_taken_over_fires_only_for_its_new_owner() {
        let (mut wheel, mut old, mut new) = (Wheel::new(), Timer::OFF, Timer::OFF);
        wheel.set(0, &mut old, Tick(5));
        wheel.set(0, &mut new, Tick(9));
        assert_eq!(fires(&mut wheel, &mut new, 1, 20), [9]);
    }
}
