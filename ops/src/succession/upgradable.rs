//! What a kind of process says of itself, so that it can be upgraded.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use tidegate_reactor::{ConnectionId, Connections, Mail, Mailbox};
use tidegate_wire::fields::Malformed;

use super::{Talk, TalkError};

/// A kind of process that can be upgraded: what it hands on, and how.
pub trait Upgradable: Sized + Send + Sync + 'static {
    /// State of a connection.
    type Connection: Send + 'static;
    /// What its shards are asked.
    type Command: From<Work<Self>> + Send + 'static;
    /// What a shard has beside its connections.
    type Shard: 'static;

    /// Why it is not upgraded as it is, in a sentence.
    fn refusal(&self) -> Option<&'static str>;

    /// Why it is not upgraded now, in a sentence.
    fn not_now(&self) -> Option<Box<str>> {
        None
    }

    /// Its name, and this life of it.
    fn who(&self) -> (Box<str>, u64);

    /// What takes a while ends, and is not begun again, while clients are served. [`resume`](Self::resume) begins it again.
    fn prepare(&self) {}

    /// From now on nothing is begun, and what was begun ends.
    ///
    /// # Errors
    /// A shard does not answer, or what was begun does not end.
    fn suspend(&self, shards: &[ShardMailbox<Self>]) -> Result<(), UpgradeError>;

    /// This process goes on; its shards read again by themselves.
    fn resume(&self, shards: &[ShardMailbox<Self>]);

    /// Nothing is on its way through a shard. `waits`: nor has a connection anything under way that is worth a moment.
    fn is_idle(shard: &mut Self::Shard, connections: &mut Connections<Self::Connection>, waits: bool)
    -> bool;

    /// Writes down what the connections of a shard are.
    fn write(shard: &mut Self::Shard, connections: &mut Connections<Self::Connection>) -> Written;

    /// Lets go of what another process has taken, by its places in what was written. The answer: how many connections stay.
    fn let_go(
        shard: &mut Self::Shard,
        connections: &mut Connections<Self::Connection>,
        written: &Written,
        is_taken: &dyn Fn(usize) -> bool,
    ) -> usize;

    /// What goes along beside the connections.
    fn to_bytes(&self) -> Vec<u8>;

    /// Sockets that belong to that.
    fn sockets(&self) -> Result<Vec<TcpStream>, UpgradeError> {
        Ok(Vec::new())
    }

    /// Whether what was written is so still.
    fn stands(&self) -> Result<(), UpgradeError> {
        Ok(())
    }

    /// Everything is another process's from now on.
    fn given(&self);

    /// What that process is to hear afterwards is said to it.
    fn forward(&self, _talk: &Talk) {}
}

/// How a shard is reached.
pub type ShardMailbox<U> = Mailbox<Mail<<U as Upgradable>::Connection, <U as Upgradable>::Command>>;

/// What a shard does once.
pub type Work<U> =
    Box<dyn FnOnce(&mut <U as Upgradable>::Shard, &mut Connections<<U as Upgradable>::Connection>) + Send>;

/// What a shard has written down.
#[derive(Debug, Default)]
pub struct Written {
    pub newest_generation: u32,
    pub records: Vec<Record>,
    /// A connection that is not among them has something under way, and could perhaps go along in a moment.
    pub has_under_way: bool,
}

/// What goes along together, or stays.
#[derive(Debug)]
pub struct Record {
    /// Whose sockets go with it, in this order.
    pub connections: Vec<ConnectionId>,
    pub bytes: Vec<u8>,
}

/// What was begun ends within milliseconds, unless it waits for another machine; then its connection stays.
pub(super) const SETTLE_MAX: Duration = Duration::from_millis(500);

/// Why this process goes on.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    #[error("{0}")]
    NotHere(&'static str),
    /// What the process says of itself.
    #[error("{0}")]
    Process(Box<str>),
    #[error("an upgrade is under way already; wait for its end")]
    UnderWay,
    #[error("this process drains")]
    Draining,
    #[error(
        "cannot start {program}: {source}; the path is that of the program that runs, see that one is there"
    )]
    Start { program: String, source: std::io::Error },
    #[error("{program} ended before it could serve ({status}); its own messages say why")]
    Ended { program: String, status: String },
    #[error("the new process cannot take over: {0}")]
    Refused(Box<str>),
    #[error("the new process cannot take over: {0}")]
    Talk(#[from] TalkError),
    #[error("the new process said something else than was to be said")]
    Unexpected,
    #[error("a shard did not answer")]
    Shard,
    #[error("the new process was given the connections too slowly; try again when the machine is less busy")]
    Slow,
    #[error("what was begun did not end within {SETTLE_MAX:?}; try again when less is under way")]
    Busy,
    #[error(
        "its configuration has `{key}` = {wanted}, and this process listens on {has}: a change of that needs a restart"
    )]
    Address { key: &'static str, has: SocketAddr, wanted: SocketAddr },
    #[error(
        "its configuration has {has} shards, and this process runs {had}: a change of that needs a restart"
    )]
    Shards { had: u32, has: u32 },
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the system refuses: {0}")]
    State(#[from] std::io::Error),
    /// There is no way back.
    #[error("the new process ended after it had taken over, and its clients with it: {0}")]
    Lost(TalkError),
}
