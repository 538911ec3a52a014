//! A repair of a [`Sequence`](super::sequence::Sequence): why it began, how far it is, and what waits meanwhile.

use std::{collections::VecDeque, sync::atomic::Ordering::Relaxed};

use super::{cause::Cause, outlet::Outlet};
use crate::{
    Position,
    redis::envelope::{Envelope, Place},
};

/// What may wait for one channel. A repair takes a round trip or a few, about 1 ms: 256 KiB are 256 MB/s in one channel.
/// What does not fit is let go and read from the stream.
pub(super) const CHANNEL_BYTES_MAX: usize = 256 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not subscribed.
    Interrupted,
    /// The position was asked for.
    Checking,
    /// The stream was asked for.
    Reading,
    /// A new epoch was asked for.
    Renouncing,
    /// The sink had no room.
    Stalled,
    /// An ask failed, and will be repeated.
    Failed { checking: bool },
}

#[derive(Debug)]
pub(super) struct Repair {
    pub(super) stage: Stage,
    pub(super) cause: Cause,
    /// Whether the stream must prove that it still has what was handed over.
    pub(super) must_verify: bool,
    pub(super) was_interrupted: bool,
    /// A gap was told since the interruption.
    pub(super) is_told: bool,
    /// The sink had no room when it was last tried.
    pub(super) is_probe: bool,
    /// Publications with position were let go: the stream has to be read again.
    pub(super) spilled_placed: bool,
    /// Publications without position were let go: a gap is owed.
    pub(super) spilled_plain: bool,
    is_counted: bool,
    waiting: VecDeque<Envelope>,
    waiting_bytes: usize,
    /// So many of those that wait arrived before the stream was asked, so the answer is newer than they.
    before_read: usize,
}

impl Repair {
    pub(super) fn new(cause: Cause, stage: Stage) -> Self {
        Self {
            stage,
            cause,
            must_verify: cause == Cause::Reconnect,
            was_interrupted: false,
            is_told: false,
            is_probe: false,
            spilled_placed: false,
            spilled_plain: false,
            is_counted: false,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            before_read: 0,
        }
    }

    pub(super) fn boxed(cause: Cause) -> Box<Self> {
        Box::new(Self::new(cause, Stage::Reading))
    }

    /// Of a subscription that was interrupted.
    pub(super) fn interrupted() -> Self {
        Self { was_interrupted: true, ..Self::new(Cause::Reconnect, Stage::Interrupted) }
    }

    /// Whether a publication without position waits, or was let go.
    pub(super) fn owes_plain(&self) -> bool {
        self.spilled_plain || self.waiting.iter().any(|envelope| envelope.tags.is_none())
    }

    /// Keeps a publication for later, or lets go of it and remembers that.
    pub(super) fn keep(&mut self, envelope: Envelope, outlet: &mut impl Outlet) {
        let bytes = size(&envelope);
        // After one was let go, those behind it must not overtake it.
        let is_open = !self.spilled_placed && !self.spilled_plain;
        let takes = !matches!(self.stage, Stage::Interrupted | Stage::Stalled);
        let fits = self.waiting_bytes + bytes <= CHANNEL_BYTES_MAX;
        if takes && is_open && fits && outlet.reserve(bytes) {
            self.waiting_bytes += bytes;
            self.waiting.push_back(envelope);
        } else {
            self.spill(envelope.tags.is_some(), outlet);
        }
    }

    /// Takes what waits first.
    pub(super) fn pop(&mut self, outlet: &mut impl Outlet) -> Option<Envelope> {
        let envelope = self.waiting.pop_front()?;
        let bytes = size(&envelope);
        self.waiting_bytes -= bytes;
        outlet.release(bytes);
        Some(envelope)
    }

