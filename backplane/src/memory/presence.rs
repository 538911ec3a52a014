//! Presence in one process: who is in each channel, what ended and may come back, what is told when. Apart from the
//! channel table, so that reading the 10,000 members of a channel delays none of its publications.
//!
//! Locks are taken in one order: a part of this map, then what the caller's `tell` takes (the channel table), or the
//! queue of what is due.

use std::{
    collections::{BTreeSet, HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::{
    headcount::{Headcount, HeadcountParts, Told},
    lock::locked,
};
use crate::{Attendance, Channel, Join, JoinError, PresenceChannel, Roll};

/// Parts of the map. Joining is rarer than publishing, so fewer than the channel table has.
const PARTS: usize = 16;

type Part = HashMap<Channel, Box<Headcount>>;

#[derive(Debug)]
pub(super) struct Presence {
    hasher: RandomState,
    parts: Box<[Mutex<Part>]>,
    /// Channels that have to be looked at, and when. Each is in it once at most.
    due: Mutex<BTreeSet<(Instant, Channel)>>,
    settle: Duration,
    /// The highest number that a channel which is no longer here ended with: others begin above it.
    ended_at: AtomicU64,
}

impl Presence {
    pub(super) fn new(settle: Duration) -> Self {
        let parts = (0..PARTS).map(|_| Mutex::default()).collect();
        let due = Mutex::default();
        Self { hasher: RandomState::new(), parts, due, settle, ended_at: AtomicU64::new(0) }
    }

    /// `tell` is called under the channel's lock.
    pub(super) fn join(
        &self,
        channel: &Channel,
        join: Join,
        now: Instant,
        tell: impl FnOnce(Vec<Told>),
    ) -> Result<Attendance, JoinError> {
        self.with_part(channel, |part| {
            let begin = || Box::new(Headcount::new(self.ended_at.load(Relaxed)));
            let headcount = part.entry(channel.clone()).or_insert_with(begin);
            let mut told = Vec::new();
            let joined = headcount.join(join, now, self.settle, &mut told);
            tell(told);
            self.after(part, channel);
            joined
        })
    }

    /// As [`join`](Self::join).
    pub(super) fn leave(
        &self,
        channel: &Channel,
        connection: Option<&str>,
        now: Instant,
        tell: impl FnOnce(Vec<Told>),
    ) -> Attendance {
        self.with_part(channel, |part| {
            let Some(headcount) = part.get_mut(channel) else { return Attendance::default() };
            let mut told = Vec::new();
            let left = headcount.leave(connection, now, self.settle, &mut told);
            tell(told);
            self.after(part, channel);
            left
        })
    }

    pub(super) fn roll(&self, channel: &Channel) -> Roll {
        self.with_part(channel, |part| part.get(channel).map_or_else(Roll::default, |held| held.roll()))
    }

    pub(super) fn attendance(&self, channel: &Channel) -> Attendance {
        let of = |part: &mut Part| part.get(channel).map(|held| held.attendance());
        self.with_part(channel, |part| of(part).unwrap_or_default())
    }

    pub(super) fn channels(&self, app: Option<&str>, prefix: &str) -> Vec<PresenceChannel> {
        let mut found = Vec::new();
        for part in &self.parts {
            locked(part, |part| {
                let wanted = part.iter().filter(|(channel, held)| {
                    held.sums().subscriptions > 0
                        && channel.app() == app
                        && channel.name().starts_with(prefix)
                });
                found.extend(
                    wanted.map(|(channel, held)| PresenceChannel {
                        channel: channel.clone(),
                        sums: held.sums(),
                    }),
                );
            });
        }
        found.sort_unstable_by(|a: &PresenceChannel, b| a.channel.cmp(&b.channel));
        found
    }

    /// Tells what has lasted until now.
    pub(super) fn settle(&self, now: Instant, mut tell: impl FnMut(&Channel, Vec<Told>)) {
        while let Some(channel) = locked(&self.due, |due| take_due(due, now)) {
            self.with_part(&channel, |part| {
                let Some(headcount) = part.get_mut(&channel) else { return };
                let mut told = Vec::new();
                headcount.settle(now, &mut told);
                tell(&channel, told);
                self.after(part, &channel);
            });
        }
    }

    /// The number above which channels begin, and each channel.
    pub(super) fn parts(&self) -> (u64, Vec<(Channel, HeadcountParts)>) {
        let mut all = Vec::new();
        for part in &self.parts {
            locked(part, |part| {
                all.extend(part.iter().map(|(channel, held)| (channel.clone(), held.parts())))
            });
        }
        (self.ended_at.load(Relaxed), all)
    }

    pub(super) fn take_in(&self, ended_at: u64, channels: impl Iterator<Item = (Channel, Headcount)>) {
        self.ended_at.fetch_max(ended_at, Relaxed);
        for (channel, headcount) in channels {
            self.with_part(&channel, |part| {
                part.insert(channel.clone(), Box::new(headcount));
                self.after(part, &channel);
            });
        }
    }

    /// Gives back the memory of a burst.
    pub(super) fn shrink(&self) {
        for part in &self.parts {
            locked(part, |part| {
                if part.capacity() > 4 * part.len().max(16) {
                    part.shrink_to(2 * part.len());
                }
            });
        }
    }

    /// Channels, subscriptions and users.
    pub(super) fn totals(&self) -> (u64, u64, u64) {
        let mut totals = (0, 0, 0);
        for part in &self.parts {
            locked(part, |part| {
                for held in part.values() {
                    let sums = held.sums();
                    totals = (totals.0 + 1, totals.1 + sums.subscriptions, totals.2 + sums.users);
                }
            });
        }
        totals
    }

    /// Has the channel looked at when something of it is due, and forgets it when nothing of it is left.
    fn after(&self, part: &mut Part, channel: &Channel) {
        let Some(headcount) = part.get_mut(channel) else { return };
        if let Some(at) = headcount.schedule() {
            locked(&self.due, |due| due.insert((at, channel.clone())));
        }
        if headcount.is_blank() {
            self.ended_at.fetch_max(headcount.attendance().sequence, Relaxed);
            part.remove(channel);
        }
    }

    fn with_part<R>(&self, channel: &Channel, f: impl FnOnce(&mut Part) -> R) -> R {
        let hash = self.hasher.hash_one(channel.as_str());
        locked(&self.parts[hash as usize % PARTS], f)
    }
}

fn take_due(due: &mut BTreeSet<(Instant, Channel)>, now: Instant) -> Option<Channel> {
    let (at, _) = due.first()?;
    if *at > now {
        return None;
    }
    due.pop_first().map(|(_, channel)| channel)
}
