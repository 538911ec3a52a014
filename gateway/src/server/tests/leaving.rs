//! Connections that end, or never get so far: by a client, by time, by a slow reader; what they are told, what is
//! counted, what is left.

use std::{net::TcpStream, time::Duration};

use tidegate_testkit::{
    DEADLINE, RawTcp, Received, SseClient, WsClient, eventually, masked_frame,
    net::{SocketOptions, connect},
};

use super::rig::{Rig, config};
use crate::config::{ByteSize, Config, SlowReader};

#[test]
fn every_handshake_is_counted_once_and_every_place_given_back() {
    let rig = Rig::start(config());
    let silent = TcpStream::connect(rig.address).unwrap();
    eventually("the silent one is in", DEADLINE, || rig.metric("tidegate_connections ") == 1.0);
    drop(silent);
    let mut half = RawTcp::connect(rig.address);
    half.send(b"GET /ws?channel=a HTTP/1.1\r\n");
    eventually("the half request is in", DEADLINE, || rig.metric("tidegate_bytes_received_total ") > 0.0);
    drop(half);
    assert_eq!(WsClient::try_connect(rig.address, "/ws", &[]).unwrap_err().status, 400);
    drop(WsClient::connect(rig.address, "/ws?channel=a"));
    let mut stream = SseClient::connect(rig.address, "/sse?channel=a&channel=b", None);
    rig.publish("b", "1");
    stream.expect_event();
    drop(stream);
    let mut rude = RawTcp::upgraded(rig.address, "/ws?channel=a");
    rude.send(&[0x81, 0x01, b'x']);
    assert_eq!(rude.read_close_code(DEADLINE).unwrap(), 1002);
    drop(rude);
    rig.eventually_empty();
    for (result, count) in [("abandoned", 1.0), ("bad_request", 1.0), ("accepted", 3.0)] {
        assert_eq!(
            rig.metric(&format!("tidegate_handshakes_total{{result=\"{result}\"}}")),
            count,
            "{result}"
        );
    }
    assert_eq!(rig.metric("tidegate_handshakes_total"), 5.0);
    assert_eq!(rig.metric("tidegate_disconnects_total{reason=\"protocol_error\"}"), 1.0);
    assert_eq!(rig.metric("tidegate_protocol_errors_total{error=\"unmasked\"}"), 1.0);
    assert_eq!(rig.metric("tidegate_protocol_errors_total"), 1.0);
    assert_eq!(rig.metric("tidegate_connection_duration_seconds_count "), 3.0);
}

#[test]
fn a_backplane_that_does_not_answer_is_named_when_the_time_is_over() {
    let mut config = config();
    config.limits.handshake_timeout = Duration::from_millis(300);
    let rig = Rig::start(config);
    rig.backplane.subscription.shut();
    let refusal = WsClient::try_connect(rig.address, "/ws?channel=a", &[]).unwrap_err();
    assert_eq!(refusal.status, 503, "{refusal:?}");
    assert!(refusal.body.contains("backplane"), "{refusal:?}");
    assert_eq!(rig.metric("tidegate_handshakes_total{result=\"backplane_unavailable\"}"), 1.0);
    rig.eventually_empty();
}

/// What it waits for may be there when it comes back, and an event source comes back after nothing but a 200.
#[test]
fn an_event_source_that_waits_for_what_does_not_come_is_told_to_come_back() {
    let mut config = config();
    config.limits.handshake_timeout = Duration::from_millis(300);
    let rig = Rig::start(config);
    rig.backplane.subscription.shut();
    let mut source = RawTcp::connect(rig.address);
    source.send(b"GET /sse?channel=a HTTP/1.1\r\nHost: h\r\n\r\n");
    let head = source.read_head(DEADLINE).unwrap();
    assert_eq!((head.status, head.header("tidegate-busy")), (200, Some("away")), "{head:?}");
    assert_eq!(rig.metric("tidegate_handshakes_total{result=\"backplane_unavailable\"}"), 1.0);
    rig.eventually_empty();
}

