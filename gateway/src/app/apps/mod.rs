//! Apps: who signs, what each app may do and use, and who is told of its events.
//!
//! [`Apps`] holds one snapshot that a reload replaces whole (`list`); `reload` watches the file it comes from. An
//! [`App`] is a value of one snapshot; what it counts (its open connections, its rates) outlives a reload.
//!
//! - `list`: finding apps, replacing them
//! - `reload`: when their file changes
//! - `signature`: HMAC-SHA256 in hexadecimal digits

mod list;
mod metrics;
mod reload;
pub(crate) mod signature;
#[cfg(test)]
mod tests;

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use tidegate_backplane::{Channel, ChannelError};
use tidegate_ops::budget::{Rate, SharedBudget};

pub(crate) use self::list::Apps;
use self::signature::Signer;
pub(crate) use self::{metrics::AppCollector, reload::keep_fresh};
use crate::app::webhooks::Endpoint;
pub(crate) use crate::config::{AppId, AppLimits, WebhookEvent};

/// One app, as one snapshot of the configuration has it.
#[derive(Debug)]
pub(crate) struct App {
    pub id: AppId,
    /// Public: clients connect with it, and signatures of channels begin with it.
    pub key: Box<str>,
    /// Whether its channels are those of `/v1`, without a prefix.
    pub is_default: bool,
    /// Whether it may have raw clients and event streams, which have names of their own for events.
    pub has_raw_clients: bool,
    /// A disabled app is listed, so that its clients can be told 4003 and not 4001.
    pub enabled: bool,
    pub limits: AppLimits,
    pub client_events: bool,
    pub subscription_count: bool,
    signer: Arc<Signer>,
    pub(crate) webhooks: Vec<Endpoint>,
    usage: Arc<Usage>,
}

/// What an app uses of this node. It outlives reloads.
#[derive(Debug, Default)]
struct Usage {
    connections: AtomicU32,
    events: SharedBudget,
    reads: SharedBudget,
}

impl App {
    /// Whether `signature` is the hexadecimal HMAC-SHA256 of `signed` under the app's secret. Takes as long whatever
    /// part of it is right.
    pub(crate) fn verify(&self, signed: &str, signature: &str) -> bool {
        self.signer.verify(signed.as_bytes(), signature)
    }

    /// Whether anybody is told of such events. Where nobody is, [`Webhooks::notify`](crate::app::webhooks::Webhooks::notify)
    /// does nothing, and the event need not be made.
    pub(crate) fn tells(&self, event: WebhookEvent) -> bool {
        self.webhooks.iter().any(|endpoint| endpoint.takes(event))
    }

    /// What the names of its channels, users and watchlists begin with inside, before a `!`; nothing for the default
    /// app.
    pub(crate) fn prefix(&self) -> Option<&str> {
        (!self.is_default).then_some(self.id.as_str())
    }

    /// Whether hooks are asked about its clients: only the default app, since a question names no app.
    pub(crate) fn is_asked_about(&self) -> bool {
        self.is_default
    }

    /// The app's channel of this name.
    pub(crate) fn channel(&self, name: &str) -> Result<Channel, ChannelError> {
        AppId::channel(self.prefix(), name)
    }

    /// Takes one of the app's connections, or says that there is none left. Every one that was taken is given back
    /// with [`App::release`], to this snapshot's app or to a later one's.
    pub(crate) fn admit(&self) -> bool {
        let max = self.limits.connections;
        let one_more = |open: u32| (max == 0 || open < max).then(|| open.saturating_add(1));
        self.usage.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// Counts a connection that came open from another process, also above the limit.
    pub(crate) fn keep(&self) {
        self.usage.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn release(&self) {
        let before = self.usage.connections.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "more connections were given back than were taken");
    }

    /// Open connections on this node.
    #[cfg(test)]
    pub(crate) fn connections(&self) -> u32 {
        self.usage.connections.load(Ordering::Relaxed)
    }

    /// Whether so many events more may be published over HTTP now.
    pub(crate) fn takes_events(&self, events: u32) -> bool {
        self.usage.events.take(Rate::per_second(self.limits.events_per_second), events).is_ok()
    }

    /// Whether one more reading request may be answered now.
    pub(crate) fn takes_read(&self) -> bool {
        self.usage.reads.take(Rate::per_second(self.limits.reads_per_second), 1).is_ok()
    }
}
