//! Many nodes on one Redis, and what goes wrong with it. One executable; each test starts everything it needs.

#![allow(clippy::unwrap_used)]

mod away;
mod bad_start;
mod command;
mod console;
mod figures;
mod fleet;
mod foreign;
mod http;
mod lacking;
mod ledger;
mod loss;
mod node_death;
mod presence;
mod publishers;
mod resubscription;
mod secured;
mod site;
