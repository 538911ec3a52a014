//! The sequence of one subscribed channel: what arrives becomes what is handed over, once and in order, and what
//! cannot be becomes a gap. Pure: no I/O, no clock; what has to be asked or awaited is returned as an [`Ask`].
//!
//! A channel is *live* while each publication follows the last. Anything else is a *detour*: publications wait in a
//! bounded buffer until the stream has told what was missed.
//!
//! ```text
//! interrupted ─ confirmed ─► checking ─ nothing missed ──────────────► live
//!                               └─ behind ─► reading ─ caught up ─► (what waited) ─► live
//! live ─ hole, other epoch, other tag ─────►   │ ▲
//! live ─ sink full ─► stalled ─ retry ─────────┘ └─ renouncing ◄─ history was rewritten
//! ```

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::{
    counters::Counters,
    detour::{Cause, Detour, Stage},
};
use crate::{
    Epoch, Gap, GapReason, Intake, Position, Publication,
    redis::envelope::{Envelope, Place, Tag, Tags},
};

/// Where a sequence hands over, and what bounds its memory.
pub(super) trait Outlet {
    fn publication(&mut self, publication: Arc<Publication>) -> Intake;
    fn gap(&mut self, gap: Gap);
    /// Changes of who is in the channel may have been missed.
    fn census_lost(&mut self);
    /// Takes memory for a publication that waits; false when the node has none left.
    fn reserve(&mut self, bytes: usize) -> bool;
    fn release(&mut self, bytes: usize);
    fn counters(&self) -> &Counters;
}

/// What a sequence needs done. The serial comes back with the answer; one that is out of date is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// Where the channel stands. Answer: [`Sequence::checked`], with the place that was handed over when asked.
    Position { serial: u32, handed: Option<Place> },
    /// A page of the stream. `probe`: a small one, the sink had no room a moment ago. Answer: [`Sequence::page`].
    Page { serial: u32, since: Place, probe: bool },
    /// A new epoch in the place of this one. Answer: [`Sequence::renounced`].
    Renounce { serial: u32, epoch: Epoch },
    /// Time for what is under way to arrive. Then [`Sequence::grace_over`].
    Grace { serial: u32, top: Place },
    /// A pause. Then [`Sequence::retry`].
    Retry { serial: u32, after: Pause },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    /// The sink had no room.
    Full,
    /// The server did not answer.
    Failed,
}

/// A part of a stream.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Consecutive, oldest first.
    pub(super) publications: Vec<(Tag, Arc<Publication>)>,
    /// Where the channel stood when it was read.
    pub(super) top: Option<Place>,
    /// The tag that the channel has at the position after which was read; `None` when that is not there.
    pub(super) since_tag: Option<Tag>,
}

/// The call failed, whatever the reason; it is made again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failed;

/// 64 bytes, while live nothing more.
#[derive(Debug)]
pub(super) struct Sequence {
    /// The last place that was handed over, or the baseline. `None`: the channel had no history.
    last: Option<Place>,
    /// Publications of this epoch up to here were read from the stream, and may still arrive.
    overlap: u64,
    /// Grows when a detour begins or takes another turn.
    serial: u32,
    /// The baseline is known.
    is_based: bool,
    /// A publication without position came by: an interruption may have cost one, whatever the stream has.
    has_plain: bool,
    /// The server no longer knows the channel, and that was told. `last` is kept: what is still under way of it, or
    /// comes back with an older copy of the data, is not handed over again.
    is_lost: bool,
    detour: Option<Box<Detour>>,
}

const _: () = assert!(size_of::<Sequence>() <= 64);

/// What a publication is to the last one that was handed over.
enum Relation {
    Plain,
    Next(Position, Tags),
    Old,
    Doubt(Cause, Position),
}

impl Sequence {
    /// Of a channel that is about to be subscribed.
    pub(super) fn new() -> Self {
        let detour = Some(Box::new(Detour::new(Cause::Reconnect, Stage::Interrupted)));
        Self { last: None, overlap: 0, serial: 0, is_based: false, has_plain: false, is_lost: false, detour }
    }

