//! Coming back: exactly what was missed, or a clear word that it cannot be had. Never a silent gap.

use serde_json::json;
use tidegate_testkit::{DEADLINE, Gateway, Position, Rest, SseClient, WsClient, eventually};

/// Publishes the payloads in order and gives the last position.
fn publish_all(rest: &Rest, channel: &str, payloads: &[&str]) -> Position {
    let publish = |_, payload: &&str| rest.publish(channel, payload);
    payloads.iter().fold(None, publish).expect("development channels have history")
}

#[test]
fn since_gives_exactly_what_was_missed_and_then_what_is_new() {
    let gateway = Gateway::start();
    let rest = gateway.rest();
    let seen = publish_all(&rest, "news", &["1", "2"]);
    publish_all(&rest, "news", &["3", "4"]);
    let mut client = WsClient::connect(gateway.public(), &format!("/ws?channel=news&since={seen}"));
    publish_all(&rest, "news", &["5"]);
    for expected in ["3", "4", "5"] {
        assert_eq!(client.expect_text(), expected);
    }
}

#[test]
fn since_the_latest_position_gives_only_what_is_new() {
    let gateway = Gateway::start();
    let rest = gateway.rest();
    let seen = publish_all(&rest, "news", &["1"]);
    let mut client =
        WsClient::connect(gateway.public(), &format!("/ws?channel=news&since={seen}&envelope=json"));
    let next = publish_all(&rest, "news", &["2"]);
    assert_eq!(
        client.expect_json(),
        json!({ "channel": "news", "epoch": next.epoch, "offset": next.offset, "data": "2" })
    );
}

#[test]
fn last_event_id_gives_exactly_what_was_missed() {
    let gateway = Gateway::start();
    let rest = gateway.rest();
    let mut stream = gateway.event_stream("news");
    publish_all(&rest, "news", &["1"]);
    let seen = stream.expect_event().id;
    drop(stream);
    publish_all(&rest, "news", &["2", "3"]);
    let mut stream = SseClient::connect(gateway.public(), "/sse?channel=news", Some(&seen));
    publish_all(&rest, "news", &["4"]);
    for expected in ["2", "3", "4"] {
        assert_eq!(stream.expect_event().data, expected);
    }
}

#[test]
fn a_stream_that_saw_nothing_comes_back_without_a_gap() {
    let gateway = Gateway::start();
    let rest = gateway.rest();
    publish_all(&rest, "old", &["before"]);
    let path = "/sse?channel=old&channel=new";
    let id = SseClient::connect(gateway.public(), path, None).expect_id();
    publish_all(&rest, "old", &["o1", "o2"]);
    publish_all(&rest, "new", &["n1", "n2"]);
    let mut stream = SseClient::connect(gateway.public(), path, Some(&id));
    let mut missed: Vec<String> = (0..4).map(|_| stream.expect_event().data).collect();
    missed.sort();
    assert_eq!(missed, ["n1", "n2", "o1", "o2"]);
    publish_all(&rest, "new", &["n3"]);
    assert_eq!(stream.expect_event().data, "n3");
}

#[test]
fn no_publication_is_lost_or_doubled_while_others_publish() {
    // Recovery joins history and the live stream; publishing all the while makes the seam visible.
    let gateway = Gateway::start();
    let rest = gateway.rest();
    let start = publish_all(&rest, "busy", &["0"]);
    let total = 80; // Under the 100 publications of history that --dev keeps.
    std::thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            for number in 1..=total {
                rest.publish("busy", &number.to_string());
            }
        });
        for _ in 0..20 {
            let mut client = WsClient::connect(gateway.public(), &format!("/ws?channel=busy&since={start}"));
            for number in 1..=total {
                assert_eq!(client.expect_text(), number.to_string());
            }
        }
        publisher.join().unwrap();
    });
}

#[test]
fn a_restart_is_told_to_clients_that_come_back() {
    let before = Gateway::start();
    let (public, internal) = (before.public(), before.internal());
    let mut stream = before.event_stream("news");
    let seen = publish_all(&before.rest(), "news", &["1", "2"]);
    assert_eq!([stream.expect_event().id, stream.expect_event().id].last(), Some(&seen.to_string()));
    before.kill();
    stream.expect_end();

    let after = Gateway::builder().listen(public).internal(internal).start();
    let next = publish_all(&after.rest(), "news", &["3", "4", "5"]);
    assert_ne!(next.epoch, seen.epoch, "a history that was lost must not look continued");

    let mut envelopes = WsClient::connect(public, &format!("/ws?channel=news&since={seen}&envelope=json"));
    let notice = envelopes.expect_json();
    assert_eq!(notice["channel"], "news", "{notice}");
    assert!(notice["gap"]["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{notice}");
    assert_eq!(notice["gap"]["epoch"], next.epoch, "{notice}");

    let mut verbatim = WsClient::connect(public, &format!("/ws?channel=news&since={seen}"));
    let reason = verbatim.expect_close(4010);
    assert!(reason.starts_with("gap: "), "{reason}");

    let mut stream = SseClient::connect(public, "/sse?channel=news", Some(&seen.to_string()));
    let event = stream.expect_event();
    assert_eq!(event.event, "gap", "{event:?}");
    let notice: serde_json::Value = serde_json::from_str(&event.data).unwrap();
    assert_eq!(notice["channel"], "news", "{notice}");
    assert_eq!(notice["gap"]["epoch"], next.epoch, "{notice}");
    after.eventually_metric("tidegate_disconnects_total", &[("reason", "gap")], |count| count == 1.0);

    // After the word, both go on with what is new.
    publish_all(&after.rest(), "news", &["6"]);
    eventually("the envelope of the new message", DEADLINE, || envelopes.expect_json()["data"] == "6");
    eventually("the event of the new message", DEADLINE, || stream.expect_event().data == "6");
}

#[test]
fn a_position_older_than_the_history_is_told() {
    let gateway =
        Gateway::builder().config("[namespaces.short]\nhistory_size = 2\nhistory_age = \"5m\"\n").start();
    let rest = gateway.rest();
    let seen = publish_all(&rest, "short:a", &["1"]);
    publish_all(&rest, "short:a", &["2", "3", "4"]);
    let mut client =
        WsClient::connect(gateway.public(), &format!("/ws?channel=short:a&since={seen}&envelope=json"));
    let notice = client.expect_json();
    assert!(notice["gap"]["reason"].is_string(), "{notice}");
}

#[test]
fn a_position_that_cannot_be_read_is_refused() {
    let gateway = Gateway::start();
    for since in ["x", "a:b", ":1", "a:", "a:-1", "a:99999999999999999999999"] {
        let path = format!("/ws?channel=news&since={since}");
        let refusal = WsClient::try_connect(gateway.public(), &path, &[]).expect_err(since);
        assert_eq!(refusal.status, 400, "{since}: {refusal:?}");
        assert!(refusal.body.contains("since"), "{since}: {refusal:?}");
    }
    let refusal = WsClient::try_connect(gateway.public(), "/ws?channel=a&channel=b&since=a:1", &[]);
    assert_eq!(refusal.expect_err("one position for two channels").status, 400);
}
