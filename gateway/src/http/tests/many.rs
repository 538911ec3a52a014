//! JSON bodies: publishing to many channels, batches, and faults with their place.

use serde_json::{Value, json};

use super::{BODY_MAX, NEWS, PAYLOAD_MAX, READER, client::*, fixture::Fixture};
use crate::metrics::PublishCode;

#[tokio::test]
async fn publish_many_answers_in_order() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    let body = json!({"channels": ["b", "a", "plain:c"], "data": {"n": 1.50}, "event": "tick", "idempotency_key": "k"});
    let first = post_json("/v1/publish", &body).of(state).await;
    first.is(
        200,
        json!({"results": [
            {"channel": "b", "epoch": "k3", "offset": 1},
            {"channel": "a", "epoch": "k3", "offset": 1},
            {"channel": "plain:c", "epoch": null, "offset": null},
        ]}),
    );
    let again = post_json("/v1/publish", &body).of(state).await;
    assert_eq!(
        again.json()["results"][1],
        json!({"channel": "a", "epoch": "k3", "offset": 1, "duplicate": true})
    );
}

#[tokio::test]
async fn data_is_the_text_of_a_string_or_the_json_as_it_was_written() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
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
        let answer = post("/v1/publish", body).of(state).await;
        assert_eq!(answer.status, 200, "{json}: {answer:?}");
        let offset = answer.json()["results"][0]["offset"].as_u64().unwrap();
        let history = get(&format!("/v1/channels/c/history?since=k3:{}", offset - 1)).of(state).await;
        assert_eq!(history.json()["publications"][0]["data"], text);
    }
}

#[tokio::test]
async fn json_faults_have_their_place() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
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
        ("/v1/publish", r#"{"channels":["a"],"data":1,"event":"gap"}"#, 1, 41, "event"),
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
        let answer = post(path, body).of(state).await;
        answer.is_problem(400, "invalid-json");
        let place = answer.json()["at"].clone();
        if place != json!({"line": line, "column": column, "path": at}) {
            wrong.push(format!("{body}: {}", answer.json()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(fixture.published() == 0, "a refused request published");
}

#[tokio::test(start_paused = true)]
async fn json_endpoints_refuse_other_bodies() {
    let fixture = Fixture::new(false);
    fixture.fill("full");
    let state = &fixture.state;
    let long = json!({"channels": ["a"], "data": "x".repeat(PAYLOAD_MAX + 1)});
    let longer = "x".repeat(BODY_MAX + 1);
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
        (
            post_json("/v1/publish", &json!({"channels": ["news", "a"], "data": 1})).key(NEWS),
            403,
            "forbidden",
        ),
        (post_json("/v1/disconnect", &json!({"user": "a"})).key(NEWS), 403, "forbidden"),
        (post_json("/v1/publish", &json!({"channels": ["full"], "data": 1})), 503, "overloaded"),
    ];
    for (ask, status, kind) in rows {
        ask.of(state).await.is_problem(status, kind);
    }
    assert!(fixture.published() == 0, "a refused request published");
}

#[tokio::test]
async fn what_failed_in_part_says_which() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    let batch = json!({"publications": [
        {"channel": "a", "data": "one"},
        {"channels": ["gone", "a"], "data": "two"},
    ]});
    let answer = post_json("/v1/batch", &batch).of(state).await;
    assert_eq!(answer.status, 207);
    let results = answer.json()["results"].as_array().unwrap().clone();
    assert_eq!(results[0], json!({"channel": "a", "epoch": "k3", "offset": 1}));
    assert_eq!(results[1]["error"]["type"], "urn:tidegate:problem:backplane-unavailable");
    assert_eq!((&results[1]["channel"], &results[1]["offset"]), (&json!("gone"), &Value::Null));
    assert_eq!(results[2], json!({"channel": "a", "epoch": "k3", "offset": 2}));
    assert_eq!(state.metrics.http.publish_requests.get(PublishCode::Partial), 1);
}
