//! The links of a deployment, as the rest of the backplane sees them.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use redis::{Cmd, Value};

use super::call;
use super::cluster;
use super::counters::LinkCounters;
use super::link::Way;
use super::shared::{LinkOptions, Shared};
use super::watch;
use crate::BackplaneError;
use crate::redis::contract::{Commands, LinkId, Route, Seat, Session, Subscriber, Subscribing};
use crate::redis::error::RedisStartError;
use crate::redis::url::TopologyKind;

/// The links of a deployment. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    pub(super) shared: Arc<Shared>,
    way: Way,
}

impl Links {
    /// Reads the certificates; connects to nothing yet.
    pub(crate) fn new(options: LinkOptions) -> Result<Self, RedisStartError> {
        Ok(Self { shared: Arc::new(Shared::new(options)?), way: Way::Plain })
    }

    /// Begins to make sessions, and waits a little until every server has one. Servers that are out of reach are tried
    /// from then on, as long as it takes.
    ///
    /// # Errors
    /// What trying again cannot help: one sentence, with what to do. Nothing runs afterwards.
    pub(crate) async fn start(&self, subscriber: Arc<dyn Subscriber>) -> Result<(), RedisStartError> {
        self.begin(subscriber)?;
        let outcome = self.shared.started().await;
        if outcome.is_err() {
            self.stop().await;
        }
        outcome
    }

    /// Begins to make sessions, or goes on with those of another process.
    pub(crate) fn begin(&self, subscriber: Arc<dyn Subscriber>) -> Result<(), RedisStartError> {
        let shared = &self.shared;
        shared.begin(subscriber)?;
        for link in &shared.map().links {
            shared.run(link);
        }
        match (&shared.kind, &shared.sentinels) {
            (TopologyKind::Cluster, _) => shared.spawn(cluster::watch(Arc::clone(shared))),
            (_, Some(sentinels)) => shared.spawn(watch::run(Arc::clone(sentinels), Arc::clone(shared))),
            _ => {}
        }
        Ok(())
    }

    /// Ends all sessions. No call of the [`Subscriber`] comes afterwards.
    pub(crate) async fn stop(&self) {
        self.shared.stop().await;
    }

    /// Whether some calls may succeed now; else why none does.
    pub(crate) fn health(&self) -> Result<(), BackplaneError> {
        self.shared.health()
    }

    /// Begins to end all sessions, as [`stop`](Self::stop) does.
    pub(crate) fn cancel(&self) {
        self.shared.stopping.cancel();
    }

    /// What does not work, though the rest does.
    pub(crate) fn missing(&self) -> Vec<String> {
        self.shared.missing()
    }

    /// The same links for writes that must survive a failover. A call that too few replicas have in time is
    /// [`BackplaneError::Unconfirmed`].
    pub(crate) fn replicated(&self) -> Arc<dyn Commands> {
        let way = if self.shared.replicas > 0 { Way::Replicated } else { Way::Plain };
        Arc::new(Self { shared: Arc::clone(&self.shared), way })
    }

    /// The same links for what keeps this node and what it holds alive: nothing else stands before it, and what bounds
    /// others does not refuse it.
    pub(crate) fn vital(&self) -> Arc<dyn Commands> {
        Arc::new(Self { shared: Arc::clone(&self.shared), way: Way::Vital })
    }

    /// A reading of every server's counters.
    pub(crate) fn counters(&self) -> Vec<LinkCounters> {
        self.shared.counters()
    }

    /// Slots of a Cluster without a server.
    pub(crate) fn slots_nowhere(&self) -> usize {
        self.shared.map().slots_nowhere()
    }
}

impl Commands for Links {
    fn call(&self, tag: &str, command: Cmd) -> BoxFuture<'_, Result<Value, BackplaneError>> {
        let tag: Box<str> = tag.into();
        async move { call::call(&self.shared, &tag, &command, self.way).await }.boxed()
    }

    fn call_all(&self, tag: &str, commands: Vec<Cmd>) -> BoxFuture<'_, Vec<Result<Value, BackplaneError>>> {
        let tag: Box<str> = tag.into();
        async move { call::call_all(&self.shared, &tag, &commands, self.way).await }.boxed()
    }

    fn is_sharded(&self) -> bool {
        self.shared.kind == TopologyKind::Cluster
    }

    fn route(&self, tag: &str) -> Option<Route> {
        self.shared.map().route(tag)
    }

    fn seat(&self, tag: &str) -> Option<Seat> {
        let link = self.shared.link_of(tag)?;
        link.live().map(|live| Seat { link: link.id, session: live.session })
    }
}

impl Subscribing for Links {
    fn availability(&self, tag: &str) -> Result<(), BackplaneError> {
        match self.shared.link_of(tag) {
            None => Err(BackplaneError::Unavailable("no server of the Redis Cluster holds the slot".into())),
            Some(link) if link.live().is_some() => Ok(()),
            Some(link) => Err(BackplaneError::Unavailable(link.unavailable())),
        }
    }

    fn subscribe(&self, link: LinkId, session: Session, channels: &[&[u8]]) -> bool {
        self.shared.push(link, session, ["SUBSCRIBE", "SSUBSCRIBE"], channels, 0)
    }

    fn unsubscribe(&self, link: LinkId, session: Session, channels: &[&[u8]]) -> bool {
        self.shared.push(link, session, ["UNSUBSCRIBE", "SUNSUBSCRIBE"], channels, channels.len())
    }

    fn replace(&self, link: LinkId, session: Session, why: &str) {
        if let Some(live) = self.shared.link(link).and_then(|link| link.session(session)) {
            live.give_up(crate::redis::error::Trouble::Asked(why.into()));
        }
    }
}
