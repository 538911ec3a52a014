//! The protocols that clients speak, a folder for each.

pub(crate) mod pusher;
pub(crate) mod sse;
