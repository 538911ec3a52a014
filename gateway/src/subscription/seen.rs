//! What a client has of a channel, and so which deliveries are news to it.

use tidegate_backplane::Position;

/// The last position that a client was sent or told of, compared with what comes by.
///
/// History is ahead of delivery: a publication enters history first and reaches the shard a moment later. A client
/// that was sent it from history must not get it a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Seen {
    /// `None`: it has nothing, and everything is news.
    through: Option<Position>,
    /// The channel was seen to come to the epoch of `through`, or past it. Until then a publication of another epoch
    /// is one that was on its way when the epoch changed: a backplane tells a gap between two epochs.
    met: bool,
    /// The number of the last presence event that is in the list it was sent.
    presence: Option<u64>,
    /// Deliveries that waited in its lane when it joined. The machine has seen all of them already.
    skip: u32,
    /// It was sent nothing: `through` is only where the channel stood.
    is_new: bool,
}

/// A delivery, as far as the comparison needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    Publication(Option<Position>),
    Gap(Option<Position>),
    /// A presence event and its number.
    Presence(u64),
}

impl Seen {
    #[cfg(test)]
    pub(crate) fn through(position: Option<Position>) -> Self {
        Self { through: position, ..Self::default() }
    }

    /// What of it means something in another process: nothing waits in the lane that it joins there.
    pub(crate) fn parts(self) -> (Option<Position>, bool, bool, Option<u64>) {
        (self.through, self.met, self.is_new, self.presence)
    }

    pub(crate) fn from_parts(
        through: Option<Position>,
        met: bool,
        is_new: bool,
        presence: Option<u64>,
    ) -> Self {
        Self { through, met, presence, skip: 0, is_new }
    }

    pub(crate) fn position(&self) -> Option<Position> {
        self.through
    }

    /// It was sent the list of who is there, which holds the changes up to this number.
    pub(crate) fn set_presence(&mut self, sequence: u64) {
        self.presence = Some(sequence);
    }

    /// It was told of a presence event after the list.
    pub(super) fn advance_presence(&mut self, sequence: u64) {
        self.presence = self.presence.max(Some(sequence));
    }

    /// It joins a lane in which so many deliveries wait.
    pub(crate) fn set_skip(&mut self, waiting: usize) {
        self.skip = u32::try_from(waiting).unwrap_or(u32::MAX);
    }

    /// It was sent everything up to this position.
    pub(super) fn advance(&mut self, position: Option<Position>) {
        if let Some(position) = position {
            self.met &= self.through.is_some_and(|through| through.epoch == position.epoch);
            self.through = Some(position);
        }
    }

    /// The channel has nothing of the epoch of `through`, nor of any other: what comes by is of a new one.
    pub(super) fn set_past(&mut self) {
        self.met = true;
    }

    /// It was told where the channel stands, and sent nothing.
    pub(super) fn set_new(&mut self) {
        self.is_new = true;
    }

    /// Whether nothing that comes by can be a repetition. Of a channel that has delivered nothing yet that goes for a new
    /// client too: it need not follow, which would cost an idle one a box until the channel's next publication.
    pub(crate) fn has_nothing(&self, delivered: Option<Position>) -> bool {
        let has_none = self.through.is_none() || (self.is_new && delivered.is_none());
        has_none && self.presence.is_none()
    }

    /// Whether something that its lane brings is news. It counts as told from now on.
    pub(crate) fn follow(&mut self, arrival: Arrival) -> bool {
        let waited = self.skip > 0;
        self.skip = self.skip.saturating_sub(1);
        match arrival {
            // The list of who is there may be older than what waited.
            Arrival::Presence(_) => self.take(arrival),
            _ => !waited && self.take(arrival),
        }
    }

