//! What the operations count, for the metrics of whoever embeds the backplane.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counted where it happens; read as [`OperationCounters`].
#[derive(Debug, Default)]
pub(crate) struct Tallies {
    pub(crate) published_plain: AtomicU64,
    pub(crate) published_scripted: AtomicU64,
    pub(crate) publish_duplicates: AtomicU64,
    pub(crate) history_undecodable: AtomicU64,
    pub(crate) epochs_renounced: AtomicU64,
}

/// Totals since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OperationCounters {
    /// Publications without history and key.
    pub published_plain: u64,
    /// Publications with history or key.
    pub published_scripted: u64,
    /// Publishes whose key had been seen before.
    pub publish_duplicates: u64,
    /// Entries of streams that could not be decoded, and were left out.
    pub history_undecodable: u64,
    /// Epochs that this node ended because history had been rewritten.
    pub epochs_renounced: u64,
}

impl Tallies {
    pub(crate) fn read(&self) -> OperationCounters {
        OperationCounters {
            published_plain: self.published_plain.load(Relaxed),
            published_scripted: self.published_scripted.load(Relaxed),
            publish_duplicates: self.publish_duplicates.load(Relaxed),
            history_undecodable: self.history_undecodable.load(Relaxed),
            epochs_renounced: self.epochs_renounced.load(Relaxed),
        }
    }
}
