//! Webhooks: an app's servers are told what happens in its channels, in signed POST requests.
//!
//! The way of an event: [`Webhooks::notify`] looks whether an [`Endpoint`] of the app wants it, writes it once, and
//! puts it into the queue of each that does (`queue`: bounded in bytes, never waited for). Every queue has a task that
//! sends what piled up, again and again until it is taken (`sender`). Queues outlive a reload of the apps.

mod dialect;
mod hook_events;
mod metrics;
mod moving;
mod outlet;
mod queue;
mod sender;
#[cfg(test)]
mod tests;
mod transitions;
mod wills;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::{runtime::Handle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::hook_events::{Forward, HookEvents};
use self::{dialect::Dialect, metrics::WebhookMetrics, outlet::Outlet, queue::Queue, sender::Sender};
pub(crate) use self::{
    metrics::{HookEventCollector, WebhookCollector},
    moving::Telling,
    transitions::{INTERNAL, TransitionHooks},
};
use crate::{
    app::apps::signature::Signer,
    config::{AppId, ConfigError, WebhookEntry, WebhookEvent, WebhookSending, WebhookUrl},
    hooks::client::client,
};

/// Something that happened in a channel, by the names that the app knows, without its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "name", rename_all = "snake_case")]
#[expect(clippy::enum_variant_names, reason = "the names are Pusher's")]
pub(crate) enum Event<'a> {
    /// The first subscription of the channel on any node.
    ChannelOccupied { channel: &'a str },
    /// The last subscription has been gone for a while.
    ChannelVacated { channel: &'a str },
    /// The first connection of a user in a presence channel.
    MemberAdded { channel: &'a str, user_id: &'a str },
    /// The user's last connection has been gone for a while.
    MemberRemoved { channel: &'a str, user_id: &'a str },
    /// A client has sent an event to others.
    ClientEvent {
        channel: &'a str,
        event: &'a str,
        data: &'a str,
        socket_id: &'a str,
        /// In presence channels.
        #[serde(skip_serializing_if = "Option::is_none")]
        user_id: Option<&'a str>,
    },
    /// A cache channel without an event was subscribed to.
    CacheMiss { channel: &'a str },
    /// The number of subscriptions on all nodes has changed.
    SubscriptionCount { channel: &'a str, subscription_count: u64 },
}

/// All queues of this node.
#[derive(Debug)]
pub(crate) struct Webhooks {
    sending: WebhookSending,
    metrics: Arc<WebhookMetrics>,
    queues: Mutex<HashMap<QueueKey, Arc<Queue>>>,
    client: reqwest::Client,
    senders: TaskTracker,
    closing: CancellationToken,
    runtime: Handle,
}

/// An app may name one address several times, with other filters: each has a queue.
type QueueKey = (AppId, WebhookUrl, usize);

/// An address of an app, and what it wants to be told.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// One bit for each event, in the order of [`WebhookEvent::ALL`].
    events: u8,
    channel_prefixes: Vec<Box<str>>,
    queue: Arc<Queue>,
}

impl Webhooks {
    /// Senders run on this runtime.
    pub(crate) fn new(sending: WebhookSending, runtime: Handle) -> Result<Self, ConfigError> {
        Ok(Self {
            client: client("webhooks", sending.timeout)?,
            sending,
            metrics: Arc::default(),
            queues: Mutex::default(),
            senders: TaskTracker::new(),
            closing: CancellationToken::new(),
            runtime,
        })
    }

    /// Tells whoever wants to know. Never waits: what finds no room is dropped and counted.
    pub(crate) fn notify(&self, endpoints: &[Endpoint], event: Event<'_>) {
        let mut json: Option<Arc<[u8]>> = None;
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.wants(&event)) {
            let json = json.get_or_insert_with(|| event.to_json());
            endpoint.queue.push(&event, Arc::clone(json));
        }
    }

    /// The addresses of an app. A queue that is there already is used on, with the new signer.
    pub(crate) fn endpoints(
        &self,
        app: &AppId,
        entries: &[WebhookEntry],
        signer: &Arc<Signer>,
    ) -> Vec<Endpoint> {
        let mut endpoints = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            // An entry without an address was refused when the configuration was loaded.
            let Some(url) = &entry.url else { continue };
            let nth = entries[..index].iter().filter(|before| before.url.as_ref() == Some(url)).count();
            let dialect = Dialect::Pusher(Arc::clone(signer));
            let queue = self.queue((app.clone(), url.clone(), nth), &dialect);
            queue.configure(dialect, entry.batch);
            endpoints.push(Endpoint::new(entry, queue));
        }
        endpoints
    }

    /// Ends the queues that no endpoint uses any more.
    pub(crate) fn keep_only<'e>(&self, endpoints: impl Iterator<Item = &'e Endpoint>) {
        let used: Vec<_> = endpoints.map(|endpoint| Arc::as_ptr(&endpoint.queue)).collect();
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|_, queue| {
            let keep = used.contains(&Arc::as_ptr(queue));
            if !keep {
                queue.abandon();
            }
            keep
        });
    }

    /// For `/metrics`.
    pub(crate) fn collector(&self) -> Arc<WebhookCollector> {
        Arc::new(WebhookCollector(Arc::clone(&self.metrics)))
    }

    /// Sends what waits, each request once, for as long as this.
    pub(crate) async fn close(&self, patience: Duration) {
        self.closing.cancel();
        self.senders.close();
        if timeout(patience, self.senders.wait()).await.is_err() {
            tracing::warn!(
                "webhooks and hooks were not told everything; ends of connections are told by another node"
            );
        }
    }

    fn queue(&self, key: QueueKey, dialect: &Dialect) -> Arc<Queue> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queues.get(&key) {
            return Arc::clone(queue);
        }
        let outlet = Outlet::Http { url: key.1.url().clone(), client: self.client.clone() };
        let queue = self.begin_queue(outlet, dialect.clone(), &self.metrics);
        queues.insert(key, Arc::clone(&queue));
        queue
    }

    /// A queue with its sender.
    fn begin_queue(&self, outlet: Outlet, dialect: Dialect, metrics: &Arc<WebhookMetrics>) -> Arc<Queue> {
        let bytes_max = self.sending.queue_bytes.bytes();
        let queue = Arc::new(Queue::new(bytes_max, dialect, Arc::clone(metrics)));
        let sender = Sender {
            outlet,
            queue: Arc::clone(&queue),
            sending: self.sending.clone(),
            metrics: Arc::clone(metrics),
            closing: self.closing.clone(),
        };
        self.senders.spawn_on(sender.run(), &self.runtime);
        queue
    }
}

