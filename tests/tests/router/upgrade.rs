//! A router that is replaced by another process while its pairs stay open.

use std::{
    fs,
    io::{Read as _, Write as _},
    thread,
};

use tidegate_testkit::{
    DEADLINE, Gateway, RawTcp, Received, Rest, SseClient, Stop, WsClient, end, eventually, eventually_some,
    frame, masked_frame, memory::descriptors, net::SocketOptions, pid_runs, tls::Authority,
};
use tidegate_tests::succession::{
    Kill, Program, Publisher, Successors, expect_events, expect_numbers, next_text, refused,
};

use crate::site::{Router, SHORT_DRAIN, Site, index};

const ANYONE: &str = "[limits]\npublishes_per_second = 100000\nmessages_per_second = 100000\n\
                      [namespaces.default]\nclient_publish = \"anyone\"\n";

/// A request that is in the middle may take as long as the test.
const ROUTER: &str = "shards = 2\n[limits]\nhandshake_timeout = \"10m\"\n[drain]\nsettle = \"200ms\"\nperiod = \"1s\"\n\
                      close_wait = \"2s\"\n";

/// They are to be slow, not lost.
const PATIENT: &str =
    "[health]\nfailures = 1000000\n[drain]\nsettle = \"200ms\"\nperiod = \"1s\"\nclose_wait = \"1s\"\n";

const PAYLOAD_BYTES: usize = 32 * 1024;

/// 64 MiB of [`PAYLOAD_BYTES`]: more than all buffers on the way.
const FRAMES: usize = 2_000;

/// Pairs with both of two gateways, under publications over HTTP and by a client of the router.
#[test]
fn nobody_is_closed_and_nothing_is_lost_doubled_or_out_of_order() {
    let site = Site::with(2, ANYONE, ROUTER);
    let mut successors = Successors::default();
    let channels = ["plain", "talk"];
    let mut sockets: Vec<(WsClient, usize)> = (0..300)
        .map(|nth| (nth, format!("/ws?channel={}&key=k{nth}", channels[nth % 2])))
        .map(|(nth, path)| (WsClient::connect(site.router.public, &path), nth % 2))
        .collect();
    let mut streams: Vec<SseClient> = (0..20)
        .map(|nth| SseClient::connect(site.router.public, &format!("/sse?channel=plain&key=k{nth}"), None))
        .collect();
    // One that has not begun its request, and one that is in the middle of it.
    let mut late = [RawTcp::connect(site.router.public), RawTcp::connect(site.router.public)];
    let head = "GET /ws?channel=plain&key=a HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    let halves = [0, 40];
    late[1].send(&head.as_bytes()[..halves[1]]);
    let rest = site.gateways[0].rest();
    let talker = WsClient::connect(site.router.public, "/ws?channel=talk&key=talker");
    let publishers = [
        Publisher::start(move |number| drop(rest.publish("plain", &number.to_string()))),
        Publisher::client(talker),
    ];
    let pairs = (sockets.len() + streams.len() + 1) as f64;
    let mut held = Vec::new();
    for _ in 0..4 {
        publishers.iter().for_each(|publisher| publisher.more(20));
        let process = successors.upgrade(site.router.pid(), site.router.internal);
        publishers.iter().for_each(|publisher| publisher.more(20));
        assert_eq!(Rest::new(site.router.internal).get("/readyz").status, 200);
        assert_eq!(site.router.metric("tidegate_proxied_connections", &[]), pairs);
        held.push(descriptors(process));
    }
    let published = publishers.map(Publisher::stop);
    for (socket, channel) in &mut sockets {
        expect_numbers(socket, published[*channel], channels[*channel]);
    }
    for stream in &mut streams {
        expect_events(stream, published[0]);
    }
    for (client, half) in late.iter_mut().zip(halves) {
        client.send(&head.as_bytes()[half..]);
        assert_eq!(client.read_head(DEADLINE).expect("an answer").status, 101);
    }
    assert!(held.iter().all(|number| number.abs_diff(held[0]) <= 4), "{held:?}");
    // Their ends are told to both sides.
    drop((sockets, streams, late));
    site.router.eventually_metric("tidegate_proxied_connections", &[], 0.0);
}

