//! The operations against a real `redis-server`, over one connection.

mod census;
mod channels;
mod presence;
mod server;
