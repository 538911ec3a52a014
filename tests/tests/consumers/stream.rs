//! The Redis stream.

use serde_json::Value;
use tidegate_testkit::redis::RedisServer;
use tidegate_testkit::{DEADLINE, Gateway, GatewayBuilder, WsClient, eventually};

use super::{expect_once_in_order, path, read};

const CHANNELS: usize = 10;

fn builder(redis: &RedisServer, name: &str, batch: u32) -> GatewayBuilder {
    let stream = format!(
        "[[consumers.streams]]\nname = \"orders\"\nurl = \"{}\"\nstream = \"publications\"\nbatch = {batch}\n",
        redis.url()
    );
    let history = "[namespaces.default]\nhistory_size = 5000\n";
    Gateway::builder().backplane(&redis.url()).node(name).config(&format!("{stream}{history}"))
}

fn add(redis: &RedisServer, from: usize, to: usize) {
    let mut client = redis.client();
    for n in from..=to {
        let (channel, data) = (format!("c{}", n % CHANNELS), n.to_string());
        client.command(&["XADD", "publications", "*", "channel", &channel, "data", &data]).unwrap();
    }
}

fn number(redis: &RedisServer, words: &[&str]) -> String {
    redis.command(words).text()
}

fn history(gateway: &Gateway, channel: &str) -> Vec<u64> {
    let answer = gateway.rest().get(&format!("/v1/channels/{channel}/history?limit=1000")).json();
    let publications = answer["publications"].as_array().cloned().unwrap_or_default();
    publications.iter().map(|own| own["data"].as_str().unwrap().parse().unwrap()).collect()
}

#[test]
fn entries_that_came_while_all_gateways_were_down_are_published() {
    let redis = RedisServer::start();
    builder(&redis, "a", 50).start().terminate();
    add(&redis, 1, 1000);
    let gateway = builder(&redis, "a", 50).start();
    let arrived = || (0..CHANNELS).map(|n| history(&gateway, &format!("c{n}"))).collect::<Vec<_>>();
    eventually("all are in history", DEADLINE, || arrived().iter().map(Vec::len).sum::<usize>() == 1000);
    for numbers in arrived() {
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    }
    eventually("the stream is empty", DEADLINE, || number(&redis, &["XLEN", "publications"]) == "0");
    gateway.eventually_metric("tidegate_consumer_lag", &[("consumer", "orders")], |lag| lag == 0.0);
}

#[test]
fn entries_are_delivered_once_though_the_reader_is_killed() {
    const ENTRIES: usize = 5000;
    let redis = RedisServer::start();
    let dies = builder(&redis, "a", 20).start();
    dies.eventually_metric("tidegate_consumer_active", &[("consumer", "orders")], |active| active == 1.0);
    let stays = builder(&redis, "b", 20).start();
    let mut client = WsClient::connect(stays.public(), &path(CHANNELS));
    add(&redis, 1, ENTRIES);
    dies.eventually_metric("tidegate_consumer_published_total", &[], |published| published >= 100.0);
    dies.kill();
    add(&redis, ENTRIES + 1, ENTRIES + 1000);
    let arrived = read(&mut client, ENTRIES + 1000);
    expect_once_in_order(&arrived, ENTRIES + 1000);
    eventually("the stream is empty", DEADLINE, || number(&redis, &["XLEN", "publications"]) == "0");
}

/// What another consumer of the group had taken and left is published, too; what never can be is set aside.
#[test]
fn foreign_and_bad_entries() {
    let redis = RedisServer::start();
    let mut client = redis.client();
    client.command(&["XADD", "publications", "*", "channel", "c0", "data", "1"]).unwrap();
    client.command(&["XADD", "publications", "*", "channel", "no channel", "data", "2"]).unwrap();
    client.command(&["XADD", "publications", "*", "data", "3"]).unwrap();
    client.command(&["XGROUP", "CREATE", "publications", "tidegate", "0"]).unwrap();
    let taken = ["XREADGROUP", "GROUP", "tidegate", "somebody", "STREAMS", "publications", ">"];
    client.command(&taken).unwrap();
    let gateway = builder(&redis, "a", 50).start();
    let mut subscriber = WsClient::connect(gateway.public(), &path(1));
    client.command(&["XADD", "publications", "*", "channel", "c0", "data", "4", "event", "goal"]).unwrap();
    eventually("both are in history", DEADLINE, || history(&gateway, "c0") == [1, 4]);
    let told = std::iter::repeat_with(|| subscriber.expect_json()).find(|told| told["data"] == "4").unwrap();
    assert_eq!(told["event"], Value::from("goal"));
    let aside = ["XLEN", "publications:tidegate:aside"];
    eventually("two are set aside", DEADLINE, || number(&redis, &aside) == "2");
    gateway.eventually_metric("tidegate_consumer_set_aside_now", &[], |aside| aside == 2.0);
    eventually("the stream is empty", DEADLINE, || number(&redis, &["XLEN", "publications"]) == "0");
}

/// The server of the stream is away for a while.
#[test]
fn a_stream_that_comes_back_is_read_on() {
    let (mut own, redis) = (RedisServer::start(), RedisServer::start());
    let stream = format!(
        "[[consumers.streams]]\nname = \"orders\"\nurl = \"{}\"\nstream = \"publications\"\n",
        own.url()
    );
    let gateway = Gateway::builder().backplane(&redis.url()).config(&stream).start();
    let mut client = WsClient::connect(gateway.public(), &path(CHANNELS));
    add(&own, 1, 10);
    expect_once_in_order(&read(&mut client, 10), 10);
    own.kill();
    gateway.eventually_metric("tidegate_consumer_failures_total", &[], |failures| failures >= 1.0);
    own.restart();
    add(&own, 11, 20);
    let arrived = read(&mut client, 10);
    expect_once_in_order(&arrived, 10);
}
