//! The attacks of `cargo xtask attack`, short, against real processes: what they may cost in memory and in work. Nothing
//! here asserts how long anything takes: where a rate is asserted, it is over the time that really passed.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tidegate_testkit::{DEADLINE, Gateway, RawTcp, masked_frame};
use tidegate_tests::attack::{
    Scene, bare_requests, braces, churn, compressed_burst, join_names, knock, pings,
};

/// A bystander of the channel, whose ping is answered after the attack.
fn is_served(gateway: &Gateway) {
    let mut bystander = RawTcp::upgraded(gateway.public(), "/ws?channel=bystander");
    bystander.send(&masked_frame(0x89, b"still here"));
    assert_eq!(bystander.read_frame(DEADLINE).unwrap(), (0x8A, b"still here".to_vec()));
}

fn spent(gateway: &Gateway, budget: &str) -> f64 {
    gateway.metric("tidegate_budgets_spent_total", &[("budget", budget)])
}

/// 1.3 MB of frames of 90 bytes, each 64 KiB inflated, were 1 GB of work. Now each of the 20 connections has a second's
/// worth at once, 256 KiB and what its last frame goes beyond that, and the rate.
#[test]
fn compressed_frames_are_metered_by_what_they_inflate_to() {
    let scene = Scene::open("[limits]\ninflated_bytes_per_second = \"64KiB\"\n");
    let gateway = scene.gateway();
    let started = Instant::now();
    let address = gateway.public();
    let attack = thread::spawn(move || compressed_burst(address, 20));
    gateway.eventually_metric("tidegate_budgets_spent_total", &[("budget", "inflated_bytes")], |times| {
        times >= 20.0
    });
    is_served(gateway);
    let inflated = gateway.metric("tidegate_inflated_bytes_total", &[]);
    let seconds = started.elapsed().as_secs_f64() + 1.0;
    // A part of a turn is 200 us: on a slow machine at least one frame, on a fast one some 8.
    let most = 20.0 * (64.0 * 1024.0 * seconds + 16.0 * 64.0 * 1024.0);
    assert!(inflated <= most, "{inflated} bytes inflated in {seconds} s, {most} are allowed");
    attack.join().unwrap();
}

/// Messages of all kinds count: pings, and what is no message at all.
#[test]
fn pings_and_malformed_messages_are_metered() {
    let scene = Scene::open("[limits]\nmessages_per_second = 100\npublishes_per_second = 100\n");
    let gateway = scene.gateway();
    let address = gateway.public();
    for attack in [pings as fn(std::net::SocketAddr, usize) -> usize, braces] {
        let (spent_before, sent_before) =
            (spent(gateway, "messages"), gateway.metric("tidegate_bytes_sent_total", &[]));
        let started = Instant::now();
        let attack = thread::spawn(move || attack(address, 10));
        gateway.eventually_metric("tidegate_budgets_spent_total", &[("budget", "messages")], |times| {
            times >= spent_before + 10.0
        });
        is_served(gateway);
        // Every message is answered, with less than 200 bytes.
        let sent = gateway.metric("tidegate_bytes_sent_total", &[]) - sent_before;
        let seconds = started.elapsed().as_secs_f64() + 1.0;
        let most = 10.0 * 200.0 * (100.0 * seconds + 101.0) + 64.0 * 1024.0;
        assert!(sent <= most, "{sent} bytes sent in {seconds} s, {most} are allowed");
        attack.join().unwrap();
    }
}

/// Requests that are refused take nothing from the node's handshakes, and no more than one address may have of it.
#[test]
fn one_address_takes_no_handshake_from_others() {
    let config =
        "[limits]\nhandshakes_per_second = 200\nhandshakes_burst = 200\naddress_handshakes_per_second = 20\n";
    let scene = Scene::open(config);
    let address = scene.gateway().public();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let others = thread::spawn(move || knock(address, &stopped));
    let sent = bare_requests(address, 2_000, Duration::from_secs(2));
    stop.store(true, Ordering::Relaxed);
    let (refused, knocked) = others.join().unwrap();
    assert!(sent.answers > 100 && knocked > 10, "{sent:?}, {knocked} others");
    assert_eq!(refused, 0, "of {knocked}");
    let over = scene.gateway().metric("tidegate_handshakes_total", &[("result", "address_rate")]);
    assert!(over > 0.0);
}

/// A connection that subscribes and unsubscribes all the time costs Redis what the rate allows.
#[test]
fn subscribing_all_the_time_costs_redis_little() {
    let scene = Scene::on_redis(2, "[limits]\nsubscriptions = 20\n");
    let redis = scene.redis.as_ref().unwrap();
    let commands = || redis.info("total_commands_processed").unwrap().parse::<f64>().unwrap();
    let (before, started) = (commands(), Instant::now());
    let asked = churn(scene.gateway().public(), "own-", 2_000.0, Duration::from_secs(3));
    let (commands, seconds) = (commands() - before, started.elapsed().as_secs_f64());
    assert!(asked > 100, "{asked}");
    assert!(spent(scene.gateway(), "subscribes") > 0.0);
    let refused = scene.gateway().metric("tidegate_subscriptions_refused_total", &[("reason", "limit")]);
    assert!(refused > 0.0, "the rest is refused and told");
    // 20 at once and 10 a second, 30 commands each; two idle nodes have some 50 a second of their own.
    let most = 30.0 * (20.0 + 10.0 * seconds) + 100.0 * seconds;
    assert!(commands <= most, "{commands} commands in {seconds} s, {most} are allowed");
}

/// Who has no token has few channels, so that names cost little.
#[test]
fn anonymous_connections_have_few_channels() {
    let scene = Scene::open("");
    assert_eq!(join_names(scene.gateway().public(), 3, 100).len(), 0);
    let path = |count: usize| {
        let names = (0..count).map(|at| format!("channel=name-{at}"));
        format!("/ws?{}", names.collect::<Vec<_>>().join("&"))
    };
    let status = |path: &str| {
        let mut connection = RawTcp::upgrade(scene.gateway().public(), path);
        connection.read_head(DEADLINE).unwrap().status
    };
    assert_eq!((status(&path(20)), status(&path(21))), (101, 400));
}

/// The node has a limit of its own, which no burst passes; who joins a channel that is there costs nothing more.
#[test]
fn a_node_has_so_many_channels() {
    let scene = Scene::open("[limits]\nchannels = 5\n");
    let gateway = scene.gateway();
    let _held: Vec<RawTcp> =
        (0..5).map(|at| RawTcp::upgraded(gateway.public(), &format!("/ws?channel=held-{at}"))).collect();
    let status = |channel: &str| {
        let mut connection = RawTcp::upgrade(gateway.public(), &format!("/ws?channel={channel}"));
        connection.read_head(DEADLINE).unwrap().status
    };
    assert_eq!([status("late"), status("held-0")], [503, 101]);
    assert_eq!(spent(gateway, "channels"), 1.0);
}

/// Switched off, the extension is not agreed: there is nothing to inflate.
#[test]
fn compression_can_be_switched_off() {
    let scene = Scene::open("[limits]\ncompression = false\n");
    let mut connection = RawTcp::connect(scene.gateway().public());
    connection.send(
        b"GET /ws?channel=plain HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
          Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
    );
    let head = connection.read_head(DEADLINE).unwrap();
    assert_eq!((head.status, head.header("sec-websocket-extensions")), (101, None));
}
