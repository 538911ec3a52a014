//! Half a million channels of one node on one Redis: all are there again after a restart, in memory bounded by their
//! number, and without a connection given up for being slow.

use std::time::Instant;

use tidegate_testkit::memory::pss_bytes;
use tidegate_testkit::net::SocketOptions;
use tidegate_testkit::redis::RedisServer;
use tidegate_testkit::{DEADLINE, Gateway, Received, WsClient, eventually};
use tidegate_tests::cluster::figures::record;
use tidegate_tests::cluster::site::{CONFIG, eventually_ready, node};

/// 1,000 connections × 500 channels; their names fit into a request of 8 KiB.
const CONNECTIONS: usize = 1_000;
const CHANNELS_EACH: usize = 500;
const CHANNELS: usize = CONNECTIONS * CHANNELS_EACH;

/// `limits.channels` says what a channel takes; a restart makes every one of them wait, be asked for, and be told a gap.
const BYTES_EACH_MAX: u64 = 2_600;

const LIMITS: &str = "[limits]\nsubscriptions = 500\nanonymous_subscriptions = 500\n";

#[test]
fn half_a_million_channels_are_back_after_a_restart() {
    let mut redis = RedisServer::start();
    let gateway = node(&redis.url(), 1).config(&format!("{CONFIG}{LIMITS}")).start();
    let other = node(&redis.url(), 2).config(CONFIG).start();
    let start = Instant::now();
    let mut clients: Vec<WsClient> = (0..CONNECTIONS).map(|index| client(&gateway, index)).collect();
    eventually_subscribed(&redis);
    let (subscribed, settled) = (start.elapsed(), pss_bytes(gateway.pid()));
    let given_up = given_up(&gateway);

    redis.restart_empty();
    let start = Instant::now();
    let mut most = settled;
    eventually("all are subscribed again", DEADLINE * 3, || {
        most = most.max(pss_bytes(gateway.pid()));
        subscriptions(&redis) == CHANNELS
    });
    let back = start.elapsed();
    eventually_ready(&gateway, true);
    eventually_ready(&other, true);
    record(
        "figures/half-a-million.md",
        &format!(
            "{CHANNELS} channels of a node were subscribed after {:.1} s with {} MiB; after a restart of Redis they were \
             back after {:.1} s, with {} MiB at most.",
            subscribed.as_secs_f64(),
            settled >> 20,
            back.as_secs_f64(),
            most >> 20,
        ),
    );
    assert!(most <= CHANNELS as u64 * BYTES_EACH_MAX, "{} MiB", most >> 20);
    // One for the restart itself, on each of its connections.
    assert!(self::given_up(&gateway) <= given_up + 3.0, "a session was given up for being slow");
    for (index, client) in clients.iter_mut().enumerate().step_by(100) {
        let channel = channel(index, CHANNELS_EACH - 1);
        other.rest().publish(&channel, "here");
        // After the gaps that its channels were told.
        loop {
            match client.next(DEADLINE) {
                Received::Text(text) if text.contains("here") => break,
                Received::Text(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

fn channel(connection: usize, index: usize) -> String {
    format!("live:{}", connection * CHANNELS_EACH + index)
}

fn client(gateway: &Gateway, connection: usize) -> WsClient {
    let channels = (0..CHANNELS_EACH).map(|index| format!("channel={}&", channel(connection, index)));
    let path = format!("/ws?{}envelope=json", channels.collect::<String>());
    let options = SocketOptions::default();
    WsClient::try_connect_from(gateway.public(), &path, &[], options).expect("it is let in")
}

fn subscriptions(redis: &RedisServer) -> usize {
    redis.info("pubsub_channels").and_then(|text| text.parse().ok()).map_or(0, |all: usize| {
        // Beside them, what nodes tell each other.
        if all >= CHANNELS { CHANNELS } else { all }
    })
}

#[track_caller]
fn eventually_subscribed(redis: &RedisServer) {
    eventually("all are subscribed", DEADLINE * 3, || subscriptions(redis) == CHANNELS);
}

fn given_up(gateway: &Gateway) -> f64 {
    gateway.metric("tidegate_backplane_reconnects_total", &[])
}
