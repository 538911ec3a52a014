//! The first page, in `--dev` only: three files in the binary, and the numbers the page shows.

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderName, Uri, header};
use serde::Serialize;

use super::{HttpState, error::ApiError, query::Query};

const HTML: &str = include_str!("page/index.html");
const SCRIPT: &str = include_str!("page/app.js");
const STYLE: &str = include_str!("page/style.css");

/// Nothing from elsewhere, nothing inline, in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the page polls.
#[derive(Debug, Serialize)]
struct Numbers {
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
    Ok(Json(Numbers { connections: state.node.connections(), subscribers }))
}
