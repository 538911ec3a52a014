//! Whether a connection that brings nothing is away.
//!
//! Whatever arrives is a sign of life: what comes behind many others is late, and not lost. A process that was late itself,
//! because it was stopped or its machine is busy, has not listened meanwhile: that time is no silence of the server.

use std::time::Duration;

use tokio::time::Instant;

/// Before a connection is away it has a last chance, so that what has arrived meanwhile is read: so long, or as long as this
/// process was late.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// How long nothing has arrived that should have.
#[derive(Debug)]
pub(super) struct Silence {
    /// A server that hangs is away after it.
    deadline: Duration,
    since: Instant,
    judged_at: Instant,
    /// How long the last chance is, once it has begun.
    last_look: Option<Duration>,
}

impl Silence {
    /// The deadline is longer than 100 ms.
    pub(super) fn begin(deadline: Duration, now: Instant) -> Self {
        Self { deadline, since: now, judged_at: now + deadline - LAST_LOOK, last_look: None }
    }

    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(super) fn judged_at(&self) -> Instant {
        self.judged_at
    }

    /// Whether it has been too long since `since`: when something last arrived, or now if nothing has to arrive. `late`: by how
    /// much this process looks later than it was to. At most the deadline counts of it each time, so that a machine that slept
    /// for an hour does not wait for another one.
    pub(super) fn judge(&mut self, now: Instant, since: Instant, late: Duration) -> bool {
        if since != self.since {
            *self = Self::begin(self.deadline, since);
        }
        let late = late.min(now.saturating_duration_since(since)).min(self.deadline - LAST_LOOK);
        if now < self.judged_at {
            self.judged_at += late;
            return false;
        }
        let look = LAST_LOOK.max(late);
        // A process that is always equally late judges all the same.
        if self.last_look.is_some_and(|before| look <= before) {
            return true;
        }
        self.last_look = Some(look);
        self.judged_at = now + look;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_millis(2_500);

    /// When it is over, with looks once a second and when it is judged, each later than it was to be by so much.
    fn is_over_after(late: impl Fn(Duration) -> Duration, most: Duration) -> Option<Duration> {
        let began = Instant::now();
        let (mut silence, mut look_at) = (Silence::begin(DEADLINE, began), began + Duration::from_secs(1));
        loop {
            let due = look_at.min(silence.judged_at());
            let late = late(due - began);
            let now = due + late;
            if now - began > most {
                return None;
            }
            if now >= look_at {
                look_at = now + Duration::from_secs(1);
            }
            if silence.judge(now, began, late) {
                return Some(now - began);
            }
        }
    }

    #[test]
    fn a_server_that_hangs_is_away_after_the_deadline() {
        let most = Duration::from_secs(60);
        assert_eq!(is_over_after(|_| Duration::ZERO, most), Some(DEADLINE));
        for (late, most) in [(20, 2_700), (300, 5_000), (1_000, 10_000), (60_000, 200_000)] {
            let over = is_over_after(|_| Duration::from_millis(late), Duration::from_millis(most));
            assert!(over.is_some(), "a process that is always {late} ms late never judges");
        }
    }

    #[test]
    fn a_process_that_was_stopped_listens_again_before_it_judges() {
        for stopped in [500, 2_000, 60_000, 3_600_000].map(Duration::from_millis) {
            for at in [500, 1_500, 2_300].map(Duration::from_millis) {
                let is_then = |due: Duration| due > at && due < at + Duration::from_secs(1);
                let late = |due| if is_then(due) { stopped } else { Duration::ZERO };
                let over = is_over_after(late, Duration::from_secs(10_000));
                let listened = over.map(|over| over.saturating_sub(stopped));
                assert!(
                    listened.is_some_and(|it| it >= DEADLINE - LAST_LOOK),
                    "{stopped:?} at {at:?}: {over:?}"
                );
            }
        }
    }

    #[test]
    fn a_silence_begins_with_what_was_heard_last() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut silence = Silence::begin(DEADLINE, began);
        assert!(!silence.judge(at(2_400), at(2_000), Duration::ZERO));
        assert_eq!(silence.judged_at(), at(4_400));
        // Nothing has to arrive.
        assert!(!silence.judge(at(4_400), at(4_400), Duration::ZERO));
        assert_eq!(silence.judged_at(), at(6_800));
        // Something has, and since then this process was late.
        assert!(!silence.judge(at(6_900), at(6_850), Duration::from_millis(100)));
        assert_eq!(silence.judged_at(), at(6_850 + 2_400 + 50));
    }
}
