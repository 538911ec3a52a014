//! The console over HTTP: three files in the binary, the stream of views, and one connection. On the internal port,
//! with the REST API beside it for what needs a key; in `--dev` on the public port, too.
//!
//! The view needs no key: whoever reaches the internal port may read `/metrics`, too. A web page of somebody else must
//! not, so a browser's request has to come from the page itself (`Sec-Fetch-Site`, `Origin`) and name an address or a
//! local name (`Host`), which a name that was made to mean this machine (DNS rebinding) is not.

use std::convert::Infallible;

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use http::{HeaderMap, header};
use serde_json::json;
use tidegate_ops::probes::Operated as _;

use super::{HttpState, access, error::ApiError, page::asset};
use crate::{
    auth::{ApiKeyError, Scope},
    console::watch::{LookupError, Watcher},
    node::connection_state::ConnectionState,
};

const HTML: &str = include_str!("console/index.html");
const SCRIPT: &str = include_str!("console/app.js");
const STYLE: &str = include_str!("console/style.css");

/// Longest name of a connection: a node's name and four numbers.
const NAME_BYTES_MAX: usize = 512;

/// The page and its stream.
pub(super) fn routes(state: &HttpState) -> Router<HttpState> {
    let routes = Router::new()
        .route("/console", get(|| async { asset("text/html; charset=utf-8", HTML) }))
        .route("/console/app.js", get(|| async { asset("text/javascript; charset=utf-8", SCRIPT) }))
        .route("/console/style.css", get(|| async { asset("text/css; charset=utf-8", STYLE) }))
        .route("/console/about", get(about))
        .route("/console/events", get(events))
        .route("/console/connections/{name}", get(connection));
    guarded(routes, state)
}

/// Lets only the page itself, and programs, in.
pub(super) fn guarded(routes: Router<HttpState>, state: &HttpState) -> Router<HttpState> {
    routes.layer(middleware::from_fn_with_state(state.clone(), guard))
}

async fn guard(State(state): State<HttpState>, request: Request, next: Next) -> Response {
    match is_own(&state, request.headers()) {
        true => next.run(request).await,
        false => ApiError::OriginRefused.into_response(),
    }
}

/// Whether a request is a program's, or of a page that this port itself has served.
fn is_own(state: &HttpState, headers: &HeaderMap) -> bool {
    let text =
        |name: header::HeaderName| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let host = text(header::HOST).unwrap_or_default();
    let is_named = state.internal_access().allows_host(&host);
    // `none`: a person has typed the address.
    let is_same = text(header::HeaderName::from_static("sec-fetch-site"))
        .is_none_or(|site| ["same-origin", "none"].contains(&&*site));
    let is_of_page = text(header::ORIGIN).is_none_or(|origin| {
        origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(&host))
    });
    is_named && is_same && is_of_page
}

/// What the page shows before the first view.
async fn about(State(state): State<HttpState>) -> Json<serde_json::Value> {
    Json(json!({ "node": state.node.name(), "version": env!("CARGO_PKG_VERSION"), "dev": state.dev }))
}

async fn events(State(state): State<HttpState>) -> Result<Response, ApiError> {
    let watcher = state.console.watch().map_err(|_| ApiError::TooManyWatchers)?;
    let next = |mut watcher: Watcher| async move {
        let event = watcher.next().await?;
        Some((Ok::<Bytes, Infallible>(event), watcher))
    };
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(stream::unfold(watcher, next))).into_response())
}

/// One connection, on whichever node it is. Whose it is, is told to those who could end it, too.
async fn connection(
    State(state): State<HttpState>,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Result<Json<ConnectionState>, ApiError> {
    let key = access::authorize(&state, &headers, Scope::Admin, None)?;
    if key.app().is_some() {
        return Err(access::refuse(&state, ApiKeyError::Connection));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(ApiError::NotFound);
    }
    match state.console.look_up(&name).await {
        Ok(Some(found)) => Ok(Json(found)),
        Ok(None) => Err(ApiError::NoConnection),
        Err(LookupError::TooMany) => Err(ApiError::TooManyWatchers),
        Err(LookupError::Backplane(error)) => Err(error.into()),
    }
}
