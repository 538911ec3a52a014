//! The channels of one shard: who is subscribed, in which encoding, and what is on its way to them.
//!
//! The way of a publication: [`Hub::deliver`] hands it to those who are recovering, one by one, and appends it
//! to the *lane* of each encoding that has members. [`Hub::run`] takes what has piled up in a lane as one batch,
//! builds one contiguous buffer, and writes it to each member, a slice per turn, lanes in rotation.

mod lane;
mod members;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use lane::Lane;
use slab::Slab;
use tidegate_backplane::{Backplane, Channel, Position};
use tidegate_reactor::{ConnectionId, Connections, Overflow, Tick, Turn};

use crate::{
    interest::{Confirmation, Interest, Interests},
    metrics::ShardMetrics,
    outgoing::{Content, Encoder, Encoding, Outgoing},
    session::Session,
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
    overflow: Overflow,
    /// Connections that are reading history or have not caught up with the lanes yet.
    recovering: Vec<ConnectionId>,
    /// Position of the last publication delivered here.
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
            Some(&key) => key,
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
            .get_or_insert_with(|| lanes.insert(Lane::new(key, encoding)) as u32);
        let index = self.lanes[lane as usize].members.join(slot);
        state.interest.subscribers.fetch_add(1, Ordering::Relaxed);
        self.subscriptions += 1;
        Subscription { lane, index }
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
        let state = &self.channels[channel as usize];
        state.interest.subscribers.fetch_sub(1, Ordering::Relaxed);
        self.subscriptions -= 1;
        self.leave(channel, connections.now());
    }

    /// The name of a held channel.
    pub(crate) fn channel(&self, key: ChannelKey) -> &Channel {
        &self.channels[key as usize].interest.channel
    }

    /// The channel that a subscription is to.
    pub(crate) fn channel_of(&self, subscription: Subscription) -> ChannelKey {
        self.lanes[subscription.lane as usize].channel
    }

    /// A connection that holds the channel reads its history: from now on it is offered every publication by
    /// itself, until it is promoted to a subscription.
    pub(crate) fn begin_recovery(&mut self, key: ChannelKey, id: ConnectionId) {
        let state = &mut self.channels[key as usize];
        state.recovering.push(id);
        state.interest.subscribers.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends a recovery without a subscription; its hold goes too.
    pub(crate) fn abort_recovery(&mut self, key: ChannelKey, id: ConnectionId, now: Tick) {
        let state = &mut self.channels[key as usize];
        if let Some(at) = state.recovering.iter().position(|&other| other == id) {
            state.recovering.swap_remove(at);
            state.interest.subscribers.fetch_sub(1, Ordering::Relaxed);
            self.leave(key, now);
        }
    }

    /// What a publication or gap of this node means for this shard.
    pub(crate) fn deliver(&mut self, outgoing: &Arc<Outgoing>, delivery: &mut Delivery<'_>) {
        let Some(&key) = self.keys.get(&outgoing.channel) else { return };
        let state = &mut self.channels[key as usize];
        if let Content::Publication(publication) = &outgoing.content {
            state.delivered = publication.position.or(state.delivered);
        }
        for at in 0..state.recovering.len() {
            Session::offer(delivery, state.recovering[at], key, outgoing);
        }
        for lane_key in state.lanes.iter().flatten() {
            let lane = &mut self.lanes[*lane_key as usize];
            if lane.members.is_empty() {
                continue;
            }
            lane.pending.push_back(Arc::clone(outgoing));
            if !lane.runnable {
                lane.runnable = true;
                self.runnable.push_back(*lane_key);
            }
        }
        self.promote(key, delivery.connections);
    }

    /// Makes subscribers of those who have caught up with their lane: everything delivered so far has been
    /// written to them, and the lane holds nothing that they already have.
    pub(crate) fn promote(&mut self, key: ChannelKey, connections: &mut Connections<Session>) {
        let mut at = 0;
        while let Some(&id) = self.channels[key as usize].recovering.get(at) {
            let state = &self.channels[key as usize];
            let encoding = connections.get(id).and_then(|session| session.caught_up(key, state.delivered));
            let lane_is_clear = |encoding: Encoding| {
                state.lanes[encoding as usize].is_none_or(|lane| self.lanes[lane as usize].pending.is_empty())
            };
            match encoding.filter(|&encoding| lane_is_clear(encoding)) {
                None => at += 1,
                Some(encoding) => {
                    let state = &mut self.channels[key as usize];
                    state.recovering.swap_remove(at);
                    state.interest.subscribers.fetch_sub(1, Ordering::Relaxed);
                    let subscription = self.join(key, encoding, id.slot);
                    if let Some(session) = connections.get_mut(id) {
                        session.promoted(key, subscription);
                    }
                }
            }
        }
    }

    /// Sends a portion of what waits.
    pub(crate) fn run(&mut self, delivery: &mut Delivery<'_>) -> Turn {
        let mut writes = 0;
        while writes < TURN_WRITES {
            let Some(lane_key) = self.runnable.pop_front() else { return Turn::Idle };
            let lane = &mut self.lanes[lane_key as usize];
            if lane.begin_batch(delivery) {
                let channel = lane.channel;
                self.promote(channel, delivery.connections);
            }
            let overflow = self.channels[self.lanes[lane_key as usize].channel as usize].overflow;
            let lane = &mut self.lanes[lane_key as usize];
            writes += lane.serve(overflow, LANE_WRITES, delivery);
            lane.runnable = lane.has_work();
            if lane.runnable {
                self.runnable.push_back(lane_key);
            }
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

    fn remove(&mut self, key: ChannelKey) {
        let state = self.channels.remove(key as usize);
        for lane in state.lanes.into_iter().flatten() {
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
            overflow,
            recovering: Vec::new(),
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
