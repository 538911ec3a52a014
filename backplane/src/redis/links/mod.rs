//! Links to the servers of a deployment: which there are, which one holds a tag, and calls and subscriptions on them.
//!
//! - `dial`: connections. `link`: one server's pair of them, and its replacement. `pipe`: the one for commands. `feed`:
//!   the subscribed one.
//! - `replication`: writes that count when replicas have them.
//! - `call`: one call with its repetitions.
//! - `map`: tags to links. `sentinel`, `cluster`: where the servers are.
//! - `counters`: for the metrics.

mod call;
mod cluster;
mod counters;
mod dial;
mod feed;
mod link;
mod map;
mod pipe;
mod replication;
mod sentinel;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

pub use counters::{LinkCounters, REPEATS, REPLACEMENTS};
use dial::Dialer;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use link::{Link, Place};
use map::{Map, Spread};
use redis::{Cmd, Value};
use replication::Replicated;
use sentinel::Sentinels;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::contract::{Commands, LinkId, Route, Session, Subscriber, Subscribing};
use super::error::{RedisStartError, Trouble};
use super::url::{RedisUrl, Server, TopologyKind};
use crate::BackplaneError;

/// A start waits so long for servers that are out of reach.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// How to reach the servers, and what this node is there.
#[derive(Debug, Clone)]
pub(crate) struct LinkOptions {
    pub(crate) url: RedisUrl,
    /// PEM file with the certificates of a private authority; without it, those that the system trusts.
    pub(crate) ca: Option<PathBuf>,
    /// What all names on Redis begin with.
    pub(crate) prefix: Box<str>,
    /// Node name and life of the process; in the name of the probes.
    pub(crate) instance: Box<str>,
    /// What operators see in `CLIENT LIST`.
    pub(crate) node: Box<str>,
    /// How many replicas must have what [`Links::replicated`] writes.
    pub(crate) replicas: u8,
}

/// The links of a deployment. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    shared: Arc<Shared>,
}

/// What tasks and callers share.
pub(crate) struct Shared {
    kind: TopologyKind,
    seeds: Vec<Server>,
    sentinels: Option<Arc<Sentinels>>,
    dialer: Arc<Dialer>,
    prefix: Box<str>,
    instance: Box<str>,
    replicas: u8,
    map: RwLock<Arc<Map>>,
    /// From the start to the stop. What it leads to holds the links: without an end, neither would be freed.
    subscriber: Mutex<Option<Arc<dyn Subscriber>>>,
    sessions: AtomicU64,
    link_ids: AtomicU32,
    /// Something of the links changed; the start looks.
    changes: watch::Sender<()>,
    /// Why no server tells the slots.
    cluster_trouble: Mutex<Option<(Server, Trouble)>>,
    /// The slots should be read again.
    refresh: Notify,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl Links {
    /// Reads the certificates; connects to nothing yet.
    pub(crate) fn new(options: &LinkOptions) -> Result<Self, RedisStartError> {
        let dialer = Arc::new(Dialer::new(&options.url, options.ca.as_deref(), &options.node)?);
        let url = &options.url;
        let stopping = CancellationToken::new();
        let sentinels = match &url.topology {
            TopologyKind::Sentinel { name } => Some(Arc::new(Sentinels::new(name.clone(), &url.servers))),
            _ => None,
        };
        let map = first_map(url, sentinels.as_ref(), &stopping);
        let shared = Shared {
            kind: url.topology.clone(),
            seeds: url.servers.clone(),
            sentinels,
            dialer,
            prefix: options.prefix.clone(),
            instance: options.instance.clone(),
            replicas: options.replicas,
            link_ids: AtomicU32::new(u32::try_from(map.links.len()).unwrap_or(u32::MAX)),
            map: RwLock::new(Arc::new(map)),
            subscriber: Mutex::default(),
            sessions: AtomicU64::new(0),
            changes: watch::Sender::new(()),
            cluster_trouble: Mutex::new(None),
            refresh: Notify::new(),
            tasks: TaskTracker::new(),
            stopping,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Begins to make sessions, and waits until every server has one; after 10 s, one server is enough, and the rest
    /// is away. What trying again cannot help ends the start at once.
    ///
    /// # Errors
    /// One sentence, with what to do. Nothing runs afterwards.
    pub(crate) async fn start(&self, subscriber: Arc<dyn Subscriber>) -> Result<(), RedisStartError> {
        let shared = &self.shared;
        shared.begin(subscriber)?;
        let mut changes = shared.changes.subscribe();
        for link in &shared.map().links {
            shared.run(link);
        }
        match (&shared.kind, &shared.sentinels) {
            (TopologyKind::Cluster, _) => {
                shared.spawn(cluster::watch(Arc::clone(shared), shared.seeds.clone()));
            }
            (_, Some(sentinels)) => {
                let link = Arc::clone(&shared.map().links[0]);
                shared.spawn(sentinel::watch(Arc::clone(sentinels), Arc::clone(&shared.dialer), link));
            }
            _ => {}
        }
        let outcome = self.started(&mut changes).await;
        if outcome.is_err() {
            self.stop().await;
        }
        outcome
    }

    /// Ends all sessions. No call of the [`Subscriber`] comes afterwards.
    pub(crate) async fn stop(&self) {
        self.shared.stopping.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        let subscriber = self.shared.subscriber.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(subscriber);
    }

    /// Whether every call may succeed now; else which server is away, why, and for how long.
    pub(crate) fn health(&self) -> Result<(), BackplaneError> {
        let map = self.shared.map();
        for link in &map.links {
            if let Some(away) = link.away() {
                let text = format!(
                    "Redis at {} is away for {} s: {}",
                    link.name,
                    away.since.elapsed().as_secs(),
                    away.why
                );
                return Err(BackplaneError::Unavailable(text.into()));
            }
        }
        match map.slots_nowhere() {
            0 => Ok(()),
            slots => {
                let trouble = self.shared.cluster_trouble();
                let why =
                    trouble.map(|(server, why)| format!("; Redis at {server}: {why}")).unwrap_or_default();
                let text = format!("{slots} slots of the Redis Cluster have no master{why}");
                Err(BackplaneError::Unavailable(text.into()))
            }
        }
    }

    /// The same links for writes that must survive a failover. A call that too few replicas have in time is
    /// [`BackplaneError::Unconfirmed`].
    pub(crate) fn replicated(&self) -> Arc<dyn Commands> {
        match self.shared.replicas {
            0 => Arc::new(self.clone()),
            _ => Arc::new(Replicated(self.clone())),
        }
    }

    /// A reading of every server's counters.
    pub(crate) fn counters(&self) -> Vec<LinkCounters> {
        self.shared.map().links.iter().map(|link| link.counters()).collect()
    }

    async fn started(&self, changes: &mut watch::Receiver<()>) -> Result<(), RedisStartError> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let map = self.shared.map();
            if let Some(error) = self.fatal(&map) {
                return Err(error);
            }
            if !map.links.is_empty() && map.links.iter().all(|link| link.live().is_some()) {
                return Ok(());
            }
            // The sender lives as long as we do.
            if !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
                break;
            }
        }
        let map = self.shared.map();
        if map.links.iter().any(|link| link.live().is_some()) { Ok(()) } else { Err(self.unreachable(&map)) }
    }

