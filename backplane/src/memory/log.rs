//! The history of one channel: an epoch, a counter, and the newest publications.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use super::hoard::{Hoard, Released};
use crate::{Epoch, History, HistoryPolicy, HistoryQuery, Payload, Position, Publication, Sender};

/// What a publication costs beside its payload and event name: the shared [`Publication`] with its two reference
/// counts, its slot in the deque, and the header that `Bytes` allocates when it is first shared (24 bytes, which
/// allocators round to 32).
const PUBLICATION_BYTES: usize = size_of::<Publication>() + 2 * size_of::<usize>() + size_of::<Kept>() + 32;

/// What a sender costs beside its texts: the box, and up to 15 bytes of rounding for each text.
const SENDER_BYTES: usize = size_of::<Sender>() + 32;

/// What a channel costs by holding history at all: this struct, the three more slots that the smallest deque has, its
/// entry in the table (80 bytes with the counts), its slots in the map (24 bytes at a load of one half) and in the
/// ledger's queue (24), and a name of typical length with its counts (48).
const LOG_BYTES: usize = size_of::<Log>() + 3 * size_of::<Kept>() + 80 + 48 + 24 + 48;

#[derive(Debug)]
pub(super) struct Log {
    epoch: Epoch,
    /// Offset of the newest publication. Offsets have no holes, so that of `kept[i]` is
    /// `top + 1 - kept.len() + i`.
    top: u64,
    /// As the newest publish gave it.
    policy: HistoryPolicy,
    /// When the channel was last published to, or lost its last subscriber. It never goes back, whatever the order
    /// in which publishers that read the clock arrive: so no publication is younger than it.
    used: Instant,
    kept: VecDeque<Kept>,
}

/// A log, taken apart.
pub(super) struct LogParts {
    pub(super) epoch: Epoch,
    pub(super) top: u64,
    pub(super) policy: HistoryPolicy,
    pub(super) used: Instant,
    /// Oldest first.
    pub(super) kept: Vec<(Instant, Arc<Publication>)>,
}

#[derive(Debug)]
struct Kept {
    at: Instant,
    publication: Arc<Publication>,
}

impl Log {
    pub(super) fn new(epoch: Epoch, policy: HistoryPolicy, now: Instant) -> Self {
        Self { epoch, top: 0, policy, used: now, kept: VecDeque::new() }
    }

    /// What it is made of.
    pub(super) fn parts(&self) -> LogParts {
        let kept = self.kept.iter().map(|kept| (kept.at, Arc::clone(&kept.publication))).collect();
        LogParts { epoch: self.epoch, top: self.top, policy: self.policy, used: self.used, kept }
    }

    /// Made again, with what each publication costs.
    pub(super) fn from_parts(parts: LogParts) -> (Self, Vec<usize>) {
        let LogParts { epoch, top, policy, used, kept } = parts;
        let costs = kept.iter().enumerate().map(|(nth, (_, publication))| {
            publication_bytes(publication) + if nth == 0 { LOG_BYTES } else { 0 }
        });
        let costs = costs.collect();
        let kept = kept.into_iter().map(|(at, publication)| Kept { at, publication }).collect();
        let log = Self { epoch, top, policy, used, kept };
        log.invariants();
        (log, costs)
    }

    /// Assigns the next position under the given policy. [`append`](Self::append) must follow.
    pub(super) fn next_position(&mut self, policy: HistoryPolicy, now: Instant) -> Position {
        self.policy = policy;
        self.touch(now);
        self.top += 1;
        Position { epoch: self.epoch, offset: self.top }
    }

    /// Keeps the publication that has the newest position; returns the bytes it costs.
    pub(super) fn append(&mut self, publication: Arc<Publication>) -> usize {
        let first = if self.kept.is_empty() { LOG_BYTES } else { 0 };
        let bytes = publication_bytes(&publication) + first;
        self.kept.push_back(Kept { at: self.used, publication });
        self.invariants();
        bytes
    }

    /// Lets go of what is over the policy's size or age.
    pub(super) fn trim(&mut self, now: Instant) -> Released {
        let mut released = Released::default();
        let age = self.policy.age;
        while let Some(oldest) = self.kept.front() {
            let over = self.kept.len() > self.policy.size as usize;
            if !over && now.saturating_duration_since(oldest.at) < age {
                break;
            }
            released.add(self.shed_oldest());
        }
        released
    }

