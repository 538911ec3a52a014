//! A readiness loop for very many, mostly idle connections. It knows sockets, bytes and time; what the bytes
//! mean is the [`Driver`]'s business.
//!
//! The way of the data: a [`Shard`] (one thread, one epoll or kqueue instance) takes a socket from the [`Listener`] that
//! all shards share, or is posted one through its [`Mailbox`]; it reads into its one shared buffer and hands the bytes to
//! the driver; the driver writes through [`Connections`], straight to the socket, and only a socket that would block gets a
//! queue ([`outbound`]), bounded in bytes. Timers sit in one [`wheel`] with coarse ticks.
//!
//! A connection that speaks TLS ([`TlsSession`]) does so in the shard: the driver sees plaintext ([`tls`]).
//!
//! An idle connection owns one slab entry: no task, no timer object, no buffer, no queue.

mod attended;
mod connections;
mod listening;
mod mailbox;
#[cfg(test)]
#[path = "mailbox/tests.rs"]
mod mailbox_tests;
mod outbound;
mod shard;
mod slab;
mod tasks;
mod tls;
mod wheel;

/// What the mailbox is made of.
mod sync {
    pub(crate) use std::{
        sync::{Arc, Mutex, MutexGuard, PoisonError, atomic},
        thread_local as per_thread,
    };

    pub(crate) use mio::Waker;

    pub(crate) use crate::{listening::Listener, tasks::Task};
}

pub use connections::{Closed, Connections, Counters, Kept, Path, Released, Written};
pub use listening::Listener;
pub use mailbox::{Mail, Mailbox, waking_once};
pub use outbound::{Overflow, Shared};
pub use shard::{Driver, Shard, Turn};
pub use slab::ConnectionId;
pub use tasks::{Task, TaskSocket};
pub use tls::{RECORD_BYTES_MAX, TlsSession};
pub use wheel::{TICK, Tick};
