//! One subscription: of one connection to one channel, from the request until it gets what everyone gets.
//!
//! ```text
//!            confirmed            page, and more to come
//! Pending ───────────► Reading ◄──────────────────────► Due (waits until the socket has taken the last page)
//!    │                    │ the last page
//!    │ nothing to read    ▼        (a presence channel waits for its list before it is answered: Listing)
//!    └─────────────────► Live ───► Gone
//! ```
//!
//! The machine does no I/O, reads no clock and knows no hub: its driver (`session::subscribing`) tells it what has
//! happened and does what it answers, in order. Every way of subscribing is a driver of this machine.
//!
//! While a page is read, what is delivered is *kept*; between two pages nothing is, because the next read has it.
//! When a page reaches the channel's newest publication and everything that came meanwhile was kept, the client is told
//! both, without what it has already, and joins its lane with what it has *seen*. What was not kept is read again.
//! So what is kept is looked at in one place, [`Machine::page`], whatever else the connection waits for.

mod kept;
mod seen;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use kept::Kept;
use tidegate_backplane::{BackplaneError, Gap, GapReason, History, JoinError, Position, Publication};

#[cfg(test)]
use kept::KEPT_BYTES_MAX;
pub(crate) use seen::{Arrival, Seen};

/// Payload bytes of one page of history. A publication that is larger is a page of its own.
pub(crate) const PAGE_BYTES: usize = 64 * 1024;

/// What of the past is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// Nothing, not even where the channel stands.
    Live,
    /// Where the channel stands, to come back to.
    Place,
    /// The newest publication.
    Newest,
    /// All after a position.
    After(Position),
    /// All after an offset of the first epoch that there was since the channel was seen empty, so long ago. Offset 0: all
    /// that there ever was.
    SinceEmpty { offset: u64, away: Duration, history_age: Duration },
}

/// Something that is told to the client, in the channel's order.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    Publication(Arc<Publication>),
    Gap(Gap),
}

/// A read of history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Read {
    /// Where the channel stands.
    Place,
    /// The newest publication.
    Newest,
    /// At most [`PAGE_BYTES`] after a position.
    Page(Position),
}

/// What the driver has to do, in this order.
#[derive(Debug)]
pub(crate) enum Output {
    /// Call [`Machine::room`] when the socket has taken all that was written to it.
    AwaitRoom,
    /// Read history; the answer is [`Machine::page`].
    Read(Read),
    /// Get the list of who is in the channel; [`Machine::listed`] says when it is there.
    List,
    /// The subscription stands. Where the client is in the channel, and whether what it missed follows.
    Subscribed { position: Option<Position>, recovered: bool },
    /// Write this.
    Tell(Vec<Item>),
    /// Turn the hold into a place in a lane.
    Join(Seen),
    /// It cannot be had; the hold was given back.
    Refuse(JoinError),
    /// Give the hold back.
    Release,
}

/// Outputs of one step; most steps have none or one.
pub(crate) type Outputs = Vec<Output>;

#[derive(Debug)]
pub(crate) struct Machine {
    want: Want,
    /// The list of who is in the channel has to be there before the client is answered.
    lists: bool,
    answered: bool,
    seen: Seen,
    state: State,
    #[cfg(test)]
    forgets_overflow: bool,
}

#[derive(Debug)]
enum State {
    /// The backplane has not confirmed the channel's subscription.
    Pending,
    /// A page is wanted.
    Due,
    Reading {
        read: Read,
        kept: Kept,
    },
    /// A page is there, if one was wanted; the list is not.
    Listing {
        page: Option<(Read, History)>,
        kept: Kept,
    },
    Live,
    Gone,
}

impl Item {
    /// What keeping it costs.
    pub(crate) fn bytes(&self) -> usize {
        let payload = match self {
            Self::Publication(publication) => publication.payload.bytes().len(),
            Self::Gap(_) => 0,
        };
        payload + size_of::<Self>()
    }

    pub(crate) fn arrival(&self) -> Arrival {
        match self {
            Self::Publication(publication) => Arrival::Publication(publication.position),
            Self::Gap(gap) => Arrival::Gap(gap.top),
        }
    }
}

impl Machine {
    /// Of a channel that is held for the connection. `lists`: it is answered with the list of who is there.
    pub(crate) fn new(want: Want, lists: bool) -> Self {
        Self {
            want,
            lists,
            answered: false,
            seen: Seen::default(),
            state: State::Pending,
            #[cfg(test)]
            forgets_overflow: false,
        }
    }

    /// Whether it is answered with the list.
    pub(crate) fn lists(&self) -> bool {
        self.lists
    }

    /// It waits for [`room`](Self::room).
    pub(crate) fn is_due(&self) -> bool {
        matches!(self.state, State::Due)
    }

    /// A page of its history is being read.
    pub(crate) fn reads_page(&self) -> bool {
        matches!(self.state, State::Reading { read: Read::Page(_), .. })
    }

