//! Who follows: members that were sent history, and may be handed some of it again.

use std::{collections::HashMap, time::Duration};

use tidegate_backplane::Position;
use tidegate_reactor::Tick;

use super::content::Content;
use crate::subscription::Seen;

/// What each member of a following lane has, by its slot.
#[derive(Debug, Default)]
pub(super) struct Followers {
    members: HashMap<u32, Follower>,
    /// A look finds somebody to settle although the channel's position has not changed.
    is_due: bool,
    /// Where the channel stood at the last look.
    looked_at: Option<Position>,
    /// When the one joined who has followed longest, or later.
    oldest: Tick,
}

#[derive(Debug)]
struct Follower {
    seen: Seen,
    since: Tick,
}

/// How long somebody follows whose position never comes by, as in a channel whose publications have none. What was on
/// its way when history was read is here within milliseconds; after this time it does not come at all.
pub(super) const FOLLOW_MAX: Duration = Duration::from_secs(30);

impl Followers {
    /// Of a member that joined the lane while so many deliveries wait in it.
    pub(super) fn join(
        &mut self,
        slot: u32,
        mut seen: Seen,
        waiting: usize,
        delivered: Option<Position>,
        now: Tick,
    ) {
        seen.set_skip(waiting);
        self.oldest = if self.members.is_empty() { now } else { self.oldest.min(now) };
        self.is_due |= is_abreast(&seen, delivered);
        self.members.insert(slot, Follower { seen, since: now });
    }

    /// What a member has.
    pub(super) fn seen_of(&self, slot: u32) -> Option<Seen> {
        self.members.get(&slot).map(|follower| follower.seen)
    }

    pub(super) fn leave(&mut self, slot: u32) {
        self.members.remove(&slot);
        if self.members.capacity() > 64 && self.members.len() < self.members.capacity() / 4 {
            self.members.shrink_to(self.members.len() * 2);
        }
    }

    /// Whether what its lane brings is news to a member. It counts as told from now on.
    pub(super) fn is_news(&mut self, slot: u32, content: &Content) -> bool {
        let arrival = content.arrival();
        self.members.get_mut(&slot).is_none_or(|follower| follower.seen.follow(arrival))
    }

    /// Whether a look at all members may find somebody who follows no longer. Without this, each publication of a
    /// channel that has no positions would be followed by a look at everyone.
    pub(super) fn wants_look(&self, delivered: Option<Position>, now: Tick) -> bool {
        self.is_due || delivered != self.looked_at || now.since(self.oldest) >= FOLLOW_MAX
    }

    /// Whether a member follows no longer. To be called for all of them, between `begin_look` and `end_look`.
    pub(super) fn settles(&mut self, slot: u32, delivered: Option<Position>, now: Tick) -> bool {
        let Some(follower) = self.members.get_mut(&slot) else { return true };
        if follower.seen.is_settled(delivered) {
            return true;
        }
        if now.since(follower.since) < FOLLOW_MAX {
            self.is_due |= is_abreast(&follower.seen, delivered);
            self.oldest = self.oldest.min(follower.since);
            return false;
        }
        // What it was sent is still to come by, so it does.
        let is_owed = follower.seen.position().zip(delivered).is_some_and(|(through, delivered)| {
            through.epoch == delivered.epoch && through.offset > delivered.offset
        });
        if is_owed {
            follower.since = now;
        }
        !is_owed
    }

    pub(super) fn begin_look(&mut self, delivered: Option<Position>, now: Tick) {
        (self.is_due, self.looked_at, self.oldest) = (false, delivered, now);
    }
}

/// Whether its position is no reason to follow any longer: what waited in the lane when it joined may be.
fn is_abreast(seen: &Seen, delivered: Option<Position>) -> bool {
    let mut unskipped = *seen;
    unskipped.set_skip(0);
    unskipped.is_settled(delivered)
}