#[test]
fn a_client_that_does_not_wait_for_its_answer_is_bounded() {
    let rig = Rig::start(config());
    rig.backplane.subscription.shut();
    let mut client = RawTcp::upgrade(rig.address, "/ws?channel=a");
    rig.backplane.subscription.eventually_arrived(1);
    client.send(&masked_frame(0x89, &[0; 100]).repeat(200));
    assert_eq!(client.read_head(DEADLINE).unwrap().status, 400);
    rig.eventually_metric("tidegate_handshakes_total{result=\"bad_request\"}", 1.0);

    // A little is kept, and served after the answer.
    let mut client = RawTcp::upgrade(rig.address, "/ws?channel=b");
    rig.backplane.subscription.eventually_arrived(2);
    client.send(&masked_frame(0x89, b"early"));
    eventually("it is read", DEADLINE, || rig.metric("tidegate_bytes_received_total ") > 21_000.0);
    rig.backplane.subscription.open();
    assert_eq!(client.read_head(DEADLINE).unwrap().status, 101);
    assert_eq!(client.read_frame(DEADLINE).unwrap(), (0x8A, b"early".to_vec()));
}

/// A server whose queues hold 64 KiB, with a policy for the channels of `plain`.
fn with_policy(policy: SlowReader) -> Config {
    let mut config = config();
    config.limits.send_queue_bytes = ByteSize::kib(64);
    config.namespaces.named.get_mut("plain").unwrap().slow_reader = policy;
    config
}

/// A client that takes in little unless it reads.
fn narrow(rig: &Rig, path: &str) -> WsClient {
    let options = SocketOptions { receive_buffer_bytes: Some(4096), ..SocketOptions::default() };
    WsClient::try_connect_from(rig.address, path, &[], options).unwrap()
}

/// Publishes numbered messages of 8 KiB until `stop`; how many.
fn publish_until(rig: &Rig, mut stop: impl FnMut() -> bool) -> usize {
    let filler = "x".repeat(8 * 1024);
    let mut count = 0;
    while !stop() {
        rig.publish("plain:a", &format!("{count} {filler}"));
        count += 1;
        assert!(count < 20_000, "160 MB and no end");
    }
    count
}

#[test]
fn what_policy_drops_is_not_counted_as_sent() {
    for (policy, reason) in [(SlowReader::Drop, "queue_full"), (SlowReader::Latest, "superseded")] {
        let rig = Rig::start(with_policy(policy));
        let mut client = narrow(&rig, "/ws?channel=plain:a&envelope=json");
        let dropped = format!("tidegate_messages_dropped_total{{reason=\"{reason}\"}}");
        let published = publish_until(&rig, || rig.metric(&dropped) >= 20.0);
        rig.publish("plain:a", "last");
        let (mut received, mut told, mut last) = (0, 0, None);
        // The last one fits, or the notice counts it.
        while received + told < published + 1 {
            let message = client.expect_json();
            if let Some(count) = message["dropped"].as_u64() {
                told += count as usize;
                continue;
            }
            received += 1;
            let number = message["data"].as_str().unwrap().split(' ').next().unwrap().to_owned();
            let number = number.parse().unwrap_or(usize::MAX);
            assert!(last.is_none_or(|last| last < number), "{policy:?}: {last:?} before {number}");
            last = Some(number);
        }
        let (sent, dropped) = (rig.metric("tidegate_messages_sent_total "), rig.metric(&dropped));
        assert_eq!(dropped, told as f64, "{policy:?}");
        match policy {
            SlowReader::Latest => assert_eq!(sent - dropped, received as f64, "{policy:?}"),
            _ => assert_eq!(sent, received as f64, "{policy:?}"),
        }
    }
}

