//! The shards as the node sees them: each takes orders, whatever serves its connections.

use std::{sync::Arc, time::Duration};

use tidegate_backplane::DisconnectTarget;

use super::outgoing::Outgoing;

/// What the node asks of a shard.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    /// Fan this out.
    Deliver(Arc<Outgoing>),
    /// Close the connections of a user, or one.
    Disconnect { target: DisconnectTarget, reason: Box<str> },
    /// The list of apps is another one: those of an app that is gone or disabled must leave.
    AppsChanged,
    /// Close all connections, evenly over the time.
    Drain { over: Duration },
}

/// A shard that takes orders. They are carried out in the order in which they came; giving one does not block.
pub(crate) trait ShardPort: Send + Sync {
    fn order(&self, order: Order);

    /// Ends the shard, and with it all connections that it has left.
    fn stop(&self);
}

/// All shards of the node, by their number.
pub(crate) type Shards = Arc<[Box<dyn ShardPort>]>;