    fn fatal(&self, map: &Map) -> Option<RedisStartError> {
        let of_links = map.links.iter().find_map(|link| {
            let away = link.away()?;
            let server = away.server.or_else(|| self.shared.seeds.first().cloned())?;
            away.why.fatal(&server)
        });
        of_links
            .or_else(|| self.shared.cluster_trouble().and_then(|(server, trouble)| trouble.fatal(&server)))
    }

    fn unreachable(&self, map: &Map) -> RedisStartError {
        let of_link =
            map.links.first().and_then(|link| link.away().map(|away| (link.name.clone(), away.why)));
        let of_cluster =
            || self.shared.cluster_trouble().map(|(server, why)| (server.to_string().into(), why));
        let (server, why) = of_link.or_else(of_cluster).unwrap_or_else(|| ("?".into(), Trouble::NotYet));
        RedisStartError::Unreachable { server, cause: why.to_string().into() }
    }
}

impl Commands for Links {
    fn call(&self, tag: &str, command: Cmd) -> BoxFuture<'_, Result<Value, BackplaneError>> {
        let tag: Box<str> = tag.into();
        async move { call::call(&self.shared, &tag, &command, false).await }.boxed()
    }

    fn is_sharded(&self) -> bool {
        self.shared.kind == TopologyKind::Cluster
    }
}

impl Subscribing for Links {
    fn route(&self, tag: &str) -> Option<Route> {
        self.shared.map().route(tag)
    }

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
            live.give_up(Trouble::Asked(why.into()));
        }
    }
}

