//! Who may call: the API key of a request, and CORS for the origins that are allowed.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use tidegate_backplane::Channel;
use tidegate_wire::head::UNREADABLE;

use super::{HttpState, error::ApiError};
use crate::{
    auth::{ApiKey, ApiKeyError, Scope, bearer},
    metrics::AuthFailure,
};

/// How long a browser may keep the answer to a preflight. Chromium caps it at 7,200 s.
const PREFLIGHT_AGE_S: &str = "7200";
const PREFLIGHT_METHODS: &str = "GET, HEAD, POST";
const PREFLIGHT_HEADERS: &str = "authorization, cache-control, content-type, idempotency-key, last-event-id";
const EXPOSED_HEADERS: &str = "retry-after, www-authenticate";

/// The request's API key, if it has the scope and, where the request names a channel, covers it.
pub(super) fn authorize(
    state: &HttpState,
    headers: &HeaderMap,
    scope: Scope,
    channel: Option<&Channel>,
) -> Result<Arc<ApiKey>, ApiError> {
    let bearer = text(headers, &header::AUTHORIZATION)
        .and_then(|text| if text == UNREADABLE { Some(UNREADABLE) } else { bearer(text) });
    state.keys.authorize(bearer, scope, channel).map_err(|error| refuse(state, error))
}

/// Counts a refused key.
pub(crate) fn refuse(state: &HttpState, error: ApiKeyError) -> ApiError {
    let reason = match error {
        ApiKeyError::Missing => AuthFailure::KeyMissing,
        ApiKeyError::Unknown => AuthFailure::KeyUnknown,
        ApiKeyError::Scope(_) => AuthFailure::KeyScope,
        ApiKeyError::Channel | ApiKeyError::Connection => AuthFailure::KeyChannel,
        ApiKeyError::Rate { .. } => AuthFailure::KeyRate,
    };
    state.metrics.node.auth_failures.add(reason, 1);
    ApiError::Key(error)
}

/// Answers preflights, and lets pages of allowed origins read what the router answers.
pub(super) async fn cors(State(state): State<HttpState>, request: Request, next: Next) -> Response {
    let Some(origin) = allowed_origin(&state, request.headers()) else {
        return next.run(request).await;
    };
    if is_preflight(&request) {
        return preflight(origin);
    }
    let mut response = next.run(request).await;
    allow(response.headers_mut(), origin);
    response
}

/// Whether requests for the host and from the page that this one names are served.
pub(super) fn admits(state: &HttpState, headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).map(HeaderValue::as_bytes).unwrap_or_default();
    state.origins.admits(text(headers, &header::ORIGIN), &String::from_utf8_lossy(host))
}

/// The value of the header of that name, if there is one: [`UNREADABLE`] where it is no text or there are several.
fn text<'h>(headers: &'h HeaderMap, name: &header::HeaderName) -> Option<&'h str> {
    let value = || single(headers, name)?.to_str().ok();
    headers.contains_key(name).then(|| value().unwrap_or(UNREADABLE))
}

/// The request's origin, when it has one that may read the answer.
pub(crate) fn allowed_origin(state: &HttpState, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = single(headers, &header::ORIGIN)?;
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    state.origins.allows(Some(origin.to_str().ok()?), host).then(|| origin.clone())
}

/// The header of that name, if there is one and not several: which of them somebody before us went by is not known.
pub(crate) fn single<'h>(headers: &'h HeaderMap, name: &header::HeaderName) -> Option<&'h HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// Whether the body is said to be coded, which nobody here decodes: its bytes would be taken for the payload.
pub(super) fn is_coded(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|value| !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}

/// Lets the page of this origin read the response.
pub(crate) fn allow(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED_HEADERS));
    // The answer differs by origin, and a shared cache must know.
    headers.append(header::VARY, HeaderValue::from_static("origin"));
}

/// The question of a browser whether a page may ask something.
pub(super) fn is_preflight<B>(request: &http::Request<B>) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight(origin: HeaderValue) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    allow(headers, origin);
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(PREFLIGHT_METHODS));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(PREFLIGHT_HEADERS));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(PREFLIGHT_AGE_S));
    response
}
