//! Whether the clocks agree, as far as a `Date` of whole seconds can tell.

use std::time::{Duration, SystemTime};

use super::{Outcome, Step, StepName};

/// Tokens are accepted so long after their end by default (`auth.jwt[N].leeway`).
const LEEWAY_S: f64 = 5.0;

/// By how much the server's clock is ahead of ours: between these, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Skew {
    least: f64,
    most: f64,
}

/// `sent` and `received` are of the request whose answer had `date`.
pub(super) fn step(date: Option<&str>, sent: SystemTime, received: SystemTime) -> Step {
    let Some(date) = date else {
        return Step::skipped(StepName::Clock, "the answer has no Date header");
    };
    let Ok(date) = httpdate::parse_http_date(date) else {
        return Step::skipped(StepName::Clock, "the answer's Date header is no date");
    };
    Skew::between(date, sent, received).step()
}

impl Skew {
    /// The server wrote `date` between `sent` and `received`, and cut it to the second: its clock was in
    /// `date .. date + 1 s` then.
    fn between(date: SystemTime, sent: SystemTime, received: SystemTime) -> Self {
        let least = difference(date, received);
        let most = difference(date + Duration::from_secs(1), sent);
        // Our own clock may have been set meanwhile.
        Self { least: least.min(most), most: most.max(least) }
    }

    /// The least by which the clocks differ, whatever the header does not say.
    fn certain(self) -> f64 {
        if self.least > 0.0 {
            self.least
        } else if self.most < 0.0 {
            self.most
        } else {
            0.0
        }
    }

    fn step(self) -> Step {
        let certain = self.certain();
        let range = format!("between {:+.1} and {:+.1} s", self.least, self.most);
        let sentence = if certain == 0.0 {
            format!("no difference that a header of whole seconds can show: the server is {range} ahead")
        } else {
            format!("the clock of what answered is {range} ahead of this machine's")
        };
        let (outcome, advice) = match certain.abs() {
            far if far > LEEWAY_S => (
                Outcome::Failed,
                Some(format!(
                    "tokens are refused or live too long beyond a leeway of {LEEWAY_S} s: let NTP set both clocks"
                )),
            ),
            far if far > 1.0 => (Outcome::Warned, Some("let NTP set both clocks".to_owned())),
            _ => (Outcome::Passed, None),
        };
        Step { outcome, advice, seconds: Some(certain), ..Step::passed(StepName::Clock, sentence) }
    }
}

fn difference(one: SystemTime, other: SystemTime) -> f64 {
    match one.duration_since(other) {
        Ok(ahead) => ahead.as_secs_f64(),
        Err(behind) => -behind.duration().as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request at 1,000.2 s that took 0.1 s, answered with this date.
    #[track_caller]
    fn check(date_s: u64, outcome: Outcome, least: f64, most: f64) {
        let at = |ms: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        let skew = Skew::between(at(date_s * 1000), at(1_000_200), at(1_000_300));
        assert!((skew.least - least).abs() < 1e-6 && (skew.most - most).abs() < 1e-6, "{skew:?}");
        assert_eq!(skew.step().outcome, outcome, "{:?}", skew.step());
    }

    #[test]
    fn a_second_is_all_that_the_header_can_tell() {
        check(1000, Outcome::Passed, -0.3, 0.8);
        check(1001, Outcome::Passed, 0.7, 1.8);
        check(999, Outcome::Passed, -1.3, -0.2);
    }

    #[test]
    fn what_is_certain_counts() {
        check(1003, Outcome::Warned, 2.7, 3.8);
        check(1006, Outcome::Failed, 5.7, 6.8);
        check(990, Outcome::Failed, -10.3, -9.2);
    }

    #[test]
    fn an_answer_without_a_date_says_nothing() {
        let now = SystemTime::now();
        assert_eq!(step(None, now, now).outcome, Outcome::Skipped);
        assert_eq!(step(Some("yesterday"), now, now).outcome, Outcome::Skipped);
        assert_eq!(step(Some("Thu, 01 Jan 1970 00:00:00 GMT"), now, now).outcome, Outcome::Failed);
    }
}
