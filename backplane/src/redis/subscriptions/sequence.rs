//! The sequence of one subscribed channel: what arrives becomes what is handed over, once and in order, and what
//! cannot be becomes a gap. Pure: no I/O, no clock; what has to be asked or awaited is returned as an [`Ask`].
//!
//! A channel is *live* while each publication follows the last. Anything else is a *repair*: publications wait in a
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
    cause::Cause,
    outlet::Outlet,
    repair::{Repair, Stage},
};
use crate::{
    Epoch, Gap, GapReason, Intake, Position, Publication,
    redis::envelope::{Envelope, Place, Tag, Tags},
};

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
    /// Grows when a repair begins or takes another turn.
    serial: u32,
    /// The baseline is known.
    is_based: bool,
    /// A publication without position came by: an interruption may have cost one, whatever the stream has.
    has_plain: bool,
    /// The server no longer knows the channel, and that was told. `last` is kept: what is still under way of it, or
    /// comes back with an older copy of the data, is not handed over again.
    is_lost: bool,
    repair: Option<Box<Repair>>,
}

const _: () = assert!(size_of::<Sequence>() <= 64);

/// What of a sequence goes on in another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SequenceParts {
    pub(super) last: Option<Place>,
    pub(super) overlap: u64,
    pub(super) has_plain: bool,
    pub(super) is_lost: bool,
    pub(super) is_live: bool,
}

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
        let repair = Some(Box::new(Repair::new(Cause::Reconnect, Stage::Interrupted)));
        Self { last: None, overlap: 0, serial: 0, is_based: false, has_plain: false, is_lost: false, repair }
    }

    /// `None`: nobody counts on it yet.
    pub(super) fn parts(&self) -> Option<SequenceParts> {
        let &Self { last, overlap, has_plain, is_lost, .. } = self;
        let owes_plain = self.repair.as_ref().is_some_and(|repair| repair.owes_plain());
        let has_plain = has_plain || owes_plain;
        self.is_based.then_some(SequenceParts { last, overlap, has_plain, is_lost, is_live: self.is_live() })
    }

    /// Of another process. One that was in a repair has had its subscription interrupted.
    pub(super) fn of(parts: SequenceParts) -> Self {
        let SequenceParts { last, overlap, has_plain, is_lost, is_live } = parts;
        let repair = (!is_live).then(|| Box::new(Repair::interrupted()));
        Self { last, overlap, has_plain, is_lost, repair, is_based: true, serial: 0 }
    }

    /// Whether everything that is accepted from now on will be handed over or told.
    pub(super) fn is_based(&self) -> bool {
        self.is_based
    }

    pub(super) fn is_live(&self) -> bool {
        self.repair.is_none()
    }

    /// The subscription is gone; nothing arrives until [`confirmed`](Self::confirmed).
    pub(super) fn interrupted(&mut self, outlet: &mut impl Outlet) {
        self.serial = self.serial.wrapping_add(1);
        let mut repair = self.repair.take().unwrap_or_else(|| Repair::boxed(Cause::Reconnect));
        self.has_plain |= repair.interrupt(outlet);
        self.repair = Some(repair);
    }

    /// The server has the subscription.
    pub(super) fn confirmed(&mut self) -> Option<Ask> {
        match &mut self.repair {
            Some(repair) if repair.stage == Stage::Interrupted => Some(self.check()),
            _ => None,
        }
    }

    /// A publication arrived.
    pub(super) fn arrived(&mut self, envelope: Envelope, outlet: &mut impl Outlet) -> Option<Ask> {
        if let Some(repair) = &mut self.repair {
            repair.keep(envelope, outlet);
            return None;
        }
        let relation = self.relation(&envelope);
        if let Relation::Doubt(cause, position) = relation {
            let mut repair = Repair::boxed(cause);
            repair.keep(envelope, outlet);
            return Some(self.read_from(repair, position.epoch, outlet));
        }
        let begins = self.last.is_none() && envelope.tags.is_some();
        if self.hand_over(relation, envelope.publication, outlet) {
            // History begins: its age is to be known, so that it is renewed in time.
            return self.look().filter(|_| begins);
        }
        let mut repair = Repair::boxed(Cause::Overflow);
        repair.stall(envelope.tags.is_some(), outlet);
        Some(self.pause(repair, Pause::Full))
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
        let Some(mut repair) = self.repair.take() else {
            return self.checked_live(handed, answer.ok()?, outlet);
        };
        let Ok(top) = answer else {
            repair.stage = Stage::Failed { checking: true };
            return Some(self.pause(repair, Pause::Failed));
        };
        if !self.is_based {
            return self.begin(repair, top, outlet);
        }
        match self.last {
            Some(last) if top == Some(last) => {
                self.is_lost = false;
                self.caught_up(repair, outlet)
            }
            Some(last) if top.is_some() || !self.is_lost => {
                Some(self.read_from(repair, last.position.epoch, outlet))
            }
            _ => {
                self.jump(&mut repair, top, None, outlet);
                self.caught_up(repair, outlet)
            }
        }
    }

    /// What was under way when a look found the channel ahead had its time to arrive.
    pub(super) fn grace_over(&mut self, serial: u32, top: Place, outlet: &mut impl Outlet) -> Option<Ask> {
        if serial != self.serial || !self.is_live() || !self.is_behind(top) {
            return None;
        }
        outlet.counters().found_by_check.fetch_add(1, Relaxed);
        Some(self.read_from(Repair::boxed(Cause::Check), top.position.epoch, outlet))
    }

    pub(super) fn page(
        &mut self,
        serial: u32,
        page: Result<Page, Failed>,
        outlet: &mut impl Outlet,
    ) -> Option<Ask> {
        let (mut repair, last) = match (serial == self.serial, self.last) {
            (true, Some(last)) => (self.repair.take()?, last),
            _ => return None,
        };
        let Ok(page) = page else {
            repair.stage = Stage::Failed { checking: false };
            return Some(self.pause(repair, Pause::Failed));
        };
        let top = match page.top {
            Some(top) if top.position.epoch == last.position.epoch => top,
            top => {
                repair.drop_stale(top, outlet);
                let reason = match is_forgotten(&repair, top) {
                    true => GapReason::Forgotten,
                    false => GapReason::Unrecoverable,
                };
                self.jump(&mut repair, top, Some(reason), outlet);
                return self.caught_up(repair, outlet);
            }
        };
        let is_rewritten = match page.since_tag {
            Some(tag) => tag != last.tag,
            None => top.position.offset < last.position.offset || repair.cause == Cause::Rewritten,
        };
        if is_rewritten {
            return Some(self.renounce(repair, top.position.epoch));
        }
        repair.drop_read(outlet);
        // After an interruption, other publications may stand where ours stood. If the stream no longer has the one
        // that would prove the contrary, what follows it may not be what followed ours.
        let is_proven = page.since_tag.is_some() || !repair.must_verify;
        if !is_proven || !follows(&page, last, top) {
            self.jump(&mut repair, Some(top), None, outlet);
            return self.caught_up(repair, outlet);
        }
        repair.must_verify = false;
        self.is_lost = false;
        self.hand_over_page(repair, page.publications, top, outlet)
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
        let mut repair = self.repair.take()?;
        if answer.is_err() {
            repair.stage = Stage::Failed { checking: false };
            return Some(self.pause(repair, Pause::Failed));
        }
        Some(self.read_again(repair, outlet))
    }

    pub(super) fn retry(&mut self, serial: u32, outlet: &mut impl Outlet) -> Option<Ask> {
        if serial != self.serial {
            return None;
        }
        let repair = self.repair.take()?;
        match repair.stage {
            Stage::Failed { checking: true } => {
                self.repair = Some(repair);
                Some(self.check())
            }
            Stage::Failed { checking: false } => Some(self.read_again(repair, outlet)),
            _ => self.release(repair, outlet),
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
        mut repair: Box<Repair>,
        top: Option<Place>,
        outlet: &mut impl Outlet,
    ) -> Option<Ask> {
        self.is_based = true;
        repair.must_verify = false;
        repair.was_interrupted = false;
        self.last = repair.first_place().or(top);
        self.overlap = self.last.map_or(0, |last| last.position.offset);
        let ask = self.release(repair, outlet);
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
        Some(self.read_from(Repair::boxed(Cause::Check), epoch, outlet))
    }

    fn is_behind(&self, top: Place) -> bool {
        self.last.is_none_or(|Place { position: last, .. }| {
            last.epoch != top.position.epoch || last.offset < top.position.offset
        })
    }

    /// Tells a gap, and goes on where the channel stands: before what arrived, if that is the first thing missing.
    fn jump(
        &mut self,
        repair: &mut Repair,
        top: Option<Place>,
        reason: Option<GapReason>,
        outlet: &mut impl Outlet,
    ) {
        let is_waiting = |first: &Place, top: Place| {
            first.position.epoch == top.position.epoch && first.position.offset <= top.position.offset
        };
        let is_new_epoch =
            self.last.is_none_or(|last| top.is_some_and(|top| top.position.epoch != last.position.epoch));
        let first = repair
            .first_place()
            .filter(|first| is_new_epoch && top.is_some_and(|top| is_waiting(first, top)));
        self.is_lost = top.is_none() && self.last.is_some();
        self.last = first.or(top).or(self.last);
        self.overlap = self.last.map_or(0, |last| last.position.offset);
        repair.must_verify = false;
        repair.is_told = true;
        tell(reason.unwrap_or(repair.cause.reason()), first.or(top), outlet);
    }

    fn hand_over_page(
        &mut self,
        mut repair: Box<Repair>,
        publications: Vec<(Tag, Arc<Publication>)>,
        top: Place,
        outlet: &mut impl Outlet,
    ) -> Option<Ask> {
        for (tag, publication) in publications {
            let Some(position) = publication.position else { continue };
            if outlet.publication(publication) == Intake::Full {
                repair.stall(true, outlet);
                return Some(self.pause(repair, Pause::Full));
            }
            outlet.counters().repaired.fetch_add(1, Relaxed);
            self.last = Some(Place { position, tag });
        }
        repair.is_probe = false;
        if self.is_behind(top) {
            return Some(self.read_from(repair, top.position.epoch, outlet));
        }
        self.overlap = top.position.offset;
        self.caught_up(repair, outlet)
    }

    fn caught_up(&mut self, mut repair: Box<Repair>, outlet: &mut impl Outlet) -> Option<Ask> {
        self.overlap = self.last.map_or(0, |last| last.position.offset);
        if repair.was_interrupted {
            outlet.presence_lost();
        }
        if repair.was_interrupted && self.has_plain && !repair.is_told {
            repair.is_told = true;
            tell(GapReason::Reconnect, self.last, outlet);
        }
        repair.was_interrupted = false;
        repair.must_verify = false;
        self.release(repair, outlet)
    }

    /// Hands over what waited; ends the repair if that is all.
    fn release(&mut self, mut repair: Box<Repair>, outlet: &mut impl Outlet) -> Option<Ask> {
        if repair.spilled_placed && repair.stage == Stage::Stalled {
            return Some(self.read_again(repair, outlet));
        }
        while let Some(envelope) = repair.pop(outlet) {
            let relation = self.relation(&envelope);
            if let Relation::Doubt(cause, position) = relation {
                repair.put_back(envelope, outlet);
                repair.cause = cause;
                return Some(self.read_from(repair, position.epoch, outlet));
            }
            let is_placed = envelope.tags.is_some();
            if !self.hand_over(relation, envelope.publication, outlet) {
                repair.stall(is_placed, outlet);
                return Some(self.pause(repair, Pause::Full));
            }
        }
        if repair.spilled_placed {
            return Some(self.read_again(repair, outlet));
        }
        if repair.spilled_plain {
            tell(GapReason::Overflow, self.last, outlet);
        }
        self.serial = self.serial.wrapping_add(1);
        None
    }

    fn read_again(&mut self, mut repair: Box<Repair>, outlet: &mut impl Outlet) -> Ask {
        if let Some(last) = self.last {
            return self.read_from(repair, last.position.epoch, outlet);
        }
        repair.spilled_placed = false;
        self.repair = Some(repair);
        self.check()
    }

    /// Asks for the stream from the last place; from the beginning of `epoch` if there is none.
    fn read_from(&mut self, mut repair: Box<Repair>, epoch: Epoch, outlet: &mut impl Outlet) -> Ask {
        let since =
            *self.last.get_or_insert(Place { position: Position { epoch, offset: 0 }, tag: Tag::NONE });
        repair.begin_read(outlet);
        let probe = repair.is_probe;
        self.serial = self.serial.wrapping_add(1);
        self.repair = Some(repair);
        Ask::Page { serial: self.serial, since, probe }
    }

    fn renounce(&mut self, mut repair: Box<Repair>, epoch: Epoch) -> Ask {
        repair.stage = Stage::Renouncing;
        self.serial = self.serial.wrapping_add(1);
        self.repair = Some(repair);
        Ask::Renounce { serial: self.serial, epoch }
    }

    fn pause(&mut self, repair: Box<Repair>, after: Pause) -> Ask {
        self.serial = self.serial.wrapping_add(1);
        self.repair = Some(repair);
        Ask::Retry { serial: self.serial, after }
    }

    /// In a repair: asks where the channel stands.
    fn check(&mut self) -> Ask {
        if let Some(repair) = &mut self.repair {
            repair.stage = Stage::Checking;
        }
        self.serial = self.serial.wrapping_add(1);
        Ask::Position { serial: self.serial, handed: self.last }
    }
}

fn before(position: Position, previous: Tag) -> Place {
    Place { position: Position { offset: position.offset.saturating_sub(1), ..position }, tag: previous }
}

/// Whether a page has what comes right after `last`.
/// Whether the server has lost the history of a channel whose subscription was whole all the time: what was accepted
/// before came by, and what is accepted in the new epoch does from its first publication on.
fn is_forgotten(repair: &Repair, top: Option<Place>) -> bool {
    let begins = |first: Place| {
        first.position.offset == 0 && top.is_some_and(|top| top.position.epoch == first.position.epoch)
    };
    match repair.cause {
        _ if repair.was_interrupted => false,
        Cause::Epoch => repair.first_place().is_some_and(begins),
        Cause::Check => top.is_none(),
        _ => false,
    }
}

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
