//! One connection by its name, for orders and for a person who asks what it is.

use std::sync::PoisonError;

use tidegate_reactor::{ConnectionId, Connections};

use super::{Phase, Session, core::Core};
use crate::node::{
    connection_state::{CHANNELS_TOLD, ConnectionState},
    shards::Inquiry,
};

impl Core {
    /// The connection of a name, as presence or Pusher's protocol gives it, if this shard has it.
    pub(crate) fn find(&self, connections: &Connections<Session>, name: &str) -> Option<ConnectionId> {
        let of_socket_id = self.socket_ids.find(name).filter(|&id| connections.get(id).is_some());
        of_socket_id.or_else(|| {
            // Slot and generation are the end of the name; the rest is compared whole.
            let slot = name.rsplit('-').nth(1)?.parse().ok()?;
            let id = (slot < connections.slots()).then(|| connections.in_slot(slot))??;
            (self.connection_name(id) == name).then_some(id)
        })
    }

    /// Says what the connections are that this shard has of those asked for.
    pub(crate) fn look_up(&self, connections: &Connections<Session>, inquiry: &Inquiry) {
        let ids = inquiry.names.iter().filter_map(|name| Some((name, self.find(connections, name)?)));
        let states = ids.filter_map(|(name, id)| self.state_of(connections, id, name));
        let mut found = inquiry.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.extend(states);
    }

    pub(super) fn state_of(
        &self,
        connections: &Connections<Session>,
        id: ConnectionId,
        name: &str,
    ) -> Option<ConnectionState> {
        let session = connections.get(id)?;
        let phase = match &session.phase {
            Phase::Head(_) | Phase::Opening(_) => "opening",
            Phase::Open(_) => "open",
            Phase::Leaving(_) => "leaving",
        };
        let (open, identity) = (session.open(), self.identity(session));
        let subscriptions = open.map_or(&[][..], |open| open.subscriptions.as_slice());
        let channel = |&subscription| self.hub.channel(self.hub.channel_of(subscription)).name().to_owned();
        Some(ConnectionState {
            name: name.to_owned(),
            node: self.shared.node.name().to_owned(),
            phase: phase.to_owned(),
            protocol: open.map(|open| open.protocol.of_list(self.shared.protocols).name().to_owned()),
            user: identity.user.map(str::to_owned),
            app: identity.app.map(str::to_owned),
            peer: connections.peer_address(id).map(|address| address.to_string()),
            connected_s: self.lasted(session).as_secs(),
            quiet_s: connections.silent(id).as_secs(),
            is_pinged: open.is_some_and(|open| open.ping.is_under_way()),
            channels: subscriptions.iter().take(CHANNELS_TOLD).map(channel).collect(),
            subscriptions: subscriptions.len() as u64,
            queued_bytes: connections.queued_bytes(id) as u64,
            told: self.told.to(id, session.accepted_ms, self.now_ms(), |channel| {
                let keys = subscriptions.iter().map(|&subscription| self.hub.channel_of(subscription));
                keys.into_iter().any(|key| self.hub.channel(key) == channel)
            }),
        })
    }
}
