//! Coming back while history is slow, the backplane is late, or too much is published meanwhile.

use std::time::Duration;

use tidegate_backplane::{Epoch, Intake, Position};
use tidegate_testkit::{DEADLINE, SseClient, WsClient, eventually, net::SocketOptions};

use super::rig::{Rig, config};
use crate::config::UntoldGap;

/// Connects on a thread of its own, since the answer comes only when the test lets it.
fn connect_later<C: Send + 'static>(
    connect: impl FnOnce() -> C + Send + 'static,
) -> std::thread::JoinHandle<C> {
    std::thread::spawn(connect)
}

fn since(rig: &Rig, channel: &str, position: Position) -> impl FnOnce() -> WsClient + Send + use<> {
    let (address, path) = (rig.address, format!("/ws?channel={channel}&since={position}"));
    move || WsClient::connect(address, &path)
}

#[test]
fn what_is_published_while_history_is_read_comes_once_and_in_order() {
    let rig = Rig::start(config());
    let start = rig.publish("a", "1").unwrap();
    rig.publish("a", "2");
    rig.backplane.history.shut();
    let client = connect_later(since(&rig, "a", start));
    rig.backplane.history.eventually_arrived(1);
    for text in ["3", "4"] {
        rig.publish("a", text);
    }
    rig.backplane.history.open();
    let mut client = client.join().unwrap();
    rig.publish("a", "5");
    for text in ["2", "3", "4", "5"] {
        assert_eq!(client.expect_text(), text);
    }
    assert_eq!((rig.subscribers("a"), rig.metric("tidegate_subscriptions ")), (1, 1.0));
}

#[test]
fn what_history_held_is_not_repeated_when_it_is_handed_over_late() {
    let rig = Rig::start(config());
    let start = rig.publish("a", "1").unwrap();
    let mut live = WsClient::connect(rig.address, "/ws?channel=a");
    rig.backplane.hold_publications();
    for text in ["2", "3"] {
        rig.publish("a", text);
    }
    // Of the clients that follow, one leaves before what it waits for has come.
    let leaves = since(&rig, "a", start)();
    let (mut raw, mut deeper) = (since(&rig, "a", start)(), since(&rig, "a", start)());
    let mut stream = SseClient::connect(rig.address, "/sse?channel=a", Some(&start.to_string()));
    rig.eventually_subscribers("a", 5);
    drop(leaves);
    rig.eventually_subscribers("a", 4);
    rig.backplane.hand_over();
    rig.publish("a", "4");
    rig.publish("a", "5");
    for text in ["2", "3", "4", "5"] {
        for client in [&mut live, &mut raw, &mut deeper] {
            assert_eq!(client.expect_text(), text);
        }
        assert_eq!(stream.expect_event().data, text);
    }
    rig.eventually_metric("tidegate_subscriptions ", 4.0);
    drop((live, raw, deeper, stream));
    rig.eventually_empty();
}

/// The epoch changed on the server; what was on its way before is handed over after history was read.
#[test]
fn an_older_epoch_that_is_handed_over_late_is_not_delivered_to_who_recovered_in_the_new() {
    let rig = Rig::start(config());
    let start = rig.publish("a", "1").unwrap();
    let mut live = WsClient::connect(rig.address, "/ws?channel=a");
    rig.backplane.hold_publications();
    for text in ["2", "3"] {
        rig.publish("a", text);
    }
    let mut client = since(&rig, "a", start)();
    assert_eq!([client.expect_text(), client.expect_text()], ["2", "3"]);
    let older = Position { epoch: Epoch(start.epoch.0.wrapping_add(1)), offset: 70 };
    assert_eq!(rig.hand_over("a", Some(older), "old"), Intake::Taken);
    // Served: both lanes were.
    assert_eq!(live.expect_text(), "old");
    rig.backplane.hand_over();
    rig.publish("a", "4");
    for text in ["2", "3", "4"] {
        assert_eq!(live.expect_text(), text);
    }
    assert_eq!(client.expect_text(), "4");
}

#[test]
fn who_follows_does_so_until_all_that_history_held_has_passed() {
    let rig = Rig::start(config());
    let start = rig.publish("a", "1").unwrap();
    let mut live = WsClient::connect(rig.address, "/ws?channel=a");
    rig.backplane.hold_publications();
    for text in ["2", "3", "4"] {
        rig.publish("a", text);
    }
    let mut client = since(&rig, "a", start)();
    for text in ["2", "3", "4"] {
        rig.backplane.hand_over_one();
        // Once the live one has it, the shard has served both.
        assert_eq!(live.expect_text(), text);
        assert_eq!(client.expect_text(), text);
    }
    rig.backplane.hand_over();
    rig.publish("a", "5");
    assert_eq!((live.expect_text(), client.expect_text()), ("5".to_owned(), "5".to_owned()));
}

