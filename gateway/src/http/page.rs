//! What a browser is shown: in `--dev` the first page (three files in the binary, and the numbers it shows), else where to
//! go.

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use serde::Serialize;

use super::{HttpState, error::ApiError, query::Query};

const HTML: &str = include_str!("page/index.html");
const SCRIPT: &str = include_str!("page/app.js");
const FRONT: &str = include_str!("page/front.html");
const STYLE: &str = include_str!("page/style.css");

/// Nothing from elsewhere, nothing inline, in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the page polls.
#[derive(Debug, Serialize)]
struct Numbers {
    /// The name of this node.
    node: Box<str>,
    /// How many there are, as far as this one knows.
    nodes: usize,
    /// On this node.
    connections: u64,
    /// Of the channel asked for, on this node.
    subscribers: u64,
}

pub(super) fn routes() -> Router<HttpState> {
    Router::new()
        .route("/", get(|| async { asset("text/html; charset=utf-8", HTML) }))
        .route("/dev/app.js", get(|| async { asset("text/javascript; charset=utf-8", SCRIPT) }))
        .route("/dev/style.css", get(|| async { asset("text/css; charset=utf-8", STYLE) }))
        .route("/dev/numbers", get(numbers))
}

/// What a browser is shown at `/` outside `--dev`. A health check that asks there is not told that all is well.
pub(super) fn front(headers: &HeaderMap) -> Option<Response> {
    let accepts = headers.get(header::ACCEPT)?.to_str().ok()?;
    let mut response = accepts.contains("text/html").then(|| asset("text/html; charset=utf-8", FRONT))?;
    *response.status_mut() = StatusCode::NOT_FOUND;
    Some(response)
}

/// A file of a page, with its policy.
pub(super) fn asset(kind: &'static str, text: &'static str) -> Response {
    let headers: [(HeaderName, &str); 5] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // A new build is a new page; nothing here is worth a cache.
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, text).into_response()
}

/// Asks for no key: only `--dev` serves it, and it says what anyone who subscribes could count.
async fn numbers(State(state): State<HttpState>, uri: Uri) -> Result<Json<Numbers>, ApiError> {
    let query = Query::parse(&uri, &["channel"])?;
    let subscribers = match query.get("channel") {
        Some(name) => state.node.subscribers(&tidegate_backplane::Channel::new(name)?),
        None => 0,
    };
    // Where Redis is away this node is all that is known.
    let nodes = state.node.nodes().await.map_or(1, |nodes| nodes.len().max(1));
    let node = state.node.config().node.clone();
    Ok(Json(Numbers { node, nodes, connections: state.node.connections(), subscribers }))
}
