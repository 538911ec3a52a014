//! Those who watch on this node: how many, and the one task that serves all of them while there are any.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use tidegate_backplane::{BackplaneError, Control};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

use super::{cluster::Cluster, report::Report, view::History};
use crate::node::{Node, connection_state::ConnectionState};

/// Watchers of one node at once. A view of 200 nodes has about 100 KiB, so they are sent 1 MB a second at most.
pub(crate) const WATCHERS_MAX: usize = 8;

/// Lookups of connections at once.
const LOOKUPS_MAX: usize = 2;

/// How often views are made, and how often nodes are told that somebody watches: three times in their lease.
const EVERY: Duration = Duration::from_secs(1);
const RENEWALS: u32 = 5;

/// How long a connection is looked for: a node may need a second to begin and two to answer.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(6);
const LOOKUP_PAUSE: Duration = Duration::from_millis(250);

/// How long samples are kept after the last watcher has left.
const KEPT: Duration = Duration::from_secs(900);

/// The console of this node.
#[derive(Debug)]
pub(crate) struct Console {
    node: Arc<Node>,
    runtime: Handle,
    state: Mutex<State>,
    views: watch::Sender<Bytes>,
    lookups: Semaphore,
    /// The node ends: so do the streams.
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    cluster: Cluster,
    watchers: usize,
    is_running: bool,
    left: Option<Instant>,
}

/// Somebody who watches, until it is dropped.
#[derive(Debug)]
pub(crate) struct Watcher {
    console: Arc<Console>,
    views: watch::Receiver<Bytes>,
    /// What is told first.
    history: Option<Bytes>,
}

/// There are [`WATCHERS_MAX`] already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooManyWatchers;

/// Why nothing is said about a connection.
#[derive(Debug)]
pub(crate) enum LookupError {
    TooMany,
    Backplane(BackplaneError),
}

impl Console {
    pub(crate) fn new(node: Arc<Node>, runtime: Handle, stop: CancellationToken) -> Self {
        let (views, _) = watch::channel(Bytes::new());
        let (state, lookups) = (Mutex::default(), Semaphore::new(LOOKUPS_MAX));
        Self { node, runtime, state, views, lookups, stop }
    }

    /// One more watcher.
    pub(crate) fn watch(self: &Arc<Self>) -> Result<Watcher, TooManyWatchers> {
        let mut state = lock(&self.state);
        if state.watchers >= WATCHERS_MAX {
            return Err(TooManyWatchers);
        }
        state.watchers += 1;
        if state.left.take().is_some_and(|left| left.elapsed() > KEPT) {
            state.cluster = Cluster::default();
        }
        let history = event("history", &History { samples: state.cluster.samples() });
        if !state.is_running {
            state.is_running = true;
            self.runtime.spawn(Arc::clone(self).serve());
        }
        drop(state);
        Ok(Watcher { console: Arc::clone(self), views: self.views.subscribe(), history: Some(history) })
    }

    /// What a connection is, on whichever node it is; `None` where no node has it.
    pub(crate) async fn look_up(&self, name: &str) -> Result<Option<ConnectionState>, LookupError> {
        let _place = self.lookups.try_acquire().map_err(|_| LookupError::TooMany)?;
        let asked = Instant::now();
        self.node.watch(vec![name.into()]).await.map_err(LookupError::Backplane)?;
        while asked.elapsed() < LOOKUP_PATIENCE {
            tokio::time::sleep(LOOKUP_PAUSE).await;
            let reports = self.node.reports().await.map_err(LookupError::Backplane)?;
            let mut connections = reports.into_iter().filter_map(|(_, report)| report).flat_map(decode);
            if let Some(found) = connections.find(|connection| connection.name == name) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Makes views while somebody watches.
    async fn serve(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut round = 0_u32;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.stop.cancelled() => return,
            }
            if self.is_left_alone() {
                return;
            }
            if round.is_multiple_of(RENEWALS)
                && let Err(error) = self.node.watch(Vec::new()).await
            {
                tracing::debug!(%error, "the nodes could not be told that somebody watches");
            }
            round = round.wrapping_add(1);
            let records = match self.node.reports().await {
                Ok(reports) => reports
                    .into_iter()
                    .map(|(record, report)| (record, report.and_then(|bytes| Report::decode(&bytes))))
                    .collect(),
                // The node itself is there, and says why it is alone.
                Err(_) => vec![(self.node.record(), None)],
            };
            let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
            let view = lock(&self.state).cluster.take(now_ms, self.node.name(), records);
            self.views.send_replace(event("view", &view));
        }
    }

    /// Whether the last watcher has left; the task ends then.
    fn is_left_alone(&self) -> bool {
        let mut state = lock(&self.state);
        state.is_running = state.watchers > 0;
        !state.is_running
    }
}

impl Watcher {
    /// The next event, in the form of an event stream; `None` when the node ends. Who is slow misses views.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        if let Some(history) = self.history.take() {
            return Some(history);
        }
        tokio::select! {
            changed = self.views.changed() => changed.ok().map(|()| self.views.borrow_and_update().clone()),
            () = self.console.stop.cancelled() => None,
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut state = lock(&self.console.state);
        state.watchers -= 1;
        state.left = (state.watchers == 0).then(Instant::now);
    }
}

impl Node {
    /// Tells all nodes that somebody watches, and which connections are asked for.
    async fn watch(&self, connections: Vec<Box<str>>) -> Result<(), BackplaneError> {
        self.backplane().control(Control::Watch { connections }).await
    }

    /// All nodes, each with what it reported.
    async fn reports(
        &self,
    ) -> Result<Vec<(tidegate_backplane::NodeRecord, Option<Vec<u8>>)>, BackplaneError> {
        let records = self.nodes().await?;
        let names: Vec<Box<str>> = records.iter().map(|record| record.name.clone()).collect();
        let reports = self.backplane().reports(&names).await?;
        Ok(records.into_iter().zip(reports).collect())
    }
}

fn decode(report: Vec<u8>) -> Vec<ConnectionState> {
    Report::decode(&report).map(|report| report.connections).unwrap_or_default()
}

fn event(name: &str, data: &impl serde::Serialize) -> Bytes {
    let json = serde_json::to_string(data).unwrap_or_default();
    format!("event: {name}\ndata: {json}\n\n").into()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
