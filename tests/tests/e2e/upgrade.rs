//! A gateway that is replaced by another process while its connections stay open.

mod crashes;
mod redis;
mod service;

use std::{fs, path::Path, thread};

use tidegate_testkit::{
    DEADLINE, Gateway, GatewayBuilder, Process, RawTcp, Received, Rest, SseClient, Stop, Tool, WsClient, end,
    eventually, eventually_some, masked_frame, memory::descriptors, net::SocketOptions, pid_runs,
};
use tidegate_tests::{
    cluster::site::TOKEN,
    succession::{Program, Publisher, Successors, expect_events, expect_numbers, next_text, refused},
};

const ANYONE: &str = "[limits]\npublishes_per_second = 100000\nmessages_per_second = 100000\n\
                      send_queue_bytes = \"64MiB\"\n[namespaces.default]\nclient_publish = \"anyone\"\n[namespaces.kept]\nhistory_size = 10000\n\
                      history_age = \"10m\"\nclient_publish = \"anyone\"\n";

/// What carries the publications of a test, and a second gateway where there can be one.
struct Carried {
    url: Option<String>,
    other: Option<Gateway>,
}

impl Carried {
    fn in_memory() -> Self {
        Self { url: None, other: None }
    }

    fn over(url: String, config: &str) -> Self {
        let other = Gateway::builder().config(config).backplane(&url).node("other").start();
        Self { url: Some(url), other: Some(other) }
    }

    fn of(&self, builder: GatewayBuilder) -> GatewayBuilder {
        match &self.url {
            Some(url) => builder.backplane(url).node("one"),
            None => builder,
        }
    }
}

#[test]
fn nobody_is_closed_and_nothing_is_lost_doubled_or_out_of_order() {
    all_stay(&Carried::in_memory());
}

/// Raw WebSockets and event streams, with history and without, under publications over HTTP and by a client, and from
/// another node.
#[track_caller]
fn all_stay(carried: &Carried) {
    let gateway = carried.of(Gateway::builder().config(ANYONE).argument("--shards").argument("2")).start();
    let publishing = carried.other.as_ref().unwrap_or(&gateway);
    let mut successors = Successors::default();
    let channels = ["plain", "kept:a", "talk"];
    let mut sockets: Vec<(WsClient, &str)> =
        (0..300).map(|nth| (gateway.subscribe(channels[nth % 3]), channels[nth % 3])).collect();
    let mut streams: Vec<SseClient> = (0..20).map(|_| gateway.event_stream("kept:a")).collect();
    let mut many =
        WsClient::connect(gateway.public(), "/ws?channel=plain&channel=kept:a&channel=talk&envelope=json");
    let rest = |gateway: &Gateway, channel: &'static str| {
        let rest = gateway.rest();
        move |number: usize| drop(rest.publish(channel, &number.to_string()))
    };
    let talker = WsClient::connect(gateway.public(), "/ws?channel=talk");
    let nodes = || {
        let nodes = publishing.internal_rest().with_key("dev-key").get("/v1/nodes").json();
        let name = |node: &serde_json::Value| node["name"].as_str().unwrap().to_owned();
        nodes["nodes"].as_array().unwrap().iter().map(name).collect::<Vec<_>>()
    };
    let before = 1 + usize::from(carried.other.is_some());
    eventually("all are announced", DEADLINE, || nodes().len() == before);
    let publishers = [
        (Publisher::start(rest(publishing, "plain")), "plain"),
        (Publisher::start(rest(&gateway, "kept:a")), "kept:a"),
        (Publisher::client(talker), "talk"),
    ];
    let mut held = Vec::new();
    for _ in 0..4 {
        publishers.iter().for_each(|(publisher, _)| publisher.more(20));
        let process = successors.upgrade(gateway.pid(), gateway.internal());
        assert_eq!(nodes().len(), before, "other nodes see nothing");
        publishers.iter().for_each(|(publisher, _)| publisher.more(20));
        assert_eq!(gateway.internal_rest().get("/readyz").status, 200);
        gateway.eventually_connections(sockets.len() + streams.len() + 2);
        held.push(descriptors(process));
    }
    let published: Vec<(usize, &str)> =
        publishers.into_iter().map(|(publisher, channel)| (publisher.stop(), channel)).collect();
    for (socket, channel) in &mut sockets {
        let (number, _) = published.iter().find(|(_, of)| of == channel).unwrap();
        expect_numbers(socket, *number, channel);
    }
    for stream in &mut streams {
        expect_events(stream, published[1].0);
    }
    let mut next = [0; 3];
    while next.iter().zip(&published).any(|(next, (number, _))| next < number) {
        let text = next_text(&mut many);
        let at = channels.iter().position(|channel| text.contains(&format!("\"{channel}\""))).unwrap();
        assert!(text.contains(&format!("\"data\":\"{}\"", next[at])), "{text}: expected {}", next[at]);
        next[at] += 1;
    }
    // Everybody still is where it was, and no descriptor has stayed.
    let last = gateway.rest().publish("kept:a", "after").unwrap();
    assert_eq!(last.offset as usize, published[1].0 + 1, "positions go on");
    assert!(held.iter().all(|number| number.abs_diff(held[0]) <= 4), "{held:?}");
}