    /// Nothing has to be read before it is live.
    pub(crate) fn has_no_past(&self) -> bool {
        matches!(self.want, Want::Live)
    }

    /// The backplane has confirmed: everything accepted from now on is delivered.
    pub(crate) fn confirmed(&mut self) -> Outputs {
        if !matches!(self.state, State::Pending) {
            return Outputs::new();
        }
        match self.want {
            Want::Live => match self.lists {
                true => self.list(None, Kept::default()),
                false => self.finish(Kept::default(), false, Outputs::new()),
            },
            Want::Place | Want::SinceEmpty { .. } => self.read(Read::Place),
            Want::Newest => self.read(Read::Newest),
            Want::After(position) => {
                self.seen.advance(Some(position));
                self.due()
            }
        }
    }

    /// The backplane cannot subscribe, or what the protocol does beside it has failed.
    pub(crate) fn refused(&mut self, error: JoinError) -> Outputs {
        match self.state {
            State::Live | State::Gone => Outputs::new(),
            _ if self.answered => Outputs::new(),
            _ => {
                self.state = State::Gone;
                vec![Output::Release, Output::Refuse(error)]
            }
        }
    }

    /// The socket has taken all that was written to it, and it is this subscription's turn.
    pub(crate) fn room(&mut self) -> Outputs {
        match (&self.state, self.seen.position()) {
            (State::Due, Some(position)) => self.read(Read::Page(position)),
            _ => Outputs::new(),
        }
    }

    /// History was read, at some moment after [`Output::Read`].
    pub(crate) fn page(&mut self, page: Result<History, BackplaneError>) -> Outputs {
        let (read, kept) = match std::mem::replace(&mut self.state, State::Gone) {
            State::Reading { read, kept } => (read, kept),
            other => {
                self.state = other;
                return Outputs::new();
            }
        };
        match page {
            Ok(page) if self.lists && !self.answered && !self.leads_to_a_page(read, page.top) => {
                self.list(Some((read, page)), kept)
            }
            Ok(page) => self.take(read, page, kept),
            Err(error) if !self.answered => vec![Output::Release, Output::Refuse(error.into())],
            // It was promised, and cannot be had.
            Err(_) => {
                let told = self.lost(None);
                self.finish(kept, false, told)
            }
        }
    }

    /// Whether a read only says after which position the next is.
    fn leads_to_a_page(&self, read: Read, top: Option<Position>) -> bool {
        let is_kept = matches!(self.want, Want::SinceEmpty { away, history_age, .. } if away < history_age);
        read == Read::Place && is_kept && top.is_some()
    }

    /// The list of who is in the channel is there, with the changes up to this number.
    pub(crate) fn listed(&mut self, sequence: u64) -> Outputs {
        match std::mem::replace(&mut self.state, State::Gone) {
            State::Listing { page, kept } => {
                self.seen.set_presence(sequence);
                match page {
                    Some((read, page)) => self.take(read, page, kept),
                    None => self.finish(kept, false, Outputs::new()),
                }
            }
            other => {
                self.state = other;
                Outputs::new()
            }
        }
    }

    /// A publication or gap came by before the connection is in a lane.
    pub(crate) fn delivered(&mut self, item: &Item) -> Outputs {
        let is_plain = matches!(item.arrival(), Arrival::Publication(None));
        match &mut self.state {
            State::Pending | State::Live | State::Gone => Outputs::new(),
            // Not in history, so nobody brings it later. Before the answer nobody was promised it.
            _ if is_plain => match self.answered {
                true => vec![Output::Tell(vec![item.clone()])],
                false => Outputs::new(),
            },
            State::Due => Outputs::new(),
            State::Reading { kept, .. } | State::Listing { kept, .. } => {
                match self.want {
                    // Nothing in its lane can be a repetition.
                    Want::Live => {}
                    // What came before the answer was promised to nobody.
                    Want::Place | Want::Newest => kept.keep_newest(item),
                    Want::After(_) | Want::SinceEmpty { .. } => kept.keep(item),
                }
                Outputs::new()
            }
        }
    }

    /// Whether a presence event is to be told now: the client has the list, and is not in a lane yet.
    pub(crate) fn tells_presence(&mut self, sequence: u64) -> bool {
        let waits = matches!(self.state, State::Due | State::Reading { .. });
        let tells = waits && self.answered && self.lists && self.seen.take(Arrival::Presence(sequence));
        if tells {
            self.seen.advance_presence(sequence);
        }
        tells
    }

    /// The client unsubscribes, or is gone.
    pub(crate) fn end(&mut self) -> Outputs {
        match std::mem::replace(&mut self.state, State::Gone) {
            State::Gone => Outputs::new(),
            _ => vec![Output::Release],
        }
    }

    fn read(&mut self, read: Read) -> Outputs {
        #[cfg_attr(not(test), expect(unused_mut, reason = "a test breaks it"))]
        let mut kept = Kept::default();
        #[cfg(test)]
        kept.set_forgets_overflow(self.forgets_overflow);
        self.state = State::Reading { read, kept };
        vec![Output::Read(read)]
    }

