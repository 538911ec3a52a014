//! Coming back to a channel without loss or repetition.
//!
//! While history is read, live publications are kept ([`Kept`]); then history is written, then what was kept and
//! is newer. Some of it may still be on its way to this shard, so the connection then *follows* (see `hub`): of
//! what is delivered it is written only what is newer than what it has ([`Recovery::take`]).

use tidegate_backplane::Position;

use crate::{hub::ChannelKey, outgoing::Content};

/// A channel whose history was sent to the connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recovery {
    pub(crate) key: ChannelKey,
    /// The last position it was sent, or told of. `None`: the channel had none.
    pub(crate) through: Option<Position>,
}

/// Live publications that wait until history has been read. They do not count as load of the channel: its
/// publishers must not wait for one client's history.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    items: Vec<Content>,
    bytes: usize,
    /// Some did not fit: history has to be read again.
    pub(crate) overflow: Option<Lost>,
}

/// What did not fit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lost {
    pub(crate) messages: u64,
    /// The last position among them.
    pub(crate) through: Option<Position>,
}

/// Most that is kept for one recovering channel: what a busy channel publishes while history is read.
const KEPT_BYTES_MAX: usize = 256 * 1024;

impl Recovery {
    /// Whether a publication or gap is news to the connection; it counts as told from now on.
    pub(crate) fn take(&mut self, content: &Content) -> bool {
        let position = content.position();
        let is_news = match (self.through, position) {
            (Some(through), Some(position)) => is_newer(position, through),
            _ => true,
        };
        if is_news {
            self.through = position.or(self.through);
        }
        is_news
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
    /// Keeps a publication or gap. When there is no room for it, all are let go of: history has them.
    pub(crate) fn keep(&mut self, content: &Content) {
        let payload_bytes = match content {
            Content::Publication(publication) => publication.payload.bytes().len(),
            Content::Gap(_) => 0,
        };
        self.bytes += payload_bytes + size_of::<Content>();
        if self.overflow.is_none() && self.bytes <= KEPT_BYTES_MAX {
            return self.items.push(content.clone());
        }
        let before = self.overflow.unwrap_or(Lost { messages: self.items.len() as u64, through: None });
        let lost = Lost { messages: before.messages + 1, through: content.position().or(before.through) };
        *self = Self { overflow: Some(lost), ..Self::default() };
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty() && self.overflow.is_none()
    }

    /// What was kept and is newer than what history held.
    pub(crate) fn into_news(self, recovery: &mut Recovery) -> Vec<Content> {
        let mut items = self.items;
        items.retain(|content| match content {
            // Without a position there is no telling whether the lane will bring it again. The client was not
            // answered yet, so nobody promised it this one.
            Content::Publication(publication) if publication.position.is_none() => false,
            _ => recovery.take(content),
        });
        items
    }
}
