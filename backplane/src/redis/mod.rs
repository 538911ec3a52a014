//! The [`Backplane`](crate::Backplane) of many nodes, over Redis or Valkey. `docs/adr/0008-redis-backplane.md` has the
//! names, the envelope, and why.
//!
//! - `contract`: what the parts ask of each other.

mod contract;
