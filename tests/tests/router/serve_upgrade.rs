//! `tidegate serve` whose children are replaced one after the other while clients stay connected.

use std::{fs, net::SocketAddr, path::Path, thread};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tidegate_testkit::{
    DEADLINE, Gateway, Received, Rest, SseClient, Stop, WsClient, end, eventually, eventually_some,
    memory::descriptors, pid_runs, product_binary,
};
use tidegate_tests::succession::{
    Program, Publisher, Successors, expect_events, expect_numbers, next_text, refused,
};

use crate::{
    serve::{Serve, children_of, kill},
    site::GATEWAY_CONFIG,
};

fn config() -> String {
    format!(
        "[limits]\npublishes_per_second = 100000\nmessages_per_second = 100000\nhandshakes_per_second = 0\n\
         [namespaces.default]\nclient_publish = \"anyone\"\nanonymous_subscribe = true\n{GATEWAY_CONFIG}"
    )
}

fn start(program: &Program, gateways: usize) -> Serve {
    Serve::start_as(&program.path, gateways, &config())
}

#[track_caller]
fn upgrade(serve: &Serve) {
    let before = serve.children();
    let answer = Rest::new(serve.own()).post("/upgrade", "text/plain", "");
    assert_eq!(answer.status, 200, "{}", answer.text());
    eventually("each child is another process, and no more", DEADLINE, || {
        let now = serve.children();
        now.len() == before.len() && now.iter().all(|(name, pid)| before[name] != *pid)
    });
    eventually("those before are gone", DEADLINE, || before.values().all(|pid| !pid_runs(*pid)));
}

