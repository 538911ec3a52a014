//! Reads of history for recovering subscriptions: one for all who ask for the same, within a budget of the node.
//!
//! A subscriber needs a read that is sent after it began to keep what is delivered; an earlier one may miss what passed
//! in between. So who asks joins a read that was not sent yet, and begins the next one otherwise. At most two reads of
//! the same are outstanding, however many ask: after an outage, thousands who come back at one position cost one.
//!
//! A read takes its part of the budget before it is sent and gives it back when the last who waited has written the
//! page. When the budget is used up, reads wait in the order in which they were asked for.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use tidegate_backplane::{Backplane, BackplaneError, Channel, History, HistoryQuery};
use tidegate_ops::metrics::{self, Collector, DescriptorEncoder};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::subscription::{PAGE_BYTES, Read};

/// What a read that brings no publications counts as.
const PLACE_BYTES: usize = 256;

/// History that was read; it counts against the budget until the last reference to it is dropped.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) history: History,
    _budget: Option<OwnedSemaphorePermit>,
}

/// The answer, shared by all who asked for the same.
pub(crate) type Reading = Shared<BoxFuture<'static, Result<Arc<Page>, BackplaneError>>>;

pub(crate) struct Histories {
    backplane: Arc<dyn Backplane>,
    budget: Arc<Semaphore>,
    budget_bytes: usize,
    /// What one page may cost: the largest publication, if that is more than a page.
    page_bytes: usize,
    outstanding: Mutex<HashMap<(Channel, Read), Outstanding>>,
    /// Reads that were sent, and who joined one that another had asked for.
    sent: AtomicU64,
    joined: AtomicU64,
}

/// The reads of one thing: at most one that is sent, and one that is not.
#[derive(Default)]
struct Outstanding {
    sent: Option<Reading>,
    waiting: Option<Reading>,
}

/// How much is read, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HistoriesUse {
    pub(crate) reads_sent: u64,
    pub(crate) reads_joined: u64,
    pub(crate) bytes: usize,
    pub(crate) bytes_max: usize,
}

impl Histories {
    /// `publication_bytes`: the largest payload that is accepted.
    pub(crate) fn new(backplane: Arc<dyn Backplane>, budget_bytes: usize, publication_bytes: usize) -> Self {
        // A page must fit, and a semaphore counts in 32 bits at once.
        let page_bytes = PAGE_BYTES.max(publication_bytes).min(u32::MAX as usize);
        let budget_bytes = budget_bytes.max(page_bytes).min(Semaphore::MAX_PERMITS);
        Self {
            backplane,
            budget: Arc::new(Semaphore::new(budget_bytes)),
            budget_bytes,
            page_bytes,
            outstanding: Mutex::default(),
            sent: AtomicU64::new(0),
            joined: AtomicU64::new(0),
        }
    }

    /// Reads history at some moment from now on.
    pub(crate) fn read(self: &Arc<Self>, channel: &Channel, read: Read) -> Reading {
        let key = (channel.clone(), read);
        let mut outstanding = self.outstanding.lock().unwrap_or_else(PoisonError::into_inner);
        let reads = outstanding.entry(key.clone()).or_default();
        if let Some(waiting) = &reads.waiting {
            self.joined.fetch_add(1, Ordering::Relaxed);
            return waiting.clone();
        }
        let before = reads.sent.clone();
        let own = Arc::clone(self);
        let reading = async move {
            if let Some(before) = before {
                // Its outcome is for those who asked for it.
                drop(before.await);
            }
            own.answer(key).await
        };
        let reading = reading.boxed().shared();
        reads.waiting = Some(reading.clone());
        reading
    }

    pub(crate) fn usage(&self) -> HistoriesUse {
        HistoriesUse {
            reads_sent: self.sent.load(Ordering::Relaxed),
            reads_joined: self.joined.load(Ordering::Relaxed),
            bytes: self.budget_bytes - self.budget.available_permits(),
            bytes_max: self.budget_bytes,
        }
    }

    async fn answer(&self, key: (Channel, Read)) -> Result<Arc<Page>, BackplaneError> {
        let bytes = if key.1 == Read::Place { PLACE_BYTES } else { self.page_bytes };
        // The budget is never closed.
        let budget = Arc::clone(&self.budget).acquire_many_owned(bytes as u32).await.ok();
        self.with(&key, |reads| reads.sent = reads.waiting.take());
        self.sent.fetch_add(1, Ordering::Relaxed);
        let query = match key.1 {
            Read::Place => HistoryQuery::newest(0),
            Read::Newest => HistoryQuery::newest(1),
            Read::Page(since) => HistoryQuery::page(since, PAGE_BYTES),
        };
        let result = self.backplane.history(&key.0, query).await;
        self.with(&key, |reads| reads.sent = None);
        result.map(|history| Arc::new(Page { history, _budget: budget }))
    }

    /// Changes the reads of a key, which go when there are none left.
    fn with(&self, key: &(Channel, Read), change: impl FnOnce(&mut Outstanding)) {
        let mut outstanding = self.outstanding.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(reads) = outstanding.get_mut(key) else { return };
        let before = reads.sent.take();
        reads.sent.clone_from(&before);
        change(reads);
        if reads.sent.is_none() && reads.waiting.is_none() {
            outstanding.remove(key);
        }
        drop(outstanding);
        // A future may be the last to hold others: it is not dropped under the lock.
        drop(before);
    }
}

impl Collector for Histories {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let usage = self.usage();
        let mut page = metrics::Page::new(encoder);
        let help = "Reads of history sent to the backplane for subscribers.";
        page.counter("recovery_reads", help, usage.reads_sent)?;
        let help = "Subscribers who shared a read that another had asked for.";
        page.counter("recovery_reads_shared", help, usage.reads_joined)?;
        let help = "History that is being read or written to clients, as it counts against its bound.";
        page.gauge("recovery_bytes", help, usage.bytes as f64)?;
        let help =
            "The bound of tidegate_recovery_bytes: limits.recovery_bytes, or one page if that is more.";
        page.gauge("recovery_bytes_limit", help, usage.bytes_max as f64)
    }
}

impl fmt::Debug for Histories {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histories").field("use", &self.usage()).finish_non_exhaustive()
    }
}
