//! What the applications of hooks are told, nobody waiting: through the queue and the sender that apps' webhooks have.
//!
//! A hook has a few queues. What happens to one connection or channel is always in the same one, so it is told in order; and what
//! waits in one delays a part of the others only.

mod moving;

use std::{
    fmt,
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    sync::{Arc, OnceLock},
};

use futures_util::FutureExt as _;
use tidegate_backplane::{Backplane, Channel, Transition};
use tidegate_consumers::{Address, Appender};
use tokio::runtime::Handle;

use super::{
    Webhooks,
    dialect::{Dialect, EventJson},
    metrics::WebhookMetrics,
    outlet::Outlet,
    queue::Queue,
    wills::{Standing, Ticket, Wills},
};
use crate::{
    config::{Config, ConfigError, HookEntry, HookEvent},
    hooks::{
        Source,
        client::client_of,
        events::{Happened, Will, id_of_end},
        signature::Signer,
    },
};

/// Queues of one hook, each with a request under way.
const LANES: usize = 8;

/// All hooks that are told something.
#[derive(Debug, Default)]
pub(crate) struct HookEvents {
    told: Vec<Told>,
    source: Arc<Source>,
    /// Set once, where ends of connections are told.
    wills: OnceLock<Arc<Wills>>,
    /// Set when another process has taken over, which tells from then on.
    forward: OnceLock<Forward>,
}

/// Has another process tell an event. Whether it is the end of a connection, of which there is a will.
pub(crate) struct Forward(pub(crate) Tell);

type Tell = Box<dyn Fn(&EventJson, bool) + Send + Sync>;

#[derive(Debug)]
pub(super) struct Told {
    pub(super) name: Box<str>,
    entry: HookEntry,
    lanes: Vec<Arc<Queue>>,
    pub(super) metrics: Arc<WebhookMetrics>,
}

impl HookEvents {
    pub(crate) fn new(
        config: &Config,
        source: &Arc<Source>,
        webhooks: &Webhooks,
    ) -> Result<Self, ConfigError> {
        let mut told = Vec::new();
        for (name, entry) in config.hooks.0.iter().filter(|(_, entry)| !entry.events.is_empty()) {
            let Some(outlet) = outlet(name, entry, webhooks)? else { continue };
            let is_batch = entry.batch || matches!(outlet, Outlet::Stream(_));
            let (signer, metrics) = (Arc::new(Signer::new(entry)), Arc::<WebhookMetrics>::default());
            let dialect = Dialect::CloudEvents { signer, source: Arc::clone(source), is_batch };
            let lane = |_| {
                let queue = webhooks.begin_queue(outlet.clone(), dialect.clone(), &metrics);
                queue.configure(dialect.clone(), is_batch);
                queue
            };
            let lanes = (0..LANES).map(lane).collect();
            told.push(Told { name: name.clone(), entry: entry.clone(), lanes, metrics });
        }
        Ok(Self { told, source: Arc::clone(source), ..Self::default() })
    }

