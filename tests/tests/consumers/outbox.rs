//! The outbox of PostgreSQL.

use tidegate_testkit::redis::RedisServer;
use tidegate_testkit::{DEADLINE, Gateway, PostgresServer, WsClient, eventually};

use super::{expect_once_in_order, page::block, path, read};

const ROWS: usize = 10_000;
const CHANNELS: usize = 10;

/// A server with the table and trigger of the page.
fn server() -> PostgresServer {
    let server = PostgresServer::start();
    server.sql(&block("sql", "CREATE TABLE"));
    server
}

fn config(server: &PostgresServer) -> String {
    format!("[[consumers.outboxes]]\nname = \"orders\"\nurl = \"{}?sslmode=disable\"\n", server.url())
}

fn insert(server: &PostgresServer, from: usize, to: usize) {
    server.sql(&format!(
        "INSERT INTO tidegate_outbox (channel, data) SELECT 'c' || n % {CHANNELS}, n FROM generate_series({from}, {to}) AS n"
    ));
}

fn waiting(server: &PostgresServer) -> String {
    server.sql("SELECT count(*) FROM tidegate_outbox WHERE failed_at IS NULL")
}

#[test]
fn rows_are_delivered_once_though_a_gateway_is_killed() {
    let (server, redis) = (server(), RedisServer::start());
    let gateway = |name: &str| {
        let builder = Gateway::builder().backplane(&redis.url()).node(name);
        builder.config(&format!("{}batch = 100\n", config(&server))).start()
    };
    let (mut reading, serves) =
        (vec![gateway("a"), gateway("b")], Gateway::builder().backplane(&redis.url()).node("c").start());
    let published = |gateway: &Gateway| gateway.metric("tidegate_consumer_published_total", &[]);
    let mut client = WsClient::connect(serves.public(), &path(CHANNELS));
    insert(&server, 1, ROWS);
    // They take turns, and which of them has the next is not known.
    let mut dies = None;
    eventually("one has published some", DEADLINE, || {
        dies = reading.iter().position(|gateway| published(gateway) >= 500.0);
        dies.is_some()
    });
    reading.remove(dies.unwrap()).kill();
    let arrived = read(&mut client, ROWS);
    expect_once_in_order(&arrived, ROWS);
    eventually("the table is empty", DEADLINE, || waiting(&server) == "0");
    assert_eq!(client.next(std::time::Duration::from_millis(200)), tidegate_testkit::Received::Nothing);
    let by_the_other = published(&reading[0]);
    assert!(by_the_other > 0.0 && by_the_other < ROWS as f64, "both have published: {by_the_other}");
    reading[0].eventually_metric("tidegate_consumer_lag", &[("consumer", "orders")], |lag| lag == 0.0);
}

/// What never can be published is marked, with the reason, and keeps nothing else.
#[test]
fn bad_rows_are_set_aside() {
    let server = server();
    let gateway = Gateway::builder().config(&config(&server)).start();
    let mut client = WsClient::connect(gateway.public(), &path(1));
    let large = "x".repeat(70_000);
    server.sql(&format!(
        "INSERT INTO tidegate_outbox (channel, data, event) VALUES ('no channel', '1', NULL), ('c0', '2', 'gap'), \
         ('c0', '{large}', NULL), ('c0', '3', NULL)"
    ));
    assert_eq!(client.expect_json()["data"], "3");
    let aside =
        || server.sql("SELECT id, error FROM tidegate_outbox WHERE failed_at IS NOT NULL ORDER BY id");
    eventually("three are marked", DEADLINE, || aside().lines().count() == 3);
    for (line, why) in aside().lines().zip(["channel", "event names", "bytes"]) {
        assert!(line.contains(why), "{line}");
    }
    gateway.eventually_metric("tidegate_consumer_set_aside_total", &[], |aside| aside == 3.0);
    // Mended, it is one as any other.
    server.sql("UPDATE tidegate_outbox SET channel = 'c0', failed_at = NULL, error = NULL WHERE id = 1");
    assert_eq!(client.expect_json()["data"], "1");
    eventually("none waits", DEADLINE, || waiting(&server) == "0");
}

#[test]
fn a_database_that_restarts_loses_nothing() {
    let mut server = server();
    let gateway = Gateway::builder().config(&config(&server)).start();
    let mut client = WsClient::connect(gateway.public(), &path(CHANNELS));
    insert(&server, 1, 100);
    let before = read(&mut client, 100);
    expect_once_in_order(&before, 100);
    server.kill();
    gateway.eventually_metric("tidegate_consumer_failures_total", &[], |failures| failures >= 1.0);
    gateway.eventually_metric("tidegate_consumer_connected", &[], |connected| connected == 0.0);
    server.restart();
    insert(&server, 101, 200);
    let after = read(&mut client, 100);
    expect_once_in_order(&after, 100);
    assert!(after.values().flatten().all(|number| *number > 100), "{after:?}");
    eventually("the table is empty", DEADLINE, || waiting(&server) == "0");
}

/// A table that is not there is said in one sentence, and used when it is.
#[test]
fn a_table_that_is_missing_is_waited_for() {
    let server = PostgresServer::start();
    let mut gateway = Gateway::builder().config(&config(&server)).start();
    gateway.eventually_metric("tidegate_consumer_failures_total", &[], |failures| failures >= 1.0);
    let log = gateway.process().stderr();
    assert!(log.contains("relation \"tidegate_outbox\" does not exist"), "{log}");
    server.sql(&block("sql", "CREATE TABLE"));
    let mut client = WsClient::connect(gateway.public(), &path(CHANNELS));
    insert(&server, 1, 1);
    assert_eq!(client.expect_json()["data"], "1");
}
