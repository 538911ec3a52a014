//! So many per second with one second's worth at once, as one number that many threads move.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

/// The moment until which everything that was taken is paid for, in nanoseconds of this process: a leaky bucket in its
/// 'generic cell rate' form. It needs no refilling and no lock. 64 bits hold 584 years.
#[derive(Debug, Default)]
pub(super) struct Rate {
    paid_until_ns: AtomicU64,
}

const SECOND_NS: u64 = 1_000_000_000;

impl Rate {
    /// Takes `amount`, all or nothing. 0 per second: no limit. An amount above one second's worth is let through when
    /// nothing is owed, or it never would be.
    pub(super) fn take(&self, per_second: u32, amount: u32) -> bool {
        static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);
        if per_second == 0 {
            return true;
        }
        let now_ns = u64::try_from(STARTED.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.take_at(now_ns, per_second, amount)
    }

    fn take_at(&self, now_ns: u64, per_second: u32, amount: u32) -> bool {
        let cost_ns = SECOND_NS.saturating_mul(u64::from(amount)) / u64::from(per_second);
        let taken = |paid_until_ns: u64| {
            let from_ns = paid_until_ns.max(now_ns);
            let after_ns = from_ns.saturating_add(cost_ns);
            let fits = after_ns <= now_ns.saturating_add(SECOND_NS) || from_ns == now_ns;
            fits.then_some(after_ns)
        };
        self.paid_until_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_second_at_once_then_one_each_interval() {
        let rate = Rate::default();
        let start = 5 * SECOND_NS;
        assert_eq!((0..20).filter(|_| rate.take_at(start, 10, 1)).count(), 10);
        let tenth = SECOND_NS / 10;
        assert!(!rate.take_at(start + tenth - 1, 10, 1));
        assert!(rate.take_at(start + tenth, 10, 1));
        assert!(!rate.take_at(start + tenth, 10, 1));
        assert_eq!((0..20).filter(|_| rate.take_at(start + 60 * SECOND_NS, 10, 1)).count(), 10);
    }

    #[test]
    fn all_or_nothing() {
        let rate = Rate::default();
        assert!(rate.take_at(0, 10, 6));
        assert!(!rate.take_at(0, 10, 5));
        assert!(rate.take_at(0, 10, 4));
        // More than a second's worth waits until nothing is owed, and is then owed whole.
        assert!(!rate.take_at(SECOND_NS / 2, 10, 30));
        assert!(rate.take_at(SECOND_NS, 10, 30));
        assert!(!rate.take_at(3 * SECOND_NS, 10, 1));
        assert!(rate.take_at(4 * SECOND_NS, 10, 1));
    }

    #[test]
    fn zero_is_no_limit() {
        let rate = Rate::default();
        assert!((0..1000).all(|_| rate.take(0, u32::MAX)));
    }
}
