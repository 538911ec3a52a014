//! The shards as the node sees them: each takes orders, whatever serves its connections.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tidegate_backplane::Target;

use super::{
    instruction::{Instruction, Round},
    outgoing::Outgoing,
};

/// What the node asks of a shard.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    /// Fan this out.
    Deliver(Arc<Outgoing>),
    /// Close the connections of a user, or one.
    Disconnect { target: Target, reason: Box<str> },
    /// Carry this out, and say what came of it where somebody waits.
    Instruct { target: Target, instruction: Arc<Instruction>, round: Option<Arc<Round>> },
    /// Ask connections of one node to come back, those that have these other ends.
    AskBack { node: Box<str>, peers: Arc<[SocketAddr]> },
    /// The list of apps is another one: those of an app that is gone or disabled must leave.
    AppsChanged,
    /// Say what these connections are.
    LookUp(Arc<Inquiry>),
    /// Close all connections, evenly over the time.
    Drain { over: Duration },
}

/// Connections that are asked for by name, and what the shards that have them say.
#[derive(Debug)]
pub(crate) struct Inquiry {
    pub(crate) names: Vec<Box<str>>,
    pub(crate) found: Mutex<Vec<ConnectionState>>,
}

/// One connection, for a person who asked for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConnectionState {
    /// As presence names it.
    pub(crate) name: String,
    pub(crate) node: String,
    /// `opening`, `open` or `leaving`.
    pub(crate) phase: String,
    /// What it speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) protocol: Option<String>,
    /// Who, as the token says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) app: Option<String>,
    /// The other end of its socket: the client, or a proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) peer: Option<String>,
    pub(crate) connected_s: u64,
    /// Since something was last heard of it.
    pub(crate) quiet_s: u64,
    /// A ping waits for its pong.
    pub(crate) is_pinged: bool,
    /// Of its subscriptions, the first [`CHANNELS_TOLD`].
    pub(crate) channels: Vec<String>,
    pub(crate) subscriptions: u64,
    /// What waits for its socket.
    pub(crate) queued_bytes: u64,
    /// The last that it was told and that is no publication, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) told: Vec<Notice>,
}

/// Something that a connection was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Notice {
    /// The last time.
    pub(crate) ago_s: u64,
    pub(crate) times: u32,
    pub(crate) text: String,
}

/// Channels that are told of a connection.
pub(crate) const CHANNELS_TOLD: usize = 20;

/// A shard that takes orders. They are carried out in the order in which they came; giving one does not block.
pub(crate) trait ShardPort: Send + Sync {
    fn order(&self, order: Order);

    /// Ends the shard, and with it all connections that it has left.
    fn stop(&self);
}

/// All shards of the node, by their number.
pub(crate) type Shards = Arc<[Box<dyn ShardPort>]>;
