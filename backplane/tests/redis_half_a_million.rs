//! Half a million channels of one node on one Redis: all are there again after a restart, in memory that is bounded by
//! their number.

use std::{sync::Arc, time::Instant};

use futures_util::future::join_all;
use tidegate_backplane::{Backplane, Channel, RedisBackplane, RedisOptions, conformance::Recorder};
use tidegate_testkit::redis::RedisServer;
use tidegate_testkit::{DEADLINE, eventually, memory::pss_bytes};

const CHANNELS: u64 = 500_000;

/// So many are asked for at once, so that each is confirmed in its time.
const AT_ONCE: usize = 5_000;

/// An entry and its timers are less than 500 bytes; a restart makes every one of them wait and be asked for.
const BYTES_EACH_MAX: u64 = 1_000;

/// What does not grow with the channels: buffers, code that is loaded late.
const BYTES_BESIDE: u64 = 64 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_million_channels_are_back_after_a_restart() {
    let mut server = RedisServer::start();
    let url = server.url().parse().expect("a URL");
    let node = RedisBackplane::connect(RedisOptions::new(url, "a"), Arc::<Recorder>::default())
        .await
        .expect("a node");
    let names: Vec<Channel> =
        (0..CHANNELS).map(|number| Channel::new(&format!("channel-{number}")).expect("a name")).collect();
    let begin = memory();
    let start = Instant::now();
    for names in names.chunks(AT_ONCE) {
        for subscribed in join_all(names.iter().map(|name| node.subscribe(name, 1))).await {
            subscribed.expect("it is confirmed");
        }
    }
    println!("subscribed after {:?}, {} MiB", start.elapsed(), (memory() - begin) >> 20);

    server.restart_empty();
    let start = Instant::now();
    let mut most = 0;
    eventually("all are there again", DEADLINE, || {
        most = most.max(memory() - begin);
        let counters = node.counters().subscriptions;
        counters.resubscribed >= CHANNELS && counters.confirmed == CHANNELS
    });
    println!("back after {:?}, {} MiB at most", start.elapsed(), most >> 20);
    assert!(most <= CHANNELS * BYTES_EACH_MAX + BYTES_BESIDE, "{most} bytes");
    let sessions: u64 = node.counters().links.iter().map(|link| link.sessions).sum();
    assert_eq!(sessions, 2, "no session was given up for being slow");
    node.close().await;
}

fn memory() -> u64 {
    pss_bytes(std::process::id())
}
