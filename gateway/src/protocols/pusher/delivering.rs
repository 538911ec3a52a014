//! What of a fan-out concerns clients of Pusher Channels alone: who is not told of counts, and the last event of a cache
//! channel after a gap.

use std::sync::Arc;

use tidegate_backplane::{BackplaneError, CensusKind, Channel, History};
use tidegate_wire::pusher::ChannelKind;

use super::entering::LAST;
use crate::{
    hub::outgoing::{Content, Outgoing},
    session::core::Core,
};

/// Whether a gap or a change of who is in a channel is told. After a gap the last event of a cache channel is read.
pub(super) fn on_notice(core: &Core, outgoing: &Outgoing) -> bool {
    match &outgoing.content {
        // Counted for a webhook only.
        Content::Census(event) if matches!(event.kind, CensusKind::Count { .. }) => {
            tells_counts(core, &outgoing.channel)
        }
        Content::Gap(_) => {
            read_last(core, &outgoing.channel);
            true
        }
        Content::Census(_) | Content::Publication(_) => true,
    }
}

fn read_last(core: &Core, channel: &Channel) {
    if !ChannelKind::of(channel.name()).is_cache || !core.hub.has_pusher(channel) {
        return;
    }
    let (backplane, channel) = (Arc::clone(core.shared.node.backplane()), channel.clone());
    let read = async move {
        let result = backplane.history(&channel, LAST).await;
        (channel, result)
    };
    core.run(read, |core, _, (channel, result)| last_read(core, &channel, result));
}

/// The last event of a cache channel was read after a gap.
fn last_read(core: &mut Core, channel: &Channel, result: Result<History, BackplaneError>) {
    match result {
        Ok(history) => {
            if let Some(last) = history.publications.into_iter().next_back() {
                core.hub.repeat(channel, last);
            }
        }
        // They were told of the gap, and the next event is the last one again.
        Err(error) => tracing::warn!(%error, %channel, "the last event of a channel could not be read"),
    }
}

fn tells_counts(core: &Core, channel: &Channel) -> bool {
    let apps = &core.shared.apps;
    let app = channel.app().map_or_else(|| apps.default(), |app| apps.by_id(app));
    app.is_some_and(|app| app.subscription_count)
}