/// Clients of a protocol, in a script that asks for the upgrades: `{"begun":…}` when all are there, `{"upgrade":…}` each time,
/// `{"end":…}` when no more is to be published. What is told it comes over `signs`.
#[track_caller]
fn clients_stay(carried: &Carried, config: &str, script: Tool, told: &'static [&'static str], signs: &str) {
    let gateway = carried.of(Gateway::builder().config(config).argument("--shards").argument("2")).start();
    let mut successors = Successors::default();
    let mut script = script.environment("GATEWAYS", format!("http://{}", gateway.public())).spawn();
    let wait = |script: &mut Process, said: &str| {
        script.wait_line(said, DEADLINE, |line| (line == said).then_some(()));
    };
    wait(&mut script, "{\"begun\":true}");
    let rest = gateway.rest();
    let publisher = Publisher::start(move |number| {
        for channel in told {
            rest.publish(channel, &number.to_string());
        }
    });
    for round in 1..=3 {
        wait(&mut script, &format!("{{\"upgrade\":{round}}}"));
        successors.upgrade(gateway.pid(), gateway.internal());
        gateway.rest().publish(signs, &round.to_string());
    }
    wait(&mut script, "{\"end\":true}");
    gateway.rest().publish(signs, &publisher.stop().to_string());
    let exit = script.wait(DEADLINE * 2);
    assert_eq!(exit.code, Some(0), "{exit}");
    assert!(exit.stdout.contains("\"ok\":true"), "{exit}");
}

const PUSHER: &str = "[limits]\npublishes_per_second = 100000\nmessages_per_second = 100000\n\
                      [apps.1.limits]\nclient_events_per_second = 10000\n";

#[track_caller]
fn pushers_clients_stay(carried: &Carried) {
    let script = Tool::node("pusher/upgrade.cjs");
    clients_stay(carried, PUSHER, script, &["private-news", "cache-last"], "signs");
}

#[test]
fn clients_of_pusher_stay() {
    pushers_clients_stay(&Carried::in_memory());
}

const CENTRIFUGE: &str = concat!(
    "[limits]\npublishes_per_second = 100000\nmessages_per_second = 100000\n",
    include_str!("../../clients/node/centrifuge/gateway.toml"),
);

#[track_caller]
fn centrifugos_clients_stay(carried: &Carried, encoding: &str) {
    let secret = "0123456789abcdef0123456789abcdef";
    let script = Tool::node("centrifuge/upgrade.cjs").environment("ENCODING", encoding);
    clients_stay(
        carried,
        CENTRIFUGE,
        script.environment("SECRET", secret),
        &["news:a", "plain:a"],
        "plain:signs",
    );
}

#[test]
fn clients_of_centrifugo_stay_in_json() {
    centrifugos_clients_stay(&Carried::in_memory(), "json");
}

#[test]
fn clients_of_centrifugo_stay_in_protobuf() {
    centrifugos_clients_stay(&Carried::in_memory(), "protobuf");
}

