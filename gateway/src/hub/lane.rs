//! One encoding of one channel: its members, what waits for them, and the batch that is being sent.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use bytes::{Bytes, BytesMut};
use tidegate_reactor::{ConnectionId, Overflow, Shared, Written};

use super::{ChannelKey, Delivery, members::Members};
use crate::{
    hub::outgoing::{Content, Encoding, Outgoing},
    metrics::DropReason,
    session::Session,
};

/// Bytes that one batch gathers at most. Past it the cost of a write is copying, not the call: 16 KiB is some 120
/// frames of 130 bytes, and the call's 6 µs are 0.05 µs for each.
const BATCH_BYTES: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) channel: ChannelKey,
    pub(super) encoding: Encoding,
    pace: Pace,
    pub(super) members: Members,
    pub(super) pending: VecDeque<Arc<Outgoing>>,
    pub(super) batch: Option<Batch>,
    /// Named in the hub's rotation.
    pub(super) runnable: bool,
}

/// Who a lane is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pace {
    /// Everyone gets everything.
    Ordinary,
    /// Each gets what it does not have from history.
    Following,
}

/// What is being written to each member.
#[derive(Debug)]
pub(super) struct Batch {
    /// Kept until everyone was served: they count as load for that long.
    items: Vec<Arc<Outgoing>>,
    bytes: Bytes,
    /// Where the last message begins in `bytes`.
    last_at: usize,
    /// Messages in `bytes`.
    messages: u32,
    /// The batch is a gap that this encoding cannot say: its members are closed.
    closes: bool,
    /// Members that are not to have some of it.
    exclusions: Option<Box<Exclusions>>,
    /// Members it was written to.
    reached: u64,
    began: Instant,
}

/// Publications that were sent by members of the lane, who are written the rest of the batch.
#[derive(Debug, Default)]
struct Exclusions {
    /// The messages of the batch, in order.
    parts: Vec<Bytes>,
    /// Who sent which.
    senders: Vec<(ConnectionId, usize)>,
}

/// What is left of a batch for one who sent a part of it.
struct Rest {
    bytes: Bytes,
    last_at: usize,
    messages: u32,
}

/// What became of the writes of one slice, in messages but for `reached`.
#[derive(Debug, Default)]
struct Tally {
    /// Members whose socket or queue took the batch.
    reached: u64,
    /// What they took.
    sent: u64,
    /// Dropped by policy.
    dropped: u64,
    /// For members that are being closed, perhaps because they were too slow for these very messages.
    disconnected: u64,
}

impl Lane {
    pub(super) fn new(channel: ChannelKey, encoding: Encoding, pace: Pace) -> Self {
        Self {
            channel,
            encoding,
            pace,
            members: Members::default(),
            pending: VecDeque::new(),
            batch: None,
            runnable: false,
        }
    }

    pub(super) fn has_work(&self) -> bool {
        self.batch.is_some() || !self.pending.is_empty()
    }

    /// Has it sent in its turn.
    pub(super) fn push(&mut self, outgoing: &Arc<Outgoing>, own_key: u32, runnable: &mut VecDeque<u32>) {
        self.pending.push_back(Arc::clone(outgoing));
        if !std::mem::replace(&mut self.runnable, true) {
            runnable.push_back(own_key);
        }
    }

    /// Takes what waits as the next batch, unless one is under way.
    pub(super) fn begin_batch(&mut self, delivery: &mut Delivery<'_>) {
        if self.batch.is_some() {
            return;
        }
        let one_by_one = self.pace == Pace::Following || self.encoding.is_individual();
        self.batch = match one_by_one {
            true => self.pending.pop_front().map(|item| Batch::single(item, self.encoding, delivery)),
            false => (!self.pending.is_empty()).then(|| self.gather(delivery)),
        };
        if self.batch.is_some() {
            self.members.begin();
        }
    }

    /// Writes the batch to up to `writes_max` members; the number it looked at.
    pub(super) fn serve(
        &mut self,
        overflow: Overflow,
        writes_max: usize,
        delivery: &mut Delivery<'_>,
    ) -> usize {
        let Some(batch) = &mut self.batch else { return 0 };
        let mut tally = Tally::default();
        let mut writes = 0;
        let done = loop {
            if writes == writes_max {
                break false;
            }
            let Some(slot) = self.members.next_to_serve() else { break true };
            writes += 1;
            let follows = self.pace == Pace::Following;
            if follows && !Session::follow(delivery.connections, slot, self.channel, &batch.items[0].content)
            {
                continue;
            }
            if batch.closes {
                Session::close_for_gap(delivery, slot, &batch.items[0].content);
                continue;
            }
            let (written, messages) = batch.write_to(slot, self.channel, self.encoding, overflow, delivery);
            tally.add(written, u64::from(messages), overflow);
        };
        tally.count(overflow, delivery);
        batch.reached += tally.reached;
        if done {
            batch.finish(delivery);
            self.batch = None;
        }
        writes
    }

    /// Joins pending publications into one buffer; a single one is shared as it is.
    fn gather(&mut self, delivery: &mut Delivery<'_>) -> Batch {
        let mut items: Vec<Arc<Outgoing>> = Vec::new();
        let mut parts: Vec<Bytes> = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.pending.front() {
            let alone = matches!(next.content, Content::Gap(_)) && !self.encoding.carries_notices();
            if alone && !items.is_empty() {
                break;
            }
            let part = next.encoded(self.encoding, delivery.encoder);
            if !items.is_empty() && bytes + part.len() > BATCH_BYTES {
                break;
            }
            bytes += part.len();
            parts.push(part);
            items.extend(self.pending.pop_front());
            if alone {
                break;
            }
        }
        if self.pending.capacity() > 1024 {
            self.pending.shrink_to(256);
        }
        let last_at = bytes - parts.last().map_or(0, Bytes::len);
        let messages = parts.len() as u32;
        let joined = match &*parts {
            [only] => only.clone(),
            _ => join(&parts),
        };
        let exclusions = Exclusions::of(&items, parts, self.encoding, delivery);
        Batch { closes: joined.is_empty(), exclusions, ..Batch::of(items, joined, last_at, messages) }
    }
}

