//! How long subscriptions were gone: from the first that was lost to the last that is back.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// At most one is under way; losses meanwhile make it longer.
#[derive(Debug, Default)]
pub(super) struct Outage(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    missing: u64,
    began: Option<Instant>,
    last: Option<Duration>,
}

impl Outage {
    pub(super) fn lost(&self, now: Instant) {
        let mut state = self.state();
        state.missing += 1;
        state.began.get_or_insert(now);
    }

    /// One that was lost is back, or nobody wants it any more.
    pub(super) fn back(&self, now: Instant) {
        let mut state = self.state();
        state.missing = state.missing.saturating_sub(1);
        if state.missing == 0 {
            state.last = state.began.take().map(|began| now.saturating_duration_since(began)).or(state.last);
        }
    }

    /// What the last one took that is over.
    pub(super) fn last(&self) -> Option<Duration> {
        self.state().last
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_the_first_loss_to_the_last_return() {
        let (outage, start) = (Outage::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(outage.last(), None);
        outage.lost(after(0));
        outage.lost(after(1));
        outage.back(after(2));
        outage.lost(after(3));
        outage.back(after(4));
        assert_eq!(outage.last(), None, "one is missing");
        outage.back(after(5));
        assert_eq!(outage.last(), Some(Duration::from_secs(5)));
        outage.lost(after(10));
        assert_eq!(outage.last(), Some(Duration::from_secs(5)), "that of before");
        outage.back(after(11));
        assert_eq!(outage.last(), Some(Duration::from_secs(1)));
    }
}