/// As who has no connection to the router that is kept.
fn publish(public: SocketAddr, channel: &str, text: &str) {
    let rest = Rest::new(public).with_key("dev-key");
    let headers = [("content-type", "text/plain"), ("connection", "close")];
    let path = format!("/v1/channels/{channel}/publish");
    let answer = rest.send(reqwest::Method::POST, &path, &headers, Some(text.into()));
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// Clients of both gateways, under publications over HTTP and by a client, while others come and go.
#[test]
fn nobody_is_closed_or_refused_and_nothing_is_lost_doubled_or_out_of_order() {
    let program = Program::real();
    let serve = start(&program, 2);
    let public = serve.public;
    let channels = ["plain", "talk"];
    let mut sockets: Vec<(WsClient, usize)> = (0..200)
        .map(|nth| (format!("/ws?channel={}&key=k{nth}", channels[nth % 2]), nth % 2))
        .map(|(path, channel)| (WsClient::connect(public, &path), channel))
        .collect();
    let mut streams: Vec<SseClient> = (0..20)
        .map(|nth| SseClient::connect(public, &format!("/sse?channel=plain&key=k{nth}"), None))
        .collect();
    let talker = WsClient::connect(public, "/ws?channel=talk&key=talker");
    eventually("the gateways hold them", DEADLINE, || serve.connections() == 221.0);
    let publishers = [
        Publisher::start(move |number| publish(public, "plain", &number.to_string())),
        Publisher::client(talker),
    ];
    let visits = Publisher::start(move |number| {
        let mut visitor = WsClient::connect(public, &format!("/ws?channel=visits&key=v{number}"));
        visitor.send_ping(b"here");
        assert_eq!(visitor.expect_pong(), b"here");
    });
    let mut held = Vec::new();
    for _ in 0..3 {
        publishers.iter().for_each(|publisher| publisher.more(10));
        upgrade(&serve);
        publishers.iter().for_each(|publisher| publisher.more(10));
        visits.more(10);
        held.push(serve.children().into_values().map(descriptors).collect::<Vec<_>>());
    }
    visits.stop();
    let published = publishers.map(Publisher::stop);
    for (socket, channel) in &mut sockets {
        expect_numbers(socket, published[*channel], channels[*channel]);
    }
    for stream in &mut streams {
        expect_events(stream, published[0]);
    }
    eventually("visitors are gone, and nobody else", DEADLINE, || serve.connections() == 220.0);
    let unlike = |(now, first): (&usize, &usize)| now.abs_diff(*first) > 32;
    assert!(!held[2].iter().zip(&held[0]).any(unlike), "{held:?}");
    // Sockets are handed over as before, and none went another way.
    assert_eq!(serve.metric("tidegate_handover_misses_total", &[]), 0.0);
    drop((sockets, streams));
    eventually("all are gone", DEADLINE, || serve.connections() == 0.0);
}

/// A gateway that was replaced is kept running, and all are stopped, as the first ones are.
#[test]
fn a_new_process_is_started_again_and_stopped_like_the_first() {
    let program = Program::real();
    let mut serve = start(&program, 2);
    upgrade(&serve);
    kill_process(Pid::from_raw(serve.process.pid().cast_signed()).unwrap(), Signal::USR2).unwrap();
    let first = serve.children();
    eventually("SIGUSR2 does the same", DEADLINE, || {
        let now = serve.children();
        now.len() == 3 && now.iter().all(|(name, pid)| first[name] != *pid)
    });
    let upgraded = serve.children();
    kill(upgraded["g-1"]);
    eventually("it is started again", DEADLINE, || {
        serve.children().get("g-1").is_some_and(|pid| *pid != upgraded["g-1"])
    });
    assert_eq!(serve.children()["g-2"], upgraded["g-2"]);
    let client = || WsClient::try_connect(serve.public, "/ws?channel=a&key=k", &[]).ok();
    let mut client = eventually_some("clients are served", DEADLINE, client);
    // The one that was started again has its place among those that are upgraded.
    eventually("all listen", DEADLINE, || {
        let answer = Rest::new(serve.own()).post("/upgrade", "text/plain", "");
        answer.status == 200
    });
    publish(serve.public, "a", "after");
    assert_eq!(next_text(&mut client), "after");
    let children = serve.children();
    serve.process.signal(Stop::Terminate);
    client.expect_close(1012);
    let exit = serve.process.wait(DEADLINE * 2);
    assert_eq!(exit.code, Some(0), "{exit}");
    assert!(children.values().all(|pid| !pid_runs(*pid)));
}

#[test]
fn children_that_took_a_place_end_with_who_runs_them() {
    let program = Program::real();
    let mut serve = start(&program, 1);
    upgrade(&serve);
    let children = serve.children();
    serve.process.signal(Stop::Kill);
    serve.process.wait(DEADLINE);
    eventually("the children have ended", DEADLINE * 2, || children.values().all(|pid| !pid_runs(*pid)));
}

/// The first that is not upgraded ends it: it and all after it go on as they are, and the answer says which.
#[test]
fn a_program_that_does_not_start_leaves_the_rest_as_it_is() {
    let program = Program::real();
    let serve = start(&program, 2);
    let mut client = WsClient::connect(serve.public, "/ws?channel=a&key=k");
    let before = serve.children();
    let refused = |said: &[&str]| {
        let answer = Rest::new(serve.own()).post("/upgrade", "text/plain", "");
        assert_eq!(answer.status, 409, "{}", answer.text());
        said.iter().for_each(|part| assert!(answer.text().contains(part), "{part}: {}", answer.text()));
    };
    program.replace("exit 7");
    refused(&["gateway-1: ", "ended before it could serve", "0 of 3 were upgraded before"]);
    assert_eq!(serve.children(), before);
    let real = product_binary();
    program.replace(&format!("case \"$*\" in *g-2*) exit 7;; esac\nexec {} \"$@\"", real.display()));
    refused(&["gateway-2: ", "ended before it could serve", "1 of 3 were upgraded before"]);
    eventually("the first is replaced", DEADLINE, || {
        serve.children().get("g-1").is_some_and(|pid| *pid != before["g-1"])
    });
    for name in ["g-2", "router"] {
        assert_eq!(serve.children()[name], before[name]);
    }
    publish(serve.public, "a", "still here");
    assert_eq!(next_text(&mut client), "still here");
    program.restore();
    upgrade(&serve);
    publish(serve.public, "a", "and now");
    assert_eq!(next_text(&mut client), "and now");
}

/// The old process or the new one is killed while the new one begins, and the old one when it has given everything away.
#[test]
fn either_process_may_be_killed() {
    let program = Program::real();
    let serve = start(&program, 2);
    let ask = || {
        let own = serve.own();
        thread::spawn(move || Rest::new(own).post("/upgrade", "text/plain", "").status)
    };
    let begun =
        |old: u32| eventually_some("the new process", DEADLINE, || children_of(old).into_values().next());
    program.replace("exec sleep 600");
    let old = serve.children()["g-1"];
    let asked = ask();
    kill(begun(old));
    assert_eq!(asked.join().unwrap(), 409);
    assert_eq!(serve.children()["g-1"], old, "it goes on");

    // It begins when the old one is gone, and ends.
    program.replace(&format!("cat >/dev/null\nexec {} \"$@\"", product_binary().display()));
    let asked = ask();
    begun(old);
    kill(old);
    assert_eq!(asked.join().unwrap(), 409);
    program.restore();
    let again = || serve.children().get("g-1").copied().filter(|pid| *pid != old);
    eventually_some("it is started again", DEADLINE, again);
    serve.eventually_live(2);

    let mut clients: Vec<WsClient> = (0..20)
        .map(|number| WsClient::connect(serve.public, &format!("/ws?channel=a&key=k{number}")))
        .collect();
    let before = serve.children()["g-2"];
    let answer = Rest::new(serve.gateways["gateway-2"]).post("/upgrade", "text/plain", "");
    assert_eq!(answer.status, 200, "{}", answer.text());
    end(before);
    let process = json!(eventually_some("the new one is a child of serve", DEADLINE, || {
        serve.children().get("g-2").copied().filter(|pid| *pid != before)
    }));
    assert_eq!(answer.json()["process"], process);
    publish(serve.public, "a", "to all");
    for client in &mut clients {
        assert!(matches!(client.next(DEADLINE), Received::Text(text) if text == "to all"));
    }
}

/// Routers know the socket by its file.
#[test]
fn another_hand_over_socket_is_refused() {
    let builder = Gateway::builder();
    let file = builder.file("of-the-test", b"").with_file_name("tidegate.toml");
    let socket = file.with_file_name("socket");
    let config = |socket: &Path| format!("[handover]\nsocket = {socket:?}\n");
    let gateway = builder.config(&config(&socket)).start();
    let mut client = gateway.subscribe("news");
    for other in [config(&file.with_file_name("other")), String::new()] {
        fs::write(&file, &other).unwrap();
        let why = refused(gateway.internal());
        assert!(why.contains("another `handover.socket`"), "{other}: {why}");
        gateway.rest().publish("news", "still here");
        assert_eq!(next_text(&mut client), "still here");
    }
    fs::write(&file, config(&socket)).unwrap();
    let mut successors = Successors::default();
    successors.upgrade(gateway.pid(), gateway.internal());
    assert!(socket.exists(), "the old process leaves it to the new one");
    successors.upgrade(gateway.pid(), gateway.internal());
    gateway.rest().publish("news", "and now");
    assert_eq!(next_text(&mut client), "and now");
}
