//! The connections of a shard as the members of its hub.

use std::time::{Duration, Instant};

use tidegate_backplane::{Gap, GapReason, Position};
use tidegate_reactor::{ConnectionId, Connections, Shared, Turn, Written};
use tidegate_wire::sse;

use super::{Ctx, Session, core::Core};
use crate::hub::{ChannelKey, Delivery, Receivers, Subscription};

/// What the hub does with connections.
pub(crate) struct Fanout<'a> {
    connections: &'a mut Connections<Session>,
    farewells: &'a mut Vec<Farewell>,
}

/// A connection whose form cannot tell it of a gap: its protocol ends what it has of the channel, or the connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Farewell {
    pub(crate) id: ConnectionId,
    pub(crate) key: ChannelKey,
    pub(crate) reason: GapReason,
}

/// How long a fan-out goes on before others are served. About 70 writes; a turn costs some microseconds besides.
const TURN_TIME: Duration = Duration::from_micros(500);

impl Receivers for Fanout<'_> {
    fn write(&mut self, slot: u32, shared: &Shared<'_>) -> Written {
        self.connections.write_shared(slot, shared)
    }

    fn holds(&self, id: ConnectionId) -> bool {
        self.connections.get(id).is_some()
    }

    fn put_head(&mut self, slot: u32, key: ChannelKey, position: Option<Position>, head: &mut Vec<u8>) {
        let open = self.connections.in_slot_mut(slot).and_then(Session::open_mut);
        let rare = open.and_then(|open| open.rare.as_mut());
        if let Some(id) = rare.and_then(|rare| rare.advance(key, position)) {
            sse::begin_event(&id, head);
        }
    }

    fn close_for_gap(&mut self, slot: u32, key: ChannelKey, gap: Gap) {
        if let Some(id) = self.connections.in_slot(slot) {
            self.farewells.push(Farewell { id, key, reason: gap.reason });
        }
    }

    fn moved(&mut self, slot: u32, from_lane: u32, to: Subscription) {
        if let Some(session) = self.connections.in_slot_mut(slot) {
            session.moved(from_lane, to);
        }
    }
}

impl Core {
    /// Sends a portion of what waits in the hub. Who has to be closed for a gap is named in `farewells`, and gets
    /// nothing more of that channel.
    pub(crate) fn fan_out(&mut self, connections: &mut Connections<Session>) -> Turn {
        // From the first few writes on: most turns have none.
        let mut began = None;
        let now = connections.now();
        let (encoder, metrics) = (&mut self.encoder, &self.metrics);
        let mut receivers = Fanout { connections, farewells: &mut self.farewells };
        let mut delivery = Delivery { receivers: &mut receivers, encoder, metrics, now };
        let turn =
            self.hub.run(&mut delivery, || began.get_or_insert_with(Instant::now).elapsed() >= TURN_TIME);
        for Farewell { id, key, .. } in self.farewells.clone() {
            self.silence(connections, id, key);
        }
        turn
    }

    /// Once a tick.
    pub(crate) fn sweep_hub(&mut self, connections: &mut Connections<Session>) {
        let now = connections.now();
        self.hub.sweep(&mut Fanout { connections, farewells: &mut self.farewells }, now);
    }

    fn silence(&mut self, connections: &mut Connections<Session>, id: ConnectionId, key: ChannelKey) {
        let place = |hub: &crate::hub::Hub, own: &Subscription| hub.channel_of(*own) == key;
        let open = connections.get(id).and_then(Session::open);
        let own =
            open.and_then(|open| open.subscriptions.as_slice().iter().find(|own| place(&self.hub, own)));
        let Some(&subscription) = own else { return };
        let mut receivers = Fanout { connections, farewells: &mut self.farewells };
        let silent = self.hub.silence(subscription, &mut receivers);
        let open = connections.get_mut(id).and_then(Session::open_mut);
        let mut all = open.into_iter().flat_map(|open| open.subscriptions.as_mut_slice());
        if let Some(own) = all.find(|own| **own == subscription) {
            *own = silent;
        }
    }
}

impl Ctx<'_> {
    /// Ends a subscription and its hold.
    pub(crate) fn part(&mut self, subscription: Subscription) {
        let now = self.connections.now();
        let mut receivers = Fanout { connections: self.connections, farewells: &mut self.core.farewells };
        self.core.hub.part(subscription, now, &mut receivers);
    }
}
