//! What brings two connections together: opening one, the end of one direction, being told of an empty queue.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod support;

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpListener,
};

use support::{Running, address, narrow_pair, pair, pattern, read_exact, read_to_end, shut};
use tidegate_reactor::{Closed, Written};
use tidegate_testkit::net::free_address;

const QUEUE_BYTES: usize = 64 * 1024;

fn reset(client: std::net::TcpStream) {
    socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
}

#[test]
fn a_connection_is_opened_and_what_was_written_before_goes_out() {
    let mut shard = Running::start(QUEUE_BYTES);
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let (name, id) = shard.connect(address(&listener), b"first");
    let (mut peer, _) = listener.accept().unwrap();
    assert_eq!(read_exact(&mut peer, 5), b"first");
    shard.eventually("it stands", move |scribe, _| (scribe.connected == [name]).then_some(()));
    assert!(!shard.ask(move |_, connections| connections.is_connecting(id)));
    peer.write_all(b"back").unwrap();
    shard.eventually("the answer", move |scribe, _| {
        (scribe.received.get(&name).is_some_and(|received| received == b"back")).then_some(())
    });
    drop(peer);
    assert_eq!(shard.eventually_closed(name), Closed::Peer);
    shard.stop();
}

#[test]
fn a_refused_connection_is_told_as_failed() {
    let mut shard = Running::start(QUEUE_BYTES);
    let (name, _) = shard.connect(free_address(), b"first");
    assert_eq!(shard.eventually_closed(name), Closed::Failed(ErrorKind::ConnectionRefused));
    assert!(shard.ask(|scribe, connections| scribe.connected.is_empty() && connections.is_empty()));
}

#[test]
fn a_half_open_connection_is_told_of_the_end_once_and_still_written_to() {
    let mut shard = Running::start(QUEUE_BYTES);
    let (mut client, name) = shard.client();
    let id = shard.ask(move |scribe, connections| {
        let id = scribe.ids[&name];
        connections.set_half_open(id);
        id
    });
    client.write_all(b"last").unwrap();
    shut(&client);
    shard.eventually("the end is told", move |scribe, _| (scribe.ended == [name]).then_some(()));
    assert_eq!(shard.ask(move |scribe, _| scribe.received[&name].clone()), b"last");
    assert_eq!(shard.ask(move |_, connections| connections.write(id, b"answer")), Written::Sent);
    assert_eq!(read_exact(&mut client, 6), b"answer");
    shard.ask(move |_, connections| connections.shut_when_flushed(id));
    assert_eq!(read_to_end(&mut client), b"");
    // Both ends have ended; it stays until the driver closes it.
    assert_eq!(shard.ask(move |scribe, connections| (scribe.ended.len(), connections.len())), (1, 1));
    shard.ask(move |_, connections| connections.close_when_flushed(id));
    assert_eq!(shard.eventually_closed(name), Closed::Local);
}

#[test]
fn a_half_open_connection_that_is_reset_is_closed_also_while_it_is_paused_or_has_ended() {
    let mut shard = Running::start(QUEUE_BYTES);
    for (paused, ended) in [(false, false), (true, false), (false, true), (true, true)] {
        let (client, name) = shard.client();
        let id = shard.ask(move |scribe, connections| {
            let id = scribe.ids[&name];
            connections.set_half_open(id);
            id
        });
        if ended {
            shut(&client);
            shard.eventually("the end", move |scribe, _| scribe.ended.contains(&name).then_some(()));
        }
        shard.ask(move |_, connections| connections.set_paused(id, paused));
        reset(client);
        let closed = shard.eventually_closed(name);
        assert!(matches!(closed, Closed::Failed(_)), "paused {paused}, ended {ended}: {closed:?}");
    }
}

#[test]
fn an_empty_queue_is_told_once_to_who_asked() {
    let mut shard = Running::start(2_000_000);
    let (mut client, server) = narrow_pair();
    let name = shard.adopt(server);
    let written = shard.ask(move |scribe, connections| {
        let id = scribe.ids[&name];
        let written = connections.write(id, &pattern(1_000_000));
        connections.tell_flushed(id);
        written
    });
    assert_eq!(written, Written::Queued);
    assert!(shard.ask(|scribe, _| scribe.flushed.is_empty()));
    assert_eq!(read_exact(&mut client, 1_000_000), pattern(1_000_000));
    shard.eventually("it is told", move |scribe, _| (scribe.flushed == [name]).then_some(()));
    // Not asked, not told; asked with nothing in the queue, told.
    shard.ask(move |scribe, connections| connections.write(scribe.ids[&name], &pattern(1_000_000)));
    assert_eq!(read_exact(&mut client, 1_000_000), pattern(1_000_000));
    shard.eventually("the queue is empty", |_, connections| {
        (connections.counters().queued_bytes == 0).then_some(())
    });
    assert_eq!(shard.ask(|scribe, _| scribe.flushed.len()), 1);
    shard.ask(move |scribe, connections| connections.tell_flushed(scribe.ids[&name]));
    shard.eventually("it is told", move |scribe, _| (scribe.flushed == [name, name]).then_some(()));
}

#[test]
fn a_stream_that_is_to_end_is_not_read_while_it_is_paused() {
    let mut shard = Running::start(QUEUE_BYTES);
    let (mut client, server) = pair();
    let name = shard.adopt(server);
    let id = shard.ask(move |scribe, connections| {
        let id = scribe.ids[&name];
        connections.set_half_open(id);
        connections.set_paused(id, true);
        connections.shut_when_flushed(id);
        id
    });
    client.write_all(b"kept back").unwrap();
    let mut end = [0];
    assert_eq!(client.read(&mut end).unwrap(), 0);
    assert_eq!(shard.ask(move |scribe, _| scribe.received[&name].len()), 0);
    shard.ask(move |_, connections| connections.set_paused(id, false));
    shard.eventually("the bytes", move |scribe, _| (scribe.received[&name] == b"kept back").then_some(()));
}
