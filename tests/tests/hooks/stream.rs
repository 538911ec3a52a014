//! Events in a Redis stream: whatever is away, none is missing when the application reads.

use std::collections::BTreeMap;

use serde_json::Value;
use tidegate_testkit::redis::RedisServer;
use tidegate_testkit::{DEADLINE, Gateway, WsClient, eventually};

const CLIENTS: usize = 20;

/// What the application reads as one of its group, oldest first: connection and event.
fn read(redis: &RedisServer) -> Vec<(String, String)> {
    let words = ["XREADGROUP", "GROUP", "app", "one", "COUNT", "1000", "STREAMS", "events", ">"];
    let answer = redis.command(&words);
    let entries = answer.elements().first().map(|stream| stream.elements()[1].elements().to_vec());
    let told = entries.unwrap_or_default().into_iter().map(|entry| {
        let fields: Vec<String> = entry.elements()[1].elements().iter().map(|field| field.text()).collect();
        assert_eq!((&*fields[0], &*fields[2], &*fields[4]), ("id", "type", "event"));
        let event: Value = serde_json::from_str(&fields[5]).unwrap();
        assert_eq!((&event["id"], &event["type"]), (&(&*fields[1]).into(), &(&*fields[3]).into()));
        (event["data"]["connection"].as_str().unwrap().to_owned(), fields[3].clone())
    });
    told.collect()
}

#[test]
fn what_happened_while_nobody_read_is_there_in_its_order() {
    let mut redis = RedisServer::builder().durable().start();
    redis.command(&["XGROUP", "CREATE", "events", "app", "0", "MKSTREAM"]);
    let config = format!(
        "[hooks.app]\nstream = \"events\"\nstream_url = \"{}\"\nevents = [\"connected\", \"disconnected\"]\n",
        redis.url()
    );
    let gateway = Gateway::builder().config(&config).start();
    let come_and_go = |count: usize| {
        for _ in 0..count {
            drop(WsClient::connect(gateway.public(), "/ws?channel=plain:a"));
        }
        gateway.eventually_connections(0);
    };
    come_and_go(CLIENTS / 2);
    let appended = |requests: f64| {
        let taken = [("hook", "app"), ("result", "taken")];
        gateway.eventually_metric("tidegate_hook_event_requests_total", &taken, |taken| taken >= requests);
    };
    appended(1.0);
    redis.kill();
    come_and_go(CLIENTS / 2);
    let retried = |retries: f64| retries >= 1.0;
    gateway.eventually_metric("tidegate_hook_event_retries_total", &[("hook", "app")], retried);
    redis.restart();
    let mut told = Vec::new();
    eventually("all events are read", DEADLINE * 2, || {
        told.extend(read(&redis));
        told.len() >= 2 * CLIENTS
    });
    let mut lives = BTreeMap::<String, Vec<String>>::new();
    told.into_iter().for_each(|(connection, kind)| lives.entry(connection).or_default().push(kind));
    assert_eq!(lives.len(), CLIENTS);
    for (connection, mut kinds) in lives {
        // What was sent and not confirmed before the server was gone is there twice.
        kinds.dedup();
        assert_eq!(kinds, ["tidegate.connected", "tidegate.disconnected"], "{connection}");
    }
}
