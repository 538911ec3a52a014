//! One gateway node: from the socket to REST and back. `ARCHITECTURE.md` draws the way of a message.
//!
//! [`Server`](server::Server) puts the parts together, and [`config`] says how it is set up: that is what others use, and
//! [`console::view`], which `tidegate top` shows. Inside, `edge` lets connections in, `shard` drives them, `session` keeps
//! what they are, `protocols` say what they mean, `hub` fans out, `node` publishes and spreads, `http` serves REST and the
//! internal port, `auth` and `app` say who may do what, `hooks` ask the application, `console` sums what all nodes say.

mod admission;
mod app;
mod auth;
pub mod config;
pub mod console;
mod edge;
mod event;
mod hooks;
mod http;
mod hub;
mod metrics;
mod node;
mod problem;
mod protocols;
pub mod server;
mod session;
mod shard;
mod subscription;
#[cfg(test)]
mod testing;

pub use hooks::trial as hook_trial;

/// What the table of channels is made of.
mod sync {
    pub(crate) use std::{
        hash::RandomState,
        sync::{RwLock, atomic},
    };
}
