//! The shards as the node sees them: each takes orders, whatever serves its connections.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tidegate_backplane::Target;

use super::{
    connection_state::ConnectionState,
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

/// A shard that takes orders. They are carried out in the order in which they came; giving one does not block.
pub(crate) trait ShardPort: Send + Sync {
    fn order(&self, order: Order);

    /// Ends the shard, and with it all connections that it has left.
    fn stop(&self);
}

/// All shards of the node, by their number.
pub(crate) type Shards = Arc<[Box<dyn ShardPort>]>;
