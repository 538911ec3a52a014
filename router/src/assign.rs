//! `/v1/assign`: answers which gateway a key belongs to, for clients that connect to it directly.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use tidegate_ops::{
    budget::{Rate, SharedBudget},
    config::ConfigError,
};

use crate::{
    chooser::{Chooser, Node},
    config,
    key::KeyRule,
    metrics::{Assignment, Metrics},
    problem::Problem,
    url_template::UrlTemplate,
};

/// What answering needs.
#[derive(Debug)]
pub struct Assigner {
    chooser: Arc<Chooser>,
    metrics: Arc<Metrics>,
    rule: KeyRule,
    url: UrlTemplate,
    /// What a request must bring; a reload replaces it.
    key: ArcSwapOption<Box<str>>,
    keys_max: usize,
    lifetime: Duration,
    requests: SharedBudget,
    request_rate: Rate,
}

/// Whoever sent a request; the public port puts it into the request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Client(pub SocketAddr);

/// Where a client should connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Assigned<'k> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'k str>,
    node: Box<str>,
    url: Box<str>,
    /// Seconds since 1970.
    expires_at: u64,
}

/// The body of a `POST`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    keys: Vec<Box<str>>,
}

/// The answer to a `POST`, in the order of the keys.
#[derive(Debug, Serialize)]
struct Assignments<'k> {
    assignments: Vec<Assigned<'k>>,
}

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
enum AssignError {
    #[error("no gateway takes clients now")]
    NoNode,
    #[error("a key is needed: Authorization: Bearer KEY, with the one of assign.key_file")]
    Key,
    #[error("more is asked than assign.requests_per_second allows")]
    Rate { wait: Duration },
    #[error("the key is missing: `?key=…`, or what the router's rule `{0}` needs")]
    KeyMissing(KeyRule),
    #[error("the body is not {{\"keys\":[…]}}")]
    InvalidJson(serde_json::Error),
    #[error("the body has {number} keys; at least one and at most {max} are allowed")]
    Keys { number: usize, max: usize },
    #[error("the body is larger than {max} bytes")]
    BodyTooLarge { max: usize },
    #[error("the body was not complete after {} s", .0.as_secs())]
    BodyTimeout(Duration),
    #[error("the body ended before it was complete")]
    BodyIncomplete,
    #[error("this path takes application/json")]
    MediaType,
    #[error("this path answers GET and POST")]
    Method,
}

/// Where it is answered.
pub const PATH: &str = "/v1/assign";

/// A key of a URL's usual length with its quotes, its comma and some escapes.
const BYTES_PER_KEY: usize = 256;

/// Besides keys: the object, white space, one long key.
const BYTES_BESIDES: usize = 16 * 1024;

/// A body of 272 KiB passes at 220 kbit/s.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// What a client without a gateway is told to wait: a new member is known a second or two after it began.
const RETRY_AFTER: Duration = Duration::from_secs(2);

impl Assigner {
    /// `None`: it is off.
    ///
    /// # Errors
    /// [`ConfigError`]: the file with the key cannot be used.
    pub fn new(
        chooser: Arc<Chooser>,
        metrics: Arc<Metrics>,
        rule: KeyRule,
        options: &config::Assign,
    ) -> Result<Option<Self>, ConfigError> {
        let key = ArcSwapOption::from(options.key()?.map(Arc::new));
        let requests = SharedBudget::default();
        let request_rate = Rate { per_second: options.requests_per_second, at_once: options.requests_burst };
        let (keys_max, lifetime) = (options.keys as usize, options.lifetime);
        let on = |url| Self { chooser, metrics, rule, url, key, keys_max, lifetime, requests, request_rate };
        Ok(options.url.clone().map(on))
    }

    /// Reads the file with the key again.
    pub(crate) fn reload(&self, options: &config::Assign) -> Result<(), ConfigError> {
        self.key.store(options.key()?.map(Arc::new));
        Ok(())
    }

    /// The routes, without a fallback. Requests must carry [`Client`] in their extensions.
    pub fn routes(self: Arc<Self>) -> Router {
        let methods = get(one).post(batch).options(preflight).fallback(method);
        let admitted = middleware::from_fn_with_state(Arc::clone(&self), admit);
        Router::new()
            .route(PATH, methods)
            .layer(admitted)
            .layer(middleware::from_fn(for_pages))
            .with_state(self)
    }

    /// Whether a request may be answered. Preflights carry no credentials.
    fn admits(&self, request: &Request) -> Result<(), AssignError> {
        if request.method() == Method::OPTIONS {
            return Ok(());
        }
        self.requests.take(self.request_rate, 1).map_err(|wait| AssignError::Rate { wait })?;
        let Some(key) = &*self.key.load() else { return Ok(()) };
        let given =
            request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let given = given.strip_prefix(b"Bearer ").unwrap_or_default();
        match bool::from(given.ct_eq(key.as_bytes())) {
            true => Ok(()),
            false => Err(AssignError::Key),
        }
    }

    fn node(&self, key: &[u8]) -> Result<Arc<Node>, AssignError> {
        let mut candidates = self.chooser.candidates(key, Instant::now());
        let Some(node) = candidates.next() else {
            self.metrics.assignments.add(Assignment::NoNode, 1);
            return Err(AssignError::NoNode);
        };
        if let Some(passed_over) = candidates.passed_over() {
            self.metrics.note_passed_over(passed_over);
        }
        self.metrics.assignments.add(Assignment::Ok, 1);
        node.note_assigned();
        Ok(node)
    }

