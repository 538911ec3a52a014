//! A connection that goes on in another shard, as it would in another process: nothing of its stream is lost or doubled.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod support;

use std::{
    io::Write as _,
    net::TcpStream,
    os::fd::{AsFd as _, OwnedFd},
    thread,
};

use bytes::Bytes;
use support::{Name, Running, State, message, narrow_pair, pattern, read_exact, read_to_end};
use tidegate_reactor::{ConnectionId, Kept, Overflow, Tick};

const QUEUE_BYTES: usize = 1 << 20;

/// What one from another shard is called, so that it is nobody's name there.
const GUEST: Name = 1000;

/// Takes a connection out of a shard: its name there, its socket, and what is kept of it.
fn take(shard: &Running, name: Name) -> (ConnectionId, OwnedFd, Kept) {
    let taken = shard.ask(move |scribe, connections| {
        let id = scribe.ids.remove(&name)?;
        let kept = connections.kept(id)?;
        let socket = connections.socket(id)?.as_fd().try_clone_to_owned().unwrap();
        connections.let_go(id).unwrap()?;
        Some((id, socket, kept))
    });
    taken.expect("it may go")
}

fn go_on(shard: &Running, name: Name, (id, socket, kept): (ConnectionId, OwnedFd, Kept)) {
    shard.ask(move |scribe, connections| {
        connections.hold_reads(true);
        scribe.ids.insert(name, id);
        scribe.received.insert(name, Vec::new());
        connections.go_on(id, TcpStream::from(socket), kept, State { name, echoes: false });
        connections.hold_reads(false);
    });
}

/// From shard to shard while it is written to: also in the middle of a message.
#[test]
fn what_is_unsent_goes_along() {
    let shards = [Running::start(QUEUE_BYTES), Running::start(QUEUE_BYTES)];
    let [mut first, second] = shards;
    let (mut client, server) = narrow_pair();
    let name = first.adopt(server);
    let bytes = pattern(4 << 20);
    let reader = thread::spawn(move || read_to_end(&mut client));
    let mut from = [&first, &second].into_iter().cycle();
    let mut shard = from.next().unwrap();
    for (nth, piece) in bytes.chunks(50_000).enumerate() {
        let piece = Bytes::copy_from_slice(piece);
        shard.eventually("there is room", move |scribe, connections| {
            (connections.queued_bytes(scribe.ids[&name]) < QUEUE_BYTES / 2).then_some(())
        });
        shard.ask(move |scribe, connections| {
            connections.write_shared(scribe.ids[&name].slot, &message(&piece, Overflow::Disconnect))
        });
        if nth % 3 == 0 {
            let next = from.next().unwrap();
            if !std::ptr::eq(next, shard) {
                go_on(next, name, take(shard, name));
                shard = next;
            }
        }
    }
    shard.ask(move |scribe, connections| connections.close_when_flushed(scribe.ids[&name]));
    assert!(reader.join().unwrap() == bytes, "bytes are missing, or came twice");
}

/// What was read and not used comes first, then what came while it was on its way.
#[test]
fn what_is_unused_goes_along() {
    let (mut first, second) = (Running::start(QUEUE_BYTES), Running::start(QUEUE_BYTES));
    let (mut client, name) = first.client();
    first.ask(|scribe, _| (scribe.share, scribe.rests_until_tick) = (Some(1), true));
    client.write_all(b"abcdef").unwrap();
    first.eventually("some is used", move |scribe, _| (!scribe.received[&name].is_empty()).then_some(()));
    let taken = take(&first, name);
    let used = first.ask(move |scribe, _| scribe.received[&name].clone());
    assert!(!taken.2.unused.is_empty());
    client.write_all(b"ghi").unwrap();
    let id = taken.0;
    go_on(&second, name, taken);
    let rest = second.eventually("all of it is there", move |scribe, _| {
        Some(scribe.received[&name].clone()).filter(|received| received.ends_with(b"i"))
    });
    assert_eq!([used, rest].concat(), b"abcdefghi");
    assert_eq!(second.ask(move |scribe, _| scribe.ids[&name]), id, "it keeps its name");
    // The first shard hears nothing of it any more.
    assert_eq!(first.ask(|scribe, _| scribe.closed.len()), 0);
    client.write_all(b"j").unwrap();
    second.eventually("it is read", move |scribe, _| scribe.received[&name].ends_with(b"j").then_some(()));
}

#[test]
fn timers_and_names_go_along_and_new_ones_come_after() {
    let (mut first, mut second) = (Running::start(QUEUE_BYTES), Running::start(QUEUE_BYTES));
    let (_client, name) = first.client();
    first.ask(move |scribe, connections| {
        let due = Tick(connections.now().0 + 2);
        connections.set_timer(scribe.ids[&name], due);
    });
    let newest = first.ask(|_, connections| connections.newest_generation());
    second.ask(move |_, connections| connections.number_after(newest));
    go_on(&second, GUEST, take(&first, name));
    second.eventually("the timer fires there", move |scribe, _| {
        scribe.fired.iter().any(|(fired, _)| *fired == GUEST).then_some(())
    });
    let (_other, other) = second.client();
    let ids = second.eventually("it is there", move |scribe, _| {
        Some((*scribe.ids.get(&GUEST)?, *scribe.ids.get(&other)?))
    });
    assert_ne!(ids.0, ids.1);
    assert_eq!(ids.1.generation, newest + 1);
}

/// While reads are held a shard that serves is as good as blind, and catches up afterwards.
#[test]
fn held_reads_wait() {
    let mut shard = Running::start(QUEUE_BYTES);
    let (mut client, name) = shard.client();
    shard.eventually("it is there", move |scribe, _| scribe.ids.get(&name).copied());
    shard.ask(|_, connections| connections.hold_reads(true));
    client.write_all(b"held").unwrap();
    // Many turns pass; what is asked of the shard is done.
    for _ in 0..100 {
        assert_eq!(shard.ask(move |scribe, _| scribe.received[&name].len()), 0);
    }
    shard.ask(move |scribe, connections| connections.write(scribe.ids[&name], b"out"));
    assert_eq!(read_exact(&mut client, 3), b"out");
    shard.ask(|_, connections| connections.hold_reads(false));
    shard.eventually("it is read", move |scribe, _| (scribe.received[&name] == b"held").then_some(()));
}
