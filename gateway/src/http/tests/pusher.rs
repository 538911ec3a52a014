//! Pusher's HTTP API: what reaches the backplane.

use tidegate_backplane::{Channel, Control, Payload, Sender, Target};

use super::{BODY_MAX, client::*, fixture::Fixture};
use crate::testing::signed_path;

#[tokio::test]
async fn an_event_is_published_with_its_name_and_its_sender() {
    let fixture = Fixture::new(true);
    let sender = |id: &str| Some(Box::new(Sender { connection: Some(id.into()), user: None }));
    for (body, data, expect) in [
        (r#"{"name":"e","channel":"a","data":"{\"x\":\"é\\n\"}"}"#, "{\"x\":\"é\\n\"}", None),
        (r#"{"name":"e","channels":["a"],"data":"plain","socket_id":""}"#, "plain", None),
        (r#"{"name":"e","channel":"a","data":"","socket_id":"12.34"}"#, "", sender("12.34")),
        (r#"{"name":"e","channel":"a","data":{"x": 1},"tags":[]}"#, "{\"x\": 1}", None),
        (r#"{"name":"e","channels":["a","a"],"data":"once"}"#, "once", None),
    ] {
        let path = signed_path("POST", "/apps/1/events", &[], body, "dev-key", "dev-secret");
        let answer = post(&path, body.to_owned()).of(&fixture.state).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, b"{}".as_slice()), "{body}");
        let last = fixture.publications(&Channel::new("a").unwrap()).pop().unwrap();
        assert_eq!(last.event.as_deref(), Some("e"));
        assert_eq!(last.payload, Payload::Text(data.into()), "{body}");
        assert_eq!(last.sender, expect, "{body}");
    }
}

/// One that is named twice is published to once, as a set of channels has it.
#[tokio::test]
async fn a_channel_that_is_named_twice_gets_one_event() {
    let fixture = Fixture::new(true);
    let body = r#"{"name":"e","channels":["a","b","a"],"data":"1"}"#;
    let path = signed_path("POST", "/apps/1/events", &[], body, "dev-key", "dev-secret");
    assert_eq!(post(&path, body).of(&fixture.state).await.status, 200);
    assert_eq!(fixture.published(), 2);
}

#[tokio::test]
async fn what_cannot_be_a_string_is_refused_everywhere() {
    let fixture = Fixture::new(true);
    // Also inside of a value that is passed on as it is written.
    for data in
        [r#""\ud83d""#, r#""\ude00\ud83d""#, r#"{"a":"\ud83d"}"#, r#"[["\udc00"]]"#, r#"{"\ud83d":1}"#]
    {
        let event = format!(r#"{{"name":"e","channel":"a","data":{data}}}"#);
        for (path, body) in
            [("/apps/1/events", event.clone()), ("/apps/1/batch_events", format!(r#"{{"batch":[{event}]}}"#))]
        {
            let path = signed_path("POST", path, &[], &body, "dev-key", "dev-secret");
            let answer = post(&path, body).of(&fixture.state).await;
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            assert_eq!(answer.status, 400, "{data}");
            assert!(text.starts_with("Invalid body: its ") && text.contains("data is not"), "{text}");
        }
        let published = format!(r#"{{"channels":["a"],"data":{data}}}"#);
        let batch = format!(r#"{{"publications":[{{"channel":"a","data":{data}}}]}}"#);
        for (path, body, at) in
            [("/v1/publish", published, "data"), ("/v1/batch", batch, "publications[0].data")]
        {
            let answer = post(path, body).header("content-type", "application/json").of(&fixture.state).await;
            answer.is_problem(400, "invalid-json");
            assert_eq!(answer.json()["at"]["path"], at);
        }
    }
    assert_eq!(fixture.published(), 0);
    let whole = r#"{"channels":["a"],"data":"\ud83d\ude00"}"#;
    assert_eq!(post("/v1/publish", whole).of(&fixture.state).await.status, 200);
}

#[tokio::test]
async fn an_event_names_its_channels_in_one_way() {
    let fixture = Fixture::new(true);
    for (path, body, text) in [
        (
            "/apps/1/events",
            r#"{"name":"e","channel":"a","channels":["b"],"data":"x"}"#,
            "Give the channels of an event as channel or as channels, not both\n",
        ),
        (
            "/apps/1/events",
            r#"["e","x",["a"],null,null,null]"#,
            "Invalid body: it is not what this path takes (line 1, column 0)\n",
        ),
        (
            "/apps/1/events",
            r#"{"name":"e","channel":"a","data":"#,
            "Invalid body: its data ends before the JSON is complete (line 1, column 33)\n",
        ),
        (
            "/apps/1/batch_events",
            r#"{"batch":[{"name":"e","data":"x"}]}"#,
            "Missing required parameter: channel\n",
        ),
        (
            "/apps/1/events",
            r#"{"name":"e","channels":"a","data":"x"}"#,
            "Invalid body: its channels is not what this path takes (line 1, column 26)\n",
        ),
    ] {
        let path = signed_path("POST", path, &[], body, "dev-key", "dev-secret");
        let answer = post(&path, body).of(&fixture.state).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (400, text.as_bytes()));
    }
    assert_eq!(fixture.published(), 0);
}

#[tokio::test]
async fn a_user_that_cannot_be_read_is_nobody() {
    let fixture = Fixture::new(true);
    for user in ["%ff", "%zz", "%"] {
        let path = format!("/apps/1/users/{user}/terminate_connections");
        let path = signed_path("POST", &path, &[], "", "dev-key", "dev-secret");
        assert_eq!(post(&path, "").of(&fixture.state).await.status, 400, "{user}");
    }
    assert!(fixture.controls().is_empty());
}

#[tokio::test]
async fn an_event_may_be_in_the_query_alone() {
    let fixture = Fixture::new(true);
    let fields = [("name", "e"), ("data", "1"), ("channels", "a,b")];
    let path = signed_path("POST", "/apps/1/events", &fields, "", "dev-key", "dev-secret");
    let answer = post(&path, "").of(&fixture.state).await;
    assert_eq!((answer.status.as_u16(), &*answer.body), (200, b"{}".as_slice()));
    assert_eq!(fixture.published(), 2);
}

#[tokio::test]
async fn users_are_terminated_on_all_nodes() {
    let fixture = Fixture::new(true);
    let path = "/apps/1/users/ada%20l/terminate_connections";
    let path = signed_path("POST", path, &[], "", "dev-key", "dev-secret");
    let answer = post(&path, "").of(&fixture.state).await;
    assert_eq!((answer.status.as_u16(), &*answer.body), (200, b"{}".as_slice()));
    let target = Target::User { app: None, user: "ada l".into() };
    let reason = "the app has terminated this user's connections".into();
    assert_eq!(fixture.controls(), [Control::Disconnect { target, reason }]);
}

#[tokio::test]
async fn the_backplane_is_away() {
    let fixture = Fixture::new(true);
    for (channel, expect) in [("gone", 503), ("doubt", 503), ("a", 200)] {
        let body = format!(r#"{{"name":"e","channel":"{channel}","data":"1"}}"#);
        let path = signed_path("POST", "/apps/1/events", &[], &body, "dev-key", "dev-secret");
        let answer = post(&path, body).of(&fixture.state).await;
        assert_eq!(answer.status.as_u16(), expect, "{channel}");
        assert_eq!(answer.header("retry-after"), if expect == 503 { "1" } else { "" });
    }
    fixture.fill("full");
    assert_eq!(fixture.published(), 1);
}

#[tokio::test]
async fn bodies_are_bounded() {
    let fixture = Fixture::new(true);
    for (bytes, expect) in [(10_240, 200), (10_241, 413), (BODY_MAX + 1, 413)] {
        let body = format!(r#"{{"name":"e","channel":"a","data":"{}"}}"#, "x".repeat(bytes));
        let path = signed_path("POST", "/apps/1/events", &[], &body, "dev-key", "dev-secret");
        assert_eq!(post(&path, body).of(&fixture.state).await.status.as_u16(), expect, "{bytes}");
    }
    assert_eq!(fixture.published(), 1);
}
