//! A client connection as the shard keeps it, from its first byte to its last.
//!
//! ```text
//! Head ──► Opening ──► Open ──► Leaving
//!   │  (only if it has to wait)    ▲
//!   └──► handed to HTTP    └───────┘
//!        (a publish that came whole is answered, and another head is read)
//! ```
//!
//! `access` says who may have what, `asking` asks the application, `opening` subscribes and recovers, `socket` speaks with open WebSockets, `publishing`
//! takes what clients publish, `leaving` says goodbye; [`Ctx`] is a connection while something is done with it, and
//! [`Protocol`](protocol::Protocol) what a client's protocol decides. This file holds the state of a connection and what
//! the hub does with it.

pub(crate) mod access;
pub(crate) mod asking;
pub(crate) mod budget;
pub(crate) mod core;
pub(crate) mod ctx;
pub(crate) mod fanout;
mod fresh;
pub(crate) mod heartbeat;
mod instructed;
pub(crate) mod leaving;
mod lookup;
pub(crate) mod opening;
pub(crate) mod plain_http;
pub(crate) mod presence;
pub(crate) mod protocol;
pub(crate) mod publishing;
pub(crate) mod refusal;
pub(crate) mod socket;
mod socket_id;
pub(crate) mod subscribing;
mod telling;
pub(crate) mod tokens;
pub(crate) mod told;

use std::{any::Any, sync::Arc, time::Duration};

use tidegate_backplane::{Epoch, Position};
use tidegate_ops::{budget::Budget, edge::Preamble};
use tidegate_reactor::Tick;
use tidegate_wire::{decoder::Decoder, sse};

use crate::{
    admission::{AddressKey, Over},
    auth::Claims,
    hub::{ChannelKey, Subscription, form::FormId},
    metrics::{Budgeted, DisconnectReason},
};
use budget::{Budgets, Rates};
pub(crate) use ctx::Ctx;
use heartbeat::Ping;
use opening::Opening;
use protocol::{ProtocolId, ProtocolState};
use publishing::Publisher;
pub(crate) use socket_id::SocketIds;
use subscribing::{Attempt, Unsettled};

/// State of one connection: 72 bytes at most, see the assertion below; everything rare is boxed.
#[derive(Debug)]
pub(crate) struct Session {
    /// What it counts as in the front's limits.
    pub(crate) address: AddressKey,
    /// When it was accepted or came back from HTTP, in milliseconds of the shard's clock.
    pub(crate) accepted_ms: u32,
    pub(crate) phase: Phase,
}

const _: () = assert!(size_of::<Session>() <= 72, "an idle connection pays for this");

#[derive(Debug)]
pub(crate) enum Phase {
    /// Its request head is not complete.
    Head(Head),
    /// It waits for keys, the backplane or history. Timers and limits hold as before.
    Opening(Box<Opening>),
    Open(Open),
    /// It was told that it ends. `Some`: a WebSocket whose close frame is awaited.
    Leaving(Option<Decoder>),
}

/// A connection that has not said what it wants.
#[derive(Debug, Default)]
pub(crate) struct Head {
    /// Bytes of an incomplete head.
    #[expect(clippy::box_collection, reason = "16 bytes less in every session; heads rarely come in pieces")]
    pub(crate) received: Option<Box<Vec<u8>>>,
    /// It was let in only to be told that there is no room.
    pub(crate) over: Option<Over>,
    /// What is still to come before the head.
    pub(crate) preamble: Preamble,
    pub(crate) earlier: Earlier,
}

/// Requests of the connection that this shard has answered before the one whose head is read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Earlier {
    #[default]
    None,
    /// One waits for its answer; what has come since is kept.
    UnderWay,
    Answered,
}

/// A connection that is served.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) protocol: ProtocolId,
    pub(crate) form: FormId,
    pub(crate) ping: Ping,
    /// A number that means something to its protocol; 0 at first.
    pub(crate) tag: u32,
    pub(crate) budgets: Budgets,
    pub(crate) decoder: Decoder,
    pub(crate) subscriptions: Subscriptions,
    pub(crate) rare: Option<Box<Rare>>,
}

/// Nearly every connection has one.
#[derive(Debug)]
pub(crate) enum Subscriptions {
    None,
    One(Subscription),
    #[expect(clippy::box_collection, reason = "the size of `One` in every session; few have many")]
    Many(Box<Vec<Subscription>>),
}

