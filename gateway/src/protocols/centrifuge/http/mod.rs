//! Centrifugo's server API under `/api`, and commands of clients that send them by requests of their own (`emulation`): what an application's servers ask. `docs/centrifuge-api.md` lists it.
//!
//! `/api/METHOD` takes the parameters of one method, `/api` whole commands. Either way the key of the request is found, and
//! each command is checked against what it may do. `publishing`, `reading` and `ordering` carry them out, with what `/v1`
//! and the clients' own commands use.

mod answer;
mod emulation;
mod ordering;
mod publishing;
mod reading;
mod request;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{
    FutureExt as _,
    future::BoxFuture,
    stream::{self, StreamExt as _},
};
use http::{HeaderMap, HeaderValue, Method, header, request::Parts};
use serde::Deserialize;
use serde_json::value::RawValue;
use tidegate_backplane::Channel;
use tidegate_wire::centrifuge::code::ErrorCode;

use self::answer::{Refused, parameters, put_reply};
pub(in crate::protocols) use self::emulation::Emulation;
use crate::{
    app::apps::AppId,
    auth::{ApiKey, ApiKeyError, Scope, bearer},
    http::{Api, ApiError, HttpState, access, body},
    metrics::PublishCode,
};

/// Where every path of this API begins.
const API: &str = "/api";

/// Commands in one request, as publications of one batch of `/v1`.
const COMMANDS_MAX: usize = 1000;

/// Commands of a parallel batch that are under way together: as many as an answer of 16 MiB has histories.
const PARALLEL_MAX: usize = 16;

/// What the answers to one request may have together; a history has 1 MiB at most. What follows is not carried out.
const ANSWERS_BYTES_MAX: usize = 16 << 20;

#[derive(Debug)]
pub(in crate::protocols) struct ServerApi;

/// The result of a command: a JSON object.
type Answer = Result<Vec<u8>, Refused>;

/// A request whose key is known.
struct Call<'r> {
    state: &'r HttpState,
    key: Arc<ApiKey>,
    /// Of the answers so far.
    answers_bytes: AtomicUsize,
}

/// A command as `/api` itself takes it.
#[derive(Deserialize)]
struct Command<'a> {
    id: Option<u32>,
    method: Box<str>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

/// The parameters of `batch`: each command an object whose one member is the method.
#[derive(Deserialize)]
struct Batch<'a> {
    #[serde(borrow)]
    commands: Vec<BTreeMap<Box<str>, &'a RawValue>>,
    parallel: Option<bool>,
}

