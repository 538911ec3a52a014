//! What of a fan-out concerns clients of Pusher Channels alone: who is not told of counts, and the last event of a cache
//! channel after a gap.

use std::sync::Arc;

use tidegate_backplane::{BackplaneError, Channel, History, HistoryQuery, PresenceKind, Publication};
use tidegate_wire::pusher::ChannelKind;

use super::forms;
use crate::{
    hub::{content::Content, outgoing::Outgoing},
    session::core::Core,
};

/// Whether a gap or a change of who is in a channel is told. After a gap the last event of a cache channel is read.
pub(super) fn on_notice(core: &Core, outgoing: &Outgoing) -> bool {
    match &outgoing.content {
        // Counted for a webhook only.
        Content::Presence(event) if matches!(event.kind, PresenceKind::Count { .. }) => {
            tells_counts(core, &outgoing.channel)
        }
        Content::Gap(_) => {
            read_last(core, &outgoing.channel);
            true
        }
        Content::Presence(_) | Content::Publication(_) => true,
    }
}

fn read_last(core: &Core, channel: &Channel) {
    let has_own = || {
        let key = core.hub.key_of(channel.as_str());
        key.is_some_and(|key| core.hub.is_told_in(key, |form| form == forms::EVENT))
    };
    if !ChannelKind::of(channel.name()).is_cache || !has_own() {
        return;
    }
    let (backplane, channel) = (Arc::clone(core.shared.node.backplane()), channel.clone());
    let read = async move {
        let result = backplane.history(&channel, HistoryQuery::newest(1)).await;
        (channel, result)
    };
    core.run(read, |core, _, (channel, result)| last_read(core, &channel, result));
}

/// The last event of a cache channel was read after a gap.
fn last_read(core: &mut Core, channel: &Channel, result: Result<History, BackplaneError>) {
    match result {
        Ok(history) => {
            if let Some(last) = history.publications.into_iter().next_back() {
                repeat(core, channel, last);
            }
        }
        // They were told of the gap, and the next event is the last one again.
        Err(error) => tracing::warn!(%error, %channel, "the last event of a channel could not be read"),
    }
}

/// Tells its clients the last event of a channel again, unless they were told a newer one meanwhile.
fn repeat(core: &mut Core, channel: &Channel, last: Arc<Publication>) {
    let Some(key) = core.hub.key_of(channel.as_str()) else { return };
    let is_old = core.hub.delivered(key).zip(last.position).is_some_and(|(delivered, position)| {
        delivered.epoch == position.epoch && delivered.offset > position.offset
    });
    if !is_old {
        let load = core.hub.load(key, last.payload.bytes().len());
        let outgoing = Arc::new(Outgoing::new(channel.clone(), Content::Publication(last), load));
        core.hub.tell_again(key, &outgoing, |form| form == forms::EVENT);
    }
}

fn tells_counts(core: &Core, channel: &Channel) -> bool {
    let apps = &core.shared.apps;
    let app = channel.app().map_or_else(|| apps.default(), |app| apps.by_id(app));
    app.is_some_and(|app| app.subscription_count)
}