    /// Whether everything that is accepted from now on will be handed over or told.
    pub(super) fn is_based(&self) -> bool {
        self.is_based
    }

    pub(super) fn is_live(&self) -> bool {
        self.detour.is_none()
    }

    /// The subscription is gone; nothing arrives until [`confirmed`](Self::confirmed).
    pub(super) fn interrupted(&mut self, outlet: &mut impl Outlet) {
        self.serial = self.serial.wrapping_add(1);
        let mut detour = self.detour.take().unwrap_or_else(|| Detour::boxed(Cause::Reconnect));
        self.has_plain |= detour.interrupt(outlet);
        self.detour = Some(detour);
    }

    /// The server has the subscription.
    pub(super) fn confirmed(&mut self) -> Option<Ask> {
        match &mut self.detour {
            Some(detour) if detour.stage == Stage::Interrupted => Some(self.check()),
            _ => None,
        }
    }

    /// A publication arrived.
    pub(super) fn arrived(&mut self, envelope: Envelope, outlet: &mut impl Outlet) -> Option<Ask> {
        if let Some(detour) = &mut self.detour {
            detour.keep(envelope, outlet);
            return None;
        }
        let relation = self.relation(&envelope);
        if let Relation::Doubt(cause, position) = relation {
            let mut detour = Detour::boxed(cause);
            detour.keep(envelope, outlet);
            return Some(self.read_from(detour, position.epoch, outlet));
        }
        let begins = self.last.is_none() && envelope.tags.is_some();
        if self.hand_over(relation, envelope.publication, outlet) {
            // History begins: its age is to be known, so that it is renewed in time.
            return self.look().filter(|_| begins);
        }
        let mut detour = Detour::boxed(Cause::Overflow);
        detour.stall(envelope.tags.is_some(), outlet);
        Some(self.pause(detour, Pause::Full))
    }

    /// A look at the position of a live channel, made now and then.
    pub(super) fn look(&self) -> Option<Ask> {
        self.is_live().then_some(Ask::Position { serial: self.serial, handed: self.last })
    }

    pub(super) fn checked(
        &mut self,
        serial: u32,
        handed: Option<Place>,
        answer: Result<Option<Place>, Failed>,
        outlet: &mut impl Outlet,
    ) -> Option<Ask> {
        if serial != self.serial {
            return None;
        }
        let Some(mut detour) = self.detour.take() else {
            return self.checked_live(handed, answer.ok()?, outlet);
        };
        let Ok(top) = answer else {
            detour.stage = Stage::Failed { checking: true };
            return Some(self.pause(detour, Pause::Failed));
        };
        if !self.is_based {
            return self.begin(detour, top, outlet);
        }
        match self.last {
            Some(last) if top == Some(last) => {
                self.is_lost = false;
                self.caught_up(detour, outlet)
            }
            Some(last) if top.is_some() || !self.is_lost => {
                Some(self.read_from(detour, last.position.epoch, outlet))
            }
            _ => {
                self.jump(&mut detour, top, None, outlet);
                self.caught_up(detour, outlet)
            }
        }
    }

    /// What was under way when a look found the channel ahead had its time to arrive.
    pub(super) fn grace_over(&mut self, serial: u32, top: Place, outlet: &mut impl Outlet) -> Option<Ask> {
        if serial != self.serial || !self.is_live() || !self.is_behind(top) {
            return None;
        }
        outlet.counters().found_by_check.fetch_add(1, Relaxed);
        Some(self.read_from(Detour::boxed(Cause::Check), top.position.epoch, outlet))
    }

