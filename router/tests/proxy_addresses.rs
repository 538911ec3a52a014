//! What nodes are told of the client: PROXY protocol, IPv6.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod support;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use support::{Router, TestNode, edge, pair, read_exact, read_head, upgrade};
use tidegate_router::proxy::Options;
use tidegate_testkit::net::{SocketOptions, source_address};
use tidegate_wire::proxy_v2::{Addresses, Header};

fn announcing() -> Options {
    Options { proxy_protocol_to_nodes: true, ..Options::default() }
}

/// Reads the header that a connection begins with.
#[track_caller]
fn announced(upstream: &mut TcpStream) -> Addresses {
    let mut header = read_exact(upstream, 16);
    let rest = u16::from_be_bytes([header[14], header[15]]);
    header.extend(read_exact(upstream, rest.into()));
    Header::parse(&header).unwrap().unwrap().addresses.expect("somebody is named")
}

/// A connection to a node that had one request, and a connection of a client that was answered.
#[track_caller]
fn answer(node: &TestNode, client: &mut TcpStream) -> (Addresses, TcpStream) {
    let mut upstream = node.accept();
    let addresses = announced(&mut upstream);
    answer_on(&mut upstream, client);
    (addresses, upstream)
}

#[track_caller]
fn answer_on(upstream: &mut TcpStream, client: &mut TcpStream) {
    read_head(upstream);
    upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
    assert!(read_head(client).starts_with("HTTP/1.1 200 "));
}

fn get(client: &mut TcpStream, headers: &str) {
    client.write_all(format!("GET /v1/x HTTP/1.1\r\nHost: h\r\n{headers}\r\n").as_bytes()).unwrap();
}

/// A router on all addresses tells which of them the client came to.
#[test]
fn a_pair_begins_with_the_clients_addresses() {
    let node = TestNode::start();
    let router = Router::on("0.0.0.0:0", &[node.address], announcing(), edge(None));
    let target = SocketAddr::new("127.0.0.1".parse().unwrap(), router.address.port());
    let mut client = TcpStream::connect(target).unwrap();
    client.write_all(upgrade("/ws?key=a").as_bytes()).unwrap();
    let mut upstream = node.accept();
    let source = client.local_addr().unwrap();
    assert_eq!(announced(&mut upstream), Addresses { source, destination: target });
    assert!(read_head(&mut upstream).starts_with("GET /ws?key=a HTTP/1.1\r\n"));
}

#[test]
fn the_client_that_a_trusted_proxy_names_is_announced() {
    let node = TestNode::start();
    let router = Router::with(&[node.address], announcing());
    let proxy = SocketOptions { source: Some(source_address(0)), ..SocketOptions::default() };
    let mut client = router.client_with(proxy);
    let request = upgrade("/ws?key=a").replace("\r\n\r\n", "\r\nX-Forwarded-For: 198.51.100.1\r\n\r\n");
    client.write_all(request.as_bytes()).unwrap();
    let source = "198.51.100.1:0".parse().unwrap();
    assert_eq!(announced(&mut node.accept()), Addresses { source, destination: router.address });
}

#[test]
fn kept_connections_to_nodes_are_of_one_client() {
    let node = TestNode::start();
    let router = Router::with(&[node.address], announcing());
    let mut clients = [router.client(), router.client()];
    let mut upstreams = Vec::new();
    for client in &mut clients {
        get(client, "");
        let (addresses, upstream) = answer(&node, client);
        let source = client.local_addr().unwrap();
        assert_eq!(addresses, Addresses { source, destination: router.address });
        upstreams.push(upstream);
    }
    // Once more: each on its own.
    for (client, upstream) in clients.iter_mut().zip(&mut upstreams) {
        get(client, "");
        answer_on(upstream, client);
    }
    assert!(node.try_accept().is_none());
    // They end with their client.
    let [first, _second] = clients;
    drop(first);
    assert_eq!(upstreams[0].read(&mut [0]).unwrap(), 0);
}

/// A proxy sends the requests of many clients over one connection.
#[test]
fn one_kept_connection_carries_the_names_of_its_requests() {
    let node = TestNode::start();
    let router = Router::with(&[node.address], announcing());
    let proxy = SocketOptions { source: Some(source_address(0)), ..SocketOptions::default() };
    let mut client = router.client_with(proxy);
    let mut upstreams = Vec::new();
    for name in ["198.51.100.1", "198.51.100.2"] {
        get(&mut client, &format!("X-Forwarded-For: {name}\r\n"));
        let (addresses, upstream) = answer(&node, &mut client);
        assert_eq!(addresses.source.ip().to_string(), name);
        upstreams.push(upstream);
    }
    get(&mut client, "X-Forwarded-For: 198.51.100.2\r\n");
    answer_on(&mut upstreams[1], &mut client);
}

#[test]
fn ipv6_clients_and_nodes() {
    let node = TestNode::on("[::1]:0");
    let router = Router::on("[::1]:0", &[node.address], Options::default(), edge(None));
    let (mut client, mut upstream) = pair(&router, &node);
    client.write_all(b"question").unwrap();
    assert_eq!(read_exact(&mut upstream, 8), b"question");
    let mut client = router.client();
    get(&mut client, "");
    let mut upstream = node.accept();
    let head = read_head(&mut upstream).to_lowercase();
    assert!(head.contains("\r\nx-forwarded-for: ::1\r\n"), "{head}");
    assert!(head.contains("\r\nforwarded: for=\"[::1]\";proto=http\r\n"), "{head}");
}

#[test]
fn ipv6_clients_are_announced() {
    let node = TestNode::on("[::1]:0");
    let router = Router::on("[::1]:0", &[node.address], announcing(), edge(None));
    let mut client = router.client();
    client.write_all(upgrade("/ws?key=a").as_bytes()).unwrap();
    let source = client.local_addr().unwrap();
    assert_eq!(announced(&mut node.accept()), Addresses { source, destination: router.address });
}
