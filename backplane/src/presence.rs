//! Who is in a channel on all nodes: what a node says of its connections, what it is told, and the rules that all
//! backplanes follow. `docs/adr/0017-one-presence.md` says why.

use std::{sync::Arc, time::Duration};

use crate::{BackplaneError, Channel};

/// An end is told as a [`Transition`] when it is still so after this time. Pusher waits up to 3 s; a client that
/// reloads its page, or moves to another node, is back in less.
pub const PRESENCE_SETTLE: Duration = Duration::from_secs(3);

/// Above so many subscriptions their number is told less often. Pusher's number.
pub const COUNTS_SMALL_MAX: u64 = 100;

/// Up to [`COUNTS_SMALL_MAX`], a number is told at most so often, the first at once and the last one always. Told at each
/// change, a join of 60 bytes would be a message of 120 to each of 100 subscribers.
pub const COUNTS_SMALL_INTERVAL: Duration = Duration::from_secs(1);

/// The same above [`COUNTS_SMALL_MAX`]. Pusher's interval.
pub const COUNTS_INTERVAL: Duration = Duration::from_secs(5);

/// A connection of a user in a channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Unique in the cluster, and never given again: `NODE.CONNECTION`.
    pub connection: Box<str>,
    pub user: Box<str>,
    /// JSON, or none.
    pub info: Option<Box<str>>,
}

/// One subscription of this node in a channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Join {
    /// Whose it is. `None`: it is counted, and nobody is listed.
    pub member: Option<Member>,
    /// A user who is not in the channel yet is refused when so many are.
    pub users_max: Option<u32>,
    /// Whether changes of the number of subscriptions are told from now on: [`PresenceKind::Count`],
    /// [`Transition::Count`]. `None`: as before.
    pub tells_counts: Option<bool>,
}

impl Join {
    pub fn listed(member: Member) -> Self {
        Self { member: Some(member), users_max: None, tells_counts: None }
    }

    pub fn counted() -> Self {
        Self { member: None, users_max: None, tells_counts: None }
    }
}

/// How many are in a channel, on all nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sums {
    pub subscriptions: u64,
    /// Different users.
    pub users: u64,
}

/// The channel after what was asked for took effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attendance {
    /// Number of the newest event of the channel: the one of this change, or a later one.
    pub sequence: u64,
    pub sums: Sums,
}

/// Why a connection is not in a channel, or may not be yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// It is not there, and has nothing to leave.
    #[error("the channel has {users_max} users, more are not allowed")]
    Full { users_max: u32 },
    /// Other nodes may not see it yet: it is kept, and written when that is possible, until it leaves.
    #[error(transparent)]
    Backplane(#[from] BackplaneError),
}

/// All who are in a channel.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Roll {
    /// Number of the newest event that is in it.
    pub sequence: u64,
    pub subscriptions: u64,
    /// In order of their connections.
    pub members: Vec<Arc<Member>>,
}

/// A change of a channel, told to the nodes that are subscribed to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PresenceEvent {
    /// One more than that of the event before. A channel that was empty goes on somewhere above.
    pub sequence: u64,
    pub kind: PresenceKind,
}

/// `connections`: how many the user has in the channel now, on all nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PresenceKind {
    Joined { member: Arc<Member>, connections: u64 },
    Left { connection: Box<str>, user: Box<str>, connections: u64 },
    Count { subscriptions: u64 },
}

/// A change of a channel, told to one node of the cluster. Ends are told when they have lasted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Transition {
    /// The first subscription on any node.
    Occupied,
    /// The last one is gone.
    Vacated,
    UserJoined {
        user: Box<str>,
    },
    UserLeft {
        user: Box<str>,
    },
    Count {
        subscriptions: u64,
    },
}

/// A channel that somebody is in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PresenceChannel {
    pub channel: Channel,
    pub sums: Sums,
}

/// How long after one number of subscriptions the next one is told.
pub(crate) fn counts_interval(subscriptions: u64) -> Duration {
    if subscriptions <= COUNTS_SMALL_MAX { COUNTS_SMALL_INTERVAL } else { COUNTS_INTERVAL }
}