/// A client that sends and does not read, so that bytes wait in both directions, and frames are cut anywhere.
#[test]
fn what_was_read_and_not_taken_goes_along() {
    let gateway = Gateway::start();
    let router = Router::of(&[&gateway], PATIENT);
    router.eventually_live(1);
    let mut successors = Successors::default();
    let request = "GET /echo HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    let mut client = tidegate_testkit::net::connect(router.public, SocketOptions::default()).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    let payload = |number: usize| vec![number as u8; PAYLOAD_BYTES];
    let mut writer = client.try_clone().unwrap();
    let writing = thread::spawn(move || {
        (0..FRAMES).try_for_each(|number| writer.write_all(&masked_frame(0x82, &payload(number))))
    });
    let queued = || router.metric("tidegate_send_queue_bytes", &[]);
    for _ in 0..3 {
        eventually("bytes wait in the router", DEADLINE, || queued() > 0.0);
        successors.upgrade(router.pid(), router.internal);
    }
    assert!(!writing.is_finished());
    for number in 0..FRAMES {
        let echo = frame(0x82, &payload(number));
        let mut received = vec![0; echo.len()];
        client.read_exact(&mut received).unwrap();
        assert!(received == echo, "echo {number}");
    }
    writing.join().unwrap().unwrap();
    eventually("nothing waits any more", DEADLINE, || queued() == 0.0);
}

/// A router of this program, with one gateway.
#[track_caller]
fn router_of(program: &Program, gateway: &Gateway, config: &str) -> Router {
    let config = format!("members = \"static:{}\"\n{config}", gateway.public());
    let router = Router::start_as(&program.path, &["--listen", "127.0.0.1:0"], &config);
    router.eventually_live(1);
    router
}

#[track_caller]
fn goes_on(gateway: &Gateway, router: &Router, client: &mut WsClient, text: &str) {
    gateway.rest().publish("news", text);
    assert_eq!(next_text(client), text);
    assert_eq!(Rest::new(router.internal).get("/readyz").status, 200);
    // Others come in.
    WsClient::connect(router.public, "/ws?channel=news").send_close(1000, "");
}

/// It does not start, ends, or hangs when it was given everything and has not said that it understood it.
#[test]
fn a_program_that_does_not_serve_changes_nothing() {
    let (program, gateway) = (Program::real(), Gateway::start());
    let router = router_of(&program, &gateway, "");
    let mut client = WsClient::connect(router.public, "/ws?channel=news");
    // It reads one record, says `Ready`, and reads the next one, which is `State`.
    let record = "dd bs=65536 count=1 2>/dev/null of=$0.state";
    let given = format!("{record}\nprintf '\\001\\001' >&0\n{record}");
    for (script, said) in [
        ("exit 7", "ended before it could serve"),
        ("dd bs=65536 count=1 of=/dev/null 2>/dev/null; echo what >&0; exit 0", "another version"),
        (&format!("{given}\nkill -9 $$"), "cannot take over"),
        (&format!("{given}\nexec sleep 600"), "cannot take over"),
    ] {
        program.replace(script);
        let why = refused(router.internal);
        assert!(why.contains(said), "{script}: {why}");
        goes_on(&gateway, &router, &mut client, script);
    }
    assert_eq!(
        fs::read(program.path.with_extension("state")).unwrap()[..2],
        [1, 3],
        "it was given the state"
    );
    program.restore();
    Successors::default().upgrade(router.pid(), router.internal);
}

