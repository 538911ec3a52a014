//! What this node has in channels: what its copy has, what waits to be written, what it has to settle. Pure: what is due
//! is decided by the time it is given.

mod moving;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use tokio::sync::oneshot;

use crate::{
    Attendance, Channel, Join, JoinError, Member,
    redis::leases::{BATCH, LEFT_MAX, Seats, WAITING_MAX, Written},
};

/// What this node has in Redis, or should have.
#[derive(Debug, Default)]
pub(super) struct Own {
    channels: HashMap<Channel, OwnChannel>,
    waiting: u64,
    /// Channels with something to settle, and when. Each is in it once.
    due: BTreeSet<(Instant, Channel)>,
}

#[derive(Debug, Default)]
struct OwnChannel {
    /// Subscriptions that are not listed.
    counted: u64,
    /// By their connections.
    members: BTreeMap<Box<str>, OwnMember>,
    /// Members that have left.
    leaving: u64,
    tells_counts: Option<bool>,
    /// That the channel is occupied was told, or another node told it.
    is_told: bool,
    waiting: Vec<Change>,
    written: Written,
    is_stale: bool,
    /// A batch is under way.
    is_busy: bool,
    /// When there is something to settle; it is listed in [`Own::due`].
    settle_at: Option<Instant>,
    settles: bool,
}

/// A member of this node. One that has left stays until the server knows that.
#[derive(Debug)]
struct OwnMember {
    member: Arc<Member>,
    has_left: bool,
    /// It was sent, or somebody was answered that it is kept: the channel's limit is not asked any more.
    is_kept: bool,
    is_told: bool,
}

/// What the copy already has and Redis is to get.
#[derive(Debug)]
pub(super) struct Change {
    /// `None`: a subscription that is not listed.
    connection: Option<Box<str>>,
    /// Of one that joins.
    users_max: Option<u32>,
    joins: bool,
    pub(super) done: oneshot::Sender<Result<Attendance, JoinError>>,
}

/// Part of a channel's changes on their way.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) changes: Vec<Change>,
    pub(super) mode: Mode,
    /// All that the copy has, not only what is in the batch.
    pub(super) subscriptions: u64,
    pub(super) tells_counts: Option<bool>,
    pub(super) is_told: bool,
    /// In order of their connections, but for that of what is counted.
    pub(super) entries: Vec<Entry>,
    pub(super) is_listed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Change,
    Whole,
    Settle,
}

/// What the node has under one connection, as the copy has it.
#[derive(Debug)]
pub(super) struct Entry {
    /// `None`: what is counted.
    pub(super) connection: Option<Box<str>>,
    /// 0: it is to be removed.
    pub(super) subscriptions: u64,
    pub(super) member: Option<Arc<Member>>,
    pub(super) users_max: Option<u32>,
    pub(super) is_told: bool,
}

/// What became of a batch.
#[derive(Debug)]
pub(super) enum End<'a> {
    Written {
        refused: &'a [Box<str>],
        settle_at: Option<Instant>,
        /// The instance is over, or the server has lost what was written before: all is written again.
        is_outdated: bool,
        seats: Seats,
    },
    Failed,
}

/// What a change found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Nothing to do: who leaves is not there.
    Nothing,
    /// Too many changes wait: this one is only in the copy, which a sweep writes.
    NoRoom,
    /// A batch has to be begun.
    Idle,
    Busy,
}

impl Own {
    pub(super) fn join(
        &mut self,
        channel: &Channel,
        join: Join,
        done: oneshot::Sender<Result<Attendance, JoinError>>,
    ) -> Taken {
        let Join { member, users_max, tells_counts } = join;
        let has_room = self.waiting < WAITING_MAX;
        let state = self.channels.entry(channel.clone()).or_default();
        state.written.enter();
        state.tells_counts = tells_counts.or(state.tells_counts);
        let connection = state.join(member);
        if !has_room {
            state.is_stale = true;
            state.note_kept(connection.as_deref());
            return Taken::NoRoom;
        }
        self.waiting += 1;
        state.wait(Change { connection, users_max, joins: true, done })
    }

