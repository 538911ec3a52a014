//! What the applications of hooks are told, nobody waiting: through the queue and the sender that apps' webhooks have.
//!
//! A hook has a few queues. What happens to one connection or channel is always in the same one, so it is told in order; and what
//! waits in one delays a part of the others only.

use std::{
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    sync::Arc,
};

use tidegate_backplane::{Channel, Transition};

use super::{Webhooks, dialect::Dialect, queue::Queue};
use crate::{
    config::{Config, ConfigError, HookEntry, HookEvent},
    hooks::{Source, client::client, events::Happened, signature::Signer},
};

/// Queues of one hook, each with a request under way.
const LANES: usize = 8;

/// All hooks that are told something.
#[derive(Debug, Default)]
pub(crate) struct HookEvents(Vec<Told>);

#[derive(Debug)]
struct Told {
    entry: HookEntry,
    source: Arc<Source>,
    lanes: Vec<Arc<Queue>>,
}

impl HookEvents {
    pub(crate) fn new(
        config: &Config,
        source: &Arc<Source>,
        webhooks: &Webhooks,
    ) -> Result<Self, ConfigError> {
        let mut told = Vec::new();
        for (name, entry) in config.hooks.0.iter().filter(|(_, entry)| !entry.events.is_empty()) {
            // One without an address was refused when the configuration was loaded.
            let Some(url) = &entry.url else { continue };
            let client = client(&format!("hooks.{name}"), webhooks.sending.timeout, &entry.denied_addresses)?;
            let (signer, source, is_batch) = (Arc::new(Signer::new(entry)), Arc::clone(source), entry.batch);
            let dialect = Dialect::CloudEvents { signer, source: Arc::clone(&source), is_batch };
            let lane = |_| {
                let queue = webhooks.begin_queue(url, dialect.clone(), client.clone());
                queue.configure(dialect.clone(), is_batch);
                queue
            };
            told.push(Told { entry: entry.clone(), source, lanes: (0..LANES).map(lane).collect() });
        }
        Ok(Self(told))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether anybody is told such events of a channel, or of any.
    pub(crate) fn takes(&self, event: HookEvent, channel: Option<&str>) -> bool {
        self.0.iter().any(|told| told.takes(event, channel))
    }

    /// Tells whoever wants to know. Never waits: what finds no room is dropped and counted.
    pub(crate) fn tell(&self, event: HookEvent, happened: &Happened<'_>) {
        for told in self.0.iter().filter(|told| told.takes(event, happened.channel)) {
            let json = happened.to_json(event, &told.source);
            // What one connection does is one of many; changes of channels keep their room.
            let is_change = happened.channel.is_some();
            told.lane(happened).add(None, is_change, json.into());
        }
    }

    /// What happened to a channel in the whole cluster. Channels of apps other than the default one are told to their own
    /// webhooks only.
    pub(super) fn tell_transition(&self, channel: &Channel, transition: &Transition) {
        if self.0.is_empty() || channel.app().is_some() {
            return;
        }
        let (event, user) = match transition {
            Transition::Occupied => (HookEvent::Occupied, None),
            Transition::Vacated => (HookEvent::Vacated, None),
            Transition::UserJoined { user } => (HookEvent::Joined, Some(&**user)),
            Transition::UserLeft { user } => (HookEvent::Left, Some(&**user)),
            Transition::Count { .. } => return,
        };
        self.tell(event, &Happened { channel: Some(channel.name()), user, ..Happened::default() });
    }
}

impl Told {
    fn takes(&self, event: HookEvent, channel: Option<&str>) -> bool {
        self.entry.events.contains(&event)
            && channel
                .is_none_or(|channel| self.entry.channels.iter().any(|pattern| pattern.matches(channel)))
    }

    /// The same one for all that happens to a connection or a channel.
    fn lane(&self, happened: &Happened<'_>) -> &Queue {
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        let hash =
            hasher.hash_one((happened.channel, happened.connection.filter(|_| happened.channel.is_none())));
        &self.lanes[hash as usize % self.lanes.len()]
    }
}
