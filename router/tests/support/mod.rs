//! A real router in this process, and nodes whose every byte is the test's.

#![allow(dead_code, reason = "each test program uses its part")]

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    num::NonZeroU32,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tidegate_ops::{
    config::Setting,
    edge::Edge,
    listener::listen,
    tls::TlsServer,
    trust::{ForwardedHeader, Network, Trust},
};
use tidegate_router::{
    Chooser, Node,
    chooser::Observed,
    key::KeyRule,
    placement::{LoadFactor, Member},
    proxy::{Options, Proxy, ProxyMetrics},
};
use tidegate_testkit::{DEADLINE, eventually, eventually_some, net::SocketOptions};

/// Proxies in 127.0.1.0/24 are trusted; see [`tidegate_testkit::net::source_address`].
pub(crate) fn edge(tls: Option<&TlsServer>) -> Edge {
    let trusted = [Network::from_text("127.0.1.0/24").unwrap()];
    Edge::new(tls, None, Trust::new(&trusted, ForwardedHeader::XForwardedFor))
}

/// A proxy with its nodes.
#[derive(Debug)]
pub(crate) struct Router {
    pub(crate) proxy: Proxy,
    pub(crate) chooser: Arc<Chooser>,
    pub(crate) address: SocketAddr,
    nodes: Vec<SocketAddr>,
    _runtime: tokio::runtime::Runtime,
}

impl Router {
    pub(crate) fn start(nodes: &[SocketAddr]) -> Self {
        Self::with(nodes, Options::default())
    }

    pub(crate) fn with(nodes: &[SocketAddr], options: Options) -> Self {
        Self::on("127.0.0.1:0", nodes, options, edge(None))
    }

    pub(crate) fn on(listen_on: &str, nodes: &[SocketAddr], options: Options, edge: Edge) -> Self {
        let chooser = Arc::new(Chooser::new(LoadFactor::DEFAULT));
        chooser.update((0..).zip(nodes).map(|(at, socket)| observed(at, *socket)).collect());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = listen(listen_on.parse().unwrap(), "listen").unwrap();
        let address = listener.local_addr().unwrap();
        let options = Options { key: KeyRule::Query("key".into()), ..options };
        let (known, assign) = (Arc::clone(&chooser), axum::Router::new());
        let proxy = Proxy::start(address, options, known, edge, assign, runtime.handle()).unwrap();
        proxy.listen(listener).unwrap();
        Self { proxy, chooser, address, nodes: nodes.to_vec(), _runtime: runtime }
    }

    pub(crate) fn client(&self) -> TcpStream {
        self.client_with(SocketOptions::default())
    }

    pub(crate) fn client_with(&self, options: SocketOptions) -> TcpStream {
        deadlined(tidegate_testkit::net::connect(self.address, options).unwrap())
    }

    /// A sum over all groups of metrics.
    pub(crate) fn sum(&self, of: impl Fn(&ProxyMetrics) -> i64) -> i64 {
        self.proxy.stats().groups().into_iter().map(of).sum()
    }

    #[track_caller]
    pub(crate) fn eventually(&self, what: &str, expect: i64, of: impl Fn(&ProxyMetrics) -> i64) {
        eventually(what, DEADLINE, || self.sum(&of) == expect);
    }

    /// A key whose first node is the one at this index.
    pub(crate) fn key_of(&self, index: usize) -> String {
        (0..)
            .map(|number| format!("k{number}"))
            .find(|key| {
                let first = self.chooser.candidates(key.as_bytes(), Instant::now()).next();
                first.is_some_and(|node| node.socket() == self.nodes[index])
            })
            .unwrap()
    }

    pub(crate) fn node(&self, index: usize) -> Arc<Node> {
        let members = self.chooser.members();
        members.into_iter().map(|(_, node)| node).find(|node| node.socket() == self.nodes[index]).unwrap()
    }

    /// The nodes take sockets over at these paths, and have as many connections as is said.
    pub(crate) fn announce(&self, connections: Option<u64>, doorways: &[Option<&Path>]) {
        let seen = (0..).zip(self.nodes.iter().zip(doorways)).map(|(at, (socket, path))| Observed {
            handover: path.map(Into::into),
            connections,
            ..observed(at, *socket)
        });
        self.chooser.update(seen.collect());
    }

