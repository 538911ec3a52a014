//! The OpenAPI 3.1 document, generated from the handlers and the error type; `docs/openapi.json` is its golden.

use std::{sync::LazyLock, time::Duration};

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{StatusCode, header};
use serde_json::{Map, Value, json};
use tidegate_backplane::{BackplaneError, ChannelError};
use utoipa::OpenApi;

use super::{
    error::{ApiError, ParameterFault, ParameterPlace},
    rest,
};
use crate::{
    auth::ApiKeyError,
    event,
    problem::{PROBLEM_MEDIA_TYPE, Place, Problem},
};

#[derive(OpenApi)]
#[openapi(
    paths(
        rest::publish::publish,
        rest::publish_many,
        rest::publish_batch,
        rest::list_channels,
        rest::get_channel,
        rest::get_history,
        rest::get_presence,
        rest::disconnect,
        rest::subscribe,
        rest::unsubscribe,
        rest::refresh,
        rest::send,
        rest::list_connections,
        rest::list_nodes
    ),
    components(schemas(Problem, Place)),
    tags(
        (name = "publish", description = "Publishing to channels"),
        (name = "channels", description = "Reading channels"),
        (name = "admin", description = "Connections and nodes"),
    ),
)]
struct Document;

/// The document as it is served: rendered once.
static RENDERED: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(render()));

pub(super) async fn serve() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], RENDERED.clone()).into_response()
}

/// The document as text, indented, with a line feed at its end.
pub(super) fn render() -> String {
    let mut document = serde_json::to_value(Document::openapi()).unwrap_or_default();
    document["info"] = info();
    document["servers"] = json!([{"url": "/"}]);
    document["components"]["securitySchemes"] = json!({
        "api_key": {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key with the scope that the operation names: publish, read or admin."
        }
    });
    one_of(&mut document, "BatchEntry", &["channel", "channels"]);
    for order in ["Disconnect", "Subscribe", "Unsubscribe", "Refresh", "Send"] {
        one_of(&mut document, order, &["user", "connection"]);
    }
    let refresh = &mut document["components"]["schemas"]["Refresh"];
    refresh["allOf"] = json!([{"oneOf": [{"required": ["expires_at"]}, {"required": ["expired"]}]}]);
    refresh["properties"]["expired"]["enum"] = json!([true]);
    unique(&mut document, "PublishMany", "channels");
    unique(&mut document, "BatchEntry", "channels");
    close(&mut document, "Accepted");
    reserve_events(&mut document);
    // An empty payload is a payload, so a publish may come without a body.
    document["paths"]["/v1/channels/{channel}/publish"]["post"]["requestBody"]["required"] =
        Value::Bool(false);
    add_problems(&mut document);
    format!("{document:#}\n")
}

fn info() -> Value {
    json!({
        "title": "Tidegate",
        "version": env!("CARGO_PKG_VERSION"),
        "summary": "REST API of a Tidegate gateway node",
        "description": "Publish to channels, read them, and look after connections and nodes. Clients subscribe over WebSocket (`/ws`) and Server-Sent Events (`/sse`), which are not part of this document. Errors are RFC 9457 problem documents; docs/errors.md lists their types.",
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}
    })
}

/// Says that a schema needs exactly one of these members, which a Rust struct cannot.
fn one_of(document: &mut Value, schema: &str, members: &[&str]) {
    let choices: Vec<Value> = members.iter().map(|member| json!({"required": [member]})).collect();
    document["components"]["schemas"][schema]["oneOf"] = Value::Array(choices);
}

/// Says that a list names nothing twice.
fn unique(document: &mut Value, schema: &str, member: &str) {
    document["components"]["schemas"][schema]["properties"][member]["uniqueItems"] = Value::Bool(true);
}

/// Says that an empty object stays empty.
fn close(document: &mut Value, schema: &str) {
    document["components"]["schemas"][schema]["additionalProperties"] = Value::Bool(false);
}

/// Says which event names are the gateway's own, wherever a publication is given one.
fn reserve_events(document: &mut Value) {
    let names = json!({"enum": event::RESERVED});
    for schema in ["PublishMany", "BatchEntry", "Send"] {
        document["components"]["schemas"][schema]["properties"]["event"]["not"] = names.clone();
    }
    let publish = &mut document["paths"]["/v1/channels/{channel}/publish"]["post"]["parameters"];
    let parameters = publish.as_array_mut().into_iter().flatten();
    for parameter in parameters.filter(|parameter| parameter["name"] == "event") {
        parameter["schema"]["not"] = names.clone();
    }
}

