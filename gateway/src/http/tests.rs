//! The routers as clients see them: a table per endpoint, each row a request and what it is answered.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, path::Path, pin::Pin, sync::Arc, task::Poll};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Frame;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::{
    auth::{ApiKey, Scope},
    metrics::{AuthFailure, Bounds, PublishCode},
};

const ALL: &str = "all-all-all-all";
const NEWS: &str = "news-news-news";
const READER: &str = "reader-reader";
const ORIGIN: &str = "https://app.example.org";
const PAYLOAD_MAX: usize = 64 * 1024;

fn keys() -> ApiKeys {
    let all = vec![Scope::Publish, Scope::Read, Scope::Admin];
    ApiKeys(vec![
        ApiKey { secret: ALL.into(), scopes: all, prefix: "".into() },
        ApiKey { secret: NEWS.into(), scopes: vec![Scope::Publish, Scope::Read], prefix: "news".into() },
        ApiKey { secret: READER.into(), scopes: vec![Scope::Read], prefix: "".into() },
    ])
}

fn origins() -> Origins {
    Origins(vec![ORIGIN.into()])
}

fn context(dev: bool) -> HttpState {
    Arc::new(HttpContext {
        node: Arc::new(Node::default()),
        keys: Arc::new(keys()),
        origins: Arc::new(origins()),
        metrics: Arc::new(Metrics::new(Bounds::default())),
        dev,
    })
}

/// A request with the key that may do everything, unless its headers say otherwise.
struct Ask(Request<Body>);

fn ask(method: &str, uri: &str) -> Ask {
    let request = Request::builder().method(method).uri(uri).header("host", "localhost:8000");
    Ask(request.body(Body::empty()).unwrap()).header("authorization", &format!("Bearer {ALL}"))
}

fn post(uri: &str, body: impl Into<Body>) -> Ask {
    let mut ask = ask("POST", uri);
    *ask.0.body_mut() = body.into();
    ask
}

fn post_json(uri: &str, body: &Value) -> Ask {
    post(uri, body.to_string()).header("content-type", "application/json")
}

fn get(uri: &str) -> Ask {
    ask("GET", uri)
}

impl Ask {
    fn header(mut self, name: &'static str, value: &str) -> Self {
        self.0.headers_mut().insert(name, value.parse().unwrap());
        self
    }

    fn key(self, key: &str) -> Self {
        self.header("authorization", &format!("Bearer {key}"))
    }

    fn without(mut self, name: &str) -> Self {
        self.0.headers_mut().remove(name);
        self
    }

    async fn of(self, state: &HttpState) -> Answer {
        self.through(public_router(Arc::clone(state))).await
    }

    async fn through(self, router: Router) -> Answer {
        Answer::read(router.oneshot(self.0).await.unwrap()).await
    }
}

#[derive(Debug, PartialEq)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    async fn read(response: axum::response::Response) -> Self {
        let (parts, body) = response.into_parts();
        let mut headers = parts.headers;
        // axum writes it, and so does hyper where axum did not.
        headers.remove("content-length");
        Self { status: parts.status, headers, body: body.collect().await.unwrap().to_bytes() }
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    /// Checks the status and that the body is what was expected, in full.
    #[track_caller]
    fn is(&self, status: u16, expect: Value) -> &Self {
        assert_eq!((self.status.as_u16(), self.json()), (status, expect));
        assert_eq!(self.header("content-type"), "application/json");
        self
    }

    /// Checks that it is a problem document of one kind, and consistent with the status line.
    #[track_caller]
    fn is_problem(&self, status: u16, kind: &str) -> &Self {
        let json = self.json();
        assert_eq!(
            (self.status.as_u16(), json["type"].as_str().unwrap()),
            (status, &*format!("urn:tidegate:problem:{kind}")),
            "{json}"
        );
        assert_eq!(json["status"], status);
        assert_eq!(self.header("content-type"), PROBLEM_MEDIA_TYPE);
        assert!(!json["title"].as_str().unwrap().is_empty() && !json["detail"].as_str().unwrap().is_empty(), "{json}");
        self
    }
}

