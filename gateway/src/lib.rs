//! One gateway node: from the socket to REST and back. `ARCHITECTURE.md` draws the way of a message.
//!
//! [`Server`](server::Server) puts the parts together: `front` lets connections in, `session` speaks with them,
//! `hub` keeps who is subscribed and fans out, `node` publishes and spreads, `http` serves REST and the internal
//! port, `auth`, `apps` and `config` say who may do what, `webhooks` tell servers what
//! happens, `metrics` counts, `console` shows the cluster to a person, `drain` stops.

pub(crate) mod admission;
pub mod app;
pub mod auth;
pub mod config;
pub mod console;
mod edge;
pub mod event;
pub mod http;
mod hub;
pub mod metrics;
pub mod node;
pub mod problem;
mod protocols;
pub mod server;
mod session;
mod shard;
mod subscription;
#[cfg(test)]
mod testing;

/// What the table of channels is made of.
mod sync {
    pub(crate) use std::{
        hash::RandomState,
        sync::{RwLock, atomic},
    };
}
