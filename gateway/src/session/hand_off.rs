//! A connection whose request is no protocol's: how it leaves the reactor.

use std::{fmt, net::TcpStream, sync::Arc};

use bytes::Bytes;
use tidegate_reactor::TlsSession;

use crate::admission::AddressKey;

/// A connection that a shard hands over.
#[derive(Debug)]
pub(crate) struct HandOff {
    pub(crate) socket: TcpStream,
    /// What was read from it.
    pub(crate) received: Bytes,
    /// Its TLS session, if it has one; `received` is plaintext.
    pub(crate) tls: Option<Box<TlsSession>>,
    pub(crate) address: AddressKey,
}

/// Serves what shards hand over.
pub(crate) trait TakesHandOffs: Send + Sync + fmt::Debug {
    /// Serves a connection from now on, its place in the limits included. Does not block.
    fn take(self: Arc<Self>, hand_off: HandOff);
}
