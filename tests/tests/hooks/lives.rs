//! Each connection that an application was told of is told to be gone, once, whatever happens to its node.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;
use tidegate_testkit::redis::{Cut, RedisServer};
use tidegate_testkit::{DEADLINE, Gateway, Inbox, WsClient, eventually};

/// Connections that come and go while nodes are killed and drained.
const SHORT: usize = 20_000;
/// Connections of each node that stay.
const STANDING: usize = 50;
const WORKERS: usize = 4;

fn gateway(redis: &str, name: &str, inbox: &Inbox) -> Gateway {
    let hook = format!(
        "[hooks.app]\nurl = \"{}\"\nevents = [\"connected\", \"disconnected\"]\nbatch = true\n[redis]\nlease = \"3s\"\n",
        inbox.url()
    );
    Gateway::builder().backplane(redis).node(name).config(&hook).start()
}

/// What was told of one connection: ids of events, and why it ended.
#[derive(Debug, Default)]
pub(crate) struct Life {
    connected: BTreeSet<String>,
    pub(crate) ends: BTreeSet<String>,
    pub(crate) reasons: BTreeSet<String>,
}

/// By the names of connections. An event that came again has the id that it had.
pub(crate) fn lives(inbox: &Inbox) -> BTreeMap<String, Life> {
    let mut lives = BTreeMap::<String, Life>::new();
    for posted in inbox.posted() {
        let Value::Array(events) = serde_json::from_str(&posted.body).unwrap() else { panic!("{posted:?}") };
        for event in events {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let life = lives.entry(text(&event["data"]["connection"])).or_default();
            match &*text(&event["type"]) {
                "tidegate.connected" => drop(life.connected.insert(text(&event["id"]))),
                _ => {
                    life.ends.insert(text(&event["id"]));
                    life.reasons.insert(text(&event["data"]["reason"]));
                }
            }
        }
    }
    lives
}

/// A connection that is opened and dropped. False: nobody let it in.
pub(crate) fn short(address: SocketAddr) -> bool {
    let request =
        b"GET /ws?channel=plain:a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut head = [0; 12];
    stream.write_all(request).is_ok() && stream.read_exact(&mut head).is_ok() && head.ends_with(b"101")
}

#[test]
fn each_connection_has_one_end_though_its_node_is_killed_or_drains() {
    let (redis, inbox) = (RedisServer::start(), Inbox::start());
    let start = |name: &str| gateway(&redis.url(), name, &inbox);
    let (killed, drained, stays) = (start("killed"), start("drained"), start("stays"));
    let addresses = [killed.public(), drained.public(), stays.public()];
    let connect = |nth: usize| WsClient::connect(addresses[nth % 3], "/ws?channel=plain:a");
    let standing: Vec<_> = (0..3 * STANDING).map(connect).collect();
    let (next, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let nth @ 0..SHORT = next.fetch_add(1, Ordering::Relaxed) {
                    // One that is gone refuses; another one serves.
                    if !short(addresses[nth % 3]) {
                        refused.fetch_add(1, Ordering::Relaxed);
                        assert!(short(stays.public()));
                    }
                }
            });
        }
        let so_many = |share: usize| next.load(Ordering::Relaxed) >= SHORT * share / 4;
        eventually("a quarter has come", DEADLINE * 4, || so_many(1));
        killed.kill();
        eventually("half of them have come", DEADLINE * 4, || so_many(2));
        drained.terminate();
    });
    assert!(refused.load(Ordering::Relaxed) > 0, "some came to a node that was gone");
    drop(standing);
    stays.eventually_connections(0);
    let of = |life: &str, node: &str| life.starts_with(&format!("{node}."));
    let mut wrong = Vec::new();
    // The lease of the dead, and that of the drained for what it could not tell.
    eventually("each connection has one end", DEADLINE * 2, || {
        let lives = lives(&inbox);
        let is_wrong = |(_, life): &(&String, &Life)| life.ends.len() != 1;
        wrong = lives.iter().filter(is_wrong).map(|wrong| format!("{wrong:?}")).collect::<Vec<_>>();
        wrong.truncate(5);
        wrong.is_empty() && lives.values().any(|life| life.reasons.contains("node_lost"))
    });
    let lives = lives(&inbox);
    let told = lives.keys().filter(|connection| !of(connection, "killed")).count();
    assert!(told >= SHORT / 2, "most have come to the other two: {told}");
    for (connection, life) in &lives {
        // What waited in the queue of the killed node is lost with it, and the end is told all the same.
        assert!(life.connected.len() == 1 || of(connection, "killed"), "{connection}: {life:?}");
        assert!(!life.reasons.contains("node_lost") || !of(connection, "stays"), "{connection}: {life:?}");
    }
    let lost = lives.iter().filter(|(name, life)| of(name, "killed") && life.reasons.contains("node_lost"));
    assert!(lost.count() >= STANDING, "those that stood there were told by another node");
    let left = redis.command(&["KEYS", "tidegate:{!nodes}:w:*"]);
    assert!(left.elements().is_empty(), "nothing is left in Redis: {left:?}");
}

/// A node that others thought dead, and its connections live on: what is told stays balanced.
#[test]
fn a_node_that_was_away_tells_its_connections_again() {
    let (redis, inbox) = (RedisServer::start(), Inbox::start());
    let cut = Cut::before(redis.address());
    let (away, other) = (gateway(&cut.url(), "away", &inbox), gateway(&redis.url(), "other", &inbox));
    // With envelopes, a gap is told and the connection stays.
    let client = WsClient::connect(away.public(), "/ws?channel=plain:a&envelope=json");
    let told = |connected: usize, ends: usize| {
        lives(&inbox).values().any(|life| (life.connected.len(), life.ends.len()) == (connected, ends))
    };
    eventually("it is told", DEADLINE, || told(1, 0));
    cut.silence();
    other.eventually_metric("tidegate_backplane_wills_told_total", &[], |wills| wills == 1.0);
    eventually("it is told to be lost", DEADLINE, || told(1, 1));
    cut.go_on();
    eventually("it is told again", DEADLINE, || told(2, 1));
    drop(client);
    eventually("it has ended", DEADLINE, || told(2, 2));
}
