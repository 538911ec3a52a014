//! Pairs of connections: bytes, pauses, ends and resets from one side to the other.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod support;

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    thread,
};

use fastrand::Rng;
use support::{Router, TestNode, pair, pair_of, pattern, read_exact, read_to_end, reset};
use tidegate_router::proxy::{CutReason, Direction, Options};
use tidegate_testkit::{DEADLINE, eventually, net::SocketOptions};

/// What one read takes; a queue never holds more.
const QUEUE_BYTES_MAX: i64 = 64 * 1024;

#[test]
fn bytes_move_both_ways_and_are_counted() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let (mut client, mut upstream) = pair(&router, &node);
    client.write_all(b"question").unwrap();
    assert_eq!(read_exact(&mut upstream, 8), b"question");
    upstream.write_all(b"answer").unwrap();
    assert_eq!(read_exact(&mut client, 6), b"answer");
    router.eventually("bytes to nodes", 8, |metrics| metrics.bytes.get(Direction::ToNodes) as i64);
    let switch = support::SWITCH.len() as i64;
    router.eventually("to clients", 6 + switch, |metrics| metrics.bytes.get(Direction::ToClients) as i64);
    assert_eq!(router.sum(|metrics| metrics.pairs.get()), 1);
    drop(client);
    assert_eq!(read_to_end(&mut upstream), b"");
    drop(upstream);
    router.eventually_empty();
}

#[test]
fn an_end_of_one_direction_leaves_the_other_open() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    for client_first in [true, false] {
        let (client, upstream) = pair(&router, &node);
        let (mut first, mut second) = if client_first { (client, upstream) } else { (upstream, client) };
        first.write_all(b"last words").unwrap();
        first.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut second), b"last words");
        let answer = pattern(3_000_000);
        let written = answer.clone();
        let writing = thread::spawn(move || {
            second.write_all(&written).unwrap();
            second
        });
        assert_eq!(read_exact(&mut first, answer.len()), answer);
        let second = writing.join().unwrap();
        second.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut first), b"");
        // Both have ended: nothing of it stays, although neither has closed its socket.
        router.eventually_empty();
    }
    assert_eq!(router.sum(|metrics| metrics.cuts.get(CutReason::Lingered) as i64), 0);
}

#[test]
fn a_reset_of_one_side_ends_the_other() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    for client_first in [true, false] {
        let (client, upstream) = pair(&router, &node);
        let (first, mut second) = if client_first { (client, upstream) } else { (upstream, client) };
        reset(first);
        assert_eq!(read_to_end(&mut second), b"");
        drop(second);
        router.eventually_empty();
    }
}

/// One side writes without end, the other does not read: what is held for it stays bounded, and then all arrives.
fn check_back_pressure(to_client: bool) {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let narrow = SocketOptions { receive_buffer_bytes: Some(16 * 1024), ..SocketOptions::default() };
    let (client, upstream) = pair_of(router.client_with(narrow), &node);
    let (mut reader, mut writer) = if to_client { (client, upstream) } else { (upstream, client) };
    let sent = pattern(40_000_000);
    let bytes = sent.clone();
    let writing = thread::spawn(move || writer.write_all(&bytes).map(|()| writer));
    router.eventually_held("a queue is filled");
    let moved = |router: &Router| {
        router.sum(|metrics| {
            (metrics.bytes.get(Direction::ToClients) + metrics.bytes.get(Direction::ToNodes)) as i64
        })
    };
    // Nothing more is read for it: the writer stands still.
    let before = moved(&router);
    let (mut other_client, mut other_upstream) = pair(&router, &node);
    other_client.write_all(b"!").unwrap();
    assert_eq!(read_exact(&mut other_upstream, 1), b"!");
    let held = router.sum(|metrics| metrics.queued_bytes.get());
    assert!((1..=QUEUE_BYTES_MAX).contains(&held), "{held} bytes are held");
    assert!(moved(&router) < before + QUEUE_BYTES_MAX, "it is still read");
    assert!(!writing.is_finished());
    let mut received = vec![0; sent.len()];
    let mut at = 0;
    while at < received.len() {
        at += reader.read(&mut received[at..]).unwrap();
        let held = router.sum(|metrics| metrics.queued_bytes.get());
        assert!(held <= QUEUE_BYTES_MAX, "{held} bytes are held");
    }
    assert!(received == sent);
    drop(writing.join().unwrap().unwrap());
    assert_eq!(read_to_end(&mut reader), b"");
}

impl Router {
    #[track_caller]
    fn eventually_held(&self, what: &str) {
        eventually(what, DEADLINE, || self.sum(|metrics| metrics.queued_bytes.get()) > 0);
    }
}

#[test]
fn a_client_that_does_not_read_stops_its_node() {
    check_back_pressure(true);
}

#[test]
fn a_node_that_does_not_read_stops_its_client() {
    check_back_pressure(false);
}

#[test]
fn one_that_resets_while_it_is_not_read_is_noticed() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let (client, mut upstream) = pair(&router, &node);
    let mut writer = client.try_clone().unwrap();
    let writing = thread::spawn(move || writer.write_all(&pattern(40_000_000)));
    router.eventually_held("the node's queue is filled");
    reset(client.try_clone().unwrap());
    client.shutdown(Shutdown::Both).unwrap();
    drop(client);
    assert!(writing.join().unwrap().is_err());
    // The node takes what was sent before, and then sees the end.
    read_to_end(&mut upstream);
    drop(upstream);
    router.eventually_empty();
}

