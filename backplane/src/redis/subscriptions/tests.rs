//! The registry against a real `redis-server`, over real links: nodes that publish to each other while the server
//! is killed, stands still, loses its data, or ends subscriptions of its own accord.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tidegate_testkit::redis::RedisServer;

use super::{SubscriptionCounters, Subscriptions};
use crate::{
    BackplaneError, Channel, Control, Gap, GapReason, HistoryPolicy, Intake, NewPublication, Payload,
    PresenceEvent, Publication, Sink, Transition,
    redis::{
        contract::{Commands, Subscribing},
        counters::Tallies,
        history::Reader,
        links::{LinkOptions, Links, Login},
        names::Prefix,
        options::RedisFiles,
        publish::Publisher,
        scripts,
    },
};

/// For broken runs; nothing here takes nearly so long.
const DEADLINE: Duration = Duration::from_secs(30);

const HISTORY: HistoryPolicy = HistoryPolicy { size: 10_000, age: Duration::from_secs(600) };

#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Text(String),
    Gap(GapReason),
}

#[derive(Default)]
struct Record {
    told: Mutex<HashMap<Channel, Vec<Told>>>,
    is_full: AtomicBool,
}

impl Sink for Record {
    fn publication(&self, channel: &Channel, publication: Arc<Publication>) -> Intake {
        if self.is_full.load(SeqCst) {
            return Intake::Full;
        }
        let text = String::from_utf8(publication.payload.bytes().to_vec()).expect("UTF-8");
        self.told.lock().expect("no panic").entry(channel.clone()).or_default().push(Told::Text(text));
        Intake::Taken
    }

    fn gap(&self, channel: &Channel, gap: Gap) {
        self.told.lock().expect("no panic").entry(channel.clone()).or_default().push(Told::Gap(gap.reason));
    }

    fn control(&self, _: Control) {}
    fn presence(&self, _: &Channel, _: Arc<PresenceEvent>) {}
    fn transition(&self, _: &Channel, _: Transition) {}
}

struct Node {
    record: Arc<Record>,
    subscriptions: Arc<Subscriptions>,
    publisher: Publisher,
    links: Links,
}

impl Node {
    async fn start(server: &RedisServer, name: &str) -> Self {
        let prefix = Prefix::new("registry").expect("a prefix");
        let login = Login { credentials: None, is_tls: false, files: RedisFiles::default(), sentinel: None };
        let options = LinkOptions {
            url: server.url().parse().expect("a URL"),
            login,
            prefix: prefix.as_str().into(),
            instance: name.into(),
            node: name.into(),
            replicas: 0,
            scripts: scripts::codes(),
            host: None,
        };
        let links = Links::new(options).expect("links");
        let commands: Arc<dyn Commands> = Arc::new(links.clone());
        let subscribing: Arc<dyn Subscribing> = Arc::new(links.clone());
        let tallies = Arc::new(Tallies::default());
        let reader = Reader::new(Arc::clone(&commands), prefix.clone(), Arc::clone(&tallies));
        let record = Arc::new(Record::default());
        let subscriptions = Subscriptions::start(prefix.clone(), subscribing, reader, record.clone());
        let subscriptions = Arc::new(subscriptions);
        links.start(subscriptions.clone()).await.expect("links start");
        let publisher = Publisher::new(commands.clone(), commands, prefix, DEADLINE, tallies);
        Self { record, subscriptions, publisher, links }
    }

    async fn subscribe(&self, channel: &Channel) {
        self.subscriptions.subscribe(channel, 1).await.expect("subscribed");
    }

    async fn publish(
        &self,
        channel: &Channel,
        text: &str,
        history: Option<HistoryPolicy>,
    ) -> Result<(), BackplaneError> {
        let payload = Payload::Text(text.into());
        let channel = channel.clone();
        let new =
            NewPublication { channel, event: None, payload, history, idempotency_key: None, sender: None };
        self.publisher.publish(new).await.map(|_| ())
    }

    /// Publishes until it is confirmed; for servers that come and go.
    async fn publish_surely(&self, channel: &Channel, text: &str, history: Option<HistoryPolicy>) {
        eventually("published", async || self.publish(channel, text, history).await.is_ok()).await;
    }

    async fn publish_numbers(&self, channel: &Channel, numbers: std::ops::Range<u32>) {
        for number in numbers {
            self.publish(channel, &number.to_string(), Some(HISTORY)).await.expect("published");
        }
    }

