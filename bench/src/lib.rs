//! Load generator, floor server, peers and the comparison between them.
//!
//! The way of a measured message: [`publish`] stamps a payload with run, stream, sequence and time
//! ([`stamp`]) and POSTs it; the server fans it out; [`client`] counts frames without copying them
//! ([`frame`], [`sse`]), checks order and loss per connection ([`order`]) and records the latency. Both are
//! parties of one single-threaded readiness loop ([`driver`]), so a whole load fits on one core.
//!
//! - [`storm`]: what `tidegate storm` runs against any deployment; [`report`] is what it prints.
//! - [`floor`]: the least a server can do: one `send` per subscriber.
//! - [`compare`]: one gateway, gateways joined by Redis, the router, and their peers in one interleaved run, as
//!   tables; [`worker`] holds connections for it in a process of its own.

mod centrifuge;
pub mod client;
pub mod compare;
pub mod driver;
mod envelope;
pub mod floor;
pub mod frame;
pub mod http;
pub mod order;
pub mod probe;
pub mod publish;
mod pusher;
pub mod report;
mod socketio;
pub mod sse;
pub mod stamp;
pub mod stats;
pub mod storm;
pub mod sys;
pub mod target;
pub mod worker;
