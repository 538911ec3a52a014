//! Carries publications between the nodes of a cluster, keeps history and presence, and knows the nodes.
//!
//! The way of the data: [`Backplane::publish`] assigns a position, appends to history, and hands the publication
//! to the [`Sink`] of every node that is subscribed to the channel. [`MemoryBackplane`] does so inside one
//! process; other implementations put a server between. All of them pass the suite in `conformance` (a module
//! behind the feature of that name).
//!
//! - `types`: the domain's words, from [`Channel`] to [`NodeRecord`]. `presence`: who is in a channel.
//! - `memory`: [`MemoryBackplane`].
//! - `redis`: many nodes over Redis or Valkey.
//! - `gate`: whether anything may be changed, while another process takes this one's place.
//! - `clock`: [`Clock`], so that tests move the time instead of waiting for it.
//! - `conformance`: the suite, and a [`Sink`] that records what it is told.

mod clock;
#[cfg(feature = "conformance")]
pub mod conformance;
mod fields;
mod gate;
mod memory;
mod presence;
mod redis;
mod types;

use std::sync::Arc;

pub use clock::{Clock, ManualClock, SystemClock};
use futures_util::future::BoxFuture;
pub use gate::OnLeave;
pub use memory::{MemoryBackplane, MemoryCounters, MemoryOptions, SWEEPS_PER_ROUND};
pub use presence::{
    Attendance, COUNTS_INTERVAL, COUNTS_SMALL_INTERVAL, COUNTS_SMALL_MAX, Join, JoinError, Member, Members,
    PRESENCE_SETTLE, PresenceChannel, PresenceEvent, PresenceKind, Roll, Sums, Transition,
};
pub use redis::{
    GapsTold, HandOnError, Host, HostedSocket, HostedWork, IDEMPOTENCY_WINDOW, LEASE, LinkCounters,
    OperationCounters, Prefix, PrefixError, REFUSALS, REPEATS, REPLACEMENTS, RedisBackplane, RedisCounters,
    RedisFiles, RedisNodes, RedisOptions, RedisStartError, RedisUrl, RedisUrlError, Repairs, SentinelLogin,
    SubscriptionCounters, TakeInError, Undecodable,
};
pub use types::*;

