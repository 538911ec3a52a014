//! `POST /v1/publish` and `POST /v1/batch`: one request, many publications.
//!
//! The form of the whole request is checked before anything is published: what answers 4xx published nothing.

use std::{borrow::Cow, collections::HashMap};

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use tidegate_backplane::{Channel, Payload, Text};
use tidegate_wire::json::JsonValue;
use utoipa::ToSchema;

use super::{
    form::{
        ChannelName, EventName, IdempotencyKey, Object, bounded, channels, channels_present, object, present,
    },
    publish::{self, PublishAnswer},
};
use crate::{
    app::apps::AppId,
    auth::{ApiKeyError, Scope},
    http::{HttpState, access, body, error::ApiError, query::Query},
    metrics::PublishCode,
    node::{Limits, PublishError, PublishHistory, PublishOutcome, PublishRequest},
    problem::Problem,
};

/// Channels in one publish; Pusher's limit.
pub(in crate::http) const CHANNELS_MAX: usize = 100;
/// Publications in one batch, one for each channel of each entry.
pub(in crate::http) const PUBLICATIONS_MAX: usize = 1000;

/// Room for the result of a publication: 96 bytes, and the name of its channel. A longer name makes the answer grow.
const RESULT_BYTES: usize = 128;

/// One payload for many channels.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct PublishMany<'a> {
    /// Where to publish; no channel twice.
    #[serde(deserialize_with = "channels")]
    #[schema(inline, min_items = 1, max_items = 100)]
    channels: Vec<ChannelName>,
    /// The payload: the text of a string, or the JSON text of anything else.
    #[serde(borrow)]
    #[schema(value_type = serde_json::Value)]
    data: JsonValue<'a>,
    /// Names of the gateway's own events are refused: gap, dropped, disconnect, binary, and what begins with pusher: or
    /// pusher_internal:.
    #[schema(value_type = Option<String>, pattern = r"^[^\u0000-\u001F\u007F-\u009F]{1,200}$", min_length = 1, max_length = 200)]
    event: Option<EventName>,
    /// Holds for each channel on its own.
    #[schema(value_type = Option<String>, pattern = "^[!-~]{1,128}$", min_length = 1, max_length = 128)]
    idempotency_key: Option<IdempotencyKey>,
}

/// Many payloads.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct PublishBatch<'a> {
    /// In the order in which they are published to a channel; at most 1000, one counted for each channel.
    #[serde(borrow, deserialize_with = "bounded::<_, _, PUBLICATIONS_MAX>")]
    #[schema(value_type = Vec<BatchFields>, min_items = 1, max_items = 1000)]
    publications: Vec<BatchEntry<'a>>,
}

/// One payload of a batch: for `channel`, or for each of `channels`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = BatchEntry)]
pub(in crate::http) struct BatchFields<'a> {
    #[serde(default, deserialize_with = "present")]
    #[schema(inline, nullable = false)]
    channel: Option<ChannelName>,
    /// No channel twice.
    #[serde(default, deserialize_with = "channels_present")]
    #[schema(inline, nullable = false, min_items = 1, max_items = 100)]
    channels: Option<Vec<ChannelName>>,
    /// The payload: the text of a string, or the JSON text of anything else.
    #[serde(borrow)]
    #[schema(value_type = serde_json::Value)]
    data: JsonValue<'a>,
    /// Names of the gateway's own events are refused: gap, dropped, disconnect, binary, and what begins with pusher: or
    /// pusher_internal:.
    #[schema(value_type = Option<String>, pattern = r"^[^\u0000-\u001F\u007F-\u009F]{1,200}$", min_length = 1, max_length = 200)]
    event: Option<EventName>,
    /// Holds for each channel on its own.
    #[schema(value_type = Option<String>, pattern = "^[!-~]{1,128}$", min_length = 1, max_length = 128)]
    idempotency_key: Option<IdempotencyKey>,
}

/// [`BatchFields`] that name their channels in one of the two ways.
#[derive(Debug)]
struct BatchEntry<'a>(PublishMany<'a>);

/// What became of each publication, in the order of the request.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct PublishResults {
    results: Vec<PublishResult>,
}

/// What became of one publication.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct PublishResult {
    #[schema(example = "news")]
    channel: String,
    #[serde(flatten)]
    answer: PublishAnswer,
    /// Why it was not published.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<Problem>,
}

impl<'de: 'a, 'a> Deserialize<'de> for BatchEntry<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        object(deserializer, |fields: BatchFields<'a>| {
            let BatchFields { channel, channels, data, event, idempotency_key } = fields;
            let channels = match (channel, channels) {
                (Some(channel), None) => vec![channel],
                (None, Some(channels)) => channels,
                _ => return Err("name either `channel` or `channels`"),
            };
            Ok(Self(PublishMany { channels, data, event, idempotency_key }))
        })
    }
}