impl Shared {
    fn map(&self) -> Arc<Map> {
        Arc::clone(&self.map.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn begin(&self, subscriber: Arc<dyn Subscriber>) -> Result<(), RedisStartError> {
        let mut place = self.subscriber.lock().unwrap_or_else(PoisonError::into_inner);
        match place.replace(subscriber) {
            None => Ok(()),
            Some(_) => Err(RedisStartError::Twice),
        }
    }

    fn subscriber(&self) -> Option<Arc<dyn Subscriber>> {
        self.subscriber.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn link_of(&self, tag: &str) -> Option<Arc<Link>> {
        self.map().link_of(tag).cloned()
    }

    fn link(&self, id: LinkId) -> Option<Arc<Link>> {
        self.map().links.iter().find(|link| link.id == id).cloned()
    }

    fn probe_tag(&self, link: &Link) -> Option<String> {
        self.map().tag_of(link)
    }

    fn owns(&self, link: &Link, tag: &str) -> bool {
        self.map().owns(link, tag)
    }

    fn next_session(&self) -> Session {
        Session(self.sessions.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn next_link(&self) -> LinkId {
        LinkId(self.link_ids.fetch_add(1, Ordering::Relaxed))
    }

    /// Tells the start that something changed.
    fn changed(&self) {
        self.changes.send_replace(());
    }

    /// Has the slots read again soon. Nothing to do but on a Cluster.
    fn refresh(&self) {
        self.refresh.notify_one();
    }

    /// Why no server tells the slots.
    fn note(&self, server: Server, trouble: Trouble) {
        *self.cluster_trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some((server, trouble));
        self.changed();
    }

    fn cluster_trouble(&self) -> Option<(Server, Trouble)> {
        self.cluster_trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A node said that a slot is at another one.
    fn moved(self: &Arc<Self>, slot: u16, server: &Server) {
        self.replace_map(|old| old.with_moved(slot, server));
    }

    /// The link of a node that calls are sent to with `ASK`.
    fn asked(self: &Arc<Self>, server: &Server) -> Option<Arc<Link>> {
        cluster::asked(self, server)
    }

    /// Replaces the map, runs links that are new, ends those that are gone, and says so.
    fn replace_map(self: &Arc<Self>, change: impl FnOnce(&Map) -> Option<Map>) {
        let (old, new) = {
            let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
            let Some(new) = change(&map) else { return };
            if !new.differs_from(&map) {
                return;
            }
            let new = Arc::new(new);
            (std::mem::replace(&mut *map, Arc::clone(&new)), new)
        };
        let is_in = |map: &Map, link: &Link| map.links.iter().any(|other| other.id == link.id);
        new.links.iter().filter(|link| !is_in(&old, link)).for_each(|link| self.run(link));
        old.links.iter().filter(|link| !is_in(&new, link)).for_each(|link| link.dropped.cancel());
        self.changed();
        if let Some(subscriber) = self.subscriber() {
            subscriber.routes_changed();
        }
    }

    fn run(self: &Arc<Self>, link: &Arc<Link>) {
        if let Some(subscriber) = self.subscriber() {
            self.tasks.spawn(Arc::clone(link).run(Arc::clone(self), subscriber));
        }
    }

    /// A task that just ends with the links.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stopping = self.stopping.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = stopping.cancelled() => {}
            }
        });
    }

    fn push(
        &self,
        link: LinkId,
        session: Session,
        names: [&str; 2],
        channels: &[&[u8]],
        ending: usize,
    ) -> bool {
        let Some(link) = self.link(link) else { return false };
        let Some(live) = link.session(session) else { return false };
        let mut command = redis::cmd(names[usize::from(link.is_sharded())]);
        for channel in channels {
            command.arg(*channel);
        }
        live.outbox.ending.fetch_add(ending, Ordering::Relaxed);
        if !live.outbox.push(&command) {
            // Not lost: what is not confirmed in time is sent again.
            live.outbox.ending.fetch_sub(ending, Ordering::Relaxed);
            link.counts.subscribes_refused_bound.add();
        }
        true
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("kind", &self.kind).field("map", &self.map()).finish_non_exhaustive()
    }
}

fn first_map(url: &RedisUrl, sentinels: Option<&Arc<Sentinels>>, stopping: &CancellationToken) -> Map {
    let fixed = |(id, server): (u32, &Server)| {
        Link::new(LinkId(id), server.to_string().into(), Place::Fixed(server.clone()), stopping)
    };
    match &url.topology {
        TopologyKind::Cluster => Map { links: Vec::new(), spread: Spread::slots(std::iter::empty()) },
        TopologyKind::Sentinel { name } => {
            let place = sentinels.map(|sentinels| Place::Master(Arc::clone(sentinels)));
            let link = place.map(|place| Link::new(LinkId(0), name.clone(), place, stopping));
            Map { links: link.into_iter().collect(), spread: Spread::One }
        }
        TopologyKind::Standalone | TopologyKind::List => {
            let links = (0..).zip(&url.servers).map(fixed).collect();
            let names = url.servers.iter().map(Server::to_string);
            let is_one = url.topology == TopologyKind::Standalone;
            Map { links, spread: if is_one { Spread::One } else { Spread::list(names) } }
        }
    }
}
