//! What a shard does with sockets: reads, fans out, pauses, merges, times, stops.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod support;

use std::{
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
    os::fd::OwnedFd,
    thread,
    time::Duration,
};

use bytes::Bytes;
use support::{
    Running, State, lost, message, narrow_pair, pair, pair_with, pattern, read_exact, read_to_end, shut,
};
use tidegate_reactor::{Closed, Mail, Overflow, TICK};
use tidegate_testkit::{DEADLINE, eventually_some, net::SocketOptions};

const QUEUE_BYTES: usize = 64 * 1024;

#[test]
fn what_a_client_sends_comes_back_whole_and_in_order() {
    let mut shard = Running::start(QUEUE_BYTES);
    let mut client = shard.echo_client();
    let sent = pattern(3_000_000);
    let mut writer = client.try_clone().unwrap();
    let bytes = sent.clone();
    // It reads while it writes: the server does not read on while its answer waits.
    let writing = thread::spawn(move || writer.write_all(&bytes).unwrap());
    assert_eq!(read_exact(&mut client, sent.len()), sent);
    writing.join().unwrap();
    assert_eq!(shard.ask(|_, connections| connections.counters().queued_bytes), 0);
    shard.stop();
}

#[test]
fn a_broadcast_reaches_everyone_once() {
    let mut shard = Running::start(QUEUE_BYTES);
    let mut clients: Vec<_> = (0..100).map(|_| shard.client().0).collect();
    let written = shard.ask(|scribe, connections| {
        let bytes = Bytes::from_static(b"to all");
        let write = |id: &tidegate_reactor::ConnectionId| {
            lost(connections.write_shared(id.slot, &message(&bytes, Overflow::Disconnect)), 1)
        };
        scribe.ids.values().map(write).collect::<Vec<_>>()
    });
    assert_eq!(written, vec![0; 100]);
    shard.mailbox.send(Mail::Stop);
    for client in &mut clients {
        assert_eq!(read_to_end(client), b"to all");
    }
}

#[test]
fn a_fast_sender_is_read_once_a_turn() {
    let mut shard = Running::start(QUEUE_BYTES);
    let (mut client, name) = shard.client();
    let sent = pattern(20_000_000);
    client.write_all(&sent).unwrap();
    shut(&client);
    assert_eq!(shard.eventually_closed(name), Closed::Peer);
    let (received, reads, listed) = shard.ask(move |scribe, connections| {
        (scribe.received[&name].clone(), scribe.reads[&name].1, connections.len())
    });
    assert_eq!((received.len(), received == sent), (sent.len(), true));
    assert_eq!((reads, listed), (1, 0));
}

#[test]
fn a_pause_keeps_bytes_and_the_end_of_the_stream() {
    let mut shard = Running::start(QUEUE_BYTES);
    shard.ask(|scribe, _| scribe.pauses = true);
    let (mut client, name) = shard.client();
    shard.ask(|scribe, _| scribe.pauses = false);
    client.write_all(b"before").unwrap();
    shut(&client);
    // A round trip of another connection: the shard has polled since.
    let mut other = shard.echo_client();
    other.write_all(b"!").unwrap();
    read_exact(&mut other, 1);
    let (received, id) = shard.ask(move |scribe, _| (scribe.received[&name].clone(), scribe.ids[&name]));
    assert_eq!(received, b"");
    // Resumed and paused again at once: nothing is handed on.
    shard.ask(move |_, connections| {
        connections.set_paused(id, false);
        connections.set_paused(id, true);
    });
    other.write_all(b"!").unwrap();
    read_exact(&mut other, 1);
    assert_eq!(shard.ask(move |scribe, _| scribe.received[&name].len()), 0);
    shard.ask(move |_, connections| connections.set_paused(id, false));
    assert_eq!(shard.eventually_closed(name), Closed::Peer);
    assert_eq!(shard.ask(move |scribe, _| scribe.received[&name].clone()), b"before");
}

