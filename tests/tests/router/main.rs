//! Gateways behind `tidegate router`: real processes, a real Redis, real clients. One executable; each test starts
//! everything it needs.

#![allow(clippy::unwrap_used)]

mod applications;
mod bad_requests;
mod bad_start;
mod centrifuge;
mod chaos;
mod edge;
mod fill;
mod loss;
mod million;
mod outages;
mod paths;
mod plot;
mod proxy_protocol;
mod rolling_restart;
mod serve;
mod serve_upgrade;
mod site;
mod slow;
mod timeline;
mod upgrade;
