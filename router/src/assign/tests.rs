//! Tests of `/v1/assign` through its routes, without a socket.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use axum::body::to_bytes;
use serde_json::{Value, json};
use tidegate_ops::{config::Setting as _, metrics::Bounds};
use tower::ServiceExt as _;

use super::*;
use crate::{
    chooser::Observed,
    placement::{LoadFactor, Member, View},
};

const CLIENT: &str = "192.0.2.7:4000";

struct Rig {
    assigner: Arc<Assigner>,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

fn members() -> Vec<Observed> {
    let member = |name: &str| Member {
        name: name.into(),
        address: format!("{name}.example.com:8000").into(),
        weight: std::num::NonZeroU32::MIN,
        draining: false,
    };
    ["a", "b", "c"]
        .map(|name| Observed {
            member: member(name),
            is_down: false,
            is_lost: false,
            capacity: None,
            socket: "127.0.0.1:8000".parse().unwrap(),
            connections: Some(0),
            handover: None,
        })
        .into()
}

impl Rig {
    fn new(rule: &str, members: Vec<Observed>) -> Self {
        Self::with(rule, members, config::Assign::default())
    }

    fn with(rule: &str, members: Vec<Observed>, options: config::Assign) -> Self {
        let chooser = Arc::new(Chooser::new(LoadFactor::DEFAULT));
        chooser.update(members);
        let metrics = Arc::new(Metrics::new(Bounds::default()));
        let url = UrlTemplate::from_text("ws://{address}");
        let options = config::Assign { keys: 3, url, ..options };
        let assigner = Assigner::new(chooser, metrics, rule.parse().unwrap(), &options).unwrap().unwrap();
        Self { assigner: Arc::new(assigner) }
    }

    async fn ask(&self, request: http::request::Builder, body: impl Into<Body>) -> Answer {
        let client = Client(CLIENT.parse().unwrap());
        let request = request.extension(client).body(body.into()).unwrap();
        let response = Arc::clone(&self.assigner).routes().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, 1 << 20).await.unwrap();
        let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    async fn get(&self, target: &str) -> Answer {
        self.ask(http::Request::get(target), Body::empty()).await
    }

