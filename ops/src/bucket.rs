//! A token bucket: how many handshakes a second, so that the clients of a lost node do not arrive elsewhere at once.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Shared by all shards: taken once for each handshake, held for a few nanoseconds.
#[derive(Debug)]
pub struct Bucket {
    per_second: f64,
    burst: f64,
    level: Mutex<Level>,
}

#[derive(Debug)]
struct Level {
    tokens: f64,
    filled_at: Instant,
}

impl Bucket {
    /// `per_second` 0: everything is let through.
    pub fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let burst = f64::from(burst.max(1));
        let level = Level { tokens: burst, filled_at: now };
        Self { per_second: f64::from(per_second), burst, level: Mutex::new(level) }
    }

    /// Takes a token, or says how long until there is one.
    pub fn take(&self, now: Instant) -> Result<(), Duration> {
        if self.per_second == 0.0 {
            return Ok(());
        }
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(level.filled_at).as_secs_f64();
        level.tokens = (level.tokens + passed * self.per_second).min(self.burst);
        level.filled_at = level.filled_at.max(now);
        if level.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - level.tokens) / self.per_second));
        }
        level.tokens -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let start = Instant::now();
        let bucket = Bucket::new(10, 3, start);
        let taken = |at_ms: u64| bucket.take(start + Duration::from_millis(at_ms));
        assert_eq!([taken(0), taken(0), taken(0)], [Ok(()); 3]);
        assert_eq!(taken(0), Err(Duration::from_millis(100)));
        assert_eq!([taken(100), taken(100)], [Ok(()), Err(Duration::from_millis(100))]);
        // A pause fills no more than the burst.
        assert_eq!([taken(9_000), taken(9_000), taken(9_000)], [Ok(()); 3]);
        assert!(taken(9_000).is_err());
    }

    #[test]
    fn zero_is_no_limit() {
        let bucket = Bucket::new(0, 0, Instant::now());
        assert!((0..1000).all(|_| bucket.take(Instant::now()).is_ok()));
    }
}