    /// Leaving always has room: it is asked for once for each that joined.
    pub(super) fn leave(
        &mut self,
        channel: &Channel,
        connection: Option<&str>,
        done: oneshot::Sender<Result<Attendance, JoinError>>,
    ) -> Taken {
        let Some(state) = self.channels.get_mut(channel) else { return Taken::Nothing };
        if !state.leave(connection) {
            return Taken::Nothing;
        }
        self.waiting += 1;
        state.wait(Change { connection: connection.map(Into::into), users_max: None, joins: false, done })
    }

    /// Has `done` told when what waits now was sent. False: nothing does.
    pub(super) fn wait_for(
        &mut self,
        channel: &Channel,
        done: oneshot::Sender<Result<Attendance, JoinError>>,
    ) -> bool {
        let busy = self.channels.get_mut(channel).filter(|state| state.is_busy);
        let Some(state) = busy.filter(|_| self.waiting < WAITING_MAX) else { return false };
        self.waiting += 1;
        // Of nobody: it changes nothing.
        state.waiting.push(Change { connection: Some("".into()), users_max: None, joins: false, done });
        true
    }

    /// What is to be sent next; `None` ends the run.
    pub(super) fn next_batch(&mut self, channel: &Channel, instance: &str, seats: Seats) -> Option<Batch> {
        let state = self.channels.get_mut(channel)?;
        let mode = match (state.is_stale, state.waiting.is_empty()) {
            (true, _) => Mode::Whole,
            (false, false) => Mode::Change,
            (false, true) if state.settles => Mode::Settle,
            (false, true) => {
                state.is_busy = false;
                self.forget_if_blank(channel);
                return None;
            }
        };
        let changes: Vec<Change> = state.waiting.drain(..state.waiting.len().min(BATCH)).collect();
        self.waiting -= changes.len() as u64;
        if mode == Mode::Whole {
            state.is_stale = false;
        }
        if mode == Mode::Settle {
            state.settles = false;
        }
        Some(Batch {
            mode,
            subscriptions: state.subscriptions(),
            tells_counts: state.tells_counts,
            is_told: state.is_told,
            entries: state.entries(&changes, mode),
            is_listed: state.written.is_listed(instance, seats),
            changes,
        })
    }

    /// Takes the end of a batch in. True: nothing of this node is left in the channel, so it is to be taken off the
    /// instance's list.
    pub(super) fn finish(
        &mut self,
        channel: &Channel,
        batch: &Batch,
        instance: &Arc<str>,
        end: End<'_>,
    ) -> bool {
        let Some(state) = self.channels.get_mut(channel) else { return false };
        let (refused, settle_at, is_outdated) = match end {
            End::Written { refused, settle_at, is_outdated, seats } => {
                match batch.mode {
                    Mode::Whole => state.written.note_whole(seats),
                    Mode::Change | Mode::Settle => state.written.note_part(seats),
                }
                // Stale again while the batch was under way: the instance may be another one.
                if state.is_stale {
                    state.written.note_unlisted();
                } else {
                    state.written.note_listed(instance, seats);
                }
                (refused, settle_at, is_outdated)
            }
            End::Failed => {
                state.written.note_unlisted();
                state.is_stale |= batch.mode != Mode::Settle;
                state.settles |= batch.mode == Mode::Settle;
                batch.entries.iter().for_each(|entry| state.note_kept(entry.connection.as_deref()));
                return false;
            }
        };
        state.note_written(batch, refused);
        if is_outdated {
            state.is_stale = true;
            state.written.note_unlisted();
        }
        if let Some(at) = settle_at {
            self.settle_at(channel, at);
        }
        let Some(state) = self.channels.get_mut(channel) else { return false };
        let is_left = state.is_left();
        if is_left {
            state.written.note_unlisted();
        }
        is_left
    }

    /// Whether the run goes on: after a batch that failed only for what waits behind it.
    pub(super) fn goes_on(&mut self, channel: &Channel, is_written: bool) -> bool {
        let Some(state) = self.channels.get_mut(channel) else { return false };
        state.is_busy = !state.waiting.is_empty() || (is_written && (state.is_stale || state.settles));
        let goes_on = state.is_busy;
        if !goes_on {
            self.forget_if_blank(channel);
        }
        goes_on
    }

