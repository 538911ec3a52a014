//! Many nodes on one Redis, and what goes wrong with it. One executable; each test starts everything it needs.

#![allow(clippy::unwrap_used)]

mod away;
mod bad_start;
mod command;
mod console;
mod foreign;
mod half_a_million;
mod lacking;
mod node_death;
mod presence;
mod resubscription;
mod secured;
