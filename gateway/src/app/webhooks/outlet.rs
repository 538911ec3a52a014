//! Where the events of a queue go: an address that is posted to, or a Redis stream.

use std::sync::Arc;

use tidegate_consumers::Appender;

use super::{
    dialect::{Dialect, EventJson, Written},
    metrics::WebhookResult,
};
use crate::hooks::{client::read_body, events::id_and_type};

#[derive(Debug, Clone)]
pub(super) enum Outlet {
    Http { url: reqwest::Url, client: reqwest::Client },
    Stream(Arc<Appender>),
}

/// Events that are sent until they are taken.
#[derive(Debug)]
pub(super) enum Parcel {
    Request(Written),
    Entries(Vec<EventJson>),
}

/// An answer that is read to its end leaves the connection usable. Of a longer one the connection is closed.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

impl Outlet {
    /// What it is called in the log; without the address, which may have credentials.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Http { url, .. } => url.host_str().unwrap_or_default(),
            Self::Stream(appender) => appender.stream(),
        }
    }

    pub(super) fn pack(&self, events: &[EventJson], dialect: &Dialect) -> Parcel {
        match self {
            Self::Http { .. } => Parcel::Request(dialect.write(events)),
            Self::Stream(_) => Parcel::Entries(events.to_vec()),
        }
    }

    /// One try.
    pub(super) async fn send(&self, parcel: &Parcel, dialect: &Dialect) -> WebhookResult {
        match (self, parcel) {
            (Self::Http { url, client }, Parcel::Request(sent)) => post(url, client, sent, dialect).await,
            (Self::Stream(appender), Parcel::Entries(events)) => append(appender, events).await,
            // It was packed by another outlet.
            _ => WebhookResult::Failed,
        }
    }
}

async fn post(
    url: &reqwest::Url,
    client: &reqwest::Client,
    sent: &Written,
    dialect: &Dialect,
) -> WebhookResult {
    let request = client.post(url.clone()).headers(dialect.headers(sent)).body(sent.body.clone());
    match request.send().await {
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
    }
}

async fn append(appender: &Appender, events: &[EventJson]) -> WebhookResult {
    let entries: Vec<_> = events
        .iter()
        .map(|event| {
            let (id, kind) = id_and_type(event);
            vec![("id", id.as_bytes()), ("type", kind.as_bytes()), ("event", &**event)]
        })
        .collect();
    match appender.append(&entries).await {
        Ok(()) => WebhookResult::Taken,
        Err(error) => {
            tracing::debug!(%error, stream = appender.stream(), "events were not appended to a stream");
            WebhookResult::Failed
        }
    }
}