#[tokio::test]
async fn publish_takes_the_body_verbatim() {
    let state = context(false);
    let path = "/v1/channels/news/publish";
    post(path, "{ \"a\" : 1 }")
        .header("content-type", "application/json")
        .of(&state)
        .await
        .is(200, json!({"epoch": "k3", "offset": 1}));
    post(path, &b"\xff\x00"[..])
        .header("content-type", "Application/Octet-Stream; x=y")
        .of(&state)
        .await
        .is(200, json!({"epoch": "k3", "offset": 2}));
    post(&format!("{path}?event=tick%20%C3%A9"), "").of(&state).await.is(200, json!({"epoch": "k3", "offset": 3}));
    post("/v1/channels/plain:x/publish", "x").of(&state).await.is(200, json!({"epoch": null, "offset": null}));
    post("/v1/channels/news%2Fa%23b/publish", "x").of(&state).await.is(200, json!({"epoch": "k3", "offset": 1}));
    let history = get("/v1/channels/news/history").of(&state).await;
    history.is(
        200,
        json!({
            "publications": [
                {"epoch": "k3", "offset": 1, "data": "{ \"a\" : 1 }"},
                {"epoch": "k3", "offset": 2, "data_base64": "/wA="},
                {"epoch": "k3", "offset": 3, "event": "tick é", "data": ""},
            ],
            "epoch": "k3", "offset": 3, "continuous": true,
        }),
    );
}

#[tokio::test]
async fn publish_once_per_idempotency_key() {
    let state = context(false);
    let once = || post("/v1/channels/news/publish", "x").header("idempotency-key", "order-17");
    once().of(&state).await.is(200, json!({"epoch": "k3", "offset": 1}));
    once().of(&state).await.is(200, json!({"epoch": "k3", "offset": 1, "duplicate": true}));
}

#[tokio::test]
async fn publish_refuses() {
    let state = context(false);
    let path = "/v1/channels/news/publish";
    let long = "x".repeat(PAYLOAD_MAX + 1);
    let rows = [
        (post("/v1/channels/sp%20ace/publish", "x"), 400, "invalid-channel"),
        (post("/v1/channels/%ff/publish", "x"), 400, "invalid-channel"),
        (post(&format!("/v1/channels/{}/publish", "a".repeat(201)), "x"), 400, "invalid-channel"),
        (post(path, &b"caf\xe9"[..]), 400, "invalid-text"),
        (post(&format!("{path}?evnt=x"), "x"), 400, "invalid-parameter"),
        (post(&format!("{path}?event=a&event=b"), "x"), 400, "invalid-parameter"),
        (post(&format!("{path}?event="), "x"), 400, "invalid-parameter"),
        (post(&format!("{path}?event=a%0Ab"), "x"), 400, "invalid-parameter"),
        (post(path, "x").header("idempotency-key", "two words"), 400, "invalid-parameter"),
        (post(path, "x").header("idempotency-key", &"k".repeat(129)), 400, "invalid-parameter"),
        (post(path, "x").without("authorization"), 401, "unauthorized"),
        (post("/v1/channels/sp%20ace/publish", "x").without("authorization"), 401, "unauthorized"),
        (post(path, "x").header("authorization", "Basic eDp5"), 401, "unauthorized"),
        (post(path, "x").key("wrong"), 401, "unauthorized"),
        (post(path, "x").key(READER), 403, "forbidden"),
        (post("/v1/channels/sport/publish", "x").key(NEWS), 403, "forbidden"),
        (post(path, long), 413, "body-too-large"),
        (get(path), 405, "method-not-allowed"),
        (post("/v1/channels/full/publish", "x"), 503, "overloaded"),
        (post("/v1/channels/gone/publish", "x"), 503, "backplane-unavailable"),
    ];
    for (ask, status, kind) in rows {
        ask.of(&state).await.is_problem(status, kind);
    }
    let metrics = &state.metrics;
    assert_eq!(metrics.http.publish_requests.get(PublishCode::BadRequest), 10);
    assert_eq!(metrics.http.publish_requests.get(PublishCode::TooLarge), 1);
    assert_eq!(metrics.http.publish_requests.get(PublishCode::Unavailable), 2);
    assert_eq!(metrics.node.auth_failures.get(AuthFailure::KeyMissing), 3);
    assert_eq!(metrics.node.auth_failures.get(AuthFailure::KeyUnknown), 1);
    assert_eq!(metrics.node.auth_failures.get(AuthFailure::KeyScope), 1);
    assert_eq!(metrics.node.auth_failures.get(AuthFailure::KeyChannel), 1);
    assert!(state.node.channels("", None, 10).is_empty(), "a refused publish published");
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let state = context(false);
    let path = "/v1/channels/news/publish";
    let missing = post(path, "x").without("authorization").of(&state).await;
    assert_eq!(missing.header("www-authenticate"), r#"Bearer realm="tidegate""#);
    let wrong = post(path, "x").key("wrong").of(&state).await;
    assert_eq!(wrong.header("www-authenticate"), r#"Bearer realm="tidegate", error="invalid_token""#);
    let scope = post(path, "x").key(READER).of(&state).await;
    assert_eq!(scope.header("www-authenticate"), r#"Bearer realm="tidegate", error="insufficient_scope""#);
    let full = post("/v1/channels/full/publish", "x").of(&state).await;
    assert_eq!(full.header("retry-after"), "2", "1.5 s are rounded up");
    let gone = post("/v1/channels/gone/publish", "x").of(&state).await;
    assert_eq!(gone.header("retry-after"), "1");
    assert_eq!(get(path).of(&state).await.header("allow"), "POST");
    assert_eq!(post("/v1/channels", "").of(&state).await.header("allow"), "GET,HEAD");
    let channel = post("/v1/channels/a%20b/publish", "x").of(&state).await;
    assert_eq!(
        channel.json()["detail"],
        "the channel name has ' ' at byte 1; allowed are letters, digits and _-=@,.;:#/"
    );
}

/// A body in pieces without a declared length; it can end, break, or stall.
struct Pieces {
    pieces: std::vec::IntoIter<&'static [u8]>,
    end: End,
}

#[derive(Clone, Copy)]
enum End {
    Whole,
    Broken,
    Stalled,
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match (self.pieces.next(), self.end) {
            (Some(piece), _) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(piece))))),
            (None, End::Whole) => Poll::Ready(None),
            (None, End::Broken) => Poll::Ready(Some(Err(std::io::ErrorKind::UnexpectedEof.into()))),
            (None, End::Stalled) => Poll::Pending,
        }
    }
}

