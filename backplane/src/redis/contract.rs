//! What the parts of the Redis backplane ask of each other: links carry commands and subscriptions, the registry of
//! subscriptions is told what arrives.

use std::collections::BTreeSet;

use futures_util::future::BoxFuture;
use redis::{Cmd, Value};

use crate::BackplaneError;
use crate::fields::{Malformed, Reader, Writer};

/// A server of the topology. It stays the same while its connections are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LinkId(pub(crate) u32);

/// One pair of connections of a link. Grows with each replacement, over all links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Session(pub(crate) u64);

/// Where a tag lives now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Route {
    pub(crate) link: LinkId,
    /// On a Cluster: the slot, because one `SSUBSCRIBE` takes channels of one slot.
    pub(crate) slot: Option<u16>,
}

/// One session of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Seat {
    pub(crate) link: LinkId,
    pub(crate) session: Session,
}

impl Seat {
    /// For another process, which has the same links.
    pub(crate) fn write(out: &mut Writer, seat: Self) {
        out.u32(seat.link.0);
        out.u64(seat.session.0);
    }

    pub(crate) fn read(fields: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { link: LinkId(fields.u32()?), session: Session(fields.u64()?) })
    }
}

/// Tags that may live elsewhere than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Changed {
    All,
    /// Of these slots of a Cluster.
    Slots(BTreeSet<u16>),
}

/// Sends commands to the server that holds a tag's keys.
pub(crate) trait Commands: Send + Sync + 'static {
    /// The answer, or what is known of the outcome. Refusals that prove that nothing happened were repeated already.
    /// A server error that is none of those is [`BackplaneError::Refused`].
    fn call(&self, tag: &str, command: Cmd) -> BoxFuture<'_, Result<Value, BackplaneError>>;

    /// The same for several, which the server runs in their order and with nothing of this node's between them. One that
    /// failed is not sent again behind another that did not.
    fn call_all(&self, tag: &str, commands: Vec<Cmd>) -> BoxFuture<'_, Vec<Result<Value, BackplaneError>>>;

    /// Whether publishing is `SPUBLISH`.
    fn is_sharded(&self) -> bool;

    /// Where a tag lives: calls for tags of one route may share a script. `None` while the topology does not know (a Cluster
    /// slot without a master).
    fn route(&self, tag: &str) -> Option<Route>;

    /// The session that calls for the tag go to now. What was written in another one may be lost.
    fn seat(&self, tag: &str) -> Option<Seat>;
}

/// Sends subscribe commands. What became of them is told to [`Subscriber`].
pub(crate) trait Subscribing: Commands {
    /// Whether calls to the link of a tag may succeed now.
    fn availability(&self, tag: &str) -> Result<(), BackplaneError>;

    /// Sends one `SUBSCRIBE` or `SSUBSCRIBE` for at most 512 pub/sub channels (of one slot); does not wait. False: the
    /// session is over.
    fn subscribe(&self, link: LinkId, session: Session, channels: &[&[u8]]) -> bool;

    /// The same with `UNSUBSCRIBE` or `SUNSUBSCRIBE`.
    fn unsubscribe(&self, link: LinkId, session: Session, channels: &[&[u8]]) -> bool;

    /// Gives the session up and makes a new one; `why` is logged and told by health.
    fn replace(&self, link: LinkId, session: Session, why: &str);
}

/// Told what the links receive; called on the task of one link's subscription connection, in the order in which the
/// server said it. Must not block.
pub(crate) trait Subscriber: Send + Sync + 'static {
    /// A new session: nothing is subscribed on it.
    fn up(&self, link: LinkId, session: Session);

    /// The session is over, its subscriptions with it.
    fn down(&self, link: LinkId, session: Session);

    /// Tags may live elsewhere now.
    fn routes_changed(&self, changed: &Changed);

    /// The server refused a subscribe command, and does not say which.
    fn refused(&self, _link: LinkId, _session: Session) {}

    fn confirmed(&self, link: LinkId, session: Session, channel: &[u8]);

    /// No longer subscribed: asked for, or the server's own decision (a slot that moved).
    fn ended(&self, link: LinkId, session: Session, channel: &[u8]);

    fn message(&self, link: LinkId, session: Session, channel: &[u8], payload: &[u8]);

    /// Is told what came with one read, in `tell`.
    fn together(&self, tell: &mut dyn FnMut()) {
        tell();
    }
}
