//! The public port as hyper calls it: publishes and the interfaces of protocols go straight to their handlers, all else to the router.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Router,
    body::Body,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use http::{Method, Request};
use tower::ServiceExt;

use super::{ApiError, HttpState, access, public_router, rest::publish};
use crate::problem::{REFUSED, RefusedBecause};

/// One per process, cloned per connection: two shared pointers.
///
/// The router matches the path, copies its parameters and boxes the handler's future and both bodies. A publish
/// needs none of it, and it is the request whose number per second counts.
#[derive(Debug, Clone)]
pub(crate) struct PublicService {
    state: HttpState,
    router: Router,
}

impl PublicService {
    pub(crate) fn new(state: HttpState) -> Self {
        let router = public_router(Arc::clone(&state));
        Self { state, router }
    }

    /// Whether a path is that of a publish of one publication.
    pub(super) fn is_publish(&self, path: &str) -> bool {
        publish::segment(path).is_some() || self.state.api_of(path).is_some_and(|api| api.is_publish(path))
    }

    /// Answers one request. Never fails: what goes wrong is a problem document, and a line in the log.
    pub(crate) async fn call<B>(&self, request: Request<B>) -> Response
    where
        B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let is_told = tracing::enabled!(target: REFUSED, tracing::Level::DEBUG);
        let asked = is_told.then(|| (request.method().clone(), request.uri().clone()));
        let response = self.answer(request).await;
        if let (Some((method, uri)), Some(RefusedBecause(why))) = (asked, response.extensions().get()) {
            // Without the query, which may hold credentials.
            let (path, status) = (uri.path(), response.status().as_u16());
            tracing::debug!(target: REFUSED, "{method} {path}: {status} {why}");
        }
        response
    }

    async fn answer<B>(&self, request: Request<B>) -> Response
    where
        B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<axum::BoxError>,
    {
        if !access::admits(&self.state, request.headers()) {
            return ApiError::OriginRefused.into_response();
        }
        if access::is_coded(request.headers()) {
            let mut refused = ApiError::ContentCoding.into_response();
            if let Some(origin) = access::allowed_origin(&self.state, request.headers()) {
                access::allow(refused.headers_mut(), origin);
            }
            return refused;
        }
        if *request.method() == Method::POST && publish::segment(request.uri().path()).is_some() {
            return self.publish(request).await;
        }
        let api = self.state.api_of(request.uri().path()).filter(|_| !access::is_preflight(&request));
        if let Some(api) = api {
            let (parts, body) = request.into_parts();
            return api.answer(&self.state, &parts, Body::new(body)).await;
        }
        match self.router.clone().oneshot(request.map(Body::new)).await {
            Ok(response) => response,
            Err(infallible) => match infallible as Infallible {},
        }
    }

    async fn publish<B>(&self, request: Request<B>) -> Response
    where
        B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let (parts, body) = request.into_parts();
        let mut response = publish::answer(&self.state, &parts, body).await;
        if let Some(origin) = access::allowed_origin(&self.state, &parts.headers) {
            access::allow(response.headers_mut(), origin);
        }
        response
    }
}
