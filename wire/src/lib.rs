//! Tidegate's protocols as pure codecs: bytes in, typed messages out, and back again.
//!
//! The way of the data: a connection's first bytes are judged by [`request`]: [`head`] reads what is asked,
//! [`framing`] where the body ends; a WebSocket request is negotiated by
//! [`upgrade`]; from then on every byte read goes through the connection's [`decoder::Decoder`], which unmasks,
//! joins, inflates ([`deflate`]) and validates in place. What goes out is encoded once by [`frame`] (WebSocket) or
//! [`sse`] (event streams) around what [`raw`], [`pusher`] or [`centrifuge`] say, and shared by every connection it is for.
//! Answers that are not a protocol switch are written by [`http_answer`]. Before all of it a proxy may say who the
//! client is ([`proxy_v2`]); a router on the same machine hands its socket over ([`handover`]), and a gateway that is
//! upgraded gives its open ones to its successor with their state ([`moving`], made of [`fields`]; what is said meanwhile: [`succession`]).
//!
//! Nothing here opens a socket, reads a clock or draws randomness, and nothing here trusts a length it was told.

#![forbid(unsafe_code)]

pub mod centrifuge;
pub mod decoder;
pub mod deflate;
pub mod fields;
pub mod frame;
pub mod framing;
pub mod handover;
pub mod head;
pub mod http_answer;
pub mod moving;
pub mod proxied;
pub mod proxy_v2;
pub mod pusher;
pub mod raw;
pub mod request;
pub mod sse;
pub mod succession;
pub mod upgrade;

pub mod json;
mod mask;