#[test]
fn another_configuration_is_refused_and_one_upgrade_is_under_way_at_once() {
    let (program, gateway) = (Program::real(), Gateway::start());
    let router = router_of(&program, &gateway, "shards = 2\n");
    let mut client = WsClient::connect(router.public, "/ws?channel=news");
    let secrets = tempfile::tempdir().unwrap();
    Authority::new().issue(2100).write_to(secrets.path());
    let members = format!("members = \"static:{}\"\n", gateway.public());
    let tls = format!("shards = 2\n[tls]\ndirectory = {:?}\n", secrets.path());
    for (changed, said) in [
        ("shards = 3\n", "3 shards"),
        ("shards = 2\nsharks = 1\n", "ended before it could serve"),
        (&tls, "TLS"),
    ] {
        fs::write(router.config_file(), format!("{members}{changed}")).unwrap();
        let why = refused(router.internal);
        assert!(why.contains(said), "{changed}: {why}");
        goes_on(&gateway, &router, &mut client, changed);
    }
    fs::write(router.config_file(), "shards = 2\nmembers = \"dns:nowhere.invalid:80\"\n").unwrap();
    let why = refused(router.internal);
    assert!(why.contains("knows no gateway"), "{why}");
    goes_on(&gateway, &router, &mut client, "unknown");
    program.replace("exec sleep 600");
    let rest = Rest::new(router.internal);
    let first = thread::spawn(move || rest.post("/upgrade", "text/plain", "").text());
    let child = eventually_some("it is started", DEADLINE, || child(router.pid()));
    goes_on(&gateway, &router, &mut client, "meanwhile");
    let why = refused(router.internal);
    assert!(why.contains("under way already"), "{why}");
    end(child);
    let why = first.join().unwrap();
    assert!(why.contains("ended before it could serve"), "{why}");
    goes_on(&gateway, &router, &mut client, "afterwards");
}

#[test]
fn a_router_that_is_told_to_stop_during_an_upgrade_stops() {
    let (program, gateway) = (Program::real(), Gateway::start());
    let mut router = router_of(&program, &gateway, SHORT_DRAIN);
    let mut client = WsClient::connect(router.public, "/ws?channel=news");
    program.replace("exec sleep 600");
    let rest = Rest::new(router.internal);
    let first = thread::spawn(move || rest.try_post("/upgrade", "text/plain", ""));
    let child = eventually_some("it is started", DEADLINE, || child(router.pid()));
    router.signal(Stop::Terminate);
    assert!(matches!(client.next(DEADLINE), Received::Closed(_)));
    assert_eq!(router.wait().code, Some(0));
    eventually("what it had started has ended", DEADLINE, || !pid_runs(child));
    drop(first.join().unwrap());
}

/// What a process has started.
fn child(pid: u32) -> Option<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut started = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    started.find_map(|list| list.split_whitespace().next()?.parse().ok())
}

/// Pairs with both of two gateways, one of which is replaced. The router has its connections to it, and knows no other.
#[test]
fn a_gateway_behind_a_router_is_replaced_and_the_router_sees_nothing() {
    let site = Site::with(2, ANYONE, ROUTER);
    let mut successors = Successors::default();
    let channels = ["plain", "talk"];
    let keys = site.keys(100);
    let replaced = keys.iter().filter(|(_, node)| index(node) == 0).count();
    assert!((1..keys.len()).contains(&replaced), "{replaced} of {} belong to the first", keys.len());
    let connect = |key: &str, channel: &str| {
        WsClient::connect(site.router.public, &format!("/ws?channel={channel}&key={key}"))
    };
    let mut sockets: Vec<(WsClient, usize)> =
        (keys.iter().enumerate()).map(|(nth, (key, _))| (connect(key, channels[nth % 2]), nth % 2)).collect();
    let rest = site.router.rest();
    let (of_replaced, _) = keys.iter().find(|(_, node)| index(node) == 0).unwrap();
    let talker = connect(of_replaced, "talk");
    let publishers = [
        Publisher::start(move |number| drop(rest.publish("plain", &number.to_string()))),
        Publisher::client(talker),
    ];
    let first = &site.gateways[0];
    let pairs = (sockets.len() + 1) as f64;
    for _ in 0..4 {
        publishers.iter().for_each(|publisher| publisher.more(20));
        successors.upgrade(first.pid(), first.internal());
        publishers.iter().for_each(|publisher| publisher.more(20));
        assert_eq!(site.router.metric("tidegate_nodes", &[("state", "live")]), 2.0);
        assert_eq!(site.router.metric("tidegate_proxied_connections", &[]), pairs);
    }
    assert_eq!(site.router.metric("tidegate_proxied_connections_opened_total", &[]), pairs);
    for nothing in ["tidegate_cuts_total", "tidegate_refusals_total"] {
        assert_eq!(site.router.metric(nothing, &[]), 0.0, "{nothing}");
    }
    for reason in ["failed", "avoided"] {
        assert_eq!(site.router.metric("tidegate_fallbacks_total", &[("reason", reason)]), 0.0, "{reason}");
    }
    let published = publishers.map(Publisher::stop);
    for (socket, channel) in &mut sockets {
        expect_numbers(socket, published[*channel], channels[*channel]);
    }
}