    /// Lets go of everything that is kept; positions go on.
    pub(super) fn clear(&mut self) -> Released {
        let mut released = Released::default();
        while !self.kept.is_empty() {
            released.add(self.shed_oldest());
        }
        released
    }

    /// Says that the channel was in use until now.
    pub(super) fn touch(&mut self, now: Instant) {
        self.used = self.used.max(now);
    }

    /// Whether the channel, if it has no subscriber, has outlived its epoch.
    pub(super) fn is_expired(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.used) >= self.policy.age
    }

    /// Answers a query; what is over age must have been trimmed.
    pub(super) fn read(&self, query: &HistoryQuery, now: Instant) -> History {
        let top = Position { epoch: self.epoch, offset: self.top };
        let (range, continuous) = match query.since {
            None => (self.kept.len().saturating_sub(query.limit)..self.kept.len(), true),
            Some(since) if since.epoch != self.epoch || since.offset > self.top => (0..0, false),
            Some(since) => self.after(since.offset, query.limit),
        };
        let mut bytes_left = Some(query.bytes);
        let fits = self.kept.range(range).enumerate().take_while(|(nth, kept)| {
            bytes_left = bytes_left.and_then(|left| left.checked_sub(kept.publication.history_bytes()));
            *nth == 0 || bytes_left.is_some()
        });
        let mut newest = None;
        let publications = fits.map(|(_, kept)| {
            newest = Some(kept.at);
            Arc::clone(&kept.publication)
        });
        let publications = publications.collect();
        let left = newest.map(|at| self.policy.age.saturating_sub(now.saturating_duration_since(at)));
        History { publications, top: Some(top), left, continuous }
    }

    /// Gives back the memory of a burst. Slots are 24 bytes: fewer than 64 of them are not worth a move.
    pub(super) fn shrink(&mut self) {
        if self.kept.capacity() > 4 * self.kept.len().max(16) {
            self.kept.shrink_to(2 * self.kept.len());
        }
    }

    /// The kept publications after an offset of this epoch, and whether the first of them is the next one.
    fn after(&self, offset: u64, limit: usize) -> (std::ops::Range<usize>, bool) {
        let len = self.kept.len();
        // Newer than `offset` are `top - offset` publications; the newest `len` of them are kept.
        let missed = self.top - offset;
        let retained = usize::try_from(missed).map_or(len, |missed| missed.min(len));
        let start = len - retained;
        (start..start + retained.min(limit), retained as u64 == missed)
    }

    fn invariants(&self) {
        debug_assert!(self.kept.len() as u64 <= self.top);
        debug_assert!(self.kept.back().is_none_or(|kept| offset(kept) == Some(self.top)));
        debug_assert!(
            self.kept.front().is_none_or(|kept| offset(kept) == Some(self.top + 1 - self.kept.len() as u64))
        );
    }
}

impl Hoard for Log {
    fn shed_oldest(&mut self) -> Option<usize> {
        let kept = self.kept.pop_front()?;
        let last = if self.kept.is_empty() { LOG_BYTES } else { 0 };
        self.invariants();
        Some(publication_bytes(&kept.publication) + last)
    }

    fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }
}

/// A payload in an allocation of its own size.
///
/// The bytes of a request are often a slice of a read buffer of many kilobytes; kept as they are, 100 bytes of
/// history would hold all of it, and the byte bound would not be a bound.
pub(super) fn owned(payload: Payload) -> Payload {
    match payload {
        Payload::Text(text) => Payload::Text((*text).into()),
        Payload::Binary(bytes) => Payload::Binary(bytes::Bytes::copy_from_slice(&bytes)),
    }
}

fn publication_bytes(publication: &Publication) -> usize {
    let event = publication.event.as_ref().map_or(0, |event| event.len());
    let sender = publication.sender.as_ref().map_or(0, |sender| SENDER_BYTES + sender.len());
    PUBLICATION_BYTES + publication.payload.bytes().len() + event + sender
}

fn offset(kept: &Kept) -> Option<u64> {
    kept.publication.position.map(|position| position.offset)
}