    pub(super) fn page(
        &mut self,
        serial: u32,
        page: Result<Page, Failed>,
        outlet: &mut impl Outlet,
    ) -> Option<Ask> {
        let (mut detour, last) = match (serial == self.serial, self.last) {
            (true, Some(last)) => (self.detour.take()?, last),
            _ => return None,
        };
        let Ok(page) = page else {
            detour.stage = Stage::Failed { checking: false };
            return Some(self.pause(detour, Pause::Failed));
        };
        let top = match page.top {
            Some(top) if top.position.epoch == last.position.epoch => top,
            top => {
                detour.drop_stale(top, outlet);
                self.jump(&mut detour, top, Some(GapReason::Unrecoverable), outlet);
                return self.caught_up(detour, outlet);
            }
        };
        let is_rewritten = match page.since_tag {
            Some(tag) => tag != last.tag,
            None => top.position.offset < last.position.offset || detour.cause == Cause::Rewritten,
        };
        if is_rewritten {
            return Some(self.renounce(detour, top.position.epoch));
        }
        detour.drop_read(outlet);
        // After an interruption, other publications may stand where ours stood. If the stream no longer has the one
        // that would prove the contrary, what follows it may not be what followed ours.
        let is_proven = page.since_tag.is_some() || !detour.must_verify;
        if !is_proven || !follows(&page, last, top) {
            self.jump(&mut detour, Some(top), None, outlet);
            return self.caught_up(detour, outlet);
        }
        detour.must_verify = false;
        self.is_lost = false;
        self.hand_over_page(detour, page.publications, top, outlet)
    }

    /// The channel has another epoch now: the stream tells.
    pub(super) fn renounced(
        &mut self,
        serial: u32,
        answer: Result<(), Failed>,
        outlet: &mut impl Outlet,
    ) -> Option<Ask> {
        if serial != self.serial {
            return None;
        }
        let mut detour = self.detour.take()?;
        if answer.is_err() {
            detour.stage = Stage::Failed { checking: false };
            return Some(self.pause(detour, Pause::Failed));
        }
        Some(self.read_again(detour, outlet))
    }

    pub(super) fn retry(&mut self, serial: u32, outlet: &mut impl Outlet) -> Option<Ask> {
        if serial != self.serial {
            return None;
        }
        let detour = self.detour.take()?;
        match detour.stage {
            Stage::Failed { checking: true } => {
                self.detour = Some(detour);
                Some(self.check())
            }
            Stage::Failed { checking: false } => Some(self.read_again(detour, outlet)),
            _ => self.release(detour, outlet),
        }
    }

    fn relation(&self, envelope: &Envelope) -> Relation {
        let (Some(tags), Some(position)) = (envelope.tags, envelope.publication.position) else {
            return Relation::Plain;
        };
        let Some(Place { position: last, tag }) = self.last else {
            return match position.offset {
                1 => Relation::Next(position, tags),
                _ => Relation::Doubt(Cause::Hole, position),
            };
        };
        if position.epoch != last.epoch {
            // That everything before it is gone was told when it was found: nobody is told a second time.
            return match self.is_lost && position.offset == 1 {
                true => Relation::Next(position, tags),
                false => Relation::Doubt(Cause::Epoch, position),
            };
        }
        let ahead = position.offset.cmp(&last.offset.saturating_add(1));
        match ahead {
            std::cmp::Ordering::Equal if tags.previous == tag => Relation::Next(position, tags),
            std::cmp::Ordering::Equal => Relation::Doubt(Cause::Rewritten, position),
            std::cmp::Ordering::Greater => Relation::Doubt(Cause::Hole, position),
            // The same offset twice, for two publications.
            std::cmp::Ordering::Less if position.offset == last.offset && tags.own != tag => {
                Relation::Doubt(Cause::Rewritten, position)
            }
            std::cmp::Ordering::Less if position.offset <= self.overlap => Relation::Old,
            // Nothing was read from the stream that far: offsets may have been taken back.
            std::cmp::Ordering::Less => Relation::Doubt(Cause::Hole, position),
        }
    }

