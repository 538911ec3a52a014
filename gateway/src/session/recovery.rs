//! Coming back to a channel without loss or repetition.
//!
//! While history is read, live publications are kept ([`Kept`]); then history is written, then what was kept and
//! is newer. Some of it may still be on its way to this shard, so the connection then *follows* (see `hub`): of
//! what is delivered it is written only what is newer than what it has ([`Seen`]).

use std::sync::Arc;

use tidegate_backplane::{Gap, GapReason, History, HistoryQuery, Position};
use tidegate_wire::sse;

use super::{Ctx, Rare, ids::Fresh};
use crate::{
    hub::{ChannelKey, form::FormId, outgoing::Content},
    subscription::Seen,
};

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
    pub(crate) fn into_news(self, seen: &mut Seen) -> Vec<Content> {
        let mut items = self.items;
        items.retain(|content| match content {
            // Without a position there is no telling whether the lane will bring it again. The client was not
            // answered yet, so nobody promised it this one.
            Content::Publication(publication) if publication.position.is_none() => false,
            _ => seen.take(content.arrival()),
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
    pub(crate) fn standing_id(&self, key: ChannelKey, seen: Seen, rare: &mut Rare) -> Option<String> {
        let place = seen
            .position()
            .unwrap_or_else(|| Fresh::place(self.core.shared.life, self.core.shared.started.elapsed()));
        match rare.positions.is_empty() {
            true => Some(place.to_string()),
            false => rare.advance(key, Some(place)),
        }
    }

    /// Appends what a client missed in a channel, or that it cannot be had. False: its protocol cannot say so.
    pub(crate) fn write_recovered(
        &mut self,
        key: ChannelKey,
        seen: &mut Seen,
        recovering: Recovering,
        form: FormId,
        rare: &mut Rare,
        out: &mut Vec<u8>,
    ) -> bool {
        let Some(history) = recovering.history else { return true };
        seen.advance(history.top);
        let mut contents: Vec<Content> = match history.continuous {
            true => history.publications.into_iter().map(Content::Publication).collect(),
            false => vec![Content::Gap(Gap { reason: GapReason::Unrecoverable, top: history.top })],
        };
        contents.extend(recovering.kept.into_news(seen));
        let channel = self.core.hub.channel(key).clone();
        let has_heads = self.core.hub.forms().get(form).has_heads();
        let told = contents.iter().take_while(|content| {
            let before = out.len();
            let said = self.core.encoder.encode(&channel, content, form);
            if has_heads
                && !said.is_empty()
                && let Some(id) = rare.advance(key, content.position())
            {
                sse::begin_event(&id, out);
            }
            out.extend_from_slice(&said);
            out.len() > before
        });
        let told = told.count();
        self.core.metrics.messages_sent.add(told as u64);
        told == contents.len()
    }
}
