//! Publishing to one channel: payloads, refusals, and bodies that do not arrive as they should.

use std::{pin::Pin, task::Poll, time::Duration};

use axum::{body::Body, response::IntoResponse};
use bytes::Bytes;
use http::StatusCode;
use hyper::body::Frame;
use serde_json::json;

use super::{ALL, ApiError, NEWS, PAYLOAD_MAX, READER, client::*, fixture::Fixture};
use crate::{
    config::{ApiKeyEntry, Secret},
    metrics::{AuthFailure, PublishCode},
};

#[tokio::test]
async fn publish_takes_the_body_verbatim() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    let path = "/v1/channels/news/publish";
    post(path, "{ \"a\" : 1 }")
        .header("content-type", "application/json")
        .of(state)
        .await
        .is(200, json!({"epoch": "k3", "offset": 1}));
    post(path, &b"\xff\x00"[..])
        .header("content-type", "Application/Octet-Stream; x=y")
        .of(state)
        .await
        .is(200, json!({"epoch": "k3", "offset": 2}));
    post(&format!("{path}?event=tick%20%C3%A9"), "")
        .of(state)
        .await
        .is(200, json!({"epoch": "k3", "offset": 3}));
    post("/v1/channels/plain:x/publish", "x").of(state).await.is(200, json!({"epoch": null, "offset": null}));
    post("/v1/channels/news%2Fa%23b/publish", "x")
        .of(state)
        .await
        .is(200, json!({"epoch": "k3", "offset": 1}));
    let history = get("/v1/channels/news/history").of(state).await;
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

/// Subscribers would be handed coded bytes, or text for what was meant as binary.
#[tokio::test]
async fn a_body_whose_kind_cannot_be_told_is_refused() {
    let fixture = Fixture::new(false);
    let path = "/v1/channels/news/publish";
    for (name, value, status, kind) in [
        ("content-type", &b"application/octet-stream\xff"[..], 400, "invalid-parameter"),
        ("content-encoding", b"gzip", 415, "unsupported-media-type"),
        ("content-encoding", b"identity, br", 415, "unsupported-media-type"),
    ] {
        let value = http::HeaderValue::from_bytes(value).unwrap();
        let mut request = http::Request::post(path).header("authorization", format!("Bearer {}", super::ALL));
        request = request.header(name, value).header("origin", "https://app.example.org");
        let body = Body::from("x");
        let service = super::super::PublicService::new(std::sync::Arc::clone(&fixture.state));
        let answer = service.call(request.body(body).unwrap()).await;
        assert_eq!(answer.status().as_u16(), status, "{kind}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
    }
    assert_eq!(fixture.published(), 0);
}

#[tokio::test]
async fn a_namespace_may_do_without_the_backplane() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    let local = json!({"epoch": null, "offset": null, "local": true});
    post("/v1/channels/local:gone/publish", "x").of(state).await.is(200, local);
    let many = json!({"channels": ["local:gone", "gone", "local:there"], "data": 1});
    let results = post_json("/v1/publish", &many).of(state).await.json()["results"].clone();
    assert_eq!((&results[0]["local"], &results[0]["error"]), (&json!(true), &json!(null)));
    assert_eq!(results[1]["error"]["type"], "urn:tidegate:problem:backplane-unavailable");
    assert_eq!((&results[2]["local"], &results[2]["offset"]), (&json!(null), &json!(1)));
    assert_eq!(state.metrics.node.publishes_local.get(), 2);
}

#[tokio::test]
async fn publish_once_per_idempotency_key() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    let once = || post("/v1/channels/news/publish", "x").header("idempotency-key", "order-17");
    once().of(state).await.is(200, json!({"epoch": "k3", "offset": 1}));
    once().of(state).await.is(200, json!({"epoch": "k3", "offset": 1, "duplicate": true}));
}

