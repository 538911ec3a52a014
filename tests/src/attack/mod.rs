//! What hostile clients do to a gateway, and what everyone else feels of it meanwhile.
//!
//! A [`Row`] is one line of the table that `cargo xtask attack` prints: [`rows`] starts a gateway of one shard, lets the
//! attackers loose ([`frames`], [`doors`], [`channels`], [`recoveries`]) and has a [`Watch`] measure what a bystander,
//! the process and Redis go through.

#![allow(
    clippy::disallowed_methods,
    reason = "attackers and bystanders keep a pace; nothing here sleeps to wait"
)]

mod channels;
mod doors;
mod frames;
mod recoveries;
mod rows;
mod scene;
mod watch;

pub use channels::{churn, churn_counted, hold_names, join_names};
pub use doors::{Sent, bare_requests, knock};
pub use frames::{braces, compressed_burst, compressed_stream, pings};
pub use rows::{Outcome, Player, Row, TABLE_HEAD};
pub use scene::Scene;
pub use watch::{Felt, Watch};
