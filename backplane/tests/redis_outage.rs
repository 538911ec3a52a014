//! A node that is cut off from Redis for longer than its lease: what it holds is written again, and ends with it.

use std::{sync::Arc, time::Duration};

use tidegate_backplane::{
    Backplane, Channel, Join, Member, RedisBackplane, RedisOptions, Sums, conformance::Recorder,
};
use tidegate_testkit::redis::{Cut, RedisServer, Value};
use tidegate_testkit::{DEADLINE, eventually};

const LEASE: Duration = Duration::from_secs(1);
const SETTLE: Duration = Duration::from_millis(100);

/// All keys of the channel.
const CHANNEL: &str = "tidegate:{c}*";

/// The sets of channels of the instances of node `a`, and of both nodes.
const LISTED_BY_A: &str = "tidegate:{!nodes}:pc:a.*";
const LISTED: &str = "tidegate:{!nodes}:pc:*";

async fn start(url: &str, node: &str) -> Arc<RedisBackplane> {
    let url = url.parse().expect("a URL");
    let options = RedisOptions { lease: LEASE, presence_settle: SETTLE, ..RedisOptions::new(url, node) };
    RedisBackplane::connect(options, Arc::<Recorder>::default()).await.expect("the backplane connects")
}

fn channel() -> Channel {
    Channel::new("c").expect("a name")
}

fn has_keys(server: &RedisServer, pattern: &str) -> bool {
    !matches!(server.command(&["KEYS", pattern]), Value::Array(keys) if keys.is_empty())
}

/// Who is there, as a node says: connections, and how many users.
async fn present(node: &RedisBackplane) -> (Vec<Box<str>>, Sums) {
    let roll = node.roll(&channel()).await.expect("roll");
    let connections = roll.members.iter().map(|member| member.connection.clone()).collect();
    (connections, node.attendance(&channel()).await.expect("attendance").sums)
}

async fn until_present(node: &RedisBackplane) {
    let expected = (vec![Box::from("a.1")], Sums { subscriptions: 2, users: 1 });
    let seen = async {
        while present(node).await != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, seen).await.expect("the member and the user of the other node are seen");
}

/// Rounds fail while it is cut off, one of them after its lease has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_longer_than_the_lease_is_made_good() {
    let server = RedisServer::start();
    let cut = Cut::before(server.address());
    let (a, b) = (start(&cut.url(), "a").await, start(&server.url(), "b").await);
    let member = Member { connection: "a.1".into(), user: "u".into(), info: None };
    a.join(&channel(), Join::listed(member)).await.expect("join");
    a.join(&channel(), Join::counted()).await.expect("join");
    until_present(&b).await;

    cut.close();
    eventually("the lease is over", DEADLINE, || a.counters().operations.leases_lapsed > 0);
    a.nodes().await.expect_err("a round without a server");
    eventually("what it left is removed", DEADLINE, || b.counters().operations.instances_removed > 0);
    eventually("nobody is there", DEADLINE, || !has_keys(&server, CHANNEL));

    cut.go_on();
    until_present(&b).await;
    let is_listed = || has_keys(&server, LISTED_BY_A);
    eventually("the next instance lists its channels", DEADLINE, is_listed);

    // It dies: nobody reads the channel, so what removes it is what its instance listed.
    a.close().await;
    eventually("no key is left", DEADLINE, || !has_keys(&server, CHANNEL));
    eventually("no set is left", DEADLINE, || !has_keys(&server, LISTED));
    b.close().await;
}