    /// Makes this node, in whose set the channel was put, the one that settles what it owes at some time. One that
    /// owes nothing is taken out of the set by the next sweep.
    pub(super) fn adopt(&mut self, channel: &Channel, at: Option<Instant>) {
        let state = self.channels.entry(channel.clone()).or_default();
        // It was listed for this instance; that is said once more when something is written.
        match at {
            Some(at) => self.settle_at(channel, at),
            None => state.settles |= state.is_left(),
        }
    }

    /// Claims the channels that are to be written whole.
    pub(super) fn claim_stale(&mut self) -> Vec<Channel> {
        let is_stale = |state: &OwnChannel| (state.is_stale || state.settles) && !state.is_busy;
        let stale = self.channels.iter_mut().filter(|(_, state)| is_stale(state));
        let claim = |(channel, state): (&Channel, &mut OwnChannel)| {
            state.is_busy = true;
            channel.clone()
        };
        stale.map(claim).collect()
    }

    /// Claims the channels that have something to settle.
    pub(super) fn claim_due(&mut self, now: Instant) -> Vec<Channel> {
        let mut claimed = Vec::new();
        while self.due.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, channel)) = self.due.pop_first() else { break };
            let Some(state) = self.channels.get_mut(&channel) else { continue };
            state.settle_at = None;
            state.settles = true;
            if !std::mem::replace(&mut state.is_busy, true) {
                claimed.push(channel);
            }
        }
        claimed
    }

    /// Claims a channel as if something of it were due.
    #[cfg(test)]
    pub(super) fn claim_settling(&mut self, channel: &Channel) -> bool {
        let state = self.channels.entry(channel.clone()).or_default();
        state.settles = true;
        !std::mem::replace(&mut state.is_busy, true)
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Everything is written again. What was told counts as told only where the server lost what it knew: else others
    /// may have told the ends.
    pub(super) fn begin_again(&mut self, has_lost_data: bool) {
        for state in self.channels.values_mut() {
            state.written.note_unlisted();
            state.is_stale = true;
            if !has_lost_data {
                state.is_told = false;
                state.members.values_mut().for_each(|own| own.is_told = false);
            }
        }
    }

    /// Marks what servers that are there may have lost.
    pub(super) fn doubt(&mut self, now: Instant, seats: impl Fn(&Channel) -> Seats) {
        self.channels.retain(|_, state| state.is_busy || !state.written.is_forgotten(now));
        for (channel, state) in &mut self.channels {
            state.is_stale |= state.written.is_doubtful(seats(channel));
        }
    }

    /// The servers have this node in the channel. If it is not, it left, and that was lost.
    pub(super) fn doubt_listed(&mut self, channel: Channel, now: Instant) {
        let state = self.channels.entry(channel).or_default();
        if state.is_left() {
            state.written.leave(now);
            state.is_stale = true;
        }
    }

    /// Subscriptions of this node in all channels.
    pub(super) fn subscriptions(&self) -> u64 {
        self.channels.values().map(OwnChannel::subscriptions).sum()
    }

    fn settle_at(&mut self, channel: &Channel, at: Instant) {
        let Some(state) = self.channels.get_mut(channel) else { return };
        // What is due later than what is listed is listed by the answer to that.
        if state.settle_at.is_none() {
            state.settle_at = Some(at);
            self.due.insert((at, channel.clone()));
        }
    }

    /// A channel that this node has left is remembered for a while.
    fn forget_if_blank(&mut self, channel: &Channel) {
        let is_crowded = self.channels.len() > LEFT_MAX;
        let Some(state) = self.channels.get_mut(channel) else { return };
        if state.is_left() {
            state.written.leave(Instant::now());
            if is_crowded {
                self.channels.retain(|_, state| !state.is_left() || !state.written.is_left());
            }
        }
    }
}

impl Entry {
    /// One that is to be removed.
    pub(super) fn gone(connection: Box<str>) -> Self {
        let connection = Some(connection);
        Self { connection, subscriptions: 0, member: None, users_max: None, is_told: false }
    }
}