    /// The node at this index no longer answers its checks.
    pub(crate) fn lose(&self, index: usize) {
        self.check(index, true);
    }

    /// It answers again.
    pub(crate) fn find(&self, index: usize) {
        self.check(index, false);
    }

    fn check(&self, index: usize, is_down: bool) {
        let seen = (0..).zip(&self.nodes).map(|(at, socket)| {
            let mut node = observed(at, *socket);
            node.is_down = at == index && is_down;
            node.is_lost = node.is_down;
            node.member.draining = node.is_down;
            node
        });
        self.chooser.update(seen.collect());
    }

    /// No connection is left, of a client or on a node.
    #[track_caller]
    pub(crate) fn eventually_empty(&self) {
        eventually("all clients are gone", DEADLINE, || self.proxy.connections() == 0);
        let claims = || self.chooser.members().iter().map(|(_, node)| node.claims()).sum::<u64>();
        eventually("all places on nodes are given back", DEADLINE, || claims() == 0);
        self.eventually("no pair is left", 0, |metrics| metrics.pairs.get());
    }
}

fn observed(index: usize, socket: SocketAddr) -> Observed {
    let (name, address) = (format!("n{index}").into(), socket.to_string().into());
    let member = Member { name, address, weight: NonZeroU32::MIN, draining: false };
    Observed {
        member,
        is_down: false,
        is_lost: false,
        socket,
        connections: None,
        capacity: None,
        handover: None,
    }
}

/// A node whose connections the test accepts.
#[derive(Debug)]
pub(crate) struct TestNode {
    listener: TcpListener,
    pub(crate) address: SocketAddr,
}

impl TestNode {
    pub(crate) fn start() -> Self {
        Self::on("127.0.0.1:0")
    }

    pub(crate) fn on(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { listener, address }
    }

    #[track_caller]
    pub(crate) fn accept(&self) -> TcpStream {
        eventually_some("the router connects", DEADLINE, || self.try_accept())
    }

    pub(crate) fn try_accept(&self) -> Option<TcpStream> {
        match self.listener.accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(false).unwrap();
                Some(deadlined(socket))
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                None
            }
        }
    }
}

/// A pair whose bytes move: the client's end and the node's.
#[track_caller]
pub(crate) fn pair(router: &Router, node: &TestNode) -> (TcpStream, TcpStream) {
    pair_of(router.client(), node)
}

#[track_caller]
pub(crate) fn pair_of(mut client: TcpStream, node: &TestNode) -> (TcpStream, TcpStream) {
    client.write_all(upgrade("/ws?key=a").as_bytes()).unwrap();
    let mut upstream = node.accept();
    read_head(&mut upstream);
    upstream.write_all(SWITCH).unwrap();
    assert_eq!(read_head(&mut client).as_bytes(), SWITCH);
    (client, upstream)
}

pub(crate) const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";

pub(crate) fn upgrade(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
}

/// Reads a head byte by byte, so that nothing after it is taken.
#[track_caller]
pub(crate) fn read_head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        let read = socket.read(&mut byte);
        assert!(matches!(read, Ok(1)), "{read:?} after {:?}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

#[track_caller]
pub(crate) fn read_exact(socket: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    socket.read_exact(&mut bytes).unwrap();
    bytes
}

/// Everything up to the end of the stream. A reset counts as an end.
#[track_caller]
pub(crate) fn read_to_end(socket: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match socket.read_to_end(&mut bytes) {
        Ok(_) => bytes,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => bytes,
        Err(error) => panic!("{error} after {} bytes", bytes.len()),
    }
}

/// Closing it sends a reset.
pub(crate) fn reset(socket: TcpStream) {
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
}

/// `bytes` bytes that show where one is missing: a count in four bytes each.
pub(crate) fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes as u32).step_by(4).flat_map(u32::to_be_bytes).take(bytes).collect()
}

fn deadlined(socket: TcpStream) -> TcpStream {
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.set_write_timeout(Some(DEADLINE)).unwrap();
    socket
}