/// The contract between a node and what carries its publications.
///
/// - **Order.** [`Sink::publication`] is called in the order of the channel's offsets, one call at a time for a
///   channel. Without history, in the order in which the publishes were accepted.
/// - **Atomicity.** Checking the idempotency key, assigning the position, appending to history and handing to
///   the sinks is one step: no reader sees a position in history that a subscriber will not be handed after it,
///   and a publication is in history before [`Backplane::publish`] answers.
/// - **At most once.** A publication is taken by a sink at most once. Whatever may have been missed is a
///   [`Gap`], handed over in its place in the order; silence means that nothing was missed.
/// - **Epochs.** While a channel is subscribed, a [`Gap`] stands between publications of two epochs: who is handed
///   another epoch without one was not subscribed in between.
/// - **Interest.** When the future of [`Backplane::subscribe`] is ready, every publication accepted afterwards
///   reaches the sink. After [`Backplane::unsubscribe`], some may still arrive for a short while.
pub trait Backplane: Send + Sync + 'static {
    /// Accepts a publication, or says why not.
    fn publish(&self, publication: NewPublication) -> BoxFuture<'_, Result<Published, BackplaneError>>;

    /// Accepts publications to one channel in their order, and answers for each. One that is not accepted does not keep
    /// those after it from being so.
    fn publish_flight(
        &self,
        publications: Vec<NewPublication>,
    ) -> BoxFuture<'_, Vec<Result<Published, BackplaneError>>> {
        Box::pin(async move {
            let mut published = Vec::with_capacity(publications.len());
            for publication in publications {
                published.push(self.publish(publication).await);
            }
            published
        })
    }

    /// Begins to hand the channel's publications to the sink. Generations of one channel only grow.
    fn subscribe(&self, channel: &Channel, generation: u64)
    -> BoxFuture<'static, Result<(), BackplaneError>>;

    /// Ends what [`subscribe`](Self::subscribe) began, unless a newer generation was subscribed since.
    fn unsubscribe(&self, channel: &Channel, generation: u64);

    /// Reads history.
    fn history(
        &self,
        channel: &Channel,
        query: HistoryQuery,
    ) -> BoxFuture<'_, Result<History, BackplaneError>>;

    /// Lets go of all publications that are kept of a channel. Its positions go on; who comes back to one before its newest
    /// cannot be told what it missed.
    fn remove_history(&self, channel: &Channel) -> BoxFuture<'_, Result<(), BackplaneError>>;

    /// This node has one subscription more in the channel: that of a connection, which replaces what the connection
    /// has there, or one that is only counted. [`join`](Self::join) and [`leave`](Self::leave) of a channel take effect
    /// in the order of the calls, whether or not the futures are polled.
    ///
    /// What the node has joined is kept here, and leased on the server: it is written whole after the server has lost
    /// it, and ends with the lease of a node that died. Leaving is right after every answer, also after a refusal.
    ///
    /// Users, sums and changes follow from the connections. Changes are numbered, told to the sinks of the nodes that
    /// are subscribed ([`Sink::presence`]) and, as transitions, to one sink of the cluster ([`Sink::transition`]).
    fn join(&self, channel: &Channel, join: Join) -> BoxFuture<'static, Result<Attendance, JoinError>>;

    /// The subscription of a connection, or one that is only counted, is gone; one that is not there is no error.
    fn leave(
        &self,
        channel: &Channel,
        connection: Option<&str>,
    ) -> BoxFuture<'static, Result<Attendance, BackplaneError>>;

    /// Who is in the channel on all nodes, after all that this node was asked for before.
    fn roll(&self, channel: &Channel) -> BoxFuture<'static, Result<Roll, BackplaneError>>;

    /// How many are in the channel on all nodes, and the number of its newest event.
    fn attendance(&self, channel: &Channel) -> BoxFuture<'static, Result<Attendance, BackplaneError>>;

    /// The channels of an app (`None`: the default one) that somebody is in and whose name begins with `prefix`, in
    /// order of their names.
    fn presence_channels(
        &self,
        app: Option<&str>,
        prefix: &str,
    ) -> BoxFuture<'static, Result<Vec<PresenceChannel>, BackplaneError>>;

    /// What is to be told of a connection if this node ends without taking it back ([`Sink::will`]); the one before gives way.
    /// Ready when it is written; after an error it is kept here, and written when that is possible.
    fn keep_will(
        &self,
        _connection: &str,
        _will: Arc<str>,
    ) -> BoxFuture<'static, Result<(), BackplaneError>> {
        // Where there is one node, nobody is left to tell it.
        Box::pin(std::future::ready(Ok(())))
    }

    /// There is nothing more to be told of the connection.
    fn take_will_back(&self, _connection: &str) {}

    /// Says or renews what this node is; a record that is not renewed vanishes with its lease.
    fn announce(&self, node: NodeRecord) -> BoxFuture<'_, Result<(), BackplaneError>>;

    /// Takes this node's record away.
    fn retire(&self, name: &str) -> BoxFuture<'_, Result<(), BackplaneError>>;

    /// The nodes of the cluster, in order of their names.
    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeRecord>, BackplaneError>>;

    /// Keeps what this node says to those who watch, at most [`REPORT_BYTES_MAX`], for [`REPORT_LEASE`].
    fn report(&self, node: &str, report: String) -> BoxFuture<'_, Result<(), BackplaneError>>;

    /// What these nodes said last to those who watch; `None` where that is longer ago than [`REPORT_LEASE`].
    fn reports(&self, nodes: &[Box<str>]) -> BoxFuture<'_, Result<Vec<Option<Vec<u8>>>, BackplaneError>>;

    /// Hands an order to the sink of every node, this one included.
    fn control(&self, control: Control) -> BoxFuture<'_, Result<(), BackplaneError>>;

    /// Calls this when the backplane may be changed from outside: not while all that this process knows is written for another
    /// one. Refused when that one goes on.
    fn when_open<'b>(
        &'b self,
        act: Box<dyn FnOnce() + Send + 'b>,
    ) -> BoxFuture<'b, Result<(), BackplaneError>> {
        Box::pin(async move {
            act();
            Ok(())
        })
    }

    /// Whether some publishes would be accepted now; else why none is.
    fn health(&self) -> Result<(), BackplaneError>;

    /// What does not work though the rest does, one sentence each.
    fn missing(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Who has announced itself, for a process that is no node.
pub trait ReadNodes: Send + Sync + 'static {
    /// The nodes that live, in order of their names.
    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeRecord>, BackplaneError>>;

    /// Gives an order to them, as [`Backplane::control`] does.
    fn order(&self, control: Control) -> BoxFuture<'_, Result<(), BackplaneError>>;
}

