//! Centrifugo's server API: what is answered, and what reaches the backplane. Its clients are in `server::tests::centrifuge`.

use serde_json::{Value, json};
use tidegate_backplane::{Channel, Control, Payload, Target};

use super::{BODY_MAX, NEWS, READER, client::*, fixture::Fixture};

/// A request with the key in the API's own header.
fn api(method: &str, params: &Value) -> Ask {
    let ask = post(&format!("/api/{method}"), params.to_string()).without("authorization");
    ask.header("x-api-key", super::ALL)
}

#[track_caller]
fn refused(answer: &Answer, code: u64) {
    let json = answer.json();
    assert_eq!((answer.status.as_u16(), json["error"]["code"].as_u64()), (200, Some(code)), "{json}");
    assert!(json["error"]["message"].is_string() && json["result"].is_null(), "{json}");
}

#[tokio::test]
async fn a_publication_is_kept_as_the_json_that_was_sent() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    let last = |channel: &str| fixture.publications(&Channel::new(channel).unwrap()).pop().unwrap();
    for (data, kept) in [
        (json!({"channel": "a", "data": {"x": 1}}), r#"{"x":1}"#),
        (json!({"channel": "a", "data": "text", "b64data": null}), "\"text\""),
        (json!({"channel": "a", "b64data": "eyJ4IjoyfQ=="}), r#"{"x":2}"#),
        (json!({"channel": "a", "data": 0, "delta": true, "tags": {"event": "e"}}), "0"),
    ] {
        let answer = api("publish", &data).of(state).await;
        let offset = fixture.published();
        answer.is(200, json!({"result": {"offset": offset, "epoch": "k3"}}));
        assert_eq!(last("a").payload, Payload::Text(kept.into()));
    }
    assert_eq!(last("a").event.as_deref(), Some("e"));
    let binary = api("publish", &json!({"channel": "plain:b", "b64data": "AP8="})).of(state).await;
    binary.is(200, json!({"result": {}}));
    assert_eq!(last("plain:b").payload, Payload::Binary(vec![0, 255].into()));
    let skipped = json!({"channel": "s", "data": 1, "skip_history": true});
    api("publish", &skipped).of(state).await.is(200, json!({"result": {}}));
    let once = json!({"channel": "once", "data": 1, "idempotency_key": "k"});
    for _ in 0..2 {
        api("publish", &once).of(state).await.is(200, json!({"result": {"offset": 1, "epoch": "k3"}}));
    }
    assert_eq!(fixture.publications(&Channel::new("once").unwrap()).len(), 1);
}

#[tokio::test]
async fn what_cannot_be_published_has_its_code() {
    let fixture = Fixture::new(false);
    for (params, code) in [
        (json!({"channel": "", "data": 1}), 107),
        (json!({"channel": "a b", "data": 1}), 107),
        (json!({"channel": "a"}), 107),
        (json!({"channel": "a", "data": null}), 107),
        (json!({"channel": "a", "b64data": "%"}), 107),
        (json!({"channel": "a", "data": 1, "tags": {"other": "t"}}), 107),
        (json!({"channel": "a", "data": 1, "tags": {"event": "gap"}}), 107),
        (json!({"channel": "a", "data": 1, "idempotency_key": "a b"}), 107),
        (json!({"channel": "a", "data": 1, "version": 3}), 108),
        (json!({"channel": "a", "data": "x".repeat(super::PAYLOAD_MAX)}), 106),
        (json!({"channel": "gone", "data": 1}), 100),
    ] {
        refused(&api("publish", &params).of(&fixture.state).await, code);
    }
    assert_eq!(fixture.published(), 0);
}

#[tokio::test]
async fn a_broadcast_answers_for_each_channel() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    let answer = api("broadcast", &json!({"channels": ["a", "gone", "plain:b"], "data": {}})).of(state).await;
    let json = answer.json();
    let responses = json["result"]["responses"].as_array().unwrap();
    assert_eq!(responses[0], json!({"result": {"offset": 1, "epoch": "k3"}}));
    assert_eq!(responses[1]["error"]["code"], 100);
    assert_eq!(responses[2], json!({"result": {}}));
    refused(&api("broadcast", &json!({"channels": [], "data": 1})).of(state).await, 107);
    refused(&api("broadcast", &json!({"channels": ["a", "b c"], "data": 1})).of(state).await, 107);
    assert_eq!(fixture.published(), 2);
}

