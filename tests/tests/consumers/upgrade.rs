//! Consumers of a gateway that is replaced by another process.

use std::fs;

use tidegate_testkit::redis::RedisServer;
use tidegate_testkit::{DEADLINE, Gateway, PostgresServer, WsClient, eventually};
use tidegate_tests::succession::{Program, Publisher, Successors, refused};

use super::{expect_once_in_order, page::block, path, read};

const CHANNELS: usize = 5;

fn table() -> PostgresServer {
    let server = PostgresServer::start();
    server.sql(&block("sql", "CREATE TABLE"));
    server
}

fn insert(table: &PostgresServer, n: usize) {
    table.sql(&format!("INSERT INTO tidegate_outbox (channel, data) VALUES ('c{}', '{n}')", n % CHANNELS));
}

fn config(redis: &RedisServer, table: &PostgresServer) -> String {
    format!(
        "[[consumers.outboxes]]\nname = \"orders\"\nurl = \"{}?sslmode=disable\"\n\
         [[consumers.streams]]\nname = \"news\"\nurl = \"{}\"\nstream = \"publications\"\nbatch = 20\n",
        table.url(),
        redis.url()
    )
}

/// From a table and from a stream: the process before ends with what it has begun, and the next one goes on behind it.
#[test]
fn what_is_left_in_stores_is_delivered_once_and_in_order() {
    let (redis, table) = (RedisServer::start(), table());
    let builder = Gateway::builder().backplane(&redis.url()).node("one");
    let gateway = builder.config(&config(&redis, &table)).start();
    let mut successors = Successors::default();
    let mut of_table = WsClient::connect(gateway.public(), &path(CHANNELS));
    let mut of_stream = WsClient::connect(gateway.public(), "/ws?channel=streamed&envelope=json");
    let mut client = redis.client();
    // Each is delivered before the next is added.
    let adding = Publisher::start(move |number| {
        let data = number.to_string();
        client.command(&["XADD", "publications", "*", "channel", "streamed", "data", &data]).unwrap();
        assert_eq!(of_stream.expect_json()["data"], data);
    });
    let mut inserted = 0;
    for _ in 0..3 {
        let before = inserted;
        for _ in 0..20 {
            inserted += 1;
            insert(&table, inserted);
        }
        adding.more(20);
        successors.upgrade(gateway.pid(), gateway.internal());
        inserted += 1;
        insert(&table, inserted);
        adding.more(20);
        expect_once_in_order(&read(&mut of_table, inserted - before), inserted - before);
    }
    adding.stop();
    let waiting = || table.sql("SELECT count(*) FROM tidegate_outbox");
    eventually("the table is empty", DEADLINE, || waiting() == "0");
    eventually("the stream is empty", DEADLINE, || redis.command(&["XLEN", "publications"]).text() == "0");
    // Nothing comes a second time.
    gateway.rest().publish("c0", "after");
    assert_eq!(of_table.expect_json()["data"], "after");
}

/// A process that ends after it was given everything: the one before reads its stores again.
#[test]
fn after_an_upgrade_that_fails_they_are_read_again() {
    let table = table();
    let program = Program::real();
    let config =
        format!("[[consumers.outboxes]]\nname = \"orders\"\nurl = \"{}?sslmode=disable\"\n", table.url());
    let gateway = Gateway::builder().program(&program.path).config(&config).start();
    let mut client = WsClient::connect(gateway.public(), &path(CHANNELS));
    insert(&table, 1);
    assert_eq!(client.expect_json()["data"], "1");
    let record = "dd bs=65536 count=1 2>/dev/null of=/dev/null";
    program.replace(&format!("{record}\nprintf '\\001\\001' >&0\n{record}"));
    let why = refused(gateway.internal());
    assert!(why.contains("cannot take over"), "{why}");
    insert(&table, 2);
    assert_eq!(client.expect_json()["data"], "2");
    gateway.terminate();
}

/// What a store has waits while nobody reads it, or while it is away.
#[test]
fn a_new_configuration_reads_other_stores() {
    let table = table();
    let read =
        format!("[[consumers.outboxes]]\nname = \"orders\"\nurl = \"{}?sslmode=disable\"\n", table.url());
    // Nobody listens there.
    let away =
        "[[consumers.outboxes]]\nname = \"orders\"\nurl = \"postgres://a@127.0.0.1:1/a?sslmode=disable\"\n";
    let builder = Gateway::builder().config(&read);
    let file = builder.file("tidegate.toml", read.as_bytes());
    let gateway = builder.start();
    let mut successors = Successors::default();
    let mut client = WsClient::connect(gateway.public(), &path(CHANNELS));
    for (nth, config) in ["", away].into_iter().enumerate() {
        insert(&table, nth + 1);
        assert_eq!(client.expect_json()["data"], (nth + 1).to_string());
        fs::write(&file, config).unwrap();
        successors.upgrade(gateway.pid(), gateway.internal());
        insert(&table, 100 + nth);
        gateway.rest().publish("c0", "meanwhile");
        assert_eq!(client.expect_json()["data"], "meanwhile");
        fs::write(&file, &read).unwrap();
        successors.upgrade(gateway.pid(), gateway.internal());
        assert_eq!(client.expect_json()["data"], (100 + nth).to_string());
    }
}