#[test]
fn a_client_whose_gateway_the_new_configuration_lacks_is_closed_and_the_others_stay() {
    let (program, gateways) = (Program::real(), [Gateway::start(), Gateway::start()]);
    let members = |gateways: &[Gateway]| {
        let addresses: Vec<String> = gateways.iter().map(|gateway| gateway.public().to_string()).collect();
        format!("members = \"static:{}\"\n{SHORT_DRAIN}", addresses.join(","))
    };
    let router = Router::start_as(&program.path, &["--listen", "127.0.0.1:0"], &members(&gateways));
    router.eventually_live(2);
    let mut clients: Vec<(WsClient, bool)> = (0..40)
        .map(|nth| format!("k{nth}"))
        .map(|key| (key.clone(), router.assigned(&key) == gateways[0].public().to_string()))
        .map(|(key, stays)| (WsClient::connect(router.public, &format!("/ws?channel=news&key={key}")), stays))
        .collect();
    assert_eq!(
        gateways[0].metric("tidegate_connections", &[]) as usize,
        clients.iter().filter(|(_, stays)| *stays).count()
    );
    assert!(clients.iter().any(|(_, stays)| *stays) && clients.iter().any(|(_, stays)| !*stays));
    fs::write(router.config_file(), members(&gateways[..1])).unwrap();
    let mut successors = Successors::default();
    successors.upgrade(router.pid(), router.internal);
    gateways[0].rest().publish("news", "after");
    for (client, stays) in &mut clients {
        match client.next(DEADLINE) {
            Received::Text(text) => assert!(*stays && text == "after", "{text}"),
            Received::Closed(_) => assert!(!*stays),
            other => panic!("{other:?}"),
        }
    }
    // They come back to what there is.
    let mut back = WsClient::connect(router.public, "/ws?channel=news");
    goes_on(&gateways[0], &router, &mut back, "back");
}

#[test]
fn a_router_that_ends_tls_says_so() {
    let (gateway, secrets) = (Gateway::start(), tempfile::tempdir().unwrap());
    Authority::new().issue(2100).write_to(secrets.path());
    let router = Router::of(&[&gateway], &format!("[tls]\ndirectory = {:?}\n", secrets.path()));
    router.eventually_live(1);
    let why = refused(router.internal);
    assert!(why.contains("ends TLS itself"), "{why}");
    assert_eq!(Rest::new(router.internal).get("/readyz").status, 200);
}

const BETWEEN: &str = env!("CARGO_BIN_EXE_tidegate-between");

/// The new process has everything, and goes on.
#[test]
fn the_new_process_goes_on_when_the_old_one_dies_after_all_was_read() {
    let (program, gateway) = (Program::real(), Gateway::start());
    let router = router_of(&program, &gateway, "");
    let mut client = WsClient::connect(router.public, "/ws?channel=news");
    program.replace_with_kill(BETWEEN, Kill::OldAtTaken);
    drop(Rest::new(router.internal).try_post("/upgrade", "text/plain", ""));
    let mut successors = Successors::default();
    successors.note(program.successor());
    assert!(!pid_runs(router.pid()));
    eventually("the new one is ready", DEADLINE, || {
        Rest::new(router.internal).try_get("/readyz").is_some_and(|answer| answer.status == 200)
    });
    goes_on(&gateway, &router, &mut client, "after");
}

#[test]
fn clients_are_gone_when_the_new_process_dies_after_it_has_taken_over() {
    let (program, gateway) = (Program::real(), Gateway::start());
    let mut router = router_of(&program, &gateway, "");
    let mut client = WsClient::connect(router.public, "/ws?channel=news");
    program.replace_with_kill(BETWEEN, Kill::NewAtGo);
    drop(Rest::new(router.internal).try_post("/upgrade", "text/plain", ""));
    let exit = router.wait();
    assert_eq!(exit.code, Some(1), "{exit}");
    assert!(!pid_runs(program.successor()));
    assert!(matches!(client.next(DEADLINE), Received::Closed(_)));
    gateway.eventually_connections(0);
}