#[tokio::test]
async fn history_presence_and_the_cluster_are_read() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    for n in 1..=3 {
        api("publish", &json!({"channel": "a", "data": n})).of(state).await;
    }
    let top = json!({"result": {"publications": [], "epoch": "k3", "offset": 3}});
    api("history", &json!({"channel": "a"})).of(state).await.is(200, top);
    let since = json!({"channel": "a", "limit": 10, "since": {"offset": 1, "epoch": "k3"}});
    let answer = api("history", &since).of(state).await.json();
    let expect = json!([{"data": 2, "offset": 2}, {"data": 3, "offset": 3}]);
    assert_eq!(answer["result"]["publications"], expect, "{answer}");
    let other = json!({"channel": "a", "limit": 1, "since": {"offset": 1, "epoch": "zz"}});
    refused(&api("history", &other).of(state).await, 112);
    refused(&api("history", &json!({"channel": "plain:a"})).of(state).await, 108);
    let empty = json!({"result": {"publications": [], "epoch": "", "offset": 0}});
    api("history", &json!({"channel": "none", "limit": 5})).of(state).await.is(200, empty);

    let info = json!({"user": "ada", "client": "node-1.7", "conn_info": {"name": "Ada"}});
    let room = json!({"channel": "room:1"});
    let answer = api("presence", &room).of(state).await;
    answer.is(200, json!({"result": {"presence": {"node-1.7": info}}}));
    let answer = api("presence_stats", &room).of(state).await;
    answer.is(200, json!({"result": {"num_clients": 1, "num_users": 1}}));
    refused(&api("presence", &json!({"channel": "a"})).of(state).await, 108);

    let node = json!({"uid": "gateway-0", "name": "gateway-0", "version": "0.1.0", "num_clients": 0});
    api("info", &json!({})).of(state).await.is(200, json!({"result": {"nodes": [node]}}));
    for channel in ["news", "room:1", "room:2"] {
        fixture.subscribe(channel);
    }
    let rooms = json!({"room:1": {"num_clients": 1}, "room:2": {"num_clients": 1}});
    let answer = api("channels", &json!({"pattern": "r*:?"})).of(state).await;
    answer.is(200, json!({"result": {"channels": rooms}}));
    let news = post("/api/channels", "{}").key(NEWS).of(state).await;
    news.is(200, json!({"result": {"channels": {"news": {"num_clients": 1}}}}));
    refused(&api("channels", &json!({"pattern": "[ab]"})).of(state).await, 107);
}

#[tokio::test]
async fn orders_go_to_all_nodes() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    let nothing = json!({"result": {}});
    let (user, of) = (json!({"user": "ada"}), json!({"user": "ada", "client": "n.1"}));
    api("disconnect", &user).of(state).await.is(200, nothing.clone());
    api("disconnect", &of).of(state).await.is(200, nothing.clone());
    let unsubscribe = json!({"user": "ada", "channel": "a"});
    api("unsubscribe", &unsubscribe).of(state).await.is(200, nothing.clone());
    api("subscribe", &unsubscribe).of(state).await.is(200, nothing.clone());
    api("refresh", &json!({"user": "ada", "expired": true})).of(state).await.is(200, nothing);
    let ada = || Target::User { app: None, user: "ada".into() };
    let controls = fixture.controls();
    let disconnect = Control::Disconnect { target: ada(), reason: "force disconnect".into() };
    assert_eq!(controls[0], disconnect);
    let targets = controls[1..].iter().map(|control| match control {
        Control::Instruct { target, .. } => target.clone(),
        other => panic!("{other:?}"),
    });
    let one = Target::Connection("n.1".into());
    assert_eq!(targets.collect::<Vec<_>>(), [one, ada(), ada(), ada()]);
    for (method, params, code) in [
        ("disconnect", json!({}), 107),
        ("disconnect", json!({"user": "ada", "disconnect": {"code": 1000}}), 107),
        ("disconnect", json!({"user": "ada", "session": "s"}), 108),
        ("subscribe", json!({"user": "ada"}), 107),
        ("subscribe", json!({"channel": "a"}), 107),
        ("unsubscribe", json!({"user": "ada"}), 107),
        ("history_remove", json!({"channel": "plain:a"}), 108),
        ("history_remove", json!({}), 107),
        ("rpc", json!({"method": "m"}), 104),
    ] {
        refused(&api(method, &params).of(state).await, code);
    }
    assert_eq!(fixture.controls().len(), 5);
}

