//! A gateway that comes back is given its own clients, and nobody else is moved.

use serde_json::Value;
use tidegate_testkit::{DEADLINE, Gateway, Stop, Tool, WsClient, eventually};

use crate::site::{SHORT_DRAIN, Site, node};

const GATEWAYS: &str = "\
[drain]
settle = \"200ms\"
period = \"1s\"
close_wait = \"1s\"
[redis]
lease = \"3s\"
[namespaces.kept]
history_size = 5000
history_age = \"5m\"
";

const FILL: &str = "[fill]\nperiod = \"2s\"\n";

/// Of these some two thirds belong to the gateways that stay.
const CLIENTS: usize = 120;

#[test]
fn a_gateway_that_comes_back_gets_its_own_clients_that_recover_and_no_others() {
    let mut site = Site::with(3, GATEWAYS, &format!("{SHORT_DRAIN}{FILL}"));
    let keys = site.keys(CLIENTS);
    let mut third = site.gateways.pop().expect("three were started");
    third.process().signal(Stop::Terminate);
    assert_eq!(third.process().wait(DEADLINE).code, Some(0));
    site.router.eventually_live(2);

    // One in four is told no positions: it would miss what is published while it is away.
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for (at, (key, gateway)) in keys.iter().enumerate() {
        let recovers = at % 4 != 0;
        let envelope = if recovers { "&envelope=json" } else { "" };
        let client =
            WsClient::connect(site.router.public, &format!("/ws?channel=kept:a&key={key}{envelope}"));
        if recovers && gateway == "g3" { own.push(client) } else { others.push(client) }
    }
    let back = node(&site.redis, 3).config(GATEWAYS).start();
    site.router.eventually_live(3);
    assert!(own.len() > CLIENTS / 8, "{}", own.len());
    for client in &mut own {
        assert_eq!(client.expect_close(1012), "another node has room");
    }
    let moved: f64 = site
        .gateways
        .iter()
        .map(|gateway| gateway.metric("tidegate_disconnects_total", &[("reason", "moved")]))
        .sum();
    assert_eq!(moved, own.len() as f64);
    eventually("who would miss something was asked for, and stays", DEADLINE, || {
        site.gateways.iter().any(|gateway| gateway.metric("tidegate_moves_declined_total", &[]) > 0.0)
    });

    // Nobody has come back in this test, so the others are where they were, all of them.
    site.router.rest().publish("kept:a", "tide");
    for client in &mut others {
        assert!(client.expect_text().contains("tide"));
    }
    assert_eq!(back.metric("tidegate_subscriptions", &[]), 0.0);
}

/// Of each real client: some hundred connections in one process.
const SDK_CLIENTS: usize = 150;

/// Slow enough that who came in two seconds is not most of a third: until the gateway reports them, routers may count them
/// twice, and so few clients would find it full.
const SDK_FILL: &str = "[fill]\nperiod = \"10s\"\n";

/// A third gateway is added under real clients, which publish until it has what belongs to it.
fn a_third_is_filled(script: Tool, end: impl Fn(&Site)) {
    let mut site = Site::with(2, GATEWAYS, &format!("{SHORT_DRAIN}{SDK_FILL}"));
    let script = script.environment("ROUTER", format!("http://{}", site.router.public));
    let mut script = script.environment("CLIENTS", SDK_CLIENTS.to_string()).spawn();
    script.wait_line("all are subscribed", DEADLINE * 2, |line| line.contains("ready").then_some(()));
    let third = node(&site.redis, 3).config(GATEWAYS).start();
    site.router.eventually_live(3);
    let opened = |gateway: &Gateway| gateway.metric("tidegate_connections_opened_total", &[]);
    let before: Vec<f64> = site.gateways.iter().map(opened).collect();
    // A third belongs there, give or take what chance does; it is filled to nine tenths of its share.
    eventually("the third is filled", DEADLINE * 2, || {
        third.metric("tidegate_subscriptions", &[]) >= SDK_CLIENTS as f64 / 5.0
    });
    end(&site);
    let exit = script.wait(DEADLINE * 2);
    assert_eq!(exit.code, Some(0), "{exit}");
    let told = exit.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let moved = told.filter_map(|line| line["moved"].as_f64()).sum::<f64>();
    let after: Vec<f64> = site.gateways.iter().map(opened).collect();
    assert_eq!(before, after, "nobody came to another than the third");
    assert_eq!(moved, opened(&third), "whoever came there was asked to, once");
    site.gateways.push(third);
    let asked: f64 = site
        .gateways
        .iter()
        .map(|gateway| gateway.metric("tidegate_disconnects_total", &[("reason", "moved")]))
        .sum();
    assert_eq!(moved, asked);
}

#[test]
fn a_gateway_that_is_added_is_filled_with_clients_of_centrifugo_that_miss_nothing() {
    a_third_is_filled(Tool::node("centrifuge/fill.cjs"), |site| {
        site.router.rest().publish("kept:a", "\"end\"");
    });
}
