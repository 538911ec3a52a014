//! Ending without a storm: not ready, refuse, close in slices, exit code 0.

use std::time::Duration;

use tidegate_testkit::{Closed, DEADLINE, Gateway, SHORT_DRAIN, Stop, WsClient, eventually};

/// `closes_total` of code 1012.
fn closed_for_restart(gateway: &Gateway) -> f64 {
    gateway.metric("tidegate_close_frames_total", &[("code", "1012")])
}

#[test]
fn sigterm_closes_everyone_with_1012_and_exits_with_0() {
    let gateway = Gateway::builder().config(SHORT_DRAIN).start();
    let mut clients: Vec<WsClient> = (0..20).map(|_| gateway.subscribe("news")).collect();
    let mut stream = gateway.event_stream("news");
    let exit = std::thread::scope(|scope| {
        let exit = scope.spawn(|| gateway.terminate());
        for client in &mut clients {
            client.expect_close(1012);
        }
        stream.expect_end();
        exit.join().unwrap()
    });
    assert_eq!(exit.code, Some(0), "{exit}");
}

#[test]
fn an_idle_gateway_ends_on_sigterm_and_on_ctrl_c() {
    for stop in [Stop::Terminate, Stop::Interrupt] {
        let mut gateway = Gateway::builder().config(SHORT_DRAIN).start();
        gateway.process().signal(stop);
        let exit = gateway.process().wait(DEADLINE);
        assert_eq!(exit.code, Some(0), "{stop:?}: {exit}");
    }
}

#[test]
fn a_draining_node_says_so_and_refuses() {
    // A long settle and period: the test sees the states in between, and ends the process by dropping it.
    let config = "[drain]\nsettle = \"2s\"\nperiod = \"60s\"\nclose_wait = \"5s\"\n";
    let mut gateway = Gateway::builder().config(config).start();
    let mut subscriber = gateway.subscribe("news");
    let internal = gateway.internal_rest();
    assert_eq!(internal.get("/readyz").status, 200);
    gateway.process().signal(Stop::Terminate);

    eventually("readyz is 503", DEADLINE, || internal.get("/readyz").status == 503);
    assert_eq!(internal.get("/livez").status, 200, "draining is no reason to be restarted");
    assert_eq!(gateway.metric("tidegate_draining", &[]), 1.0);

    // After the settle time new clients are refused, with a time to come back at.
    let refused = |path: &str| WsClient::try_connect(gateway.public(), path, &[]).err();
    let refusal = tidegate_testkit::eventually_some("new upgrades are refused", DEADLINE, || {
        refused("/ws?channel=news")
    });
    assert_eq!(refusal.status, 503, "{refusal:?}");
    assert!(refusal.header("retry-after").is_some_and(|wait| wait.parse::<u32>().is_ok()), "{refusal:?}");
    // An EventSource never comes back after any status but 200 (WHATWG HTML, 9.2.3): its stream says when, and ends.
    let stream = gateway.rest().get("/sse?channel=news");
    assert_eq!(stream.status, 200);
    assert!(stream.text().contains("retry:"), "{stream:?}");
    gateway.eventually_metric("tidegate_handshakes_total", &[("result", "draining")], |count| count >= 2.0);

    // Who is connected is served until its turn comes.
    gateway.rest().publish("news", "still served");
    match subscriber.next(DEADLINE) {
        tidegate_testkit::Received::Text(text) => assert_eq!(text, "still served"),
        tidegate_testkit::Received::Closed(Closed::Frame { code: 1012, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn closes_are_paced_over_the_period() {
    let config = "[drain]\nsettle = \"0s\"\nperiod = \"10s\"\nclose_wait = \"1s\"\n";
    let gateway = Gateway::builder().config(config).start();
    let mut clients: Vec<WsClient> = (0..100).map(|_| gateway.subscribe("news")).collect();
    assert_eq!(gateway.internal_rest().post("/drain", "text/plain", "").status, 202);
    eventually("some are closed", DEADLINE, || closed_for_restart(&gateway) >= 1.0);
    // With all closed at once, no scrape could see only a part of them.
    let mut partial = 0;
    eventually("all are closed", DEADLINE, || {
        let closed = closed_for_restart(&gateway);
        partial += usize::from(closed > 0.0 && closed < 100.0);
        // The process ends soon after the last close, so one less must do.
        closed >= 95.0
    });
    assert!(partial >= 2, "seen in between: {partial}");
    for client in &mut clients {
        let (_, closed) = client.read_to_close(Duration::from_secs(60));
        assert!(matches!(closed, Closed::Frame { code: 1012, .. }), "{closed:?}");
    }
}

#[test]
fn post_drain_is_the_same_as_sigterm() {
    let mut gateway = Gateway::builder().config(SHORT_DRAIN).start();
    let mut client = gateway.subscribe("news");
    assert_eq!(gateway.internal_rest().post("/drain", "text/plain", "").status, 202);
    client.expect_close(1012);
    let exit = gateway.process().wait(DEADLINE);
    assert_eq!(exit.code, Some(0), "{exit}");
}

#[test]
fn a_client_that_ignores_the_close_does_not_hold_up_the_end() {
    let gateway = Gateway::builder().config(SHORT_DRAIN).start();
    let _deaf = tidegate_testkit::RawTcp::upgraded(gateway.public(), "/ws?channel=news");
    assert_eq!(gateway.terminate().code, Some(0));
}