/// Publish one payload to many channels
///
/// Answers one result for each channel, in order: 200 when all were accepted, 207 when some were, and the
/// problem of the first when none was.
#[utoipa::path(
    post, path = "/v1/publish", operation_id = "publishMany", tag = "publish",
    request_body(content = PublishMany, example = json!({"channels": ["news", "sport"], "data": {"hello": "world"}})),
    responses(
        (status = 200, description = "All were accepted.", body = PublishResults, example = json!({"results": [{"channel": "news", "epoch": "k3", "offset": 7}, {"channel": "sport", "epoch": "m9", "offset": 1}]})),
        (status = 207, description = "Some were accepted; the others have an `error`.", body = PublishResults),
    ),
    security(("api_key" = ["publish"])),
)]
pub(in crate::http) async fn publish_many(State(state): State<HttpState>, request: Request) -> Response {
    publish_orders(&state, request, |body| Ok(vec![body::parse::<Object<PublishMany<'_>>>(body)?.0])).await
}

/// Publish many payloads
///
/// Publications of one channel keep their order. Answers as `POST /v1/publish` does, with one result for each
/// channel of each publication.
#[utoipa::path(
    post, path = "/v1/batch", operation_id = "publishBatch", tag = "publish",
    request_body(content = PublishBatch, example = json!({"publications": [{"channel": "news", "data": "one"}, {"channels": ["news", "sport"], "data": {"n": 2}}]})),
    responses(
        (status = 200, description = "All were accepted.", body = PublishResults),
        (status = 207, description = "Some were accepted; the others have an `error`.", body = PublishResults),
    ),
    security(("api_key" = ["publish"])),
)]
pub(in crate::http) async fn publish_batch(State(state): State<HttpState>, request: Request) -> Response {
    publish_orders(&state, request, |body| {
        let Object(batch) = body::parse::<Object<PublishBatch<'_>>>(body)?;
        Ok(batch.publications.into_iter().map(|entry| entry.0).collect())
    })
    .await
}

/// Reads, checks, publishes, answers, counts.
async fn publish_orders<F>(state: &HttpState, request: Request, parse: F) -> Response
where
    F: for<'a> FnOnce(&'a [u8]) -> Result<Vec<PublishMany<'a>>, ApiError>,
{
    let (parts, body) = request.into_parts();
    let response = match read_orders(state, &parts.headers, &parts.uri, body, parse).await {
        Ok(orders) => answer(publish_all(state, orders).await),
        Err(error) => error.into_response(),
    };
    state.metrics.http.publish_requests.add(PublishCode::of(response.status().as_u16()), 1);
    response
}

async fn read_orders<F>(
    state: &HttpState,
    headers: &HeaderMap,
    uri: &Uri,
    body: Body,
    parse: F,
) -> Result<Vec<PublishRequest>, ApiError>
where
    F: for<'a> FnOnce(&'a [u8]) -> Result<Vec<PublishMany<'a>>, ApiError>,
{
    let key = access::authorize(state, headers, Scope::Publish, None)?;
    Query::parse(uri, &[])?;
    body::require_json(headers)?;
    let Limits { payload_bytes_max: payload_max, body_bytes_max } = state.node.limits();
    let body = body::read(body, body_bytes_max).await?;
    let mut orders = Vec::new();
    for many in parse(&body)? {
        let payload = payload(many.data, &body)?;
        let bytes = payload.bytes().len();
        if bytes > payload_max {
            return Err(ApiError::PayloadTooLarge { bytes, max: payload_max });
        }
        for ChannelName(channel) in many.channels {
            if !key.covers(&channel) {
                return Err(access::refuse(state, ApiKeyError::Channel));
            }
            orders.push(PublishRequest {
                channel: AppId::channel(key.app().map(AppId::as_str), channel.name())?,
                event: many.event.as_ref().map(|event| event.0.clone()),
                payload: payload.clone(),
                idempotency_key: many.idempotency_key.as_ref().map(|key| key.0.clone()),
                sender: None,
                history: PublishHistory::Namespace,
            });
        }
    }
    if orders.len() > PUBLICATIONS_MAX {
        return Err(ApiError::TooManyPublications { number: orders.len(), max: PUBLICATIONS_MAX });
    }
    Ok(orders)
}

/// The payload shares the body's memory, unless it is a string with escapes.
fn payload(data: JsonValue<'_>, body: &Bytes) -> Result<Payload, ApiError> {
    match data.into_text() {
        Cow::Borrowed(text) => text_of(body, text),
        Cow::Owned(text) => Ok(Payload::Text(text.into())),
    }
}

