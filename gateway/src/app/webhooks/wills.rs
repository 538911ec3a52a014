//! That a connection of which applications were told is told to be gone, once, by whichever node: what is known of its will.
//! `docs/adr/0027-wills.md` says why.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{
            AtomicUsize,
            Ordering::{AcqRel, Acquire},
        },
    },
};

use tidegate_backplane::Backplane;
use tokio::runtime::Handle;

use super::dialect::EventJson;

/// Connections of this node whose will is on its way, or not needed any more.
pub(super) struct Wills {
    pub(super) backplane: Weak<dyn Backplane>,
    pub(super) runtime: Handle,
    pub(super) standings: Mutex<HashMap<Box<str>, Standing>>,
    /// Wills that are about to be taken back.
    settling: AtomicUsize,
}

/// Of a connection that is open, was told, and has its will written, nothing is known here.
#[derive(Debug)]
pub(super) enum Standing {
    /// Its will is being written; it is told afterwards, and then, perhaps, that it has ended.
    Opening { connected: EventJson, end: Option<EventJson> },
    /// Others told its end, and it was told to be connected again: so often.
    Again(u32),
    /// Its end waits to be taken by the applications.
    Ending,
}

/// Belongs to the end of a connection, as each application is told it: with the last of them its will is not needed any more.
#[derive(Debug)]
pub(super) struct Ticket {
    connection: Box<str>,
    untold: AtomicUsize,
    wills: Arc<Wills>,
}

impl Wills {
    pub(super) fn new(backplane: &Arc<dyn Backplane>, runtime: Handle) -> Self {
        Self {
            backplane: Arc::downgrade(backplane),
            runtime,
            standings: Mutex::default(),
            settling: AtomicUsize::new(0),
        }
    }

    pub(super) fn with<R>(&self, f: impl FnOnce(&mut HashMap<Box<str>, Standing>) -> R) -> R {
        f(&mut self.standings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the backplane has been asked all that it will be.
    pub(super) fn is_quiet(&self) -> bool {
        let is_opening = |standing: &Standing| matches!(standing, Standing::Opening { .. });
        self.settling.load(Acquire) == 0 && !self.with(|standings| standings.values().any(is_opening))
    }
}

impl Ticket {
    /// `applications`: how many are told the end.
    pub(super) fn new(wills: &Arc<Wills>, connection: &str, applications: usize) -> Arc<Self> {
        let untold = AtomicUsize::new(applications);
        Arc::new(Self { connection: connection.into(), untold, wills: Arc::clone(wills) })
    }

    /// One more application has taken it, or never will. On the runtime, because queues settle while they are locked.
    pub(super) fn settle(self: &Arc<Self>) {
        if self.untold.fetch_sub(1, AcqRel) > 1 {
            return;
        }
        let ticket = Arc::clone(self);
        self.wills.settling.fetch_add(1, AcqRel);
        self.wills.runtime.spawn(async move {
            ticket.wills.with(|standings| standings.remove(&ticket.connection));
            if let Some(backplane) = ticket.wills.backplane.upgrade() {
                backplane.take_will_back(&ticket.connection);
            }
            ticket.wills.settling.fetch_sub(1, AcqRel);
        });
    }
}

impl fmt::Debug for Wills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wills")
            .field("standings", &self.with(|standings| standings.len()))
            .finish_non_exhaustive()
    }
}
