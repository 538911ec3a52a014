//! The protocols that clients speak, a folder for each. A new one is a folder and a line in [`PROTOCOLS`].

mod pusher;
mod raw;
mod sse;

use crate::session::protocol::{ProtocolId, Protocols};

/// The first that serves a request has it.
pub(crate) static PROTOCOLS: Protocols = &[&raw::Raw, &sse::Sse, &pusher::PusherChannels, &raw::echo::Echo];

/// Whether a request without a body is one of theirs.
pub(crate) fn serve(method: &str, path: &str) -> bool {
    ProtocolId::of(PROTOCOLS, method, path, false).is_some()
}

/// The same with `--dev`.
pub(crate) fn serve_dev(method: &str, path: &str) -> bool {
    ProtocolId::of(PROTOCOLS, method, path, true).is_some()
}
