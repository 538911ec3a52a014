//! Brings each client to its gateway.
//!
//! The way of a client: a key is taken from its request ([`key`]), the [`Chooser`] puts the nodes in the order of
//! that key ([`placement`]) and prefers those that have room and answer. Proxy and assign ask the same chooser.
//!
//! - [`placement`]: weighted rendezvous hashing with bounded load, as pure functions.
//! - [`key`]: which part of a request head is the key.
//! - [`chooser`]: the nodes as they are now, with their load; the order in which to try them.
//! - `fill`: brings a node that has room its clients back.
//! - [`members`]: where the nodes are known from: a list, DNS, the backplane's registry.
//! - [`assign`]: answers `/v1/assign`.
//! - [`metrics`], [`config`]: what is counted, what can be set.
//! - [`proxy`]: moves the bytes between clients and nodes, in the reactor.

pub mod assign;
pub mod chooser;
pub mod config;
mod fill;
pub mod key;
mod lack;
pub mod members;
pub mod metrics;
pub mod placement;
mod problem;
pub mod proxy;
mod reload;
pub mod server;
mod stage;
mod url_template;

pub use chooser::{Candidates, Chooser, Claim, Node};
