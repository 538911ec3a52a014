//! What goes: a gateway that drains, one that is killed, Redis, the router itself.

use tidegate_testkit::{
    Closed, DEADLINE, Gateway, RawTcp, ReadError, SHORT_DRAIN as GATEWAY_DRAIN, SseClient, Stop, WsClient,
    eventually, eventually_some,
};

use crate::site::{Router, SHORT_DRAIN, Site, index, node};

fn socket(site: &Site, key: &str) -> WsClient {
    WsClient::connect(site.router.public, &format!("/ws?channel=news&key={key}"))
}

#[test]
fn a_draining_gateway_gets_no_new_clients_and_lets_its_own_go_in_its_words() {
    let config = "[drain]\nsettle = \"3s\"\nperiod = \"1s\"\nclose_wait = \"1s\"\n[redis]\nlease = \"3s\"\n";
    let mut site = Site::with(3, config, SHORT_DRAIN);
    let (key, name) = site.keys(1).remove(0);
    let mut client = socket(&site, &key);
    site.gateways[index(&name)].process().signal(Stop::Terminate);
    site.router.eventually_metric("tidegate_nodes", &[("state", "draining")], 1.0);
    let next = site.router.assigned(&key);
    assert_ne!(next, name);
    let mut elsewhere = socket(&site, &key);
    site.gateway(&next).eventually_connections(1);
    // The gateway closes its clients itself, in its protocol's words.
    client.expect_close(1012);
    assert_eq!(site.router.metric("tidegate_cuts_total", &[]), 0.0);
    site.gateway(&next).rest().publish("news", "hello");
    assert_eq!(elsewhere.expect_text(), "hello");
    let exit = site.gateways[index(&name)].process().wait(DEADLINE);
    assert_eq!(exit.code, Some(0), "{exit}");
}

#[test]
fn the_clients_of_a_killed_gateway_are_cut_and_land_elsewhere() {
    let mut site = Site::start(3);
    let (key, name) = site.keys(1).remove(0);
    let mut clients: Vec<WsClient> = (0..10).map(|_| socket(&site, &key)).collect();
    let mut stream = SseClient::connect(site.router.public, &format!("/sse?channel=news&key={key}"), None);
    site.gateway(&name).eventually_connections(11);
    let killed = site.gateways.remove(index(&name));
    killed.kill();
    for client in &mut clients {
        let (_, closed) = client.read_to_close(DEADLINE);
        assert!(!matches!(closed, Closed::Frame { .. }), "{closed:?}");
    }
    stream.expect_end();
    // At once, although the registry still names it: it refuses.
    let mut back: Vec<WsClient> = (0..10).map(|_| socket(&site, &key)).collect();
    assert!(site.router.metric("tidegate_fallbacks_total", &[]) >= 10.0);
    site.router.rest().publish("news", "hello");
    for client in &mut back {
        assert_eq!(client.expect_text(), "hello");
    }
    site.router.eventually_live(2);
    assert_ne!(site.router.assigned(&key), name);
}

/// A gateway that hangs holds its sockets: only its lease tells.
#[test]
fn the_clients_of_a_hung_gateway_are_cut_when_it_is_no_member_any_more() {
    let mut site = Site::start(2);
    let (key, name) = site.keys(1).remove(0);
    let mut client = socket(&site, &key);
    site.gateways[index(&name)].process().signal(Stop::Freeze);
    let (_, closed) = client.read_to_close(DEADLINE);
    assert!(!matches!(closed, Closed::Frame { .. }), "{closed:?}");
    site.router.eventually_metric("tidegate_cuts_total", &[("reason", "node")], 1.0);
    assert_ne!(site.router.assigned(&key), name);
    let mut back = socket(&site, &key);
    site.router.rest().publish("news", "hello");
    assert_eq!(back.expect_text(), "hello");
    site.gateways[index(&name)].process().signal(Stop::Thaw);
    site.router.eventually_live(2);
}