impl<B: Backplane> ReadNodes for B {
    fn order(&self, control: Control) -> BoxFuture<'_, Result<(), BackplaneError>> {
        Backplane::control(self, control)
    }

    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeRecord>, BackplaneError>> {
        Backplane::nodes(self)
    }
}

/// What a node is told. Calls must not block, and must not call the backplane: they are made while the channel is
/// held in order.
pub trait Sink: Send + Sync + 'static {
    /// Takes a publication, or has no room for it: then the backplane hands it over again later, or a [`Gap`] in its
    /// place.
    fn publication(&self, channel: &Channel, publication: Arc<Publication>) -> Intake;

    /// Hands over several at once, by calling `hand_over`: what each of them costs by itself may be shared.
    fn together(&self, hand_over: &mut dyn FnMut()) {
        hand_over();
    }

    /// Always taken: it has no payload.
    fn gap(&self, channel: &Channel, gap: Gap);

    fn control(&self, control: Control);

    /// A change of who is in a channel that this node is subscribed to, in order with its publications, but for those
    /// that had to be repaired. Always taken: a sink that has no room for it has to read the channel's [`Roll`] later.
    fn presence(&self, channel: &Channel, event: Arc<PresenceEvent>);

    /// Changes of who is in a channel may have been missed. A sink that keeps no roll has nothing to do.
    fn presence_lost(&self, _channel: &Channel) {}

    /// A change of who is in a channel, told to one sink of the cluster, whether or not it is subscribed.
    fn transition(&self, channel: &Channel, transition: Transition);

    /// The will of a connection whose node has died; told to one sink of the cluster.
    fn will(&self, _will: &str) {}

    /// Others thought that this node was dead, and told this will of a connection of its own. It is kept anew.
    fn will_was_told(&self, _will: &str) {}
}

/// What became of a publication that a [`Sink`] was handed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "what was not taken is owed to the channel: later, or as a gap"]
pub enum Intake {
    Taken,
    /// More waits on this node than its bound allows.
    Full,
}

/// Why the backplane did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackplaneError {
    /// Nothing has happened; try again later.
    #[error("the backplane is out of reach: {0}")]
    Unavailable(Box<str>),
    /// Nothing has happened: the server is there, and has no room for it now. Try again later.
    #[error("the backplane has no room: {0}")]
    Overloaded(Box<str>),
    /// It was sent, but no answer came: it may have happened or not. Whoever tries again should use the same
    /// idempotency key.
    #[error("the backplane did not answer, the outcome is not known: {0}")]
    Unconfirmed(Box<str>),
    /// The call was refused for good.
    #[error("the backplane refused: {0}")]
    Refused(Box<str>),
}

/// What the fuzz targets call.
#[cfg(feature = "fuzz")]
pub mod fuzz {
    /// Decodes any bytes as an envelope and as a body of a stream; panics if what decodes does not encode to the same.
    pub fn envelope(bytes: &[u8]) {
        crate::redis::check_decoders(bytes);
    }
}
