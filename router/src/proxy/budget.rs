//! How much may be asked of nodes again: a share of what is asked once. When many nodes fail at once, asking again and
//! again multiplies the load on those that are left.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// Nodes asked for one client, each with the connect and the answer timeout: five of them, hung, are 35 s by default.
/// More than a handful that fail at once is no matter of one client's luck.
pub(super) const ATTEMPTS_MAX: u32 = 5;

/// Counts in hundredths of an attempt.
#[derive(Debug)]
pub(super) struct RetryBudget {
    credit: AtomicI64,
    /// What a client's first attempt adds.
    percent: i64,
    most: i64,
}

const ATTEMPT: i64 = 100;

impl RetryBudget {
    /// `percent` further attempts for 100 clients, and `burst` at once.
    pub(super) fn new(percent: u32, burst: u32) -> Self {
        let most = i64::from(burst) * ATTEMPT;
        Self { credit: AtomicI64::new(most), percent: percent.into(), most }
    }

    /// A client's first attempt is made.
    pub(super) fn deposit(&self) {
        if self.credit.fetch_add(self.percent, Relaxed) + self.percent > self.most {
            self.credit.fetch_min(self.most, Relaxed);
        }
    }

    /// Whether one more attempt may be made; then it is paid for.
    pub(super) fn withdraw(&self) -> bool {
        if self.credit.fetch_sub(ATTEMPT, Relaxed) >= ATTEMPT {
            return true;
        }
        self.credit.fetch_add(ATTEMPT, Relaxed);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_share_of_attempts() {
        let budget = RetryBudget::new(20, 10);
        let spent = |budget: &RetryBudget| (0..100).filter(|_| budget.withdraw()).count();
        assert_eq!(spent(&budget), 10, "the burst");
        assert_eq!(spent(&budget), 0);
        (0..5).for_each(|_| budget.deposit());
        assert_eq!(spent(&budget), 1);
        (0..20).for_each(|_| budget.deposit());
        assert_eq!(spent(&budget), 4);
        (0..10_000).for_each(|_| budget.deposit());
        assert_eq!(spent(&budget), 10, "no more than the burst is kept");
    }
}
