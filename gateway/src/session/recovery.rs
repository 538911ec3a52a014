//! Coming back to a channel without loss or repetition.
//!
//! While history is read, live publications are kept ([`Kept`]); then history is written, then what was kept and
//! is newer. Some of it may still be on its way to this shard, so the connection then *follows* (see `hub`): of
//! what is delivered it is written only what is newer than what it has ([`Recovery::take`]).

use std::sync::Arc;

use tidegate_backplane::{Gap, GapReason, History, HistoryQuery, Position};

use super::{Ctx, Rare, ids::Fresh};
use crate::{
    hub::ChannelKey,
    hub::outgoing::{Content, Encoding},
};

/// A channel whose history was sent to the connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recovery {
    pub(crate) key: ChannelKey,
    /// The last position it was sent, or told of. `None`: the channel had none.
    pub(crate) through: Option<Position>,
    /// The number of the last change of who is in the channel that it was told of, where it is told.
    pub(crate) census: Option<u64>,
    /// The lane has come to the epoch of `through`, or past it. Until then a publication of another epoch is one
    /// that was on its way when the epoch changed: a backplane tells a gap between two epochs.
    met: bool,
}

/// From where a channel's history is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Want {
    After(Position),
    /// The client of an event stream had nothing of it when it was opened.
    Fresh(Fresh),
    /// It is new here: only where the channel stands, for the id it will come back with.
    Now,
}

#[derive(Debug)]
pub(crate) struct Recovering {
    pub(crate) want: Want,
    pub(crate) kept: Kept,
    pub(crate) history: Option<History>,
    pub(crate) reads_left: u8,
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

/// Reads of history, when too much is published meanwhile to be kept.
const READS_MAX: u8 = 3;

/// Most that is kept for one recovering channel: what a busy channel publishes while history is read.
const KEPT_BYTES_MAX: usize = 256 * 1024;

impl Recovery {
    pub(crate) fn new(key: ChannelKey) -> Self {
        Self { key, through: None, census: None, met: false }
    }

    /// Whether nothing in its lane can be a repetition.
    pub(crate) fn has_nothing(&self) -> bool {
        self.through.is_none() && self.census.is_none()
    }