/// Those that are told over an HTTP answer, and those that send nothing. Pings are rare: one whose answer comes while nothing is
/// read would be told to come back.
#[track_caller]
fn centrifugos_streams_stay(carried: &Carried, encoding: &str) {
    let config = CENTRIFUGE.replace("interval = \"1s\"", "interval = \"1m\"");
    let script = Tool::node("centrifuge/upgrade_streams.cjs").environment("ENCODING", encoding);
    let script = script.environment("SECRET", "0123456789abcdef0123456789abcdef");
    clients_stay(carried, &config, script, &["news:a", "news:server"], "plain:signs");
}

#[test]
fn streams_of_centrifugo_stay_in_json() {
    centrifugos_streams_stay(&Carried::in_memory(), "json");
}

#[test]
fn streams_of_centrifugo_stay_in_protobuf() {
    centrifugos_streams_stay(&Carried::in_memory(), "protobuf");
}

/// A frame that came half before and half after, one that went half before, and a client that reads nothing meanwhile.
#[test]
fn halves_of_frames_go_along() {
    // They answer no pings, and one is in the middle of its request, for as long as the test takes.
    let patient = ANYONE.replace("[limits]\n", "[limits]\nhandshake_timeout = \"10m\"\n");
    let config = format!("{patient}[heartbeat]\ninterval = \"10m\"\n");
    let gateway = Gateway::builder().config(&config).start();
    let mut successors = Successors::default();
    let mut reader = gateway.subscribe("talk");
    let mut writer = RawTcp::connect(gateway.public());
    writer.send(
        b"GET /ws?channel=talk HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    );
    assert_eq!(writer.read_head(DEADLINE).expect("an answer").status, 101);
    let frame = masked_frame(0x81, b"one message in two halves");
    writer.send(&frame[..9]);
    let options = SocketOptions { receive_buffer_bytes: Some(16 * 1024), ..SocketOptions::default() };
    let mut slow = WsClient::try_connect_from(gateway.public(), "/ws?channel=large", &[], options).unwrap();
    // Far more than the kernel takes for a client that does not read.
    let payloads: Vec<String> = (0..250).map(|number| format!("{number:04}").repeat(15_000)).collect();
    for payload in &payloads {
        gateway.rest().publish("large", payload);
    }
    gateway.eventually_metric("tidegate_send_queue_bytes", &[], |bytes| bytes > 0.0);
    // Its head comes in two halves, too.
    let mut late = RawTcp::connect(gateway.public());
    let head = "GET /ws?channel=talk HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    late.send(&head.as_bytes()[..40]);
    successors.upgrade(gateway.pid(), gateway.internal());
    writer.send(&frame[9..]);
    assert_eq!(next_text(&mut reader), "one message in two halves");
    late.send(&head.as_bytes()[40..]);
    assert_eq!(late.read_head(DEADLINE).expect("an answer").status, 101);
    for payload in &payloads {
        assert!(next_text(&mut slow) == *payload, "a message is broken, or not the next");
    }
}

#[track_caller]
fn goes_on(gateway: &Gateway, client: &mut WsClient, text: &str) {
    gateway.rest().publish("news", text);
    assert_eq!(next_text(client), text);
    assert_eq!(gateway.internal_rest().get("/readyz").status, 200);
}

#[test]
fn a_program_that_does_not_serve_changes_nothing() {
    let program = Program::real();
    let gateway = Gateway::builder().program(&program.path).start();
    let mut client = gateway.subscribe("news");
    for (script, said) in [
        ("exit 7", "ended before it could serve"),
        ("kill -9 $$", "ended before it could serve"),
        ("dd bs=65536 count=1 of=/dev/null 2>/dev/null; echo what >&0; exit 0", "another version"),
    ] {
        program.replace(script);
        let why = refused(gateway.internal());
        assert!(why.contains(said), "{script}: {why}");
        goes_on(&gateway, &mut client, script);
    }
    fs::remove_file(&program.path).unwrap();
    let why = refused(gateway.internal());
    assert!(why.contains("cannot start"), "{why}");
    goes_on(&gateway, &mut client, "gone");
    fs::write(&program.path, "").unwrap();
    program.restore();
    let mut successors = Successors::default();
    successors.upgrade(gateway.pid(), gateway.internal());
    goes_on(&gateway, &mut client, "after");
}

#[test]
fn a_process_that_ends_before_it_has_taken_over_changes_nothing() {
    goes_on_after_a_failure(&Carried::in_memory());
}

/// It ends, or hangs, when it was given everything and has not said that it understood it.
#[track_caller]
fn goes_on_after_a_failure(carried: &Carried) {
    let program = Program::real();
    let gateway = carried.of(Gateway::builder().program(&program.path).config(ANYONE)).start();
    let mut client = gateway.subscribe("kept:a");
    let mut stream = gateway.event_stream("kept:a");
    let rest = gateway.rest();
    let publisher = Publisher::start(move |number| drop(rest.publish("kept:a", &number.to_string())));
    let state = program.path.with_extension("state");
    for last in ["kill -9 $$", "exec sleep 600"] {
        publisher.more(20);
        // It reads one record, says `Ready`, and reads the next one, which is `State`.
        let record = "dd bs=65536 count=1 2>/dev/null of=$0.state";
        program.replace(&format!("{record}\nprintf '\\001\\001' >&0\n{record}\n{last}"));
        let why = refused(gateway.internal());
        assert!(why.contains("cannot take over"), "{last}: {why}");
        assert_eq!(fs::read(&state).unwrap()[..2], [1, 3], "{last}: it was given the state");
        publisher.more(20);
    }
    program.restore();
    let mut successors = Successors::default();
    successors.upgrade(gateway.pid(), gateway.internal());
    publisher.more(20);
    let number = publisher.stop();
    expect_numbers(&mut client, number, "a WebSocket");
    expect_events(&mut stream, number);
}

/// The pids of what a process has started.
fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).map(|_| pid);
    let Ok(pid) = text else { return Vec::new() };
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    tasks
        .map(of)
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