#[test]
fn a_gateway_that_comes_back_under_its_name_has_its_keys_again() {
    let mut site = Site::start(2);
    let (key, name) = site.keys(1).remove(0);
    site.gateways.remove(index(&name)).kill();
    site.router.eventually_live(1);
    assert_ne!(site.router.assigned(&key), name);
    let again = node(&site.redis, index(&name) + 1).start();
    site.router.eventually_live(2);
    let _client = socket(&site, &key);
    again.eventually_connections(1);
}

#[test]
fn without_redis_the_last_members_stay() {
    let mut site = Site::start(2);
    let keys = site.keys(6);
    site.redis.kill();
    let failed = || site.router.metric("tidegate_members_refreshes_total", &[("result", "failed")]);
    eventually("the outage is seen", DEADLINE, || failed() >= 2.0);
    for (key, name) in &keys {
        assert_eq!(site.router.assigned(key), *name);
    }
    // Gateways refuse to subscribe while their backplane is away, and say so themselves.
    let refusal = WsClient::try_connect(site.router.public, "/ws?channel=news&key=k0", &[]).err();
    let refusal = refusal.expect("no subscription without Redis");
    assert_eq!(refusal.status, 503, "{refusal:?}");
    site.redis.restart();
    let mut client = eventually_some("subscribing works again", DEADLINE, || {
        WsClient::try_connect(site.router.public, "/ws?channel=news&key=k0", &[]).ok()
    });
    eventually("publishing works again", DEADLINE, || {
        site.router.rest().post("/v1/channels/news/publish", "text/plain", "back").status == 200
    });
    assert_eq!(client.expect_text(), "back");
}

#[test]
fn a_router_drains_in_parts_and_ends_well() {
    let gateway = Gateway::builder().config(GATEWAY_DRAIN).start();
    let config = "[drain]\nsettle = \"300ms\"\nperiod = \"2s\"\nclose_wait = \"10s\"\n";
    let mut router = Router::of(&[&gateway], config);
    router.eventually_live(1);
    let mut clients: Vec<RawTcp> =
        (0..40).map(|key| RawTcp::upgraded(router.public, &format!("/ws?channel=news&key=k{key}"))).collect();
    let mut spare = RawTcp::connect(router.public);
    router.signal(Stop::Terminate);
    let internal = tidegate_testkit::Rest::new(router.internal);
    eventually("/readyz answers 503", DEADLINE, || internal.get("/readyz").status == 503);
    router.eventually_metric("tidegate_draining", &[], 1.0);
    // In parts: at some moment some are gone and some are not.
    eventually("the first are closed", DEADLINE, || {
        let closed = router.metric("tidegate_cuts_total", &[("reason", "drain")]);
        assert!(closed < 40.0, "all at once");
        closed > 0.0
    });
    spare.send(b"GET /ws?channel=news HTTP/1.1\r\nHost: h\r\n\r\n");
    let refused = spare.read_head(DEADLINE).unwrap();
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    for client in &mut clients {
        let rest = client.read_to_end(DEADLINE).unwrap();
        assert!(rest.is_empty(), "{rest:?}");
    }
    drop((clients, spare));
    let exit = router.wait();
    assert_eq!(exit.code, Some(0), "{exit}");
    gateway.eventually_connections(0);
}

#[test]
fn a_second_signal_ends_a_router_at_once() {
    let gateway = Gateway::start();
    let mut router = Router::of(&[&gateway], "[drain]\nsettle = \"1h\"\n");
    router.eventually_live(1);
    let mut client = RawTcp::upgraded(router.public, "/ws?channel=news");
    router.signal(Stop::Interrupt);
    router.eventually_metric("tidegate_draining", &[], 1.0);
    router.signal(Stop::Interrupt);
    let exit = router.wait();
    assert_eq!(exit.code, Some(0), "{exit}");
    assert!(matches!(client.read_some(DEADLINE), Err(ReadError::Closed)));
}
