//! Gateways that are told of their clients by the PROXY protocol, which they require.

use std::net::SocketAddr;

use tidegate_testkit::{DEADLINE, Gateway, RawTcp, WsClient, eventually_some};

use crate::site::Router;

/// Two connections for each client, as a witness of whom the gateway saw. It trusts no proxy.
const GATEWAY: &str = "proxy_protocol = true\n[limits]\nconnections_per_address = 2\n";

/// Clients are named by this test, in place of a balancer.
const ROUTER: &str = "trusted_proxies = [\"127.0.0.0/8\"]\n[upstream]\nproxy_protocol = true\n";

fn as_client(router: SocketAddr, client: &str) -> Result<WsClient, u16> {
    let headers = [("X-Forwarded-For", client)];
    WsClient::try_connect(router, "/ws?channel=news", &headers).map_err(|refusal| refusal.status)
}

fn publish(client: &str) -> String {
    format!(
        "POST /v1/channels/news/publish HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer dev-key\r\n\
         X-Forwarded-For: {client}\r\nContent-Length: 5\r\n\r\nhello"
    )
}

#[test]
fn the_gateway_sees_the_client() {
    let gateway = Gateway::builder().config(GATEWAY).start();
    // Health checks are let in.
    let router = Router::of(&[&gateway], ROUTER);
    router.eventually_live(1);
    let mut first = as_client(router.public, "198.51.100.1").expect("the first");
    let _second = as_client(router.public, "198.51.100.1").expect("the second");
    assert_eq!(as_client(router.public, "198.51.100.1").err(), Some(429), "the same client");
    let _other = as_client(router.public, "198.51.100.2").expect("another");
    gateway.eventually_connections(3);

    // Requests of several clients on one kept connection, as a proxy sends them.
    let mut kept = RawTcp::connect(router.public);
    for (client, status) in [("198.51.100.3", 200), ("198.51.100.1", 429), ("198.51.100.3", 200)] {
        kept.send(publish(client).as_bytes());
        let head = kept.read_head(DEADLINE).expect("an answer");
        assert_eq!(head.status, status, "{client}");
        let length = head.header("content-length").map_or(0, |length| length.parse().unwrap());
        kept.read_exact(length, DEADLINE).expect("its body");
        if status == 200 {
            assert_eq!(first.expect_text(), "hello");
        }
    }
    drop(first);
    let _again =
        eventually_some("its place is free", DEADLINE, || as_client(router.public, "198.51.100.1").ok());
}

/// The address that the gateway counts is the one that the router has, where nobody names another.
#[test]
fn without_a_proxy_before_it_the_routers_client_counts() {
    let gateway = Gateway::builder().config(GATEWAY).start();
    let router = Router::of(&[&gateway], "[upstream]\nproxy_protocol = true\n");
    router.eventually_live(1);
    let _held = ["6.6.6.1", "6.6.6.2"].map(|said| as_client(router.public, said).expect("room for two"));
    assert_eq!(as_client(router.public, "6.6.6.3").err(), Some(429), "all are 127.0.0.1");
}

/// A router without it is refused by such a gateway, which its checks see.
#[test]
fn a_gateway_that_requires_it_is_down_for_others() {
    let gateway = Gateway::builder().config(GATEWAY).start();
    let router = Router::of(&[&gateway], "");
    router.eventually_metric("tidegate_nodes", &[("state", "down")], 1.0);
}
