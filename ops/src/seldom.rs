//! Log lines that anybody on the network can cause: one of many.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// Lets one of many like events into the log: at most one in [`SELDOM`], with the number of those before it that were
/// left out.
#[derive(Debug)]
pub struct Seldom {
    begin: Instant,
    /// Milliseconds since `begin`; 0: none yet.
    last_ms: AtomicU64,
    left_out: AtomicU64,
}

/// What anybody on the network can cause fills no log: 1,440 lines a day.
pub const SELDOM: Duration = Duration::from_secs(60);

impl Default for Seldom {
    fn default() -> Self {
        Self { begin: Instant::now(), last_ms: AtomicU64::new(0), left_out: AtomicU64::new(0) }
    }
}

impl Seldom {
    /// `Some`: this event is to be logged, and so many were left out since the last one.
    pub fn ask(&self) -> Option<u64> {
        let now_ms = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        let last_ms = self.last_ms.load(Relaxed);
        let is_due = last_ms == 0 || now_ms - last_ms.min(now_ms) >= SELDOM.as_millis() as u64;
        if is_due && self.last_ms.compare_exchange(last_ms, now_ms, Relaxed, Relaxed).is_ok() {
            return Some(self.left_out.swap(0, Relaxed));
        }
        self.left_out.fetch_add(1, Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_many_is_logged() {
        let seldom = Seldom::default();
        let asked: Vec<_> = (0..5).map(|_| seldom.ask()).collect();
        assert_eq!(asked, [Some(0), None, None, None, None]);
        assert_eq!(seldom.left_out.load(Relaxed), 4);
    }
}
