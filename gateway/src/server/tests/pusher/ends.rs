//! Ends: a drain, an app that is taken away, a client that reads nothing, random comings and goings.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use tidegate_testkit::{DEADLINE, WsClient, eventually, net::SocketOptions};

use super::{
    super::rig::Rig,
    client::{Client, PATH, config, data},
};
use crate::{
    config::{ByteSize, SlowReader},
    node::shards::Order,
};

/// 1001 and no error: pusher-js waits for a second then, and shows nothing.
#[test]
fn a_drain_says_going_away() {
    let rig = Rig::start(config());
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(&rig)).collect();
    clients[0].subscribe_as("presence-a", "u");
    rig.relay.to_all(&Order::Drain { over: Duration::ZERO });
    for client in &mut clients {
        assert_eq!(client.socket.expect_close(1001), "this node is draining");
    }
    rig.eventually_attending("presence-a", (0, 0));
    assert_eq!(rig.metric("tidegate_close_frames_total{code=\"1001\"}"), 3.0);
}

#[test]
fn whose_app_is_taken_away_or_switched_off_must_go() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let write = |enabled: &str| {
        let text = match enabled {
            "" => String::new(),
            _ => {
                format!("[apps.2]\nkey = \"other\"\nsecret = \"a-secret-of-16-bytes\"\nenabled = {enabled}\n")
            }
        };
        std::fs::write(file.path(), text).unwrap();
    };
    write("true");
    let mut config = config();
    config.apps_file = Some(file.path().to_owned());
    let rig = Rig::start(config);
    let replace = |enabled: &str| {
        write(enabled);
        rig.apps.reload().unwrap();
        rig.relay.to_all(&Order::AppsChanged);
    };
    let connect = || Client::connect_to(rig.address, "/app/other?protocol=7");
    let mut stays = Client::connect(&rig);
    let mut client = connect();
    client.subscribe("a");
    replace("true");
    client.expect_nothing();
    replace("false");
    client.expect_error(Some(4003));
    client.socket.expect_close(4003);
    replace("true");
    let mut client = connect();
    replace("");
    client.expect_error(Some(4001));
    client.socket.expect_close(4001);
    stays.expect_nothing();
}

/// A client whose kernel takes little for it.
fn narrow(rig: &Rig) -> Client {
    let options = SocketOptions { receive_buffer_bytes: Some(4096), ..SocketOptions::default() };
    let socket = WsClient::try_connect_from(rig.address, PATH, &[], options).unwrap();
    let mut client = Client { socket, id: String::new() };
    client.id = client.expect("pusher:connection_established")["socket_id"].as_str().unwrap().to_owned();
    client
}

#[test]
fn a_slow_reader_is_told_what_it_missed() {
    let mut config = config();
    config.limits.send_queue_bytes = ByteSize::kib(64);
    config.namespaces.default.slow_reader = SlowReader::Drop;
    let rig = Rig::start(config);
    let mut client = narrow(&rig);
    client.subscribe("a");
    let filler = "x".repeat(8 * 1024);
    let dropped = || rig.metric("tidegate_messages_dropped_total{reason=\"queue_full\"}");
    let mut published = 0;
    while dropped() < 20.0 {
        rig.publish("a", &filler);
        published += 1;
        assert!(published < 20_000, "160 MB and no end");
    }
    let (mut received, mut told) = (0, 0);
    while received + told < published {
        let message = client.next();
        match message["event"].as_str().unwrap() {
            "message" => received += 1,
            _ => {
                let text = message["data"]["message"].as_str().unwrap();
                told += text.split(' ').next().unwrap().parse::<u64>().unwrap();
            }
        }
    }
    assert_eq!(dropped(), told as f64);
}

/// Under `latest` a publication takes the place of older ones, but never of who came and went.
#[test]
fn who_came_and_went_is_told_to_a_slow_reader_under_every_policy() {
    for (policy, reason) in [(SlowReader::Drop, "queue_full"), (SlowReader::Latest, "superseded")] {
        let mut config = config();
        config.limits.send_queue_bytes = ByteSize::kib(64);
        config.namespaces.default.slow_reader = policy;
        let rig = Rig::start(config);
        let mut slow = narrow(&rig);
        slow.subscribe_as("presence-a", "slow");
        let filler = "x".repeat(8 * 1024);
        let dropped = format!("tidegate_messages_dropped_total{{reason=\"{reason}\"}}");
        let fill = || {
            let before = rig.metric(&dropped);
            while rig.metric(&dropped) < before + 20.0 {
                rig.publish("presence-a", &filler);
            }
        };
        fill();
        let mut observer = Client::connect(&rig);
        observer.subscribe_as("presence-a", "observer");
        let mut guest = Client::connect(&rig);
        guest.subscribe_as("presence-a", "guest");
        observer.expect_on("pusher_internal:member_added", "presence-a");
        drop(guest);
        observer.expect_on("pusher_internal:member_removed", "presence-a");
        fill();
        let mut told = Vec::new();
        while !told.contains(&("pusher_internal:member_removed".to_owned(), "guest".to_owned())) {
            let message = slow.next();
            if let Some(user) = data(&message)["user_id"].as_str() {
                told.push((message["event"].as_str().unwrap().to_owned(), user.to_owned()));
            }
        }
        let events: Vec<(&str, &str)> = told.iter().map(|(event, user)| (&**event, &**user)).collect();
        let (added, removed) = ("pusher_internal:member_added", "pusher_internal:member_removed");
        assert_eq!(events, [(added, "observer"), (added, "guest"), (removed, "guest")], "{policy:?}");
    }
}

