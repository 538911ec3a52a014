//! Reads of history for recovering subscriptions: one for all who ask for the same, within a budget of the node.
//!
//! A subscriber needs a read that is sent after it began to keep what is delivered; an earlier one may miss what passed
//! in between. So who asks joins a read that was not sent yet, and begins the next one otherwise. At most two reads of
//! the same are outstanding, however many ask.
//!
//! A read that was sent misses nothing while the node was handed nothing of the channel since then. So long it serves whoever
//! asks for the same, and is kept for that for a few seconds: Redis answers sooner than the next client asks. So after an
//! outage, thousands who come back at one position cost one.
//!
//! A read takes its part of the budget before it is sent and gives it back when the last who waited has written the
//! page. When the budget is used up, reads wait in the order in which they were asked for.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt as _,
    future::{self, BoxFuture, Shared},
};
use tidegate_backplane::{Backplane, BackplaneError, Channel, History, HistoryQuery, Publication};
use tidegate_ops::metrics::{self, Collector, DescriptorEncoder};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::interest::{Interests, Mark};
use crate::{
    config::Config,
    subscription::{PAGE_BYTES, Read},
};

/// What a read that brings no publications counts as.
const PLACE_BYTES: usize = 256;

/// For how long a read serves others; the sweep, once a second, then lets go of it. Clients who lost a node are back by then.
const KEPT_FOR: Duration = Duration::from_secs(5);

/// Reads are kept only where history is kept for at least this long, so what is handed out is at most a tenth older than
/// `history_age`.
const AGE_MIN: Duration = Duration::from_secs(60);

/// What is kept is at most this part of the budget, beside it.
const KEPT_PART: usize = 4;

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
    /// What is kept counts against this.
    kept_budget: Arc<Semaphore>,
    kept_bytes: usize,
    reads: Mutex<Reads>,
    interests: Arc<Interests>,
    config: Arc<Config>,
    /// Reads that were sent, and who joined one that another had asked for.
    sent: AtomicU64,
    joined: AtomicU64,
}

type Key = (Channel, Read);

#[derive(Default)]
struct Reads {
    of: HashMap<Key, ReadsOfOne>,
    /// What is kept, and since when, in this order.
    kept: VecDeque<(Instant, Key)>,
}

/// The reads of one thing: at most one that is sent, one that is not, and one that is kept. Marks say how much the node had been
/// handed of the channel when they were sent.
#[derive(Clone, Default)]
struct ReadsOfOne {
    sent: Option<(Option<Mark>, Reading)>,
    waiting: Option<Reading>,
    kept: Option<(Mark, Arc<Page>)>,
}

/// How much is read, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HistoriesUse {
    pub(crate) reads_sent: u64,
    pub(crate) reads_joined: u64,
    pub(crate) bytes: usize,
    pub(crate) bytes_max: usize,
    /// Beside them.
    pub(crate) kept_bytes: usize,
}

impl Histories {
    pub(crate) fn new(backplane: Arc<dyn Backplane>, interests: Arc<Interests>, config: Arc<Config>) -> Self {
        let limits = &config.limits;
        let publication_bytes = limits.message_bytes.max(limits.publish_bytes).bytes();
        // A page must fit, and a semaphore counts in 32 bits at once.
        let page_bytes = PAGE_BYTES.max(publication_bytes).min(u32::MAX as usize);
        let budget_bytes = limits.recovery_bytes.bytes().max(page_bytes).min(Semaphore::MAX_PERMITS);
        let kept_bytes = budget_bytes / KEPT_PART;
        Self {
            backplane,
            budget: Arc::new(Semaphore::new(budget_bytes)),
            budget_bytes,
            page_bytes,
            kept_budget: Arc::new(Semaphore::new(kept_bytes)),
            kept_bytes,
            reads: Mutex::default(),
            interests,
            config,
            sent: AtomicU64::new(0),
            joined: AtomicU64::new(0),
        }
    }

