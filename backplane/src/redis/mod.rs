//! The [`Backplane`](crate::Backplane) of many nodes, over Redis or Valkey. `docs/adr/0008-redis-backplane.md` has the
//! names, the envelope, and why.
//!
//! - `contract`: what the parts ask of each other.
//! - `url`, `error`: which servers, and why they cannot be used.
//! - `links`: connections, and which server holds what. `slot`: hash slots of a Cluster.
//! - `names`: keys and pub/sub channels.
//! - `envelope`: the bytes of a publication.
//! - `scripts`: the Lua scripts, and how they are called.
//! - `publish`, `history`: what is done to a channel.
//! - `subscriptions`: what this node is subscribed to, and that nothing is missed in silence.
//! - `counters`: what is counted.

// Until the parts are put together.
#![allow(dead_code)]

mod contract;
mod control;
mod counters;
mod envelope;
#[allow(dead_code, unreachable_pub, reason = "RedisBackplane, which uses it, comes next")]
mod error;
mod history;
#[allow(dead_code, unreachable_pub, unused_imports, reason = "RedisBackplane, which uses it, comes next")]
mod links;
mod names;
mod nodes;
mod presence;
mod publish;
mod scripts;
mod slot;
mod subscriptions;
#[allow(dead_code, unreachable_pub, reason = "RedisBackplane, which uses it, comes next")]
mod url;

pub use counters::OperationCounters;
pub use envelope::EnvelopeError;
#[cfg(feature = "fuzz")]
pub(crate) use envelope::check_decoders;
pub use names::{Prefix, PrefixError};
pub use subscriptions::{GapsTold, Repairs, SubscriptionCounters, Undecodable};

#[cfg(test)]
mod tests;
