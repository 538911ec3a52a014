//! Slow readers, to the message: what was published was received or counted as dropped, in order; and goodbyes.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
    thread,
};

use bytes::{BufMut, Bytes, BytesMut};
use rustls::version::TLS13;
use support::{Name, Running, lost, narrow_pair, pattern, read_exact, read_to_end, shut};
use tidegate_reactor::{Closed, Mail, Overflow, RECORD_BYTES_MAX, Shared, Written};
use tidegate_testkit::tls::{Authority, wrap_tls};

const QUEUE_BYTES: usize = 64 * 1024;

/// A message: its key, its number, filling.
const MESSAGE_BYTES: usize = 1000;

fn put_message(out: &mut BytesMut, key: u32, number: u32) {
    out.put_u32(key);
    out.put_u32(number);
    out.put_bytes(b'.', MESSAGE_BYTES - 8);
}

/// Key and number of a message that arrived.
type Got = (u32, u32);

fn parse_messages(bytes: &[u8]) -> Vec<Got> {
    assert_eq!(bytes.len() % MESSAGE_BYTES, 0, "only whole messages arrive");
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
    let messages = bytes.chunks(MESSAGE_BYTES);
    messages
        .map(|message| {
            assert!(message[8..].iter().all(|&byte| byte == b'.'), "a message is broken");
            (number(&message[..4]), number(&message[4..8]))
        })
        .collect()
}

/// What one round of publishing came to.
#[derive(Debug, Default)]
struct Tally {
    published: u64,
    dropped: u64,
    closed: bool,
}

/// Publishes batches of one to five messages, 200 messages in one turn; the numbers of each key count up.
fn publish_round(shard: &Running, name: Name, round: u32, keys: u32, overflow: Overflow) -> Tally {
    shard.ask(move |scribe, connections| {
        let mut tally = Tally::default();
        let Some(&id) = scribe.ids.get(&name) else { return Tally { closed: true, ..tally } };
        for batch in 0..200 / 5 {
            let (size, key) = (1 + batch % 5, batch % keys);
            let mut out = BytesMut::new();
            for at in 0..size {
                put_message(&mut out, key, round * 1000 + batch * 5 + at);
            }
            let last_at = out.len() - MESSAGE_BYTES;
            let shared = Shared { head: &[], bytes: &out.freeze(), messages: size, last_at, key, overflow };
            let written = connections.write_shared(id.slot, &shared);
            let bound = QUEUE_BYTES + shared.bytes.len() + RECORD_BYTES_MAX;
            assert!(connections.queued_bytes(id) <= bound, "the queue is bounded");
            tally.closed |= written == Written::Closed;
            tally.published += u64::from(size);
            tally.dropped += lost(written, size);
        }
        tally
    })
}

/// What lies between a shard and its client.
#[derive(Debug, Clone, Copy)]
enum Layer {
    Tcp,
    Tls,
}

const LAYERS: [Layer; 2] = [Layer::Tcp, Layer::Tls];

impl Layer {
    /// A shard with one client, whose connection holds little.
    fn connect(self) -> (Running, Name, Box<dyn Read + Send>) {
        let (client, server) = narrow_pair();
        match self {
            Self::Tcp => {
                let mut shard = Running::start(QUEUE_BYTES);
                let name = shard.adopt(server);
                (shard, name, Box::new(client))
            }
            Self::Tls => {
                let authority = Authority::new();
                let config = authority.issue(2050).server_config(&[&TLS13]);
                let mut shard = Running::start_tls(QUEUE_BYTES, config);
                let name = shard.adopt(server);
                let client = wrap_tls(client, &Arc::new(authority.client_config(&[&TLS13]))).unwrap();
                (shard, name, Box::new(client))
            }
        }
    }
}