/// What few connections have.
#[derive(Debug, Default)]
pub(crate) struct Rare {
    pub(crate) claims: Option<Arc<Claims>>,
    pub(crate) expires: Option<Tick>,
    /// Subscriptions that are not in a lane yet.
    pub(crate) unsettled: Vec<Unsettled>,
    /// An event stream of several channels: in the order of its URL, where it was last in each.
    pub(crate) places: Box<[LastPosition]>,
    pub(crate) publisher: Option<Box<Publisher>>,
    /// What its compressed messages inflated to.
    pub(crate) inflated_bytes: Budget,
    /// Why it is about to be closed, for the count; set by whoever dooms it.
    pub(crate) reason: Option<DisconnectReason>,
    /// Tokens that it gave and that wait for a key.
    awaiting_keys: u8,
    /// What its protocol keeps of it.
    pub(crate) state: Option<Box<dyn ProtocolState>>,
}

/// Where an event stream is in one of its channels: 24 bytes, where an `Option` of the position would make 32.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LastPosition {
    key: ChannelKey,
    is_known: bool,
    position: Position,
}

impl Session {
    pub(crate) fn new(address: AddressKey, accepted_ms: u32, over: Option<Over>, preamble: Preamble) -> Self {
        Self { address, accepted_ms, phase: Phase::Head(Head { over, preamble, ..Head::default() }) }
    }

    pub(crate) fn open(&self) -> Option<&Open> {
        match &self.phase {
            Phase::Open(open) => Some(open),
            _ => None,
        }
    }

    pub(crate) fn open_mut(&mut self) -> Option<&mut Open> {
        match &mut self.phase {
            Phase::Open(open) => Some(open),
            _ => None,
        }
    }

    /// Whose connection it is.
    pub(crate) fn claims(&self) -> Option<&Claims> {
        match &self.phase {
            Phase::Opening(opening) => opening.claims(),
            Phase::Open(open) => open.claims().map(|claims| &**claims),
            Phase::Head(_) | Phase::Leaving(_) => None,
        }
    }

    /// Its place in a lane has changed.
    pub(crate) fn moved(&mut self, lane: u32, to: Subscription) {
        let Some(open) = self.open_mut() else { return };
        if let Some(own) = open.subscriptions.as_mut_slice().iter_mut().find(|own| own.is_of_lane(lane)) {
            *own = to;
        }
    }
}

impl Open {
    /// Whether a subscription to a channel is under way, and not in a lane yet.
    pub(crate) fn is_subscribing(&self, key: ChannelKey) -> bool {
        self.under_way_keys().any(|own| own == key)
    }

    /// The channels of subscriptions that are under way.
    pub(crate) fn under_way_keys(&self) -> impl Iterator<Item = ChannelKey> {
        self.under_way().iter().map(|it| it.attempt.key)
    }

    /// Subscriptions that it has or is about to have.
    pub(crate) fn subscription_count(&self) -> usize {
        self.subscriptions.as_slice().len() + self.under_way().len()
    }

    fn under_way(&self) -> &[Unsettled] {
        self.rare.as_ref().map_or(&[], |rare| &rare.unsettled)
    }

    /// The subscription to a channel, while it is not in a lane.
    fn unsettled(&mut self, key: ChannelKey) -> Option<&mut Unsettled> {
        self.rare.as_mut()?.unsettled.iter_mut().find(|it| it.attempt.key == key)
    }

    fn take_unsettled(&mut self, attempt: Attempt) -> Option<Unsettled> {
        let unsettled = &mut self.rare.as_mut()?.unsettled;
        let at = unsettled.iter().position(|it| it.attempt == attempt)?;
        let taken = unsettled.remove(at);
        release_empty(unsettled);
        self.drop_empty_rare();
        Some(taken)
    }

    /// What stands in the way of one more message now.
    pub(crate) fn spent(&self, rates: &Rates, now: Duration) -> Option<Budgeted> {
        let inflated_bytes = self.rare.as_ref().map(|rare| rare.inflated_bytes).unwrap_or_default();
        self.budgets.spent(inflated_bytes, rates, now)
    }

    /// So much came out of what it compressed.
    fn spend_inflated(&mut self, bytes: u64, rates: &Rates, now: Duration) {
        if bytes > 0 && !rates.inflated_bytes.is_unlimited() {
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            self.rare_mut().inflated_bytes.spend(rates.inflated_bytes, now, bytes);
        }
    }

    pub(crate) fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    pub(crate) fn claims(&self) -> Option<&Arc<Claims>> {
        self.rare.as_ref()?.claims.as_ref()
    }

