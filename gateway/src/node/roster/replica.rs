//! The list of one channel as a state machine: what is read and what is told go in, lists and changes come out. Pure.
//!
//! ```text
//! unread ─ asked ─► reading ─ read ─► current ─ lost, a number skipped, no room, overdue ─► reading
//! ```
//!
//! While it reads, changes wait; after that, those with higher numbers are applied. What a second reading finds changed
//! is told as changes, so whoever was given a list once is always told everything that happened to it.

use std::{collections::HashMap, sync::Arc};

use tidegate_backplane::{BackplaneError, Members, PresenceEvent, PresenceKind, Roll};

use super::list::List;

/// Changes that may wait for a reading, which takes a round trip: at 10,000 a second, 100 ms of them. If there are more,
/// the channel is read again.
const KEPT_MAX: usize = 1024;

/// From so many members on, those who ask are gathered before a list is made that has changed since: in a channel that
/// 10,000 users join at once, a list for each of them would be 50 million members copied and written.
const GATHERED_FROM: usize = 64;

/// What a replica hands out.
pub(super) trait Outlet<A> {
    /// To all who were given a list.
    fn deliver(&mut self, event: Arc<PresenceEvent>);
    /// To one who asked.
    fn answer(&mut self, asker: A, list: Result<Arc<List>, BackplaneError>);
}

#[derive(Debug)]
pub(super) struct Replica<A> {
    sequence: u64,
    members: Members,
    /// As it is given to those who ask, until it changes.
    list: Option<Arc<List>>,
    phase: Phase,
    waiting: Vec<Waiting<A>>,
    /// Somebody was given a list, and is told what changes.
    is_told: bool,
    /// Somebody will call [`gathered`](Replica::gathered).
    is_gathering: bool,
}

#[derive(Debug)]
struct Waiting<A> {
    at_least: u64,
    asker: A,
}

#[derive(Debug)]
enum Phase {
    Unread,
    Reading(Reading),
    Current,
}

#[derive(Debug, Default)]
struct Reading {
    kept: Vec<Arc<PresenceEvent>>,
    /// What came while this was read cannot all be applied to it.
    is_insufficient: bool,
    /// So many had asked when it was begun: what is read has their own entries.
    asked: usize,
}

/// Why a channel is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Nobody had asked before.
    First,
    /// A number was skipped.
    Hole,
    /// The backplane says that changes may be missing.
    Lost,
    /// There was no room for a change on its way to the shards.
    Full,
    /// A change that somebody waits for does not come.
    Overdue,
}

/// What follows a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Current,
    Again,
    /// After a pause.
    Retry,
}

impl<A> Replica<A> {
    pub(super) fn new() -> Self {
        Self {
            sequence: 0,
            members: Members::default(),
            list: None,
            phase: Phase::Unread,
            waiting: Vec::new(),
            is_told: false,
            is_gathering: false,
        }
    }

    /// Of another process. Unless it was current, it is read before anything more is told of it.
    pub(super) fn of(sequence: u64, members: Members, is_current: bool) -> Self {
        let phase = if is_current { Phase::Current } else { Phase::Unread };
        Self { sequence, members, phase, is_told: true, ..Self::new() }
    }

    /// What those know who were given a list, and whether that is all.
    pub(super) fn parts(&self) -> (u64, &Members, bool) {
        (self.sequence, &self.members, matches!(self.phase, Phase::Current))
    }

    /// Whether somebody was given a list.
    pub(super) fn is_told(&self) -> bool {
        self.is_told
    }

    /// Goes on after [`of`](Self::of). `Some`: a reading is to be begun.
    pub(super) fn resume(&mut self) -> Option<Cause> {
        matches!(self.phase, Phase::Unread).then(|| self.begin(Cause::Lost))
    }

    /// Whether nobody is there, after all changes that were told.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Who this connection is in the channel, after all changes that were told.
    pub(super) fn user_of(&self, connection: &str) -> Option<Box<str>> {
        self.members.get(connection).map(|member| member.user.clone())
    }

    /// The list that was given last is made again for the next who asks.
    pub(super) fn forget_list(&mut self) {
        self.list = None;
    }

