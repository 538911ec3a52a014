//! What is believed of each member, from what its source and checks of it have said over time. Pure: no I/O, no clock.
//!
//! ```text
//!            announced ──────────► draining ──► gone
//!             │  ▲  ▲ back
//!      lacked │  │  └───────────── unreachable (checks fail)
//!             ▼  │                      │
//!           missing ────────────────────┴─────► lost: its clients are cut
//! ```
//!
//! Two decisions are kept apart. *No new clients* is cheap to be wrong about, and is made early. *Cut* closes every
//! client of a node, and is made when two observers agree, or one has said the same for long enough. When nearly all
//! members look bad, it is the observer who is wrong: then nobody is cut and all get clients as before.

use std::{collections::BTreeMap, time::Duration};

/// Time since the begin of the process.
pub(super) type At = Duration;

/// What is believed, by name. `T` is what the caller keeps with a member.
#[derive(Debug)]
pub(super) struct Membership<T> {
    rules: Rules,
    members: BTreeMap<Box<str>, Record<T>>,
    /// The source could not be read, and has not been read since.
    unread: bool,
    /// Until then a member that is missing may only not have come back yet.
    doubt_until: At,
}

/// How much must be said before something is believed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Failed checks in a row until a member gets no new clients.
    pub(super) failures: u32,
    /// Checks that fail for so long, without a success between them, cut the clients.
    pub(super) cut_after: Duration,
}

/// A member as its source names it.
#[derive(Debug)]
pub(super) struct Listed<T> {
    pub(super) name: Box<str>,
    pub(super) data: T,
    pub(super) draining: bool,
    /// It has announced itself since the last answer.
    pub(super) renewed: bool,
}

/// What one check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Healthy,
    /// It answers that it takes no more clients.
    Refusing,
    Failed,
    /// The check could not be made: it says something about this process, not about the member.
    Nothing,
}

/// What follows for a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Gets clients.
    Live,
    /// Gets no new ones, because it said so or because its source does not name it now.
    Leaving,
    /// Gets no new ones, because it does not answer.
    Down,
    /// Gets none, and those that it has are cut.
    Lost,
}

#[derive(Debug)]
struct Record<T> {
    data: T,
    draining: bool,
    /// It was healthy once, or has announced itself: that it looks bad now is news.
    proven: bool,
    /// The first answer without it, since it was last named.
    missing_since: Option<At>,
    /// The first answer in which it had not announced itself anew.
    late_since: Option<At>,
    refusing: bool,
    /// Failed checks in a row, and since when.
    failures: u32,
    failing_since: At,
}

/// A member that the source lacks, and that answers us well, may be one that the source forgot. Its clients are moved after
/// so long, when it is not the source that fails. One that says that it cannot reach its source is not waited for: its
/// clients get nothing that others publish.
const ABSENT: Duration = Duration::from_secs(20);

/// A registry that lost its data (a restarted Redis, a failover) answers with nobody, then with one member after the
/// other, as each announces itself within 1 s of its own reconnect, which may take 3 s. Whoever believed the first
/// answers would move all clients to the first member.
const DOUBT: Duration = Duration::from_secs(5);

/// Members announce themselves each second; one that has missed three is looked at.
const LATE: Duration = Duration::from_secs(3);

impl<T> Membership<T> {
    pub(super) fn new(rules: Rules) -> Self {
        Self { rules, members: BTreeMap::new(), unread: false, doubt_until: At::ZERO }
    }

    /// The source was read. `announced`: by who is named in it. Else a first check has to say that a member is well, and
    /// who is not named is none.
    pub(super) fn listed(&mut self, now: At, listed: Vec<Listed<T>>, announced: bool) {
        let mut missing: BTreeMap<_, _> = std::mem::take(&mut self.members);
        for Listed { name, data, draining, renewed } in listed {
            let record = match missing.remove(&name) {
                None => Record::new(data, draining, announced),
                Some(before) => Record {
                    data,
                    draining,
                    missing_since: None,
                    late_since: if renewed { None } else { before.late_since.or(Some(now)) },
                    // Whose source hears of it again is not checked any more.
                    failures: if renewed && announced { 0 } else { before.failures },
                    refusing: before.refusing && !(renewed && announced),
                    ..before
                },
            };
            self.members.insert(name, record);
        }
        let known = self.members.len() + missing.len();
        // A member that drains has said that it goes, and is gone now.
        missing.retain(|_, record| announced && !record.draining);
        let begins = missing.values().filter(|record| record.missing_since.is_none()).count();
        for record in missing.values_mut() {
            record.missing_since.get_or_insert(now);
        }
        self.members.append(&mut missing);
        // What was read first after an outage, or lacks half of the members at once, is not news about each of them.
        let is_wild = std::mem::take(&mut self.unread) || (begins > 1 && begins * 2 > known);
        if is_wild || self.is_panicking() {
            self.doubt_until = now + DOUBT;
        }
    }