/// Names every refusal an operation can answer. Each is a component of its own, with examples that the error
/// type itself rendered.
fn add_problems(document: &mut Value) {
    let mut responses = Map::new();
    for status in STATUSES {
        responses.insert(component(*status), problem_response(*status));
    }
    document["components"]["responses"] = Value::Object(responses);
    let Some(paths) = document["paths"].as_object_mut() else { return };
    for operation in paths.values_mut().filter_map(Value::as_object_mut).flat_map(Map::values_mut) {
        let takes_body = operation.get("requestBody").is_some();
        let id = operation["operationId"].as_str().unwrap_or_default().to_owned();
        for status in STATUSES.iter().filter(|status| applies(**status, &id, takes_body)) {
            let reference = format!("#/components/responses/{}", component(*status));
            operation["responses"][status.as_str()] = json!({"$ref": reference});
        }
    }
}

/// Every status a problem has on this API.
const STATUSES: &[StatusCode] = &[
    StatusCode::BAD_REQUEST,
    StatusCode::UNAUTHORIZED,
    StatusCode::FORBIDDEN,
    StatusCode::NOT_FOUND,
    StatusCode::REQUEST_TIMEOUT,
    StatusCode::PAYLOAD_TOO_LARGE,
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
    StatusCode::TOO_MANY_REQUESTS,
    StatusCode::SERVICE_UNAVAILABLE,
];

/// Whether an operation can answer with this status.
fn applies(status: StatusCode, operation: &str, takes_body: bool) -> bool {
    match status {
        StatusCode::NOT_FOUND => operation == "getPresence",
        StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE => takes_body,
        StatusCode::UNSUPPORTED_MEDIA_TYPE => takes_body && operation != "publish",
        // The only two that the node answers from its own memory.
        StatusCode::SERVICE_UNAVAILABLE => !matches!(operation, "listChannels" | "getChannel"),
        _ => true,
    }
}

fn component(status: StatusCode) -> String {
    status.canonical_reason().unwrap_or_default().replace(' ', "")
}

fn problem_response(status: StatusCode) -> Value {
    let errors: Vec<ApiError> = samples().into_iter().filter(|error| error.status() == status).collect();
    let examples: Map<String, Value> = errors
        .iter()
        .map(|error| {
            (error.kind().0.to_owned(), json!({"summary": error.kind().1, "value": error.problem()}))
        })
        .collect();
    let schema = json!({"$ref": "#/components/schemas/Problem"});
    let mut response = json!({
        "description": description(&errors),
        "content": {PROBLEM_MEDIA_TYPE: {"schema": schema, "examples": examples}}
    });
    let mut headers = Map::new();
    if errors.iter().any(|error| error.retry_after().is_some()) {
        let schema = json!({"type": "integer", "minimum": 1});
        headers
            .insert("Retry-After".to_owned(), json!({"description": "Seconds to wait.", "schema": schema}));
    }
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        let schema = json!({"type": "string"});
        let description = "The challenge of RFC 6750.";
        headers.insert("WWW-Authenticate".to_owned(), json!({"description": description, "schema": schema}));
    }
    if !headers.is_empty() {
        response["headers"] = Value::Object(headers);
    }
    response
}

fn description(errors: &[ApiError]) -> String {
    let titles: Vec<&str> = errors.iter().map(|error| error.kind().1).collect();
    format!("{}.", titles.join("; "))
}

/// One of each kind of error the API answers, for the examples.
pub(super) fn samples() -> Vec<ApiError> {
    let at = Place { line: 1, column: 30, path: "channels[1]".into() };
    let number = ParameterFault::Number { min: 1, max: 1000 };
    vec![
        ApiError::InvalidJson { reason: "the channel name is empty".into(), at },
        ApiError::InvalidChannel(ChannelError::Character { character: ' ', at: 4 }),
        ApiError::InvalidParameter { place: ParameterPlace::Query, name: "limit".into(), fault: number },
        ApiError::InvalidText { valid_up_to: 12 },
        ApiError::BodyIncomplete,
        ApiError::TooManyPublications { number: 1200, max: rest::PUBLICATIONS_MAX },
        ApiError::Key(ApiKeyError::Missing),
        ApiError::Key(ApiKeyError::Channel),
        ApiError::Key(ApiKeyError::Rate { retry_after: Duration::from_secs(1) }),
        ApiError::PresenceOff,
        ApiError::BodyTimeout(super::body::BODY_DEADLINE),
        ApiError::BodyTooLarge { max: 1_048_576 },
        ApiError::PayloadTooLarge { bytes: 70_000, max: 65_536 },
        ApiError::UnsupportedMediaType,
        ApiError::Overloaded { retry_after: Duration::from_secs(1) },
        ApiError::Backplane(BackplaneError::Unavailable("connection refused".into())),
        ApiError::Backplane(BackplaneError::Overloaded("16 MiB wait for answers".into())),
        ApiError::Backplane(BackplaneError::Unconfirmed("the connection broke".into())),
    ]
}
