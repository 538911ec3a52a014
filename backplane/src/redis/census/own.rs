//! This node's part in the census: what its copy has, what waits to be written, what it has to settle. Pure: what is
//! due is decided by the time it is given.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use tokio::sync::oneshot;

use crate::{
    Attend, AttendError, Attended, Channel, User,
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
    subscriptions: u64,
    users: BTreeMap<Box<str>, OwnUser>,
    tells_counts: bool,
    /// That the channel is occupied was told, or another node told it.
    is_told: bool,
    waiting: Vec<Change>,
    /// The instance under which the server has this part, or may have it.
    written_as: Option<Arc<str>>,
    written: Written,
    is_stale: bool,
    /// A batch is under way.
    is_busy: bool,
    /// When there is something to settle; it is listed in [`Own::due`].
    settle_at: Option<Instant>,
    settles: bool,
}

/// A user of this node. One without subscriptions stays until the server knows that.
#[derive(Debug, Default)]
struct OwnUser {
    subscriptions: u64,
    info: Option<Box<str>>,
    /// It was sent, or somebody was answered that it is kept: the channel's limit is not asked any more.
    is_kept: bool,
    is_told: bool,
}

/// What the copy already has and Redis is to get.
#[derive(Debug)]
pub(super) struct Change {
    user: Option<Box<str>>,
    /// Of one who enters.
    users_max: Option<u32>,
    enters: bool,
    pub(super) done: oneshot::Sender<Result<Attended, AttendError>>,
}

/// Part of a channel's changes on their way.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) changes: Vec<Change>,
    pub(super) mode: Mode,
    pub(super) subscriptions: u64,
    pub(super) tells_counts: bool,
    pub(super) is_told: bool,
    pub(super) users: Vec<BatchUser>,
    /// The instance that this one goes on for.
    pub(super) former: Option<Arc<str>>,
    pub(super) is_listed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Change,
    Whole,
    Settle,
}

/// A user as the copy has it.
#[derive(Debug)]
pub(super) struct BatchUser {
    pub(super) id: Box<str>,
    pub(super) subscriptions: u64,
    /// So many of them entered with this batch.
    entering: u64,
    pub(super) users_max: Option<u32>,
    pub(super) is_told: bool,
    pub(super) info: Option<Box<str>>,
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
    pub(super) fn take(
        &mut self,
        channel: &Channel,
        attend: Attend,
        done: oneshot::Sender<Result<Attended, AttendError>>,
    ) -> Taken {
        let has_room = self.waiting < WAITING_MAX;
        let (enters, user, users_max) = match attend {
            Attend::Enter { user, users_max, tells_counts } => {
                let state = self.channels.entry(channel.clone()).or_default();
                state.written.enter();
                state.tells_counts = tells_counts;
                (true, state.enter(user), users_max)
            }
            Attend::Leave { user } => {
                let state = self.channels.get_mut(channel);
                if !state.is_some_and(|state| state.leave(user.as_deref())) {
                    return Taken::Nothing;
                }
                (false, user, None)
            }
        };
        let Some(state) = self.channels.get_mut(channel) else { return Taken::Nothing };
        // Leaving always has room: it is asked for once for each that entered.
        if enters && !has_room {
            state.is_stale = true;
            state.note_kept(user.as_deref());
            return Taken::NoRoom;
        }
        self.waiting += 1;
        state.waiting.push(Change { user, users_max, enters, done });
        if std::mem::replace(&mut state.is_busy, true) { Taken::Busy } else { Taken::Idle }
    }