    /// From now on each connection that is told has its end told, by others if this node dies.
    pub(crate) fn keep_wills(&self, backplane: &Arc<dyn Backplane>, runtime: Handle) {
        if self.takes(HookEvent::Disconnected, None) {
            self.wills.get_or_init(|| Arc::new(Wills::new(backplane, runtime)));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    pub(super) fn told(&self) -> &[Told] {
        &self.told
    }

    /// How full the fullest queue is.
    pub(crate) fn fullness(&self) -> f64 {
        let queues = self.told.iter().flat_map(|told| &told.lanes);
        queues.map(|queue| queue.fullness()).fold(0.0, f64::max)
    }

    /// Whether anybody is told such events of a channel, or of any.
    pub(crate) fn takes(&self, event: HookEvent, channel: Option<&str>) -> bool {
        self.told.iter().any(|told| told.takes(event, channel))
    }

    /// Tells whoever wants to know. Never waits: what finds no room is dropped and counted.
    pub(crate) fn tell(&self, event: HookEvent, happened: &Happened<'_>) {
        if self.takes(event, happened.channel) {
            self.tell_json(event, happened, &happened.to_json(event, &self.source).into(), None);
        }
    }

    /// Tells that a connection is there, after its will is kept.
    pub(crate) fn tell_connected(self: &Arc<Self>, happened: &Happened<'_>) {
        let (Some(wills), Some(connection)) = (self.wills.get(), happened.connection) else {
            return self.tell(HookEvent::Connected, happened);
        };
        let Some(backplane) = wills.backplane.upgrade() else { return };
        let mut kept = backplane.keep_will(connection, Will::of(happened).to_text());
        // What cannot be written now is written later: the application is told all the same.
        if (&mut kept).now_or_never().is_some() {
            return self.tell(HookEvent::Connected, happened);
        }
        let connected = happened.to_json(HookEvent::Connected, &self.source).into();
        wills.with(|standings| {
            standings.insert(connection.into(), Standing::Opening { connected, end: None });
        });
        let (events, connection) = (Arc::clone(self), Box::<str>::from(connection));
        wills.runtime.spawn(async move {
            kept.await.ok();
            events.will_is_kept(&connection);
        });
    }

    fn will_is_kept(&self, connection: &str) {
        let Some(wills) = self.wills.get() else { return };
        let happened = Happened { connection: Some(connection), ..Happened::default() };
        wills.with(|standings| {
            let Some(Standing::Opening { connected, end }) = standings.remove(connection) else { return };
            self.tell_json(HookEvent::Connected, &happened, &connected, None);
            if let Some(end) = end {
                standings.insert(connection.into(), Standing::Ending);
                self.tell_end(wills, &happened, &end);
            }
        });
    }

    /// Tells that a connection is not there any more, after it was told that it is.
    pub(crate) fn tell_disconnected(&self, happened: &Happened<'_>) {
        let (Some(wills), Some(connection)) = (self.wills.get(), happened.connection) else {
            return self.tell(HookEvent::Disconnected, happened);
        };
        wills.with(|standings| {
            let again = match standings.get(connection) {
                Some(Standing::Again(again)) => *again,
                _ => 0,
            };
            let id = id_of_end(connection, again);
            let json = happened.with_id(&id, HookEvent::Disconnected, &self.source).into();
            match standings.get_mut(connection) {
                Some(Standing::Opening { end, .. }) => *end = Some(json),
                _ => {
                    standings.insert(connection.into(), Standing::Ending);
                    self.tell_end(wills, happened, &json);
                }
            }
        });
    }

    fn tell_end(&self, wills: &Arc<Wills>, happened: &Happened<'_>, json: &EventJson) {
        let applications = self.told.iter().filter(|told| told.takes(HookEvent::Disconnected, None)).count();
        let ticket = Ticket::new(wills, happened.connection.unwrap_or_default(), applications);
        self.tell_json(HookEvent::Disconnected, happened, json, Some(&ticket));
    }

    fn tell_json(
        &self,
        event: HookEvent,
        happened: &Happened<'_>,
        json: &EventJson,
        ticket: Option<&Arc<Ticket>>,
    ) {
        if let Some(Forward(forward)) = self.forward.get() {
            return forward(json, ticket.is_some());
        }
        // What one connection does is one of many; changes of channels keep their room.
        let is_change = happened.connection.is_none();
        for told in self.told.iter().filter(|told| told.takes(event, happened.channel)) {
            told.lane(happened).add(None, is_change, Arc::clone(json), ticket.cloned());
        }
    }

    /// Tells the end of a connection of a node that died.
    pub(crate) fn tell_will(&self, will: &str) {
        let Some(will) = read(will) else { return };
        let (happened, id) = (will.disconnected(), id_of_end(&will.connection, will.again));
        let json = happened.with_id(&id, HookEvent::Disconnected, &self.source).into();
        self.tell_json(HookEvent::Disconnected, &happened, &json, None);
    }

    /// Others have told the end of a connection of this node, which lives.
    pub(crate) fn tell_again(&self, will: &str) {
        let (Some(wills), Some(will)) = (self.wills.get(), read(will)) else { return };
        let again = wills.with(|standings| {
            let again = match standings.get(&will.connection) {
                // The end that others told is the one that waits.
                Some(Standing::Opening { .. } | Standing::Ending) => return None,
                Some(Standing::Again(again)) => again + 1,
                None => will.again + 1,
            };
            standings.insert(will.connection.clone(), Standing::Again(again));
            self.tell(HookEvent::Connected, &will.connected());
            Some(again)
        });
        if let (Some(again), Some(backplane)) = (again, wills.backplane.upgrade()) {
            let will = Will { again, ..will };
            // It must not be asked from where this is told.
            wills.runtime.spawn(async move {
                backplane.keep_will(&will.connection, will.to_text()).await.ok();
            });
        }
    }

    /// What happened to a channel in the whole cluster. Channels of apps other than the default one are told to their own
    /// webhooks only.
    pub(super) fn tell_transition(&self, channel: &Channel, transition: &Transition) {
        if self.told.is_empty() || channel.app().is_some() {
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

/// Where its events go; one without an address was refused when the configuration was loaded.
fn outlet(name: &str, entry: &HookEntry, webhooks: &Webhooks) -> Result<Option<Outlet>, ConfigError> {
    let timeout = webhooks.sending.timeout;
    if !entry.stream.is_empty() {
        let address = Address {
            url: entry.stream_url.clone(),
            file: entry.stream_url_file.clone(),
            ca: entry.stream_ca_file.clone(),
        };
        let appender = Appender::new(address, &entry.stream, entry.stream_length.into(), timeout);
        return Ok(Some(Outlet::Stream(Arc::new(appender))));
    }
    let Some(url) = &entry.url else { return Ok(None) };
    let client = client_of(name, entry, timeout)?;
    Ok(Some(Outlet::Http { url: url.url().clone(), client }))
}

fn read(will: &str) -> Option<Will> {
    let read = serde_json::from_str(will);
    read.inspect_err(|error| {
        tracing::warn!(%error, "what is to be told of a connection cannot be read: is a node of another version in the cluster?");
    })
    .ok()
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
        let hash = hasher.hash_one(happened.connection.or(happened.channel));
        &self.lanes[hash as usize % self.lanes.len()]
    }
}

impl fmt::Debug for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Forward")
    }
}
