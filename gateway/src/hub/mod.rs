//! The channels of one shard: who is subscribed, in which form, and what is on its way to them.
//!
//! The way of a publication: [`Hub::deliver`] names those who are not members yet and have to see it, and appends it to
//! the *lane* of each form that has members. [`Hub::run`] takes what has piled up in a lane as one batch, builds
//! one contiguous buffer, and writes it to each member, a slice per turn, lanes in rotation.
//!
//! Who was sent history may still be handed some of it. It joins a *following* lane, which looks at each member
//! before it writes; when everything the member has from history has passed, it moves to the ordinary lane. A quiet
//! channel may have thousands of followers: its next publication goes out in slices like any other.
//!
//! The hub knows members by the slots of their connections, and what it asks of those is [`Receivers`].

mod batch;
mod following;
mod lane;
mod members;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use slab::Slab;
use tidegate_backplane::{Backplane, Channel, Gap, Position};
use tidegate_reactor::{ConnectionId, Overflow, Shared, Tick, Turn, Written};

pub(crate) use crate::node::{content, form, outgoing};
use crate::{
    metrics::ShardMetrics,
    node::{
        content::Content,
        form::{Encoder, FormId, Forms},
        interest::{Confirmation, Interest, Interests, Load},
        outgoing::Outgoing,
    },
    subscription::Seen,
};
use batch::Pending;
use lane::{Kind, Lane};

/// Names a channel within a shard.
pub(crate) type ChannelKey = u32;

/// A subscription, as its connection keeps it: 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Subscription {
    lane: u32,
    index: u32,
}

/// The connections that members are.
pub(crate) trait Receivers {
    /// Writes to the connection in a slot.
    fn write(&mut self, slot: u32, shared: &Shared<'_>) -> Written;

    /// Whether the connection is still there.
    fn holds(&self, id: ConnectionId) -> bool;

    /// Appends what goes before something at this position of a channel, for this connection alone.
    fn put_head(&mut self, slot: u32, key: ChannelKey, position: Option<Position>, head: &mut Vec<u8>);

    /// There is a gap that the connection's form cannot say. Before the hub runs again the connection is to be
    /// [silenced](Hub::silence), or gone.
    fn close_for_gap(&mut self, slot: u32, key: ChannelKey, gap: Gap);

    /// Its subscription in a lane has become this one.
    fn moved(&mut self, slot: u32, from_lane: u32, to: Subscription);
}

/// What a fan-out needs besides the hub.
pub(crate) struct Delivery<'a, R> {
    pub(crate) receivers: &'a mut R,
    pub(crate) encoder: &'a mut Encoder,
    pub(crate) metrics: &'a ShardMetrics,
    pub(crate) now: Tick,
}

/// What the namespace of a channel says of its subscribers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) overflow: Overflow,
    /// Clients that cannot be told of a gap stay, and are only counted.
    pub(crate) stays_at_gaps: bool,
}

pub(crate) struct Hub {
    shard: usize,
    interests: Arc<Interests>,
    backplane: Arc<dyn Backplane>,
    forms: Forms,
    channels: Slab<ChannelState>,
    keys: HashMap<Channel, ChannelKey>,
    lanes: Slab<Lane>,
    /// Lanes with something to send, in rotation.
    runnable: VecDeque<u32>,
    /// Lanes of those who follow.
    following: Vec<u32>,
    /// Channels that nobody held at the tick, oldest first.
    abandoned: VecDeque<(ChannelKey, Tick)>,
    subscriptions: u64,
}

#[derive(Debug)]
struct ChannelState {
    interest: Arc<Interest>,
    /// At most one of each kind for a form; those that are not ordinary exist for a while only.
    lanes: Vec<u32>,
    terms: Terms,
    /// Connections that hold the channel and have to see what is delivered, although they are in no lane yet.
    watching: Vec<ConnectionId>,
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

/// Writes to one lane before the next lane's turn, and before the next look at the clock: at about 7 µs each, 0.1 ms.
const LANE_WRITES: usize = 16;

impl Hub {
    pub(crate) fn new(
        shard: usize,
        interests: Arc<Interests>,
        backplane: Arc<dyn Backplane>,
        forms: Forms,
    ) -> Self {
        Self {
            shard,
            interests,
            backplane,
            forms,
            channels: Slab::new(),
            keys: HashMap::new(),
            lanes: Slab::new(),
            runnable: VecDeque::new(),
            following: Vec::new(),
            abandoned: VecDeque::new(),
            subscriptions: 0,
        }
    }

