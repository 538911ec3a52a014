//! The links of a deployment as one: which there are, which one holds a tag, and what is told of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use redis::Cmd;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::around::Around;
use super::counters::LinkCounters;
use super::dial::Dialer;
use super::link::{Link, Place};
use super::login::Login;
use super::map::{Map, Spread};
use super::probe::Probe;
use super::sentinel::Sentinels;
use super::session::{self, Going, Made};
use crate::BackplaneError;
use crate::redis::contract::{LinkId, Session, Subscriber};
use crate::redis::error::{RedisStartError, Trouble};
use crate::redis::options::Host;
use crate::redis::url::{RedisUrl, Server, TopologyKind};

/// A start waits so long for its servers. Then it goes on without them, not ready.
const START_DEADLINE: Duration = Duration::from_secs(3);

/// How to reach the servers, and what this node is there.
pub(crate) struct LinkOptions {
    pub(crate) url: RedisUrl,
    pub(crate) login: Login,
    /// What all names on Redis begin with.
    pub(crate) prefix: Box<str>,
    /// Node name and life of the process; in the name of the probes.
    pub(crate) instance: Box<str>,
    /// What operators see in `CLIENT LIST`.
    pub(crate) node: Box<str>,
    /// How many replicas must have what [`Links::replicated`](super::Links::replicated) writes.
    pub(crate) replicas: u8,
    /// Scripts that servers are to know before they are asked for them.
    pub(crate) scripts: Vec<Box<str>>,
    /// Where what is subscribed is read.
    pub(crate) host: Option<Arc<dyn Host>>,
}

/// What tasks and callers share.
pub(crate) struct Shared {
    pub(super) kind: TopologyKind,
    pub(super) seeds: Vec<Server>,
    pub(super) sentinels: Option<Arc<Sentinels>>,
    pub(super) dialer: Dialer,
    prefix: Box<str>,
    instance: Box<str>,
    pub(super) replicas: u8,
    scripts: Vec<Box<str>>,
    host: Option<Arc<dyn Host>>,
    map: RwLock<Arc<Map>>,
    /// From the start to the stop. What it leads to holds the links: without an end, neither would be freed.
    subscriber: Mutex<Option<Arc<dyn Subscriber>>>,
    pub(super) sessions: AtomicU64,
    pub(super) link_ids: AtomicU32,
    /// Sessions of another process, until it has let go of them.
    pub(super) going: Mutex<HashMap<LinkId, Going>>,
    /// Those, until their links run.
    pub(super) made: Mutex<HashMap<LinkId, Made>>,
    /// Something of the links changed; the start looks.
    changes: watch::Sender<()>,
    /// Why no server tells the slots.
    cluster_trouble: Mutex<Option<(Server, Trouble)>>,
    /// The slots should be read again.
    pub(super) refreshed: Notify,
    pub(super) tasks: TaskTracker,
    pub(super) stopping: CancellationToken,
}

impl Shared {
    /// Reads the certificates; connects to nothing yet.
    pub(super) fn new(options: LinkOptions) -> Result<Self, RedisStartError> {
        let LinkOptions { url, login, prefix, instance, node, replicas, scripts, host } = options;
        let stopping = CancellationToken::new();
        let sentinels = match &url.topology {
            TopologyKind::Sentinel { name } => Some(Arc::new(Sentinels::new(name.clone(), &url.servers))),
            _ => None,
        };
        let map = first_map(&url, sentinels.as_ref(), &stopping);
        Ok(Self {
            dialer: Dialer::new(login, url.db, &node)?,
            kind: url.topology,
            seeds: url.servers,
            sentinels,
            prefix,
            instance,
            replicas,
            scripts,
            host,
            link_ids: AtomicU32::new(u32::try_from(map.links.len()).unwrap_or(u32::MAX)),
            map: RwLock::new(Arc::new(map)),
            subscriber: Mutex::default(),
            sessions: AtomicU64::new(0),
            going: Mutex::default(),
            made: Mutex::default(),
            changes: watch::Sender::new(()),
            cluster_trouble: Mutex::new(None),
            refreshed: Notify::new(),
            tasks: TaskTracker::new(),
            stopping,
        })
    }

    pub(super) fn begin(&self, subscriber: Arc<dyn Subscriber>) -> Result<(), RedisStartError> {
        let mut place = self.subscriber.lock().unwrap_or_else(PoisonError::into_inner);
        match place.replace(subscriber) {
            None => Ok(()),
            Some(_) => Err(RedisStartError::Twice),
        }
    }

    /// Waits until every server has a session, for a while. What trying again cannot help ends the start at once.
    pub(super) async fn started(&self) -> Result<(), RedisStartError> {
        let mut changes = self.changes.subscribe();
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let map = self.map();
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
        for what in self.missing() {
            tracing::warn!(%what, "begun without a part of the backplane, which is tried again");
        }
        Ok(())
    }

    pub(super) async fn stop(&self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let subscriber = self.subscriber.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(subscriber);
    }

