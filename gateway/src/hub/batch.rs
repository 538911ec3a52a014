//! What is written to each member of a lane at once.

use std::{sync::Arc, time::Instant};

use bytes::{Bytes, BytesMut};
use tidegate_backplane::Gap;
use tidegate_reactor::{ConnectionId, Overflow, Shared, Written};

use super::{ChannelKey, Receivers, content::Content, outgoing::Outgoing};
use crate::metrics::ShardMetrics;

/// Bytes that one batch gathers at most. Past it the cost of a write is copying, not the call: 16 KiB is some 120
/// frames of 130 bytes, and the call's 6 µs are 0.05 µs for each.
const BATCH_BYTES: usize = 16 * 1024;

/// Something that waits for the members of a lane.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) outgoing: Arc<Outgoing>,
    /// This member does not get it: it sent it.
    pub(super) except: Option<ConnectionId>,
}

#[derive(Debug)]
pub(super) struct Batch {
    /// Kept until everyone was served: they count as load for that long.
    items: Vec<Pending>,
    /// The messages of each item; kept where somebody is not to have all of them.
    parts: Vec<Bytes>,
    /// All of them, joined.
    whole: Part,
    /// It is a gap that its form cannot say.
    unsaid_gap: Option<Gap>,
    overflow: Overflow,
    /// Members it was written to.
    reached: u64,
    began: Instant,
}

/// Messages in one buffer.
#[derive(Debug)]
struct Part {
    bytes: Bytes,
    /// Where the last message begins in `bytes`.
    last_at: usize,
    messages: u32,
}

/// Takes what may go together.
pub(super) struct Gatherer {
    /// Of publications.
    overflow: Overflow,
    one_by_one: bool,
    items: Vec<Pending>,
    parts: Vec<Bytes>,
    bytes: usize,
    unsaid_gap: Option<Gap>,
}

impl Gatherer {
    pub(super) fn new(overflow: Overflow, one_by_one: bool) -> Self {
        Self { overflow, one_by_one, items: Vec::new(), parts: Vec::new(), bytes: 0, unsaid_gap: None }
    }

    /// Whether the next item goes with those before it. `false` ends the batch.
    pub(super) fn takes(&mut self, next: &Pending, bytes: &Bytes, says_gaps: bool) -> bool {
        let content = &next.outgoing.content;
        let unsaid_gap = match content {
            Content::Gap(gap) if !says_gaps => Some(*gap),
            _ => None,
        };
        let Some(first) = self.items.first() else {
            self.unsaid_gap = unsaid_gap;
            return true;
        };
        if self.unsaid_gap.is_some() || unsaid_gap.is_some() || self.one_by_one {
            return false;
        }
        // What may be dropped and what may not are two writes, unless the policy is to drop nothing.
        let is_alike = first.outgoing.content.is_publication() == content.is_publication();
        (is_alike || self.overflow == Overflow::Disconnect) && self.bytes + bytes.len() <= BATCH_BYTES
    }

    pub(super) fn add(&mut self, item: Pending, bytes: Bytes) {
        // The form has nothing to say about it.
        if bytes.is_empty() && self.unsaid_gap.is_none() {
            return;
        }
        self.bytes += bytes.len();
        self.parts.push(bytes);
        self.items.push(item);
    }

    pub(super) fn finish(self) -> Option<Box<Batch>> {
        let first = self.items.first()?;
        let overflow = match first.outgoing.content.is_publication() || self.overflow == Overflow::Disconnect
        {
            true => self.overflow,
            false => Overflow::Never,
        };
        let whole = Part::of(&self.parts);
        // Nearly always nobody of this shard sent anything of it over a protocol that has senders.
        let has_exceptions = self.items.iter().any(|item| item.except.is_some());
        let parts = if has_exceptions { self.parts } else { Vec::new() };
        let (unsaid_gap, began) = (self.unsaid_gap, Instant::now());
        Some(Box::new(Batch { items: self.items, parts, whole, unsaid_gap, overflow, reached: 0, began }))
    }
}

impl Batch {
    /// The only content of a batch that is one of a kind.
    pub(super) fn first(&self) -> &Content {
        &self.items[0].outgoing.content
    }

    pub(super) fn last_publication(&self) -> Option<&Arc<Outgoing>> {
        let mut all = self.items.iter().rev().map(|item| &item.outgoing);
        all.find(|outgoing| outgoing.content.is_publication())
    }

    pub(super) fn unsaid_gap(&self) -> Option<Gap> {
        self.unsaid_gap
    }

    pub(super) fn overflow(&self) -> Overflow {
        self.overflow
    }

    pub(super) fn add_reached(&mut self, reached: u64) {
        self.reached += reached;
    }

    /// What became of it, and how many messages it was.
    #[inline]
    pub(super) fn write_to(
        &self,
        slot: u32,
        key: ChannelKey,
        head: &[u8],
        receivers: &mut impl Receivers,
    ) -> (Written, u32) {
        if !self.parts.is_empty()
            && let Some(rest) = self.rest(slot, receivers)
        {
            return match rest.messages {
                0 => (Written::Sent, 0),
                messages => (receivers.write(slot, &self.shared(&rest, key, head)), messages),
            };
        }
        (receivers.write(slot, &self.shared(&self.whole, key, head)), self.whole.messages)
    }

    fn shared<'a>(&self, part: &'a Part, key: ChannelKey, head: &'a [u8]) -> Shared<'a> {
        let Part { ref bytes, last_at, messages } = *part;
        Shared { head, bytes, messages, last_at, key, overflow: self.overflow }
    }

    /// What is left for one who sent a part of it; `None`: the member of this slot gets everything.
    fn rest(&self, slot: u32, receivers: &impl Receivers) -> Option<Part> {
        let is_theirs =
            |item: &Pending| item.except.is_some_and(|except| except.slot == slot && receivers.holds(except));
        if !self.items.iter().any(is_theirs) {
            return None;
        }
        let others = self.items.iter().zip(&self.parts).filter(|(item, _)| !is_theirs(item));
        let others: Vec<Bytes> = others.map(|(_, part)| part.clone()).collect();
        Some(Part::of(&others))
    }

    pub(super) fn finish(&self, metrics: &ShardMetrics) {
        let now = Instant::now();
        metrics.fanout_seconds.observe(now - self.began);
        for item in &self.items {
            metrics.delivery_latency_seconds.observe_many(now - item.outgoing.accepted, self.reached);
        }
    }
}

impl Part {
    /// Joins messages into one buffer; a single one is shared as it is.
    fn of(messages: &[Bytes]) -> Self {
        let bytes = match messages {
            [only] => only.clone(),
            _ => {
                let mut joined = BytesMut::with_capacity(messages.iter().map(Bytes::len).sum());
                messages.iter().for_each(|message| joined.extend_from_slice(message));
                joined.freeze()
            }
        };
        let last_at = bytes.len() - messages.last().map_or(0, Bytes::len);
        Self { bytes, last_at, messages: messages.len() as u32 }
    }
}
