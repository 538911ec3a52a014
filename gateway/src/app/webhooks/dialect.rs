//! In which words an address is told events: those of Pusher's webhooks, or CloudEvents signed as Standard Webhooks.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE};

use crate::{
    app::apps::signature::Signer,
    hooks::{Source, events, signature::Signer as StandardSigner},
};

/// One event as JSON.
pub(super) type EventJson = Arc<[u8]>;

/// The words, and what is signed with.
#[derive(Debug, Clone)]
pub(super) enum Dialect {
    Pusher(Arc<Signer>),
    CloudEvents { signer: Arc<StandardSigner>, source: Arc<Source>, is_batch: bool },
}

/// A request that was written once and is sent until it is taken.
#[derive(Debug)]
pub(super) struct Written {
    /// Says which one it is, also when it comes again.
    id: String,
    headers: HeaderMap,
    pub(super) body: Bytes,
}

const KEY: HeaderName = HeaderName::from_static("x-pusher-key");
const SIGNATURE: HeaderName = HeaderName::from_static("x-pusher-signature");

impl Dialect {
    pub(super) fn write(&self, batch: &[EventJson]) -> Written {
        let now = now();
        match self {
            Self::Pusher(_) => {
                let headers = media("application/json");
                Written { id: String::new(), headers, body: body(now.as_millis(), batch).into() }
            }
            Self::CloudEvents { source, is_batch: true, .. } => {
                let headers = media("application/cloudevents-batch+json");
                Written { id: source.ids.next(), headers, body: list(batch).into() }
            }
            Self::CloudEvents { .. } => {
                let (id, headers, body) =
                    batch.first().map(|event| events::binary(event)).unwrap_or_default();
                Written { id, headers, body }
            }
        }
    }

    /// The headers of one try.
    pub(super) fn headers(&self, written: &Written) -> HeaderMap {
        let mut headers = written.headers.clone();
        match self {
            Self::Pusher(signer) => {
                let values = [(KEY, signer.key.to_string()), (SIGNATURE, signer.sign(&written.body))];
                for (name, value) in values {
                    headers.extend(HeaderValue::try_from(value).ok().map(|value| (name, value)));
                }
            }
            Self::CloudEvents { signer, .. } => {
                signer.sign(&written.id, now().as_secs(), &written.body, &mut headers);
            }
        }
        headers
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn media(media: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(media))])
}

fn list(events: &[EventJson]) -> Vec<u8> {
    let bytes: usize = events.iter().map(|event| event.len() + 1).sum();
    let mut list = Vec::with_capacity(bytes + 2);
    list.push(b'[');
    for (index, event) in events.iter().enumerate() {
        if index > 0 {
            list.push(b',');
        }
        list.extend_from_slice(event);
    }
    list.push(b']');
    list
}

fn body(time_ms: u128, events: &[EventJson]) -> Vec<u8> {
    let mut body = Vec::with_capacity(64);
    body.extend_from_slice(br#"{"time_ms":"#);
    body.extend_from_slice(itoa::Buffer::new().format(time_ms).as_bytes());
    body.extend_from_slice(br#","events":"#);
    body.append(&mut list(events));
    body.push(b'}');
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies() {
        let event = |json: &str| EventJson::from(json.as_bytes());
        assert_eq!(body(5, &[event("{}")]), br#"{"time_ms":5,"events":[{}]}"#);
        let two = body(1_700_000_000_000, &[event(r#"{"a":1}"#), event(r#"{"b":2}"#)]);
        assert_eq!(two, br#"{"time_ms":1700000000000,"events":[{"a":1},{"b":2}]}"#);
    }
}