#[test]
fn an_event_stream_of_several_channels_recovers_the_ones_it_knew() {
    let rig = Rig::start(config());
    let start = rig.publish("a", "a1").unwrap();
    rig.publish("b", "b1");
    rig.publish("a", "a2");
    rig.backplane.hold_publications();
    rig.publish("a", "a3");
    let path = "/sse?channel=a&channel=b";
    let mut stream = SseClient::connect(rig.address, path, Some(&format!("{start},")));
    let last = rig.publish("b", "b2").unwrap();
    rig.backplane.hand_over();
    let seen = [(); 3].map(|()| stream.expect_event());
    assert_eq!(seen.each_ref().map(|event| &*event.data), ["a2", "a3", "b2"]);
    let top = Position { offset: 3, ..start };
    assert_eq!(seen[2].id, format!("{top},{last}"));
    drop(stream);
    rig.publish("b", "b3");
    rig.publish("a", "a4");
    let mut stream = SseClient::connect(rig.address, path, Some(&seen[2].id));
    assert_eq!([(); 2].map(|()| stream.expect_event().data), ["a4", "b3"]);
}

#[test]
fn a_stream_that_is_gone_between_two_histories_comes_back_for_the_second() {
    let rig = Rig::start(config());
    let (a, b) = (rig.publish("a", "a1").unwrap(), rig.publish("b", "b1").unwrap());
    rig.publish("a", "a2");
    rig.publish("b", "b2");
    let path = "/sse?channel=a&channel=b&channel=c";
    let mut stream = SseClient::connect(rig.address, path, Some(&format!("{a},{b},")));
    let first = stream.expect_event();
    assert_eq!(first.data, "a2");
    drop(stream);
    rig.publish("c", "c1");
    let mut stream = SseClient::connect(rig.address, path, Some(&first.id));
    assert_eq!([(); 2].map(|()| stream.expect_event().data), ["b2", "c1"]);
}

#[test]
fn too_much_to_keep_is_read_again_and_no_loss() {
    let rig = Rig::start(config());
    let start = rig.publish("a", "0").unwrap();
    rig.backplane.history.shut();
    let client = connect_later(since(&rig, "a", start));
    rig.backplane.history.eventually_arrived(1);
    // 64 KiB are kept: 60 KiB at a time go past it with the second.
    let texts: Vec<String> = (1..=6).map(|n| format!("{n}{}", "x".repeat(60 * 1024))).collect();
    for text in &texts {
        rig.publish("a", text);
    }
    rig.backplane.history.open();
    let mut client = client.join().unwrap();
    for text in &texts {
        assert_eq!(&client.expect_text(), text);
    }
    rig.publish("a", "live");
    assert_eq!(client.expect_text(), "live");
    assert_eq!(rig.metric("tidegate_messages_dropped_total"), 0.0);
}

/// However often more is published than can be kept: the next page has it.
#[test]
fn a_channel_that_is_always_too_fast_comes_in_pages() {
    let rig = Rig::start(config());
    let start = rig.publish("a", "0").unwrap();
    rig.backplane.history.shut();
    let (address, path) = (rig.address, format!("/ws?channel=a&since={start}&envelope=json"));
    let names = [("Sec-WebSocket-Protocol", "other, tidegate.v1")];
    let client = connect_later(move || WsClient::try_connect(address, &path, &names).unwrap());
    let big = "x".repeat(60 * 1024);
    for reads in 1..=3 {
        rig.backplane.history.eventually_arrived(reads);
        for _ in 0..3 {
            rig.publish("a", &big).unwrap();
        }
        rig.backplane.history.let_pass();
    }
    rig.backplane.history.open();
    let mut client = client.join().unwrap();
    let subscribed = client.expect_json();
    assert_eq!(subscribed["subscribed"]["recovered"], true, "{subscribed}");
    for offset in 2..=10 {
        assert_eq!(client.expect_json()["offset"], offset);
    }
    let next = rig.publish("a", "next").unwrap();
    assert_eq!(client.expect_json()["offset"], next.offset);
}

