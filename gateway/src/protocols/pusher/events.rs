//! What clients send to each other: rights, size, rate, and who is told.

use bytes::Bytes;
use tidegate_backplane::{Payload, Sender};
use tidegate_ops::budget::Rate;
use tidegate_reactor::{ConnectionId, Connections};
use tidegate_wire::pusher::{Access, ChannelKind, Code, server};

use super::channel_in;
use crate::{
    app::apps::App,
    app::webhooks::Event,
    hub::ChannelKey,
    metrics::DropReason,
    node::{PublishError, PublishHistory, PublishRequest},
    session::{Session, publishing::Rates},
    shard::Core,
};

/// Why an event of a client is not published.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EventRefused {
    #[error("client events are switched off for this app")]
    Off,
    #[error("the data of a client event has {bytes} bytes, {max} are allowed")]
    TooLarge { bytes: usize, max: usize },
    #[error("{}", Code::CLIENT_EVENT_RATE.message())]
    Rate,
    #[error("the event could not be published: {0}")]
    Failed(PublishError),
}

impl Core {
    /// Publishes to a channel that the connection is in.
    pub(super) fn pusher_publish(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        name: &str,
        event: &str,
        data: &str,
    ) {
        let Some(app) = self.app_of(connections, id) else { return };
        let Ok(channel) = channel_in(&app, name) else { return };
        let Some(key) = self.hub.key_of(channel.as_str()) else { return };
        if let Err(refused) = self.check_event(connections, id, &app, data.len()) {
            return self.refuse_event(connections, id, Some(name), &refused);
        }
        let socket_id = self.socket_ids.name(id);
        let user = self.member(connections, id, key, name);
        let told = Event::ClientEvent {
            channel: name,
            event,
            data,
            socket_id: &socket_id,
            user_id: user.as_deref(),
        };
        self.shared.webhooks.notify(&app, told);
        let request = PublishRequest {
            channel,
            event: Some(event.into()),
            payload: Payload::Text(Bytes::copy_from_slice(data.as_bytes())),
            idempotency_key: None,
            sender: Some(Box::new(Sender { connection: Some(socket_id.into()), user })),
            history: PublishHistory::Never,
        };
        self.start_publish(connections, id, request);
    }

    fn check_event(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        app: &App,
        bytes: usize,
    ) -> Result<(), EventRefused> {
        if !app.client_events {
            return Err(EventRefused::Off);
        }
        let max = app.limits.event_bytes.bytes();
        if bytes > max {
            return Err(EventRefused::TooLarge { bytes, max });
        }
        let now = connections.now().duration();
        let Some(open) = connections.get_mut(id).and_then(Session::open_mut) else {
            return Err(EventRefused::Off);
        };
        let rates = Rates {
            messages: Rate::per_second(app.limits.client_events_per_second),
            bytes: Rate::per_second(0),
        };
        let publisher = open.rare_mut().publisher.get_or_insert_default();
        if publisher.take(rates, now, bytes) { Ok(()) } else { Err(EventRefused::Rate) }
    }

    /// Who the connection is in a presence channel.
    fn member(
        &self,
        connections: &Connections<Session>,
        id: ConnectionId,
        key: ChannelKey,
        name: &str,
    ) -> Option<Box<str>> {
        let open = connections.get(id).and_then(Session::open)?;
        let is_presence = ChannelKind::of(name).access == Access::Presence;
        open.pusher()?.member_of(key).filter(|_| is_presence).map(Box::from)
    }

    pub(crate) fn refuse_event(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        channel: Option<&str>,
        refused: &EventRefused,
    ) {
        let (reason, code) = match refused {
            EventRefused::Rate => (DropReason::RateLimit, Some(Code::CLIENT_EVENT_RATE)),
            EventRefused::Off => (DropReason::Forbidden, None),
            EventRefused::TooLarge { .. } | EventRefused::Failed(_) => (DropReason::PublishFailed, None),
        };
        self.metrics.messages_dropped.add(reason, 1);
        let text = refused.to_string();
        self.tell(connections, id, |out| server::error(code, &text, channel, out));
    }
}
