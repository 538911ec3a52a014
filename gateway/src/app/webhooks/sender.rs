//! Sends what waits for one address: in batches, signed, one request at a time, each until it is taken.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    metrics::{WebhookDrop, WebhookMetrics, WebhookResult},
    outlet::{Outlet, Parcel},
    queue::{Batch, Queue},
};
use crate::config::WebhookSending;

/// The task of one address.
pub(super) struct Sender {
    pub(super) outlet: Outlet,
    pub(super) queue: Arc<Queue>,
    pub(super) sending: WebhookSending,
    pub(super) metrics: Arc<WebhookMetrics>,
    /// Nothing is waited for any more: what waits gets one try.
    pub(super) closing: CancellationToken,
}

/// Longest wait between two tries.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(60);

impl Sender {
    /// Until the queue is abandoned, or closed and empty.
    pub(super) async fn run(self) {
        tokio::select! {
            () = self.send_all() => {}
            () = self.queue.abandoned() => {}
        }
        // What is left when an address is gone.
        while self.queue.len() > 0 {
            self.queue.take().give_up(WebhookDrop::Removed);
        }
    }

    async fn send_all(&self) {
        loop {
            tokio::select! {
                () = self.queue.filled(1) => {}
                () = self.closing.cancelled() => {}
            }
            match self.queue.len() {
                0 if self.closing.is_cancelled() => return,
                // What waited has made room for others meanwhile.
                0 => continue,
                _ => {}
            }
            tokio::select! {
                () = self.queue.filled(self.queue.batch_events()) => {}
                () = sleep(self.sending.batch_wait) => {}
                () = self.closing.cancelled() => {}
            }
            let batch = self.queue.take();
            if batch.events.is_empty() {
                // It was suspended meanwhile.
                self.queue.filled(0).await;
            } else {
                self.send(batch).await;
            }
        }
    }

    /// Sends one batch until it is taken, or for as long as it may take.
    async fn send(&self, batch: Batch<'_>) {
        let parcel = self.outlet.pack(&batch.events, &self.queue.dialect());
        let began = Instant::now();
        for failures in 0.. {
            let last = self.closing.is_cancelled();
            if self.try_once(&parcel).await {
                return batch.settle();
            }
            let wait = pause(self.sending.retry_wait, failures);
            if last {
                return batch.give_up(WebhookDrop::Drain);
            }
            if began.elapsed() + wait > self.sending.retry_for {
                tracing::warn!(
                    to = self.outlet.name(),
                    events = batch.events.len(),
                    "a webhook took no events; they are dropped"
                );
                return batch.give_up(WebhookDrop::GivenUp);
            }
            // On closing the wait ends, and the last try follows.
            if timeout(wait, self.closing.cancelled()).await.is_err() {
                tracing::debug!(to = self.outlet.name(), failures, "a webhook is tried again");
            }
            self.metrics.retries.add(1);
        }
    }

    /// Whether the events were taken.
    async fn try_once(&self, parcel: &Parcel) -> bool {
        let result = self.outlet.send(parcel, &self.queue.dialect()).await;
        self.metrics.requests.add(result, 1);
        result == WebhookResult::Taken
    }
}

/// The wait after so many failures before: doubling, less up to a half at random, so that the nodes of a cluster do not
/// ask a server that comes back all at once.
fn pause(first: Duration, failures: u32) -> Duration {
    let whole = first.saturating_mul(1 << failures.min(16)).min(RETRY_WAIT_MAX);
    let random = f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX);
    whole.mul_f64(1.0 - random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute() {
        for (failures, most_s) in [(0, 1), (1, 2), (2, 4), (5, 32), (6, 60), (40, 60), (u32::MAX, 60)] {
            let pause = pause(Duration::from_secs(1), failures);
            let most = Duration::from_secs(most_s);
            assert!(pause <= most && pause >= most / 2, "{failures}: {pause:?}");
        }
    }
}