    /// Whether some calls may succeed now; else why none does.
    pub(super) fn health(&self) -> Result<(), BackplaneError> {
        if self.map().links.iter().any(|link| link.live().is_some()) {
            return Ok(());
        }
        let why = self.missing().into_iter().next().unwrap_or_else(|| Trouble::NotYet.to_string());
        Err(BackplaneError::Unavailable(why.into()))
    }

    /// What does not work: servers that are away or take no writes, slots without a server.
    pub(super) fn missing(&self) -> Vec<String> {
        let map = self.map();
        let mut missing: Vec<_> = map.links.iter().filter_map(|link| link.missing()).collect();
        missing.extend(map.links.iter().filter_map(|link| link.evicts()));
        let slots = map.slots_nowhere();
        if slots > 0 {
            let trouble = self.cluster_trouble();
            let why = trouble.map(|(server, why)| format!("; Redis at {server}: {why}")).unwrap_or_default();
            missing.push(format!("{slots} slots of the Redis Cluster have no master{why}"));
        }
        missing
    }

    pub(super) fn counters(&self) -> Vec<LinkCounters> {
        self.map().links.iter().map(|link| link.counters()).collect()
    }

    fn fatal(&self, map: &Map) -> Option<RedisStartError> {
        let of_links = map.links.iter().find_map(|link| {
            let away = link.away()?;
            let server = away.server.or_else(|| self.seeds.first().cloned())?;
            away.why.fatal(&server)
        });
        of_links.or_else(|| self.cluster_trouble().and_then(|(server, trouble)| trouble.fatal(&server)))
    }

    pub(super) fn map(&self) -> Arc<Map> {
        Arc::clone(&self.map.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Of a process that has no links yet.
    pub(super) fn set_map(&self, map: Map) {
        *self.map.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(map);
    }

    pub(super) fn probe_of(&self, tag: &str) -> Probe {
        Probe::new(tag.to_owned(), &self.prefix, &self.instance)
    }

    fn subscriber(&self) -> Option<Arc<dyn Subscriber>> {
        self.subscriber.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn link_of(&self, tag: &str) -> Option<Arc<Link>> {
        self.map().link_of(tag).cloned()
    }

    pub(super) fn link(&self, id: LinkId) -> Option<Arc<Link>> {
        self.map().links.iter().find(|link| link.id == id).cloned()
    }

    pub(super) fn next_link(&self) -> LinkId {
        LinkId(self.link_ids.fetch_add(1, Ordering::Relaxed))
    }

    /// Has the slots read again soon. Nothing to do but on a Cluster.
    pub(super) fn refresh(&self) {
        self.refreshed.notify_one();
    }

    /// Why no server tells the slots.
    pub(super) fn note(&self, server: Server, trouble: Trouble) {
        *self.cluster_trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some((server, trouble));
        self.changes.send_replace(());
    }

    fn cluster_trouble(&self) -> Option<(Server, Trouble)> {
        self.cluster_trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A node said that a slot is at another one.
    pub(super) fn moved(self: &Arc<Self>, slot: u16, server: &Server) {
        self.replace_map(|old| old.with_moved(slot, server));
    }

    /// Replaces the map, runs links that are new, ends those that are gone, and says so.
    pub(super) fn replace_map(self: &Arc<Self>, change: impl FnOnce(&Map) -> Option<Map>) {
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
        self.changes.send_replace(());
        if let Some(subscriber) = self.subscriber() {
            subscriber.routes_changed(&new.changed_since(&old));
        }
    }

    pub(super) fn run(self: &Arc<Self>, link: &Arc<Link>) {
        if let Some(subscriber) = self.subscriber() {
            let around = Arc::clone(self) as Arc<dyn Around>;
            let made = self.made.lock().unwrap_or_else(PoisonError::into_inner).remove(&link.id);
            self.tasks.spawn(session::run(Arc::clone(link), around, subscriber, made));
        }
    }

    /// A task that just ends with the links.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stopping = self.stopping.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = stopping.cancelled() => {}
            }
        });
    }

    /// A subscribe command, or with `ending` one that ends so many channels.
    pub(super) fn push(
        &self,
        link: LinkId,
        session: Session,
        names: [&str; 2],
        channels: &[&[u8]],
        ending: usize,
    ) -> bool {
        let Some(link) = self.link(link) else { return false };
        let Some(live) = link.session(session) else { return false };
        let mut command = Cmd::new();
        command.arg(names[usize::from(link.is_sharded())]);
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

impl Around for Shared {
    fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    fn probe(&self, link: LinkId) -> Option<Probe> {
        self.map().tag_of(link).map(|tag| self.probe_of(&tag))
    }

    fn owns(&self, link: LinkId, tag: &str) -> bool {
        self.map().owns(link, tag)
    }

    fn scripts(&self) -> &[Box<str>] {
        &self.scripts
    }

    fn host(&self) -> Option<&dyn Host> {
        self.host.as_deref()
    }

    fn replicas(&self) -> u8 {
        self.replicas
    }

    fn next_session(&self) -> Session {
        Session(self.sessions.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn changed(&self) {
        self.changes.send_replace(());
    }

    fn refresh(&self) {
        self.refreshed.notify_one();
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
