//! Many commands in a frame: in order, bounded, and each after what the one before has done.

use serde_json::{Value, json};

use super::{Client, Rig, config};

fn lines(commands: &[Value]) -> String {
    commands.iter().map(Value::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_first_frame_connects_and_subscribes() {
    let rig = Rig::start(config());
    rig.publish("a", "1");
    let mut client = Client::open(&rig);
    client.socket.send_text(&lines(&[
        json!({"id": 1, "connect": {"name": "js"}}),
        json!({"id": 2, "subscribe": {"channel": "plain:a"}}),
        json!({"id": 3, "subscribe": {"channel": "plain:b"}}),
        json!({"id": 4, "unsubscribe": {"channel": "plain:a"}}),
        json!({"id": 5, "history": {"channel": "a", "limit": 1}}),
        json!({"id": 6, "ping": {}}),
    ]));
    let answers = [(); 6].map(|()| client.next());
    assert_eq!(answers.each_ref().map(|answer| answer["id"].as_u64().unwrap()), [1, 2, 3, 4, 5, 6]);
    assert_eq!(answers[4]["history"]["publications"][0]["data"], 1);
}

/// A command that needs the backplane has those behind it wait, and what comes meanwhile, too.
#[test]
fn what_waits_has_what_is_behind_it_wait() {
    let rig = Rig::start(config());
    rig.publish("a", "1");
    let mut client = Client::connect(&rig);
    rig.backplane.history.shut();
    client.socket.send_text(&lines(&[
        json!({"id": 11, "subscribe": {"channel": "a"}}),
        json!({"id": 12, "subscribe": {"channel": "b"}}),
        json!({"id": 13, "presence_stats": {"channel": "plain:a"}}),
    ]));
    rig.backplane.history.eventually_arrived(2);
    client.socket.send_text(r#"{"id":14,"ping":{}}"#);
    rig.backplane.history.open();
    let mut answers = [(); 4].map(|()| client.next()["id"].as_u64().unwrap());
    // Subscriptions wait together, and none for another.
    answers[..2].sort_unstable();
    assert_eq!(answers, [11, 12, 13, 14]);
    drop(client);
    rig.eventually_empty();
}

#[test]
fn a_client_that_leaves_while_it_waits_leaves_nothing() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    rig.backplane.history.shut();
    let frame = [json!({"id": 11, "subscribe": {"channel": "a"}}), json!({"id": 12, "ping": {}})];
    client.socket.send_text(&lines(&frame));
    rig.backplane.history.eventually_arrived(1);
    drop(client);
    rig.eventually_metric("tidegate_connections ", 0.0);
    rig.backplane.history.open();
    rig.eventually_empty();
}

/// The attacker's cost: a frame of many commands is served as so many messages, and another client is not kept waiting.
#[test]
fn a_frame_of_ten_thousand_commands_counts_as_so_many() {
    let mut config = config();
    config.limits.messages_per_second = 1000;
    config.limits.message_bytes = crate::config::ByteSize::kib(256);
    let rig = Rig::start(config);
    let mut client = Client::connect(&rig);
    let pings: String = (0..10_000).map(|id| format!("{{\"id\":{},\"ping\":{{}}}}\n", id + 10)).collect();
    client.socket.send_text(&pings);
    let mut other = Client::connect(&rig);
    other.ask("ping", json!({}));
    for id in 10..2_500 {
        assert_eq!(client.next()["id"], id);
    }
    assert!(rig.metric("tidegate_budgets_spent_total{budget=\"messages\"}") >= 1.0);
    other.ask("ping", json!({}));
    drop(client);
    drop(other);
    rig.eventually_empty();
}
