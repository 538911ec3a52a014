//! Conditions with deadlines, the only way a test waits.

use std::thread;
use std::time::{Duration, Instant};

/// How long a condition may take before the test gives up.
///
/// A healthy run needs milliseconds. Two shared cores under seven builds have been seen to stall a process for
/// several seconds, so the bound is well past that and a pass never depends on it.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Polls start at 1 ms and double up to this, so that a fast answer is seen at once and a slow one costs no CPU.
const POLL_INTERVAL_MAX: Duration = Duration::from_millis(100);

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not hold within `deadline`; `what` names the condition in the message.
#[track_caller]
pub fn eventually(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    eventually_some(what, deadline, || condition().then_some(()));
}

/// Waits until `probe` gives a value.
///
/// # Panics
/// When it gives none within `deadline`; `what` names the value in the message.
#[track_caller]
pub fn eventually_some<T>(what: &str, deadline: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + deadline;
    let mut interval = Duration::from_millis(1);
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < give_up, "not within {deadline:?}: {what}");
        pause(interval);
        interval = (interval * 2).min(POLL_INTERVAL_MAX);
    }
}

/// Lets `window` pass, for measures that are rates (CPU time used while nothing should happen). Not for waiting.
pub fn observe(window: Duration) {
    pause(window);
}

#[expect(clippy::disallowed_methods, reason = "the one place that sleeps: between two looks at a condition")]
fn pause(duration: Duration) {
    thread::sleep(duration);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_comes_true_is_seen() {
        let mut looks = 0;
        eventually("three looks", DEADLINE, || {
            looks += 1;
            looks == 3
        });
        assert_eq!(looks, 3);
    }

    #[test]
    #[should_panic(expected = "not within 5ms: pigs fly")]
    fn a_condition_that_never_comes_true_is_named() {
        eventually("pigs fly", Duration::from_millis(5), || false);
    }
}
