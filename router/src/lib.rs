//! Brings each client to its gateway.
//!
//! The way of a client: a key is taken from its request ([`key`]), the [`Chooser`] puts the nodes in the order of
//! that key ([`placement`]) and prefers those that have room and answer. Proxy and assign ask the same chooser.
//!
//! - [`placement`]: weighted rendezvous hashing with bounded load, as pure functions.
//! - [`key`]: which part of a request head is the key.
//! - [`chooser`]: the nodes as they are now, with their load; the order in which to try them.

pub mod chooser;
pub mod key;
pub mod placement;

pub use chooser::{Candidates, Chooser, Claim, Node};
