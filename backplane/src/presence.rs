//! Who is in a channel on all nodes: what a node says of its connections, what it is told, and the rules that all
//! backplanes follow. `docs/adr/0017-one-presence.md` says why.

use std::{borrow::Borrow, cmp::Ordering, collections::BTreeSet, sync::Arc, time::Duration};

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

/// Members of a channel in order of their connections, whose names it finds in the members: 20 bytes for each.
#[derive(Clone, Default, Debug)]
pub struct Members(BTreeSet<ByConnection>);

#[derive(Clone, Debug)]
struct ByConnection(Arc<Member>);

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

impl Members {
    /// The one of the same connection gives way.
    pub fn insert(&mut self, member: Arc<Member>) -> Option<Arc<Member>> {
        self.0.replace(ByConnection(member)).map(|before| before.0)
    }

    pub fn remove(&mut self, connection: &str) -> Option<Arc<Member>> {
        self.0.take(connection).map(|removed| removed.0)
    }

    #[must_use]
    pub fn get(&self, connection: &str) -> Option<&Arc<Member>> {
        self.0.get(connection).map(|found| &found.0)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.0.iter().map(|it| &it.0)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Arc<Member>> for Members {
    fn from_iter<I: IntoIterator<Item = Arc<Member>>>(members: I) -> Self {
        Self(members.into_iter().map(ByConnection).collect())
    }
}

impl Borrow<str> for ByConnection {
    fn borrow(&self) -> &str {
        &self.0.connection
    }
}

impl Ord for ByConnection {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.connection.cmp(&other.0.connection)
    }
}

impl PartialOrd for ByConnection {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByConnection {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for ByConnection {}

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
    Joined {
        member: Arc<Member>,
        connections: u64,
    },
    /// Its info is not told by every backplane; who has the list has that.
    Left {
        member: Arc<Member>,
        connections: u64,
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
pub struct PresenceChannel {
    pub channel: Channel,
    pub sums: Sums,
}

/// How long after one number of subscriptions the next one is told.
pub(crate) fn counts_interval(subscriptions: u64) -> Duration {
    if subscriptions <= COUNTS_SMALL_MAX { COUNTS_SMALL_INTERVAL } else { COUNTS_INTERVAL }
}
