//! The Redis backplane runs the conformance suite on every topology, at the pace of a real clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt};
use tidegate_backplane::{
    Backplane, RedisBackplane, RedisOptions, Sink,
    conformance::{self, Subject},
};
use tidegate_testkit::redis::{RedisCluster, RedisServer, Sentinel};

/// Long enough that it does not pass by itself on a busy machine.
const LEASE: Duration = Duration::from_secs(5);
const IDEMPOTENCY_WINDOW: Duration = Duration::from_secs(5);

struct Redis {
    url: String,
    replicas: u8,
    nodes: AtomicU32,
}

impl Redis {
    fn new(url: String, replicas: u8) -> Self {
        Self { url, replicas, nodes: AtomicU32::new(0) }
    }

    fn options(&self) -> RedisOptions {
        let node = format!("node-{}", self.nodes.fetch_add(1, Ordering::Relaxed));
        let url = self.url.parse().expect("a URL");
        RedisOptions {
            lease: LEASE,
            idempotency_window: IDEMPOTENCY_WINDOW,
            replicas: self.replicas,
            ..RedisOptions::new(url, &node)
        }
    }
}

impl Subject for Redis {
    fn node(&self, sink: Arc<dyn Sink>) -> BoxFuture<'_, Arc<dyn Backplane>> {
        let connect = RedisBackplane::connect(self.options(), sink);
        async move { connect.await.expect("the backplane connects") as Arc<dyn Backplane> }.boxed()
    }

    fn shares_nodes(&self) -> bool {
        true
    }

    fn pass(&self, time: Duration) -> BoxFuture<'_, ()> {
        // The clock is the server's, which cannot be moved.
        tokio::time::sleep(time).boxed()
    }

    fn idempotency_window(&self) -> Duration {
        IDEMPOTENCY_WINDOW
    }

    fn node_lease(&self) -> Option<Duration> {
        Some(LEASE)
    }
}

async fn check(url: String) {
    conformance::run(&Redis::new(url, 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn standalone_conforms() {
    let server = RedisServer::start();
    check(server.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_list_conforms() {
    let servers = [RedisServer::start(), RedisServer::start(), RedisServer::start()];
    let addresses = servers.each_ref().map(|server| server.address().to_string());
    check(format!("redis://{}", addresses.join(","))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sentinel_conforms() {
    let sentinel = Sentinel::start();
    check(sentinel.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sentinel_conforms_when_replicas_must_have_what_is_kept() {
    let sentinel = Sentinel::start();
    conformance::run(&Redis::new(sentinel.url(), 2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cluster_conforms() {
    let cluster = RedisCluster::start(3, 0);
    check(cluster.url()).await;
}