/// It subscribes, is answered with a large event, unsubscribes, and begins again. What it does not read is not queued for
/// ever: after an answer that found no room it is not read until that has gone.
#[test]
fn who_reads_no_answers_is_not_read() {
    let rig = Rig::start(config());
    rig.publish("cache-x", &"x".repeat(60 * 1024));
    let options = SocketOptions { receive_buffer_bytes: Some(4096), ..SocketOptions::default() };
    let socket = WsClient::try_connect_from(rig.address, PATH, &[], options).unwrap();
    let mut client = Client { socket, id: String::new() };
    client.expect("pusher:connection_established");
    let subscriptions = |count: f64| {
        let give_up = Instant::now() + Duration::from_secs(2);
        while rig.metric("tidegate_subscriptions") != count && Instant::now() < give_up {
            thread::yield_now();
        }
        rig.metric("tidegate_subscriptions") == count
    };
    // 12 MB, and the kernel takes 4 to 6 of them.
    for _ in 0..200 {
        client.ask("cache-x");
        if !subscriptions(1.0) {
            break;
        }
        client.send("pusher:unsubscribe", json!({ "channel": "cache-x" }));
        if !subscriptions(0.0) {
            break;
        }
    }
    let queued = rig.metric("tidegate_send_queue_bytes");
    assert!(queued < f64::from(256 * 1024), "{queued} bytes wait for one who reads nothing");
}

#[test]
fn compressed_for_those_who_negotiated_it_where_the_namespace_says_so() {
    let mut config = config();
    config.namespaces.default.compression = true;
    let rig = Rig::start(config);
    let deflate = [("Sec-WebSocket-Extensions", "permessage-deflate; server_no_context_takeover")];
    let mut squeezed = tidegate_testkit::RawTcp::connect(rig.address);
    let head = format!(
        "GET {PATH} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{}: {}\r\n\r\n",
        deflate[0].0, deflate[0].1
    );
    squeezed.send(head.as_bytes());
    let answer = squeezed.read_head(DEADLINE).unwrap();
    assert!(answer.header("sec-websocket-extensions").is_some(), "{answer:?}");
    squeezed.read_frame(DEADLINE).unwrap();
    let subscribe = br#"{"event":"pusher:subscribe","data":{"channel":"a"}}"#;
    squeezed.send(&tidegate_testkit::masked_frame(0x81, subscribe));
    squeezed.read_frame(DEADLINE).unwrap();
    let mut plain = Client::connect(&rig);
    plain.subscribe("a");
    let text = "long ".repeat(200);
    rig.publish("a", &text);
    assert_eq!(plain.expect_on("message", "a"), json!(text));
    let (first, payload) = squeezed.read_frame(DEADLINE).unwrap();
    assert_eq!(first, 0xC1, "RSV1 says that it is deflated");
    assert!(payload.len() < 200, "{}", payload.len());
}

/// Whatever clients do, in the end nothing of them is left.
#[test]
fn comings_and_goings_leave_nothing() {
    let rig = Rig::start(config());
    for round in 0..4 {
        let mut clients: Vec<Client> = (0..6).map(|_| Client::connect(&rig)).collect();
        for (n, client) in clients.iter_mut().enumerate() {
            let user = format!("u{}", n % 3);
            client.ask_sign_in(&json!({ "id": user, "watchlist": ["u0", "u1"] }));
            client.ask_as("presence-cache-a", &user, json!(null));
            client.ask("cache-b");
            client.ask("private-c");
            client.send_event("private-c", "client-x", json!(n));
            if n % 2 == round % 2 {
                client.send("pusher:unsubscribe", json!({ "channel": "presence-cache-a" }));
                client.send("pusher:unsubscribe", json!({ "channel": "private-c" }));
            }
        }
        rig.publish("cache-b", "x");
        drop(clients);
    }
    eventually("nobody is connected", DEADLINE, || rig.front.connections() == 0);
    for channel in ["presence-cache-a", "cache-b", "private-c", "#watch-u0", "#watch-u1", "#watch-u2"] {
        rig.eventually_attending(channel, (0, 0));
    }
    rig.eventually_empty();
}
