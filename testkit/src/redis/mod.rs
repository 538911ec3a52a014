//! Real Redis processes: one server, one watched by Sentinel, a Cluster, and a wire that can be cut.
//!
//! Everything listens on loopback, on free ports, in temporary directories, and ends when it is dropped. Each start
//! waits until the thing is of use; each fault waits until it has happened.
//!
//! - [`RedisServer`]: one `redis-server`, with ACL users or TLS; killed, restarted, stopped.
//! - [`Sentinel`]: a master, two replicas and three Sentinels.
//! - [`RedisCluster`]: masters with replicas; resharding, death of a master.
//! - [`Cut`]: a TCP proxy before any address, to be silent or closed at will.
//! - [`RedisClient`]: commands, to look and to meddle.

mod client;
mod cluster;
mod cut;
mod ports;
mod sentinel;
mod server;

pub use client::{RedisClient, RedisError, Value};
pub use cluster::RedisCluster;
pub use cut::Cut;
pub(crate) use ports::free_port;
pub use sentinel::{SENTINEL_MASTER, Sentinel};
pub use server::{RedisServer, RedisServerBuilder};