    /// Reads history at some moment from now on, or shares a read that was sent before and misses nothing. Whoever asks must
    /// have joined before: it is handed what is delivered meanwhile.
    pub(crate) fn read(self: &Arc<Self>, channel: &Channel, read: Read) -> Reading {
        let (key, mark) = ((channel.clone(), read), self.mark(channel, read));
        let mut all = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        let reads = all.of.entry(key.clone()).or_default();
        if let Some((_, page)) = reads.kept.as_ref().filter(|(then, _)| Some(*then) == mark) {
            self.joined.fetch_add(1, Ordering::Relaxed);
            return future::ready(Ok(Arc::clone(page))).boxed().shared();
        }
        let sent = reads.sent.as_ref().filter(|(then, _)| then.is_some() && *then == mark);
        if let Some(reading) = sent.map(|(_, sent)| sent).or(reads.waiting.as_ref()) {
            self.joined.fetch_add(1, Ordering::Relaxed);
            return reading.clone();
        }
        let before = reads.sent.as_ref().map(|(_, sent)| sent.clone());
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

    /// Lets go of what was kept for long enough.
    pub(crate) fn sweep(&self, now: Instant) {
        let mut gone = Vec::new();
        let mut all = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        while all.kept.front().is_some_and(|&(since, _)| now.saturating_duration_since(since) >= KEPT_FOR) {
            let Some((_, key)) = all.kept.pop_front() else { break };
            gone.push(all.change(&key, |reads| reads.kept = None));
        }
        drop(all);
    }

    pub(crate) fn usage(&self) -> HistoriesUse {
        HistoriesUse {
            reads_sent: self.sent.load(Ordering::Relaxed),
            reads_joined: self.joined.load(Ordering::Relaxed),
            bytes: self.budget_bytes - self.budget.available_permits(),
            bytes_max: self.budget_bytes,
            kept_bytes: self.kept_bytes - self.kept_budget.available_permits(),
        }
    }

    /// Who wants the newest has nothing after it yet, and may be told that there is none: it is always read.
    fn mark(&self, channel: &Channel, read: Read) -> Option<Mark> {
        let interest = self.interests.get(channel).filter(|_| read != Read::Newest)?;
        Some(interest.mark())
    }

    async fn answer(&self, key: Key) -> Result<Arc<Page>, BackplaneError> {
        let bytes = if key.1 == Read::Place { PLACE_BYTES } else { self.page_bytes };
        // The budget is never closed.
        let budget = Arc::clone(&self.budget).acquire_many_owned(bytes as u32).await.ok();
        let mark = self.mark(&key.0, key.1);
        self.with(&key, |reads| reads.sent = reads.waiting.take().map(|reading| (mark, reading)));
        self.sent.fetch_add(1, Ordering::Relaxed);
        let query = match key.1 {
            Read::Place => HistoryQuery::newest(0),
            Read::Newest => HistoryQuery::newest(1),
            Read::Page(since) => HistoryQuery::page(since, PAGE_BYTES),
        };
        let result = self.backplane.history(&key.0, query).await;
        let kept =
            result.as_ref().ok().zip(mark).and_then(|(history, mark)| self.kept(&key.0, history, mark));
        self.end(key, kept);
        result.map(|history| Arc::new(Page { history, _budget: budget }))
    }

    /// The read as it is kept, if there is room.
    fn kept(&self, channel: &Channel, history: &History, mark: Mark) -> Option<(Mark, Arc<Page>)> {
        if self.config.namespaces.of(channel).history_age < AGE_MIN {
            return None;
        }
        let publications = history.publications.iter();
        let bytes: usize = publications.map(|it| it.history_bytes() + size_of::<Publication>()).sum();
        let bytes = u32::try_from(PLACE_BYTES + bytes).ok()?;
        let budget = Arc::clone(&self.kept_budget).try_acquire_many_owned(bytes).ok()?;
        Some((mark, Arc::new(Page { history: history.clone(), _budget: Some(budget) })))
    }

    /// A read that was sent is back.
    fn end(&self, key: Key, kept: Option<(Mark, Arc<Page>)>) {
        let mut all = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = kept.is_some() && all.of.get(&key).is_some_and(|reads| reads.kept.is_none());
        let before = all.change(&key, |reads| {
            reads.sent = None;
            reads.kept = kept.or(reads.kept.take());
        });
        if is_first {
            all.kept.push_back((Instant::now(), key));
        }
        drop(all);
        drop(before);
    }

    /// Changes the reads of a key.
    fn with(&self, key: &Key, change: impl FnOnce(&mut ReadsOfOne)) {
        let mut all = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.change(key, change);
        drop(all);
        drop(before);
    }
}

impl Reads {
    /// Changes the reads of a key, which go when there are none left. What it returns is to be dropped without the lock: a
    /// future may be the last to hold others.
    fn change(&mut self, key: &Key, change: impl FnOnce(&mut ReadsOfOne)) -> Option<ReadsOfOne> {
        let reads = self.of.get_mut(key)?;
        let before = reads.clone();
        change(reads);
        if reads.sent.is_none() && reads.waiting.is_none() && reads.kept.is_none() {
            self.of.remove(key);
        }
        Some(before)
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
        page.gauge("recovery_bytes_limit", help, usage.bytes_max as f64)?;
        let help = "History that was read and is kept for those who ask for the same.";
        page.gauge("recovery_kept_bytes", help, usage.kept_bytes as f64)
    }
}

impl fmt::Debug for Histories {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histories").field("use", &self.usage()).finish_non_exhaustive()
    }
}