fn pieces(pieces: Vec<&'static [u8]>, end: End) -> Body {
    Body::new(Pieces { pieces: pieces.into_iter(), end })
}

#[tokio::test(start_paused = true)]
async fn bodies_are_bounded_while_they_arrive() {
    static BLOCK: [u8; 32 * 1024] = [b'x'; 32 * 1024];
    let state = context(false);
    let path = "/v1/channels/news/publish";
    post(path, pieces(vec![b"he", b"ll", b"", b"o"], End::Whole))
        .of(&state)
        .await
        .is(200, json!({"epoch": "k3", "offset": 1}));
    post(path, pieces(vec![&BLOCK, &BLOCK], End::Whole)).of(&state).await.is(200, json!({"epoch": "k3", "offset": 2}));
    post(path, pieces(vec![&BLOCK, &BLOCK, b"x"], End::Stalled)).of(&state).await.is_problem(413, "body-too-large");
    post(path, pieces(vec![b"he"], End::Broken)).of(&state).await.is_problem(400, "body-incomplete");
    post(path, pieces(vec![b"he"], End::Stalled)).of(&state).await.is_problem(408, "body-timeout");
    let history = get("/v1/channels/news/history?limit=1").of(&state).await;
    assert_eq!(history.json()["publications"][0]["data"], "hello");
}

#[tokio::test]
async fn publish_many_answers_in_order() {
    let state = context(false);
    let body = json!({"channels": ["b", "a", "plain:c"], "data": {"n": 1.50}, "event": "tick", "idempotency_key": "k"});
    let first = post_json("/v1/publish", &body).of(&state).await;
    first.is(
        200,
        json!({"results": [
            {"channel": "b", "epoch": "k3", "offset": 1},
            {"channel": "a", "epoch": "k3", "offset": 1},
            {"channel": "plain:c", "epoch": null, "offset": null},
        ]}),
    );
    let again = post_json("/v1/publish", &body).of(&state).await;
    assert_eq!(again.json()["results"][1], json!({"channel": "a", "epoch": "k3", "offset": 1, "duplicate": true}));
}