/// More came for one channel than is kept, while the history of another was still awaited.
#[test]
fn an_overflow_of_one_channel_while_another_is_awaited_is_no_loss() {
    let rig = Rig::start(config());
    let (a, b) = (rig.publish("a", "a1").unwrap(), rig.publish("b", "b1").unwrap());
    rig.publish("b", "b2");
    rig.backplane.history.shut();
    let address = rig.address;
    let client = connect_later(move || {
        SseClient::connect(address, "/sse?channel=a&channel=b", Some(&format!("{a},{b}")))
    });
    rig.backplane.history.eventually_arrived(1);
    let texts: Vec<String> = (1..=6).map(|n| format!("{n}{}", "x".repeat(60 * 1024))).collect();
    for text in &texts[..3] {
        rig.publish("a", text);
    }
    // The first is of a; then b is awaited, or what a lacks.
    rig.backplane.history.let_pass();
    rig.backplane.history.eventually_arrived(2);
    for text in &texts[3..] {
        rig.publish("a", text);
    }
    rig.backplane.history.open();
    let mut client = client.join().unwrap();
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    while of_a.len() < texts.len() || of_b.is_empty() {
        let event = client.expect_event();
        assert_ne!(event.event, "gap");
        if event.data.starts_with('b') { of_b.push(event.data) } else { of_a.push(event.data) }
    }
    assert_eq!((of_a, of_b), (texts, vec!["b2".to_owned()]));
}

/// Clients that recover much and read nothing cost a page each, however many channels they name.
#[test]
fn who_reads_nothing_is_sent_one_page() {
    let rig = Rig::start(config());
    let big = "x".repeat(60 * 1024);
    let names: Vec<String> = (0..10).map(|n| format!("c{n}")).collect();
    let mut places = Vec::new();
    for name in &names {
        let start = rig.publish(name, "0").unwrap();
        for _ in 0..10 {
            rig.publish(name, &big);
        }
        places.push(start.to_string());
    }
    let query = names.iter().map(|name| format!("channel={name}")).collect::<Vec<_>>().join("&");
    let request = format!(
        "GET /sse?{query} HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: {}\r\n\r\n",
        places.join(",")
    );
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let options = SocketOptions { receive_buffer_bytes: Some(4096), ..Default::default() };
            let mut client = tidegate_testkit::net::connect(rig.address, options).unwrap();
            std::io::Write::write_all(&mut client, request.as_bytes()).unwrap();
            client
        })
        .collect();
    rig.eventually_metric("tidegate_handshakes_total{result=\"accepted\"}", 8.0);
    // Each has 6 MB to come. What the kernel does not take is at most a page, in base64-free text a little more.
    for _ in 0..20 {
        let queued = rig.metric("tidegate_send_queue_bytes");
        assert!(queued <= 8.0 * 80.0 * 1024.0, "{queued} bytes are queued");
        rig.publish("other", "x");
    }
    drop(clients);
    rig.eventually_empty();
}

#[test]
fn slow_history_does_not_hold_publishers_up() {
    let rig = Rig::start(config());
    let start = rig.publish("a", "0").unwrap();
    rig.backplane.history.shut();
    let client = connect_later(since(&rig, "a", start));
    rig.backplane.history.eventually_arrived(1);
    // Four times what may be on its way out of a channel; a publisher that waits for room is refused after 5 s.
    for n in 1..=40 {
        rig.publish("a", &format!("{n}{}", "x".repeat(6 * 1024)));
    }
    rig.backplane.history.open();
    let mut client = client.join().unwrap();
    for n in 1..=40 {
        assert!(client.expect_text().starts_with(&format!("{n}x")));
    }
}

#[test]
fn who_leaves_while_history_is_read_leaves_nothing_behind() {
    let rig = Rig::start(config());
    let start = rig.publish("a", "1").unwrap();
    rig.backplane.history.shut();
    let mut clients = Vec::new();
    for arrived in 1..=5 {
        let path = format!("/ws?channel=a&envelope=json&since={start}");
        let client = tidegate_testkit::RawTcp::upgrade(rig.address, &path);
        // All ask for the same: one read is sent, and the next waits for it.
        rig.backplane.history.eventually_arrived(1);
        rig.eventually_subscribers("a", arrived);
        clients.push(client);
    }
    assert_eq!(rig.backplane.history.arrived(), 1);
    drop(clients);
    rig.eventually_subscribers("a", 0);
    rig.backplane.history.open();
    rig.eventually_empty();
    assert_eq!(rig.metric("tidegate_handshakes_total{result=\"abandoned\"}"), 5.0);
    assert_eq!(rig.metric("tidegate_handshakes_total"), 5.0);
}