#[test]
fn a_flush_does_not_end_the_drivers_own_pause() {
    let mut shard = Running::start(QUEUE_BYTES);
    let (mut client, server) = narrow_pair();
    let name = shard.adopt(server);
    let id = shard.ask(move |scribe, connections| {
        let id = scribe.ids[&name];
        connections.write_beyond_bound(id, &pattern(1_000_000));
        connections.pause_until_flushed(id);
        connections.set_paused(id, true);
        id
    });
    client.write_all(b"later").unwrap();
    read_exact(&mut client, 1_000_000);
    shard.eventually("the queue is empty", move |_, connections| {
        (connections.queued_bytes(id) == 0).then_some(())
    });
    assert_eq!(shard.ask(move |scribe, _| scribe.received[&name].len()), 0);
    shard.ask(move |_, connections| connections.set_paused(id, false));
    shard.eventually("the bytes arrive", move |scribe, _| (scribe.received[&name] == b"later").then_some(()));
}

#[test]
fn writes_of_a_turn_leave_as_one() {
    let mut shard = Running::start(QUEUE_BYTES);
    let (mut client, name) = shard.client();
    let before = shard.ask(move |scribe, connections| {
        let id = scribe.ids[&name];
        connections.set_merging(id, true);
        for part in [&b"a"[..], b"bb", b"ccc"] {
            let part = Bytes::from_static(part);
            connections.write_shared(id.slot, &message(&part, Overflow::Disconnect));
        }
        // What is its own keeps its place among them.
        connections.write(id, b"own");
        assert_eq!(connections.queued_bytes(id), 9);
        connections.counters().writes
    });
    let after =
        shard.ask(|_, connections| (connections.counters().writes, connections.counters().queued_bytes));
    assert_eq!(after, (before + 1, 0));
    let mut read = [0; 64];
    let count = client.read(&mut read).unwrap();
    assert_eq!(&read[..count], b"abbcccown");
}

#[test]
fn merging_meets_the_bound_only_when_the_socket_would_block() {
    let mut shard = Running::start(4096);
    let (mut client, server) =
        pair_with(SocketOptions { receive_buffer_bytes: Some(1 << 20), ..Default::default() }, Some(1 << 20));
    let name = shard.adopt(server);
    let sent = pattern(100_000);
    let messages = Bytes::from(sent.clone());
    let dropped = shard.ask(move |scribe, connections| {
        let id = scribe.ids[&name];
        connections.set_merging(id, true);
        // 48 times the bound in pieces below it, and once a single message above it.
        let pieces = (0..24).map(|at| messages.slice(at * 2000..(at + 1) * 2000));
        let pieces: Vec<Bytes> = pieces.chain([messages.slice(48_000..)]).collect();
        let write = |piece| lost(connections.write_shared(id.slot, &message(piece, Overflow::Drop)), 1);
        pieces.iter().map(write).sum::<u64>()
    });
    assert_eq!(dropped, 0);
    assert!(read_exact(&mut client, sent.len()) == sent);
}

#[test]
fn what_a_burial_writes_leaves_without_another_event() {
    let mut shard = Running::start(QUEUE_BYTES);
    let (leaver, _) = shard.client();
    let (mut heir, name) = shard.client();
    shard.ask(move |scribe, connections| {
        connections.set_merging(scribe.ids[&name], true);
        scribe.will = Some((name, Bytes::from_static(b"gone")));
    });
    drop(leaver);
    assert_eq!(read_exact(&mut heir, 4), b"gone");
}

#[test]
fn timers_fire_once_and_not_before_their_tick() {
    let mut shard = Running::start(QUEUE_BYTES);
    let (_once, once) = shard.client();
    let (_moved, moved) = shard.client();
    let (gone, never) = shard.client();
    let due = shard.ask(move |scribe, connections| {
        let now = connections.now();
        connections.set_timer(scribe.ids[&once], now.after(TICK));
        connections.set_timer(scribe.ids[&never], now.after(TICK));
        connections.set_timer(scribe.ids[&moved], now.after(TICK));
        connections.set_timer(scribe.ids[&moved], now.after(3 * TICK));
        [(once, now.after(TICK)), (moved, now.after(3 * TICK))]
    });
    drop(gone);
    shard.eventually_closed(never);
    // Its slot is taken over before the old timer comes: the new owner hears nothing of it.
    let (_heir, _) = shard.client();
    let fired = shard.eventually("the last timer", move |scribe, _| {
        scribe.fired.iter().any(|&(name, _)| name == moved).then(|| scribe.fired.clone())
    });
    let names: Vec<_> = fired.iter().map(|&(name, _)| name).filter(|&name| name != never).collect();
    assert_eq!(names, [once, moved]);
    for (name, due) in due {
        assert!(
            fired.iter().all(|&(fired, at)| fired != name || at >= due),
            "{fired:?}, {name} is due {due:?}"
        );
    }
}