/// A reader that takes 32 KiB for every 120 KB published, and in the end everything.
fn slow_reader(
    overflow: Overflow,
    keys: u32,
    merges: bool,
    layer: Layer,
) -> (Vec<Got>, Tally, Vec<(Name, u64)>) {
    let (shard, name, mut client) = layer.connect();
    shard.ask(move |scribe, connections| connections.set_merging(scribe.ids[&name], merges));
    let (mut total, mut received) = (Tally::default(), Vec::new());
    for round in 0..60 {
        let tally = publish_round(&shard, name, round, keys, overflow);
        total.published += tally.published;
        total.dropped += tally.dropped;
        total.closed |= tally.closed;
        let mut portion = vec![0; 32 * 1024];
        let count = client.read(&mut portion).expect("something waits");
        received.extend_from_slice(&portion[..count]);
        if tally.closed {
            break;
        }
    }
    let reading = thread::spawn(move || {
        let mut rest = Vec::new();
        // One that overflowed is cut off: what came before is what counts.
        let ended = client.read_to_end(&mut rest);
        (rest, ended.is_ok())
    });
    if !total.closed {
        shard.eventually("the queue is empty", move |scribe, connections| {
            (connections.queued_bytes(scribe.ids[&name]) == 0).then_some(())
        });
    }
    let recovered = shard.ask(|scribe, _| scribe.recovered.clone());
    let queued = shard.ask(move |scribe, connections| {
        if let Some(&id) = scribe.ids.get(&name) {
            connections.close_when_flushed(id);
        }
        connections.counters().queued_bytes
    });
    assert_eq!(queued, 0, "nothing waits, nothing is counted");
    let closed = shard.eventually_closed(name);
    assert_eq!(closed, if total.closed { Closed::Overflow } else { Closed::Local });
    received.extend_from_slice(&reading.join().unwrap().0);
    if total.closed {
        received.truncate(received.len() / MESSAGE_BYTES * MESSAGE_BYTES);
    }
    shard.stop();
    (parse_messages(&received), total, recovered)
}

#[track_caller]
fn check_order(received: &[Got], keys: u32) {
    for key in 0..keys {
        let numbers: Vec<u32> = received.iter().filter(|got| got.0 == key).map(|got| got.1).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "key {key} is out of order or repeated");
    }
}

#[track_caller]
fn check_accounts(received: &[Got], total: &Tally, recovered: &[(Name, u64)], keys: u32) {
    check_order(received, keys);
    assert!(total.dropped > 0 && !total.closed, "{total:?}: the reader was not slow");
    assert_eq!(received.len() as u64 + total.dropped, total.published);
    assert_eq!(recovered.iter().map(|told| told.1).sum::<u64>(), total.dropped, "every drop is told");
}

#[test]
fn drop_loses_the_new_ones_and_says_how_many() {
    for (merges, layer) in [false, true].into_iter().flat_map(|merges| LAYERS.map(|layer| (merges, layer))) {
        let (received, total, recovered) = slow_reader(Overflow::Drop, 3, merges, layer);
        check_accounts(&received, &total, &recovered, 3);
    }
}

#[test]
fn latest_always_ends_with_the_newest_of_every_key() {
    for (merges, layer) in [false, true].into_iter().flat_map(|merges| LAYERS.map(|layer| (merges, layer))) {
        let (received, total, recovered) = slow_reader(Overflow::Latest, 4, merges, layer);
        check_accounts(&received, &total, &recovered, 4);
        for key in 0..4 {
            // The last batch of a key in a round is 36 to 39: its last message is what everyone must end with.
            let batch = 36 + key;
            let newest = 59 * 1000 + batch * 5 + batch % 5;
            let last = received.iter().rfind(|got| got.0 == key);
            assert_eq!(last, Some(&(key, newest)), "merges: {merges}, {layer:?}");
        }
    }
}

