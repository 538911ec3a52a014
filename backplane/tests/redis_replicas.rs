//! Publications that count when replicas have them: replicas that hang, bursts, and what is told of it.

use std::sync::Arc;

use futures_util::future::join_all;
use tidegate_backplane::{
    Backplane, BackplaneError, Channel, HistoryPolicy, HistoryQuery, LinkCounters, NewPublication, Payload,
    Published, RedisBackplane, RedisOptions, conformance::Recorder,
};
use tidegate_testkit::DEADLINE;
use tidegate_testkit::redis::{RedisServer, Sentinel};

struct Node(Arc<RedisBackplane>);

impl Node {
    async fn start(url: &str, replicas: u8) -> Self {
        let url = url.parse().expect("a URL");
        let options = RedisOptions { replicas, ..RedisOptions::new(url, "node") };
        let sink = Arc::<Recorder>::default();
        Self(RedisBackplane::connect(options, sink).await.expect("the backplane connects"))
    }

    async fn publish(&self, key: &str) -> Result<Published, BackplaneError> {
        self.0.publish(publication(Some(key), true)).await
    }

    /// The refusal of a publication that replicas did not take.
    async fn refused(&self, key: &str) -> Box<str> {
        match self.publish(key).await {
            Err(BackplaneError::Unconfirmed(why)) => why,
            other => panic!("{key}: {other:?}"),
        }
    }

    fn link(&self) -> LinkCounters {
        self.0.counters().links.remove(0)
    }

    async fn kept(&self) -> usize {
        let query = HistoryQuery::newest(1_000);
        self.0.history(&channel(), query).await.expect("history").publications.len()
    }
}

fn channel() -> Channel {
    Channel::new("news").expect("a name")
}

fn publication(key: Option<&str>, has_history: bool) -> NewPublication {
    NewPublication {
        channel: channel(),
        event: None,
        payload: Payload::Text("hello".into()),
        history: has_history.then_some(HistoryPolicy { size: 1_000, age: DEADLINE * 10 }),
        idempotency_key: key.map(Into::into),
        sender: None,
    }
}

/// All replicas stand still or go on.
fn replicas(sentinel: &mut Sentinel, act: fn(&mut RedisServer)) {
    let master = sentinel.master().address();
    sentinel.servers().iter_mut().filter(|server| server.address() != master).for_each(act);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_replicas_do_not_have_is_not_accepted() {
    let mut sentinel = Sentinel::start();
    let node = Node::start(&sentinel.url(), 1).await;
    assert!(!node.publish("1").await.expect("replicas take it").duplicate);

    replicas(&mut sentinel, RedisServer::stop);
    let why = node.refused("2").await;
    assert!(why.contains("0 of 1 replicas"), "{why}");
    // The master has it, and that does not make the second call a success.
    node.refused("2").await;
    // What nobody asked to keep is none of the replicas' business, and Redis is not away.
    node.0.publish(publication(None, false)).await.expect("plain");
    assert_eq!(node.0.health(), Ok(()));
    assert_eq!((node.link().calls_not_replicated, node.link().calls_unconfirmed), (2, 0));

    replicas(&mut sentinel, RedisServer::cont);
    assert!(node.publish("2").await.expect("replicas take it").duplicate);
    assert_eq!(node.kept().await, 2);
    assert_eq!(node.link().sessions, 1, "no connection was given up");
    node.0.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_shares_its_waits() {
    const BURST: u64 = 300;
    let sentinel = Sentinel::start();
    let node = Node::start(&sentinel.url(), 2).await;
    let keys: Vec<_> = (0..BURST).map(|number| number.to_string()).collect();
    for published in join_all(keys.iter().map(|key| node.publish(key))).await {
        assert!(!published.expect("replicas take it").duplicate);
    }
    let waits = node.link().waits;
    assert!((1..=BURST / 3).contains(&waits), "{waits} for {BURST}");
    node.0.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_without_replicas_keeps_nothing_that_must_be_replicated() {
    let server = RedisServer::start();
    let node = Node::start(&server.url(), 1).await;
    assert_eq!(node.0.health(), Ok(()));
    let all = join_all(["1", "2", "3"].map(|key| node.refused(key))).await;
    assert!(all.iter().all(|why| why.contains("0 of 1 replicas")), "{all:?}");
    node.0.publish(publication(None, false)).await.expect("plain");
    node.0.close().await;
}

/// What was accepted before is there after a failover, and the key is still known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_survives_a_failover() {
    let mut sentinel = Sentinel::start();
    let node = Node::start(&sentinel.url(), 1).await;
    for number in 0..100 {
        node.publish(&number.to_string()).await.expect("replicas take it");
    }
    sentinel.failover();
    let again = async {
        loop {
            if let Ok(published) = node.publish("99").await {
                return published;
            }
        }
    };
    let again = tokio::time::timeout(DEADLINE, again).await.expect("accepted by the new master");
    assert!(again.duplicate);
    assert_eq!(node.kept().await, 100);
    node.0.close().await;
}