#[test]
fn ten_thousand_come_and_go_and_their_memory_with_them() {
    let mut shard = Running::start(QUEUE_BYTES);
    // Sockets that nobody is connected to are as quiet as idle clients, and take one descriptor instead of two.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(20_000);
    let count = 10_000.min(limit as usize / 2) as u32;
    for name in 0..count {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let connection = State { name, echoes: false };
        shard.mailbox.send(Mail::Adopt {
            socket: TcpStream::from(OwnedFd::from(socket)),
            read: Bytes::new(),
            connection,
        });
    }
    let slots = shard.ask(move |_, connections| {
        assert_eq!(connections.len(), count as usize);
        connections.slots()
    });
    assert!((count..count + 512).contains(&slots), "{slots} slots");
    shard.ask(|scribe, connections| scribe.ids.values().for_each(|&id| connections.close(id)));
    shard.eventually("all are gone", |_, connections| connections.is_empty().then_some(()));
    let (closed, slots) = shard.ask(|scribe, connections| (scribe.closed.len(), connections.slots()));
    assert_eq!((closed, slots), (count as usize, 0));
    // And it serves as before.
    let mut client = shard.echo_client();
    client.write_all(b"still here").unwrap();
    assert_eq!(read_exact(&mut client, 10), b"still here");
}

#[test]
fn a_peer_that_vanishes_before_it_is_adopted_is_closed_once() {
    let mut shard = Running::start(QUEUE_BYTES);
    let options = SocketOptions { reset_on_close: true, ..SocketOptions::default() };
    let names: Vec<_> = (0..50)
        .map(|round| {
            let (mut client, server) = pair_with(options, None);
            if round % 2 == 0 {
                client.write_all(b"hello").unwrap();
            }
            drop(client);
            shard.adopt(server)
        })
        .collect();
    for name in names {
        assert!(matches!(shard.eventually_closed(name), Closed::Peer | Closed::Failed(_)));
    }
    let (closed, left) = shard.ask(|scribe, connections| (scribe.closed.len(), connections.len()));
    assert_eq!((closed, left), (50, 0));
}

#[test]
fn a_socket_that_cannot_be_polled_is_told_and_closed() {
    let mut shard = Running::start(QUEUE_BYTES);
    // A regular file is refused by epoll; kqueue takes it, and it is at its end at once.
    let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
    rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::NONBLOCK).unwrap();
    let name = shard.adopt(TcpStream::from(OwnedFd::from(file)));
    assert!(matches!(shard.eventually_closed(name), Closed::Peer | Closed::Failed(_)));
    assert_eq!(shard.ask(|scribe, connections| (scribe.ids.len(), connections.len())), (0, 0));
}

#[test]
fn a_stop_ends_the_loop_and_closes_what_it_holds_and_gets() {
    let mut shard = Running::start(QUEUE_BYTES);
    let (mut held, _) = shard.client();
    let mailbox = shard.mailbox.clone();
    shard.stop();
    assert_eq!(read_to_end(&mut held), b"");
    // Whoever still posts does not keep a client waiting.
    let (mut late, socket) = pair();
    mailbox.send(Mail::Adopt { socket, read: Bytes::new(), connection: State { name: 7, echoes: true } });
    assert_eq!(read_to_end(&mut late), b"");
}

#[test]
fn mail_from_many_threads_arrives_whole_and_in_order() {
    let shard = Running::start(QUEUE_BYTES);
    thread::scope(|scope| {
        for sender in 0..4u8 {
            let shard = &shard;
            // Each answer is waited for: a wake-up that is lost stops the test, with nothing else to wake it.
            scope.spawn(move || {
                (0..2000u32).for_each(|_| {
                    shard.ask(move |scribe, _| {
                        scribe.received.entry(u32::from(sender)).or_default().push(sender);
                    })
                })
            });
        }
    });
    let counts =
        shard.ask(|scribe, _| (0..4).map(|sender| scribe.received[&sender].len()).collect::<Vec<_>>());
    assert_eq!(counts, [2000; 4]);
}

