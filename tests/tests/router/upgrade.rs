//! A router that is replaced by another process while its pairs stay open.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use tempfile::TempDir;
use tidegate_testkit::{
    DEADLINE, Gateway, RawTcp, Received, Rest, SseClient, Stop, WsClient, end, eventually, eventually_some,
    frame, masked_frame, memory::descriptors, net::SocketOptions, pid_runs, product_binary, tls::Authority,
};

use crate::site::{Router, SHORT_DRAIN, Site};

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

/// Processes that took over, ended with the test.
#[derive(Debug, Default)]
struct Successors(Vec<u32>);

impl Successors {
    /// Has the router replaced, and waits until the process before is gone.
    #[track_caller]
    fn upgrade(&mut self, router: &Router) -> u32 {
        let before = self.0.last().copied().unwrap_or_else(|| router.pid());
        let answer = Rest::new(router.internal).post("/upgrade", "text/plain", "");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let process = answer.json()["process"].as_u64().expect("its id") as u32;
        assert_ne!(process, before);
        self.0.push(process);
        eventually("the process before has ended", DEADLINE, || !pid_runs(before));
        process
    }
}

impl Drop for Successors {
    fn drop(&mut self) {
        self.0.iter().copied().filter(|&pid| pid_runs(pid)).for_each(end);
    }
}

/// Somebody who publishes numbers, one after the other, until told to stop.
struct Publisher {
    stop: Arc<AtomicBool>,
    published: Arc<AtomicUsize>,
    thread: JoinHandle<usize>,
}

impl Publisher {
    fn start(mut publish: impl FnMut(usize) + Send + 'static) -> Self {
        let (stop, published) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&published));
        let thread = thread::spawn(move || {
            let mut number = 0;
            while !stopped.load(Ordering::Acquire) {
                publish(number);
                number += 1;
                count.store(number, Ordering::Release);
            }
            number
        });
        Self { stop, published, thread }
    }

    /// Waits until so many more were published.
    #[track_caller]
    fn more(&self, number: usize) {
        let wanted = self.published.load(Ordering::Acquire) + number;
        eventually("more is published", DEADLINE, || self.published.load(Ordering::Acquire) >= wanted);
    }

    #[track_caller]
    fn stop(self) -> usize {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("whoever publishes is answered")
    }
}

/// The next message, whatever heartbeats come before it.
#[track_caller]
fn next_text(client: &mut WsClient) -> String {
    loop {
        match client.next(DEADLINE) {
            Received::Text(text) => return text,
            Received::Ping(_) => {}
            other => panic!("expected a text: {other:?}"),
        }
    }
}

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
    let mut talker = WsClient::connect(site.router.public, "/ws?channel=talk&key=talker");
    let publishers = [
        Publisher::start(move |number| drop(rest.publish("plain", &number.to_string()))),
        // It waits for its own message, so that it never has more than one under way.
        Publisher::start(move |number| {
            talker.send_text(&number.to_string());
            assert_eq!(next_text(&mut talker), number.to_string());
        }),
    ];
    let pairs = (sockets.len() + streams.len() + 1) as f64;
    let mut held = Vec::new();
    for _ in 0..4 {
        publishers.iter().for_each(|publisher| publisher.more(20));
        let process = successors.upgrade(&site.router);
        publishers.iter().for_each(|publisher| publisher.more(20));
        assert_eq!(Rest::new(site.router.internal).get("/readyz").status, 200);
        assert_eq!(site.router.metric("tidegate_proxied_connections", &[]), pairs);
        held.push(descriptors(process));
    }
    let published = publishers.map(Publisher::stop);
    for (socket, channel) in &mut sockets {
        for wanted in 0..published[*channel] {
            assert_eq!(next_text(socket), wanted.to_string(), "{}", channels[*channel]);
        }
    }
    for stream in &mut streams {
        for wanted in 0..published[0] {
            assert_eq!(stream.expect_event().data, wanted.to_string());
        }
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
        successors.upgrade(&router);
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

/// A program that can be exchanged: a link to the real one, or a script.
struct Program {
    path: PathBuf,
    _directory: TempDir,
}

impl Program {
    fn real() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tidegate");
        symlink(product_binary(), &path).unwrap();
        Self { path, _directory: directory }
    }

    fn replace(&self, script: &str) {
        fs::remove_file(&self.path).unwrap();
        fs::write(&self.path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn restore(&self) {
        fs::remove_file(&self.path).unwrap();
        symlink(product_binary(), &self.path).unwrap();
    }

    #[track_caller]
    fn router(&self, gateway: &Gateway, config: &str) -> Router {
        let config = format!("members = \"static:{}\"\n{config}", gateway.public());
        let router = Router::start_as(&self.path, &["--listen", "127.0.0.1:0"], &config);
        router.eventually_live(1);
        router
    }
}

#[track_caller]
fn refused(router: &Router) -> String {
    let answer = Rest::new(router.internal).post("/upgrade", "text/plain", "");
    if answer.status == 200 {
        end(answer.json()["process"].as_u64().expect("its id") as u32);
    }
    assert_eq!(answer.status, 409, "{}", answer.text());
    answer.text()
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
    let router = program.router(&gateway, "");
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
        let why = refused(&router);
        assert!(why.contains(said), "{script}: {why}");
        goes_on(&gateway, &router, &mut client, script);
    }
    assert_eq!(
        fs::read(program.path.with_extension("state")).unwrap()[..2],
        [1, 3],
        "it was given the state"
    );
    program.restore();
    Successors::default().upgrade(&router);
}

#[test]
fn another_configuration_is_refused_and_one_upgrade_is_under_way_at_once() {
    let (program, gateway) = (Program::real(), Gateway::start());
    let router = program.router(&gateway, "shards = 2\n");
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
        let why = refused(&router);
        assert!(why.contains(said), "{changed}: {why}");
        goes_on(&gateway, &router, &mut client, changed);
    }
    fs::write(router.config_file(), "shards = 2\nmembers = \"dns:nowhere.invalid:80\"\n").unwrap();
    let why = refused(&router);
    assert!(why.contains("knows no gateway"), "{why}");
    goes_on(&gateway, &router, &mut client, "unknown");
    program.replace("exec sleep 600");
    let rest = Rest::new(router.internal);
    let first = thread::spawn(move || rest.post("/upgrade", "text/plain", "").text());
    let child = eventually_some("it is started", DEADLINE, || child(router.pid()));
    goes_on(&gateway, &router, &mut client, "meanwhile");
    let why = refused(&router);
    assert!(why.contains("under way already"), "{why}");
    end(child);
    let why = first.join().unwrap();
    assert!(why.contains("ended before it could serve"), "{why}");
    goes_on(&gateway, &router, &mut client, "afterwards");
}

#[test]
fn a_router_that_is_told_to_stop_during_an_upgrade_stops() {
    let (program, gateway) = (Program::real(), Gateway::start());
    let mut router = program.router(&gateway, SHORT_DRAIN);
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