/// Sends `bytes` in pieces of random sizes, sometimes tiny; then ends its side.
fn send_in_pieces(mut socket: TcpStream, bytes: &[u8], seed: u64) {
    let mut random = Rng::with_seed(seed);
    let mut rest = bytes;
    while !rest.is_empty() {
        let most = [1, 100, 10_000, 300_000][random.usize(..4)];
        let (piece, after) = rest.split_at(rest.len().min(1 + random.usize(..most)));
        socket.write_all(piece).unwrap();
        if random.usize(..4) == 0 {
            thread::yield_now();
        }
        rest = after;
    }
    socket.shutdown(Shutdown::Write).unwrap();
}

/// Reads in pieces of random sizes up to the end; a piece of one byte is as slow as a reader can be.
fn receive_in_pieces(mut socket: TcpStream, seed: u64) -> Vec<u8> {
    let mut random = Rng::with_seed(seed);
    let mut received = Vec::new();
    let mut buffer = vec![0; 200_000];
    loop {
        let most = [1, 50, 5_000, 200_000][random.usize(..4)];
        match socket.read(&mut buffer[..1 + random.usize(..most)]).unwrap() {
            0 => return received,
            read => received.extend_from_slice(&buffer[..read]),
        }
    }
}

#[test]
fn streams_arrive_whole_whatever_their_pieces_and_ends() {
    let node = TestNode::start();
    let router = Router::with(&[node.address], Options { shards: 2, ..Options::default() });
    thread::scope(|scope| {
        for seed in 1..=12u64 {
            let mut random = Rng::with_seed(seed);
            let narrow = [None, Some(8 * 1024)][random.usize(..2)];
            let options = SocketOptions { receive_buffer_bytes: narrow, ..SocketOptions::default() };
            let (client, upstream) = pair_of(router.client_with(options), &node);
            let lengths = [random.usize(..2_000_000), random.usize(..2_000_000)];
            for (from, to, length) in [(&client, &upstream, lengths[0]), (&upstream, &client, lengths[1])] {
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let sent = pattern(length);
                let copy = sent.clone();
                scope.spawn(move || send_in_pieces(from, &copy, seed));
                scope.spawn(move || {
                    let received = receive_in_pieces(to, seed + 100);
                    assert!(received == sent, "seed {seed}: {} of {} bytes", received.len(), sent.len());
                });
            }
        }
    });
    router.eventually_empty();
    assert_eq!(router.sum(|metrics| metrics.queued_bytes.get()), 0);
}

#[test]
fn the_clients_of_a_node_that_is_gone_are_closed_at_once() {
    let nodes = [TestNode::start(), TestNode::start()];
    let router = Router::start(&[nodes[0].address, nodes[1].address]);
    let open = |index: usize| {
        let mut client = router.client();
        let target = format!("/ws?key={}", router.key_of(index));
        client.write_all(support::upgrade(&target).as_bytes()).unwrap();
        let mut upstream = nodes[index].accept();
        support::read_head(&mut upstream);
        upstream.write_all(support::SWITCH).unwrap();
        support::read_head(&mut client);
        (client, upstream)
    };
    let mut gone: Vec<_> = (0..20).map(|_| open(0)).collect();
    let (mut client, mut upstream) = open(1);
    router.lose(0);
    for (client, _) in &mut gone {
        assert_eq!(read_to_end(client), b"");
    }
    router.eventually("they are counted", 20, |metrics| metrics.cuts.get(CutReason::Node) as i64);
    client.write_all(b"still").unwrap();
    assert_eq!(read_exact(&mut upstream, 5), b"still");
    assert_eq!(router.sum(|metrics| metrics.pairs.get()), 1);
}

/// A node that drained is gone from the registry as soon as its last client is: what it said last, and that it has ended
/// its side, may not have been read yet.
#[test]
fn a_node_that_has_said_all_and_is_gone_has_cut_nobody() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    for _ in 0..5 {
        router.find(0);
        let pairs: Vec<_> = (0..200).map(|_| pair(&router, &node)).collect();
        let (mut clients, nodes): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        for mut upstream in nodes {
            upstream.write_all(b"last words").unwrap();
        }
        router.lose(0);
        for client in &mut clients {
            assert_eq!(read_to_end(client), b"last words");
        }
        drop(clients);
        router.eventually_empty();
    }
    assert_eq!(router.sum(|metrics| metrics.cuts.get(CutReason::Node) as i64), 0);
}

#[test]
fn a_drain_closes_everyone() {
    let node = TestNode::start();
    let router = Router::start(&[node.address]);
    let mut pairs: Vec<_> = (0..20).map(|_| pair(&router, &node)).collect();
    router.proxy.drain(std::time::Duration::from_millis(500));
    for (client, upstream) in &mut pairs {
        assert_eq!(read_to_end(client), b"");
        assert_eq!(read_to_end(upstream), b"");
    }
    drop(pairs);
    router.eventually_empty();
    assert_eq!(router.sum(|metrics| metrics.cuts.get(CutReason::Drain) as i64), 20);
}
