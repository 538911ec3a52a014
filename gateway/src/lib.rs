//! One gateway node: from the socket to REST and back. `ARCHITECTURE.md` draws the way of a message.
//!
//! [`Server`](server::Server) puts the parts together: `front` lets connections in, `session` speaks with them,
//! `hub` keeps who is subscribed and fans out, `node` publishes and spreads, `http` serves REST and the internal
//! port, `auth`, `apps` and `config` say who may do what, `webhooks` tell servers what
//! happens, `metrics` counts, `drain` stops.

pub mod apps;
pub mod auth;
mod carrier;
pub mod config;
mod drain;
pub mod event;
mod front;
pub mod http;
mod hub;
mod interest;
pub mod metrics;
pub mod node;
mod outgoing;
mod roster;
pub mod server;
mod session;
mod shard;
#[cfg(test)]
mod testing;
pub mod webhooks;