impl Api for ServerApi {
    fn has_path(&self, path: &str) -> bool {
        path.strip_prefix(API).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    fn is_publish(&self, path: &str) -> bool {
        path.strip_prefix(API) == Some("/publish")
    }

    fn answer<'r>(&self, state: &'r HttpState, parts: &'r Parts, body: Body) -> BoxFuture<'r, Response> {
        answer(state, parts, body).boxed()
    }
}

async fn answer(state: &HttpState, parts: &Parts, body: Body) -> Response {
    let path = parts.uri.path().strip_prefix(API).unwrap_or_default();
    let method = path.strip_prefix('/').filter(|method| !method.is_empty());
    let response = match route(state, parts, method, body).await {
        Ok(json) => {
            let mut response = Response::new(Body::from(json));
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            response
        }
        Err(error) => error.into_response(),
    };
    if method.is_none_or(|method| matches!(method, "publish" | "broadcast" | "batch")) {
        state.metrics.http.publish_requests.add(PublishCode::of(response.status().as_u16()), 1);
    }
    response
}

async fn route(
    state: &HttpState,
    parts: &Parts,
    method: Option<&str>,
    body: Body,
) -> Result<Vec<u8>, ApiError> {
    let key = key(&parts.headers).map(|presented| state.keys.identify(presented));
    let key = key.and_then(|key| key).map_err(|error| access::refuse(state, error))?;
    if parts.method != Method::POST {
        return Err(ApiError::MethodNotAllowed);
    }
    let body = body::read(body, state.node.limits().body_bytes_max).await?;
    let call = Call { state, key, answers_bytes: AtomicUsize::new(0) };
    match method {
        Some(method) => call.method(method, &body).await,
        None => call.commands(&body).await,
    }
}

/// The key of a request: by the header that is this API's own, or by `authorization`.
fn key(headers: &HeaderMap) -> Result<Option<&str>, ApiKeyError> {
    let text = |name| match headers.contains_key(&name) {
        // One that cannot be read, or is given twice, is no key that is known.
        true => access::single(headers, &name).and_then(|value| value.to_str().ok()).map(Some),
        false => Some(None),
    };
    let own = text(header::HeaderName::from_static("x-api-key")).ok_or(ApiKeyError::Unknown)?;
    let authorization = text(header::AUTHORIZATION).ok_or(ApiKeyError::Unknown)?;
    let of_scheme = |text| {
        let scheme = str::split_once(text, ' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("apikey"));
        scheme.map(|(_, key)| key.trim()).or_else(|| bearer(text))
    };
    Ok(own.or_else(|| authorization.and_then(of_scheme)))
}

impl Call<'_> {
    /// `/api/METHOD`. A body that is not what the method takes is no command; anything else is an answer.
    async fn method(&self, method: &str, body: &Bytes) -> Result<Vec<u8>, ApiError> {
        if !METHODS.contains(&method) {
            return Err(ApiError::NotFound);
        }
        let answer = match method {
            // Its answer is no result.
            "batch" => match self.batch(body).await {
                Ok(replies) => return Ok(replies),
                Err(refused) => Err(refused),
            },
            _ => self.run(method, body).await,
        };
        match answer {
            Err(Refused::Json(error)) => Err(answer::invalid(&error)),
            answer => {
                let mut json = Vec::with_capacity(64);
                put_reply(None, answer, &mut json);
                Ok(json)
            }
        }
    }

    /// `/api`: a command, or many, one after the other; a reply for each, one a line.
    async fn commands(&self, body: &Bytes) -> Result<Vec<u8>, ApiError> {
        let read = serde_json::Deserializer::from_slice(body).into_iter::<Command<'_>>();
        let commands: Vec<Command<'_>> =
            read.take(COMMANDS_MAX + 1).collect::<Result<_, _>>().map_err(|error| answer::invalid(&error))?;
        if commands.is_empty() || commands.len() > COMMANDS_MAX {
            return Err(ApiError::TooManyPublications { number: commands.len(), max: COMMANDS_MAX });
        }
        let mut json = Vec::with_capacity(64 * commands.len());
        for Command { id, method, params } in commands {
            if !json.is_empty() {
                json.push(b'\n');
            }
            let params = params.map_or(&b"{}"[..], |params| params.get().as_bytes());
            put_reply(id, self.run(&method, &body.slice_ref_or_copy(params)).await, &mut json);
        }
        Ok(json)
    }

    /// Many commands, and their replies in the same order. Those of one that is not parallel are carried out one after the
    /// other.
    async fn batch(&self, body: &Bytes) -> Answer {
        let Batch { commands, parallel } = parameters(body)?;
        if commands.len() > COMMANDS_MAX {
            return Err(Refused::because(
                ErrorCode::LimitExceeded,
                format!("a batch has at most {COMMANDS_MAX} commands"),
            ));
        }
        let run = |command| self.run_of_batch(body, command).boxed();
        let replies: Vec<BoxFuture<'_, _>> = commands.into_iter().map(run).collect();
        let at_once = if parallel.unwrap_or_default() { PARALLEL_MAX } else { 1 };
        let replies = stream::iter(replies).buffered(at_once);
        Ok(answer::replies(replies.collect().await))
    }

    async fn run_of_batch(&self, body: &Bytes, command: BTreeMap<Box<str>, &RawValue>) -> (Box<str>, Answer) {
        let mut members = command.into_iter();
        let (Some((method, params)), None) = (members.next(), members.next()) else {
            let answer = Err(Refused::bad("a command of a batch has one member, its method"));
            return (Box::default(), answer);
        };
        let answer = self.run(&method, &body.slice_ref_or_copy(params.get().as_bytes())).await;
        (method, answer)
    }

    /// Carries out a command, unless those before it have taken the room for answers.
    async fn run(&self, method: &str, params: &Bytes) -> Answer {
        if self.answers_bytes.load(Relaxed) > ANSWERS_BYTES_MAX {
            return Err(Refused::because(
                ErrorCode::LimitExceeded,
                format!("the answers before it have more than {} MiB", ANSWERS_BYTES_MAX >> 20),
            ));
        }
        let answer = self.carry_out(method, params).await;
        self.answers_bytes.fetch_add(answer.as_ref().map_or(0, Vec::len), Relaxed);
        answer
    }

    async fn carry_out(&self, method: &str, params: &Bytes) -> Answer {
        match method {
            "publish" => self.publish(params).await,
            "broadcast" => self.broadcast(params).await,
            "subscribe" => self.subscribe(params).await,
            "unsubscribe" => self.unsubscribe(params).await,
            "disconnect" => self.disconnect(params).await,
            "refresh" => self.refresh(params).await,
            "presence" => self.presence(params).await,
            "presence_stats" => self.presence_stats(params).await,
            "history" => self.history(params).await,
            "channels" => self.channels(params).await,
            "info" => self.info().await,
            "history_remove" => self.history_remove(params).await,
            _ => {
                Err(Refused::because(ErrorCode::MethodNotFound, method.chars().take(64).collect::<String>()))
            }
        }
    }

    /// Whether the key may do this; a refusal is counted.
    fn check(&self, scope: Scope, channel: Option<&Channel>) -> Result<(), Refused> {
        self.key.check(scope, channel).map_err(|error| {
            let refused = access::refuse(self.state, error);
            Refused::because(ErrorCode::PermissionDenied, refused.to_string())
        })
    }

    /// The channel of a name in the app of the key, if the key may do this in it.
    fn channel(&self, scope: Scope, name: &str) -> Result<Channel, Refused> {
        if name.is_empty() {
            return Err(Refused::bad("it needs a channel"));
        }
        let bad = |error: tidegate_backplane::ChannelError| Refused::bad(error.to_string());
        let channel = Channel::new(name).map_err(bad)?;
        self.check(scope, Some(&channel))?;
        AppId::channel(self.app(), channel.name()).map_err(bad)
    }

    fn app(&self) -> Option<&str> {
        self.key.app().map(AppId::as_str)
    }
}

/// The paths under `/api/`. `rpc` has one because its clients ask for it; nobody answers.
const METHODS: [&str; 14] = [
    "publish",
    "broadcast",
    "subscribe",
    "unsubscribe",
    "disconnect",
    "refresh",
    "presence",
    "presence_stats",
    "history",
    "history_remove",
    "channels",
    "info",
    "batch",
    "rpc",
];

/// An empty result.
const NOTHING: &[u8] = b"{}";

fn nothing() -> Answer {
    Ok(NOTHING.to_vec())
}

/// A part of a body, in its memory where it is one.
trait Part {
    fn slice_ref_or_copy(&self, part: &[u8]) -> Bytes;
}

impl Part for Bytes {
    fn slice_ref_or_copy(&self, part: &[u8]) -> Bytes {
        match self.as_ptr_range().contains(&part.as_ptr()) {
            true => self.slice_ref(part),
            false => Bytes::copy_from_slice(part),
        }
    }
}
