//! The operations against a real `redis-server`, over one connection.

mod channels;
mod nodes;
mod presence;
mod server;
mod wills;