    /// What its protocol keeps of it, where it keeps anything.
    pub(crate) fn state<S: ProtocolState>(&self) -> Option<&S> {
        let state: &dyn Any = &**self.rare.as_ref()?.state.as_ref()?;
        state.downcast_ref()
    }

    pub(crate) fn state_mut<S: ProtocolState>(&mut self) -> Option<&mut S> {
        let state: &mut dyn Any = &mut **self.rare.as_mut()?.state.as_mut()?;
        state.downcast_mut()
    }

    /// The same, made when there is none.
    pub(crate) fn state_or_default<S: ProtocolState + Default>(&mut self) -> &mut S {
        let state = self.rare_mut().state.get_or_insert_with(|| Box::<S>::default());
        let state: &mut dyn Any = &mut **state;
        state.downcast_mut().expect("a connection keeps the state of its own protocol only")
    }

    pub(crate) fn drop_empty_rare(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.state.take_if(|state| state.is_empty());
        }
        self.rare.take_if(|rare| rare.is_empty());
    }
}

impl LastPosition {
    pub(crate) fn new(key: ChannelKey, position: Option<Position>) -> Self {
        let unknown = Position { epoch: Epoch(0), offset: 0 };
        Self { key, is_known: position.is_some(), position: position.unwrap_or(unknown) }
    }

    pub(crate) fn position(&self) -> Option<Position> {
        self.is_known.then_some(self.position)
    }
}

impl Rare {
    /// Notes a channel's new position; the id that an event has then. `None` when no channel has a position.
    pub(crate) fn advance(&mut self, key: ChannelKey, position: Option<Position>) -> Option<String> {
        for place in self.places.iter_mut().filter(|place| place.key == key) {
            *place = LastPosition::new(key, position.or(place.position()));
        }
        sse::join_id(self.places.iter().map(LastPosition::position))
    }

    fn is_empty(&self) -> bool {
        self.claims.is_none()
            && self.expires.is_none()
            && self.unsettled.is_empty()
            && self.places.is_empty()
            && self.publisher.is_none()
            && self.inflated_bytes == Budget::default()
            && self.reason.is_none()
            && self.awaiting_keys == 0
            && self.state.is_none()
    }
}

/// Gives back the memory of what is over: room for four subscriptions under way is more than 1 KB, and their connection may
/// stay for days.
pub(crate) fn release_empty<T>(items: &mut Vec<T>) {
    if items.is_empty() {
        *items = Vec::new();
    }
}

impl Subscriptions {
    pub(crate) fn push(&mut self, subscription: Subscription) {
        *self = match std::mem::replace(self, Self::None) {
            Self::None => Self::One(subscription),
            Self::One(first) => Self::Many(Box::new(vec![first, subscription])),
            Self::Many(mut all) => {
                all.push(subscription);
                Self::Many(all)
            }
        };
    }

    /// Takes one out.
    pub(crate) fn take(&mut self, wanted: impl Fn(Subscription) -> bool) -> Option<Subscription> {
        match self {
            Self::One(one) if wanted(*one) => {
                let one = *one;
                *self = Self::None;
                Some(one)
            }
            Self::Many(all) => {
                let taken = all.swap_remove(all.iter().position(|&own| wanted(own))?);
                if let [only] = ***all {
                    *self = Self::One(only);
                }
                Some(taken)
            }
            _ => None,
        }
    }

    pub(crate) fn as_slice(&self) -> &[Subscription] {
        match self {
            Self::None => &[],
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(all) => all,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [Subscription] {
        match self {
            Self::None => &mut [],
            Self::One(one) => std::slice::from_mut(one),
            Self::Many(all) => all,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a subscription costs beside the socket's entry: 4 bytes in its lane, and nothing on the heap.
    #[test]
    fn an_idle_connection_of_one_channel_owns_nothing_but_its_entry() {
        assert_eq!(size_of::<Subscription>(), 8);
        assert_eq!(size_of::<Subscriptions>(), 16);
        assert!(size_of::<Decoder>() <= 16, "{}", size_of::<Decoder>());
        assert!(size_of::<Open>() <= 56, "{}", size_of::<Open>());
        assert!(size_of::<Session>() <= 72, "{}", size_of::<Session>());
        // A size of the allocator.
        assert!(size_of::<Rare>() <= 96, "{}", size_of::<Rare>());
        assert_eq!(size_of::<LastPosition>(), 24);
    }
}
