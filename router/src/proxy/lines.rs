//! The lines of a shard to gateways of this machine, and what they were not answered yet.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use tidegate_reactor::{ConnectionId, Tick};

use crate::chooser::{Claim, Node};

/// The lines of a shard, by the number of their node.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pub(super) open: HashMap<u32, OpenLine>,
    /// Nodes whose line failed, and until when none is tried.
    pub(super) paused: HashMap<u32, Tick>,
    /// Nodes for whose line somebody waits since the last turn.
    pub(super) fresh: Vec<u32>,
    /// Reused for offers.
    pub(super) record: Vec<u8>,
}

/// A line to a gateway, and what it was not answered yet.
#[derive(Debug)]
pub(super) struct OpenLine {
    pub(super) id: ConnectionId,
    pub(super) node: Arc<Node>,
    pub(super) next_number: u32,
    pub(super) offers: HashMap<u32, Offered>,
    /// Clients to be offered at the end of the turn; where the line had no room for them, when it has answered others.
    pub(super) waiting: VecDeque<Offered>,
}

/// A client whose socket is sent, or to be.
#[derive(Debug)]
pub(super) struct Offered {
    pub(super) client: ConnectionId,
    pub(super) claim: Claim,
    pub(super) asked: Instant,
}