fn join(parts: &[Bytes]) -> Bytes {
    let mut joined = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| joined.extend_from_slice(part));
    joined.freeze()
}

impl Batch {
    fn of(items: Vec<Arc<Outgoing>>, bytes: Bytes, last_at: usize, messages: u32) -> Self {
        let began = Instant::now();
        Self { items, bytes, last_at, messages, closes: false, exclusions: None, reached: 0, began }
    }

    fn single(item: Arc<Outgoing>, encoding: Encoding, delivery: &mut Delivery<'_>) -> Self {
        if encoding.is_individual() {
            return Self::of(vec![item], Bytes::new(), 0, 1);
        }
        let bytes = item.encoded(encoding, delivery.encoder);
        let items = vec![item];
        let exclusions = Exclusions::of(&items, vec![bytes.clone()], encoding, delivery);
        Self { closes: bytes.is_empty(), exclusions, ..Self::of(items, bytes, 0, 1) }
    }

    /// What became of it, and how many messages it was.
    fn write_to(
        &self,
        slot: u32,
        key: ChannelKey,
        encoding: Encoding,
        overflow: Overflow,
        delivery: &mut Delivery<'_>,
    ) -> (Written, u32) {
        if let Some(rest) = self.exclusions.as_ref().and_then(|exclusions| exclusions.rest(slot, delivery)) {
            let Rest { bytes, last_at, messages } = rest;
            if messages == 0 {
                return (Written::Sent, 0);
            }
            let shared = Shared { head: &[], bytes: &bytes, messages, last_at, key, overflow };
            return (delivery.connections.write_shared(slot, &shared), messages);
        }
        let (bytes, messages, last_at) = (&self.bytes, self.messages, self.last_at);
        let shared = Shared { head: &[], bytes, messages, last_at, key, overflow };
        let written = match encoding.is_individual() {
            true => Session::write_individual(delivery, slot, &self.items[0], encoding, &shared),
            false => delivery.connections.write_shared(slot, &shared),
        };
        (written, messages)
    }

    fn finish(&self, delivery: &Delivery<'_>) {
        let now = Instant::now();
        delivery.metrics.fanout_seconds.observe(now - self.began);
        for item in &self.items {
            delivery.metrics.delivery_latency_seconds.observe_many(now - item.accepted, self.reached);
        }
    }
}

impl Exclusions {
    /// `None`, as nearly always: nobody of this shard sent anything of it over the protocol that has senders.
    fn of(
        items: &[Arc<Outgoing>],
        parts: Vec<Bytes>,
        encoding: Encoding,
        delivery: &Delivery<'_>,
    ) -> Option<Box<Self>> {
        let sender = |item: &Arc<Outgoing>| delivery.socket_ids.find(item.sender()?.connection.as_deref()?);
        let all = items.iter().enumerate().filter(|_| encoding.is_pusher());
        let senders: Vec<_> = all.filter_map(|(at, item)| Some((sender(item)?, at))).collect();
        (!senders.is_empty()).then(|| Box::new(Self { parts, senders }))
    }

    /// `None`: the member of this slot gets everything.
    fn rest(&self, slot: u32, delivery: &Delivery<'_>) -> Option<Rest> {
        self.senders.iter().find(|(sender, _)| sender.slot == slot)?;
        let member = delivery.connections.in_slot(slot)?;
        let has_sent = |at: usize| self.senders.contains(&(member, at));
        let others = self.parts.iter().enumerate().filter(|&(at, _)| !has_sent(at));
        let parts: Vec<Bytes> = others.map(|(_, part)| part.clone()).collect();
        if parts.len() == self.parts.len() {
            return None;
        }
        let bytes = join(&parts);
        let last_at = bytes.len() - parts.last().map_or(0, Bytes::len);
        Some(Rest { bytes, last_at, messages: parts.len() as u32 })
    }
}

impl Tally {
    fn add(&mut self, written: Written, messages: u64, overflow: Overflow) {
        match written {
            _ if messages == 0 => {}
            Written::Sent | Written::Queued => {
                self.reached += 1;
                self.sent += messages;
            }
            Written::Dropped(dropped) => {
                self.dropped += u64::from(dropped);
                // Under `latest` the newest took the place of older ones that had been counted as sent.
                if overflow == Overflow::Latest {
                    self.reached += 1;
                    self.sent += messages;
                }
            }
            Written::Closed => self.disconnected += messages,
        }
    }

    fn count(&self, overflow: Overflow, delivery: &Delivery<'_>) {
        let metrics = delivery.metrics;
        metrics.messages_sent.add(self.sent);
        let by_policy = match overflow {
            Overflow::Latest => DropReason::Superseded,
            Overflow::Drop | Overflow::Disconnect | Overflow::Never => DropReason::QueueFull,
        };
        for (reason, count) in [(by_policy, self.dropped), (DropReason::Disconnected, self.disconnected)] {
            if count > 0 {
                metrics.messages_dropped.add(reason, count);
            }
        }
    }
}