#[test]
fn a_gap_is_told_in_its_place_to_everyone_as_their_protocol_can() {
    let rig = Rig::start(config());
    let start = rig.publish("a", "1").unwrap();
    let mut raw = WsClient::connect(rig.address, "/ws?channel=a");
    let mut envelope = WsClient::connect(rig.address, "/ws?channel=a&envelope=json");
    let mut stream = SseClient::connect(rig.address, "/sse?channel=a", None);
    let top = rig.publish("a", "2").unwrap();
    rig.gap("a", Some(top));
    rig.publish("a", "3");
    assert_eq!(raw.expect_text(), "2");
    assert_eq!(raw.expect_close(4010), "gap: reconnect");
    assert_eq!(envelope.expect_json()["data"], "2");
    assert_eq!(envelope.expect_json()["gap"]["offset"], top.offset);
    assert_eq!(envelope.expect_json()["data"], "3");
    assert_eq!(stream.expect_event().data, "2");
    let event = stream.expect_event();
    assert_eq!((event.event, event.id), ("gap".to_owned(), top.to_string()));
    assert_eq!(stream.expect_event().data, "3");
    rig.eventually_subscribers("a", 2);
    assert_eq!(rig.metric("tidegate_disconnects_total{reason=\"gap\"}"), 1.0);
    assert_eq!(rig.metric("tidegate_close_frames_total{code=\"4010\"}"), 1.0);

    // Who recovers past the gap has missed nothing, and is not told of it.
    rig.backplane.history.shut();
    let client = connect_later(since(&rig, "a", start));
    // The first was the event stream.
    rig.backplane.history.eventually_arrived(2);
    rig.gap("a", Some(top));
    rig.backplane.history.open();
    let mut client = client.join().unwrap();
    rig.publish("a", "4");
    for text in ["2", "3", "4"] {
        assert_eq!(client.expect_text(), text);
    }
}

#[test]
fn many_that_a_gap_closes_are_closed_over_a_time_and_told_nothing_meanwhile() {
    let mut config = config();
    config.drain.gap_period = Duration::from_secs(3600);
    let rig = Rig::start(config);
    let clients: Vec<_> = (0..300).map(|_| WsClient::connect(rig.address, "/ws?channel=a")).collect();
    rig.gap("a", None);
    let closed = || rig.metric("tidegate_close_frames_total{code=\"4010\"}");
    eventually("the first is closed", DEADLINE, || closed() >= 1.0);
    let mut late = WsClient::connect(rig.address, "/ws?channel=a");
    rig.publish("a", "1");
    assert_eq!(late.expect_text(), "1");
    // Counted when the shard has written to all of the lane.
    rig.eventually_metric("tidegate_messages_sent_total", 1.0);
    assert!(rig.subscribers("a") > 128, "{} are closed", closed());
    drop(clients);
    rig.eventually_subscribers("a", 1);
}

#[test]
fn where_the_namespace_says_so_a_gap_closes_nobody_and_is_counted() {
    let mut config = config();
    config.namespaces.default.untold_gap = UntoldGap::Stay;
    let rig = Rig::start(config);
    let mut client = WsClient::connect(rig.address, "/ws?channel=a");
    rig.gap("a", None);
    rig.publish("a", "1");
    assert_eq!(client.expect_text(), "1");
    assert_eq!(rig.metric("tidegate_gaps_untold_total"), 1.0);
}

#[test]
fn a_channel_without_history_says_that_it_cannot_recover() {
    let rig = Rig::start(config());
    let path = "/ws?channel=plain:a&since=k3:5&envelope=json";
    let mut client = WsClient::connect(rig.address, path);
    assert_eq!(client.expect_json()["gap"]["reason"], "unrecoverable");
    rig.publish("plain:a", "1");
    rig.publish("plain:a", "2");
    assert_eq!(client.expect_json()["data"], "1");
    assert_eq!(client.expect_json()["data"], "2");
}

#[test]
fn a_refused_subscription_is_tried_again_for_the_next_client() {
    let rig = Rig::start(config());
    rig.backplane.refusals.store(2, std::sync::atomic::Ordering::Release);
    for _ in 0..2 {
        let refusal = WsClient::try_connect(rig.address, "/ws?channel=a", &[]).unwrap_err();
        assert_eq!(refusal.status, 503, "{refusal:?}");
    }
    let mut client = WsClient::connect(rig.address, "/ws?channel=a");
    rig.publish("a", "1");
    assert_eq!(client.expect_text(), "1");
    assert_eq!(rig.metric("tidegate_handshakes_total{result=\"backplane_unavailable\"}"), 2.0);
    eventually("the refused are gone", DEADLINE, || rig.front.connections() == 1);
}
