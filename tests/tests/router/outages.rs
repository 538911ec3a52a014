//! What a registry may do without anybody losing a connection, and what a router does when it is wrong about gateways.

use std::time::Duration;

use tidegate_testkit::{DEADLINE, Gateway, RawTcp, Received, Stop, WsClient, eventually};

use crate::site::{GATEWAY_CONFIG, Router, SHORT_DRAIN, Site, node};

/// Clients on all gateways, by keys of all of them.
fn clients(site: &Site, count: usize, query: &str) -> Vec<WsClient> {
    (0..count)
        .map(|key| WsClient::connect(site.router.public, &format!("/ws?channel=news&key=k{key}{query}")))
        .collect()
}

#[track_caller]
fn nobody_was_cut(site: &Site, clients: &mut [WsClient]) {
    site.router.eventually_live(site.gateways.len());
    assert_eq!(site.router.metric("tidegate_cuts_total", &[]), 0.0);
    eventually("publishing works", DEADLINE, || {
        site.router.rest().post("/v1/channels/news/publish", "text/plain", "back").status == 200
    });
    for client in clients {
        assert_eq!(client.expect_text(), "back");
    }
}

/// Leases of 3 s end while nothing can be written.
#[test]
fn a_redis_that_takes_no_writes_cuts_nobody() {
    let site = Site::start(3);
    let mut clients = clients(&site, 30, "");
    site.redis.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let rounds = || site.router.metric("tidegate_members_refreshes_total", &[]);
    let begin = rounds();
    eventually("rounds for longer than leases and any hold", DEADLINE, || rounds() >= begin + 12.0);
    assert_eq!(site.router.metric("tidegate_nodes", &[("state", "live")]), 3.0);
    site.redis.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    nobody_was_cut(&site, &mut clients);
}

/// It comes back empty after an outage that is longer than any hold. Clients of enveloped messages are told of the gap.
#[test]
fn a_redis_that_was_away_and_lost_its_data_cuts_nobody() {
    let mut site = Site::start(3);
    let mut clients = clients(&site, 30, "&envelope=json");
    lose_everything(&mut site);
    for client in &mut clients {
        eventually("something arrives", DEADLINE, || published(&site) && arrives(client));
    }
    assert_eq!(site.router.metric("tidegate_cuts_total", &[]), 0.0);
}

/// Clients of verbatim payloads cannot be told; where the namespace says so, they stay.
#[test]
fn a_redis_that_lost_its_data_closes_nobody_who_cannot_be_told_and_stays() {
    let config = format!("{GATEWAY_CONFIG}[namespaces.default]\nuntold_gap = \"stay\"\n");
    let mut site = Site::with(3, &config, SHORT_DRAIN);
    let mut clients = clients(&site, 30, "");
    lose_everything(&mut site);
    for client in &mut clients {
        eventually("something arrives", DEADLINE, || published(&site) && arrives(client));
    }
    assert_eq!(site.router.metric("tidegate_cuts_total", &[]), 0.0);
}

fn lose_everything(site: &mut Site) {
    site.redis.kill();
    let failed = || site.router.metric("tidegate_members_refreshes_total", &[("result", "failed")]);
    let begin = failed();
    eventually("an outage of some rounds", DEADLINE, || failed() >= begin + 7.0);
    site.redis.restart_empty();
    site.router.eventually_live(site.gateways.len());
}

fn published(site: &Site) -> bool {
    site.router.rest().post("/v1/channels/news/publish", "text/plain", "back").status == 200
}

/// Notices of gaps are passed over; the end of a connection is none.
#[track_caller]
fn arrives(client: &mut WsClient) -> bool {
    loop {
        match client.next(Duration::from_millis(200)) {
            Received::Text(text) if text.contains("back") => return true,
            Received::Nothing => return false,
            Received::Closed(closed) => panic!("cut: {closed:?}"),
            _ => {}
        }
    }
}

