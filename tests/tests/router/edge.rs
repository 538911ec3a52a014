//! Who the client is, through a router: forwarded addresses, the header of a balancer, TLS.

use std::{io::Write, net::SocketAddr, sync::Arc};

use tidegate_testkit::{
    DEADLINE, Gateway, RawTcp, eventually,
    net::{SocketOptions, connect},
    tls::{Authority, WssClient, connect_tls, read_to_close, wrap_tls},
};

use crate::site::Router;

/// One connection for each client, whom the router names: a witness of whom the gateway saw.
const ONE_EACH: &str = "trusted_proxies = [\"127.0.0.0/8\"]\n[limits]\nconnections_per_address = 1\n";

fn upgrade(headers: &str) -> Vec<u8> {
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    format!("GET /ws?channel=news HTTP/1.1\r\nHost: localhost\r\n{headers}{upgrade}").into_bytes()
}

fn publish(headers: &str, body_len: usize) -> Vec<u8> {
    format!(
        "POST /v1/channels/news/publish HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer dev-key\r\n\
         {headers}Content-Length: {body_len}\r\n\r\n"
    )
    .into_bytes()
}

/// Sends all of it and reads the status of the answer; the connection stays open.
#[track_caller]
fn request(address: SocketAddr, pieces: &[&[u8]]) -> (RawTcp, u16) {
    let mut client = RawTcp::connect(address);
    for piece in pieces {
        client.send(piece);
    }
    let status = client.read_head(DEADLINE).expect("an answer").status;
    (client, status)
}

/// PROXY protocol v2: TCP over IPv4, from this client to 192.0.2.1:80.
fn proxied(client: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C".to_vec();
    header.extend_from_slice(&client);
    header.extend_from_slice(&[192, 0, 2, 1, 0x30, 0x39, 0, 80]);
    header
}

#[test]
fn the_gateway_sees_the_address_that_the_router_forwards() {
    let gateway = Gateway::builder().config(ONE_EACH).start();
    let router = Router::of(&[&gateway], "trusted_proxies = [\"127.0.0.0/8\"]\n");
    router.eventually_live(1);
    let ask = |headers: &str| request(router.public, &[&upgrade(headers)]);
    let (_first, status) = ask("X-Forwarded-For: 198.51.100.1\r\n");
    assert_eq!(status, 101);
    assert_eq!(ask("X-Forwarded-For: 6.6.6.6, 198.51.100.1\r\n").1, 429, "the same client");
    let (_second, status) = ask("X-Forwarded-For: 198.51.100.2\r\n");
    assert_eq!(status, 101);
    gateway.eventually_connections(2);
}

/// A balancer keeps its connections for requests of many clients: none of those counts for another, and what becomes a
/// WebSocket counts for the client whose it is.
#[test]
fn clients_of_a_kept_connection_are_counted_one_by_one() {
    let gateway = Gateway::builder().config(ONE_EACH).start();
    let router = Router::of(&[&gateway], "trusted_proxies = [\"127.0.0.0/8\"]\n");
    router.eventually_live(1);
    let becomes = |clients: &[&str], last: &str| {
        let mut kept = RawTcp::connect(router.public);
        for client in clients {
            kept.send(&publish(&format!("X-Forwarded-For: {client}\r\n"), 1));
            kept.send(b"x");
            let head = kept.read_head(DEADLINE).expect("an answer");
            assert_eq!(head.status, 200, "{client}");
            kept.read_exact(head.header("content-length").unwrap().parse().unwrap(), DEADLINE).unwrap();
        }
        kept.send(&upgrade(&format!("X-Forwarded-For: {last}\r\n")));
        let status = kept.read_head(DEADLINE).expect("an answer").status;
        (kept, status)
    };
    let (_first, status) = becomes(&["198.51.100.1", "198.51.100.2"], "198.51.100.3");
    assert_eq!(status, 101);
    let (_second, status) = becomes(&["198.51.100.3", "198.51.100.3"], "198.51.100.1");
    assert_eq!(status, 101, "who only published holds nothing");
    assert_eq!(becomes(&["198.51.100.2"], "198.51.100.3").1, 429, "the first one's client");
    gateway.eventually_connections(2);
    router.eventually_metric("tidegate_proxied_connections", &[], 2.0);
}

#[test]
fn what_a_client_says_of_itself_is_not_forwarded() {
    let gateway = Gateway::builder().config(ONE_EACH).start();
    let router = Router::of(&[&gateway], "");
    router.eventually_live(1);
    // Named as 127.0.0.1, which the gateway trusts: the leftmost address counts then, and it is the router's word.
    let (_first, status) = request(router.public, &[&upgrade("X-Forwarded-For: 198.51.100.1\r\n")]);
    assert_eq!(status, 101);
    let second = request(router.public, &[&upgrade("X-Forwarded-For: 198.51.100.2\r\n")]).1;
    assert_eq!(second, 429, "both are 127.0.0.1");
}

