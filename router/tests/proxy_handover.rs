//! Clients that a router hands over: which gateway has the socket in the end, whatever happens on the way.

#![allow(clippy::unwrap_used)]

use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, Read as _, Write as _},
    net::TcpStream,
    ops::Deref,
    path::{Path, PathBuf},
    time::Duration,
};

use support::{Router, SWITCH, TestNode, read_head, upgrade};
use tidegate_ops::handover::{Doorway, Line};
use tidegate_router::proxy::{ConnectResult, HandoverMiss, Options, RefusalReason};
use tidegate_testkit::{DEADLINE, eventually_some};
use tidegate_wire::handover::{Answer, Answers, OFFER_BYTES_MAX, Offers};

mod support;

/// A gateway's side: the test takes lines and offers itself.
struct Gate {
    path: PathBuf,
    doorway: Doorway,
    _directory: tempfile::TempDir,
}

/// An offer that came.
struct Came {
    number: u32,
    source: std::net::SocketAddr,
    received: Vec<u8>,
    socket: TcpStream,
}

impl Gate {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gate");
        Self { doorway: Doorway::bind(&path).unwrap(), path, _directory: directory }
    }

    fn line(&self) -> TestLine {
        eventually_some("the router opens a line", DEADLINE, || {
            let (stream, _) = self.doorway.listener().accept().ok()?;
            Some(TestLine { line: Line::of(stream).unwrap(), came: RefCell::default() })
        })
    }
}

/// A line, and clients that came with one that was asked for.
struct TestLine {
    line: Line,
    came: RefCell<VecDeque<Came>>,
}

impl Deref for TestLine {
    type Target = Line;

    fn deref(&self) -> &Line {
        &self.line
    }
}

fn came(line: &TestLine) -> Came {
    let mut buffer = vec![0; OFFER_BYTES_MAX];
    eventually_some("the router offers a client", DEADLINE, || {
        let mut came = line.came.borrow_mut();
        if came.is_empty() {
            let record = line.receive(&mut buffer).ok()?.expect("the line is open");
            let offers = Offers::parse(record.bytes).unwrap();
            assert_eq!(offers.iter().count(), record.sockets.len(), "each with its socket");
            for (offer, socket) in offers.iter().zip(record.sockets) {
                socket.set_nonblocking(false).unwrap();
                let (number, source) = (offer.number, offer.ends.source);
                came.push_back(Came { number, source, received: offer.received.to_vec(), socket });
            }
        }
        came.pop_front()
    })
}

fn answer(line: &Line, answers: &[(u32, Answer)]) -> io::Result<()> {
    let mut record = Vec::new();
    Answers::new(answers.to_vec()).unwrap().write(&mut record);
    eventually_some("the router has read the last answers", DEADLINE, || match line.send(&record) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        sent => Some(sent),
    })
}

/// A router with one shard, so that it has one line to each gateway, and the nodes' gates.
fn router(nodes: &[&TestNode], gates: &[Option<&Path>]) -> Router {
    router_with(nodes, gates, DEADLINE)
}

/// How long an answer to an offer is waited for.
fn router_with(nodes: &[&TestNode], gates: &[Option<&Path>], connect_timeout: Duration) -> Router {
    let addresses: Vec<_> = nodes.iter().map(|node| node.address).collect();
    let options = Options { shards: 1, connect_timeout, ..Options::default() };
    let router = Router::with(&addresses, options);
    router.announce(Some(0), gates);
    router
}

fn ask(router: &Router, index: usize) -> (TcpStream, String) {
    let request = upgrade(&format!("/ws?key={}", router.key_of(index)));
    let mut client = router.client();
    client.write_all(request.as_bytes()).unwrap();
    (client, request)
}

