//! The Redis backplane runs the conformance suite on every topology, at the pace of a real clock.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt, ready};
use tidegate_backplane::{
    Backplane, RedisBackplane, RedisOptions, Sink,
    conformance::{self, Subject},
};
use tidegate_testkit::redis::{RedisClient, RedisCluster, RedisServer, Sentinel};

/// Long enough that it does not pass by itself on a busy machine.
const LEASE: Duration = Duration::from_secs(8);
const PRESENCE_SETTLE: Duration = Duration::from_secs(8);
const IDEMPOTENCY_WINDOW: Duration = Duration::from_secs(8);

struct Redis {
    url: String,
    replicas: u8,
    masters: Vec<SocketAddr>,
    nodes: AtomicU32,
}

impl Redis {
    fn new(url: String, replicas: u8, masters: &[SocketAddr]) -> Self {
        Self { url, replicas, masters: masters.to_vec(), nodes: AtomicU32::new(0) }
    }

    fn options(&self) -> RedisOptions {
        let node = format!("node-{}", self.nodes.fetch_add(1, Ordering::Relaxed));
        let url = self.url.parse().expect("a URL");
        RedisOptions {
            lease: LEASE,
            idempotency_window: IDEMPOTENCY_WINDOW,
            replicas: self.replicas,
            presence_settle: PRESENCE_SETTLE,
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

    fn is_real_time(&self) -> bool {
        true
    }

    fn idempotency_window(&self) -> Duration {
        IDEMPOTENCY_WINDOW
    }

    fn node_lease(&self) -> Option<Duration> {
        Some(LEASE)
    }

    fn presence_settle(&self) -> Duration {
        PRESENCE_SETTLE
    }

    fn lose_all(&self) -> BoxFuture<'_, bool> {
        for &master in &self.masters {
            let mut client = RedisClient::connect(master).expect("the server is there");
            client.command(&["FLUSHALL"]).expect("the server forgets");
        }
        ready(true).boxed()
    }
}

async fn check(url: String, masters: &[SocketAddr]) {
    conformance::run(&Redis::new(url, 0, masters)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn standalone_conforms() {
    let server = RedisServer::start();
    check(server.url(), &[server.address()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_list_conforms() {
    let servers = [RedisServer::start(), RedisServer::start(), RedisServer::start()];
    let masters = servers.each_ref().map(RedisServer::address);
    let addresses = masters.map(|address| address.to_string());
    check(format!("redis://{}", addresses.join(",")), &masters).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sentinel_conforms() {
    let mut sentinel = Sentinel::start();
    let master = sentinel.master().address();
    check(sentinel.url(), &[master]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sentinel_conforms_when_replicas_must_have_what_is_kept() {
    let mut sentinel = Sentinel::start();
    let master = sentinel.master().address();
    conformance::run(&Redis::new(sentinel.url(), 2, &[master])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cluster_conforms() {
    let cluster = RedisCluster::start(3, 0);
    check(cluster.url(), &[0, 1, 2].map(|index| cluster.master(index))).await;
}
