//! Who is in one channel, as a state machine: changes and time in, events and transitions out.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{Attendance, Join, JoinError, Member, Members, PresenceKind, Roll, Sums, Transition, presence};

/// `scripts/presence.lua` has the same rules for many nodes; a property test compares the two.
#[derive(Debug)]
pub(crate) struct Headcount {
    sequence: u64,
    members: Members,
    /// How many connections each user has.
    users: HashMap<Box<str>, u64>,
    /// Subscriptions that are not listed.
    counted: u64,
    /// Users who left, and from when on that is told.
    left: BTreeMap<Box<str>, Instant>,
    /// The channel is empty, and from when on that is told.
    vacated: Option<Instant>,
    tells_counts: bool,
    count: Count,
    /// When the channel is looked at next.
    scheduled: Option<Instant>,
}

/// The presence of a channel, taken apart.
#[derive(Debug, Default)]
pub(super) struct HeadcountParts {
    pub(super) sequence: u64,
    pub(super) members: Vec<Arc<Member>>,
    pub(super) counted: u64,
    pub(super) left: Vec<(Box<str>, Instant)>,
    pub(super) vacated: Option<Instant>,
    pub(super) tells_counts: bool,
    pub(super) told: u64,
    pub(super) told_at: Option<Instant>,
    pub(super) count_due: Option<Instant>,
}

/// What a change is told as, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    Event { sequence: u64, kind: PresenceKind },
    Transition(Transition),
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
            members: Members::default(),
            users: HashMap::new(),
            counted: 0,
            left: BTreeMap::new(),
            vacated: None,
            tells_counts: false,
            count: Count::default(),
            scheduled: None,
        }
    }

    /// What it is made of.
    pub(super) fn parts(&self) -> HeadcountParts {
        HeadcountParts {
            sequence: self.sequence,
            members: self.members.iter().cloned().collect(),
            counted: self.counted,
            left: self.left.iter().map(|(user, due)| (user.clone(), *due)).collect(),
            vacated: self.vacated,
            tells_counts: self.tells_counts,
            told: self.count.told,
            told_at: self.count.told_at,
            count_due: self.count.due,
        }
    }

    /// Made again; what is due is to be scheduled.
    pub(super) fn from_parts(parts: HeadcountParts) -> Self {
        let mut users: HashMap<Box<str>, u64> = HashMap::new();
        for member in &parts.members {
            *users.entry(member.user.clone()).or_default() += 1;
        }
        Self {
            sequence: parts.sequence,
            members: parts.members.into_iter().collect(),
            users,
            counted: parts.counted,
            left: parts.left.into_iter().collect(),
            vacated: parts.vacated,
            tells_counts: parts.tells_counts,
            count: Count { told: parts.told, told_at: parts.told_at, due: parts.count_due },
            scheduled: None,
        }
    }

    pub(crate) fn join(
        &mut self,
        join: Join,
        now: Instant,
        settle: Duration,
        told: &mut Vec<Told>,
    ) -> Result<Attendance, JoinError> {
        let (before, due) = (self.sums().subscriptions, now + settle);
        self.tells_counts = join.tells_counts.unwrap_or(self.tells_counts);
        let joined = match join.member {
            Some(member) => self.add(Arc::new(member), join.users_max, due, told),
            None => {
                self.counted += 1;
                Ok(())
            }
        };
        let attendance = self.changed(before, now, due, told);
        joined.map(|()| attendance)
    }

    /// `None`: a subscription that is not listed.
    pub(crate) fn leave(
        &mut self,
        connection: Option<&str>,
        now: Instant,
        settle: Duration,
        told: &mut Vec<Told>,
    ) -> Attendance {
        let (before, due) = (self.sums().subscriptions, now + settle);
        match connection {
            Some(connection) => self.remove(connection, due, told),
            None => self.counted = self.counted.saturating_sub(1),
        }
        self.changed(before, now, due, told)
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
        Sums { subscriptions: self.counted + self.members.len() as u64, users: self.users.len() as u64 }
    }

    pub(crate) fn attendance(&self) -> Attendance {
        Attendance { sequence: self.sequence, sums: self.sums() }
    }

    pub(crate) fn roll(&self) -> Roll {
        Roll {
            sequence: self.sequence,
            subscriptions: self.sums().subscriptions,
            members: self.members.iter().cloned().collect(),
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
        self.sums().subscriptions == 0 && self.scheduled.is_none()
    }

    /// A connection that is there already is replaced: it leaves and joins, unless it is the same.
    fn add(
        &mut self,
        member: Arc<Member>,
        users_max: Option<u32>,
        due: Instant,
        told: &mut Vec<Told>,
    ) -> Result<(), JoinError> {
        if self.members.get(&member.connection) == Some(&member) {
            return Ok(());
        }
        self.remove(&member.connection, due, told);
        let is_new = !self.users.contains_key(&member.user);
        if let Some(users_max) = users_max
            && is_new
            && self.users.len() as u64 >= u64::from(users_max)
        {
            return Err(JoinError::Full { users_max });
        }
        let connections = self.users.entry(member.user.clone()).or_default();
        *connections += 1;
        let connections = *connections;
        self.members.insert(Arc::clone(&member));
        self.event(PresenceKind::Joined { member: Arc::clone(&member), connections }, told);
        if is_new && self.left.remove(&member.user).is_none() {
            told.push(Told::Transition(Transition::UserJoined { user: member.user.clone() }));
        }
        Ok(())
    }

    fn remove(&mut self, connection: &str, due: Instant, told: &mut Vec<Told>) {
        let Some(member) = self.members.remove(connection) else { return };
        let user = member.user.clone();
        let left = self.users.get_mut(&user).map_or(0, |connections| {
            *connections -= 1;
            *connections
        });
        self.event(PresenceKind::Left { member, connections: left }, told);
        if left == 0 {
            self.users.remove(&user);
            self.left.insert(user, due);
        }
    }

    /// What follows for the channel as a whole.
    fn changed(&mut self, before: u64, now: Instant, due: Instant, told: &mut Vec<Told>) -> Attendance {
        let sums = self.sums();
        if before == 0 && sums.subscriptions > 0 && self.vacated.take().is_none() {
            told.insert(0, Told::Transition(Transition::Occupied));
        }
        if before > 0 && sums.subscriptions == 0 {
            self.vacated = Some(due);
        }
        self.tell_count(now, told);
        self.attendance()
    }

    fn tell_count(&mut self, now: Instant, told: &mut Vec<Told>) {
        let subscriptions = self.sums().subscriptions;
        if !self.tells_counts || self.count.told == subscriptions {
            // A number that came back to what was told needs no more telling.
            self.count.due = None;
            return;
        }
        let due = self.count.told_at.map(|at| at + presence::counts_interval(subscriptions));
        if due.is_some_and(|due| now < due) {
            self.count.due = due;
            return;
        }
        self.count = Count { told: subscriptions, told_at: Some(now), due: None };
        self.event(PresenceKind::Count { subscriptions }, told);
        told.push(Told::Transition(Transition::Count { subscriptions }));
    }

    fn event(&mut self, kind: PresenceKind, told: &mut Vec<Told>) {
        self.sequence += 1;
        told.push(Told::Event { sequence: self.sequence, kind });
    }
}