#[tokio::test]
async fn data_is_the_text_of_a_string_or_the_json_as_it_was_written() {
    let state = context(false);
    let rows = [
        (r#""plain""#, "plain"),
        (r#""esc\u0061ped \"q\" \ud83c\udf0a""#, "escaped \"q\" 🌊"),
        (r#"{ "b":1,  "a" : 1.50 }"#, r#"{ "b":1,  "a" : 1.50 }"#),
        ("[1 , 2]", "[1 , 2]"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("null", "null"),
        (r#""""#, ""),
    ];
    for (json, text) in rows {
        let body = format!(r#"{{"data": {json}, "channels":["c"]}}"#);
        let answer = post("/v1/publish", body).of(&state).await;
        assert_eq!(answer.status, 200, "{json}: {answer:?}");
        let offset = answer.json()["results"][0]["offset"].as_u64().unwrap();
        let history = get(&format!("/v1/channels/c/history?since=k3:{}", offset - 1)).of(&state).await;
        assert_eq!(history.json()["publications"][0]["data"], text);
    }
}

#[tokio::test]
async fn json_faults_have_their_place() {
    let state = context(false);
    let rows = [
        ("/v1/publish", r#"{"channels":["a"],"data":1"#, 1, 26, "."),
        ("/v1/publish", "{\n  \"channels\": [\"a\", \"b c\"],\n  \"data\": 1}", 2, 26, "channels[1]"),
        ("/v1/publish", r#"{"channels":["a","a"],"data":1}"#, 1, 21, "channels"),
        ("/v1/publish", r#"{"channels":[],"data":1}"#, 1, 14, "channels"),
        ("/v1/publish", r#"{"channels":"a","data":1}"#, 1, 15, "channels"),
        ("/v1/publish", r#"{"channels":["a"]}"#, 1, 18, "."),
        ("/v1/publish", r#"{"channels":["a"],"data":1,"evnt":"x"}"#, 1, 33, "evnt"),
        ("/v1/publish", r#"{"channels":["a"],"data":1} x"#, 1, 29, "."),
        ("/v1/publish", r#"{"channels":["a"],"data":1,"data":2}"#, 1, 33, "."),
        ("/v1/publish", r#"{"channels":["a"],"data":1,"event":"a\nb"}"#, 1, 42, "event"),
        ("/v1/batch", r#"{"publications":[["a",null,1,null,null]]}"#, 1, 17, "publications[0]"),
        ("/v1/publish", "", 1, 0, "."),
        ("/v1/publish", "[]", 1, 0, "."),
        (
            "/v1/batch",
            r#"{"publications":[{"channel":"a","data":1},{"channel":"a","channels":["b"],"data":1}]}"#,
            1,
            83,
            "publications[1]",
        ),
        ("/v1/batch", r#"{"publications":[{"data":1}]}"#, 1, 27, "publications[0]"),
        ("/v1/batch", r#"{"publications":[{"channel":null,"data":1}]}"#, 1, 32, "publications[0].channel"),
        ("/v1/disconnect", r#"{"user":"a","connection":"b"}"#, 1, 29, "."),
        ("/v1/disconnect", r#"{}"#, 1, 2, "."),
        ("/v1/disconnect", r#"{"user":""}"#, 1, 11, "user"),
        ("/v1/disconnect", r#"{"user":"a","reason":"é"}"#, 1, 26, "reason"),
    ];
    let mut wrong = Vec::new();
    for (path, body, line, column, at) in rows {
        let answer = post(path, body).of(&state).await;
        answer.is_problem(400, "invalid-json");
        let place = answer.json()["at"].clone();
        if place != json!({"line": line, "column": column, "path": at}) {
            wrong.push(format!("{body}: {}", answer.json()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(state.node.channels("", None, 10).is_empty(), "a refused request published");
}

#[tokio::test]
async fn json_endpoints_refuse_other_bodies() {
    let state = context(false);
    let long = json!({"channels": ["a"], "data": "x".repeat(PAYLOAD_MAX + 1)});
    let longer = "x".repeat(2 * PAYLOAD_MAX + 32 * 1024 + 1);
    let many: Vec<Value> = (0..11)
        .map(|_| json!({"channels": (0..100).map(|n| format!("c{n}")).collect::<Vec<_>>(), "data": 1}))
        .collect();
    let too_many = json!({"channels": (0..101).map(|n| format!("c{n}")).collect::<Vec<_>>(), "data": 1});
    let good = json!({"channels": ["a"], "data": 1});
    let rows = [
        (
            post("/v1/publish", "a=b").header("content-type", "application/x-www-form-urlencoded"),
            415,
            "unsupported-media-type",
        ),
        (post("/v1/batch", "{}").header("content-type", "text/plain"), 415, "unsupported-media-type"),
        (post_json("/v1/publish", &long), 413, "payload-too-large"),
        (post("/v1/publish", longer), 413, "body-too-large"),
        (post("/v1/disconnect", "x".repeat(9000)), 413, "body-too-large"),
        (post_json("/v1/publish", &too_many), 400, "invalid-json"),
        (post_json("/v1/batch", &json!({"publications": many})), 400, "too-many-publications"),
        (post_json("/v1/publish?x=1", &good), 400, "invalid-parameter"),
        (post_json("/v1/publish", &good).without("authorization"), 401, "unauthorized"),
        (post_json("/v1/publish", &good).key(READER), 403, "forbidden"),
        (post_json("/v1/publish", &json!({"channels": ["news", "a"], "data": 1})).key(NEWS), 403, "forbidden"),
        (post_json("/v1/disconnect", &json!({"user": "a"})).key(NEWS), 403, "forbidden"),
        (post_json("/v1/publish", &json!({"channels": ["full"], "data": 1})), 503, "overloaded"),
    ];
    for (ask, status, kind) in rows {
        ask.of(&state).await.is_problem(status, kind);
    }
    assert!(state.node.channels("", None, 10).is_empty(), "a refused request published");
}

#[tokio::test]
async fn what_failed_in_part_says_which() {
    let state = context(false);
    let batch = json!({"publications": [
        {"channel": "a", "data": "one"},
        {"channels": ["gone", "a"], "data": "two"},
    ]});
    let answer = post_json("/v1/batch", &batch).of(&state).await;
    assert_eq!(answer.status, 207);
    let results = answer.json()["results"].as_array().unwrap().clone();
    assert_eq!(results[0], json!({"channel": "a", "epoch": "k3", "offset": 1}));
    assert_eq!(results[1]["error"]["type"], "urn:tidegate:problem:backplane-unavailable");
    assert_eq!((&results[1]["channel"], &results[1]["offset"]), (&json!("gone"), &Value::Null));
    assert_eq!(results[2], json!({"channel": "a", "epoch": "k3", "offset": 2}));
    assert_eq!(state.metrics.http.publish_requests.get(PublishCode::Partial), 1);
}

#[tokio::test]
async fn channels_are_paged_and_filtered() {
    let state = context(false);
    for name in ["news", "news:a", "news:b", "sport"] {
        post(&format!("/v1/channels/{name}/publish"), "x").of(&state).await;
    }
    let entry = |name: &str| json!({"channel": name, "subscribers": 1});
    get("/v1/channels?limit=2")
        .of(&state)
        .await
        .is(200, json!({"channels": [entry("news"), entry("news:a")], "next": "news:a"}));
    get("/v1/channels?limit=2&after=news%3Aa")
        .of(&state)
        .await
        .is(200, json!({"channels": [entry("news:b"), entry("sport")], "next": "sport"}));
    get("/v1/channels?after=sport").of(&state).await.is(200, json!({"channels": [], "next": null}));
    get("/v1/channels?prefix=news:")
        .of(&state)
        .await
        .is(200, json!({"channels": [entry("news:a"), entry("news:b")], "next": null}));
    get("/v1/channels?limit=4")
        .key(NEWS)
        .of(&state)
        .await
        .is(200, json!({"channels": [entry("news"), entry("news:a"), entry("news:b")], "next": "sport"}));
    get("/v1/channels/sport").of(&state).await.is(200, entry("sport"));
    get("/v1/channels/nobody").of(&state).await.is(200, json!({"channel": "nobody", "subscribers": 0}));
    let head = ask("HEAD", "/v1/channels").of(&state).await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
}

#[tokio::test]
async fn reads_refuse() {
    let state = context(false);
    let rows = [
        (get("/v1/channels?limit=0"), 400, "invalid-parameter"),
        (get("/v1/channels?limit=1001"), 400, "invalid-parameter"),
        (get("/v1/channels?limit=%2B5"), 400, "invalid-parameter"),
        (get("/v1/channels?prefix=a%20b"), 400, "invalid-parameter"),
        (get("/v1/channels?offset=1"), 400, "invalid-parameter"),
        (get("/v1/channels/a%20b"), 400, "invalid-channel"),
        (get("/v1/channels/a/history?since=7"), 400, "invalid-parameter"),
        (get("/v1/channels/a/history?since=k3:x"), 400, "invalid-parameter"),
        (get("/v1/channels/a/history?since=K3:1"), 400, "invalid-parameter"),
        (get("/v1/channels").without("authorization"), 401, "unauthorized"),
        (get("/v1/nodes").without("authorization"), 401, "unauthorized"),
        (get("/v1/channels/sport").key(NEWS), 403, "forbidden"),
        (get("/v1/channels/a/presence"), 404, "presence-off"),
        (post("/v1/channels//publish", "x"), 400, "invalid-channel"),
        (get("/v2/channels"), 404, "not-found"),
        (get("/"), 404, "not-found"),
        (get("/dev/numbers"), 404, "not-found"),
        (get("/metrics"), 404, "not-found"),
        (ask("DELETE", "/v1/channels/a"), 405, "method-not-allowed"),
    ];
    for (ask, status, kind) in rows {
        ask.of(&state).await.is_problem(status, kind);
    }
}

#[tokio::test]
async fn presence_disconnect_nodes() {
    let state = context(false);
    get("/v1/channels/room:1/presence")
        .of(&state)
        .await
        .is(200, json!({"members": [{"connection": "node-1.7", "user": "ada", "info": {"name": "Ada"}}]}));
    post_json("/v1/disconnect", &json!({"user": "ada"})).of(&state).await.is(202, json!({}));
    post_json("/v1/disconnect", &json!({"connection": "node-1.7", "reason": "bye"}))
        .of(&state)
        .await
        .is(202, json!({}));
    get("/v1/nodes").of(&state).await.is(
        200,
        json!({"nodes": [{
            "name": "node-1", "address": "127.0.0.1:8000", "version": "0.1.0",
            "connections": 0, "capacity": 1000, "draining": false,
        }]}),
    );
}

#[tokio::test]
async fn pages_of_allowed_origins_may_read() {
    let state = context(false);
    let preflight = |origin: &str| {
        ask("OPTIONS", "/v1/channels/news/publish")
            .without("authorization")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
    };
    let yes = preflight(ORIGIN).of(&state).await;
    assert_eq!((yes.status.as_u16(), yes.header("access-control-allow-origin")), (204, ORIGIN));
    assert!(yes.header("access-control-allow-headers").contains("idempotency-key"));
    let no = preflight("https://evil.example.org").of(&state).await;
    assert!(!no.headers.contains_key("access-control-allow-origin"));
    let problem = post("/v1/channels/news/publish", "x").key("wrong").header("origin", ORIGIN).of(&state).await;
    assert_eq!((problem.status.as_u16(), problem.header("access-control-allow-origin")), (401, ORIGIN));
    assert_eq!(problem.header("vary"), "origin");
    let plain = ask("OPTIONS", "/v1/publish").of(&state).await;
    assert_eq!((plain.status.as_u16(), plain.header("allow")), (204, "POST"));
}

/// The short way past the router must not be another API.
#[tokio::test]
async fn the_service_answers_as_the_router_does() {
    let path = "/v1/channels/news/publish";
    let rows: [fn(&str) -> Ask; 10] = [
        |path| post(path, "hello"),
        |path| post(path, "hello").header("idempotency-key", "k"),
        |path| post(path, "hello").header("origin", ORIGIN),
        |path| post(path, "hello").header("origin", "https://evil.example.org"),
        |path| post(path, &b"\xff"[..]),
        |path| post(path, "x").without("authorization").header("origin", ORIGIN),
        |path| post(path, "x".repeat(PAYLOAD_MAX + 1)),
        |path| post(&format!("{path}?x"), "x"),
        |_| post("/v1/channels/a/b/publish", "x"),
        |path| get(path),
    ];
    let (routed, direct) = (context(false), context(false));
    let service = PublicService::new(Arc::clone(&direct));
    for (row, ask) in rows.iter().enumerate() {
        let expect = ask(path).of(&routed).await;
        assert_eq!(Answer::read(service.call(ask(path).0).await).await, expect, "row {row}");
    }
    for code in [PublishCode::Ok, PublishCode::BadRequest, PublishCode::TooLarge] {
        let counted = |state: &HttpState| state.metrics.http.publish_requests.get(code);
        assert_eq!(counted(&direct), counted(&routed), "{code:?}");
        assert!(counted(&direct) > 0, "{code:?}");
    }
}

#[tokio::test]
async fn the_internal_port() {
    let state = context(false);
    let router = || internal_router(Arc::clone(&state));
    assert_eq!(get("/livez").through(router()).await.status, 200);
    get("/readyz").through(router()).await.is(200, json!({"ready": true}));
    ask("POST", "/drain").header("origin", ORIGIN).through(router()).await.is_problem(403, "origin-refused");
    get("/readyz").through(router()).await.is(200, json!({"ready": true}));
    get("/drain").through(router()).await.is_problem(405, "method-not-allowed");
    assert_eq!(ask("POST", "/drain").through(router()).await.status, 202);
    get("/readyz").through(router()).await.is(503, json!({"ready": false, "reasons": ["draining"]}));
    assert_eq!(get("/livez").through(router()).await.status, 200);
    get("/v1/channels").through(router()).await.is_problem(404, "not-found");

    let prometheus = get("/metrics").through(router()).await;
    assert_eq!(prometheus.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let openmetrics = get("/metrics")
        .header("accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
        .through(router())
        .await;
    assert!(openmetrics.header("content-type").starts_with("application/openmetrics-text"));
    assert!(openmetrics.body.ends_with(b"# EOF\n"));
}

#[tokio::test]
async fn the_first_page_in_dev_only() {
    let state = context(true);
    for (path, kind) in [("/", "text/html"), ("/dev/app.js", "text/javascript"), ("/dev/style.css", "text/css")] {
        let answer = get(path).without("authorization").of(&state).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.header("content-type").starts_with(kind), "{path}");
        assert!(answer.header("content-security-policy").starts_with("default-src 'none'"), "{path}");
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        for outside in ["//cdn", "innerHTML", "onclick=", "style=\"", "<script>"] {
            assert!(!text.contains(outside), "{path} has {outside}");
        }
    }
    get("/dev/numbers?channel=news")
        .without("authorization")
        .of(&state)
        .await
        .is(200, json!({"connections": 0, "subscribers": 0}));
    get("/dev/numbers?channel=a%20b").of(&state).await.is_problem(400, "invalid-channel");
    get("/nothing").of(&state).await.is_problem(404, "not-found");
}

/// `UPDATE_GOLDEN=1 cargo test -p tidegate-gateway openapi` writes it anew.
#[tokio::test]
async fn the_openapi_document_is_the_golden_one() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let served = get("/openapi.json").without("authorization").of(&context(false)).await;
    let served = String::from_utf8(served.body.to_vec()).unwrap();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &served).unwrap();
    }
    let written = std::fs::read_to_string(&golden).unwrap_or_default();
    assert!(served == written, "docs/openapi.json is stale: run this test with UPDATE_GOLDEN=1 and look at the change");
}

/// What is documented is served, and the other way round.
#[tokio::test]
async fn every_documented_operation_is_routed_and_asks_for_a_key() {
    let state = context(false);
    let document: Value = serde_json::from_str(&openapi::render()).unwrap();
    let mut operations = BTreeMap::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let uri = path.replace("{channel}", "news");
            let answer = ask(&method.to_uppercase(), &uri).without("authorization").of(&state).await;
            answer.is_problem(401, "unauthorized");
            assert!(operation["responses"]["401"].is_object() && operation["security"].is_array(), "{path}");
            operations.insert(operation["operationId"].as_str().unwrap().to_owned(), uri);
        }
    }
    assert_eq!(operations.len(), 9, "{operations:?}");
}

#[test]
fn every_problem_type_is_in_the_list_of_errors() {
    let list = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors.md")).unwrap();
    let beside = [
        ApiError::NotFound,
        ApiError::MethodNotAllowed,
        ApiError::OriginRefused,
        ApiError::RateLimited { retry_after: std::time::Duration::from_secs(1) },
        ApiError::Backplane(tidegate_backplane::BackplaneError::Refused("no".into())),
    ];
    for error in openapi::samples().into_iter().chain(beside) {
        let row = format!("| `{}` | {} |", error.kind().0, error.status().as_u16());
        assert!(list.contains(&row), "docs/errors.md has no row {row}");
    }
}