/// The gateway has the socket: bytes go both ways without the router, which holds nothing any more.
#[track_caller]
fn check_taken(mut client: TcpStream, mut socket: TcpStream) {
    socket.write_all(SWITCH).unwrap();
    assert_eq!(read_head(&mut client).as_bytes(), SWITCH);
    client.write_all(b"up").unwrap();
    let mut read = [0; 2];
    socket.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"up");
    drop(socket);
    assert_eq!(client.read(&mut read).unwrap(), 0, "no other descriptor keeps the connection open");
}

#[test]
fn a_gateway_gets_the_socket_and_all_that_was_read() {
    let (node, gate) = (TestNode::start(), Gate::new());
    let router = router(&[&node], &[Some(&gate.path)]);
    let request = upgrade("/ws?key=a");
    let mut client = router.client();
    let early = b"\x81\x80early";
    client.write_all(&[request.as_bytes(), early].concat()).unwrap();
    let line = gate.line();
    let offered = came(&line);
    assert_eq!(offered.received, [request.as_bytes(), early].concat());
    assert_eq!(offered.source, client.local_addr().unwrap());
    answer(&line, &[(offered.number, Answer::Taken)]).unwrap();
    router.eventually_empty();
    check_taken(client, offered.socket);
    assert_eq!(router.sum(|metrics| metrics.connects.get(ConnectResult::HandedOver) as i64), 1);
    // Its report does not have the client yet.
    assert_eq!(router.node(0).load(), 1);

    // The same line serves the next ones, answered together and in another order.
    let clients: Vec<_> = (0..3).map(|_| ask(&router, 0).0).collect();
    let mut offers: Vec<_> = clients.iter().map(|_| came(&line)).collect();
    let answers: Vec<_> = offers.iter().rev().map(|offer| (offer.number, Answer::Taken)).collect();
    answer(&line, &answers).unwrap();
    router.eventually_empty();
    for client in clients {
        let own = client.local_addr().unwrap();
        let at = offers.iter().position(|offer| offer.source == own).unwrap();
        check_taken(client, offers.swap_remove(at).socket);
    }
    assert!(node.try_accept().is_none(), "nothing went through the router");
}

#[test]
fn who_is_refused_comes_to_the_next_node() {
    let (nodes, gates) = ([TestNode::start(), TestNode::start()], [Gate::new(), Gate::new()]);
    let router = router(&[&nodes[0], &nodes[1]], &[Some(&gates[0].path), Some(&gates[1].path)]);
    let (client, _) = ask(&router, 0);
    let first = gates[0].line();
    let offered = came(&first);
    answer(&first, &[(offered.number, Answer::Full)]).unwrap();
    drop(offered.socket);
    let second = gates[1].line();
    let offered = came(&second);
    answer(&second, &[(offered.number, Answer::Taken)]).unwrap();
    router.eventually_empty();
    check_taken(client, offered.socket);
    assert_eq!(router.sum(|metrics| metrics.connects.get(ConnectResult::Busy) as i64), 1);
}

#[test]
fn nobody_takes_the_client() {
    let (node, gate) = (TestNode::start(), Gate::new());
    let router = router(&[&node], &[Some(&gate.path)]);
    let (mut client, _) = ask(&router, 0);
    let line = gate.line();
    let offered = came(&line);
    answer(&line, &[(offered.number, Answer::Draining)]).unwrap();
    drop(offered.socket);
    assert!(read_head(&mut client).starts_with("HTTP/1.1 503 "));
    assert_eq!(router.sum(|metrics| metrics.refusals.get(RefusalReason::NoNode) as i64), 1);
}

/// A gateway that ends before it has answered has not touched the sockets: they go to the same node through the router.
#[test]
fn a_line_that_ends_leaves_its_clients_here() {
    let (node, gate) = (TestNode::start(), Gate::new());
    let router = router(&[&node], &[Some(&gate.path)]);
    let (mut client, _) = ask(&router, 0);
    let line = gate.line();
    let offered = came(&line);
    drop((offered.socket, line));
    let mut upstream = node.accept();
    assert!(read_head(&mut upstream).contains("X-Forwarded-For: "));
    upstream.write_all(SWITCH).unwrap();
    assert_eq!(read_head(&mut client).as_bytes(), SWITCH);
    client.write_all(b"up").unwrap();
    let mut read = [0; 2];
    upstream.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"up");
    assert_eq!(router.sum(|metrics| metrics.handover_misses.get(HandoverMiss::Failed) as i64), 1);
    drop((client, upstream));
    router.eventually_empty();
}

