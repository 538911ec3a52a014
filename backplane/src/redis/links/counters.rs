//! What a link counts, and a reading of it for the node's metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::redis::error::Trouble;

/// Counts of one server since it became part of the topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkCounters {
    /// `HOST:PORT`; of a Sentinel's master, the name that the Sentinels know.
    pub server: Box<str>,
    /// Whether calls may succeed now.
    pub up: bool,
    /// Pairs of connections that came up.
    pub sessions: u64,
    /// Attempts to come up that failed.
    pub attempts_failed: u64,
    pub calls: u64,
    /// Calls that were refused because 16 MiB waited for answers.
    pub calls_refused_bound: u64,
    /// Calls that were refused because the link was away.
    pub calls_refused_away: u64,
    /// Calls that were sent and not answered.
    pub calls_unconfirmed: u64,
    /// Calls that were answered, and that too few replicas had in time.
    pub calls_not_replicated: u64,
    /// `WAIT` commands. One answers for all publications that were accepted before it was sent.
    pub waits: u64,
    /// Subscribe commands that were not sent because 16 MiB waited.
    pub subscribes_refused_bound: u64,
    /// Subscribe commands that the server refused.
    pub subscribes_refused_server: u64,
    pub probes_lost: u64,
    /// Now: commands that wait for their answers.
    pub calls_waiting: u64,
    /// Now: what those take of the 16 MiB that may wait.
    pub bytes_waiting: u64,
    /// What the newest probe took, from being published to being received by this node: what a publication takes from
    /// node to node. `None` until one was received.
    pub lag: Option<Duration>,
    /// Now: whether it is up and takes writes.
    pub takes_writes: bool,
    /// Calls that the server refused, by [`REFUSALS`].
    pub refused: [u64; REFUSALS.len()],
    /// Sessions that were given up, by [`REPLACEMENTS`].
    pub replaced: [u64; REPLACEMENTS.len()],
    /// Commands that were sent again after a refusal, by [`REPEATS`].
    pub repeated: [u64; REPEATS.len()],
}

/// Labels of [`LinkCounters::replaced`].
pub const REPLACEMENTS: [&str; 6] =
    ["broken", "unanswered", "probe_lost", "other_master", "asked", "dropped"];

/// Labels of [`LinkCounters::refused`].
pub const REFUSALS: [&str; 6] = ["memory", "disk", "replicas", "busy", "rights", "other"];

/// Why a server refuses a call that it understood, in the order of [`REFUSALS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// `OOM`: more than `maxmemory`.
    Memory,
    /// `MISCONF`: it cannot save, and is told to take no writes then.
    Disk,
    /// `NOREPLICAS`: fewer than `min-replicas-to-write`.
    Replicas,
    /// `BUSY`: a script of somebody's runs for long.
    Busy,
    Rights,
    Other,
}

impl Refusal {
    pub(crate) fn of(code: &str) -> Self {
        match code {
            "OOM" => Self::Memory,
            "MISCONF" => Self::Disk,
            "NOREPLICAS" => Self::Replicas,
            "BUSY" => Self::Busy,
            "NOPERM" => Self::Rights,
            _ => Self::Other,
        }
    }

    /// Nothing happened, and what the server lacks may be there later.
    pub(crate) fn passes(self) -> bool {
        matches!(self, Self::Memory | Self::Disk | Self::Replicas | Self::Busy)
    }

    /// While it lasts, every write is refused.
    pub(crate) fn is_of_writes(self) -> bool {
        matches!(self, Self::Memory | Self::Disk | Self::Replicas)
    }
}

/// Labels of [`LinkCounters::repeated`].
pub const REPEATS: [&str; 7] =
    ["moved", "ask", "try_again", "cluster_down", "loading", "read_only", "master_down"];

/// Refusals that prove that nothing happened, in the order of [`REPEATS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    Moved,
    Ask,
    TryAgain,
    ClusterDown,
    Loading,
    ReadOnly,
    MasterDown,
}

/// The counters themselves.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) sessions: Count,
    pub(crate) attempts_failed: Count,
    pub(crate) calls: Count,
    pub(crate) calls_refused_bound: Count,
    pub(crate) calls_refused_away: Count,
    pub(crate) calls_unconfirmed: Count,
    pub(crate) calls_not_replicated: Count,
    pub(crate) waits: Arc<Count>,
    pub(crate) subscribes_refused_bound: Count,
    pub(crate) subscribes_refused_server: Count,
    pub(crate) probes_lost: Count,
    /// In nanoseconds; 0: unknown.
    lag_ns: AtomicU64,
    refused: [Count; REFUSALS.len()],
    replaced: [Count; REPLACEMENTS.len()],
    repeated: [Count; REPEATS.len()],
}

#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_many(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counts {
    pub(crate) fn add_repeat(&self, repeat: Repeat) {
        self.repeated[repeat as usize].add();
    }

    pub(crate) fn add_refusal(&self, refusal: Refusal) {
        self.refused[refusal as usize].add();
    }

    /// Counts the end of a session.
    pub(crate) fn add_replacement(&self, why: &Trouble) {
        let index = match why {
            Trouble::Late { .. } => 1,
            Trouble::Silent(_) => 2,
            Trouble::OtherMaster(_) | Trouble::Replica => 3,
            Trouble::Asked(_) => 4,
            Trouble::Dropped => 5,
            _ => 0,
        };
        self.replaced[index].add();
    }

    pub(crate) fn set_lag(&self, lag: Duration) {
        let ns = u64::try_from(lag.as_nanos()).unwrap_or(u64::MAX);
        self.lag_ns.store(ns.max(1), Ordering::Relaxed);
    }

    /// What is counted here; what waits now, the link knows.
    pub(crate) fn read(&self, server: &str, up: bool) -> LinkCounters {
        let lag_ns = self.lag_ns.load(Ordering::Relaxed);
        LinkCounters {
            server: server.into(),
            up,
            sessions: self.sessions.get(),
            attempts_failed: self.attempts_failed.get(),
            calls: self.calls.get(),
            calls_refused_bound: self.calls_refused_bound.get(),
            calls_refused_away: self.calls_refused_away.get(),
            calls_unconfirmed: self.calls_unconfirmed.get(),
            calls_not_replicated: self.calls_not_replicated.get(),
            waits: self.waits.get(),
            subscribes_refused_bound: self.subscribes_refused_bound.get(),
            subscribes_refused_server: self.subscribes_refused_server.get(),
            probes_lost: self.probes_lost.get(),
            calls_waiting: 0,
            bytes_waiting: 0,
            lag: (lag_ns > 0).then(|| Duration::from_nanos(lag_ns)),
            takes_writes: up,
            refused: std::array::from_fn(|index| self.refused[index].get()),
            replaced: std::array::from_fn(|index| self.replaced[index].get()),
            repeated: std::array::from_fn(|index| self.repeated[index].get()),
        }
    }
}