    /// Somebody wants the list with everything up to a number. `Some`: a reading is to be begun.
    pub(super) fn ask(&mut self, at_least: u64, asker: A, out: &mut impl Outlet<A>) -> Option<Cause> {
        let is_there = matches!(self.phase, Phase::Current) && self.sequence >= at_least;
        if is_there && (self.list.is_some() || !self.gathers()) {
            let list = self.list();
            out.answer(asker, Ok(list));
            return None;
        }
        self.waiting.push(Waiting { at_least, asker });
        matches!(self.phase, Phase::Unread).then(|| self.begin(Cause::First))
    }

    /// A change was told. `Some`: a reading is to be begun.
    pub(super) fn event(
        &mut self,
        event: Arc<PresenceEvent>,
        has_room: bool,
        out: &mut impl Outlet<A>,
    ) -> Option<Cause> {
        match &mut self.phase {
            Phase::Unread => None,
            Phase::Reading(reading) => {
                reading.keep(event, has_room);
                None
            }
            Phase::Current if !has_room => Some(self.begin(Cause::Full)),
            Phase::Current => {
                if self.apply(&event, out) == Applied::Ahead {
                    let cause = self.begin(Cause::Hole);
                    if let Phase::Reading(reading) = &mut self.phase {
                        reading.keep(event, true);
                    }
                    return Some(cause);
                }
                if !self.gathers() {
                    self.answer_ready(out);
                }
                None
            }
        }
    }

    /// Changes may be missing. `Some`: a reading is to be begun.
    pub(super) fn lost(&mut self) -> Option<Cause> {
        match &mut self.phase {
            Phase::Unread => None,
            Phase::Reading(reading) => {
                reading.is_insufficient = true;
                None
            }
            Phase::Current => Some(self.begin(Cause::Lost)),
        }
    }

    /// Somebody may have waited for too long. `Some`: a reading is to be begun.
    pub(super) fn overdue(&mut self) -> Option<Cause> {
        let waits = matches!(self.phase, Phase::Current) && self.is_waited_for();
        waits.then(|| self.begin(Cause::Overdue))
    }

    /// The channel is being asked for now.
    pub(super) fn begin_read(&mut self) {
        let asked = self.waiting.len();
        if let Phase::Reading(reading) = &mut self.phase {
            reading.is_insufficient = false;
            reading.asked = asked;
        }
    }

    pub(super) fn read(&mut self, read: Result<Roll, BackplaneError>, out: &mut impl Outlet<A>) -> Next {
        let Phase::Reading(reading) = &mut self.phase else { return Next::Current };
        let (asked, is_insufficient) = (reading.asked, reading.is_insufficient);
        let roll = match read {
            Ok(roll) => roll,
            Err(error) => {
                for Waiting { asker, .. } in self.waiting.drain(..asked) {
                    out.answer(asker, Err(error.clone()));
                }
                return Next::Retry;
            }
        };
        let kept = std::mem::take(&mut reading.kept);
        self.reset(roll, out);
        for Waiting { asker, .. } in self.waiting.drain(..asked).collect::<Vec<_>>() {
            let list = self.list();
            out.answer(asker, Ok(list));
        }
        let mut kept = kept.into_iter();
        for event in kept.by_ref() {
            if self.apply(&event, out) == Applied::Ahead {
                let rest = std::iter::once(event).chain(kept).collect();
                self.phase = Phase::Reading(Reading { kept: rest, ..Reading::default() });
                return Next::Again;
            }
        }
        if is_insufficient {
            self.phase = Phase::Reading(Reading::default());
            return Next::Again;
        }
        self.phase = Phase::Current;
        self.answer_ready(out);
        Next::Current
    }

    /// Nobody will be told any more: those who wait are answered an error.
    pub(super) fn end(&mut self, error: &BackplaneError, out: &mut impl Outlet<A>) {
        self.phase = Phase::Unread;
        for Waiting { asker, .. } in self.waiting.drain(..) {
            out.answer(asker, Err(error.clone()));
        }
    }

    /// Whether somebody waits for a change that is not there yet.
    pub(super) fn is_waited_for(&self) -> bool {
        self.waiting.iter().any(|waiting| waiting.at_least > self.sequence)
    }

    /// Whether somebody could be answered and waits for others; `true` once, until [`gathered`](Self::gathered).
    pub(super) fn begins_to_gather(&mut self) -> bool {
        let is_ready = |waiting: &Waiting<A>| waiting.at_least <= self.sequence;
        let begins =
            !self.is_gathering && matches!(self.phase, Phase::Current) && self.waiting.iter().any(is_ready);
        self.is_gathering |= begins;
        begins
    }

