//! `POST /v1/channels/{channel}/publish`: the body is the payload. The hot path of the HTTP side.

use std::io::Write;

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header, request::Parts};
use serde::Serialize;
use tidegate_backplane::{Epoch, Payload, Text};
use utoipa::ToSchema;

use super::{CHANNELS, admitted_channel};
use crate::{
    auth::Scope,
    http::{
        HttpState, body,
        error::ApiError,
        query::{self, Query},
    },
    metrics::PublishCode,
    node::{PublishHistory, PublishOutcome, PublishRequest},
};

/// Room for the longest answer: 13 digits of epoch, 20 of offset, and 57 bytes around them.
const ANSWER_BYTES: usize = 96;

/// Where a publication stands.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct PublishAnswer {
    /// Names one unbroken run of offsets; null where the channel keeps no history.
    #[schema(value_type = Option<String>, required = true, pattern = "^[0-9a-z]{1,13}$", example = "k3")]
    pub(in crate::http) epoch: Option<EpochText>,
    /// Place in the epoch, from 1; null where the channel keeps no history.
    #[schema(required = true, minimum = 1, example = 7)]
    pub(in crate::http) offset: Option<u64>,
    /// True when the idempotency key was seen before and nothing was published.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    pub(in crate::http) duplicate: bool,
    /// True when the backplane was out of reach and only subscribers on this node are sent it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    pub(in crate::http) local: bool,
}

/// An epoch, serialised the way clients send it back.
#[derive(Debug, Clone, Copy)]
pub(in crate::http) struct EpochText(pub(in crate::http) Epoch);

impl Serialize for EpochText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl From<PublishOutcome> for PublishAnswer {
    fn from(published: PublishOutcome) -> Self {
        Self {
            epoch: published.position.map(|position| EpochText(position.epoch)),
            offset: published.position.map(|position| position.offset),
            duplicate: published.duplicate,
            local: published.local,
        }
    }
}

/// The channel's part of a publish path, still percent-encoded.
pub(in crate::http) fn segment(path: &str) -> Option<&str> {
    let segment = path.strip_prefix(CHANNELS)?.strip_suffix("/publish")?;
    (!segment.is_empty() && !segment.contains('/')).then_some(segment)
}

/// Publish the body to a channel
///
/// The body is the payload, verbatim. `application/octet-stream` makes a binary publication; with any other
/// content type the body must be UTF-8 and makes a text publication.
#[utoipa::path(
    post, path = "/v1/channels/{channel}/publish", operation_id = "publish", tag = "publish",
    params(
        ("channel" = inline(super::form::ChannelName), Path, description = "Channel name, percent-encoded.", example = "news"),
        ("event" = Option<String>, Query, description = "Event name of the publication. Those of the gateway itself are refused: gap, dropped, disconnect, binary, and what begins with pusher: or pusher_internal:.", min_length = 1, max_length = 200, pattern = r"^[^\u0000-\u001F\u007F-\u009F]{1,200}$"),
        ("Idempotency-Key" = Option<String>, Header, description = "A second publish to the channel with this key, within the backplane's window, publishes nothing and answers what the first one answered.", min_length = 1, max_length = 128, pattern = "^[!-~]{1,128}$"),
    ),
    request_body(description = "The payload.", content(
        (Vec<u8> = "application/octet-stream"),
        (String = "text/plain", example = "hello"),
        (serde_json::Value = "application/json", example = json!({"hello": "world"})),
    )),
    responses((status = 200, description = "Accepted.", body = PublishAnswer, example = json!({"epoch": "k3", "offset": 7}))),
    security(("api_key" = ["publish"])),
)]
pub(in crate::http) async fn publish(State(state): State<HttpState>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    answer(&state, &parts, body).await
}

/// Answers a publish whose path [`segment`] knows, and counts it.
pub(in crate::http) async fn answer<B>(state: &HttpState, parts: &Parts, body: B) -> Response
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
{
    let response = match accept(state, parts, body).await {
        Ok(published) => json(render(&published)),
        Err(error) => error.into_response(),
    };
    state.metrics.http.publish_requests.add(PublishCode::of(response.status().as_u16()), 1);
    response
}

async fn accept<B>(state: &HttpState, parts: &Parts, body: B) -> Result<PublishOutcome, ApiError>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
{
    let channel = admitted_channel(state, &parts.headers, Scope::Publish, &parts.uri)?;
    let event = Query::parse(&parts.uri, &["event"])?.event("event")?;
    let idempotency_key = query::idempotency_key(&parts.headers)?;
    let bytes = body::read(body, state.node.limits().payload_bytes_max).await?;
    let payload = payload(&parts.headers, bytes)?;
    Ok(state
        .node
        .publish(PublishRequest {
            channel,
            event,
            payload,
            idempotency_key,
            sender: None,
            history: PublishHistory::Namespace,
        })
        .await?)
}

fn payload(headers: &HeaderMap, bytes: Bytes) -> Result<Payload, ApiError> {
    if body::is_binary(headers)? {
        return Ok(Payload::Binary(bytes));
    }
    let text = Text::try_from(bytes);
    text.map(Payload::Text).map_err(|error| ApiError::InvalidText { valid_up_to: error.valid_up_to() })
}

fn render(published: &PublishOutcome) -> Vec<u8> {
    let mut json = Vec::with_capacity(ANSWER_BYTES);
    json.push(b'{');
    put_members(published, &mut json);
    json.push(b'}');
    json
}

/// The same members as those of [`PublishAnswer`] through serde, without its detour.
pub(in crate::http) fn put_members(published: &PublishOutcome, json: &mut Vec<u8>) {
    match published.position {
        None => json.extend_from_slice(br#""epoch":null,"offset":null"#),
        Some(position) => {
            json.extend_from_slice(br#""epoch":""#);
            // Writing to a vector cannot fail, and an epoch has no other error.
            let written = write!(json, "{}", position.epoch);
            debug_assert!(written.is_ok());
            json.extend_from_slice(br#"","offset":"#);
            json.extend_from_slice(itoa::Buffer::new().format(position.offset).as_bytes());
        }
    }
    if published.duplicate {
        json.extend_from_slice(br#","duplicate":true"#);
    }
    if published.local {
        json.extend_from_slice(br#","local":true"#);
    }
}

/// A 200 with a JSON body.
pub(in crate::http) fn json(body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tidegate_backplane::Position;

    use super::*;

    #[test]
    fn the_short_way_writes_what_serde_writes() {
        let position = |epoch, offset| Some(Position { epoch: Epoch(epoch), offset });
        for position in [None, position(0, 0), position(723, 7), position(u64::MAX, u64::MAX)] {
            for (duplicate, local) in [(false, false), (false, true), (true, false), (true, true)] {
                let published = PublishOutcome { position, duplicate, local };
                let json = render(&published);
                assert_eq!(json, serde_json::to_vec(&PublishAnswer::from(published)).unwrap());
                assert!(json.len() <= ANSWER_BYTES, "{}", json.len());
            }
        }
    }

    #[test]
    fn publish_paths_have_one_segment_for_the_channel() {
        assert_eq!(segment("/v1/channels/news/publish"), Some("news"));
        assert_eq!(segment("/v1/channels/a%2Fb/publish"), Some("a%2Fb"));
        assert_eq!(segment("/v1/channels//publish"), None);
        assert_eq!(segment("/v1/channels/a/b/publish"), None);
        assert_eq!(segment("/v1/channels/publish"), None);
    }
}