/// One a second: of many requests one after the other some are refused, by whichever path, and nothing is published by
/// those. Another key is not slowed.
#[tokio::test]
async fn a_key_may_have_a_rate() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    let slow = "slow-slow-slow-slow";
    let key = |name: &str, key: &str, requests_per_second| ApiKeyEntry {
        name: name.into(),
        key: Some(Secret::new(key.as_bytes())),
        requests_per_second,
        ..ApiKeyEntry::default()
    };
    state.keys.replace(&[key("slow", slow, 1), key("all", ALL, 0)]).unwrap();
    let mut published = 0;
    for ask in
        [|| post("/v1/channels/news/publish", "x"), || get("/v1/channels/news"), || get("/v1/channels")]
    {
        let mut refused = None;
        for _ in 0..100 {
            let answer = ask().key(slow).of(state).await;
            if answer.status == StatusCode::TOO_MANY_REQUESTS {
                refused = Some(answer);
                break;
            }
            published = fixture.published();
        }
        let refused = refused.expect("100 requests take longer than 100 s");
        assert_eq!(refused.header("retry-after"), "1");
        refused.is_problem(429, "rate-limited");
    }
    assert_eq!(fixture.published(), published);
    assert!(state.metrics.node.auth_failures.get(AuthFailure::KeyRate) >= 3);
    assert_eq!(get("/v1/channels/news").of(state).await.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn publish_refuses() {
    let fixture = Fixture::new(false);
    fixture.fill("full");
    let state = &fixture.state;
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
        (post(&format!("{path}?event=gap"), "x"), 400, "invalid-parameter"),
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
        (post("/v1/channels/doubt/publish", "x"), 503, "backplane-unconfirmed"),
        (post("/v1/channels/local:doubt/publish", "x"), 503, "backplane-unconfirmed"),
    ];
    for (ask, status, kind) in rows {
        ask.of(state).await.is_problem(status, kind);
    }
    let metrics = &state.metrics;
    assert_eq!(metrics.http.publish_requests.get(PublishCode::BadRequest), 11);
    assert_eq!(metrics.http.publish_requests.get(PublishCode::TooLarge), 1);
    assert_eq!(metrics.http.publish_requests.get(PublishCode::Unavailable), 4);
    assert_eq!(metrics.node.auth_failures.get(AuthFailure::KeyMissing), 3);
    assert_eq!(metrics.node.auth_failures.get(AuthFailure::KeyUnknown), 1);
    assert_eq!(metrics.node.auth_failures.get(AuthFailure::KeyScope), 1);
    assert_eq!(metrics.node.auth_failures.get(AuthFailure::KeyChannel), 1);
    assert!(fixture.published() == 0, "a refused publish published");
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    let path = "/v1/channels/news/publish";
    let missing = post(path, "x").without("authorization").of(state).await;
    assert_eq!(missing.header("www-authenticate"), r#"Bearer realm="tidegate""#);
    let wrong = post(path, "x").key("wrong").of(state).await;
    assert_eq!(wrong.header("www-authenticate"), r#"Bearer realm="tidegate", error="invalid_token""#);
    let scope = post(path, "x").key(READER).of(state).await;
    assert_eq!(scope.header("www-authenticate"), r#"Bearer realm="tidegate", error="insufficient_scope""#);
    let full = ApiError::Overloaded { retry_after: Duration::from_millis(1500) }.into_response();
    assert_eq!(Answer::read(full).await.header("retry-after"), "2", "rounded up");
    let gone = post("/v1/channels/gone/publish", "x").of(state).await;
    assert_eq!(gone.header("retry-after"), "1");
    assert_eq!(get(path).of(state).await.header("allow"), "POST");
    assert_eq!(post("/v1/channels", "").of(state).await.header("allow"), "GET,HEAD");
    let channel = post("/v1/channels/a%20b/publish", "x").of(state).await;
    assert_eq!(
        channel.json()["detail"],
        "the channel name has ' ' at byte 1; allowed are letters, digits and _-=@,.;:#/$"
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
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    let path = "/v1/channels/news/publish";
    post(path, pieces(vec![b"he", b"ll", b"", b"o"], End::Whole))
        .of(state)
        .await
        .is(200, json!({"epoch": "k3", "offset": 1}));
    post(path, pieces(vec![&BLOCK, &BLOCK], End::Whole))
        .of(state)
        .await
        .is(200, json!({"epoch": "k3", "offset": 2}));
    post(path, pieces(vec![&BLOCK, &BLOCK, b"x"], End::Stalled))
        .of(state)
        .await
        .is_problem(413, "body-too-large");
    post(path, pieces(vec![b"he"], End::Broken)).of(state).await.is_problem(400, "body-incomplete");
    post(path, pieces(vec![b"he"], End::Stalled)).of(state).await.is_problem(408, "body-timeout");
    let history = get("/v1/channels/news/history?limit=1").of(state).await;
    assert_eq!(history.json()["publications"][0]["data"], "hello");
}
