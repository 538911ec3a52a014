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
    pub(crate) presence_failed: AtomicU64,
    pub(crate) presence_refused: AtomicU64,
    pub(crate) presence_undecodable: AtomicU64,
    pub(crate) presence_written: AtomicU64,
    pub(crate) presence_settled: AtomicU64,
    pub(crate) presence_full: AtomicU64,
    pub(crate) presence_cleared: AtomicU64,
    pub(crate) transitions: AtomicU64,
    pub(crate) instances_removed: AtomicU64,
    pub(crate) leases_lapsed: AtomicU64,
    pub(crate) records_undecodable: AtomicU64,
    pub(crate) wills_told: AtomicU64,
    pub(crate) wills_failed: AtomicU64,
    pub(crate) orders_received: AtomicU64,
    pub(crate) orders_unknown: AtomicU64,
    pub(crate) orders_undecodable: AtomicU64,
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
    /// Batches of changes of presence that Redis did not take; their channels are written again.
    pub presence_failed: u64,
    /// Joins refused because too many changes waited.
    pub presence_refused: u64,
    /// Members of another version or of somebody else, left out of answers.
    pub presence_undecodable: u64,
    /// Batches of changes of presence that Redis took.
    pub presence_written: u64,
    /// Times that it was asked what has lasted.
    pub presence_settled: u64,
    /// Users refused because the channel had as many as it may.
    pub presence_full: u64,
    /// Channels that were cleared of what a dead instance had left there.
    pub presence_cleared: u64,
    /// Transitions handed to the sink.
    pub transitions: u64,
    /// Dead instances of which this node removed all members.
    pub instances_removed: u64,
    /// Times that this node went on as another instance: it was away for a lease, or the registry lost its data.
    pub leases_lapsed: u64,
    /// Node records that could not be read, and were left out.
    pub records_undecodable: u64,
    /// Wills of connections of dead nodes that were handed to the sink.
    pub wills_told: u64,
    /// Batches of wills that Redis did not take; they are written again.
    pub wills_failed: u64,
    /// Orders handed to the sink.
    pub orders_received: u64,
    /// Orders of a kind that this version does not know.
    pub orders_unknown: u64,
    /// Messages on the control channel that are no orders.
    pub orders_undecodable: u64,
}

impl Tallies {
    pub(crate) fn read(&self) -> OperationCounters {
        OperationCounters {
            published_plain: self.published_plain.load(Relaxed),
            published_scripted: self.published_scripted.load(Relaxed),
            publish_duplicates: self.publish_duplicates.load(Relaxed),
            history_undecodable: self.history_undecodable.load(Relaxed),
            epochs_renounced: self.epochs_renounced.load(Relaxed),
            presence_failed: self.presence_failed.load(Relaxed),
            presence_refused: self.presence_refused.load(Relaxed),
            presence_undecodable: self.presence_undecodable.load(Relaxed),
            presence_written: self.presence_written.load(Relaxed),
            presence_settled: self.presence_settled.load(Relaxed),
            presence_full: self.presence_full.load(Relaxed),
            presence_cleared: self.presence_cleared.load(Relaxed),
            transitions: self.transitions.load(Relaxed),
            instances_removed: self.instances_removed.load(Relaxed),
            leases_lapsed: self.leases_lapsed.load(Relaxed),
            records_undecodable: self.records_undecodable.load(Relaxed),
            wills_told: self.wills_told.load(Relaxed),
            wills_failed: self.wills_failed.load(Relaxed),
            orders_received: self.orders_received.load(Relaxed),
            orders_unknown: self.orders_unknown.load(Relaxed),
            orders_undecodable: self.orders_undecodable.load(Relaxed),
        }
    }
}
