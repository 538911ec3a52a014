//! The channels of one shard: who is subscribed, in which encoding, and what is on its way to them.
//!
//! The way of a publication: [`Hub::deliver`] appends it to the *lane* of each encoding that has members. [`Hub::run`] takes what has piled up in a lane as one batch, builds
//! one contiguous buffer, and writes it to each member, a slice per turn, lanes in rotation.
//!
//! Who was sent history may still be handed some of it. It joins a *following* lane, which looks at each member
//! before it writes; when everything the member has from history has passed, it moves to the ordinary lane
//! ([`Hub::settle`]). A quiet channel may have thousands of followers: its next publication goes out in slices
//! like any other.

mod lane;
mod members;
pub(crate) mod outgoing;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use lane::{Lane, Pace};
use slab::Slab;
use tidegate_backplane::{Backplane, Channel, GapReason, Position, Publication};
use tidegate_reactor::{ConnectionId, Connections, Overflow, Tick, Turn};

use crate::{
    hub::outgoing::{Content, Encoder, Encoding, Outgoing},
    metrics::ShardMetrics,
    node::interest::{Confirmation, Interest, Interests},
    session::{Session, SocketIds},
    subscription::Seen,
};

/// Names a channel within a shard.
pub(crate) type ChannelKey = u32;

/// A subscription, as its connection keeps it: 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Subscription {
    lane: u32,
    index: u32,
}

/// What a fan-out needs besides the hub.
pub(crate) struct Delivery<'a> {
    pub(crate) connections: &'a mut Connections<Session>,
    pub(crate) encoder: &'a mut Encoder,
    pub(crate) metrics: &'a ShardMetrics,
    /// Names of this shard's connections in the protocol that has senders.
    pub(crate) socket_ids: SocketIds,
    /// Connections that were told of a gap by a close frame; the rest of their leave follows the fan-out.
    pub(crate) farewells: &'a mut Vec<(ConnectionId, GapReason)>,
}

pub(crate) struct Hub {
    shard: usize,
    interests: Arc<Interests>,
    backplane: Arc<dyn Backplane>,
    channels: Slab<ChannelState>,
    keys: HashMap<Channel, ChannelKey>,
    lanes: Slab<Lane>,
    /// Lanes with something to send, in rotation.
    runnable: VecDeque<u32>,
    /// Channels that nobody held at the tick, oldest first.
    abandoned: VecDeque<(ChannelKey, Tick)>,
    subscriptions: u64,
}

#[derive(Debug)]
struct ChannelState {
    interest: Arc<Interest>,
    lanes: [Option<u32>; Encoding::COUNT],
    /// Lanes of those who follow, one for an encoding; empty but for a while after somebody recovered.
    following: Vec<u32>,
    overflow: Overflow,
    /// Connections whose history is being read; they keep what is delivered meanwhile.
    reading: Vec<ConnectionId>,
    /// Where the channel stood after what was delivered last.
    delivered: Option<Position>,
    /// Reasons to stay: subscriptions, and connections that are about to subscribe.
    holds: u32,
    /// When the last hold went; meaningful while `holds` is 0.
    abandoned_at: Tick,
}

/// How long a channel stays subscribed on the backplane after its last subscriber left: a page that reloads comes
/// back within it.
const LINGER: Duration = Duration::from_secs(2);

/// Writes in one turn: at about 7 µs each, 1 ms during which nobody else is served.
const TURN_WRITES: usize = 128;

/// Writes to one lane before the next lane's turn.
const LANE_WRITES: usize = 64;

impl Hub {
    pub(crate) fn new(shard: usize, interests: Arc<Interests>, backplane: Arc<dyn Backplane>) -> Self {
        Self {
            shard,
            interests,
            backplane,
            channels: Slab::new(),
            keys: HashMap::new(),
            lanes: Slab::new(),
            runnable: VecDeque::new(),
            abandoned: VecDeque::new(),
            subscriptions: 0,
        }
    }

    /// Subscriptions of this shard.
    pub(crate) fn subscriptions(&self) -> u64 {
        self.subscriptions
    }