    /// False: the sink has no room.
    fn hand_over(&mut self, relation: Relation, publication: Publication, outlet: &mut impl Outlet) -> bool {
        match relation {
            Relation::Plain => {
                self.has_plain = true;
                outlet.publication(Arc::new(publication)) == Intake::Taken
            }
            Relation::Next(position, tags) => {
                if self.last.is_none_or(|last| last.position.epoch != position.epoch) {
                    self.last = Some(before(position, tags.previous));
                    self.overlap = 0;
                }
                let is_taken = outlet.publication(Arc::new(publication)) == Intake::Taken;
                if is_taken {
                    self.is_lost = false;
                    self.last = Some(Place { position, tag: tags.own });
                }
                is_taken
            }
            Relation::Old | Relation::Doubt(..) => {
                outlet.counters().already_handed.fetch_add(1, Relaxed);
                true
            }
        }
    }

    /// The baseline: what already arrived, or else where the channel stands.
    fn begin(
        &mut self,
        mut detour: Box<Detour>,
        top: Option<Place>,
        outlet: &mut impl Outlet,
    ) -> Option<Ask> {
        self.is_based = true;
        detour.must_verify = false;
        detour.was_interrupted = false;
        self.last = detour.first_place().or(top);
        self.overlap = self.last.map_or(0, |last| last.position.offset);
        let ask = self.release(detour, outlet);
        // What was under way when the position was read arrives shortly, or is missed and read.
        match top {
            Some(top) if ask.is_none() && self.is_behind(top) => {
                Some(Ask::Grace { serial: self.serial, top })
            }
            _ => ask,
        }
    }

    fn checked_live(
        &mut self,
        handed: Option<Place>,
        top: Option<Place>,
        outlet: &mut impl Outlet,
    ) -> Option<Ask> {
        let grace = top.filter(|top| self.is_behind(*top));
        let grace = grace.map(|top| Ask::Grace { serial: self.serial, top });
        let Some(handed) = handed else { return grace };
        let Position { epoch, offset } = handed.position;
        let is_taken_back = match top {
            None => !self.is_lost,
            Some(top) if top.position.epoch != epoch => false,
            Some(top) => {
                top.position.offset < offset || (top.position.offset == offset && top.tag != handed.tag)
            }
        };
        if !is_taken_back {
            return grace;
        }
        outlet.counters().found_by_check.fetch_add(1, Relaxed);
        Some(self.read_from(Detour::boxed(Cause::Check), epoch, outlet))
    }

    fn is_behind(&self, top: Place) -> bool {
        self.last.is_none_or(|Place { position: last, .. }| {
            last.epoch != top.position.epoch || last.offset < top.position.offset
        })
    }

    /// Tells a gap, and goes on where the channel stands: before what arrived, if that is the first thing missing.
    fn jump(
        &mut self,
        detour: &mut Detour,
        top: Option<Place>,
        reason: Option<GapReason>,
        outlet: &mut impl Outlet,
    ) {
        let is_waiting = |first: &Place, top: Place| {
            first.position.epoch == top.position.epoch && first.position.offset <= top.position.offset
        };
        let is_new_epoch =
            self.last.is_none_or(|last| top.is_some_and(|top| top.position.epoch != last.position.epoch));
        let first = detour
            .first_place()
            .filter(|first| is_new_epoch && top.is_some_and(|top| is_waiting(first, top)));
        self.is_lost = top.is_none() && self.last.is_some();
        self.last = first.or(top).or(self.last);
        self.overlap = self.last.map_or(0, |last| last.position.offset);
        detour.must_verify = false;
        detour.is_told = true;
        tell(reason.unwrap_or(detour.cause.reason()), first.or(top), outlet);
    }

    fn hand_over_page(
        &mut self,
        mut detour: Box<Detour>,
        publications: Vec<(Tag, Arc<Publication>)>,
        top: Place,
        outlet: &mut impl Outlet,
    ) -> Option<Ask> {
        for (tag, publication) in publications {
            let Some(position) = publication.position else { continue };
            if outlet.publication(publication) == Intake::Full {
                detour.stall(true, outlet);
                return Some(self.pause(detour, Pause::Full));
            }
            outlet.counters().repaired.fetch_add(1, Relaxed);
            self.last = Some(Place { position, tag });
        }
        detour.is_probe = false;
        if self.is_behind(top) {
            return Some(self.read_from(detour, top.position.epoch, outlet));
        }
        self.overlap = top.position.offset;
        self.caught_up(detour, outlet)
    }

