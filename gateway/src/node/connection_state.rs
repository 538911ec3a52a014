//! What a node says of one of its connections.

use serde::{Deserialize, Serialize};

/// One connection, for a person who asked for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConnectionState {
    /// As presence names it.
    pub(crate) name: String,
    pub(crate) node: String,
    /// `opening`, `open` or `leaving`.
    pub(crate) phase: String,
    /// What it speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) protocol: Option<String>,
    /// Who, as the token says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) app: Option<String>,
    /// The other end of its socket: the client, or a proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) peer: Option<String>,
    pub(crate) connected_s: u64,
    /// Since something was last heard of it.
    pub(crate) quiet_s: u64,
    /// A ping waits for its pong.
    pub(crate) is_pinged: bool,
    /// Of its subscriptions, the first [`CHANNELS_TOLD`].
    pub(crate) channels: Vec<String>,
    pub(crate) subscriptions: u64,
    /// What waits for its socket.
    pub(crate) queued_bytes: u64,
    /// The last that it was told and that is no publication, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) told: Vec<Notice>,
}

/// Something that a connection was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Notice {
    /// The last time.
    pub(crate) ago_s: u64,
    pub(crate) times: u32,
    pub(crate) text: String,
}

/// Channels that are told of a connection.
pub(crate) const CHANNELS_TOLD: usize = 20;