    /// Holds a channel, subscribing on the backplane if it is new here. Everything accepted after the
    /// confirmation is delivered for as long as it is held.
    pub(crate) fn enter(&mut self, channel: &Channel, overflow: Overflow) -> (ChannelKey, Confirmation) {
        let key = match self.keys.get(channel) {
            Some(&key) => {
                let state = &mut self.channels[key as usize];
                if state.interest.has_failed() {
                    state.interest = self.interests.enter(channel, self.shard, &*self.backplane);
                }
                key
            }
            None => {
                let interest = self.interests.enter(channel, self.shard, &*self.backplane);
                let key = self.channels.insert(ChannelState::new(interest, overflow)) as ChannelKey;
                self.keys.insert(channel.clone(), key);
                key
            }
        };
        let state = &mut self.channels[key as usize];
        state.holds += 1;
        (key, state.interest.confirmation())
    }

    /// Ends a hold.
    pub(crate) fn leave(&mut self, key: ChannelKey, now: Tick) {
        let state = &mut self.channels[key as usize];
        state.holds -= 1;
        if state.holds == 0 {
            state.abandoned_at = now;
            self.abandoned.push_back((key, now));
        }
    }

    /// Turns a hold into a subscription: the slot gets what is accepted from now on.
    pub(crate) fn join(&mut self, key: ChannelKey, encoding: Encoding, slot: u32) -> Subscription {
        let state = &mut self.channels[key as usize];
        let lanes = &mut self.lanes;
        let lane = *state.lanes[encoding as usize]
            .get_or_insert_with(|| lanes.insert(Lane::new(key, encoding, Pace::Ordinary)) as u32);
        self.join_lane(lane, slot)
    }

    /// Turns a hold into the subscription of a slot that was written everything up to a position. `true`: some of
    /// that may still be handed to its lane, so it follows, and its session has to know the position.
    pub(crate) fn resume(
        &mut self,
        key: ChannelKey,
        encoding: Encoding,
        seen: &mut Seen,
        slot: u32,
    ) -> (Subscription, bool) {
        let state = &self.channels[key as usize];
        let waits =
            state.lanes[encoding as usize].is_some_and(|lane| !self.lanes[lane as usize].pending.is_empty());
        if seen.has_nothing(state.delivered) || (!waits && seen.is_settled(state.delivered)) {
            return (self.join(key, encoding, slot), false);
        }
        let lane = self.following_lane(key, encoding);
        seen.set_skip(self.lanes[lane as usize].pending.len());
        (self.join_lane(lane, slot), true)
    }

    /// Ends a subscription and its hold.
    pub(crate) fn part(&mut self, subscription: Subscription, connections: &mut Connections<Session>) {
        let lane_key = subscription.lane;
        let lane = &mut self.lanes[lane_key as usize];
        let channel = lane.channel;
        lane.members.leave(subscription.index, |slot, index| {
            if let Some(session) = connections.in_slot_mut(slot) {
                session.moved(lane_key, Subscription { lane: lane_key, index });
            }
        });
        if lane.members.is_empty() {
            // Nobody is left to tell: what waits has no receiver and counts as nobody's loss.
            lane.pending.clear();
            lane.batch = None;
        }
        self.uncount(channel);
        self.leave(channel, connections.now());
    }

    /// A channel that is held, by its name inside.
    pub(crate) fn key_of(&self, channel: &str) -> Option<ChannelKey> {
        self.keys.get(channel).copied()
    }

    /// The name of a held channel.
    pub(crate) fn channel(&self, key: ChannelKey) -> &Channel {
        &self.channels[key as usize].interest.channel
    }

    /// The channel that a subscription is to.
    pub(crate) fn channel_of(&self, subscription: Subscription) -> ChannelKey {
        self.lanes[subscription.lane as usize].channel
    }

    /// A connection that holds the channel reads its history: until that ends it keeps every publication.
    pub(crate) fn begin_reading(&mut self, key: ChannelKey, id: ConnectionId) {
        let state = &mut self.channels[key as usize];
        state.reading.push(id);
        state.interest.subscribers.fetch_add(1, Ordering::Relaxed);
    }

