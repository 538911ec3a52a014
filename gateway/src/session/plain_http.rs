//! What a shard asks of HTTP: to take a connection whose requests are no protocol's, or to answer one request.

use std::{fmt, future::Future, net::TcpStream, pin::Pin, sync::Arc};

use bytes::Bytes;
use tidegate_reactor::TlsSession;
use tidegate_wire::head::Head;

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

/// A whole answer, as it is written.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) bytes: Vec<u8>,
    /// It says that the connection ends.
    pub(crate) is_last: bool,
}

/// An answer that may have to wait, for the backplane.
pub(crate) type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// Serves the requests that are no protocol's.
pub(crate) trait PlainHttp: Send + Sync + fmt::Debug {
    /// Serves a connection from now on, its place in the limits included. Does not block.
    fn take(self: Arc<Self>, hand_off: HandOff);

    /// Answers one request, for a shard that keeps the connection. `None`: its connection is to be handed over.
    fn answer_whole(&self, head: &Head<'_>, body: &[u8]) -> Option<Answering>;
}
