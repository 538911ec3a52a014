//! Who is in one channel, as a state machine: changes and time in, events and transitions out.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{Attend, AttendError, Attended, CensusKind, Roll, Sums, Transition, User, census};

/// `scripts/census.lua` has the same rules for many nodes; a property test compares the two.
#[derive(Debug)]
pub(crate) struct Headcount {
    sequence: u64,
    subscriptions: u64,
    users: BTreeMap<Box<str>, Present>,
    /// Users who left, and from when on that is told.
    left: BTreeMap<Box<str>, Instant>,
    /// The channel is empty, and from when on that is told.
    vacated: Option<Instant>,
    tells_counts: bool,
    count: Count,
    /// When the channel is looked at next.
    scheduled: Option<Instant>,
}

/// What a change is told as, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    Event { sequence: u64, kind: CensusKind },
    Transition(Transition),
}

#[derive(Debug)]
struct Present {
    subscriptions: u64,
    info: Option<Box<str>>,
}

/// What was told of the number of subscriptions.
#[derive(Debug, Default)]
struct Count {
    told: u64,
    told_at: Option<Instant>,
    due: Option<Instant>,
}

impl Headcount {
    /// The first event has a number above `sequence`.
    pub(crate) fn new(sequence: u64) -> Self {
        Self {
            sequence,
            subscriptions: 0,
            users: BTreeMap::new(),
            left: BTreeMap::new(),
            vacated: None,
            tells_counts: false,
            count: Count::default(),
            scheduled: None,
        }
    }

    pub(crate) fn attend(
        &mut self,
        attend: Attend,
        now: Instant,
        settle: Duration,
        told: &mut Vec<Told>,
    ) -> Result<Attended, AttendError> {
        match attend {
            Attend::Enter { user, users_max, tells_counts } => {
                self.check_room(user.as_ref(), users_max)?;
                self.tells_counts = tells_counts;
                self.enter(user, told);
            }
            Attend::Leave { user } => self.leave(user, now + settle, told),
        }
        self.tell_count(now, told);
        Ok(Attended { sequence: self.sequence, sums: self.sums() })
    }

    /// Tells what has lasted until now.
    pub(crate) fn settle(&mut self, now: Instant, told: &mut Vec<Told>) {
        self.scheduled = None;
        let gone: Vec<_> = self.left.extract_if(.., |_, due| *due <= now).collect();
        told.extend(gone.into_iter().map(|(user, _)| Told::Transition(Transition::UserLeft { user })));
        if self.count.due.is_some_and(|due| due <= now) {
            self.count.due = None;
            self.tell_count(now, told);
        }
        if self.vacated.is_some_and(|due| due <= now) {
            self.vacated = None;
            told.push(Told::Transition(Transition::Vacated));
        }
    }

    pub(crate) fn sums(&self) -> Sums {
        Sums { subscriptions: self.subscriptions, users: self.users.len() as u64 }
    }

    pub(crate) fn roll(&self) -> Roll {
        let users = self.users.iter();
        Roll {
            sequence: self.sequence,
            subscriptions: self.subscriptions,
            users: users.map(|(id, of)| User { id: id.clone(), info: of.info.clone() }).collect(),
        }
    }

    /// When to look at the channel, unless somebody will already by then.
    pub(crate) fn schedule(&mut self) -> Option<Instant> {
        let left = self.left.values().min().copied();
        let next = [left, self.vacated, self.count.due].into_iter().flatten().min()?;
        if self.scheduled.is_some_and(|scheduled| scheduled <= next) {
            return None;
        }
        self.scheduled = Some(next);
        self.scheduled
    }

    /// Nobody is in it, and nothing is left to be told.
    pub(crate) fn is_blank(&self) -> bool {
        self.subscriptions == 0 && self.scheduled.is_none()
    }

    fn check_room(&self, user: Option<&User>, users_max: Option<u32>) -> Result<(), AttendError> {
        let is_new = user.is_some_and(|user| !self.users.contains_key(&user.id));
        match users_max {
            Some(users_max) if is_new && self.users.len() as u64 >= u64::from(users_max) => {
                Err(AttendError::Full { users_max })
            }
            _ => Ok(()),
        }
    }

    fn enter(&mut self, user: Option<User>, told: &mut Vec<Told>) {
        self.subscriptions += 1;
        let was_vacated = self.vacated.take().is_some();
        if self.subscriptions == 1 && !was_vacated {
            told.push(Told::Transition(Transition::Occupied));
        }
        let Some(User { id, info }) = user else { return };
        if let Some(present) = self.users.get_mut(&id) {
            present.subscriptions += 1;
            return;
        }
        self.users.insert(id.clone(), Present { subscriptions: 1, info: info.clone() });
        self.event(CensusKind::Joined(User { id: id.clone(), info }), told);
        if self.left.remove(&id).is_none() {
            told.push(Told::Transition(Transition::UserJoined { user: id }));
        }
    }

    fn leave(&mut self, user: Option<Box<str>>, due: Instant, told: &mut Vec<Told>) {
        if let Some(id) = user {
            let Some(present) = self.users.get_mut(&id) else { return };
            present.subscriptions -= 1;
            if present.subscriptions == 0 {
                self.users.remove(&id);
                self.event(CensusKind::Left { user: id.clone() }, told);
                self.left.insert(id, due);
            }
        }
        if self.subscriptions == 1 {
            self.vacated = Some(due);
        }
        self.subscriptions = self.subscriptions.saturating_sub(1);
    }

    fn tell_count(&mut self, now: Instant, told: &mut Vec<Told>) {
        if !self.tells_counts || self.count.told == self.subscriptions {
            // A number that came back to what was told needs no more telling.
            self.count.due = None;
            return;
        }
        let due = self.count.told_at.map(|at| at + census::counts_interval(self.subscriptions));
        if due.is_some_and(|due| now < due) {
            self.count.due = due;
            return;
        }
        self.count = Count { told: self.subscriptions, told_at: Some(now), due: None };
        let subscriptions = self.subscriptions;
        self.event(CensusKind::Count { subscriptions }, told);
        told.push(Told::Transition(Transition::Count { subscriptions }));
    }

    fn event(&mut self, kind: CensusKind, told: &mut Vec<Told>) {
        self.sequence += 1;
        told.push(Told::Event { sequence: self.sequence, kind });
    }
}
