//! What a client received and was told, and the judgement over it.

use std::collections::BTreeSet;

/// In the place of a number: here the client was told that something may be missing.
const TOLD: u32 = u32::MAX;

/// One client's record of one channel, whose publications are numbered from 0 in the order in which they were
/// accepted.
#[derive(Debug, Default)]
pub struct Ledger {
    marks: Vec<u32>,
    gaps: usize,
    closes: usize,
    /// One past the highest number.
    next: u32,
}

/// Sums over clients.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Publications that a client does not have.
    pub lost: usize,
    /// Of these, the ones in a hole where the client was told nothing: between the last publication before the hole
    /// and the first after it there was neither a gap nor the end of a connection.
    pub silent: usize,
    pub duplicated: usize,
    /// Publications that came after one with a higher number.
    pub misordered: usize,
    pub gaps: usize,
    pub closes: usize,
}

impl Ledger {
    pub fn publication(&mut self, number: u32) {
        self.marks.push(number);
        self.next = self.next.max(number + 1);
    }

    /// The client was told of a gap.
    pub fn gap(&mut self) {
        self.gaps += 1;
        self.marks.push(TOLD);
    }

    /// The client's connection ended.
    pub fn close(&mut self) {
        self.closes += 1;
        self.marks.push(TOLD);
    }

    /// One past the highest number received.
    pub fn next(&self) -> u32 {
        self.next
    }

    /// What the client does not have; `excused`: what nobody accepted.
    pub fn missing(&self, total: u32, excused: &BTreeSet<u32>) -> Vec<u32> {
        let mut seen = vec![false; total as usize];
        for &mark in &self.marks {
            if let Some(seen) = seen.get_mut(mark as usize) {
                *seen = true;
            }
        }
        let missing = (0..total).zip(seen).filter(|(number, seen)| !seen && !excused.contains(number));
        missing.map(|(number, _)| number).collect()
    }

    /// What was not accepted may have come or not, at any place: it counts as if it did not exist.
    pub fn judge(&self, total: u32, excused: &BTreeSet<u32>) -> Verdict {
        let accepted: Vec<u32> = (0..total).filter(|number| !excused.contains(number)).collect();
        let rank = |number: u32| accepted.partition_point(|accepted| *accepted < number) as u32;
        let marks = self.marks.iter().filter(|mark| !excused.contains(mark));
        let marks = marks.map(|&mark| if mark == TOLD { TOLD } else { rank(mark) });
        let mut verdict = Verdict { gaps: self.gaps, closes: self.closes, ..Verdict::default() };
        let mut seen = vec![false; accepted.len()];
        let (mut expected, mut told) = (0, false);
        // The end is the publication that will never come: what is missing before it is a hole like any other.
        for mark in marks.chain([accepted.len() as u32]) {
            if mark == TOLD {
                told = true;
                continue;
            }
            if let Some(seen) = seen.get_mut(mark as usize) {
                let repeated = std::mem::replace(seen, true);
                verdict.duplicated += usize::from(repeated);
                verdict.misordered += usize::from(!repeated && mark < expected);
            }
            if mark > expected && !told {
                verdict.silent += (mark - expected) as usize;
            }
            expected = expected.max(mark + 1);
            told = false;
        }
        verdict.lost = self.missing(total, excused).len();
        verdict
    }
}

impl Verdict {
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            lost: self.lost + other.lost,
            silent: self.silent + other.silent,
            duplicated: self.duplicated + other.duplicated,
            misordered: self.misordered + other.misordered,
            gaps: self.gaps + other.gaps,
            closes: self.closes + other.closes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `t` in `marks` stands for being told.
    #[track_caller]
    fn check(marks: &str, total: u32, [lost, silent, duplicated, misordered]: [usize; 4]) {
        let mut ledger = Ledger::default();
        for mark in marks.split_whitespace() {
            match mark.parse() {
                Ok(number) => ledger.publication(number),
                Err(_) => ledger.gap(),
            }
        }
        let gaps = marks.matches('t').count();
        let expect = Verdict { lost, silent, duplicated, misordered, gaps, closes: 0 };
        assert_eq!(ledger.judge(total, &BTreeSet::new()), expect, "{marks}");
    }

    #[test]
    fn a_judgement_tells_holes_apart_from_what_was_told() {
        check("0 1 2", 3, [0, 0, 0, 0]);
        check("0 2", 3, [1, 1, 0, 0]);
        check("0 t 2", 3, [1, 0, 0, 0]);
        // Told at the wrong place: before what came, or after it.
        check("t 0 2 t", 3, [1, 1, 0, 0]);
        // At the beginning and at the end.
        check("1 2", 3, [1, 1, 0, 0]);
        check("0 1", 3, [1, 1, 0, 0]);
        check("0 1 t", 3, [1, 0, 0, 0]);
        check("", 2, [2, 2, 0, 0]);
        // A notice excuses one hole.
        check("0 t 2 4", 5, [2, 1, 0, 0]);
        // Repetitions and disorder; what comes late was silently missing when its successor came.
        check("0 1 1 2", 3, [0, 0, 1, 0]);
        check("0 2 1", 3, [0, 1, 0, 1]);
    }

    #[test]
    fn what_was_not_accepted_is_nobodys_loss() {
        let mut ledger = Ledger::default();
        [0, 3, 1].into_iter().for_each(|number| ledger.publication(number));
        let judged = |excused: &[u32]| {
            let Verdict { lost, silent, misordered, .. } =
                ledger.judge(4, &excused.iter().copied().collect());
            [lost, silent, misordered]
        };
        assert_eq!(judged(&[]), [1, 2, 1]);
        assert_eq!(judged(&[1]), [1, 1, 0]);
        assert_eq!(judged(&[1, 2]), [0, 0, 0]);
    }
}
