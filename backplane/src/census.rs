//! Who is in a channel on all nodes, by user: what a node says of itself, what it is told, and the rules that all
//! backplanes follow. `docs/adr/0012-pusher.md` says why.

use std::time::Duration;

use crate::{BackplaneError, Channel};

/// An end is told as a [`Transition`] when it is still so after this time. Pusher waits up to 3 s; a client that
/// reloads its page, or moves to another node, is back in less.
pub const CENSUS_SETTLE: Duration = Duration::from_secs(3);

/// Above so many subscriptions their number is told less often. Pusher's number.
pub const COUNTS_SMALL_MAX: u64 = 100;

/// Up to [`COUNTS_SMALL_MAX`], a number is told at most so often, the first at once and the last one always. Told at each
/// change, a join of 60 bytes would be a message of 120 to each of 100 subscribers.
pub const COUNTS_SMALL_INTERVAL: Duration = Duration::from_secs(1);

/// The same above [`COUNTS_SMALL_MAX`]. Pusher's interval.
pub const COUNTS_INTERVAL: Duration = Duration::from_secs(5);

/// One subscription more or less of this node in a channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Attend {
    Enter {
        /// The user whose subscription it is, where the channel has users.
        user: Option<User>,
        /// A user who is not in the channel yet is refused when so many are.
        users_max: Option<u32>,
        /// Whether changes of the number of subscriptions are told: [`CensusKind::Count`], [`Transition::Count`].
        tells_counts: bool,
    },
    Leave {
        /// The same as when it entered.
        user: Option<Box<str>>,
    },
}

/// A user in a channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct User {
    pub id: Box<str>,
    /// JSON, or none. A user's is that of the first of its subscriptions.
    pub info: Option<Box<str>>,
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
pub struct Attended {
    /// Number of the newest event of the channel: the one of this change, or a later one.
    pub sequence: u64,
    pub sums: Sums,
}

/// Why a node's part in a channel was not changed, or may not have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttendError {
    /// Nothing has changed, and there is nothing to leave.
    #[error("the channel has {users_max} users, more are not allowed")]
    Full { users_max: u32 },
    /// Other nodes may not see it yet: it is kept, and written when that is possible, until it is left.
    #[error(transparent)]
    Backplane(#[from] BackplaneError),
}

/// All who are in a channel.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Roll {
    /// Number of the newest event that is in it.
    pub sequence: u64,
    pub subscriptions: u64,
    /// In order of their ids.
    pub users: Vec<User>,
}

/// A change of a channel, told to the nodes that are subscribed to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CensusEvent {
    /// One more than that of the event before. A channel that was empty goes on somewhere above.
    pub sequence: u64,
    pub kind: CensusKind,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CensusKind {
    /// The first subscription of a user on any node.
    Joined(User),
    /// The last one is gone.
    Left {
        user: Box<str>,
    },
    Count {
        subscriptions: u64,
    },
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
pub struct CensusChannel {
    pub channel: Channel,
    pub sums: Sums,
}

/// How long after one number of subscriptions the next one is told.
pub(crate) fn counts_interval(subscriptions: u64) -> Duration {
    if subscriptions <= COUNTS_SMALL_MAX { COUNTS_SMALL_INTERVAL } else { COUNTS_INTERVAL }
}