#[test]
fn the_balancers_header_names_the_client() {
    let gateway = Gateway::builder().config(ONE_EACH).start();
    let router = Router::of(&[&gateway], "proxy_protocol = true\n");
    router.eventually_live(1);
    let first = proxied([10, 0, 0, 1]);
    let (held, status) = request(router.public, &[&first, &upgrade("")]);
    assert_eq!(status, 101);
    let (_other, status) = request(router.public, &[&[proxied([10, 0, 0, 2]), upgrade("")].concat()]);
    assert_eq!(status, 101, "another client of the same balancer, in one piece");
    assert_eq!(request(router.public, &[&first[..5], &first[5..], &upgrade("")]).1, 429, "the same client");
    drop(held);
    eventually("its place is free again", DEADLINE, || {
        request(router.public, &[&first, &upgrade("")]).1 == 101
    });
    // REST goes the same way.
    let rest = b"GET /v1/nodes HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(request(router.public, &[&proxied([10, 0, 0, 3]), rest]).1, 401);
    let garbage: [&[u8]; 2] = [&upgrade(""), b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"];
    for bytes in garbage {
        let mut client = RawTcp::connect(router.public);
        client.send(bytes);
        assert!(client.read_to_end(DEADLINE).unwrap_or_default().is_empty());
    }
    router.eventually_metric("tidegate_refusals_total", &[("reason", "proxy_header")], 2.0);
}

/// A router that ends TLS, and a gateway behind it.
struct Secure {
    gateway: Gateway,
    router: Router,
    client: Arc<rustls::ClientConfig>,
    _directory: tempfile::TempDir,
}

fn secure(config: &str) -> Secure {
    let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
    authority.issue(2040).write_to(directory.path());
    let gateway = Gateway::builder().config(ONE_EACH).start();
    let router = Router::of(&[&gateway], &format!("{config}[tls]\ndirectory = {:?}\n", directory.path()));
    router.eventually_live(1);
    let client = Arc::new(authority.client_config(rustls::ALL_VERSIONS));
    Secure { gateway, router, client, _directory: directory }
}

#[test]
fn the_router_ends_tls() {
    let site = secure("");
    let mut socket = WssClient::connect(site.router.public, "/ws?channel=news", &site.client);
    let long = "long ".repeat(10_000);
    for text in ["one", &long, "three"] {
        // Over REST through the same port, in a session that leaves the shard for HTTP.
        let mut rest = connect_tls(site.router.public, &site.client, SocketOptions::default()).unwrap();
        let request = format!(
            "POST /v1/channels/news/publish HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer dev-key\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        );
        rest.write_all(request.as_bytes()).unwrap();
        let (answer, announced) = read_to_close(&mut rest);
        assert!(announced, "the session is ended");
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
        assert_eq!(socket.expect_text(), text);
    }
    // Sent to its end, although it is refused by its length. (A body that was passed on whole ends no connection by itself.)
    let mut large = connect_tls(site.router.public, &site.client, SocketOptions::default()).unwrap();
    large.write_all(&publish("Connection: close\r\n", 2_000_000)).unwrap();
    large.write_all(&vec![b'x'; 2_000_000]).unwrap();
    let (answer, _) = read_to_close(&mut large);
    assert!(answer.starts_with(b"HTTP/1.1 413 "), "{}", String::from_utf8_lossy(&answer));
    let mut assign = connect_tls(site.router.public, &site.client, SocketOptions::default()).unwrap();
    assign.write_all(b"GET /v1/assign?key=a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
    let (answer, _) = read_to_close(&mut assign);
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    let started = site.router.metric("tidegate_tls_handshakes_total", &[("result", "full")])
        + site.router.metric("tidegate_tls_handshakes_total", &[("result", "resumed")]);
    assert_eq!(started, 6.0);
    site.gateway.eventually_connections(1);
    drop(socket);
    site.router.eventually_metric("tidegate_proxied_connections", &[], 0.0);
}

/// Both directions at once, more than any buffer on the way holds.
#[test]
fn much_goes_both_ways_over_tls() {
    let site = secure("");
    let mut client = WssClient::connect(site.router.public, "/echo", &site.client);
    for length in [1, 125, 16_384, 50_000, 65_000] {
        let text = "x".repeat(length);
        for _ in 0..20 {
            client.send_text(&text);
        }
        for _ in 0..20 {
            assert_eq!(client.expect_text(), text);
        }
    }
}

#[test]
fn the_balancers_header_comes_before_the_handshake() {
    let site = secure("proxy_protocol = true\n");
    let open = |client| {
        let mut socket = connect(site.router.public, SocketOptions::default()).unwrap();
        socket.write_all(&proxied(client)).unwrap();
        wrap_tls(socket, &site.client).unwrap()
    };
    let _first = WssClient::upgrade(open([10, 0, 0, 1]), "/ws?channel=news");
    let _second = WssClient::upgrade(open([10, 0, 0, 2]), "/ws?channel=news");
    let mut again = open([10, 0, 0, 1]);
    again.write_all(&upgrade("")).unwrap();
    let (answer, _) = read_to_close(&mut again);
    assert!(answer.starts_with(b"HTTP/1.1 429 "), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn plain_http_on_a_secure_port_is_an_alert() {
    let site = secure("");
    let mut client = RawTcp::connect(site.router.public);
    client.send(b"GET /ws?channel=news HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let answer = client.read_to_end(DEADLINE).expect("an end");
    assert_eq!(answer.first(), Some(&21), "{answer:?}");
    site.router.eventually_metric("tidegate_refusals_total", &[("reason", "tls_failed")], 1.0);
}