#[test]
fn a_program_that_hangs_is_waited_for_and_one_upgrade_is_under_way_at_once() {
    let program = Program::real();
    let gateway = Gateway::builder().program(&program.path).start();
    let mut client = gateway.subscribe("news");
    program.replace("exec sleep 600");
    let rest = gateway.internal_rest();
    let first = thread::spawn(move || rest.post("/upgrade", "text/plain", "").text());
    let child = eventually_some("it is started", DEADLINE, || children(gateway.pid()).first().copied());
    goes_on(&gateway, &mut client, "meanwhile");
    let why = refused(gateway.internal());
    assert!(why.contains("under way already"), "{why}");
    end(child);
    let why = first.join().unwrap();
    assert!(why.contains("ended before it could serve"), "{why}");
    goes_on(&gateway, &mut client, "afterwards");
}

#[test]
fn a_node_that_is_told_to_stop_during_an_upgrade_stops() {
    let program = Program::real();
    let mut gateway = Gateway::builder().program(&program.path).config(tidegate_testkit::SHORT_DRAIN).start();
    let mut client = gateway.subscribe("news");
    program.replace("exec sleep 600");
    let rest = gateway.internal_rest();
    let first = thread::spawn(move || rest.try_post("/upgrade", "text/plain", ""));
    let pid = gateway.pid();
    let child = eventually_some("it is started", DEADLINE, || children(pid).first().copied());
    gateway.process().signal(Stop::Terminate);
    match client.next(DEADLINE) {
        Received::Closed(closed) => assert!(format!("{closed:?}").contains("1012"), "{closed:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(gateway.process().wait(DEADLINE).code, Some(0));
    if pid_runs(child) {
        end(child);
    }
    drop(first.join().unwrap());
}

#[test]
fn what_cannot_be_upgraded_says_so() {
    let program = Program::real();
    let config = |shards: u32| format!("shards = {shards}\n");
    let builder: GatewayBuilder = Gateway::builder().program(&program.path).config(&config(2));
    let file = builder.file("tidegate.toml", config(2).as_bytes());
    let gateway = builder.start();
    let mut client = gateway.subscribe("news");
    for (changed, said) in [
        (config(3), "3 shards"),
        ("shards = 2\nsharks = 1\n".to_owned(), "ended before it could serve"),
        ("shards = 2\n[handover]\nsocket = \"/nowhere/a\"\n".to_owned(), "needs a restart"),
    ] {
        fs::write(&file, &changed).unwrap();
        let why = refused(gateway.internal());
        assert!(why.contains(said), "{changed}: {why}");
        goes_on(&gateway, &mut client, &changed);
    }
}

/// What its own options allow is counted in a process that took over, as in the one before.
#[test]
fn limits_and_the_name_go_along() {
    let gateway = Gateway::builder().config("[limits]\nconnections_per_address = 3\n").start();
    let mut clients: Vec<WsClient> = (0..3).map(|_| gateway.subscribe("news")).collect();
    let name = |rest: &Rest| {
        eventually_some("it is announced", DEADLINE, || {
            rest.get("/v1/nodes").json()["nodes"][0]["name"].as_str().map(str::to_owned)
        })
    };
    let rest = gateway.internal_rest().with_key("dev-key");
    let before = name(&rest);
    let mut successors = Successors::default();
    successors.upgrade(gateway.pid(), gateway.internal());
    assert!(WsClient::try_connect(gateway.public(), "/ws?channel=news", &[]).is_err(), "three are here");
    drop(clients.pop());
    eventually("there is room again", DEADLINE, || {
        WsClient::try_connect(gateway.public(), "/ws?channel=news", &[]).is_ok()
    });
    for client in &mut clients {
        client.send_ping(b"here");
        assert_eq!(client.next(DEADLINE), Received::Pong(b"here".to_vec()));
    }
    assert_eq!(name(&rest), before);
}

const ROOM: &str = "[namespaces.room]\npresence = true\nanonymous_subscribe = true\n[[auth.jwt]]\nalgorithm = \"HS256\"\n\
                    secret = \"a secret of the cluster tests, 32+\"\nrequire_exp = false\n";

#[test]
fn nobody_joins_or_leaves() {
    presence_stays(&Carried::in_memory());
}

/// Who is told who comes and goes hears of nobody; those who are there are there under their names, and leave later.
#[track_caller]
fn presence_stays(carried: &Carried) {
    let gateway = carried.of(Gateway::builder().config(ROOM)).start();
    let watch = "/ws?channel=room:a&envelope=json&join_leave=true";
    let watching = carried.other.as_ref().map(|other| WsClient::connect(other.public(), watch));
    let mut elsewhere = watching.into_iter().collect::<Vec<_>>();
    let mut watcher = WsClient::connect(gateway.public(), watch);
    let told = |watcher: &mut WsClient| -> serde_json::Value {
        serde_json::from_str(&next_text(watcher)).expect("JSON")
    };
    assert_eq!(told(&mut watcher)["count"], 0);
    elsewhere.iter_mut().for_each(|watcher| assert_eq!(told(watcher)["count"], 0));
    let ada = format!("/ws?channel=room:a&token={TOKEN}");
    let [(first, of_first), (second, of_second)] = [1, 2].map(|connections| {
        let client = WsClient::connect(gateway.public(), &ada);
        let notice = told(&mut watcher);
        assert_eq!(notice["join"]["connections"], connections, "{notice}");
        elsewhere.iter_mut().for_each(|watcher| assert_eq!(told(watcher), notice));
        (client, notice["join"]["connection"].clone())
    });
    let members = || gateway.rest().get("/v1/channels/room:a/presence").json()["members"].clone();
    let before = members();
    assert_eq!(before.as_array().map(Vec::len), Some(2), "{before}");
    let mut successors = Successors::default();
    for _ in 0..2 {
        successors.upgrade(gateway.pid(), gateway.internal());
        assert_eq!(members(), before);
    }
    gateway.rest().publish("room:a", "hello");
    for watcher in elsewhere.iter_mut().chain([&mut watcher]) {
        assert_eq!(told(watcher)["data"], "hello");
    }
    // Had anybody been taken for gone, that would be told before these, which end later.
    drop(second);
    let notice = told(&mut watcher);
    elsewhere.iter_mut().for_each(|watcher| assert_eq!(told(watcher), notice));
    assert_eq!((&notice["leave"]["connection"], &notice["leave"]["connections"]), (&of_second, &1.into()));
    drop(first);
    let notice = told(&mut watcher);
    elsewhere.iter_mut().for_each(|watcher| assert_eq!(told(watcher), notice));
    assert_eq!((&notice["leave"]["connection"], &notice["leave"]["connections"]), (&of_first, &0.into()));
}