    fn assign<'k>(&self, key: &[u8], shown: Option<&'k str>) -> Result<Assigned<'k>, AssignError> {
        let node = self.node(key)?;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Assigned {
            key: shown,
            node: node.name().into(),
            url: self.url.fill(node.name(), &node.location().address),
            expires_at: (since_1970 + self.lifetime).as_secs(),
        })
    }
}

async fn admit(
    State(assigner): State<Arc<Assigner>>,
    request: Request,
    next: Next,
) -> Result<Response, AssignError> {
    assigner.admits(&request)?;
    Ok(next.run(request).await)
}

/// What answers where assign is off.
pub fn off() -> Router {
    Router::new().route(
        PATH,
        any(|| async {
            let detail =
                "this router brings clients to their gateways itself; assign.url turns /v1/assign on";
            Problem {
                name: "not-found",
                title: "Nothing here",
                status: StatusCode::NOT_FOUND,
                detail: detail.to_owned(),
            }
        }),
    )
}

async fn one(State(assigner): State<Arc<Assigner>>, request: Request) -> Result<Response, AssignError> {
    let (parts, _) = request.into_parts();
    let key = key_of(&assigner.rule, &parts).ok_or_else(|| AssignError::KeyMissing(assigner.rule.clone()))?;
    Ok(Json(assigner.assign(&key, None)?).into_response())
}

/// The query parameter `key`; without it, the key that this request has by the rule: where it would be proxied to. The
/// path of this request says nothing about another's.
fn key_of(rule: &KeyRule, parts: &Parts) -> Option<Vec<u8>> {
    let query = parts.uri.query();
    let given =
        query.and_then(|query| form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "key"));
    if let Some((_, key)) = given.filter(|(_, key)| !key.is_empty()) {
        return Some(key.into_owned().into_bytes());
    }
    let client = parts.extensions.get::<Client>()?.0;
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
    (*rule != KeyRule::Path)
        .then(|| rule.key_of_parts(parts.uri.path(), query, header, client).bytes.into_owned())
}

async fn batch(State(assigner): State<Arc<Assigner>>, request: Request) -> Result<Response, AssignError> {
    let (parts, body) = request.into_parts();
    if !is_json(&parts.headers) {
        return Err(AssignError::MediaType);
    }
    let max = assigner.keys_max;
    let body = read(body, max.saturating_mul(BYTES_PER_KEY).saturating_add(BYTES_BESIDES)).await?;
    let Batch { keys } = serde_json::from_slice(&body).map_err(AssignError::InvalidJson)?;
    if keys.is_empty() || keys.len() > max {
        return Err(AssignError::Keys { number: keys.len(), max });
    }
    let assignments: Result<Vec<_>, _> =
        keys.iter().map(|key| assigner.assign(key.as_bytes(), Some(key))).collect();
    Ok(Json(Assignments { assignments: assignments? }).into_response())
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

async fn read(body: Body, max: usize) -> Result<bytes::Bytes, AssignError> {
    let collected = tokio::time::timeout(BODY_DEADLINE, Limited::new(body, max).collect()).await;
    match collected.map_err(|_| AssignError::BodyTimeout(BODY_DEADLINE))? {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(AssignError::BodyTooLarge { max }),
        Err(_) => Err(AssignError::BodyIncomplete),
    }
}

async fn preflight() -> StatusCode {
    StatusCode::NO_CONTENT
}

async fn method() -> AssignError {
    AssignError::Method
}

/// The answer is public, as the address of the router is, and depends on the moment: pages of any origin may read it,
/// nobody may keep it.
async fn for_pages(request: Request, next: Next) -> Response {
    let is_preflight = request.method() == Method::OPTIONS;
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    if is_preflight {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, POST, OPTIONS"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static("authorization, content-type"),
        );
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
    response
}

impl IntoResponse for AssignError {
    fn into_response(self) -> Response {
        let (name, title, status) = match self {
            Self::NoNode => ("no-gateway", "No gateway takes clients", StatusCode::SERVICE_UNAVAILABLE),
            Self::Key => ("unauthorized", "The key is missing or wrong", StatusCode::UNAUTHORIZED),
            Self::Rate { .. } => ("too-many-requests", "Too many requests", StatusCode::TOO_MANY_REQUESTS),
            Self::KeyMissing(_) => ("key-missing", "A key is needed", StatusCode::BAD_REQUEST),
            Self::InvalidJson(_) => {
                ("invalid-json", "The JSON body is not what this path takes", StatusCode::BAD_REQUEST)
            }
            Self::Keys { .. } => {
                ("too-many-keys", "Too many keys in one request, or none", StatusCode::BAD_REQUEST)
            }
            Self::BodyTooLarge { .. } => {
                ("body-too-large", "The body is too large", StatusCode::PAYLOAD_TOO_LARGE)
            }
            Self::BodyTimeout(_) => ("body-timeout", "The body took too long", StatusCode::REQUEST_TIMEOUT),
            Self::BodyIncomplete => ("body-incomplete", "The body broke off", StatusCode::BAD_REQUEST),
            Self::MediaType => {
                ("unsupported-media-type", "Unsupported media type", StatusCode::UNSUPPORTED_MEDIA_TYPE)
            }
            Self::Method => ("method-not-allowed", "Method not allowed here", StatusCode::METHOD_NOT_ALLOWED),
        };
        let mut response = Problem { name, title, status, detail: self.to_string() }.into_response();
        let headers = response.headers_mut();
        match self {
            Self::NoNode => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER.as_secs()));
            }
            Self::Rate { wait } => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
            }
            Self::Key => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::Method => {
                headers.insert(header::ALLOW, HeaderValue::from_static("GET, POST, OPTIONS"));
            }
            // What is left of the body may still come.
            Self::BodyTooLarge { .. } | Self::BodyTimeout(_) | Self::BodyIncomplete => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests;
