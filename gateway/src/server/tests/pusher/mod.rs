//! Clients of Pusher Channels over real sockets: each message, each limit with its answer, each bad input.

mod caches;
mod channels;
pub(super) mod client;
mod cluster;
mod ends;
mod events;
mod hello;
mod presence;
mod users;
