//! What of a fan-out concerns clients of Pusher Channels alone: who is not told of counts, and the last event of a cache
//! channel after a gap.

use std::sync::Arc;

use tidegate_backplane::{BackplaneError, CensusKind, Channel, History};
use tidegate_reactor::Connections;
use tidegate_wire::pusher::ChannelKind;

use super::entering::LAST;
use crate::{
    hub::outgoing::{Content, Outgoing},
    session::Session,
    shard::{Command, Core},
};

impl Core {
    pub(crate) fn deliver(&mut self, connections: &mut Connections<Session>, outgoing: &Arc<Outgoing>) {
        match &outgoing.content {
            // Counted for a webhook only.
            Content::Census(event)
                if matches!(event.kind, CensusKind::Count { .. })
                    && !self.tells_counts(&outgoing.channel) => {}
            content => {
                self.hub.deliver(outgoing, connections);
                if matches!(content, Content::Gap(_)) {
                    self.read_last(&outgoing.channel);
                }
            }
        }
    }

    /// The last event of a cache channel was read after a gap.
    pub(crate) fn last_read(&mut self, channel: &Channel, result: Result<History, BackplaneError>) {
        match result {
            Ok(history) => {
                if let Some(last) = history.publications.into_iter().next_back() {
                    self.hub.repeat(channel, last);
                }
            }
            // They were told of the gap, and the next event is the last one again.
            Err(error) => tracing::warn!(%error, %channel, "the last event of a channel could not be read"),
        }
    }

    fn read_last(&self, channel: &Channel) {
        if !ChannelKind::of(channel.name()).is_cache || !self.hub.has_pusher(channel) {
            return;
        }
        let (backplane, channel) = (Arc::clone(self.shared.node.backplane()), channel.clone());
        let read = async move {
            let result = backplane.history(&channel, LAST).await;
            (channel, result)
        };
        self.then(read, |(channel, result)| Command::LastRead { channel, result });
    }

    fn tells_counts(&self, channel: &Channel) -> bool {
        let apps = &self.shared.apps;
        let app = channel.app().map_or_else(|| apps.default(), |app| apps.by_id(app));
        app.is_some_and(|app| app.subscription_count)
    }
}
