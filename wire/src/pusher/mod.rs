//! Pusher Channels protocol 7 without a socket: what clients say, what they are told, and what follows from what.
//!
//! A request's path and query become an [`Opening`] or a [`Code`] to close with. A client's text becomes a
//! [`ClientMessage`]; [`session`] says what to do about it, given where the connection and its channel stand. What is
//! told is appended to a buffer by `server`. Signatures are named here ([`auth`]) and verified by who holds the secret.
//!
//! The shapes are on the page `docs/pusher.md`, with their sources.

pub mod auth;
mod channel;
mod client;
mod code;
mod opening;
pub mod server;
pub mod session;

pub use channel::{
    Access, CHANNEL_BYTES_MAX, ChannelKind, NameError, SERVER_TO_USER, WATCH, check_name, server_to_user,
    watched_user,
};
pub use client::{
    ClientMessage, ClientMessageError, EVENT_NAME_BYTES_MAX, Identity, MemberError, PresenceMember,
    Subscribe, USER_ID_CHARS_MAX, UserError, WATCHLIST_MAX,
};
pub use code::Code;
pub use opening::{Opening, is_pusher_path};
