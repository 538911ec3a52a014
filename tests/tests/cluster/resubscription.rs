//! 10,000 subscriptions of one node come back after its connections to Redis are gone.

use std::time::Instant;

use serde_json::json;
use tidegate_testkit::redis::RedisServer;
use tidegate_testkit::{DEADLINE, WsClient, eventually};

use tidegate_tests::cluster::figures::record;
use tidegate_tests::cluster::site::{Site, eventually_ready};

/// 100 connections × 100 channels, the most that one may have.
const CONNECTIONS: usize = 100;
const CHANNELS_EACH: usize = 100;

#[test]
fn ten_thousand_subscriptions_come_back() {
    let mut redis = RedisServer::start();
    let site = Site::start(&redis.url(), 2);
    let mut clients: Vec<WsClient> = (0..CONNECTIONS).map(|index| client(&site, index)).collect();
    eventually_subscribed(&redis);
    publish_everywhere(&site);
    for client in &mut clients {
        for _ in 0..CHANNELS_EACH {
            assert_eq!(client.expect_json()["data"], "0");
        }
    }

    let start = Instant::now();
    redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    eventually_subscribed(&redis);
    note("their connection was closed", start);
    expect_delivery(&site, &mut clients, "1");

    redis.kill();
    redis.restart();
    let start = Instant::now();
    eventually_subscribed(&redis);
    note("Redis was killed and restarted", start);
    eventually_ready(&site.gateways[1], true);
    expect_delivery(&site, &mut clients, "2");
}

fn channel(connection: usize, index: usize) -> String {
    format!("kept:{}", connection * CHANNELS_EACH + index)
}

fn client(site: &Site, connection: usize) -> WsClient {
    let channels = (0..CHANNELS_EACH).map(|index| format!("channel={}&", channel(connection, index)));
    let path = format!("/ws?{}envelope=json", channels.collect::<String>());
    WsClient::connect(site.gateways[0].public(), &path)
}

/// One publication to each channel: without a position nobody can tell afterwards that nothing was missed.
#[track_caller]
fn publish_everywhere(site: &Site) {
    let rest = site.gateways[1].rest();
    for connection in 0..CONNECTIONS {
        let channels: Vec<String> = (0..CHANNELS_EACH).map(|index| channel(connection, index)).collect();
        let answer = rest.post_json("/v1/publish", &json!({ "channels": channels, "data": "0" }));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

/// Waits until Redis counts them all.
#[track_caller]
fn eventually_subscribed(redis: &RedisServer) {
    eventually("Redis has 10,000 subscriptions", DEADLINE, || {
        let channels = redis.command(&["PUBSUB", "CHANNELS", "*{kept:*"]);
        channels.elements().len() == CONNECTIONS * CHANNELS_EACH
    });
}

/// The last channel of each connection delivers what another node publishes, and no channel was told a gap.
#[track_caller]
fn expect_delivery(site: &Site, clients: &mut [WsClient], payload: &str) {
    let rest = site.gateways[1].rest();
    for (connection, client) in clients.iter_mut().enumerate() {
        let channel = channel(connection, CHANNELS_EACH - 1);
        rest.publish(&channel, payload);
        let message = client.expect_json();
        assert_eq!(
            (message["channel"].as_str(), message["data"].as_str()),
            (Some(&*channel), Some(payload)),
            "{message}"
        );
    }
}

fn note(cause: &str, start: Instant) {
    let elapsed = start.elapsed().as_secs_f64();
    let file = format!("figures/resubscription-{}.md", cause.replace(' ', "-"));
    record(&file, &format!("10,000 subscriptions were back {elapsed:.2} s after {cause}."));
}