    /// History was read, or is not wanted any more; the hold stays.
    pub(crate) fn end_reading(&mut self, key: ChannelKey, id: ConnectionId) {
        let state = &mut self.channels[key as usize];
        if let Some(at) = state.reading.iter().position(|&other| other == id) {
            state.reading.swap_remove(at);
            state.interest.subscribers.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Connections that have to be told what is delivered of a channel, since they read its history.
    pub(crate) fn readers(&self, channel: &Channel) -> Option<(ChannelKey, Vec<ConnectionId>)> {
        let &key = self.keys.get(channel)?;
        let reading = &self.channels[key as usize].reading;
        (!reading.is_empty()).then(|| (key, reading.clone()))
    }

    /// What a publication or gap of this node means for this shard.
    pub(crate) fn deliver(&mut self, outgoing: &Arc<Outgoing>) {
        let Some(&key) = self.keys.get(&outgoing.channel) else { return };
        let state = &mut self.channels[key as usize];
        state.delivered = outgoing.position().or(state.delivered);
        let is_census = matches!(outgoing.content, Content::Census(_));
        for &lane_key in state.lanes.iter().flatten().chain(&state.following) {
            let lane = &mut self.lanes[lane_key as usize];
            if lane.members.is_empty() || (is_census && !lane.encoding.tells_census()) {
                continue;
            }
            lane.push(outgoing, lane_key, &mut self.runnable);
        }
    }

    /// Whether clients of Pusher are in the channel.
    pub(crate) fn has_pusher(&self, channel: &Channel) -> bool {
        let Some(&key) = self.keys.get(channel) else { return false };
        let state = &self.channels[key as usize];
        let mut lanes = state.lanes.iter().flatten().chain(&state.following);
        lanes.any(|&lane| self.lanes[lane as usize].encoding.is_pusher())
    }

    /// Has the clients of Pusher in the channel told its last event again, unless they were told a newer one meanwhile.
    pub(crate) fn repeat(&mut self, channel: &Channel, last: Arc<Publication>) {
        let Some(&key) = self.keys.get(channel) else { return };
        let state = &self.channels[key as usize];
        let is_old = |(delivered, position): (Position, Position)| {
            delivered.epoch == position.epoch && delivered.offset > position.offset
        };
        if state.delivered.zip(last.position).is_some_and(is_old) {
            return;
        }
        let load = state.interest.load(last.payload.bytes().len());
        let outgoing = Arc::new(Outgoing::new(channel.clone(), Content::Publication(last), load));
        for &lane_key in state.lanes.iter().flatten().chain(&state.following) {
            let lane = &mut self.lanes[lane_key as usize];
            if lane.encoding.is_pusher() && !lane.members.is_empty() {
                lane.push(&outgoing, lane_key, &mut self.runnable);
            }
        }
    }

    /// Sends a portion of what waits.
    pub(crate) fn run(&mut self, delivery: &mut Delivery<'_>) -> Turn {
        let mut writes = 0;
        while writes < TURN_WRITES {
            let Some(lane_key) = self.runnable.pop_front() else { return Turn::Idle };
            let lane = &mut self.lanes[lane_key as usize];
            let channel = lane.channel;
            let overflow = self.channels[channel as usize].overflow;
            lane.begin_batch(delivery);
            writes += lane.serve(overflow, LANE_WRITES, delivery);
            lane.runnable = lane.has_work();
            if lane.runnable {
                self.runnable.push_back(lane_key);
            }
            self.settle(channel, delivery.connections);
        }
        Turn::More
    }

    /// Lets go of channels that nobody has held for a while.
    pub(crate) fn sweep(&mut self, now: Tick) {
        while let Some(&(key, at)) = self.abandoned.front() {
            if now.since(at) < LINGER {
                return;
            }
            self.abandoned.pop_front();
            let gone = self
                .channels
                .get(key as usize)
                .is_some_and(|state| state.holds == 0 && state.abandoned_at == at);
            if gone {
                self.remove(key);
            }
        }
        if self.abandoned.capacity() > 1024 {
            self.abandoned = VecDeque::new();
        }
        if self.keys.capacity() > 1024 && self.keys.len() < self.keys.capacity() / 4 {
            self.keys.shrink_to_fit();
        }
    }

    /// Moves those to their ordinary lane who follow no longer: everything they have from history has passed, and
    /// neither lane holds something that the other has sent. No system call is made, so all go at once: 15,000
    /// take about 2 ms, once.
    fn settle(&mut self, key: ChannelKey, connections: &mut Connections<Session>) {
        let mut at = 0;
        while let Some(&lane_key) = self.channels[key as usize].following.get(at) {
            let state = &self.channels[key as usize];
            let lane = &self.lanes[lane_key as usize];
            let waits = state.lanes[lane.encoding as usize]
                .is_some_and(|ordinary| !self.lanes[ordinary as usize].pending.is_empty());
            if !waits && !lane.runnable {
                self.settle_lane(key, lane_key, connections);
            }
            if self.lanes[lane_key as usize].members.is_empty() && !self.lanes[lane_key as usize].runnable {
                self.lanes.remove(lane_key as usize);
                self.channels[key as usize].following.swap_remove(at);
            } else {
                at += 1;
            }
        }
    }

    fn settle_lane(&mut self, key: ChannelKey, lane_key: u32, connections: &mut Connections<Session>) {
        let delivered = self.channels[key as usize].delivered;
        let encoding = self.lanes[lane_key as usize].encoding;
        for slot in self.lanes[lane_key as usize].members.take() {
            self.uncount(key);
            let Some(session) = connections.in_slot_mut(slot) else { continue };
            if session.is_through(key, delivered) {
                session.settled(lane_key, self.join(key, encoding, slot), key);
            } else {
                session.moved(lane_key, self.join_lane(lane_key, slot));
            }
        }
    }

    fn following_lane(&mut self, key: ChannelKey, encoding: Encoding) -> u32 {
        let state = &mut self.channels[key as usize];
        let found = state.following.iter().find(|&&lane| self.lanes[lane as usize].encoding == encoding);
        match found {
            Some(&lane) => lane,
            None => {
                let lane = self.lanes.insert(Lane::new(key, encoding, Pace::Following)) as u32;
                state.following.push(lane);
                lane
            }
        }
    }

    fn join_lane(&mut self, lane_key: u32, slot: u32) -> Subscription {
        let lane = &mut self.lanes[lane_key as usize];
        let index = lane.members.join(slot);
        self.channels[lane.channel as usize].interest.subscribers.fetch_add(1, Ordering::Relaxed);
        self.subscriptions += 1;
        Subscription { lane: lane_key, index }
    }

    fn uncount(&mut self, key: ChannelKey) {
        self.channels[key as usize].interest.subscribers.fetch_sub(1, Ordering::Relaxed);
        self.subscriptions -= 1;
    }

    fn remove(&mut self, key: ChannelKey) {
        let state = self.channels.remove(key as usize);
        for lane in state.lanes.into_iter().flatten().chain(state.following) {
            self.runnable.retain(|&runnable| runnable != lane);
            self.lanes.remove(lane as usize);
        }
        self.keys.remove(&state.interest.channel);
        self.interests.leave(&state.interest.channel, self.shard, &*self.backplane);
        if self.channels.is_empty() {
            self.channels = Slab::new();
            self.lanes = Slab::new();
        }
    }
}

impl Subscription {
    pub(crate) fn is_of_lane(self, lane: u32) -> bool {
        self.lane == lane
    }
}

impl ChannelState {
    fn new(interest: Arc<Interest>, overflow: Overflow) -> Self {
        Self {
            interest,
            lanes: [None; Encoding::COUNT],
            following: Vec::new(),
            overflow,
            reading: Vec::new(),
            delivered: None,
            holds: 0,
            abandoned_at: Tick(0),
        }
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("shard", &self.shard)
            .field("channels", &self.channels.len())
            .finish_non_exhaustive()
    }
}
