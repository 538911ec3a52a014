//! Reads what the fuzzing client found and decides whether it is good enough.

use std::fmt;

use anyhow::{Context, Result};
use serde_json::Value;

/// The verdicts of one or several runs.
#[derive(Debug, Default)]
pub(crate) struct Report {
    ok: usize,
    informational: usize,
    non_strict: Vec<Case>,
    failed: Vec<Case>,
}

#[derive(Debug)]
struct Case {
    id: String,
    behavior: String,
    behavior_close: String,
}

/// From best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Ok,
    Informational,
    NonStrict,
    Failed,
}

impl Report {
    /// Adds the cases of one `index.json`: `{agent: {case: {behavior, behaviorClose, …}}}`.
    pub(crate) fn add(&mut self, index: &str, agent: &str) -> Result<()> {
        let index: Value = serde_json::from_str(index).context("index.json is JSON")?;
        let cases =
            index.get(agent).and_then(Value::as_object).context("index.json has the agent's cases")?;
        for (id, case) in cases {
            let word = |key: &str| case.get(key).and_then(Value::as_str).unwrap_or("MISSING").to_owned();
            let (behavior, behavior_close) = (word("behavior"), word("behaviorClose"));
            let case = Case { id: id.clone(), behavior, behavior_close };
            match case.verdict() {
                Verdict::Ok => self.ok += 1,
                Verdict::Informational => self.informational += 1,
                Verdict::NonStrict => self.non_strict.push(case),
                Verdict::Failed => self.failed.push(case),
            }
        }
        Ok(())
    }

    pub(crate) fn cases(&self) -> usize {
        self.ok + self.informational + self.non_strict.len() + self.failed.len()
    }

    /// At least one case ran, and each is OK or INFORMATIONAL.
    pub(crate) fn is_clean(&self) -> bool {
        self.cases() > 0 && self.non_strict.is_empty() && self.failed.is_empty()
    }
}

impl Case {
    /// The worse of what it did and how it closed; a word that is not known (UNIMPLEMENTED, UNCLEAN, …) is a failure.
    fn verdict(&self) -> Verdict {
        let one = |word: &str| match word {
            "OK" => Verdict::Ok,
            "INFORMATIONAL" => Verdict::Informational,
            "NON-STRICT" => Verdict::NonStrict,
            _ => Verdict::Failed,
        };
        one(&self.behavior).max(one(&self.behavior_close))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for case in self.failed.iter().chain(&self.non_strict) {
            writeln!(f, "case {}: {}, close {}", case.id, case.behavior, case.behavior_close)?;
        }
        let (non_strict, failed) = (self.non_strict.len(), self.failed.len());
        let (cases, ok, informational) = (self.cases(), self.ok, self.informational);
        write!(
            f,
            "autobahn: {cases} cases, {ok} ok, {informational} informational, {non_strict} non-strict, {failed} failed"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cases: &str, clean: bool, line: &str) {
        let mut report = Report::default();
        report.add(&format!("{{\"a\":{{{cases}}}}}"), "a").expect("valid");
        assert_eq!(report.is_clean(), clean, "{cases}");
        assert_eq!(report.to_string().lines().last(), Some(line));
    }

    #[test]
    fn every_verdict_is_counted_and_only_two_are_clean() {
        let case = |behavior, close| {
            format!("\"1.1\":{{\"behavior\":\"{behavior}\",\"behaviorClose\":\"{close}\"}}")
        };
        check(&case("OK", "OK"), true, "autobahn: 1 cases, 1 ok, 0 informational, 0 non-strict, 0 failed");
        check(
            &case("INFORMATIONAL", "OK"),
            true,
            "autobahn: 1 cases, 0 ok, 1 informational, 0 non-strict, 0 failed",
        );
        check(
            &case("NON-STRICT", "OK"),
            false,
            "autobahn: 1 cases, 0 ok, 0 informational, 1 non-strict, 0 failed",
        );
        check(
            &case("OK", "UNCLEAN"),
            false,
            "autobahn: 1 cases, 0 ok, 0 informational, 0 non-strict, 1 failed",
        );
        check(
            &case("UNIMPLEMENTED", "OK"),
            false,
            "autobahn: 1 cases, 0 ok, 0 informational, 0 non-strict, 1 failed",
        );
        check("\"1.1\":{}", false, "autobahn: 1 cases, 0 ok, 0 informational, 0 non-strict, 1 failed");
        check("", false, "autobahn: 0 cases, 0 ok, 0 informational, 0 non-strict, 0 failed");
    }

    #[test]
    fn an_index_without_the_agent_is_an_error() {
        assert!(Report::default().add("{}", "a").is_err());
    }
}