#[test]
fn disconnect_delivers_a_whole_beginning_and_closes() {
    for layer in LAYERS {
        let (received, total, recovered) = slow_reader(Overflow::Disconnect, 1, false, layer);
        check_order(&received, 1);
        assert!(total.closed && recovered.is_empty());
        let mut expected = (0..).flat_map(|round| {
            (0..40).flat_map(move |batch| (0..1 + batch % 5).map(move |at| round * 1000 + batch * 5 + at))
        });
        let whole = received.iter().all(|got| Some(got.1) == expected.next());
        assert!(whole, "something is missing in between ({layer:?})");
    }
}

#[test]
fn a_flood_of_small_answers_ends_at_the_bound() {
    let mut shard = Running::start(QUEUE_BYTES);
    let (_client, server) = narrow_pair();
    let name = shard.adopt(server);
    let queued = shard.ask(move |scribe, connections| {
        let id = scribe.ids[&name];
        connections.write_beyond_bound(id, &pattern(1_000_000));
        let before = connections.queued_bytes(id);
        let mut most = before;
        while connections.write(id, &[0x8A, 0]) != Written::Closed {
            most = connections.queued_bytes(id);
        }
        most - before
    });
    // Two bytes each, counted with what they hold: far fewer than the bound has room for by their bytes.
    assert!((1000..16 * 1024).contains(&queued), "{queued} bytes of pongs");
    assert_eq!(shard.eventually_closed(name), Closed::Overflow);
    assert_eq!(shard.ask(|_, connections| connections.counters().queued_bytes), 0);
}

/// A peer that never reads, but is gone when its queue is half sent: counts come back to zero.
#[test]
fn a_failed_write_leaves_no_bytes_counted() {
    let mut shard = Running::start(QUEUE_BYTES);
    for _ in 0..20 {
        let (mut client, server) = narrow_pair();
        let name = shard.adopt(server);
        shard.ask(move |scribe, connections| {
            connections.write_beyond_bound(scribe.ids[&name], &pattern(500_000));
        });
        read_exact(&mut client, 100_000);
        // Unread bytes make it a reset.
        drop(client);
        assert!(matches!(shard.eventually_closed(name), Closed::Failed(_) | Closed::Peer));
    }
    assert_eq!(shard.ask(|_, connections| connections.counters().queued_bytes), 0);
}

/// Sends until nobody listens any more.
fn keep_sending(client: &TcpStream) -> thread::JoinHandle<()> {
    let mut client = client.try_clone().unwrap();
    thread::spawn(move || while client.write_all(&[b'x'; 4096]).is_ok() {})
}

#[test]
fn last_words_arrive_although_the_peer_still_sends() {
    for paused in [false, true] {
        let mut shard = Running::start(QUEUE_BYTES);
        let (mut client, server) = narrow_pair();
        let name = shard.adopt(server);
        let sending = keep_sending(&client);
        let words = pattern(1_000_000);
        let last = words.clone();
        shard.ask(move |scribe, connections| {
            let id = scribe.ids[&name];
            connections.set_paused(id, paused);
            connections.write_beyond_bound(id, &last);
            connections.shut_when_flushed(id);
            assert_eq!(connections.write(id, b"after the last word"), Written::Closed);
        });
        assert!(read_to_end(&mut client) == words);
        // The peer's own end ends it, not the shard's.
        assert!(shard.ask(move |scribe, _| scribe.ids.contains_key(&name)));
        client.shutdown(std::net::Shutdown::Both).unwrap();
        sending.join().unwrap();
        assert!(matches!(shard.eventually_closed(name), Closed::Peer | Closed::Failed(_)));
    }
}

#[test]
fn one_that_has_said_all_still_gets_its_last_words() {
    for waits_for_peer in [false, true] {
        let mut shard = Running::start(QUEUE_BYTES);
        let (mut client, server) = narrow_pair();
        let name = shard.adopt(server);
        let words = pattern(1_000_000);
        let last = words.clone();
        shard.ask(move |scribe, connections| {
            let id = scribe.ids[&name];
            connections.write_beyond_bound(id, &last);
            match waits_for_peer {
                true => connections.shut_when_flushed(id),
                false => connections.close_when_flushed(id),
            }
        });
        client.write_all(b"bye").unwrap();
        shut(&client);
        shard.eventually("the bye was read", move |scribe, _| {
            (scribe.received[&name] == b"bye").then_some(())
        });
        assert!(read_to_end(&mut client) == words);
        assert!(matches!(shard.eventually_closed(name), Closed::Local | Closed::Peer));
    }
}

