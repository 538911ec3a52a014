//! Gateways behind `tidegate router`: real processes, a real Redis, real clients. One executable; each test starts
//! everything it needs.

#![allow(clippy::unwrap_used)]

mod bad_requests;
mod bad_start;
mod edge;
mod loss;
mod paths;
mod proxy_protocol;
mod site;
mod slow;
