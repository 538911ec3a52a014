//! Tests over sockets, in one process: sources of members, and a whole router.
#![allow(clippy::unwrap_used)]

mod members;
mod server;
mod support;