#[test]
fn a_close_after_a_shut_does_not_wait_for_the_peer() {
    let mut shard = Running::start(QUEUE_BYTES);
    let (mut client, name) = shard.client();
    shard.ask(move |scribe, connections| {
        let id = scribe.ids[&name];
        connections.shut_when_flushed(id);
        connections.close_when_flushed(id);
    });
    assert_eq!(shard.eventually_closed(name), Closed::Local);
    assert_eq!(read_to_end(&mut client), b"");
}

#[test]
fn what_is_reserved_gets_everything_when_its_socket_comes() {
    let shard = Running::start(QUEUE_BYTES);
    for shuts in [false, true] {
        let (mut client, server) = support::pair();
        shard.ask(move |scribe, connections| {
            let id = connections.reserve(support::State { name: 1, echoes: false });
            scribe.ids.insert(1, id);
            if !shuts {
                assert_eq!(connections.write(id, b"early, "), Written::Queued);
            }
            connections.shut_when_flushed(id);
            assert!(connections.release(id).unwrap().is_none(), "nothing to release");
            connections.attach(id, server).unwrap();
        });
        assert_eq!(read_to_end(&mut client), if shuts { &b""[..] } else { b"early, " });
        drop(client);
        assert_eq!(shard.eventually_closed(1), Closed::Peer);
        shard.ask(|scribe, _| scribe.closed.clear());
    }
}

#[test]
fn a_connection_moves_to_another_shard_with_all_its_bytes() {
    let mut from = Running::start(QUEUE_BYTES);
    let to = Running::start(4 * QUEUE_BYTES);
    let (mut client, server) = narrow_pair();
    let name = from.adopt_read(server, b"read before, ", false);
    client.write_all(b"read here").unwrap();
    from.eventually("both are read", move |scribe, _| {
        (scribe.received[&name] == b"read before, read here").then_some(())
    });
    let (written, released) = from.ask(move |scribe, connections| {
        let id = scribe.ids.remove(&name).unwrap();
        let message = Bytes::from(pattern(MESSAGE_BYTES));
        let shared =
            Shared { head: &[], bytes: &message, messages: 1, last_at: 0, key: 0, overflow: Overflow::Drop };
        let dropped: u64 = (0..2000).map(|_| lost(connections.write_shared(id.slot, &shared), 1)).sum();
        let released = connections.release(id).unwrap().unwrap();
        assert_eq!((connections.len(), connections.counters().queued_bytes), (0, 0));
        assert_eq!(released.dropped, dropped, "nobody was told yet");
        assert!(connections.release(id).unwrap().is_none(), "released once");
        (2000 - dropped, released)
    });
    client.write_all(b"and then here").unwrap();
    to.mailbox.send(Mail::Adopt {
        socket: released.socket,
        read: Bytes::from_static(b"left over, "),
        connection: released.connection,
    });
    let unsent = released.unsent;
    to.ask(move |scribe, connections| {
        let id = scribe.ids[&name];
        assert!(unsent.iter().all(|bytes| connections.write(id, bytes) != Written::Closed));
        connections.close_when_flushed(id);
    });
    let expected: Vec<u8> = (0..written).flat_map(|_| pattern(MESSAGE_BYTES)).collect();
    to.eventually("what was unread is read", move |scribe, _| {
        (scribe.received[&name] == b"left over, and then here").then_some(())
    });
    assert!(read_to_end(&mut client) == expected);
    assert_eq!(to.eventually_closed(name), Closed::Local);
    from.stop();
    to.stop();
}
