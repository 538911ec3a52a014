//! A gateway that comes back is given its own clients, and nobody else is moved.

use tidegate_testkit::{DEADLINE, Stop, WsClient, eventually};

use crate::site::{SHORT_DRAIN, Site, node};

const GATEWAYS: &str = "\
[drain]
settle = \"200ms\"
period = \"1s\"
close_wait = \"1s\"
[redis]
lease = \"3s\"
[namespaces.kept]
history_size = 100
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
