//! The [`Backplane`](crate::Backplane) of many nodes, over Redis or Valkey. `docs/adr/0008-redis-backplane.md` has the
//! names, the envelope, and why.
//!
//! - `backplane`: [`RedisBackplane`], which puts the parts together. `options`: what it is told. `reader`: [`RedisNodes`],
//!   which only reads who is there.
//! - `moving`: a node that goes on in another process.
//! - `contract`: what the parts ask of each other.
//! - `url`, `error`: which servers, and why they cannot be used.
//! - `links`: connections, and which server holds what. `slot`: hash slots of a Cluster.
//! - `subscriptions`: who is handed what, in order and without holes.
//! - `names`: keys and pub/sub channels. `envelope`: the bytes of a publication.
//! - `scripts`: the Lua scripts, and how they are called.
//! - `publish`, `history`, `presence`, `wills`, `nodes`, `control`: the operations. `leases`: what is leased. `owner`: whom the
//!   links tell what happens. `counters`: what the operations count.

mod backplane;
mod contract;
mod control;
mod counters;
mod envelope;
mod error;
mod history;
mod leases;
mod links;
mod moving;
mod names;
mod nodes;
mod options;
mod owner;
mod presence;
mod publish;
mod reader;
mod scripts;
mod slot;
mod subscriptions;
mod url;
mod wills;

pub use backplane::{RedisBackplane, RedisCounters};
pub use counters::OperationCounters;
#[cfg(feature = "fuzz")]
pub(crate) use envelope::check_decoders;
pub use error::{HandOnError, RedisStartError, TakeInError};
pub use links::{LinkCounters, REFUSALS, REPEATS, REPLACEMENTS};
pub use names::{Prefix, PrefixError};
pub use options::{
    Host, HostedSocket, HostedWork, IDEMPOTENCY_WINDOW, LEASE, RedisFiles, RedisOptions, SentinelLogin,
};
pub use reader::RedisNodes;
pub use subscriptions::{GapsTold, Repairs, SubscriptionCounters, Undecodable};
pub use url::{RedisUrl, RedisUrlError};

#[cfg(test)]
mod tests;
