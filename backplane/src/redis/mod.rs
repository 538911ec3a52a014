//! The [`Backplane`](crate::Backplane) of many nodes, over Redis or Valkey. `docs/adr/0008-redis-backplane.md` has the
//! names, the envelope, and why.
//!
//! - `contract`: what the parts ask of each other.
//! - `url`, `error`: which servers, and why they cannot be used.
//! - `links`: connections, and which server holds what. `slot`: hash slots of a Cluster.

mod contract;
#[allow(dead_code, unreachable_pub, reason = "RedisBackplane, which uses it, comes next")]
mod error;
#[allow(dead_code, unreachable_pub, unused_imports, reason = "RedisBackplane, which uses it, comes next")]
mod links;
mod slot;
#[allow(dead_code, unreachable_pub, reason = "RedisBackplane, which uses it, comes next")]
mod url;
