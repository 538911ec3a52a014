//! A circuit breaker: whether an application that fails is asked at all. Without a clock of its own, and without I/O.
//!
//! ```text
//!            most of a window's answers fail
//!   Closed ────────────────────────────────────► Open ◄───┐ a probe fails: waits twice as long
//!     ▲                                            │ waited │
//!     │ enough probes in a row are answered        ▼        │
//!     └───────────────────────────────────────── HalfOpen ──┘
//! ```

use std::time::Duration;

/// Answers are judged over windows of this length.
const WINDOW: Duration = Duration::from_secs(10);
/// Fewer answers in a window say nothing.
const WINDOW_ANSWERS_MIN: u32 = 10;
/// How long nobody asks, at first; it doubles with each probe that fails.
const WAIT_FIRST: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(30);
/// So many probes in a row, one at a time, close it.
const PROBES: u32 = 3;

#[derive(Debug, Default)]
pub(super) struct Breaker {
    state: State,
    /// Number of the state: an answer to what was asked in an earlier one says nothing of this one.
    era: u64,
    /// How often it has opened.
    opened: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed { since: Duration, answered: u32, failed: u32 },
    Open { until: Duration, wait: Duration },
    HalfOpen { probing: bool, answered: u32, wait: Duration },
}

/// Leave to ask once, given back with the outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leave(u64);

impl Default for State {
    fn default() -> Self {
        Self::Closed { since: Duration::ZERO, answered: 0, failed: 0 }
    }
}

impl Breaker {
    /// Whether the application may be asked now. What it answered, or that it did not, is to be told by
    /// [`ended`](Self::ended).
    pub(super) fn ask(&mut self, now: Duration) -> Option<Leave> {
        match &mut self.state {
            State::Closed { .. } => {}
            State::Open { until, .. } if now < *until => return None,
            State::Open { wait, .. } => {
                let wait = *wait;
                self.enter(State::HalfOpen { probing: true, answered: 0, wait });
            }
            State::HalfOpen { probing, .. } if *probing => return None,
            State::HalfOpen { probing, .. } => *probing = true,
        }
        Some(Leave(self.era))
    }

    /// What it was asked has ended. `None`: nobody knows how, since whoever asked has gone.
    pub(super) fn ended(&mut self, leave: Leave, now: Duration, is_answered: Option<bool>) {
        if leave.0 != self.era {
            return;
        }
        match &mut self.state {
            State::Closed { since, answered, failed } => {
                let Some(is_answered) = is_answered else { return };
                if now.saturating_sub(*since) >= WINDOW {
                    (*since, *answered, *failed) = (now, 0, 0);
                }
                match is_answered {
                    true => *answered += 1,
                    false => *failed += 1,
                }
                if *answered + *failed >= WINDOW_ANSWERS_MIN && *failed > *answered {
                    self.open(now, WAIT_FIRST);
                }
            }
            State::HalfOpen { probing, answered, wait } => match is_answered {
                None => *probing = false,
                Some(true) if *answered + 1 < PROBES => (*probing, *answered) = (false, *answered + 1),
                Some(true) => self.enter(State::Closed { since: now, answered: 0, failed: 0 }),
                Some(false) => {
                    let wait = (*wait * 2).min(WAIT_MAX);
                    self.open(now, wait);
                }
            },
            State::Open { .. } => {}
        }
    }

    pub(super) fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed { .. })
    }

    pub(super) fn times_opened(&self) -> u64 {
        self.opened
    }

    fn open(&mut self, now: Duration, wait: Duration) {
        self.opened += 1;
        self.enter(State::Open { until: now + wait, wait });
    }

    fn enter(&mut self, state: State) {
        (self.state, self.era) = (state, self.era + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn fail(breaker: &mut Breaker, now: Duration, times: u32) {
        for _ in 0..times {
            let leave = breaker.ask(now).expect("leave to ask");
            breaker.ended(leave, now, Some(false));
        }
    }

    #[test]
    fn it_opens_waits_probes_and_closes() {
        let mut breaker = Breaker::default();
        fail(&mut breaker, S, WINDOW_ANSWERS_MIN);
        assert!(breaker.is_open() && breaker.ask(S + WAIT_FIRST / 2).is_none());
        let probe = breaker.ask(S + WAIT_FIRST).expect("a probe");
        assert_eq!(breaker.ask(S * 10), None, "one probe at a time");
        breaker.ended(probe, S * 2, Some(false));
        assert_eq!(breaker.ask(S * 2 + WAIT_FIRST), None, "it waits twice as long");
        for _ in 0..PROBES {
            let probe = breaker.ask(S * 5).expect("a probe");
            breaker.ended(probe, S * 5, Some(true));
        }
        assert!(!breaker.is_open());
        assert_eq!(breaker.times_opened(), 2);
    }

    #[test]
    fn few_failures_among_answers_do_not_open_it() {
        let mut breaker = Breaker::default();
        for second in 0..1000u32 {
            let leave = breaker.ask(S * second).expect("closed");
            breaker.ended(leave, S * second, Some(second % 2 == 0));
        }
        assert!(!breaker.is_open());
    }

    #[test]
    fn a_probe_that_nobody_waits_for_leaves_room_for_the_next() {
        let mut breaker = Breaker::default();
        fail(&mut breaker, S, WINDOW_ANSWERS_MIN);
        let probe = breaker.ask(S * 3).expect("a probe");
        breaker.ended(probe, S * 3, None);
        assert!(breaker.ask(S * 3).is_some());
    }

    /// An application that is up or down, asked at random moments, with answers that come late: while it is down few
    /// questions reach it, and when it is up again it is asked again within the longest wait and its probes.
    #[test]
    fn simulated() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..200 {
            run(&mut random);
        }
    }

    fn run(random: &mut fastrand::Rng) {
        let step = Duration::from_millis(20);
        let (mut breaker, mut under_way) = (Breaker::default(), Vec::new());
        let (mut is_up, mut changes_at, mut now) = (true, S * random.u32(1..60), Duration::ZERO);
        let (mut asked_while_down, mut up_since) = (0u32, Duration::ZERO);
        let mut down_since = Duration::ZERO;
        while now < S * 600 {
            now += step;
            if now >= changes_at {
                is_up = !is_up;
                changes_at = now + S * random.u32(1..120);
                asked_while_down = 0;
                (up_since, down_since) = if is_up { (now, down_since) } else { (up_since, now) };
            }
            under_way.retain(|&(leave, ends, is_answered)| {
                let has_ended = ends <= now;
                if has_ended {
                    breaker.ended(leave, now, is_answered);
                }
                !has_ended
            });
            let Some(leave) = breaker.ask(now) else {
                let quiet = now.saturating_sub(up_since);
                assert!(!is_up || quiet < WAIT_MAX + S * 10, "it is up for {quiet:?}, and is not asked");
                continue;
            };
            if !is_up {
                asked_while_down += 1;
                // 50 a second until the first window says that it fails; then one for each wait.
                let down = now.saturating_sub(down_since).as_secs() as u32;
                assert!(asked_while_down < 700 + down, "{asked_while_down} in {down} s");
            }
            let late = Duration::from_millis(random.u64(0..1500));
            let is_answered = random.u32(0..20).gt(&0).then_some(is_up);
            under_way.push((leave, now + late, is_answered));
        }
    }
}
