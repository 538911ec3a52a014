//! What belongs to a port as a whole: CORS, the short way past the router, probes, page and document.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use futures_util::FutureExt;
use serde_json::{Value, json};

use super::{
    ApiError, HttpState, ORIGIN, PAYLOAD_MAX, PublicService, client::*, fixture::Fixture, internal_router,
    openapi,
};
use crate::{metrics::PublishCode, node::Stage};

#[tokio::test]
async fn pages_of_allowed_origins_may_read() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    let preflight = |origin: &str| {
        ask("OPTIONS", "/v1/channels/news/publish")
            .without("authorization")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
    };
    let yes = preflight(ORIGIN).of(state).await;
    assert_eq!((yes.status.as_u16(), yes.header("access-control-allow-origin")), (204, ORIGIN));
    for header in ["idempotency-key", "last-event-id", "cache-control"] {
        assert!(yes.header("access-control-allow-headers").contains(header), "{header}");
    }
    let no = preflight("https://evil.example.org").of(state).await;
    assert!(!no.headers.contains_key("access-control-allow-origin"));
    let problem =
        post("/v1/channels/news/publish", "x").key("wrong").header("origin", ORIGIN).of(state).await;
    assert_eq!((problem.status.as_u16(), problem.header("access-control-allow-origin")), (401, ORIGIN));
    assert_eq!(problem.header("vary"), "origin");
    let plain = ask("OPTIONS", "/v1/publish").of(state).await;
    assert_eq!((plain.status.as_u16(), plain.header("allow")), (204, "POST"));
}

/// Shards take `GET` without a body; what they leave is told why.
#[tokio::test]
async fn paths_of_the_shards_take_get_only() {
    let (dev, production) = (Fixture::new(true), Fixture::new(false));
    for path in ["/ws", "/sse?channel=news", "/echo"] {
        for method in ["POST", "HEAD", "PUT"] {
            let answer = ask(method, path).of(&dev.state).await;
            assert_eq!((answer.status.as_u16(), answer.header("allow")), (405, "GET"), "{method} {path}");
            if method != "HEAD" {
                answer.is_problem(405, "method-not-allowed");
            }
        }
        let options = ask("OPTIONS", path).of(&dev.state).await;
        assert_eq!((options.status.as_u16(), options.header("allow")), (204, "GET"), "{path}");
    }
    let mut with_body = get("/ws?channel=news");
    *with_body.0.body_mut() = "x".into();
    with_body.of(&dev.state).await.is_problem(413, "body-too-large");
    ask("POST", "/echo").of(&production.state).await.is_problem(404, "not-found");
    ask("POST", "/ws/").of(&production.state).await.is_problem(404, "not-found");
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
    let fixtures = (Fixture::new(false), Fixture::new(false));
    let (routed, direct) = (&fixtures.0.state, &fixtures.1.state);
    let service = PublicService::new(Arc::clone(direct));
    for (row, ask) in rows.iter().enumerate() {
        let expect = ask(path).of(routed).await;
        assert_eq!(Answer::read(service.call(ask(path).0).await).await, expect, "row {row}");
    }
    for code in [PublishCode::Ok, PublishCode::BadRequest, PublishCode::TooLarge] {
        let counted = |state: &HttpState| state.metrics.http.publish_requests.get(code);
        assert_eq!(counted(direct), counted(routed), "{code:?}");
        assert!(counted(direct) > 0, "{code:?}");
    }
}

#[tokio::test]
async fn the_internal_port() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    let router = || internal_router(Arc::clone(state));
    assert_eq!(get("/livez").through(router()).await.status, 200);
    get("/readyz").through(router()).await.is(200, json!({"ready": true}));
    ask("POST", "/drain").header("origin", ORIGIN).through(router()).await.is_problem(403, "origin-refused");
    assert!(state.node.drain_asked().now_or_never().is_none(), "a page has begun the drain");
    get("/drain").through(router()).await.is_problem(405, "method-not-allowed");
    assert_eq!(ask("POST", "/drain").through(router()).await.status, 202);
    assert!(state.node.drain_asked().now_or_never().is_some());
    state.node.set_stage(Stage::Settling);
    get("/readyz").through(router()).await.is(503, json!({"ready": false, "reasons": ["draining"]}));
    assert_eq!(get("/livez").through(router()).await.status, 200);
    get("/nothing").through(router()).await.is_problem(404, "not-found");

    let prometheus = get("/metrics").through(router()).await;
    assert_eq!(prometheus.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let openmetrics = get("/metrics")
        .header("accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
        .through(router())
        .await;
    assert!(openmetrics.header("content-type").starts_with("application/openmetrics-text"));
    assert!(openmetrics.body.ends_with(b"# EOF\n"));
}

/// The page and its stream need no key, what `/v1` does needs one, and no page of others gets either.
#[tokio::test]
async fn the_console_is_for_its_own_page_and_for_programs() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    let router = || internal_router(Arc::clone(state));
    for (path, kind) in [
        ("/console", "text/html"),
        ("/console/app.js", "text/javascript"),
        ("/console/style.css", "text/css"),
    ] {
        get(path).of(state).await.is_problem(404, "not-found");
        let answer = get(path).without("authorization").through(router()).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.header("content-type").starts_with(kind), "{path}");
        assert!(answer.header("content-security-policy").starts_with("default-src 'none'"), "{path}");
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        for outside in ["//cdn", "innerHTML", "onclick=", "style=\"", "<script>"] {
            assert!(!text.contains(outside), "{path} has {outside}");
        }
    }
    get("/v1/channels").without("authorization").through(router()).await.is_problem(401, "unauthorized");
    assert_eq!(get("/v1/channels").through(router()).await.status, 200);
    let headers = [
        ("host", "gate-0:9000", 200),
        ("host", "evil.example", 403),
        ("origin", ORIGIN, 403),
        ("sec-fetch-site", "same-origin", 200),
        ("sec-fetch-site", "cross-site", 403),
    ];
    for path in ["/console", "/v1/channels"] {
        for (name, value, status) in headers {
            let answer = get(path).header(name, value).through(router()).await;
            assert_eq!(answer.status, status, "{path} with {name}: {value}");
        }
    }
}

