//! TLS where the connection is: sessions without sockets, kept beside the slab, and what reading and writing do
//! with them.
//!
//! - `session`: ciphertext in, plaintext out, and back; knows no socket
//! - `table`: the sessions of a shard by slot, so that a plain connection pays nothing
//! - `writer`: a socket that encrypts what is written to it
//!
//! Reading through a session is the connections' (`connections/secure.rs`).
//!
//! What waits for a socket that would block waits as plaintext, so that the policies of `outbound` can drop whole
//! messages. It is encrypted when the socket has room. Ciphertext waits too, but never more than one record of it
//! and what the handshake says: records leave in the order in which they were numbered.

mod session;
mod table;
mod writer;

pub use session::{RECORD_BYTES_MAX, TlsSession};
pub(crate) use table::Sessions;
pub(crate) use writer::Encrypting;

#[cfg(test)]
mod tests;
