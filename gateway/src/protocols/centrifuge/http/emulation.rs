//! `POST /emulation`: commands of a client whose connection is an HTTP answer. They go to the node that has it, as an order.

use std::sync::LazyLock;

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{Method, StatusCode, header, request::Parts};
use tidegate_backplane::Target;
use tidegate_ops::budget::{Rate, SharedBudget};
use tidegate_wire::centrifuge::{Encoding, read_emulated};

use super::{
    super::{NAME, emulation},
    answer,
};
use crate::{
    auth::ApiKeyError,
    http::{Api, ApiError, HttpState, access, body},
    node::instruction::{Asked, What},
    problem::Place,
};

#[derive(Debug)]
pub(in crate::protocols) struct Emulation;

const PATH: &str = "/emulation";

/// Frames that one process sends to other nodes, a second. Each goes to all nodes: at 20 µs, this many take 4 % of a core
/// of each.
const FORWARDED: Rate = Rate { per_second: 2_000, at_once: 4_000 };

/// Longest session: a node's name, and numbers.
const SESSION_BYTES_MAX: usize = 512;

static TAKEN: LazyLock<SharedBudget> = LazyLock::new(SharedBudget::default);

impl Api for Emulation {
    fn has_path(&self, path: &str) -> bool {
        path == PATH
    }

    fn answer<'r>(&self, state: &'r HttpState, parts: &'r Parts, body: Body) -> BoxFuture<'r, Response> {
        answer_to(state, parts, body).boxed()
    }
}

async fn answer_to(state: &HttpState, parts: &Parts, body: Body) -> Response {
    let mut response = match emulate(state, parts, body).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => error.into_response(),
    };
    if let Some(origin) = access::allowed_origin(state, &parts.headers) {
        access::allow(response.headers_mut(), origin);
    }
    response
}

/// Whether the connection is there, and has sent this, its own node knows: the answer says that it was passed on.
async fn emulate(state: &HttpState, parts: &Parts, body: Body) -> Result<(), ApiError> {
    if parts.method != Method::POST {
        return Err(ApiError::MethodNotAllowed);
    }
    let max = state.node.config().limits.message_bytes.bytes();
    // In JSON a character may be six.
    let body = body::read(body, 6 * max + 1024).await?;
    let is_protobuf =
        parts.headers.get(header::CONTENT_TYPE).is_some_and(|it| it == "application/octet-stream");
    let encoding = if is_protobuf { Encoding::Protobuf } else { Encoding::Json };
    let (session, frame) = read_emulated(&body, encoding).map_err(|error| unreadable(&error))?;
    if frame.len() > max {
        return Err(ApiError::BodyTooLarge { max });
    }
    let Some((name, proof)) = emulation::split(&session).filter(|_| session.len() <= SESSION_BYTES_MAX)
    else {
        return Err(unreadable(&"session: no connection has this one"));
    };
    let text =
        serde_json::to_string(&(proof, STANDARD.encode(&frame))).map_err(|error| answer::invalid(&error))?;
    let what = What::Own { protocol: NAME.into(), text: text.into() };
    let asked = Asked { target: Target::Connection(name.into()), owner: None, what };
    if name.rsplit_once('.').is_some_and(|(node, _)| node == state.node.name()) {
        // Its connection may be about to go on in another process.
        return Ok(state.node.backplane().when_open(Box::new(|| state.node.instruct_here(asked))).await?);
    }
    TAKEN.take(FORWARDED, 1).map_err(|retry_after| ApiError::Key(ApiKeyError::Rate { retry_after }))?;
    Ok(state.node.instruct(asked).await?)
}

/// A body that is no request.
fn unreadable(why: &dyn std::fmt::Display) -> ApiError {
    let at = Place { line: 1, column: 1, path: ".".into() };
    ApiError::InvalidJson { reason: why.to_string().into(), at }
}
