//! What the registry of subscriptions counts, for the gateway's metrics.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::cause::Cause;
use crate::{GapReason, redis::envelope::EnvelopeError};

/// Counted while running. Gauges are the first three.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) wanted: AtomicU64,
    pub(super) confirmed: AtomicU64,
    pub(super) held_bytes: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) sent_again: AtomicU64,
    pub(super) resubscribed: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) unknown_channel: AtomicU64,
    pub(super) already_handed: AtomicU64,
    pub(super) put_off: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) repaired: AtomicU64,
    pub(super) found_by_check: AtomicU64,
    pub(super) failed_asks: AtomicU64,
    pub(super) failed_renewals: AtomicU64,
    repairs: [AtomicU64; 6],
    gaps: [AtomicU64; 4],
    undecodable: [AtomicU64; 3],
}

/// A reading of the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SubscriptionCounters {
    /// Now: channels that are subscribed or should be.
    pub wanted: u64,
    /// Now: of those, confirmed by the server.
    pub confirmed: u64,
    /// Now: bytes of publications that wait for a repair.
    pub held_bytes: u64,
    /// Subscribe and unsubscribe commands.
    pub batches: u64,
    /// Channels whose confirmation did not come in time.
    pub sent_again: u64,
    /// Channels whose subscription was lost, and was confirmed again.
    pub resubscribed: u64,
    /// The last time that subscriptions were lost: from the first that was to the last that was back.
    pub outage: Option<Duration>,
    /// Publications received.
    pub received: u64,
    /// Received for a channel that is not subscribed (any more), or from a server that no longer has it.
    pub unknown_channel: u64,
    /// Received, and handed over before.
    pub already_handed: u64,
    /// Received, let go, and read from the stream later.
    pub put_off: u64,
    /// Received without position and let go: the sink or the buffer had no room. A gap was told.
    pub dropped: u64,
    /// Handed over from the stream.
    pub repaired: u64,
    /// A look at the position found something that had not arrived, or was taken back.
    pub found_by_check: u64,
    /// Asks of the server that failed, and were made again.
    pub failed_asks: u64,
    /// Times that channels could not be said to be in use: their state may expire.
    pub failed_renewals: u64,
    pub repairs: Repairs,
    pub gaps: GapsTold,
    pub undecodable: Undecodable,
}

/// Repairs begun, by what began them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Repairs {
    pub reconnect: u64,
    pub overflow: u64,
    pub hole: u64,
    pub check: u64,
    pub epoch: u64,
    pub rewritten: u64,
}

/// Gaps told, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GapsTold {
    pub reconnect: u64,
    pub overflow: u64,
    pub hole: u64,
    pub unrecoverable: u64,
}

/// Envelopes that were skipped, by what was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Undecodable {
    /// Of another version.
    pub version: u64,
    /// Too short.
    pub truncated: u64,
    /// Flags, offset, event, sender, change of presence or text that no node of this version writes.
    pub malformed: u64,
}

impl Counters {
    pub(super) fn repair(&self, cause: Cause) {
        let at = match cause {
            Cause::Reconnect => 0,
            Cause::Overflow => 1,
            Cause::Hole => 2,
            Cause::Check => 3,
            Cause::Epoch => 4,
            Cause::Rewritten => 5,
        };
        self.repairs[at].fetch_add(1, Relaxed);
    }

    pub(super) fn gap(&self, reason: GapReason) {
        let at = match reason {
            GapReason::Reconnect => 0,
            GapReason::Overflow => 1,
            GapReason::Hole => 2,
            GapReason::Unrecoverable | GapReason::Forgotten => 3,
        };
        self.gaps[at].fetch_add(1, Relaxed);
    }

    pub(super) fn undecodable(&self, error: EnvelopeError) {
        let at = match error {
            EnvelopeError::Version(_) => 0,
            EnvelopeError::Truncated => 1,
            EnvelopeError::Flags(_)
            | EnvelopeError::Offset
            | EnvelopeError::Event
            | EnvelopeError::Sender
            | EnvelopeError::Presence
            | EnvelopeError::Text => 2,
        };
        self.undecodable[at].fetch_add(1, Relaxed);
    }

    pub(super) fn read(&self) -> SubscriptionCounters {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        let [reconnect, overflow, hole, check, epoch, rewritten] = self.repairs.each_ref().map(read);
        let repairs = Repairs { reconnect, overflow, hole, check, epoch, rewritten };
        let [reconnect, overflow, hole, unrecoverable] = self.gaps.each_ref().map(read);
        let gaps = GapsTold { reconnect, overflow, hole, unrecoverable };
        let [version, truncated, malformed] = self.undecodable.each_ref().map(read);
        SubscriptionCounters {
            wanted: read(&self.wanted),
            confirmed: read(&self.confirmed),
            held_bytes: read(&self.held_bytes),
            batches: read(&self.batches),
            sent_again: read(&self.sent_again),
            resubscribed: read(&self.resubscribed),
            outage: None,
            received: read(&self.received),
            unknown_channel: read(&self.unknown_channel),
            already_handed: read(&self.already_handed),
            put_off: read(&self.put_off),
            dropped: read(&self.dropped),
            repaired: read(&self.repaired),
            found_by_check: read(&self.found_by_check),
            failed_asks: read(&self.failed_asks),
            failed_renewals: read(&self.failed_renewals),
            repairs,
            gaps,
            undecodable: Undecodable { version, truncated, malformed },
        }
    }
}