#[tokio::test]
async fn commands_come_in_one_request() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    for parallel in [false, true] {
        let publish = |channel: &str| json!({"publish": {"channel": channel, "data": 1}});
        let commands = json!([publish("plain:a"), publish(""), {"presence_stats": {"channel": "room:1"}}]);
        let answer = api("batch", &json!({"commands": commands, "parallel": parallel})).of(state).await;
        let json = answer.json();
        let replies = json["replies"].as_array().unwrap();
        assert_eq!((&replies[0], &replies[1]["error"]["code"]), (&json!({"publish": {}}), &json!(107)));
        assert_eq!(replies[2], json!({"presence_stats": {"num_clients": 1, "num_users": 1}}));
    }
    for commands in [json!([{}]), json!([{"publish": {}, "info": {}}]), json!([{"batch": {"commands": []}}])]
    {
        let answer = api("batch", &json!({ "commands": commands })).of(state).await.json();
        assert!(answer["replies"][0]["error"]["code"].is_u64(), "{answer}");
    }
    // The older form: a command names its method, and lines hold many.
    let lines = concat!(
        r#"{"id":7,"method":"publish","params":{"channel":"plain:a","data":1}}"#,
        "\n",
        r#"{"method":"nothing"}"#
    );
    let answer = post("/api", lines).header("authorization", &format!("apikey {}", super::ALL));
    let answer = answer.of(state).await;
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let replies: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(replies[0], json!({"id": 7, "result": {}}));
    assert_eq!(replies[1]["error"]["code"], 104);
}

#[tokio::test]
async fn keys_have_their_scopes_and_channels() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    let publish = |channel: &str| post("/api/publish", json!({"channel": channel, "data": 1}).to_string());
    publish("plain:a").without("authorization").of(state).await.is_problem(401, "unauthorized");
    publish("plain:a").key("wrong").of(state).await.is_problem(401, "unauthorized");
    publish("plain:a")
        .header("authorization", "apikey wrong")
        .of(state)
        .await
        .is_problem(401, "unauthorized");
    publish("plain:a").header("x-api-key", "wrong").of(state).await.is_problem(401, "unauthorized");
    refused(&publish("sport").key(NEWS).of(state).await, 103);
    refused(&publish("news").key(READER).of(state).await, 103);
    assert_eq!(publish("news").key(NEWS).of(state).await.json()["result"]["offset"], 1);
    for (method, params) in [
        ("subscribe", json!({"user": "u", "channel": "news"})),
        ("unsubscribe", json!({"user": "u", "channel": "news"})),
        ("disconnect", json!({"user": "u"})),
        ("refresh", json!({"user": "u"})),
    ] {
        refused(&post(&format!("/api/{method}"), params.to_string()).key(NEWS).of(state).await, 103);
    }
    assert!(fixture.controls().is_empty());
}

#[tokio::test]
async fn what_is_no_command_is_refused_as_a_request() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    post("/api/nothing", "{}").of(state).await.is_problem(404, "not-found");
    get("/api/info").of(state).await.is_problem(405, "method-not-allowed");
    for body in ["", "{", "[]", "null", r#"{"channel":5}"#] {
        post("/api/publish", body).of(state).await.is_problem(400, "invalid-json");
    }
    for body in ["", "{", "[1]", "{}"] {
        let answer = post("/api", body).of(state).await;
        assert_eq!(answer.status, 400, "{body}");
    }
    let large = "x".repeat(BODY_MAX + 1);
    post("/api/publish", large).of(state).await.is_problem(413, "body-too-large");
    assert_eq!(fixture.published(), 0);
}

/// Histories of 4 MiB each: those that begin when more than 16 MiB were answered are refused, one after the other and
/// together.
#[tokio::test]
async fn the_answers_to_one_request_have_a_bound() {
    let fixture = Fixture::new(false);
    let state = &fixture.state;
    for _ in 0..64 {
        post("/v1/channels/long/publish", "x".repeat(64 * 1024)).of(state).await;
    }
    let history = json!({"history": {"channel": "long", "limit": 64}});
    for parallel in [false, true] {
        let commands = json!({"commands": vec![&history; 40], "parallel": parallel});
        let replies = api("batch", &commands).of(state).await.json()["replies"].clone();
        let replies = replies.as_array().expect("replies");
        let is_refused = |reply: &&Value| reply["error"]["code"] == 106;
        let refused = replies.iter().filter(is_refused).count();
        assert!(replies.len() == 40 && (20..=36).contains(&refused), "{refused} of {}", replies.len());
        assert!(replies[0]["history"].is_object() && is_refused(&&replies[39]));
    }
}