    fn caught_up(&mut self, mut detour: Box<Detour>, outlet: &mut impl Outlet) -> Option<Ask> {
        self.overlap = self.last.map_or(0, |last| last.position.offset);
        if detour.was_interrupted {
            outlet.census_lost();
        }
        if detour.was_interrupted && self.has_plain && !detour.is_told {
            detour.is_told = true;
            tell(GapReason::Reconnect, self.last, outlet);
        }
        detour.was_interrupted = false;
        detour.must_verify = false;
        self.release(detour, outlet)
    }

    /// Hands over what waited; ends the detour if that is all.
    fn release(&mut self, mut detour: Box<Detour>, outlet: &mut impl Outlet) -> Option<Ask> {
        if detour.spilled_placed && detour.stage == Stage::Stalled {
            return Some(self.read_again(detour, outlet));
        }
        while let Some(envelope) = detour.pop(outlet) {
            let relation = self.relation(&envelope);
            if let Relation::Doubt(cause, position) = relation {
                detour.put_back(envelope, outlet);
                detour.cause = cause;
                return Some(self.read_from(detour, position.epoch, outlet));
            }
            let is_placed = envelope.tags.is_some();
            if !self.hand_over(relation, envelope.publication, outlet) {
                detour.stall(is_placed, outlet);
                return Some(self.pause(detour, Pause::Full));
            }
        }
        if detour.spilled_placed {
            return Some(self.read_again(detour, outlet));
        }
        if detour.spilled_plain {
            tell(GapReason::Overflow, self.last, outlet);
        }
        self.serial = self.serial.wrapping_add(1);
        None
    }

    fn read_again(&mut self, mut detour: Box<Detour>, outlet: &mut impl Outlet) -> Ask {
        if let Some(last) = self.last {
            return self.read_from(detour, last.position.epoch, outlet);
        }
        detour.spilled_placed = false;
        self.detour = Some(detour);
        self.check()
    }

    /// Asks for the stream from the last place; from the beginning of `epoch` if there is none.
    fn read_from(&mut self, mut detour: Box<Detour>, epoch: Epoch, outlet: &mut impl Outlet) -> Ask {
        let since =
            *self.last.get_or_insert(Place { position: Position { epoch, offset: 0 }, tag: Tag::NONE });
        detour.begin_read(outlet);
        let probe = detour.is_probe;
        self.serial = self.serial.wrapping_add(1);
        self.detour = Some(detour);
        Ask::Page { serial: self.serial, since, probe }
    }

    fn renounce(&mut self, mut detour: Box<Detour>, epoch: Epoch) -> Ask {
        detour.stage = Stage::Renouncing;
        self.serial = self.serial.wrapping_add(1);
        self.detour = Some(detour);
        Ask::Renounce { serial: self.serial, epoch }
    }

    fn pause(&mut self, detour: Box<Detour>, after: Pause) -> Ask {
        self.serial = self.serial.wrapping_add(1);
        self.detour = Some(detour);
        Ask::Retry { serial: self.serial, after }
    }

    /// In a detour: asks where the channel stands.
    fn check(&mut self) -> Ask {
        if let Some(detour) = &mut self.detour {
            detour.stage = Stage::Checking;
        }
        self.serial = self.serial.wrapping_add(1);
        Ask::Position { serial: self.serial, handed: self.last }
    }
}

fn before(position: Position, previous: Tag) -> Place {
    Place { position: Position { offset: position.offset.saturating_sub(1), ..position }, tag: previous }
}

/// Whether a page has what comes right after `last`.
fn follows(page: &Page, last: Place, top: Place) -> bool {
    match page.publications.first() {
        Some((_, first)) => first.position.is_some_and(|at| at.offset == last.position.offset + 1),
        None => last.position.offset == top.position.offset,
    }
}

fn tell(reason: GapReason, top: Option<Place>, outlet: &mut impl Outlet) {
    outlet.counters().gap(reason);
    outlet.gap(Gap { reason, top: top.map(|top| top.position) });
}