/// A gateway that hangs: its clients go elsewhere, and it cannot take them any more when it wakes up. An answer that it
/// had sent before counts.
#[test]
fn a_gateway_that_hangs_cannot_take_what_was_given_to_another() {
    let (nodes, gates) = ([TestNode::start(), TestNode::start()], [Gate::new(), Gate::new()]);
    let paths = [Some(&*gates[0].path), Some(&*gates[1].path)];
    let router = router_with(&[&nodes[0], &nodes[1]], &paths, Duration::from_secs(1));
    let (answered, _) = ask(&router, 0);
    let hung = gates[0].line();
    let taken = came(&hung);
    answer(&hung, &[(taken.number, Answer::Taken)]).unwrap();
    let (waiting, _) = ask(&router, 0);
    let offered = came(&hung);
    let second = gates[1].line();
    let again = came(&second);
    assert_eq!(again.source, waiting.local_addr().unwrap());
    let late = answer(&hung, &[(offered.number, Answer::Taken)]).unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::BrokenPipe);
    drop((offered.socket, hung));
    answer(&second, &[(again.number, Answer::Taken)]).unwrap();
    router.eventually_empty();
    check_taken(waiting, again.socket);
    check_taken(answered, taken.socket);
    assert_eq!(router.sum(|metrics| metrics.connects.get(ConnectResult::Timeout) as i64), 1);
}

#[test]
fn nobody_at_the_path_means_through_the_router() {
    let node = TestNode::start();
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let router = router(&[&node], &[Some(&missing)]);
    for _ in 0..2 {
        let (mut client, _) = ask(&router, 0);
        let mut upstream = node.accept();
        read_head(&mut upstream);
        upstream.write_all(SWITCH).unwrap();
        assert_eq!(read_head(&mut client).as_bytes(), SWITCH);
    }
    assert_eq!(router.sum(|metrics| metrics.handover_misses.get(HandoverMiss::Unreachable) as i64), 2);
    router.eventually_empty();
}

/// A record that this version does not know ends the line, and nobody's connection.
#[test]
fn another_version_is_no_gateway_to_hand_over_to() {
    let (node, gate) = (TestNode::start(), Gate::new());
    let router = router(&[&node], &[Some(&gate.path)]);
    let (mut client, _) = ask(&router, 0);
    let line = gate.line();
    let offered = came(&line);
    line.send(&[9, 9, 9]).unwrap();
    let mut upstream = node.accept();
    drop(offered.socket);
    read_head(&mut upstream);
    upstream.write_all(SWITCH).unwrap();
    assert_eq!(read_head(&mut client).as_bytes(), SWITCH);
}

/// More clients at once than fit in the line: all are taken, in portions.
#[test]
fn who_finds_the_line_full_waits_for_room() {
    const CLIENTS: usize = 600;
    let (node, gate) = (TestNode::start(), Gate::new());
    let router = router(&[&node], &[Some(&gate.path)]);
    let clients: Vec<_> = (0..CLIENTS).map(|_| ask(&router, 0).0).collect();
    let line = gate.line();
    let sockets: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let offered = came(&line);
            answer(&line, &[(offered.number, Answer::Taken)]).unwrap();
            offered.socket
        })
        .collect();
    router.eventually_empty();
    assert_eq!(router.sum(|metrics| metrics.connects.get(ConnectResult::HandedOver) as i64), CLIENTS as i64);
    drop((clients, sockets));
}
