//! Coming back to a channel without loss or repetition.
//!
//! While history is read, live publications are kept ([`Kept`]); then history is written, then what was kept and
//! is newer; from then on the connection *follows*: it is written everything newer than what it has, one by one,
//! until its lane holds nothing that it already has, and it joins.

use std::sync::Arc;

use tidegate_backplane::Position;
use tidegate_reactor::{ConnectionId, Overflow, Shared};

use super::Session;
use crate::{
    hub::{ChannelKey, Delivery},
    outgoing::{Content, Encoding, Outgoing},
};

/// A channel whose history was sent to the connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recovery {
    pub(crate) key: ChannelKey,
    /// The last position it was sent, or told of. `None`: the channel had none.
    pub(crate) through: Option<Position>,
}

/// Live publications that wait until history has been read.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    items: Vec<Arc<Outgoing>>,
    bytes: usize,
    /// Some did not fit: history has to be read again.
    pub(crate) overflowed: bool,
}

/// Most that is kept for one recovering channel: what a busy channel publishes while history is read.
const KEPT_BYTES_MAX: usize = 256 * 1024;

impl Recovery {
    /// Whether a publication is newer than what the connection has.
    pub(crate) fn wants(&self, outgoing: &Outgoing) -> bool {
        match (&outgoing.content, self.through, outgoing.position()) {
            (Content::Publication(_), Some(through), Some(position)) => is_newer(position, through),
            _ => true,
        }
    }

    /// Whether everything the connection was sent from history has passed the hub as well.
    pub(crate) fn is_through(&self, delivered: Option<Position>) -> bool {
        match (self.through, delivered) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(through), Some(delivered)) => !is_newer(through, delivered),
        }
    }
}

/// A position of another epoch always counts as newer: epochs do not come back.
fn is_newer(position: Position, than: Position) -> bool {
    position.epoch != than.epoch || position.offset > than.offset
}

impl Kept {
    /// Keeps a publication; the number that is lost when there is no room for it.
    pub(crate) fn keep(&mut self, outgoing: &Arc<Outgoing>) -> Option<u64> {
        let bytes = match &outgoing.content {
            Content::Publication(publication) => publication.payload.bytes().len() + size_of::<Outgoing>(),
            Content::Gap(_) => size_of::<Outgoing>(),
        };
        if self.overflowed || self.bytes + bytes > KEPT_BYTES_MAX {
            let lost = self.items.len() as u64 + 1;
            *self = Self { overflowed: true, ..Self::default() };
            return Some(lost);
        }
        self.bytes += bytes;
        self.items.push(Arc::clone(outgoing));
        None
    }

    pub(crate) fn into_items(self) -> Vec<Arc<Outgoing>> {
        self.items
    }
}

/// Writes one publication to one connection.
pub(super) fn write_one(
    delivery: &mut Delivery<'_>,
    id: ConnectionId,
    key: ChannelKey,
    outgoing: &Arc<Outgoing>,
    encoding: Encoding,
) {
    let bytes = match encoding.is_individual() {
        true => bytes::Bytes::new(),
        false => outgoing.encoded(encoding, delivery.encoder),
    };
    let shared = Shared { bytes: &bytes, messages: 1, last_at: 0, key, overflow: Overflow::Disconnect };
    if encoding.is_individual() {
        Session::write_individual(delivery, id.slot, key, outgoing, encoding, &shared);
    } else if bytes.is_empty() {
        Session::close_for_gap(delivery, id.slot, outgoing);
    } else {
        delivery.connections.write_shared(id.slot, &shared);
    }
    delivery.metrics.messages_sent.add(1);
}
