//! A node that is cut off from Redis: it says so, keeps its clients, and comes back by itself with what was missed.

use serde_json::Value;
use tidegate_testkit::redis::{Cut, RedisServer};
use tidegate_testkit::{SseClient, WsClient};

use tidegate_tests::cluster::site::{eventually_ready, node};

#[test]
fn a_silent_wire_is_seen_and_what_was_missed_comes_after_it() {
    check(Cut::silence);
}

#[test]
fn a_closed_wire_is_seen_and_what_was_missed_comes_after_it() {
    check(Cut::close);
}

#[test]
fn a_namespace_may_deliver_on_the_node_while_redis_is_away() {
    let mut redis = RedisServer::start();
    let gateway = node(&redis.url(), 1).start();
    let mut client = gateway.subscribe("local:a");
    redis.kill();
    eventually_ready(&gateway, false);
    let answer = gateway.rest().post("/v1/channels/local:a/publish", "text/plain", "here");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.position(), None);
    assert_eq!(client.expect_text(), "here");
}

/// Whoever reads the log of a stop that went well must not be sent to look at Redis.
#[test]
fn a_stop_speaks_of_no_outage() {
    let redis = RedisServer::start();
    let gateway = node(&redis.url(), 1).start();
    eventually_ready(&gateway, true);
    let exit = gateway.terminate();
    assert_eq!(exit.code, Some(0), "{exit}");
    assert!(exit.stderr.contains("drained") && !exit.stderr.contains("WARN"), "{exit}");
}

#[track_caller]
fn check(cut_off: impl FnOnce(&Cut)) {
    let redis = RedisServer::start();
    let cut = Cut::before(redis.address());
    let (near, far) = (node(&redis.url(), 1).start(), node(&cut.url(), 2).start());
    let mut kept = WsClient::connect(far.public(), "/ws?channel=kept:a&envelope=json");
    let mut stream = SseClient::connect(far.public(), "/sse?channel=kept:a", None);
    let mut live = WsClient::connect(far.public(), "/ws?channel=live:a&envelope=json");
    for channel in ["kept:a", "live:a"] {
        near.rest().publish(channel, "1");
    }
    assert_eq!(kept.expect_json()["data"], "1");
    assert_eq!(stream.expect_event().data, "1");
    assert_eq!(live.expect_json()["data"], "1");

    cut_off(&cut);
    let body = eventually_ready(&far, false);
    let reasons: Value = serde_json::from_str(&body).unwrap();
    let reasons = reasons["reasons"].as_array().expect("reasons").clone();
    assert!(reasons.iter().any(|reason| reason.to_string().contains("backplane")), "{body}");
    let refused = far.rest().post("/v1/channels/kept:a/publish", "text/plain", "never");
    refused.expect_problem(503);
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    for payload in ["2", "3"] {
        near.rest().publish("kept:a", payload);
        near.rest().publish("live:a", payload);
    }
    far.eventually_connections(3);

    cut.go_on();
    eventually_ready(&far, true);
    near.rest().publish("kept:a", "4");
    for payload in ["2", "3", "4"] {
        assert_eq!(kept.expect_json()["data"], payload);
        assert_eq!(stream.expect_event().data, payload);
    }
    // Nothing is kept of the other channel, so its client is told, and then goes on.
    let notice = live.expect_json();
    assert_eq!(notice["channel"], "live:a", "{notice}");
    assert!(notice["gap"]["reason"].is_string(), "{notice}");
    near.rest().publish("live:a", "4");
    assert_eq!(live.expect_json()["data"], "4");
}
