//! Brings each client to its gateway.
//!
//! - [`placement`]: weighted rendezvous hashing with bounded load, as pure functions.

pub mod placement;