    pub(crate) fn forms(&self) -> Forms {
        self.forms
    }

    /// Subscriptions of this shard.
    pub(crate) fn subscriptions(&self) -> u64 {
        self.subscriptions
    }

    /// Holds a channel, subscribing on the backplane if it is new here. Everything accepted after the
    /// confirmation is delivered for as long as it is held.
    pub(crate) fn hold(&mut self, channel: &Channel, terms: Terms) -> (ChannelKey, Confirmation) {
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
                let key = self.channels.insert(ChannelState::new(interest, terms)) as ChannelKey;
                self.keys.insert(channel.clone(), key);
                key
            }
        };
        let state = &mut self.channels[key as usize];
        state.holds += 1;
        (key, state.interest.confirmation())
    }

    /// Ends a hold.
    pub(crate) fn release(&mut self, key: ChannelKey, now: Tick) {
        let state = &mut self.channels[key as usize];
        state.holds -= 1;
        if state.holds == 0 {
            state.abandoned_at = now;
            self.abandoned.push_back((key, now));
        }
    }

    /// A connection that holds the channel sees what is delivered from now on: [`deliver`](Self::deliver) names it.
    pub(crate) fn watch(&mut self, key: ChannelKey, id: ConnectionId) {
        let state = &mut self.channels[key as usize];
        state.watching.push(id);
        state.interest.subscribers.fetch_add(1, Ordering::Relaxed);
    }

    /// It has joined, or gives up; the hold stays.
    pub(crate) fn unwatch(&mut self, key: ChannelKey, id: ConnectionId) {
        let state = &mut self.channels[key as usize];
        if let Some(at) = state.watching.iter().position(|&other| other == id) {
            state.watching.swap_remove(at);
            state.interest.subscribers.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Turns a hold into a subscription: the slot gets what is accepted from now on, but for what it has seen.
    pub(crate) fn join(
        &mut self,
        key: ChannelKey,
        form: FormId,
        seen: Seen,
        slot: u32,
        now: Tick,
    ) -> Subscription {
        let delivered = self.channels[key as usize].delivered;
        let waits =
            self.ordinary_lane(key, form).is_some_and(|lane| !self.lanes[lane as usize].pending.is_empty());
        let settled = seen.has_nothing(delivered) || (!waits && seen.is_settled(delivered));
        let lane_key = match settled {
            true => self.lane(key, form, |kind| matches!(kind, Kind::Ordinary), || Kind::Ordinary),
            false => self.following_lane(key, form),
        };
        let lane = &mut self.lanes[lane_key as usize];
        if let Kind::Following(followers) = &mut lane.kind {
            followers.join(slot, seen, lane.pending.len(), delivered, now);
        }
        let index = lane.members.join(slot);
        self.channels[key as usize].interest.subscribers.fetch_add(1, Ordering::Relaxed);
        self.subscriptions += 1;
        Subscription { lane: lane_key, index }
    }

    /// Ends a subscription and its hold.
    pub(crate) fn part(&mut self, subscription: Subscription, now: Tick, receivers: &mut impl Receivers) {
        let key = self.take_out(subscription, receivers);
        self.channels[key as usize].interest.subscribers.fetch_sub(1, Ordering::Relaxed);
        self.subscriptions -= 1;
        self.release(key, now);
    }

    /// A member is about to be closed, and gets nothing until then: its subscription from now on.
    pub(crate) fn silence(
        &mut self,
        subscription: Subscription,
        receivers: &mut impl Receivers,
    ) -> Subscription {
        let lane = &self.lanes[subscription.lane as usize];
        let (form, slot) = (lane.form, lane.members.slot(subscription.index));
        let key = self.take_out(subscription, receivers);
        let lane = self.lane(key, form, |kind| matches!(kind, Kind::Silent), || Kind::Silent);
        Subscription { lane, index: self.lanes[lane as usize].members.join(slot) }
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

    /// What a subscription is, for another process: its channel, its form, and what the member has of it, where something of
    /// that may still come by. `None`: it ends, or something is on its way to it. What the next publication would differ from
    /// stays here, so that one is told whole.
    pub(crate) fn moving(&self, subscription: Subscription, slot: u32) -> Option<(&Channel, FormId, Seen)> {
        let lane = &self.lanes[subscription.lane as usize];
        let seen = match &lane.kind {
            Kind::Ordinary => Seen::default(),
            Kind::Following(followers) => followers.seen_of(slot)?,
            Kind::Silent => return None,
        };
        (!lane.has_work()).then(|| (self.channel(lane.channel), lane.form, seen))
    }

    /// Where a channel stood after what was delivered last.
    pub(crate) fn delivered(&self, key: ChannelKey) -> Option<Position> {
        self.channels[key as usize].delivered
    }

    /// What an outgoing publication of this shard alone counts as.
    pub(crate) fn load(&self, key: ChannelKey, payload_bytes: usize) -> Load {
        self.channels[key as usize].interest.load(payload_bytes)
    }

    /// Whether somebody in a channel is told in one of these forms.
    pub(crate) fn is_told_in(&self, key: ChannelKey, is_wanted: impl Fn(FormId) -> bool) -> bool {
        let mut lanes = self.channels[key as usize].lanes.iter().map(|&lane| &self.lanes[lane as usize]);
        lanes.any(|lane| !lane.members.is_empty() && is_wanted(lane.form.plain()))
    }

    /// What this node has to tell the subscribers of a channel, but for the one connection that sent it. The answer: who
    /// has to see it besides, because it is about to subscribe.
    pub(crate) fn deliver(
        &mut self,
        outgoing: &Arc<Outgoing>,
        except: Option<ConnectionId>,
    ) -> Option<(ChannelKey, &[ConnectionId])> {
        let &key = self.keys.get(&outgoing.channel)?;
        let state = &mut self.channels[key as usize];
        state.delivered = outgoing.position().or(state.delivered);
        let is_presence = matches!(outgoing.content, Content::Presence(_));
        self.push(key, outgoing, except, |lane| !is_presence || lane.says_presence);
        Some((key, &self.channels[key as usize].watching))
    }

    /// Tells those in a channel who are told in one of these forms; for what is told a second time.
    pub(crate) fn tell_again(
        &mut self,
        key: ChannelKey,
        outgoing: &Arc<Outgoing>,
        is_wanted: impl Fn(FormId) -> bool,
    ) {
        self.push(key, outgoing, None, |lane| is_wanted(lane.form.plain()));
    }

    /// Whether something waits to be sent.
    pub(crate) fn is_delivering(&self) -> bool {
        !self.runnable.is_empty()
    }

    /// Sends a portion of what waits: until the time is over, which is asked after every few writes.
    pub(crate) fn run<R: Receivers>(
        &mut self,
        delivery: &mut Delivery<'_, R>,
        mut is_over: impl FnMut() -> bool,
    ) -> Turn {
        loop {
            let Some(lane_key) = self.runnable.pop_front() else { return Turn::Idle };
            let lane = &mut self.lanes[lane_key as usize];
            let key = lane.channel;
            let slice = lane.serve(self.channels[key as usize].terms, LANE_WRITES, delivery);
            lane.runnable = lane.has_work();
            if lane.runnable {
                self.runnable.push_back(lane_key);
            }
            self.settle(key, delivery.receivers, delivery.now);
            self.move_on(key, delivery.receivers);
            // Those who have to be closed must not be written what comes after their gap.
            if slice.closes || is_over() {
                return if self.runnable.is_empty() { Turn::Idle } else { Turn::More };
            }
        }
    }

    /// Once a tick: settles those who have followed for too long, and lets go of channels that nobody has held for a
    /// while.
    pub(crate) fn sweep(&mut self, receivers: &mut impl Receivers, now: Tick) {
        for at in (0..self.following.len()).rev() {
            // Settling one lane may remove it, and others of its channel.
            if let Some(&lane) = self.following.get(at) {
                self.settle(self.lanes[lane as usize].channel, receivers, now);
            }
        }
        while let Some(&(key, at)) = self.abandoned.front() {
            if now.since(at) < LINGER {
                break;
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
        if self.abandoned.is_empty() && self.abandoned.capacity() > 1024 {
            self.abandoned = VecDeque::new();
        }
        if self.keys.capacity() > 1024 && self.keys.len() < self.keys.capacity() / 4 {
            self.keys.shrink_to_fit();
        }
    }

    fn push(
        &mut self,
        key: ChannelKey,
        outgoing: &Arc<Outgoing>,
        except: Option<ConnectionId>,
        is_wanted: impl Fn(&Lane) -> bool,
    ) {
        for &lane_key in &self.channels[key as usize].lanes {
            let lane = &mut self.lanes[lane_key as usize];
            if !lane.members.is_empty() && !matches!(lane.kind, Kind::Silent) && is_wanted(lane) {
                let pending = Pending { outgoing: Arc::clone(outgoing), except };
                lane.push(pending, lane_key, &mut self.runnable);
            }
        }
    }

    /// Takes a member out of its lane; the channel.
    fn take_out(&mut self, subscription: Subscription, receivers: &mut impl Receivers) -> ChannelKey {
        let lane_key = subscription.lane;
        let lane = &mut self.lanes[lane_key as usize];
        if let Kind::Following(followers) = &mut lane.kind {
            followers.leave(lane.members.slot(subscription.index));
        }
        lane.members.leave(subscription.index, |slot, index| {
            receivers.moved(slot, lane_key, Subscription { lane: lane_key, index });
        });
        if lane.members.is_empty() {
            lane.clear();
        }
        lane.channel
    }

    /// Moves those to their ordinary lane who follow no longer: everything they have from history has passed, and
    /// neither lane holds something that the other has sent. No system call is made, so all go at once: 15,000
    /// take about 2 ms, once.
    fn settle(&mut self, key: ChannelKey, receivers: &mut impl Receivers, now: Tick) {
        let mut at = 0;
        while let Some(&lane_key) = self.channels[key as usize].lanes.get(at) {
            let lane = &self.lanes[lane_key as usize];
            let Kind::Following(followers) = &lane.kind else {
                at += 1;
                continue;
            };
            let is_looked_at = followers.wants_look(self.channels[key as usize].delivered, now);
            let ordinary = self.ordinary_lane(key, lane.form);
            let waits = ordinary.is_some_and(|ordinary| !self.lanes[ordinary as usize].pending.is_empty());
            if is_looked_at && !waits && !lane.runnable {
                self.settle_lane(key, lane_key, receivers, now);
            }
            let lane = &self.lanes[lane_key as usize];
            if lane.members.is_empty() && !lane.runnable {
                self.remove_lane(lane_key);
                self.channels[key as usize].lanes.swap_remove(at);
            } else {
                at += 1;
            }
        }
    }

    fn settle_lane(&mut self, key: ChannelKey, from: u32, receivers: &mut impl Receivers, now: Tick) {
        let delivered = self.channels[key as usize].delivered;
        let form = self.lanes[from as usize].form;
        let to = self.lane(key, form, |kind| matches!(kind, Kind::Ordinary), || Kind::Ordinary);
        let Some((from_lane, to_lane)) = self.lanes.get2_mut(from as usize, to as usize) else { return };
        let Kind::Following(followers) = &mut from_lane.kind else { return };
        followers.begin_look(delivered, now);
        for slot in from_lane.members.take() {
            let settles = followers.settles(slot, delivered, now);
            if settles {
                followers.leave(slot);
            }
            let (lane, members) = match settles {
                true => (to, &mut to_lane.members),
                false => (from, &mut from_lane.members),
            };
            receivers.moved(slot, from, Subscription { lane, index: members.join(slot) });
        }
    }

    /// Moves those who have had a publication to the lane in which they are told how the next differs, when both lanes were
    /// told the same last and nothing waits in either.
    fn move_on(&mut self, key: ChannelKey, receivers: &mut impl Receivers) {
        for at in 0..self.channels[key as usize].lanes.len() {
            let from = self.channels[key as usize].lanes[at];
            let lane = &self.lanes[from as usize];
            if matches!(lane.kind, Kind::Ordinary) && lane.may_move_on() {
                self.move_lane_on(key, from, receivers);
            }
        }
    }

    fn move_lane_on(&mut self, key: ChannelKey, from: u32, receivers: &mut impl Receivers) {
        let form = self.lanes[from as usize].form;
        let Some(next) = self.forms.get(form).next() else { return };
        let to = self.lane(key, next, |kind| matches!(kind, Kind::Ordinary), || Kind::Ordinary);
        let Some((from_lane, to_lane)) = self.lanes.get2_mut(from as usize, to as usize) else { return };
        let is_alike = || match (&from_lane.last, &to_lane.last) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        if to_lane.has_work() || !(to_lane.members.is_empty() || is_alike()) {
            return;
        }
        to_lane.last.clone_from(&from_lane.last);
        let (slots, served) = from_lane.members.take_served();
        for (at, slot) in slots.into_iter().enumerate() {
            let (lane, members) = match at < served {
                true => (to, &mut to_lane.members),
                false => (from, &mut from_lane.members),
            };
            receivers.moved(slot, from, Subscription { lane, index: members.join(slot) });
        }
        from_lane.moves_on = false;
    }

    fn ordinary_lane(&self, key: ChannelKey, form: FormId) -> Option<u32> {
        self.find_lane(key, form, |kind| matches!(kind, Kind::Ordinary))
    }

    fn following_lane(&mut self, key: ChannelKey, form: FormId) -> u32 {
        let is_following = |kind: &Kind| matches!(kind, Kind::Following(_));
        if let Some(lane) = self.find_lane(key, form, is_following) {
            return lane;
        }
        let lane = self.lane(key, form, is_following, || Kind::Following(Box::default()));
        self.following.push(lane);
        lane
    }

    fn find_lane(&self, key: ChannelKey, form: FormId, is_kind: impl Fn(&Kind) -> bool) -> Option<u32> {
        let mut lanes = self.channels[key as usize].lanes.iter().copied();
        lanes.find(|&lane| {
            let lane = &self.lanes[lane as usize];
            lane.form == form && is_kind(&lane.kind)
        })
    }

    /// The lane of a form and kind, made when there is none.
    fn lane(
        &mut self,
        key: ChannelKey,
        form: FormId,
        is_kind: impl Fn(&Kind) -> bool,
        kind: impl FnOnce() -> Kind,
    ) -> u32 {
        if let Some(lane) = self.find_lane(key, form, is_kind) {
            return lane;
        }
        let lane = self.lanes.insert(Lane::new(key, form, self.forms.get(form), kind())) as u32;
        self.channels[key as usize].lanes.push(lane);
        lane
    }

    fn remove_lane(&mut self, lane_key: u32) {
        let lane = self.lanes.remove(lane_key as usize);
        if lane.runnable {
            self.runnable.retain(|&runnable| runnable != lane_key);
        }
        if lane.follows() {
            self.following.retain(|&following| following != lane_key);
        }
    }

    fn remove(&mut self, key: ChannelKey) {
        let state = self.channels.remove(key as usize);
        for lane in state.lanes {
            self.remove_lane(lane);
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
    fn new(interest: Arc<Interest>, terms: Terms) -> Self {
        Self {
            interest,
            lanes: Vec::new(),
            terms,
            watching: Vec::new(),
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