    fn due(&mut self) -> Outputs {
        self.state = State::Due;
        vec![Output::AwaitRoom]
    }

    fn list(&mut self, page: Option<(Read, History)>, kept: Kept) -> Outputs {
        self.state = State::Listing { page, kept };
        vec![Output::List]
    }

    /// A page is there and the client can be answered. This is the only place where what was kept is looked at.
    fn take(&mut self, read: Read, page: History, kept: Kept) -> Outputs {
        let is_new = matches!(self.want, Want::Place | Want::Newest);
        match read {
            Read::Place | Read::Newest if is_new && kept.ends_with_gap() => self.read(read),
            Read::Place => self.take_place(page.top, kept),
            Read::Newest => self.take_newest(page, kept),
            Read::Page(_) => self.take_page(page, kept),
        }
    }

    fn take_place(&mut self, top: Option<Position>, kept: Kept) -> Outputs {
        match self.want {
            Want::SinceEmpty { offset, away, history_age } => {
                // An earlier epoch may have come and aged out.
                if away >= history_age {
                    return self.gap(top, kept);
                }
                match top {
                    Some(top) => {
                        self.seen.advance(Some(Position { offset, ..top }));
                        self.due()
                    }
                    // It had publications, and has lost them.
                    None if offset > 0 => self.gap(None, kept),
                    None if kept.has_overflowed() => self.read(Read::Place),
                    None => self.finish(kept, true, Outputs::new()),
                }
            }
            _ => {
                self.seen.advance(top);
                if kept.is_empty() {
                    self.seen.set_new();
                }
                // What came by meanwhile may be newer than the read.
                drop(kept.into_news(&mut self.seen));
                self.finish(Kept::default(), false, Outputs::new())
            }
        }
    }

    fn take_newest(&mut self, page: History, kept: Kept) -> Outputs {
        self.seen.advance(page.top);
        let begins_late = kept.begins_late();
        let mut newer = kept.into_news(&mut self.seen);
        newer.retain(|item| matches!(item, Item::Publication(_)));
        let read = page.publications.into_iter().next_back().map(Item::Publication);
        let newest: Vec<Item> = match begins_late && !newer.is_empty() {
            true => newer,
            false => read.into_iter().chain(newer).collect(),
        };
        // What is told says where it is.
        let position = self.seen.position().filter(|_| newest.is_empty());
        let told = self.answer_at(position, false, newest);
        self.finish(Kept::default(), false, told)
    }

    fn take_page(&mut self, page: History, kept: Kept) -> Outputs {
        if !page.continuous {
            return self.gap(page.top, kept);
        }
        let position = self.seen.position();
        let last = page.publications.last().and_then(|last| last.position);
        let items = page.publications.into_iter().map(Item::Publication).collect();
        let told = self.answer_at(position, true, items);
        self.seen.advance(last);
        let is_last = last.is_none() || self.seen.position() == page.top;
        match is_last && !kept.has_overflowed() {
            true => self.finish(kept, true, told),
            false => self.go_on(told),
        }
    }

    /// What the client missed is not in history any more. It goes on from where the channel stood.
    fn gap(&mut self, top: Option<Position>, kept: Kept) -> Outputs {
        let mut told = self.lost(top);
        if top.is_none() {
            self.seen.set_past();
        }
        match (kept.has_overflowed(), top) {
            (false, _) => self.finish(kept, false, told),
            (true, Some(_)) => self.go_on(told),
            // The channel had nothing when it was read, and has more now than was kept.
            (true, None) => {
                told.extend(self.read(Read::Place));
                told
            }
        }
    }

    fn lost(&mut self, top: Option<Position>) -> Outputs {
        let gap = Gap { reason: GapReason::Unrecoverable, top };
        let told = self.answer_at(top, false, vec![Item::Gap(gap)]);
        self.seen.advance(top);
        told
    }

    fn go_on(&mut self, mut told: Outputs) -> Outputs {
        told.extend(self.due());
        told
    }

    /// Answers if that was not done, and tells.
    fn answer_at(&mut self, position: Option<Position>, recovered: bool, items: Vec<Item>) -> Outputs {
        let mut told = Outputs::new();
        if !std::mem::replace(&mut self.answered, true) {
            told.push(Output::Subscribed { position, recovered });
        }
        if !items.is_empty() {
            told.push(Output::Tell(items));
        }
        told
    }

    /// Nothing is missing: tells what was kept, and joins the lane.
    fn finish(&mut self, kept: Kept, recovered: bool, mut told: Outputs) -> Outputs {
        let position = self.seen.position();
        let items = kept.into_news(&mut self.seen);
        told.extend(self.answer_at(position, recovered, items));
        self.state = State::Live;
        told.push(Output::Join(self.seen));
        told
    }
}