    /// Whether a publication or gap is news to the connection; it counts as told from now on.
    pub(crate) fn take(&mut self, content: &Content) -> bool {
        if let Content::Census(event) = content {
            return self.census.is_none_or(|census| event.sequence > census);
        }
        let position = content.position();
        let is_news = match (self.through, position) {
            (Some(through), Some(position)) if through.epoch == position.epoch => {
                self.met = true;
                position.offset > through.offset
            }
            // History was read in an epoch that the lane has not come to yet: this is from one before.
            (Some(_), Some(_)) if !self.met && matches!(content, Content::Publication(_)) => false,
            _ => true,
        };
        if is_news {
            self.met |= matches!(content, Content::Gap(_));
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
            Content::Gap(_) | Content::Census(_) => 0,
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

impl Recovering {
    pub(crate) fn new(want: Want) -> Self {
        Self { want, kept: Kept::default(), history: None, reads_left: READS_MAX }
    }

    /// Whether the client is new here and is sent nothing yet: then nothing in its lane can be a repetition, and it
    /// need not follow, which would cost an idle stream a box until the channel's next publication.
    pub(crate) fn has_nothing(&self) -> bool {
        matches!(self.want, Want::Now) && self.kept.is_empty()
    }
}

impl Ctx<'_> {
    pub(crate) fn read_history(&mut self, key: ChannelKey, want: Want) {
        let backplane = Arc::clone(self.core.shared.node.backplane());
        let channel = self.core.hub.channel(key).clone();
        let query = match want {
            Want::After(position) => HistoryQuery { since: Some(position), limit: usize::MAX },
            Want::Fresh(_) => HistoryQuery { since: None, limit: usize::MAX },
            Want::Now => HistoryQuery { since: None, limit: 0 },
        };
        let read = async move { backplane.history(&channel, query).await };
        self.run(read, move |ctx, result| ctx.history_read(key, result));
    }

    /// Where a channel stands for the client before anything of it is written.
    pub(crate) fn place(&self, recovering: &Recovering) -> Option<Position> {
        let top = recovering.history.as_ref().and_then(|history| history.top);
        Some(match recovering.want {
            Want::After(position) => position,
            Want::Fresh(fresh) => fresh.position(self.core.shared.life),
            Want::Now => {
                top.unwrap_or_else(|| Fresh::place(self.core.shared.life, self.core.shared.started.elapsed()))
            }
        })
    }

    /// The id that an event stream comes back with when nothing else is sent to it.
    pub(crate) fn standing_id(&self, recovery: &Recovery, rare: &mut Rare) -> Option<String> {
        let place = recovery
            .through
            .unwrap_or_else(|| Fresh::place(self.core.shared.life, self.core.shared.started.elapsed()));
        match rare.positions.is_empty() {
            true => Some(place.to_string()),
            false => rare.advance(recovery.key, Some(place)),
        }
    }

    /// Appends what a client missed in a channel, or that it cannot be had. False: its protocol cannot say so.
    pub(crate) fn write_recovered(
        &mut self,
        mut recovery: Recovery,
        recovering: Recovering,
        encoding: Encoding,
        rare: &mut Rare,
        out: &mut Vec<u8>,
    ) -> (Recovery, bool) {
        let Some(history) = recovering.history else { return (recovery, true) };
        recovery.through = history.top;
        let mut contents: Vec<Content> = match history.continuous {
            true => history.publications.into_iter().map(Content::Publication).collect(),
            false => vec![Content::Gap(Gap { reason: GapReason::Unrecoverable, top: history.top })],
        };
        contents.extend(recovering.kept.into_news(&mut recovery));
        let channel = self.core.hub.channel(recovery.key).clone();
        let told = contents.iter().take_while(|content| {
            let before = out.len();
            match encoding.is_individual() {
                true => {
                    let id = rare.advance(recovery.key, content.position());
                    self.core.encoder.encode_sse(&channel, content, encoding, id.as_deref(), out);
                }
                false => {
                    out.extend_from_slice(&self.core.encoder.encode(&channel, content, encoding.plain()))
                }
            }
            out.len() > before
        });
        let told = told.count();
        self.core.metrics.messages_sent.add(told as u64);
        (recovery, told == contents.len())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tidegate_backplane::{CensusEvent, CensusKind, Epoch, Payload, Publication};

    use super::*;

    /// What comes by: a publication or a gap at an epoch and offset; whether it is news.
    enum Came {
        Publication(u64, u64, bool),
        Gap(u64, u64, bool),
        /// A publication of a channel without history.
        Plain,
    }
    use Came::*;

    #[track_caller]
    fn check(through: Option<(u64, u64)>, came: &[Came]) {
        let position = |epoch, offset| Some(Position { epoch: Epoch(epoch), offset });
        let through = through.and_then(|(epoch, offset)| position(epoch, offset));
        let mut recovery = Recovery { through, ..Recovery::new(0) };
        for (nth, came) in came.iter().enumerate() {
            let publication = |position| {
                let payload = Payload::Text(Bytes::new());
                Content::Publication(Arc::new(Publication { position, event: None, payload, sender: None }))
            };
            let (content, is_news) = match *came {
                Publication(epoch, offset, is_news) => (publication(position(epoch, offset)), is_news),
                Gap(epoch, offset, is_news) => {
                    let (reason, top) = (GapReason::Reconnect, position(epoch, offset));
                    (Content::Gap(tidegate_backplane::Gap { reason, top }), is_news)
                }
                Plain => (publication(None), true),
            };
            assert_eq!(recovery.take(&content), is_news, "number {nth}");
        }
    }

    #[test]
    fn changes_that_are_in_its_list_are_no_news() {
        let event = |sequence| {
            let kind = CensusKind::Left { user: "u".into() };
            Content::Census(Arc::new(CensusEvent { sequence, kind }))
        };
        let mut recovery = Recovery { census: Some(7), ..Recovery::new(0) };
        assert_eq!([6, 7, 8, 9].map(|sequence| recovery.take(&event(sequence))), [false, false, true, true]);
        assert!(Recovery::new(0).take(&event(1)));
        assert!(Recovery::new(0).has_nothing() && !recovery.has_nothing());
    }

    #[test]
    fn only_what_is_newer_is_news() {
        check(Some((1, 5)), &[Publication(1, 4, false), Publication(1, 5, false), Publication(1, 6, true)]);
        check(Some((1, 5)), &[Gap(1, 5, false), Gap(1, 9, true), Publication(1, 9, false)]);
        check(None, &[Publication(1, 1, true), Publication(1, 1, false), Publication(1, 2, true), Plain]);
    }

    /// History was read after the epoch changed, and the backplane hands over what was before.
    #[test]
    fn an_older_epoch_that_comes_late_is_not_news() {
        let late = [Publication(1, 8, false), Publication(1, 9, false)];
        let new =
            [Gap(2, 0, false), Publication(2, 1, false), Publication(2, 2, false), Publication(2, 3, true)];
        let all: Vec<Came> = late.into_iter().chain(new).collect();
        check(Some((2, 2)), &all);
    }

    #[test]
    fn a_newer_epoch_is_news() {
        check(Some((1, 5)), &[Publication(1, 6, true), Publication(2, 1, true), Publication(2, 2, true)]);
        check(Some((1, 5)), &[Gap(2, 0, true), Publication(2, 1, true), Publication(2, 1, false)]);
        check(Some((2, 5)), &[Publication(1, 9, false), Gap(3, 0, true), Publication(3, 1, true)]);
    }
}
