//! One form of one channel: its members, what waits for them, and the batch that is being sent.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use tidegate_backplane::{Gap, GapReason};
use tidegate_reactor::{Overflow, Written};

use super::{
    ChannelKey, Delivery, Receivers, Terms,
    batch::{Batch, Gatherer, Pending},
    following::Followers,
    form::{Encoder, Form, FormId},
    members::Members,
    outgoing::Outgoing,
};
use crate::metrics::{DropReason, ShardMetrics};

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) channel: ChannelKey,
    pub(super) form: FormId,
    pub(super) kind: Kind,
    pub(super) says_gaps: bool,
    pub(super) says_presence: bool,
    has_heads: bool,
    pub(super) tells_difference: bool,
    has_next: bool,
    /// Its members go on in another form when they have had a publication, and these have.
    pub(super) moves_on: bool,
    /// Where that matters: what its members were told last.
    pub(super) last: Option<Arc<Outgoing>>,
    pub(super) members: Members,
    pub(super) pending: VecDeque<Pending>,
    /// Boxed, as whatever few lanes have: there are as many lanes as channels.
    batch: Option<Box<Batch>>,
    /// Named in the hub's rotation.
    pub(super) runnable: bool,
}

/// Who a lane is for.
#[derive(Debug)]
pub(super) enum Kind {
    /// Everyone gets everything.
    Ordinary,
    /// Each gets what it does not have from history.
    Following(Box<Followers>),
    /// Nobody gets anything: they are about to be closed, because of a gap that their form cannot say.
    Silent,
}

/// What became of a slice.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slice {
    /// Members that were looked at.
    pub(super) members: usize,
    /// Some were found that have to be closed.
    pub(super) closes: bool,
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
    /// Members that stay although they cannot be told of a gap.
    untold: u64,
}

const _: () = assert!(size_of::<Lane>() <= 120, "each channel has one");

impl Lane {
    pub(super) fn new(channel: ChannelKey, id: FormId, form: &dyn Form, kind: Kind) -> Self {
        Self {
            channel,
            form: id,
            kind,
            says_gaps: form.says_gaps(),
            says_presence: form.says_presence(),
            has_heads: form.has_heads(),
            tells_difference: form.tells_difference(),
            has_next: form.next().is_some(),
            moves_on: false,
            last: None,
            members: Members::default(),
            pending: VecDeque::new(),
            batch: None,
            runnable: false,
        }
    }

    pub(super) fn follows(&self) -> bool {
        matches!(self.kind, Kind::Following(_))
    }

    /// Whether its members have had a publication, and nothing else waits.
    pub(super) fn may_move_on(&self) -> bool {
        self.moves_on && !self.has_work() && !self.members.is_empty()
    }

    pub(super) fn has_work(&self) -> bool {
        self.batch.is_some() || !self.pending.is_empty()
    }

    /// Has it sent in its turn.
    pub(super) fn push(&mut self, pending: Pending, own_key: u32, runnable: &mut VecDeque<u32>) {
        self.pending.push_back(pending);
        if !std::mem::replace(&mut self.runnable, true) {
            runnable.push_back(own_key);
        }
    }

    /// Nobody is left to tell: what waits has no receiver and counts as nobody's loss.
    pub(super) fn clear(&mut self) {
        self.pending.clear();
        self.batch = None;
        self.last = None;
    }

    /// Writes to up to `members_max` members, of the batch that is under way or else of the next.
    pub(super) fn serve<R: Receivers>(
        &mut self,
        terms: Terms,
        members_max: usize,
        delivery: &mut Delivery<'_, R>,
    ) -> Slice {
        if self.batch.is_none() {
            self.batch = self.next_batch(terms.overflow, delivery);
            self.members.begin();
            self.moves_on = false;
        }
        let Some(batch) = &mut self.batch else { return Slice::default() };
        let (mut slice, mut tally) = (Slice::default(), Tally::default());
        let mut head = Vec::new();
        let done = loop {
            if slice.members == members_max {
                break false;
            }
            let Some(slot) = self.members.next_to_serve() else { break true };
            slice.members += 1;
            if let Kind::Following(followers) = &mut self.kind
                && !followers.is_news(slot, batch.first())
            {
                continue;
            }
            match batch.unsaid_gap() {
                // They have no position that could be of no use any more, and miss nothing.
                Some(Gap { reason: GapReason::Forgotten, .. }) => {}
                Some(_) if terms.stays_at_gaps => tally.untold += 1,
                Some(gap) => {
                    slice.closes = true;
                    delivery.receivers.close_for_gap(slot, self.channel, gap);
                }
                None => {
                    head.clear();
                    if self.has_heads {
                        let position = batch.first().position();
                        delivery.receivers.put_head(slot, self.channel, position, &mut head);
                    }
                    let (written, messages) = batch.write_to(slot, self.channel, &head, delivery.receivers);
                    tally.add(written, u64::from(messages), batch.overflow());
                }
            }
        };
        tally.count(batch.overflow(), delivery.metrics);
        batch.add_reached(tally.reached);
        if done {
            batch.finish(delivery.metrics);
            if let (true, Some(last)) = (self.has_next, batch.last_publication()) {
                (self.moves_on, self.last) = (true, Some(Arc::clone(last)));
            }
            self.batch = None;
        }
        slice
    }

    /// What its members are told: the same as all of this form, or how it differs from what they were told last.
    fn encoded(&self, outgoing: &Outgoing, encoder: &mut Encoder) -> Bytes {
        match &self.last {
            Some(last) if self.tells_difference => {
                encoder.encode_after(&outgoing.channel, &outgoing.content, &last.content, self.form)
            }
            _ => outgoing.encoded(self.form, encoder),
        }
    }

    /// Joins what waits into one buffer, as far as it may go together.
    fn next_batch<R: Receivers>(
        &mut self,
        overflow: Overflow,
        delivery: &mut Delivery<'_, R>,
    ) -> Option<Box<Batch>> {
        let one_by_one = self.follows() || self.has_heads;
        let mut gatherer = Gatherer::new(overflow, one_by_one);
        while let Some(next) = self.pending.front() {
            let bytes = self.encoded(&next.outgoing, delivery.encoder);
            if !gatherer.takes(next, &bytes, self.says_gaps) {
                break;
            }
            if let Some(next) = self.pending.pop_front() {
                if self.tells_difference && next.outgoing.content.is_publication() {
                    self.last = Some(Arc::clone(&next.outgoing));
                }
                gatherer.add(next, bytes);
            }
        }
        if self.pending.capacity() > 1024 {
            self.pending.shrink_to(256);
        }
        gatherer.finish()
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

    fn count(&self, overflow: Overflow, metrics: &ShardMetrics) {
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
        if self.untold > 0 {
            metrics.gaps_untold.add(self.untold);
        }
    }
}