    /// Whether something that came by is news. It counts as told from now on.
    pub(crate) fn take(&mut self, arrival: Arrival) -> bool {
        let (position, is_gap) = match arrival {
            Arrival::Publication(position) => (position, false),
            Arrival::Gap(position) => (position, true),
            Arrival::Presence(sequence) => return self.presence.is_none_or(|presence| sequence > presence),
        };
        let is_news = match (self.through, position) {
            (Some(through), Some(position)) if through.epoch == position.epoch => {
                self.met = true;
                position.offset > through.offset
            }
            // History was read in an epoch that the channel's deliveries have not come to yet: this is older.
            (Some(_), Some(_)) if !self.met && !is_gap => false,
            _ => true,
        };
        if is_news {
            self.met |= is_gap;
            self.through = position.or(self.through);
        }
        is_news
    }

    /// Whether everything it was sent has also come by, so that nothing in its lane can be a repetition.
    pub(crate) fn is_settled(&self, delivered: Option<Position>) -> bool {
        let is_through = match (self.through, delivered) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(through), Some(delivered)) => {
                through.epoch == delivered.epoch && through.offset <= delivered.offset
            }
        };
        self.skip == 0 && is_through
    }
}

#[cfg(test)]
mod tests {
    use tidegate_backplane::Epoch;

    use super::*;

    fn position(epoch: u64, offset: u64) -> Option<Position> {
        Some(Position { epoch: Epoch(epoch), offset })
    }

    fn publication(epoch: u64, offset: u64) -> Arrival {
        Arrival::Publication(position(epoch, offset))
    }

    fn gap(epoch: u64, offset: u64) -> Arrival {
        Arrival::Gap(position(epoch, offset))
    }

    /// What comes by, and whether it is news.
    #[track_caller]
    fn check(through: Option<Position>, came: &[(Arrival, bool)]) {
        let mut seen = Seen::through(through);
        for (nth, (arrival, is_news)) in came.iter().enumerate() {
            assert_eq!(seen.take(*arrival), *is_news, "number {nth}");
        }
    }

    #[test]
    fn only_what_is_newer_is_news() {
        let came = [(publication(1, 4), false), (publication(1, 5), false), (publication(1, 6), true)];
        check(position(1, 5), &came);
        check(position(1, 5), &[(gap(1, 5), false), (gap(1, 9), true), (publication(1, 9), false)]);
        let plain = Arrival::Publication(None);
        check(None, &[(publication(1, 1), true), (publication(1, 1), false), (plain, true)]);
    }

    /// History was read after the epoch changed, and the backplane hands over what was before.
    #[test]
    fn an_older_epoch_that_comes_late_is_not_news() {
        let came = [
            (publication(1, 8), false),
            (publication(1, 9), false),
            (gap(2, 0), false),
            (publication(2, 2), false),
            (publication(2, 3), true),
        ];
        check(position(2, 2), &came);
    }

    #[test]
    fn a_newer_epoch_is_news() {
        check(position(1, 5), &[(publication(1, 6), true), (publication(2, 1), true)]);
        check(position(1, 5), &[(gap(2, 0), true), (publication(2, 1), true), (publication(2, 1), false)]);
        check(position(2, 5), &[(publication(1, 9), false), (gap(3, 0), true), (publication(3, 1), true)]);
    }

    #[test]
    fn changes_that_are_in_its_list_are_no_news() {
        let mut seen = Seen::default();
        assert!(seen.has_nothing(None) && seen.take(Arrival::Presence(1)));
        seen.set_presence(7);
        assert!(!seen.has_nothing(None));
        assert_eq!([6, 7, 8].map(|number| seen.take(Arrival::Presence(number))), [false, false, true]);
    }

    #[test]
    fn what_waited_in_its_lane_is_passed_over() {
        let mut seen = Seen::through(position(1, 5));
        seen.set_skip(2);
        assert!(!seen.is_settled(position(1, 5)));
        let plain = Arrival::Publication(None);
        assert_eq!([(); 3].map(|()| seen.follow(plain)), [false, false, true]);
        assert!(seen.is_settled(position(1, 5)) && !seen.is_settled(position(1, 4)));
        assert!(!seen.is_settled(position(2, 9)) && !seen.is_settled(None));
    }
}
