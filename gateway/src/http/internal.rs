//! The internal port: metrics, probes and drain. It is not for the public network and asks for no key.

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;

use super::{HttpState, error::ApiError};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What `/readyz` answers.
#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<String>,
}

pub(super) fn routes() -> Router<HttpState> {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/drain", post(drain))
}

/// OpenMetrics for who asks for it, as Prometheus does; else the older text format, which everybody reads.
async fn metrics(State(state): State<HttpState>, headers: HeaderMap) -> Response {
    let openmetrics = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("application/openmetrics-text"));
    let (kind, text) = if openmetrics {
        (OPENMETRICS, state.metrics.openmetrics())
    } else {
        (PROMETHEUS, state.metrics.prometheus())
    };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// The process answers, so it lives; draining or without a backplane it must not be restarted.
async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(state): State<HttpState>) -> (StatusCode, Json<Readiness>) {
    match state.node.readiness() {
        Ok(()) => (StatusCode::OK, Json(Readiness { ready: true, reasons: Vec::new() })),
        Err(not_ready) => {
            let reasons = not_ready.reasons.iter().map(ToString::to_string).collect();
            (StatusCode::SERVICE_UNAVAILABLE, Json(Readiness { ready: false, reasons }))
        }
    }
}

/// Begins the drain; a second call changes nothing.
///
/// A web page can make a browser on this machine or network post here. Browsers say so with `Origin`; whoever
/// drains a node does not use a page.
async fn drain(State(state): State<HttpState>, headers: HeaderMap) -> Result<StatusCode, ApiError> {
    if headers.contains_key(header::ORIGIN) {
        return Err(ApiError::OriginRefused);
    }
    state.node.drain();
    Ok(StatusCode::ACCEPTED)
}