impl OwnChannel {
    fn join(&mut self, member: Option<Member>) -> Option<Box<str>> {
        let Some(member) = member else {
            self.counted += 1;
            return None;
        };
        let connection = member.connection.clone();
        let own = OwnMember { member: Arc::new(member), has_left: false, is_kept: false, is_told: false };
        let before = self.members.insert(connection.clone(), own);
        self.leaving -= u64::from(before.is_some_and(|before| before.has_left));
        Some(connection)
    }

    fn leave(&mut self, connection: Option<&str>) -> bool {
        let Some(connection) = connection else {
            let is_there = self.counted > 0;
            self.counted = self.counted.saturating_sub(1);
            return is_there;
        };
        let own = self.members.get_mut(connection);
        let leaves = own.is_some_and(|own| !std::mem::replace(&mut own.has_left, true));
        self.leaving += u64::from(leaves);
        leaves
    }

    fn wait(&mut self, change: Change) -> Taken {
        self.waiting.push(change);
        if std::mem::replace(&mut self.is_busy, true) { Taken::Busy } else { Taken::Idle }
    }

    fn subscriptions(&self) -> u64 {
        self.counted + self.members.len() as u64 - self.leaving
    }

    fn entries(&self, changes: &[Change], mode: Mode) -> Vec<Entry> {
        let mut changed: BTreeMap<&str, Option<u32>> = BTreeMap::new();
        for change in changes {
            if let Some(connection) = change.connection.as_deref() {
                changed.insert(connection, change.users_max);
            }
        }
        let entry = |connection: &str, own: &OwnMember| Entry {
            connection: Some(connection.into()),
            subscriptions: u64::from(!own.has_left),
            member: Some(Arc::clone(&own.member)),
            users_max: changed.get(connection).copied().flatten().filter(|_| !own.is_kept),
            is_told: own.is_told,
        };
        let counts = mode == Mode::Whole || changes.iter().any(|change| change.connection.is_none());
        let counted = Entry {
            connection: None,
            subscriptions: self.counted,
            member: None,
            users_max: None,
            is_told: false,
        };
        let listed: Vec<Entry> = match mode {
            Mode::Whole => self.members.iter().map(|(connection, own)| entry(connection, own)).collect(),
            Mode::Settle => Vec::new(),
            Mode::Change => {
                let own = |connection: &&str| Some(entry(connection, self.members.get(*connection)?));
                changed.keys().filter_map(own).collect()
            }
        };
        listed.into_iter().chain(counts.then_some(counted)).collect()
    }

    fn note_written(&mut self, batch: &Batch, refused: &[Box<str>]) {
        for written in &batch.entries {
            let Some((connection, member)) = written.connection.as_ref().zip(written.member.as_ref()) else {
                continue;
            };
            let Some(own) = self.members.get_mut(connection) else { continue };
            // It may have joined once more meanwhile.
            if !Arc::ptr_eq(&own.member, member) {
                continue;
            }
            let is_refused = refused.contains(connection);
            own.is_kept |= !is_refused;
            own.is_told = !is_refused && written.subscriptions > 0;
            if is_refused || written.subscriptions == 0 {
                self.leaving -= u64::from(own.has_left);
                self.members.remove(connection);
            }
        }
        if batch.mode != Mode::Settle {
            self.is_told = batch.subscriptions > refused.len() as u64;
        }
    }

    fn note_kept(&mut self, connection: Option<&str>) {
        if let Some(own) = connection.and_then(|connection| self.members.get_mut(connection)) {
            own.is_kept = true;
        }
    }

    /// Whether nobody of this node is in the channel, nor wants to be, and nothing is owed to it.
    fn is_left(&self) -> bool {
        let is_empty = self.counted == 0 && self.members.is_empty() && self.waiting.is_empty();
        is_empty && !self.is_stale && !self.settles && self.settle_at.is_none()
    }
}

impl Change {
    /// The answer to this one of a batch that was written.
    pub(super) fn answer(
        &self,
        attendance: Attendance,
        refused: &[Box<str>],
    ) -> Result<Attendance, JoinError> {
        let is_refused = self.joins && self.connection.as_ref().is_some_and(|own| refused.contains(own));
        match is_refused {
            true => Err(JoinError::Full { users_max: self.users_max.unwrap_or_default() }),
            false => Ok(attendance),
        }
    }
}

#[cfg(test)]
mod tests;