    /// What is to be sent next; `None` ends the run.
    pub(super) fn next_batch(&mut self, channel: &Channel, instance: &str, seats: Seats) -> Option<Batch> {
        let state = self.channels.get_mut(channel)?;
        let moves = state.written_as.as_deref().is_some_and(|before| before != instance);
        let mode = match (state.is_stale || moves, state.waiting.is_empty()) {
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
        let users = state.batch_users(&changes, mode);
        Some(Batch {
            mode,
            subscriptions: state.subscriptions,
            tells_counts: state.tells_counts,
            is_told: state.is_told,
            users,
            former: state.written_as.clone().filter(|_| moves),
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
        let is_written = matches!(end, End::Written { .. });
        // A batch that failed may not have removed the former instance's part: the next one goes on for it too.
        if is_written || batch.former.is_none() {
            state.written_as = Some(Arc::clone(instance));
        }
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
                batch.users.iter().for_each(|user| state.note_kept(Some(&user.id)));
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
        let is_left = state.is_left() && !is_outdated;
        if is_left {
            state.written.note_unlisted();
            state.written_as = None;
        }
        is_left
    }

    /// Whether the run goes on after a batch that failed: only for what waits behind it.
    pub(super) fn goes_on(&mut self, channel: &Channel) -> bool {
        let Some(state) = self.channels.get_mut(channel) else { return false };
        state.is_busy = !state.waiting.is_empty();
        state.is_busy
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
                state.users.values_mut().for_each(|user| user.is_told = false);
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
        if state.is_left() && state.written_as.is_none() {
            state.written.leave(now);
            state.is_stale = true;
        }
    }

    /// Subscriptions of this node in all channels.
    pub(super) fn subscriptions(&self) -> u64 {
        self.channels.values().map(|state| state.subscriptions).sum()
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
        if state.is_left() && state.written_as.is_none() {
            state.written.leave(Instant::now());
            if is_crowded {
                self.channels.retain(|_, state| !state.is_left() || !state.written.is_left());
            }
        }
    }
}

impl BatchUser {
    /// One who is there no longer.
    pub(super) fn gone(id: Box<str>) -> Self {
        Self { id, subscriptions: 0, entering: 0, users_max: None, is_told: false, info: None }
    }
}

impl OwnChannel {
    fn enter(&mut self, user: Option<User>) -> Option<Box<str>> {
        self.subscriptions += 1;
        let User { id, info } = user?;
        let own = self.users.entry(id.clone()).or_default();
        if own.subscriptions == 0 {
            own.info = info;
        }
        own.subscriptions += 1;
        Some(id)
    }

    fn leave(&mut self, user: Option<&str>) -> bool {
        if self.subscriptions == 0 {
            return false;
        }
        if let Some(id) = user {
            match self.users.get_mut(id) {
                Some(own) if own.subscriptions > 0 => own.subscriptions -= 1,
                _ => return false,
            }
        }
        self.subscriptions -= 1;
        true
    }

    fn batch_users(&self, changes: &[Change], mode: Mode) -> Vec<BatchUser> {
        let mut entering: BTreeMap<&str, (u64, Option<u32>)> = BTreeMap::new();
        for change in changes {
            if let Some(user) = change.user.as_deref() {
                let (number, users_max) = entering.entry(user).or_default();
                *number += u64::from(change.enters);
                *users_max = change.users_max.or(*users_max);
            }
        }
        let of_copy = |id: &str, own: &OwnUser| {
            let (number, users_max) = entering.get(id).copied().unwrap_or_default();
            BatchUser {
                id: id.into(),
                subscriptions: own.subscriptions,
                entering: number,
                users_max: users_max.filter(|_| !own.is_kept),
                is_told: own.is_told,
                info: own.info.clone(),
            }
        };
        match mode {
            Mode::Whole => self.users.iter().map(|(id, own)| of_copy(id, own)).collect(),
            Mode::Settle => Vec::new(),
            Mode::Change => {
                let own = |id: &&str| self.users.get(*id).map(|own| of_copy(id, own));
                entering.keys().filter_map(own).collect()
            }
        }
    }

    fn note_written(&mut self, batch: &Batch, refused: &[Box<str>]) {
        for written in &batch.users {
            let Some(own) = self.users.get_mut(&written.id) else { continue };
            if refused.contains(&written.id) {
                own.subscriptions = own.subscriptions.saturating_sub(written.entering);
                self.subscriptions = self.subscriptions.saturating_sub(written.entering);
            } else {
                own.is_kept = true;
                own.is_told = written.subscriptions > 0;
            }
            if own.subscriptions == 0 && (refused.contains(&written.id) || written.subscriptions == 0) {
                self.users.remove(&written.id);
            }
        }
        if batch.mode != Mode::Settle {
            let is_in = batch.users.iter().filter(|user| refused.contains(&user.id));
            self.is_told = batch.subscriptions > is_in.map(|user| user.subscriptions).sum::<u64>();
        }
    }

    fn note_kept(&mut self, user: Option<&str>) {
        if let Some(own) = user.and_then(|user| self.users.get_mut(user)) {
            own.is_kept = true;
        }
    }

    /// Whether nobody of this node is in the channel, nor wants to be, and nothing is owed to it.
    fn is_left(&self) -> bool {
        let is_empty = self.subscriptions == 0 && self.users.is_empty() && self.waiting.is_empty();
        is_empty && !self.is_stale && !self.settles && self.settle_at.is_none()
    }
}

impl Change {
    /// The answer to this one of a batch that was written.
    pub(super) fn answer(&self, attended: Attended, refused: &[Box<str>]) -> Result<Attended, AttendError> {
        let is_refused = self.enters && self.user.as_ref().is_some_and(|user| refused.contains(user));
        match self.users_max {
            Some(users_max) if is_refused => Err(AttendError::Full { users_max }),
            // Without a limit of its own, it was refused for the one of another that entered with it.
            None if is_refused => Err(AttendError::Full { users_max: 0 }),
            _ => Ok(attended),
        }
    }
}

#[cfg(test)]
mod tests;
