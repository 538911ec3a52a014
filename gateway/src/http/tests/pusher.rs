//! Pusher's HTTP API: what reaches the backplane.

use tidegate_backplane::{Channel, Control, DisconnectTarget, Payload, Sender};

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
    let event = r#"{"name":"e","channel":"a","data":"\ud83d"}"#;
    for (path, body) in
        [("/apps/1/events", event.to_owned()), ("/apps/1/batch_events", format!(r#"{{"batch":[{event}]}}"#))]
    {
        let path = signed_path("POST", path, &[], &body, "dev-key", "dev-secret");
        assert_eq!(post(&path, body).of(&fixture.state).await.status, 400);
    }
    post("/v1/publish", r#"{"channels":["a"],"data":"\ud83d"}"#)
        .header("content-type", "application/json")
        .of(&fixture.state)
        .await
        .is_problem(400, "invalid-json");
    assert_eq!(fixture.published(), 0);
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
    let target = DisconnectTarget::User { app: None, user: "ada l".into() };
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