/// Health checks of balancers come to the port that they send clients to. They learn nothing else.
#[tokio::test]
async fn probes_on_the_public_port() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    let probe = |path: &str| get(path).without("authorization");
    assert_eq!(probe("/livez").of(state).await.status, 200);
    let ready = probe("/readyz").of(state).await;
    assert_eq!((ready.status.as_u16(), &ready.body[..]), (200, &b"ready\n"[..]));
    assert_eq!(ask("HEAD", "/readyz").of(state).await.status, 200);
    // The check of HAProxy that nobody has configured.
    assert_eq!(ask("OPTIONS", "/").without("authorization").of(state).await.status, 200);
    state.node.set_stage(Stage::Settling);
    assert_eq!(ask("OPTIONS", "/").without("authorization").of(state).await.status, 503);
    let draining = probe("/readyz").of(state).await;
    assert_eq!((draining.status.as_u16(), &draining.body[..]), (503, &b"not ready\n"[..]));
    assert_eq!(probe("/livez").of(state).await.status, 200);
    probe("/metrics").of(state).await.is_problem(404, "not-found");
}

#[tokio::test]
async fn the_first_page_in_dev_only() {
    let fixture = Fixture::new(true);
    let state = &fixture.state;
    for (path, kind) in
        [("/", "text/html"), ("/dev/app.js", "text/javascript"), ("/dev/style.css", "text/css")]
    {
        let answer = get(path).without("authorization").of(state).await;
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
        .of(state)
        .await
        .is(200, json!({"node": state.node.config().node, "nodes": 1, "connections": 0, "subscribers": 0}));
    get("/dev/numbers?channel=a%20b").of(state).await.is_problem(400, "invalid-channel");
    get("/nothing").of(state).await.is_problem(404, "not-found");
}

/// `UPDATE_GOLDEN=1 cargo test -p tidegate-gateway openapi` writes it anew.
#[tokio::test]
async fn the_openapi_document_is_the_golden_one() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let served = get("/openapi.json").without("authorization").of(&Fixture::new(false).state).await;
    let served = String::from_utf8(served.body.to_vec()).unwrap();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &served).unwrap();
    }
    let written = std::fs::read_to_string(&golden).unwrap_or_default();
    assert!(
        served == written,
        "docs/openapi.json is stale: run this test with UPDATE_GOLDEN=1 and look at the change"
    );
}

/// What is documented is served, and the other way round.
#[tokio::test]
async fn every_documented_operation_is_routed_and_asks_for_a_key() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    let document: Value = serde_json::from_str(&openapi::render()).unwrap();
    let mut operations = BTreeMap::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let uri = path.replace("{channel}", "news");
            let answer = ask(&method.to_uppercase(), &uri).without("authorization").of(state).await;
            answer.is_problem(401, "unauthorized");
            assert!(operation["responses"]["401"].is_object() && operation["security"].is_array(), "{path}");
            operations.insert(operation["operationId"].as_str().unwrap().to_owned(), uri);
        }
    }
    assert_eq!(operations.len(), 14, "{operations:?}");
}

#[test]
fn every_problem_type_is_in_the_list_of_errors() {
    let list =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors.md")).unwrap();
    let beside = [
        ApiError::NotFound,
        ApiError::MethodNotAllowed,
        ApiError::OriginRefused,
        ApiError::Backplane(tidegate_backplane::BackplaneError::Refused("no".into())),
    ];
    for error in openapi::samples().into_iter().chain(beside) {
        let row = format!("| `{}` | {} |", error.kind().0, error.status().as_u16());
        assert!(list.contains(&row), "docs/errors.md has no row {row}");
    }
}
