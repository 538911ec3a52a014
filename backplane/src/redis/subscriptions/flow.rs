//! How many subscriptions are under way on one session.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Subscriptions that are not confirmed: 8,192 confirmations of 200 bytes are 1.6 MB, a fifth of what Redis lets a
/// subscriber have in its buffer for long (`client-output-buffer-limit pubsub 32mb 8mb 60`), and some 10 ms of its time.
/// Half a million channels are 61 such portions.
pub(super) const UNDER_WAY_MAX: usize = 8_192;

#[derive(Debug, Default)]
pub(super) struct Flow {
    under_way: AtomicUsize,
    /// Confirmations and refusals so far: while it grows, nothing is lost, only late.
    answered: AtomicU64,
}

impl Flow {
    /// Takes room for one.
    pub(super) fn begin(&self) -> bool {
        self.under_way.try_update(Relaxed, Relaxed, |n| (n < UNDER_WAY_MAX).then_some(n + 1)).is_ok()
    }

    /// Gives it back; answers whether there is much room again.
    pub(super) fn arrived(&self, is_confirmed: bool) -> bool {
        if is_confirmed {
            self.note_answer();
        }
        // Sessions that are over are asked for nothing.
        let before = self.under_way.try_update(Relaxed, Relaxed, |n| n.checked_sub(1));
        before.is_ok_and(|before| before <= UNDER_WAY_MAX / 2)
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.under_way.load(Relaxed) == 0
    }

    pub(super) fn note_answer(&self) {
        self.answered.fetch_add(1, Relaxed);
    }

    pub(super) fn answered(&self) -> u64 {
        self.answered.load(Relaxed)
    }
}
