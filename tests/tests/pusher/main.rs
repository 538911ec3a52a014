//! The Pusher protocol with its real clients and server SDKs, on several nodes. One executable; each test starts
//! everything it needs.

#![allow(clippy::unwrap_used)]

mod apps;
mod asked;
mod bad_input;
mod browser;
mod closing;
mod node_death;
mod script;
mod sdks;
mod site;