/// A part of the body, in its memory.
fn text_of(body: &Bytes, part: &str) -> Result<Payload, ApiError> {
    let text = Text::try_from(body.slice_ref(part.as_bytes()));
    text.map(Payload::Text).map_err(|error| ApiError::InvalidText { valid_up_to: error.valid_up_to() })
}

/// Publishes to different channels at the same time, and to one channel in order.
pub(crate) async fn publish_all(
    state: &HttpState,
    orders: Vec<PublishRequest>,
) -> Vec<(Channel, Result<PublishOutcome, PublishError>)> {
    if let Some(channel) = only_channel(&orders) {
        let results = state.node.publish_in_order(orders).await;
        return results.into_iter().map(|result| (channel.clone(), result)).collect();
    }
    let mut channels: HashMap<Channel, Vec<(usize, PublishRequest)>> = HashMap::new();
    for (index, order) in orders.into_iter().enumerate() {
        channels.entry(order.channel.clone()).or_default().push((index, order));
    }
    let lanes = channels.into_iter().map(|(channel, orders)| async move {
        let (indices, orders): (Vec<_>, Vec<_>) = orders.into_iter().unzip();
        let results = state.node.publish_in_order(orders).await;
        indices
            .into_iter()
            .zip(results)
            .map(|(index, result)| (index, channel.clone(), result))
            .collect::<Vec<_>>()
    });
    let mut done: Vec<_> = join_all(lanes).await.into_iter().flatten().collect();
    done.sort_unstable_by_key(|(index, ..)| *index);
    done.into_iter().map(|(_, channel, result)| (channel, result)).collect()
}

/// The channel that all of them are for, if they are.
fn only_channel(orders: &[PublishRequest]) -> Option<Channel> {
    let (first, others) = orders.split_first()?;
    others.iter().all(|order| order.channel == first.channel).then(|| first.channel.clone())
}

fn answer(mut done: Vec<(Channel, Result<PublishOutcome, PublishError>)>) -> Response {
    let failed = done.iter().filter(|(_, result)| result.is_err()).count();
    let status = if failed == 0 { StatusCode::OK } else { StatusCode::MULTI_STATUS };
    if failed == done.len()
        && let Some((_, Err(error))) = done.drain(..).next()
    {
        return ApiError::from(error).into_response();
    }
    let mut response = publish::json(render(done));
    *response.status_mut() = status;
    response
}

/// The same bytes as [`PublishResults`] through serde, without its detour for those that were accepted.
fn render(done: Vec<(Channel, Result<PublishOutcome, PublishError>)>) -> Vec<u8> {
    let mut json = Vec::with_capacity(RESULT_BYTES * done.len());
    json.extend_from_slice(br#"{"results":["#);
    for (nth, (channel, result)) in done.into_iter().enumerate() {
        if nth > 0 {
            json.push(b',');
        }
        match result {
            Ok(published) => {
                json.extend_from_slice(br#"{"channel":""#);
                // No character of a channel's name is escaped in JSON.
                json.extend_from_slice(channel.name().as_bytes());
                json.extend_from_slice(br#"","#);
                publish::put_members(&published, &mut json);
                json.push(b'}');
            }
            Err(error) => {
                let result = PublishResult::refused(&channel, error);
                let written = serde_json::to_writer(&mut json, &result);
                debug_assert!(written.is_ok(), "its members are texts and numbers: {written:?}");
            }
        }
    }
    json.extend_from_slice(b"]}");
    json
}

impl PublishResult {
    fn refused(channel: &Channel, error: PublishError) -> Self {
        let answer = PublishAnswer { epoch: None, offset: None, duplicate: false, local: false };
        Self { channel: channel.name().to_owned(), answer, error: Some(ApiError::from(error).problem()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tidegate_backplane::{Epoch, Position};

    use super::*;

    #[test]
    fn the_short_way_writes_what_serde_writes() {
        let channel = |name| Channel::new(name).unwrap();
        let accepted = |position| Ok(PublishOutcome { position, duplicate: false, local: false });
        let done = || {
            vec![
                (channel("a/b#@,.;:=_-"), accepted(None)),
                (channel("news"), Err(PublishError::TooLarge { bytes: 2, max: 1 })),
                (channel("sport"), accepted(Some(Position { epoch: Epoch(u64::MAX), offset: u64::MAX }))),
            ]
        };
        let results = done().into_iter().map(|(channel, result)| match result {
            Ok(published) => {
                PublishResult { channel: channel.name().to_owned(), answer: published.into(), error: None }
            }
            Err(error) => PublishResult::refused(&channel, error),
        });
        let expected = serde_json::to_vec(&PublishResults { results: results.collect() }).unwrap();
        assert_eq!(String::from_utf8(render(done())), String::from_utf8(expected));
    }
}
