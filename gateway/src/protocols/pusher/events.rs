//! What clients send to each other: rights, size, rate, and who is told.

use std::sync::Arc;

use tidegate_backplane::{Channel, Payload, Sender};
use tidegate_ops::budget::Rate;
use tidegate_wire::pusher::{Access, ChannelKind, Code, server};

use crate::{
    app::apps::{App, WebhookEvent},
    app::webhooks::Event,
    hooks::No,
    hub::ChannelKey,
    metrics::DropReason,
    node::{PublishError, PublishHistory, PublishRequest},
    session::{
        Ctx, Session,
        publishing::{Ended, Rates},
    },
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
    #[error(transparent)]
    Application(#[from] No),
    #[error("the application has answered bytes that are no text")]
    NoText,
}

impl Ctx<'_> {
    /// Publishes to a channel that the connection is in.
    pub(super) fn pusher_publish(&mut self, name: &str, event: &str, data: &str) {
        let Some(app) = self.app_of() else { return };
        let Ok(channel) = app.channel(name) else { return };
        if let Err(refused) = self.check_event(&app, data.len()) {
            return self.refuse_event(Some(name), &refused);
        }
        match self.core.asks_to_publish(&channel).filter(|_| app.is_asked_about()) {
            Some(hook) => self.ask_to_publish_event(&hook, channel, event, data),
            None => self.publish_event(&app, channel, event, data),
        }
    }

    pub(super) fn publish_event(&mut self, app: &Arc<App>, channel: Channel, event: &str, data: &str) {
        let Some(key) = self.core.hub.key_of(channel.as_str()) else { return };
        let name = channel.name();
        let socket_id = self.core.socket_ids.name(self.id);
        let user = self.member(key, name);
        let ended = app.tells(WebhookEvent::ClientEvent).then(|| {
            let (webhooks, told) = (Arc::clone(&self.core.shared.webhooks), Arc::clone(app));
            let [name, event, data, socket_id] = [name, event, data, &socket_id].map(Box::<str>::from);
            let user = user.clone();
            let tell = move |result: Result<(), PublishError>| {
                result?;
                let (channel, user_id) = (&*name, user.as_deref());
                let (event, data, socket_id) = (&*event, &*data, &*socket_id);
                webhooks
                    .notify(&told.webhooks, Event::ClientEvent { channel, event, data, socket_id, user_id });
                Ok(())
            };
            Box::new(tell) as Ended
        });
        let request = PublishRequest {
            channel,
            event: Some(event.into()),
            payload: Payload::Text(data.into()),
            idempotency_key: None,
            sender: Some(Box::new(Sender { connection: Some(socket_id.into()), user })),
            history: PublishHistory::Never,
        };
        self.start_publish(request, ended);
    }

    fn check_event(&mut self, app: &App, bytes: usize) -> Result<(), EventRefused> {
        if !app.client_events {
            return Err(EventRefused::Off);
        }
        let max = app.limits.event_bytes.bytes();
        if bytes > max {
            return Err(EventRefused::TooLarge { bytes, max });
        }
        let now = self.connections.now().duration();
        let Some(open) = self.connections.get_mut(self.id).and_then(Session::open_mut) else {
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
    fn member(&self, key: ChannelKey, name: &str) -> Option<Box<str>> {
        let is_presence = ChannelKind::of(name).access == Access::Presence;
        let (rosters, connection) = (self.core.shared.node.rosters(), self.core.connection_name(self.id));
        is_presence.then(|| rosters.user_of(self.core.hub.channel(key), &connection))?
    }

    pub(crate) fn refuse_event(&mut self, channel: Option<&str>, refused: &EventRefused) {
        let (reason, code) = match refused {
            EventRefused::Rate => (DropReason::RateLimit, Some(Code::CLIENT_EVENT_RATE)),
            EventRefused::Application(No::Away)
            | EventRefused::NoText
            | EventRefused::TooLarge { .. }
            | EventRefused::Failed(_) => (DropReason::PublishFailed, None),
            EventRefused::Off | EventRefused::Application(_) => (DropReason::Forbidden, None),
        };
        self.core.metrics.messages_dropped.add(reason, 1);
        let text = refused.to_string();
        self.note_told(channel.unwrap_or("event"), refused);
        self.tell(|out| server::error(code, &text, channel, out));
    }
}
