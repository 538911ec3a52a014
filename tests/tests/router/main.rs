//! Gateways behind `tidegate router`: real processes, a real Redis, real clients. One executable; each test starts
//! everything it needs.

#![allow(clippy::unwrap_used)]

mod bad_requests;
mod bad_start;
mod centrifuge;
mod edge;
mod loss;
mod outages;
mod paths;
mod plot;
mod proxy_protocol;
mod rolling_restart;
mod site;
mod slow;
mod timeline;

// Recovering clients and publishers are those of the cluster tests.
#[path = "../cluster/fleet/mod.rs"]
mod fleet;
#[path = "../cluster/http.rs"]
mod http;
#[path = "../cluster/ledger.rs"]
mod ledger;
#[path = "../cluster/publishers.rs"]
mod publishers;
