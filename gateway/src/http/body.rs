//! Reads request bodies: bounded in bytes while they arrive, and in time; JSON with the place of a fault.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyper::body::Body;
use serde::Deserialize;
use tidegate_wire::json;

use super::error::{ApiError, ParameterFault, ParameterPlace};
use crate::problem::Place;

/// How long a body may take. A payload at the default bound of 64 KiB passes at 53 kbit/s.
pub(super) const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// Reads the whole body, at most `max` bytes of it, whether or not a length was declared.
///
/// A body that is already there (the usual case for a small publish) is taken without a timer and, when it is
/// one frame, without a copy.
pub(crate) async fn read<B>(body: B, max: usize) -> Result<Bytes, ApiError>
where
    B: Body<Data = Bytes> + Unpin,
{
    if body.size_hint().lower() > max as u64 {
        return Err(ApiError::BodyTooLarge { max });
    }
    let mut reading = pin!(collect(body, max));
    match poll_fn(|context| Poll::Ready(reading.as_mut().poll(context))).await {
        Poll::Ready(done) => done,
        Poll::Pending => tokio::time::timeout(BODY_DEADLINE, reading)
            .await
            .unwrap_or(Err(ApiError::BodyTimeout(BODY_DEADLINE))),
    }
}

async fn collect<B>(mut body: B, max: usize) -> Result<Bytes, ApiError>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::BodyIncomplete)?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + rest.len() + data.len() > max {
            return Err(ApiError::BodyTooLarge { max });
        }
        if first.is_empty() && rest.is_empty() {
            first = data;
            continue;
        }
        if rest.is_empty() {
            rest.extend_from_slice(&std::mem::take(&mut first));
        }
        rest.extend_from_slice(&data);
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

/// Refuses a body that says it is something else than JSON. One that says nothing is taken for JSON.
pub(super) fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(essence) = media_type(headers)? else { return Ok(()) };
    let essence = essence.as_bytes();
    let json = essence.eq_ignore_ascii_case(b"application/json")
        || essence.len() > 5 && essence[essence.len() - 5..].eq_ignore_ascii_case(b"+json");
    if json { Ok(()) } else { Err(ApiError::UnsupportedMediaType) }
}

/// Whether the body is a binary payload rather than text.
pub(super) fn is_binary(headers: &HeaderMap) -> Result<bool, ApiError> {
    let essence = media_type(headers)?;
    Ok(essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/octet-stream")))
}

/// The media type without its parameters. One that cannot be read is not taken for none: text or binary is what the
/// payload's readers get.
fn media_type(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let fault = |fault| ApiError::InvalidParameter {
        place: ParameterPlace::Header,
        name: "content-type".into(),
        fault,
    };
    if values.next().is_some() {
        return Err(fault(ParameterFault::Repeated));
    }
    let text = value.to_str().map_err(|_| fault(ParameterFault::Text))?;
    Ok(Some(text.split(';').next().unwrap_or_default().trim()))
}

/// Parses JSON, and says where it is wrong.
///
/// The path of a fault costs bookkeeping for every member, so only a body that turned out to be wrong is parsed
/// a second time with it.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    // Looked at as a whole, its strings need not be looked at one by one.
    let parsed = match std::str::from_utf8(body) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_slice(body),
    };
    let plain = match parsed {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    Err(match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
        Err(error) => fault(error.inner(), &error.path().to_string()),
        // What follows the value is at fault, and has no path.
        Ok(_) => fault(&plain, "."),
    })
}

fn fault(error: &serde_json::Error, path: &str) -> ApiError {
    // The path's own word for a place it does not know.
    let path = if path == "?" { "." } else { path };
    let at = Place { line: error.line().max(1), column: error.column(), path: path.into() };
    let reason = json::fault(error).into();
    ApiError::InvalidJson { reason, at }
}