    /// Undoes a [`pop`](Self::pop).
    pub(super) fn put_back(&mut self, envelope: Envelope, outlet: &mut impl Outlet) {
        let bytes = size(&envelope);
        if outlet.reserve(bytes) {
            self.waiting_bytes += bytes;
            self.waiting.push_front(envelope);
        } else {
            self.spill(envelope.tags.is_some(), outlet);
            self.let_go(outlet);
        }
    }

    /// The sink had no room for a publication, with a position or not.
    pub(super) fn stall(&mut self, is_placed: bool, outlet: &mut impl Outlet) {
        self.stage = Stage::Stalled;
        self.cause = Cause::Overflow;
        self.is_probe = true;
        self.spill(is_placed, outlet);
        self.let_go(outlet);
    }

    /// The subscription is gone. What waited is in the stream, or is what the gap will tell of: answers whether there
    /// was something of the latter.
    pub(super) fn interrupt(&mut self, outlet: &mut impl Outlet) -> bool {
        self.let_go(outlet);
        let had_plain = self.spilled_plain;
        let is_probe = self.is_probe;
        *self = Self { is_probe, ..Self::interrupted() };
        had_plain
    }

    /// The stream is about to be asked: it has what was let go until now.
    pub(super) fn begin_read(&mut self, outlet: &mut impl Outlet) {
        self.stage = Stage::Reading;
        self.spilled_placed = false;
        self.before_read = self.waiting.len();
        if !std::mem::replace(&mut self.is_counted, true) {
            outlet.counters().repair(self.cause);
        }
    }

    /// Lets go of what arrived before the stream was asked: it was in the stream by then.
    pub(super) fn drop_read(&mut self, outlet: &mut impl Outlet) {
        self.drop_before_read(|_| false, outlet);
    }

    /// Lets go of what arrived before the stream was asked, and yet is not in what it is now: of an epoch that has
    /// ended, or taken back.
    pub(super) fn drop_stale(&mut self, top: Option<Place>, outlet: &mut impl Outlet) {
        let is_now = |Position { epoch, offset }: Position| {
            top.is_some_and(|Place { position: top, .. }| epoch == top.epoch && offset <= top.offset)
        };
        self.drop_before_read(is_now, outlet);
    }

    fn drop_before_read(&mut self, stays: impl Fn(Position) -> bool, outlet: &mut impl Outlet) {
        let mut left = std::mem::take(&mut self.before_read);
        let mut freed = 0;
        self.waiting.retain(|envelope| {
            let is_older = left > 0;
            left = left.saturating_sub(1);
            let stays = !is_older || envelope.publication.position.is_none_or(&stays);
            freed += if stays { 0 } else { size(envelope) };
            stays
        });
        self.waiting_bytes -= freed;
        outlet.release(freed);
    }

    /// The place before the first publication that waits and has one.
    pub(super) fn first_place(&self) -> Option<Place> {
        let place = |envelope: &Envelope| {
            let position = envelope.publication.position?;
            let offset = position.offset.saturating_sub(1);
            Some(Place { position: Position { offset, ..position }, tag: envelope.tags?.previous })
        };
        self.waiting.iter().find_map(place)
    }

    fn let_go(&mut self, outlet: &mut impl Outlet) {
        while let Some(envelope) = self.pop(outlet) {
            self.spill(envelope.tags.is_some(), outlet);
        }
        self.waiting = VecDeque::new();
        self.before_read = 0;
    }

    fn spill(&mut self, is_placed: bool, outlet: &mut impl Outlet) {
        match is_placed {
            true => {
                self.spilled_placed = true;
                outlet.counters().put_off.fetch_add(1, Relaxed);
            }
            false => {
                self.spilled_plain = true;
                outlet.counters().dropped.fetch_add(1, Relaxed);
            }
        }
    }
}

fn size(envelope: &Envelope) -> usize {
    let event = envelope.publication.event.as_ref().map_or(0, |event| event.len());
    size_of::<Envelope>() + event + envelope.publication.payload.bytes().len()
}
