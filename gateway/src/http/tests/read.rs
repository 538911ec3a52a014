//! Reading channels, presence and nodes; disconnecting.

use serde_json::json;
use tidegate_backplane::{Control, Target};

use super::{NEWS, client::*, fixture::Fixture};

#[tokio::test]
async fn channels_are_paged_and_filtered() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    for name in ["news", "news:a", "news:b", "sport"] {
        fixture.subscribe(name);
    }
    let one = |name: &str, subscribers: u64| json!({"node": "gateway-0", "channel": name, "subscribers": subscribers});
    let entry = |name: &str| json!({"channel": name, "subscribers": 1});
    get("/v1/channels?limit=2").of(state).await.is(
        200,
        json!({"node": "gateway-0", "channels": [entry("news"), entry("news:a")], "next": "news:a"}),
    );
    get("/v1/channels?limit=2&after=news%3Aa").of(state).await.is(
        200,
        json!({"node": "gateway-0", "channels": [entry("news:b"), entry("sport")], "next": "sport"}),
    );
    get("/v1/channels?after=sport")
        .of(state)
        .await
        .is(200, json!({"node": "gateway-0", "channels": [], "next": null}));
    get("/v1/channels?prefix=news:")
        .of(state)
        .await
        .is(200, json!({"node": "gateway-0", "channels": [entry("news:a"), entry("news:b")], "next": null}));
    get("/v1/channels?limit=4")
        .key(NEWS)
        .of(state)
        .await
        .is(200, json!({"node": "gateway-0", "channels": [entry("news"), entry("news:a"), entry("news:b")], "next": "sport"}));
    get("/v1/channels/sport").of(state).await.is(200, one("sport", 1));
    get("/v1/channels/nobody").of(state).await.is(200, one("nobody", 0));
    let head = ask("HEAD", "/v1/channels").of(state).await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
}

#[tokio::test]
async fn reads_refuse() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
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
        ask.of(state).await.is_problem(status, kind);
    }
}

#[tokio::test]
async fn presence_disconnect_nodes() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    get("/v1/channels/room:1/presence")
        .of(state)
        .await
        .is(200, json!({"members": [{"connection": "node-1.7", "user": "ada", "info": {"name": "Ada"}}]}));
    post_json("/v1/disconnect", &json!({"user": "ada"})).of(state).await.is(202, json!({}));
    post_json("/v1/disconnect", &json!({"connection": "node-1.7", "reason": "bye"}))
        .of(state)
        .await
        .is(202, json!({}));
    let order = |target, reason: &str| Control::Disconnect { target, reason: reason.into() };
    let expect = [
        order(Target::User { app: None, user: "ada".into() }, "disconnected by the application"),
        order(Target::Connection("node-1.7".into()), "bye"),
    ];
    assert_eq!(fixture.controls(), expect);
    get("/v1/nodes").of(state).await.is(
        200,
        json!({"nodes": [{
            "name": "gateway-0", "address": "127.0.0.1:8000", "version": "0.1.0",
            "connections": 0, "capacity": 1000, "draining": false,
        }]}),
    );
}
