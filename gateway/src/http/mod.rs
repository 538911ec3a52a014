//! HTTP beside the sockets: REST with problem documents and OpenAPI, the internal endpoints, the first page, the console.
//!
//! The way of a publish: [`PublicService`] sees `POST /v1/channels/{channel}/publish` and goes straight to
//! `rest::publish`, and the paths of a protocol's [`Api`] to that; every other request takes axum's router. Both answer
//! alike: the router has the same route and the same interfaces, and is all that tests need.

pub(crate) mod access;
pub(crate) mod body;
mod console;
mod error;
mod openapi;
mod page;
pub(crate) mod query;
mod rest;
pub(crate) mod serve;
mod service;
mod whole;

use std::{fmt, sync::Arc};

use axum::{
    Router,
    body::{Body, HttpBody},
    extract::{Request, State},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, StatusCode, header, request::Parts};
use tidegate_ops::{hosts::InternalAccess, probes};

pub(crate) use self::{error::ApiError, rest::publish_all, service::PublicService};
use crate::config::BackplaneUrl;
use crate::{
    app::apps::Apps,
    auth::{ApiKeys, Origins},
    console::Console,
    metrics::{Metrics, Reader},
    node::Node,
};

/// What the handlers of both ports share.
#[derive(Debug)]
pub(crate) struct HttpContext {
    pub node: Arc<Node>,
    pub keys: Arc<ApiKeys>,
    pub apps: Arc<Apps>,
    pub origins: Arc<Origins>,
    pub metrics: Arc<Metrics>,
    pub(crate) console: Arc<Console>,
    /// What protocols answer beside `/v1`.
    pub(crate) apis: Apis,
    /// Whether a request without a body, by its method and path, is one of a shard's.
    pub(crate) is_shards: fn(&str, &str) -> bool,
    /// Who may use the internal port.
    pub internal: InternalAccess,
    /// Serve the first page and what it asks for.
    pub dev: bool,
}

/// An HTTP interface that belongs to a protocol: all requests under a path of its own.
pub(crate) trait Api: Sync + fmt::Debug {
    fn has_path(&self, path: &str) -> bool;

    /// Whether a path of its own is a publish of one publication, which a shard may answer.
    fn is_publish(&self, _path: &str) -> bool {
        false
    }

    /// Answers a request whose path it has.
    fn answer<'r>(&self, state: &'r HttpState, parts: &'r Parts, body: Body) -> BoxFuture<'r, Response>;
}

/// The interfaces of all protocols.
pub(crate) type Apis = &'static [&'static dyn Api];

/// A shared [`HttpContext`].
pub(crate) type HttpState = Arc<HttpContext>;

impl HttpContext {
    fn api_of(&self, path: &str) -> Option<&'static dyn Api> {
        self.apis.iter().copied().find(|api| api.has_path(path))
    }
}

impl probes::Operated for HttpContext {
    fn openmetrics(&self) -> String {
        self.metrics.openmetrics(Reader::Scrape)
    }

    fn not_ready(&self) -> Vec<String> {
        let reasons = self.node.readiness().err().map(|not_ready| not_ready.reasons).unwrap_or_default();
        reasons.iter().map(ToString::to_string).collect()
    }

    fn missing(&self) -> Vec<String> {
        self.node.missing()
    }

    fn stands_alone(&self) -> bool {
        self.node.config().backplane == BackplaneUrl::Memory
    }

    fn drain(&self) {
        self.node.drain();
    }

    fn internal_access(&self) -> &InternalAccess {
        &self.internal
    }

    fn refuse_page(&self) -> Response {
        ApiError::OriginRefused.into_response()
    }
}

/// Everything on the public port that is plain HTTP.
pub(crate) fn public_router(state: HttpState) -> Router {
    let mut router = Router::new().route("/openapi.json", get(openapi::serve)).merge(rest::routes());
    router = router.merge(probes::public_routes(Arc::clone(&state) as Arc<dyn probes::Operated>));
    if state.dev {
        router = router.merge(page::routes()).merge(console::routes(&state));
    }
    router
        .fallback(not_ours)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(Arc::clone(&state), access::cors))
        .with_state(state)
}

/// The internal port: metrics, probes, drain; the console, and the REST API for what it does with a key.
pub(crate) fn internal_router(state: HttpState) -> Router {
    let console = console::routes(&state).merge(console::guarded(rest::routes(), &state));
    let console = console.with_state(Arc::clone(&state));
    probes::routes(state).merge(console).fallback(not_found).method_not_allowed_fallback(method_not_allowed)
}

async fn not_found() -> ApiError {
    ApiError::NotFound
}

/// What is under none of our own paths may be under one of a protocol's.
async fn not_ours(State(state): State<HttpState>, request: Request) -> Response {
    let path = request.uri().path();
    if request.method() == Method::OPTIONS && path == "/" {
        // What HAProxy asks unless it is told otherwise; any refusal would take the node down.
        return probes::public_readiness(&*state).into_response();
    }
    if let Some(api) = state.api_of(path) {
        let (parts, body) = request.into_parts();
        return api.answer(&state, &parts, body).await;
    }
    match (state.is_shards)(Method::GET.as_str(), path) {
        true => not_for_a_shard(request).await,
        false if path == "/" => {
            page::front(request.headers()).unwrap_or_else(|| ApiError::NoSuchPath.into_response())
        }
        false => ApiError::NoSuchPath.into_response(),
    }
}

/// What comes here for a path of the shards: another method than theirs, or a body, which their protocols have no
/// place for.
async fn not_for_a_shard(request: Request) -> Response {
    if request.method() == Method::GET {
        return match request.body().is_end_stream() {
            // A router without shards before it.
            true => ApiError::NotFound.into_response(),
            false => ApiError::BodyTooLarge { max: 0 }.into_response(),
        };
    }
    let mut response = method_not_allowed(request.method().clone()).await;
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
    response
}

/// axum adds `Allow` to either answer where the router knows the methods.
async fn method_not_allowed(method: Method) -> Response {
    if method == Method::OPTIONS {
        return StatusCode::NO_CONTENT.into_response();
    }
    ApiError::MethodNotAllowed.into_response()
}

#[cfg(test)]
mod tests;
