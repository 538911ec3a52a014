//! Pusher's HTTP API under `/apps/{id}/`: signed requests of an app's servers. `docs/pusher-http.md` lists them.
//!
//! A request takes the same way whichever port or router it came through: its app is found, its signature checked
//! (`signed`), and only then its body read. `events` publishes, `channels` answers from presence.

mod channels;
mod error;
mod events;
mod signed;

use std::{borrow::Cow, sync::Arc};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderValue, Method, StatusCode, header, request::Parts};
use tidegate_backplane::{Channel, Target};
use tidegate_wire::{
    head::percent_decode,
    pusher::{ChannelKind, check_name},
};

use self::{error::PusherError, signed::Parameters};
use crate::{
    app::apps::App,
    http::{Api, HttpState, body},
    metrics::PublishCode,
};

/// Where every path of this API begins.
const APPS: &str = "/apps/";

/// What a request asks for, by its method and path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint<'p> {
    Events,
    BatchEvents,
    /// The way to publish before there was `/events`: name and sender in the query, the body is the data.
    ChannelEvents(&'p str),
    Channels,
    Channel(&'p str),
    Users(&'p str),
    Terminate(&'p str),
}

/// A request that was found to be its app's.
struct Call<'r> {
    state: &'r HttpState,
    app: Arc<App>,
    parameters: Parameters<'r>,
}

#[derive(Debug)]
pub(in crate::protocols) struct SignedApi;

impl Api for SignedApi {
    fn has_path(&self, path: &str) -> bool {
        path.starts_with(APPS)
    }

    fn answer<'r>(&self, state: &'r HttpState, parts: &'r Parts, body: Body) -> BoxFuture<'r, Response> {
        answer(state, parts, body).boxed()
    }
}

async fn answer(state: &HttpState, parts: &Parts, body: Body) -> Response {
    let response = match route(state, parts, body).await {
        Ok((status, body)) => json(status, body),
        Err(error) => error.into_response(),
    };
    if parts.method == Method::POST {
        state.metrics.http.publish_requests.add(PublishCode::of(response.status().as_u16()), 1);
    }
    response
}

async fn route(state: &HttpState, parts: &Parts, body: Body) -> Result<(StatusCode, Bytes), PusherError> {
    let (id, rest) = parts
        .uri
        .path()
        .strip_prefix(APPS)
        .and_then(|path| path.split_once('/'))
        .ok_or(PusherError::NotFound)?;
    let app = state.apps.by_id(id).ok_or(PusherError::UnknownApp)?;
    let parameters = signed::verify(&app, &parts.method, &parts.uri)?;
    if !app.enabled {
        return Err(PusherError::AppDisabled);
    }
    // After the signature: who cannot sign does not learn which paths there are.
    let endpoint = Endpoint::of(&parts.method, rest)?;
    let body = body::read(body, state.node.limits().body_bytes_max).await.map_err(PusherError::Body)?;
    signed::verify_body(&parameters, &body)?;
    let call = Call { state, app, parameters };
    let answer = match endpoint {
        Endpoint::Events if body.is_empty() => call.events_of_query().await,
        Endpoint::Events => call.events(&body).await,
        Endpoint::BatchEvents => call.batch_events(&body).await,
        Endpoint::ChannelEvents(channel) => {
            let answer = call.channel_events(channel, body).await?;
            // The older way has its older answer.
            return Ok((StatusCode::ACCEPTED, answer));
        }
        Endpoint::Channels => call.channels().await,
        Endpoint::Channel(channel) => call.channel(channel).await,
        Endpoint::Users(channel) => call.users(channel).await,
        Endpoint::Terminate(user) => call.terminate(user).await,
    }?;
    Ok((StatusCode::OK, answer))
}

impl<'p> Endpoint<'p> {
    /// From a path under `/apps/{id}/`.
    fn of(method: &Method, path: &'p str) -> Result<Self, PusherError> {
        let mut segments = path.split('/');
        let path = [(); 4].map(|()| segments.next());
        let (endpoint, method_of) = match path {
            [Some("events"), None, ..] => (Self::Events, Method::POST),
            [Some("batch_events"), None, ..] => (Self::BatchEvents, Method::POST),
            [Some("channels"), None, ..] => (Self::Channels, Method::GET),
            [Some("channels"), Some(channel), None, _] => (Self::Channel(channel), Method::GET),
            [Some("channels"), Some(channel), Some("users"), None] => (Self::Users(channel), Method::GET),
            [Some("channels"), Some(channel), Some("events"), None] => {
                (Self::ChannelEvents(channel), Method::POST)
            }
            [Some("users"), Some(user), Some("terminate_connections"), None] => {
                (Self::Terminate(user), Method::POST)
            }
            _ => return Err(PusherError::NotFound),
        };
        if *method == method_of {
            Ok(endpoint)
        } else {
            Err(PusherError::MethodNotAllowed { allow: method_of })
        }
    }
}

impl Call<'_> {
    /// A channel of the app by the name that it is given in a body or a query.
    fn named(&self, name: &str) -> Result<(Channel, ChannelKind), PusherError> {
        let kind = check_name(name, self.app.limits.channel_name_bytes as usize)
            .map_err(|error| PusherError::Channel { name: name.chars().take(64).collect(), error })?;
        let channel = self.app.channel(name);
        Ok((channel.map_err(PusherError::Inside)?, kind))
    }

    /// The same from a path.
    fn in_path(&self, segment: &str) -> Result<(Channel, ChannelKind), PusherError> {
        self.named(&decoded(segment))
    }

    /// Closes the connections that are signed in as this user, on all nodes.
    async fn terminate(&self, user: &str) -> Result<Bytes, PusherError> {
        let user = percent_decode(user).map_err(|_| PusherError::UserId)?;
        if user.is_empty() {
            return Err(PusherError::NotFound);
        }
        let target = Target::User { app: self.app.prefix().map(Box::from), user: user.as_ref().into() };
        self.state.node.disconnect(target, TERMINATED.into()).await.map_err(PusherError::Backplane)?;
        Ok(NOTHING)
    }
}

/// What a terminated client is told.
const TERMINATED: &str = "the app has terminated this user's connections";

/// The answer where there is nothing to say. Server SDKs compare it, or parse it.
const NOTHING: Bytes = Bytes::from_static(b"{}");

fn decoded(segment: &str) -> Cow<'_, str> {
    percent_encoding::percent_decode_str(segment).decode_utf8_lossy()
}

/// A success with a JSON body.
fn json(status: StatusCode, body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