/// It was dropped like a publication, or replaced by the next one.
#[test]
fn a_slow_reader_is_told_of_a_gap_under_every_policy() {
    for (policy, reason) in [(SlowReader::Drop, "queue_full"), (SlowReader::Latest, "superseded")] {
        let rig = Rig::start(with_policy(policy));
        let mut client = narrow(&rig, "/ws?channel=plain:a&envelope=json");
        let dropped = || rig.metric(&format!("tidegate_messages_dropped_total{{reason=\"{reason}\"}}"));
        publish_until(&rig, || dropped() >= 5.0);
        rig.gap("plain:a", None);
        let before = dropped();
        publish_until(&rig, || dropped() >= before + 20.0);
        while client.expect_json()["gap"].is_null() {}
    }
}

#[test]
fn what_a_slow_reader_loses_with_its_connection_is_counted() {
    let rig = Rig::start(with_policy(SlowReader::Disconnect));
    let mut client = narrow(&rig, "/ws?channel=plain:a");
    let published = publish_until(&rig, || rig.metric("tidegate_disconnects_total") > 0.0);
    assert_eq!(rig.metric("tidegate_disconnects_total{reason=\"slow_reader\"}"), 1.0);
    rig.eventually_subscribers("plain:a", 0);
    let mut received = 0;
    while let Received::Text(_) = client.next(DEADLINE) {
        received += 1;
    }
    let lost = rig.metric("tidegate_messages_dropped_total{reason=\"disconnected\"}");
    // Those in the kernel's buffers when the socket was closed reached it or not; those published between the end
    // and its count had nobody to reach.
    assert!(lost > 0.0, "{published} published, {received} received");
    assert!(received as f64 + lost <= published as f64, "{published}, {received}, {lost}");
    rig.eventually_empty();
}

/// Only a peer that is cut off acknowledges nothing; one whose window stays shut is the nearest that one machine
/// can have, and the kernel treats both alike.
#[cfg(target_os = "linux")]
#[test]
fn an_event_stream_whose_client_does_not_take_anything_in_ends() {
    let mut config = with_policy(SlowReader::Drop);
    (config.heartbeat.interval, config.heartbeat.timeout) = (Duration::from_secs(1), Duration::from_secs(1));
    let rig = Rig::start(config);
    let options = SocketOptions { receive_buffer_bytes: Some(4096), ..SocketOptions::default() };
    let mut client = connect(rig.address, options).unwrap();
    std::io::Write::write_all(&mut client, b"GET /sse?channel=plain:a HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    rig.eventually_subscribers("plain:a", 1);
    publish_until(&rig, || rig.metric("tidegate_messages_dropped_total{reason=\"queue_full\"}") > 0.0);
    rig.eventually_metric("tidegate_disconnects_total{reason=\"ping_timeout\"}", 1.0);
    rig.eventually_subscribers("plain:a", 0);
}

/// The close frame of a client may be read together with the message for which the client has to go.
#[test]
fn a_close_frame_that_comes_with_the_last_message_is_seen() {
    let mut config = config();
    // Never over in a test: only the client's close frame ends the wait for it.
    config.drain.close_wait = Duration::from_secs(3600);
    let rig = Rig::start(config);
    let mut client = RawTcp::upgraded(rig.address, "/ws?channel=a");
    // It may not publish there, and is told so by a close frame.
    client.send(&[masked_frame(0x81, b"x"), masked_frame(0x88, &1000u16.to_be_bytes())].concat());
    assert_eq!(client.read_close_code(DEADLINE).unwrap(), 1008);
    client.read_to_end(DEADLINE).unwrap();
    rig.eventually_empty();
    // One that comes later is seen as well.
    let mut client = RawTcp::upgraded(rig.address, "/ws?channel=a");
    client.send(&masked_frame(0x81, b"x"));
    assert_eq!(client.read_close_code(DEADLINE).unwrap(), 1008);
    client.send(&masked_frame(0x88, &1000u16.to_be_bytes()));
    client.read_to_end(DEADLINE).unwrap();
    rig.eventually_empty();
}