impl Endpoint {
    fn new(entry: &WebhookEntry, queue: Arc<Queue>) -> Self {
        let events = entry.events.iter().fold(0, |bits, event| bits | bit(*event));
        Self { events, channel_prefixes: entry.channel_prefixes.clone(), queue }
    }

    /// Whether it wants such events, of some channels at least.
    pub(crate) fn takes(&self, event: WebhookEvent) -> bool {
        self.events & bit(event) != 0
    }

    fn wants(&self, event: &Event<'_>) -> bool {
        let (channel, prefixes) = (event.channel(), &self.channel_prefixes);
        self.takes(event.kind())
            && (prefixes.is_empty() || prefixes.iter().any(|prefix| channel.starts_with(&**prefix)))
    }
}

const fn bit(event: WebhookEvent) -> u8 {
    1 << event as u8
}

impl<'a> Event<'a> {
    pub(crate) const fn kind(&self) -> WebhookEvent {
        match self {
            Self::ChannelOccupied { .. } => WebhookEvent::ChannelOccupied,
            Self::ChannelVacated { .. } => WebhookEvent::ChannelVacated,
            Self::MemberAdded { .. } => WebhookEvent::MemberAdded,
            Self::MemberRemoved { .. } => WebhookEvent::MemberRemoved,
            Self::ClientEvent { .. } => WebhookEvent::ClientEvent,
            Self::CacheMiss { .. } => WebhookEvent::CacheMiss,
            Self::SubscriptionCount { .. } => WebhookEvent::SubscriptionCount,
        }
    }

    const fn channel(&self) -> &'a str {
        match *self {
            Self::ChannelOccupied { channel }
            | Self::ChannelVacated { channel }
            | Self::MemberAdded { channel, .. }
            | Self::MemberRemoved { channel, .. }
            | Self::ClientEvent { channel, .. }
            | Self::CacheMiss { channel }
            | Self::SubscriptionCount { channel, .. } => channel,
        }
    }

    /// Whether it is a change of a channel, which comes once and is missed if it is lost. The rest are what clients do.
    const fn is_change(&self) -> bool {
        matches!(
            self,
            Self::ChannelOccupied { .. }
                | Self::ChannelVacated { .. }
                | Self::MemberAdded { .. }
                | Self::MemberRemoved { .. }
        )
    }

    fn to_json(self) -> Arc<[u8]> {
        // Texts and one number: nothing that JSON cannot say.
        serde_json::to_vec(&self).unwrap_or_default().into()
    }
}
