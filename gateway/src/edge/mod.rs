//! Before a connection has a protocol: who may come in, what precedes the request, the request's head.

pub(crate) mod door;
pub(crate) mod handover;
pub(crate) mod head;
pub(crate) mod preamble;
