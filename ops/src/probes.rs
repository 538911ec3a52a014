//! The internal port: metrics, probes and drain. It is not for the public network and asks for no key.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    response::{AppendHeaders, IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;

use crate::metrics::to_prometheus;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A process that the internal port is about.
pub trait Operated: Send + Sync + 'static {
    /// All families in the OpenMetrics text format.
    fn openmetrics(&self) -> String;

    /// Why no new work should come here, one sentence each; empty when it should.
    fn not_ready(&self) -> Vec<String>;

    /// What does not work though the rest does, one sentence each.
    fn missing(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether what is published here reaches nobody elsewhere, so that a second such process beside it is a mistake.
    fn stands_alone(&self) -> bool {
        false
    }

    /// Begins to drain; more calls change nothing.
    fn drain(&self);

    /// The answer to a web page that asks for a drain: 403 in the form that the process has for errors.
    fn refuse_page(&self) -> Response;
}

/// What `/readyz` answers.
#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<String>,
    /// What does not work, though the process is ready.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<String>,
}

type Process = State<Arc<dyn Operated>>;

/// In the answers to probes of a process that stands alone: `true`.
pub const ALONE: &str = "tidegate-alone";

/// The header of a process that stands alone.
fn alone(process: &dyn Operated) -> AppendHeaders<Option<(&'static str, &'static str)>> {
    AppendHeaders(process.stands_alone().then_some((ALONE, "true")))
}

/// The routes of the internal port, without a fallback.
pub fn routes(process: Arc<dyn Operated>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/drain", post(drain))
        .with_state(process)
}

/// The probes without details, for a public port: `/livez` and `/readyz`.
pub fn public_routes<S: Clone + Send + Sync + 'static>(process: Arc<dyn Operated>) -> Router<S> {
    Router::new().route("/livez", get(livez)).route("/readyz", get(public_readyz)).with_state(process)
}

/// OpenMetrics for who asks for it, as Prometheus does; else the older text format, which everybody reads.
async fn metrics(State(process): Process, headers: HeaderMap) -> Response {
    let openmetrics = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("application/openmetrics-text"));
    let text = process.openmetrics();
    let (kind, text) = if openmetrics { (OPENMETRICS, text) } else { (PROMETHEUS, to_prometheus(&text)) };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// The process answers, so it lives; draining or without a backplane it must not be restarted.
async fn livez(State(process): Process) -> impl IntoResponse {
    (alone(&*process), "ok\n")
}

async fn readyz(State(process): Process) -> impl IntoResponse {
    let reasons = process.not_ready();
    let ready = reasons.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = alone(&*process);
    (status, headers, Json(Readiness { ready, reasons, missing: process.missing() }))
}

/// Whether new connections should come here, and not why not.
async fn public_readyz(State(process): Process) -> impl IntoResponse {
    let (status, text) = match process.not_ready().is_empty() {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
    };
    (status, alone(&*process), text)
}

/// Begins the drain; a second call changes nothing.
///
/// A web page can make a browser on this machine or network post here. Browsers say so with `Origin`; whoever
/// drains a process does not use a page.
async fn drain(State(process): Process, headers: HeaderMap) -> Response {
    if headers.contains_key(header::ORIGIN) {
        return process.refuse_page();
    }
    process.drain();
    StatusCode::ACCEPTED.into_response()
}