    /// The source could not be read. Who was missing may have come back meanwhile: it is counted anew.
    pub(super) fn unreadable(&mut self) {
        self.unread = true;
        for record in self.members.values_mut() {
            (record.missing_since, record.late_since, record.failures) = (None, None, 0);
        }
    }

    /// A check of a member has ended.
    pub(super) fn checked(&mut self, now: At, name: &str, found: Found) {
        let Some(record) = self.members.get_mut(name) else { return };
        match found {
            Found::Nothing => return,
            Found::Failed if record.failures == 0 => (record.failures, record.failing_since) = (1, now),
            Found::Failed => record.failures = record.failures.saturating_add(1),
            Found::Healthy | Found::Refusing => {
                record.failures = 0;
                record.proven = true;
            }
        }
        record.refusing = match found {
            Found::Refusing => true,
            Found::Healthy => false,
            _ => record.refusing,
        };
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &T)> {
        self.members.iter().map(|(name, record)| (&**name, &record.data))
    }

    /// Members that a check should look at because their source says nothing good of them.
    pub(super) fn doubtful(&self, now: At) -> impl Iterator<Item = (&str, &T)> {
        let is_late = move |since: At| now.saturating_sub(since) >= LATE;
        self.members
            .iter()
            .filter(move |(_, record)| {
                record.missing_since.is_some() || record.late_since.is_some_and(is_late)
            })
            .map(|(name, record)| (&**name, &record.data))
    }

    /// Nearly all members look bad: more than three quarters of those that were good and do not leave.
    pub(super) fn is_panicking(&self) -> bool {
        let voters = || self.members.values().filter(|record| record.proven && !record.draining);
        let suspects = voters().filter(|record| record.is_suspect(&self.rules)).count();
        suspects * 4 > voters().count() * 3
    }

    /// What follows for each member. Those that a source does not name and that are lost are forgotten, and not among
    /// them: whoever is not named any more has no clients either.
    pub(super) fn decide(&mut self, now: At) -> Vec<(&str, &T, Standing)> {
        let panics = self.is_panicking();
        let doubts = panics || self.unread || now < self.doubt_until;
        let view = View { now, rules: self.rules, panics, doubts, sure_since: self.doubt_until };
        let standing = |record: &Record<T>| record.standing(&view);
        self.members.retain(|_, record| record.missing_since.is_none() || standing(record) != Standing::Lost);
        let decisions = self.members.iter();
        decisions.map(|(name, record)| (&**name, &record.data, standing(record))).collect()
    }
}

/// What holds for all members at one moment.
#[derive(Debug)]
struct View {
    now: At,
    rules: Rules,
    panics: bool,
    /// Whether who is missing may only not have come back yet.
    doubts: bool,
    /// Since when that is not so.
    sure_since: At,
}

impl<T> Record<T> {
    fn new(data: T, draining: bool, proven: bool) -> Self {
        Self {
            data,
            draining,
            proven,
            missing_since: None,
            late_since: None,
            refusing: false,
            failures: 0,
            failing_since: At::ZERO,
        }
    }

    fn fails(&self, rules: &Rules) -> bool {
        // The first check of a member decides at once.
        self.failures >= if self.proven { rules.failures } else { 1 }
    }

    fn is_suspect(&self, rules: &Rules) -> bool {
        self.missing_since.is_some() || self.fails(rules)
    }

    fn standing(&self, view: &View) -> Standing {
        let View { now, ref rules, panics, doubts, sure_since } = *view;
        let fails = self.fails(rules);
        let fails_long = fails && now.saturating_sub(self.failing_since) >= rules.cut_after;
        if let Some(since) = self.missing_since {
            let absent = now.saturating_sub(since.max(sure_since));
            return match () {
                // Neither its source nor we hear of it.
                () if fails && !doubts || fails_long => Standing::Lost,
                // It says itself that it can serve nobody.
                () if self.refusing && !doubts => Standing::Lost,
                () if !doubts && absent >= ABSENT => Standing::Lost,
                () if doubts && (panics || !self.refusing) => Standing::Live,
                () => Standing::Leaving,
            };
        }
        let is_late = self.late_since.is_some_and(|since| now.saturating_sub(since) >= LATE);
        match () {
            () if fails && is_late && !panics => Standing::Lost,
            () if fails_long && !panics => Standing::Lost,
            () if fails && (!panics || !self.proven) => Standing::Down,
            () if self.draining || self.refusing => Standing::Leaving,
            () => Standing::Live,
        }
    }
}

#[cfg(test)]
mod tests;