/// A gateway that is full answers 503; its client goes to the next.
#[test]
fn a_client_of_a_full_gateway_lands_on_the_next() {
    let full = Gateway::builder().config("[limits]\nconnections = 2\n").start();
    let free = Gateway::start();
    let router = Router::of(&[&full, &free], SHORT_DRAIN);
    router.eventually_live(2);
    let _clients: Vec<RawTcp> =
        (0..20).map(|key| RawTcp::upgraded(router.public, &format!("/ws?channel=news&key=k{key}"))).collect();
    assert!(router.metric("tidegate_upstream_connects_total", &[("result", "busy")]) > 0.0);
}

/// A gateway that advertises the router's address: one round trip, not as many as there are places.
#[test]
fn a_gateway_that_advertises_the_router_costs_one_round() {
    let mut site = Site::start(1);
    let address = site.router.public.to_string();
    site.gateways.clear();
    let _wrong =
        node(&site.redis, 7).config(GATEWAY_CONFIG).argument("--advertise").argument(&address).start();
    site.router.eventually_metric("tidegate_nodes", &[("state", "live")], 1.0);
    eventually("the loop is found", DEADLINE, || {
        let refused = WsClient::try_connect(site.router.public, "/ws?channel=news", &[]).err();
        refused.is_some_and(|refused| refused.status == 508)
    });
    assert!(site.router.metric("tidegate_refusals_total", &[("reason", "loop")]) < 10.0);
}

#[test]
fn a_hangup_ends_no_router_and_no_gateway() {
    let mut site = Site::start(1);
    let mut client = WsClient::connect(site.router.public, "/ws?channel=news");
    site.router.signal(Stop::HangUp);
    site.gateways[0].process().signal(Stop::HangUp);
    site.router.rest().publish("news", "still here");
    assert_eq!(client.expect_text(), "still here");
}

/// While a router drains, an event source is told to come back: any other status than 200 would end it for good.
#[test]
fn an_event_source_is_told_to_come_back_while_a_router_drains() {
    let gateway = Gateway::start();
    let mut router =
        Router::of(&[&gateway], "[drain]\nsettle = \"300ms\"\nperiod = \"3s\"\nclose_wait = \"10s\"\n");
    router.eventually_live(1);
    let clients: Vec<RawTcp> =
        (0..20).map(|key| RawTcp::upgraded(router.public, &format!("/ws?channel=news&key=k{key}"))).collect();
    let mut spare = RawTcp::connect(router.public);
    router.signal(Stop::Terminate);
    eventually("the first are closed", DEADLINE, || {
        router.metric("tidegate_cuts_total", &[("reason", "drain")]) > 0.0
    });
    spare.send(b"GET /sse?channel=news HTTP/1.1\r\nHost: h\r\nOrigin: http://page\r\n\r\n");
    let answer = spare.read_head(DEADLINE).unwrap();
    assert_eq!((answer.status, answer.header("tidegate-busy")), (200, Some("draining")), "{answer:?}");
    assert_eq!(answer.header("access-control-allow-origin"), Some("http://page"), "{answer:?}");
    let body = spare.read_to_end(DEADLINE).unwrap();
    assert!(body.starts_with(b"retry: "), "{}", body.escape_ascii());
    drop((clients, spare));
    router.wait();
}

/// Routers would know only the other one, and nobody would say why this one stays empty.
#[test]
fn a_gateway_whose_name_is_taken_is_not_ready_and_says_why() {
    let site = Site::start(1);
    let second = node(&site.redis, 1).config(GATEWAY_CONFIG).start();
    let internal = second.internal_rest();
    eventually("it is not ready", DEADLINE, || internal.get("/readyz").status == 503);
    let why = internal.get("/readyz").text();
    assert!(why.contains("another living node is named g1"), "{why}");
    drop(site.gateways);
    eventually("it is ready when the name is free", DEADLINE, || internal.get("/readyz").status == 200);
}
