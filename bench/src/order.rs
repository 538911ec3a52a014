//! Loss, duplication and order of what one connection receives.

use std::collections::HashSet;

use serde::Serialize;

/// Streams above this are not ours: it bounds what a forged stamp can make us allocate.
const STREAMS_MAX: u16 = 4_096;

/// Holes remembered individually per connection. Past it a late arrival counts as a duplicate, which only
/// happens in a run that has already lost thousands of messages.
const HOLES_MAX: usize = 4_096;

/// What happened to the sequence numbers of all connections together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct OrderCounts {
    /// Skipped and not seen later.
    pub lost: u64,
    /// Seen more than once.
    pub duplicated: u64,
    /// Arrived after a later one of the same stream.
    pub misordered: u64,
}

/// The last sequence number seen from each stream, and the holes before it.
#[derive(Debug, Default)]
pub struct OrderCheck {
    last: Vec<u32>,
    /// Owns nothing until the first hole.
    holes: HashSet<(u16, u32)>,
}

impl OrderCheck {
    /// Notes one message; returns false for a stream that cannot be ours.
    pub fn see(&mut self, stream: u16, sequence: u32, counts: &mut OrderCounts) -> bool {
        if stream >= STREAMS_MAX {
            return false;
        }
        let slot = usize::from(stream);
        if slot >= self.last.len() {
            self.last.resize(slot + 1, 0);
        }
        let last = self.last[slot];
        if sequence == last.wrapping_add(1) {
            self.last[slot] = sequence;
        } else if sequence > last {
            self.last[slot] = sequence;
            self.open_hole(stream, last + 1..sequence, counts);
        } else if self.close_hole(stream, sequence) {
            counts.lost = counts.lost.saturating_sub(1);
            counts.misordered += 1;
        } else {
            counts.duplicated += 1;
        }
        true
    }

    /// The highest sequence number seen from a stream, 0 for none.
    #[must_use]
    pub fn last(&self, stream: u16) -> u32 {
        self.last.get(usize::from(stream)).copied().unwrap_or(0)
    }

    #[cold]
    fn open_hole(&mut self, stream: u16, missing: std::ops::Range<u32>, counts: &mut OrderCounts) {
        counts.lost += u64::from(missing.end - missing.start);
        let room = HOLES_MAX.saturating_sub(self.holes.len());
        self.holes.extend(missing.take(room).map(|sequence| (stream, sequence)));
    }

    #[cold]
    fn close_hole(&mut self, stream: u16, sequence: u32) -> bool {
        self.holes.remove(&(stream, sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sequences: &[u32], lost: u64, duplicated: u64, misordered: u64) {
        let mut order = OrderCheck::default();
        let mut counts = OrderCounts::default();
        for &sequence in sequences {
            assert!(order.see(3, sequence, &mut counts));
        }
        assert_eq!(counts, OrderCounts { lost, duplicated, misordered });
    }

    #[test]
    fn sequences_are_judged() {
        check(&[1, 2, 3], 0, 0, 0);
        check(&[1, 4], 2, 0, 0);
        check(&[1, 3, 2], 0, 0, 1);
        check(&[1, 2, 2], 0, 1, 0);
        check(&[1, 4, 2, 2], 1, 1, 1);
        check(&[2], 1, 0, 0);
    }

    #[test]
    fn streams_do_not_mix() {
        let mut order = OrderCheck::default();
        let mut counts = OrderCounts::default();
        for stream in [0, 9, 4] {
            assert!(order.see(stream, 1, &mut counts));
        }
        assert_eq!(counts, OrderCounts::default());
        assert!(!order.see(u16::MAX, 1, &mut counts));
    }
}