#[test]
fn an_idle_shard_takes_no_turns() {
    let mut shard = Running::start(QUEUE_BYTES);
    shard.ask(|scribe, _| scribe.pauses = true);
    let (mut client, name) = shard.client();
    client.write_all(b"unread while paused").unwrap();
    shut(&client);
    let turns = shard.ask(move |scribe, connections| {
        connections.set_timer(scribe.ids[&name], connections.now().after(Duration::from_secs(600)));
        scribe.turns
    });
    // Its own clock: 8 ticks, each of which may wake it, as may each question.
    let start = shard.ask(|_, connections| connections.now());
    let mut questions = 0;
    let (ticks, turns) = eventually_some("eight ticks", DEADLINE, || {
        questions += 1;
        let (now, turns_now) = shard.ask(|scribe, connections| (connections.now(), scribe.turns));
        (now.0 >= start.0 + 8).then_some((u64::from(now.0 - start.0), turns_now - turns))
    });
    assert!(turns <= ticks + 2 * questions + 8, "{turns} turns for {questions} questions in {ticks} ticks");
}

/// The attacker's cost: whatever one connection sends at once, it has one part in a turn, and the others' come first.
#[test]
fn what_is_beyond_a_part_comes_in_later_turns() {
    let mut shard = Running::start(QUEUE_BYTES);
    shard.ask(|scribe, _| scribe.share = Some(100));
    let (mut client, name) = shard.client();
    let sent = pattern(60_000);
    client.write_all(&sent).unwrap();
    shut(&client);
    assert_eq!(shard.eventually_closed(name), Closed::Peer);
    let (received, reads, turns) =
        shard.ask(move |scribe, _| (scribe.received[&name].clone(), scribe.reads[&name].1, scribe.turns));
    assert!(received == sent, "whole and in order");
    assert_eq!(reads, 1, "a part a turn");
    assert!(turns >= 600, "{turns}");
    shard.stop();
}

#[test]
fn a_rest_waits_for_the_tick() {
    let mut shard = Running::start(QUEUE_BYTES);
    shard.ask(|scribe, _| (scribe.share, scribe.rests_until_tick) = (Some(100), true));
    let (mut client, name) = shard.client();
    client.write_all(&pattern(300)).unwrap();
    let part = |bytes: usize| {
        shard.eventually("a part has come", move |scribe, connections| {
            (scribe.received[&name].len() >= bytes).then_some(connections.now())
        })
    };
    let (first, last) = (part(100), part(300));
    assert!(last.0 > first.0, "{first:?} {last:?}");
    assert_eq!(shard.ask(move |scribe, _| scribe.received[&name].clone()), pattern(300));
    shard.stop();
}

/// Whose answers wait for its socket is handed nothing more, what was read before included.
#[test]
fn a_rest_waits_for_who_does_not_read() {
    let mut shard = Running::start(QUEUE_BYTES);
    shard.ask(|scribe, _| scribe.share = Some(100));
    let (mut client, server) = narrow_pair();
    let name = shard.adopt(server);
    shard.ask(move |scribe, connections| {
        let id = scribe.ids[&name];
        connections.give_back(id, &pattern(300));
        connections.write_beyond_bound(id, &pattern(1_000_000));
        connections.pause_until_flushed(id);
    });
    let mut other = shard.echo_client();
    other.write_all(b"!").unwrap();
    read_exact(&mut other, 1);
    assert_eq!(shard.ask(move |scribe, _| scribe.received[&name].len()), 0);
    read_exact(&mut client, 1_000_000);
    shard.eventually("the rest comes", move |scribe, _| {
        (scribe.received[&name] == pattern(300)).then_some(())
    });
    shard.stop();
}

#[test]
fn answers_to_one_read_are_one_write() {
    let mut shard = Running::start(QUEUE_BYTES);
    shard.ask(|scribe, _| scribe.answers_each = true);
    let (mut client, _) = shard.client();
    let before = shard.ask(|_, connections| connections.counters().writes);
    client.write_all(b"a thousand pings").unwrap();
    assert_eq!(read_exact(&mut client, 16), b"a thousand pings");
    assert_eq!(shard.ask(|_, connections| connections.counters().writes) - before, 1);
    shard.stop();
}
