//! Sends what waits for one address: in batches, signed, one request at a time, each until it is taken.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, header};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    metrics::{WebhookDrop, WebhookMetrics, WebhookResult},
    queue::{Batch, EventJson, Queue},
};
use crate::{config::WebhookSending, hooks::client::read_body};

/// The task of one address.
pub(super) struct Sender {
    pub(super) url: reqwest::Url,
    pub(super) queue: Arc<Queue>,
    pub(super) client: reqwest::Client,
    pub(super) sending: WebhookSending,
    pub(super) metrics: Arc<WebhookMetrics>,
    /// Nothing is waited for any more: what waits gets one try.
    pub(super) closing: CancellationToken,
}

/// Longest wait between two tries.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(60);

/// An answer that is read to its end leaves the connection usable. Of a longer one the connection is closed.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

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
            self.send(self.queue.take()).await;
        }
    }

    /// Sends one batch until it is taken, or for as long as it may take.
    async fn send(&self, batch: Batch<'_>) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let body = Bytes::from(body(now.as_millis(), &batch.events));
        let began = Instant::now();
        for failures in 0.. {
            let last = self.closing.is_cancelled();
            if self.post(body.clone()).await {
                return batch.settle();
            }
            let wait = pause(self.sending.retry_wait, failures);
            if last {
                return batch.give_up(WebhookDrop::Drain);
            }
            if began.elapsed() + wait > self.sending.retry_for {
                tracing::warn!(
                    host = self.url.host_str(),
                    events = batch.events.len(),
                    "a webhook took no events; they are dropped"
                );
                return batch.give_up(WebhookDrop::GivenUp);
            }
            // On closing the wait ends, and the last try follows.
            if timeout(wait, self.closing.cancelled()).await.is_err() {
                tracing::debug!(host = self.url.host_str(), failures, "a webhook is tried again");
            }
            self.metrics.retries.add(1);
        }
    }

    /// Whether the events were taken.
    async fn post(&self, body: Bytes) -> bool {
        let signer = self.queue.signer();
        let signature = signer.sign(&body);
        let request = self
            .client
            .post(self.url.clone())
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header("x-pusher-key", &*signer.key)
            .header("x-pusher-signature", signature)
            .body(body);
        let result = match request.send().await {
            Ok(response) => {
                let taken = response.status().is_success();
                // The answer is its status; the rest is read for the connection's sake, in the time that the request has.
                drop(read_body(response, ANSWER_BYTES_MAX).await);
                if taken { WebhookResult::Taken } else { WebhookResult::Refused }
            }
            Err(error) if error.is_timeout() => WebhookResult::Timeout,
            Err(error) => {
                // Without the address, which may have credentials.
                tracing::debug!(error = %error.without_url(), "a webhook failed");
                WebhookResult::Failed
            }
        };
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

fn body(time_ms: u128, events: &[EventJson]) -> Vec<u8> {
    let bytes: usize = events.iter().map(|event| event.len() + 1).sum();
    // 13 digits of time, and 25 bytes around it and the events.
    let mut body = Vec::with_capacity(bytes + 64);
    body.extend_from_slice(br#"{"time_ms":"#);
    body.extend_from_slice(itoa::Buffer::new().format(time_ms).as_bytes());
    body.extend_from_slice(br#","events":["#);
    for (index, event) in events.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(event);
    }
    body.extend_from_slice(b"]}");
    body
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

    #[test]
    fn bodies() {
        let event = |json: &str| EventJson::from(json.as_bytes());
        assert_eq!(body(5, &[event("{}")]), br#"{"time_ms":5,"events":[{}]}"#);
        let two = body(1_700_000_000_000, &[event(r#"{"a":1}"#), event(r#"{"b":2}"#)]);
        assert_eq!(two, br#"{"time_ms":1700000000000,"events":[{"a":1},{"b":2}]}"#);
    }
}