    fn told(&self, channel: &Channel) -> Vec<Told> {
        self.record.told.lock().expect("no panic").get(channel).cloned().unwrap_or_default()
    }

    fn counters(&self) -> SubscriptionCounters {
        self.subscriptions.counters()
    }

    async fn until_told(&self, channel: &Channel, expect: &[Told]) {
        eventually(&format!("{expect:?}"), async || self.told(channel).len() >= expect.len()).await;
        assert_eq!(self.told(channel), expect);
    }

    async fn stop(self) {
        self.subscriptions.stop();
        self.links.stop().await;
    }
}

async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let until = Instant::now() + DEADLINE;
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    while !condition().await {
        assert!(Instant::now() < until, "never: {what}");
        ticks.tick().await;
    }
}

fn channel(name: &str) -> Channel {
    Channel::new(name).expect("a name")
}

fn texts(numbers: std::ops::Range<u32>) -> Vec<Told> {
    numbers.map(|number| Told::Text(number.to_string())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_publishes_another_hands_over_until_it_leaves() {
    let server = RedisServer::start();
    let (a, b) = (Node::start(&server, "a").await, Node::start(&server, "b").await);
    let (kept, plain) = (channel("kept"), channel("plain"));
    tokio::join!(b.subscribe(&kept), b.subscribe(&plain));
    a.publish_numbers(&kept, 0..300).await;
    for number in 0..300 {
        a.publish(&plain, &number.to_string(), None).await.expect("published");
    }
    b.until_told(&kept, &texts(0..300)).await;
    b.until_told(&plain, &texts(0..300)).await;

    // A stale unsubscribe ends nothing; the last one does, after a while.
    b.subscriptions.subscribe(&kept, 2).await.expect("subscribed");
    b.subscriptions.unsubscribe(&kept, 1);
    b.subscriptions.unsubscribe(&plain, 1);
    assert_eq!(b.counters().wanted, 1);
    eventually("the server is told", async || b.counters().confirmed == 1).await;
    let count = ["PUBSUB", "NUMSUB", "registry:{plain}"];
    eventually("the server agrees", async || server.command(&count).elements()[1].text() == "0").await;
    b.subscribe(&plain).await;
    a.publish(&plain, "again", None).await.expect("published");
    eventually("subscribed again", async || b.told(&plain).len() == 301).await;
    assert_eq!(b.counters().gaps, Default::default());
    tokio::join!(a.stop(), b.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_is_repaired_or_told() {
    let mut server = RedisServer::builder().option("appendfsync", "always").start();
    let (a, b) = (Node::start(&server, "a").await, Node::start(&server, "b").await);
    let (kept, plain) = (channel("kept"), channel("plain"));
    tokio::join!(b.subscribe(&kept), b.subscribe(&plain));
    a.publish_numbers(&kept, 0..10).await;
    b.until_told(&kept, &texts(0..10)).await;
    server.kill();
    eventually("away", async || b.subscriptions.subscribe(&channel("new"), 1).await.is_err()).await;
    server.restart();
    // Published over a connection of its own, some before this node is back and some after.
    for number in 10..40 {
        a.publish_surely(&kept, &number.to_string(), Some(HISTORY)).await;
    }
    b.until_told(&kept, &texts(0..40)).await;
    b.until_told(&plain, &[Told::Gap(GapReason::Reconnect)]).await;
    a.publish_surely(&plain, "after", None).await;
    b.until_told(&plain, &[Told::Gap(GapReason::Reconnect), Told::Text("after".into())]).await;
    assert_eq!(b.counters().resubscribed, 2);
    assert!(b.counters().outage.is_some_and(|outage| outage > Duration::ZERO), "{:?}", b.counters());
    tokio::join!(a.stop(), b.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_empty_is_told_once() {
    let mut server = RedisServer::builder().option("appendonly", "no").start();
    let (a, b) = (Node::start(&server, "a").await, Node::start(&server, "b").await);
    let kept = channel("kept");
    b.subscribe(&kept).await;
    a.publish_numbers(&kept, 0..5).await;
    b.until_told(&kept, &texts(0..5)).await;
    server.kill();
    eventually("away", async || b.subscriptions.subscribe(&channel("new"), 1).await.is_err()).await;
    server.restart();
    let mut expect = [&texts(0..5)[..], &[Told::Gap(GapReason::Unrecoverable)]].concat();
    b.until_told(&kept, &expect).await;
    // Who subscribes now has missed nothing, nor have the others since they were told.
    for number in 5..8 {
        a.publish_surely(&kept, &number.to_string(), Some(HISTORY)).await;
    }
    expect.extend(texts(5..8));
    b.until_told(&kept, &expect).await;
    tokio::join!(a.stop(), b.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_data_is_told_and_rewritten_history_renounced() {
    let server = RedisServer::start();
    let (a, b) = (Node::start(&server, "a").await, Node::start(&server, "b").await);
    let kept = channel("kept");
    b.subscribe(&kept).await;
    a.publish_numbers(&kept, 0..5).await;
    server.command(&["FLUSHALL"]);
    a.publish_numbers(&kept, 5..7).await;
    // Who was subscribed has all of it.
    let forgotten = [Told::Gap(GapReason::Forgotten)];
    let mut expect = [&texts(0..5)[..], &forgotten, &texts(5..7)].concat();
    b.until_told(&kept, &expect).await;

    // The top is taken back and given away again, as a failover does.
    let meta = "registry:{kept}:m";
    server.command(&["HSET", meta, "o", "1", "t", "another!"]);
    server.command(&["XTRIM", "registry:{kept}:s", "MAXLEN", "1"]);
    server.command(&["XDEL", "registry:{kept}:s", "2"]);
    server.command(&["DEL", "registry:{kept}:s"]);
    a.publish_numbers(&kept, 7..8).await;
    expect.push(Told::Gap(GapReason::Unrecoverable));
    b.until_told(&kept, &expect).await;
    a.publish_numbers(&kept, 8..10).await;
    expect.extend(texts(8..10));
    b.until_told(&kept, &expect).await;
    tokio::join!(a.stop(), b.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_sink_is_served_later_or_told() {
    let server = RedisServer::start();
    let (a, b) = (Node::start(&server, "a").await, Node::start(&server, "b").await);
    let (kept, plain) = (channel("kept"), channel("plain"));
    tokio::join!(b.subscribe(&kept), b.subscribe(&plain));
    b.record.is_full.store(true, SeqCst);
    a.publish_numbers(&kept, 0..1_000).await;
    a.publish(&plain, "lost", None).await.expect("published");
    eventually("it was refused", async || b.counters().dropped == 1 && b.counters().repairs.overflow == 1)
        .await;
    b.record.is_full.store(false, SeqCst);
    b.until_told(&kept, &texts(0..1_000)).await;
    b.until_told(&plain, &[Told::Gap(GapReason::Overflow)]).await;
    a.publish(&plain, "after", None).await.expect("published");
    b.until_told(&plain, &[Told::Gap(GapReason::Overflow), Told::Text("after".into())]).await;
    assert_eq!(b.counters().held_bytes, 0);
    tokio::join!(a.stop(), b.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_counted_and_skipped() {
    let server = RedisServer::start();
    let node = Node::start(&server, "a").await;
    let kept = channel("kept");
    node.subscribe(&kept).await;
    for garbage in ["", "\u{1}", "\u{2}\u{0}later", "\u{1}\u{7f}"] {
        server.command(&["PUBLISH", "registry:{kept}", garbage]);
    }
    node.publish_numbers(&kept, 0..2).await;
    node.until_told(&kept, &texts(0..2)).await;
    let undecodable = node.counters().undecodable;
    assert_eq!((undecodable.version, undecodable.truncated, undecodable.malformed), (1, 2, 1));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_subscriptions_come_back() {
    const CHANNELS: u64 = 10_000;
    let mut server = RedisServer::start();
    let node = Node::start(&server, "a").await;
    let channels: Vec<_> = (0..CHANNELS).map(|number| channel(&format!("many:{number}"))).collect();
    let begun = Instant::now();
    join_all(channels.iter().map(|channel| node.subscribe(channel))).await;
    println!("{CHANNELS} subscriptions in {:?}, {:?}", begun.elapsed(), node.counters());
    server.kill();
    eventually("away", async || node.counters().confirmed == 0).await;
    server.restart();
    eventually("the first is back", async || node.counters().confirmed > 0).await;
    let begun = Instant::now();
    // A channel without history is told of its gap when it was confirmed and checked.
    eventually("all are back", async || node.counters().gaps.reconnect == CHANNELS).await;
    println!("{CHANNELS} came back in {:?}, {:?}", begun.elapsed(), node.counters());
    assert_eq!(node.counters().confirmed, CHANNELS);
    node.stop().await;
}