    async fn post(&self, body: &str) -> Answer {
        let request =
            http::Request::post("/v1/assign").header("content-type", "application/json; charset=utf-8");
        self.ask(request, body.to_owned()).await
    }
}

/// By placement alone.
fn owner(key: &[u8]) -> String {
    let view = View::new(members().into_iter().map(|one| one.member));
    view.order(key).next().unwrap().name.to_string()
}

#[track_caller]
fn refused(answer: &Answer, status: u16, name: &str) {
    assert_eq!(answer.status, status, "{}", answer.body);
    assert_eq!(answer.body["type"], format!("urn:tidegate:problem:{name}"));
    assert_eq!(answer.body["status"], status);
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
}

#[tokio::test]
async fn one_key() {
    let rig = Rig::new("query:key", members());
    let mut nodes = BTreeSet::new();
    for i in 0..20 {
        let answer = rig.get(&format!("/v1/assign?key=room%20{i}")).await;
        let node = answer.body["node"].as_str().unwrap();
        assert_eq!((answer.status, node), (200, &*owner(format!("room {i}").as_bytes())));
        assert_eq!(answer.body["url"], format!("ws://{node}.example.com:8000"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let expires_at = answer.body["expires_at"].as_u64().unwrap();
        assert!((now + 20..=now + 30).contains(&expires_at), "{expires_at}");
        assert_eq!(answer.headers["cache-control"], "no-store");
        nodes.insert(node.to_owned());
    }
    assert_eq!(nodes.len(), 3);
    assert_eq!(rig.assigner.metrics.assignments.get(Assignment::Ok), 20);
    let placed: u64 = rig.assigner.chooser.members().iter().map(|(_, node)| node.load()).sum();
    assert_eq!(placed, 20, "who was told an address is load until the registry knows");
}

/// Without `key`, what the rule finds in this request.
#[tokio::test]
async fn by_the_rule() {
    let check = async |rule: &str, request: http::request::Builder, expect: &str| {
        let answer = Rig::new(rule, members()).ask(request, Body::empty()).await;
        assert_eq!(answer.body["node"], owner(expect.as_bytes()), "{rule}");
    };
    let get = |target: &str| http::Request::get(target);
    check("query:key", get("/v1/assign"), CLIENT).await;
    check("query:key", get("/v1/assign?key="), CLIENT).await;
    check("query:room", get("/v1/assign?room=lobby"), "lobby").await;
    check("query:room", get("/v1/assign?room=lobby&key=k"), "k").await;
    check("header:x-room", get("/v1/assign").header("X-Room", "lobby"), "lobby").await;
    check("cookie:room", get("/v1/assign").header("cookie", "a=b; room=lobby"), "lobby").await;
    check("client-ip", get("/v1/assign"), "192.0.2.7").await;
    check("path", get("/v1/assign?key=/a"), "/a").await;
    refused(&Rig::new("path", members()).get("/v1/assign").await, 400, "key-missing");
}

#[tokio::test]
async fn many_keys() {
    let rig = Rig::new("query:key", members());
    let answer = rig.post(r#"{"keys":["x","","x"]}"#).await;
    let assigned = answer.body["assignments"].as_array().unwrap();
    let found: Vec<_> = assigned.iter().map(|one| (one["key"].clone(), one["node"].clone())).collect();
    let expect = ["x", "", "x"].map(|key| (json!(key), json!(owner(key.as_bytes()))));
    assert_eq!(found, expect);
    assert!(assigned.iter().all(|one| one["url"].is_string() && one["expires_at"].is_u64()));
}

#[tokio::test]
async fn bad_requests() {
    let rig = Rig::new("query:key", members());
    for body in ["", "{", "[]", r#"{"keys":[1]}"#, r#"{"keys":"a"}"#, r#"{"keys":["a"],"more":1}"#] {
        refused(&rig.post(body).await, 400, "invalid-json");
    }
    refused(&rig.post(r#"{"keys":[]}"#).await, 400, "too-many-keys");
    refused(&rig.post(r#"{"keys":["a","b","c","d"]}"#).await, 400, "too-many-keys");
    let long = "x".repeat(3 * BYTES_PER_KEY + BYTES_BESIDES);
    refused(&rig.post(&format!(r#"{{"keys":["{long}"]}}"#)).await, 413, "body-too-large");
    let text = rig.ask(http::Request::post("/v1/assign"), r#"{"keys":["a"]}"#).await;
    refused(&text, 415, "unsupported-media-type");
    let put = rig.ask(http::Request::put("/v1/assign"), "").await;
    refused(&put, 405, "method-not-allowed");
    assert_eq!(put.headers["allow"], "GET, POST, OPTIONS");
}

#[tokio::test]
async fn nobody_to_assign() {
    let rig = Rig::new("query:key", Vec::new());
    let answer = rig.get("/v1/assign?key=a").await;
    refused(&answer, 503, "no-gateway");
    assert_eq!(answer.headers["retry-after"], "2");
    refused(&rig.post(r#"{"keys":["a"]}"#).await, 503, "no-gateway");
    assert_eq!(rig.assigner.metrics.assignments.get(Assignment::NoNode), 2);
}

#[tokio::test]
async fn pages_may_ask() {
    let rig = Rig::new("query:key", members());
    let answer = rig.ask(http::Request::options("/v1/assign"), "").await;
    assert_eq!(
        (answer.status, answer.headers["access-control-allow-headers"].to_str().unwrap()),
        (204, "authorization, content-type")
    );
}

#[tokio::test]
async fn a_key_may_be_asked_for() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hunter2\n").unwrap();
    let options = config::Assign { key_file: Some(file.path().to_owned()), ..config::Assign::default() };
    let rig = Rig::with("path", members(), options);
    let with = |value: &str| http::Request::get("/v1/assign?key=a").header("authorization", value);
    assert_eq!(rig.ask(with("Bearer hunter2"), Body::empty()).await.status, 200);
    for wrong in ["Bearer hunter", "Bearer hunter22", "Bearer ", "hunter2", "Basic hunter2"] {
        let answer = rig.ask(with(wrong), Body::empty()).await;
        refused(&answer, 401, "unauthorized");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
    }
    refused(&rig.get("/v1/assign?key=a").await, 401, "unauthorized");
    let preflight = http::Request::builder().method("OPTIONS").uri("/v1/assign");
    assert_eq!(rig.ask(preflight, Body::empty()).await.status, 204);
}

#[tokio::test]
async fn requests_have_a_rate() {
    let options = config::Assign { requests_per_second: 1, requests_burst: 3, ..config::Assign::default() };
    let rig = Rig::with("path", members(), options);
    let mut statuses = Vec::new();
    for _ in 0..10 {
        statuses.push(rig.get("/v1/assign?key=a").await);
    }
    assert!(statuses[..3].iter().all(|answer| answer.status == 200));
    let refused_one = statuses.iter().find(|answer| answer.status != 200).unwrap();
    refused(refused_one, 429, "too-many-requests");
    assert_eq!(refused_one.headers["retry-after"], "1");
}

#[tokio::test]
async fn it_is_off_until_there_is_a_url() {
    let (chooser, metrics) =
        (Arc::new(Chooser::new(LoadFactor::DEFAULT)), Arc::new(Metrics::new(Bounds::default())));
    let options = config::Assign::default();
    assert!(Assigner::new(chooser, metrics, KeyRule::Path, &options).unwrap().is_none());
    let request = http::Request::get("/v1/assign?key=a").body(Body::empty()).unwrap();
    assert_eq!(off().oneshot(request).await.unwrap().status(), 404);
}
