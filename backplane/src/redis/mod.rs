//! The [`Backplane`](crate::Backplane) of many nodes, over Redis or Valkey. `docs/adr/0008-redis-backplane.md` has the
//! names, the envelope, and why.
//!
//! - `contract`: what the parts ask of each other.
//! - `names`: keys and pub/sub channels.
//! - `envelope`: the bytes of a publication.
//! - `scripts`: the Lua scripts, and how they are called.
//! - `publish`, `history`: what is done to a channel.
//! - `counters`: what is counted.

// Until the parts are put together.
#![allow(dead_code)]

mod contract;
mod control;
mod counters;
mod envelope;
mod history;
mod names;
mod nodes;
mod presence;
mod publish;
mod scripts;

pub use counters::OperationCounters;
pub use envelope::EnvelopeError;
#[cfg(feature = "fuzz")]
pub(crate) use envelope::check_decoders;
pub use names::{Prefix, PrefixError};

#[cfg(test)]
mod tests;