    /// Others have had time to come: all get the same list.
    pub(super) fn gathered(&mut self, out: &mut impl Outlet<A>) {
        self.is_gathering = false;
        if matches!(self.phase, Phase::Current) {
            self.answer_ready(out);
        }
    }

    fn gathers(&self) -> bool {
        self.members.len() >= GATHERED_FROM
    }

    fn begin(&mut self, cause: Cause) -> Cause {
        self.phase = Phase::Reading(Reading::default());
        cause
    }

    fn apply(&mut self, event: &Arc<PresenceEvent>, out: &mut impl Outlet<A>) -> Applied {
        if event.sequence <= self.sequence {
            return Applied::Old;
        }
        if event.sequence > self.sequence + 1 {
            return Applied::Ahead;
        }
        self.sequence = event.sequence;
        self.list = None;
        let mut told = Arc::clone(event);
        match &event.kind {
            PresenceKind::Joined { member, .. } => {
                self.members.insert(Arc::clone(member));
            }
            PresenceKind::Left { member, connections } => {
                // As it was listed: the change itself may lack its info.
                if let Some(member) = self.members.remove(&member.connection) {
                    let kind = PresenceKind::Left { member, connections: *connections };
                    told = Arc::new(PresenceEvent { sequence: event.sequence, kind });
                }
            }
            PresenceKind::Count { .. } => {}
        }
        self.tell(told, out);
        Applied::Next
    }

    /// Takes what was read, and tells what it changes.
    fn reset(&mut self, roll: Roll, out: &mut impl Outlet<A>) {
        let sequence = roll.sequence;
        let before = std::mem::replace(&mut self.members, roll.members.into_iter().collect());
        self.sequence = sequence;
        self.list = None;
        if !self.is_told {
            return;
        }
        for kind in changes(&before, &self.members) {
            self.tell(Arc::new(PresenceEvent { sequence, kind }), out);
        }
    }

    fn tell(&self, event: Arc<PresenceEvent>, out: &mut impl Outlet<A>) {
        if self.is_told {
            out.deliver(event);
        }
    }

    fn answer_ready(&mut self, out: &mut impl Outlet<A>) {
        let sequence = self.sequence;
        if self.waiting.iter().all(|waiting| waiting.at_least > sequence) {
            return;
        }
        let list = self.list();
        let is_ready = |waiting: &mut Waiting<A>| waiting.at_least <= sequence;
        for Waiting { asker, .. } in self.waiting.extract_if(.., is_ready) {
            out.answer(asker, Ok(Arc::clone(&list)));
        }
    }

    fn list(&mut self) -> Arc<List> {
        self.is_told = true;
        let make = || {
            let members = self.members.iter().cloned().collect();
            // The number of subscriptions is not replicated.
            Arc::new(List::new(Roll { sequence: self.sequence, subscriptions: 0, members }))
        };
        Arc::clone(self.list.get_or_insert_with(make))
    }
}

/// What leads from one list to another, with the connections that each user has after each step.
fn changes(before: &Members, after: &Members) -> Vec<PresenceKind> {
    let mut connections: HashMap<&str, u64> = HashMap::new();
    for member in before.iter() {
        *connections.entry(&member.user).or_default() += 1;
    }
    let mut changes = Vec::new();
    for member in before.iter() {
        if after.get(&member.connection) != Some(member) {
            let left = connections.entry(&member.user).or_default();
            *left -= 1;
            changes.push(PresenceKind::Left { member: Arc::clone(member), connections: *left });
        }
    }
    for member in after.iter() {
        if before.get(&member.connection) != Some(member) {
            let joined = connections.entry(&member.user).or_default();
            *joined += 1;
            changes.push(PresenceKind::Joined { member: Arc::clone(member), connections: *joined });
        }
    }
    changes
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Applied {
    Next,
    Old,
    Ahead,
}

impl Reading {
    fn keep(&mut self, event: Arc<PresenceEvent>, has_room: bool) {
        if !has_room || self.kept.len() == KEPT_MAX {
            self.kept.clear();
            self.is_insufficient = true;
        } else if !self.is_insufficient {
            self.kept.push(event);
        }
    }
}

#[cfg(test)]
mod tests;
