//! TLS in a shard over real sockets: rustls clients, slow and hurried, honest and not.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod support;

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::Arc,
    thread,
};

use bytes::Bytes;
use rustls::{
    ClientConfig, SupportedProtocolVersion,
    version::{TLS12, TLS13},
};
use support::{Name, Running, message, narrow_pair, pair, pattern};
use tidegate_reactor::{Closed, Overflow, RECORD_BYTES_MAX, TlsSession, Written};
use tidegate_testkit::tls::{Authority, TlsStream, client_session, close_notify, read_to_close, wrap_tls};

const QUEUE_BYTES: usize = 64 * 1024;

/// A shard that speaks TLS, and what its clients need.
struct Secure {
    shard: Running,
    client: Arc<ClientConfig>,
}

impl Secure {
    fn start(version: &'static SupportedProtocolVersion) -> Self {
        let authority = Authority::new();
        let shard = Running::start_tls(QUEUE_BYTES, authority.issue(2050).server_config(&[version]));
        Self { shard, client: Arc::new(authority.client_config(&[version])) }
    }

    /// A client whose handshake is complete.
    fn connect(&mut self, sockets: (TcpStream, TcpStream), echoes: bool) -> (TlsStream, Name) {
        let name = self.shard.adopt_read(sockets.1, b"", echoes);
        (wrap_tls(sockets.0, &self.client).unwrap(), name)
    }

    fn counters(&self) -> (u64, u64, u64) {
        self.shard.ask(|_, connections| {
            let counters = connections.counters();
            (counters.tls_handshakes, counters.tls_resumed, counters.tls_failures)
        })
    }
}

#[test]
fn large_messages_come_back_as_they_went() {
    for version in [&TLS12, &TLS13] {
        let mut secure = Secure::start(version);
        let (mut client, name) = secure.connect(pair(), true);
        for bytes in [1, 100, 16_384, 16_385, 300_000] {
            let words = pattern(bytes);
            client.write_all(&words).unwrap();
            let mut back = vec![0; bytes];
            client.read_exact(&mut back).unwrap();
            assert!(back == words, "{bytes} bytes");
        }
        close_notify(&mut client);
        assert_eq!(read_to_close(&mut client), (Vec::new(), true), "an end is answered with an end");
        assert_eq!(secure.shard.eventually_closed(name), Closed::Peer);
        assert_eq!(secure.counters(), (1, 0, 0));
        secure.shard.stop();
    }
}

/// The sender is blocked by its own echo until the receiver reads: both directions move at once.
#[test]
fn megabytes_go_both_ways_through_a_narrow_connection() {
    let mut secure = Secure::start(&TLS13);
    let (client, _) = secure.connect(narrow_pair(), true);
    let words = pattern(3_000_000);
    let TlsStream { conn, sock } = client;
    let mut stream = TlsStream { conn, sock };
    stream.sock.set_nonblocking(true).unwrap();
    let (mut sent, mut back) = (0, Vec::new());
    let mut buffer = vec![0; 64 * 1024];
    tidegate_testkit::eventually("everything is back", tidegate_testkit::DEADLINE, || {
        for _ in 0..200 {
            if sent < words.len()
                && let Ok(count) = stream.write(&words[sent..])
            {
                sent += count;
            }
            if let Ok(count) = stream.read(&mut buffer) {
                back.extend_from_slice(&buffer[..count]);
            }
        }
        back.len() == words.len()
    });
    assert!(back == words);
}

#[test]
fn a_handshake_that_trickles_in_is_waited_for() {
    let mut secure = Secure::start(&TLS13);
    let (client, server) = pair();
    let name = secure.shard.adopt(server);
    let mut session = client_session(&secure.client);
    let mut socket = client;
    let mut hello = Vec::new();
    session.write_tls(&mut hello).unwrap();
    for byte in hello {
        socket.write_all(&[byte]).unwrap();
    }
    let mut stream = TlsStream::new(session, socket);
    stream.write_all(b"hello").unwrap();
    stream.flush().unwrap();
    secure
        .shard
        .eventually("it is read", move |scribe, _| (scribe.received[&name] == b"hello").then_some(()));
}

#[test]
fn what_is_not_tls_is_told_so_and_counted() {
    let mut secure = Secure::start(&TLS13);
    let (mut client, server) = pair();
    let name = secure.shard.adopt(server);
    client.write_all(b"GET /ws HTTP/1.1\r\nhost: h\r\n\r\n").unwrap();
    let mut alert = Vec::new();
    client.read_to_end(&mut alert).unwrap();
    assert_eq!(alert[0], 21, "an alert: {alert:?}");
    assert_eq!(secure.shard.eventually_closed(name), Closed::Tls);
    assert_eq!(secure.counters(), (0, 0, 1));
    let received = secure.shard.ask(move |scribe, _| scribe.received[&name].clone());
    assert!(received.is_empty(), "the driver sees no ciphertext");
}

#[test]
fn a_second_connection_resumes() {
    for version in [&TLS12, &TLS13] {
        let mut secure = Secure::start(version);
        for _ in 0..2 {
            let (mut client, _) = secure.connect(pair(), true);
            client.write_all(b"x").unwrap();
            client.read_exact(&mut [0]).unwrap();
        }
        assert_eq!(secure.counters(), (2, 1, 0));
    }
}

#[test]
fn what_is_written_before_the_handshake_waits_for_it() {
    let mut secure = Secure::start(&TLS13);
    let (client, server) = pair();
    let name = secure.shard.adopt(server);
    secure.shard.ask(move |scribe, connections| {
        let id = scribe.ids[&name];
        assert_eq!(connections.write(id, b"patience"), Written::Queued);
        connections.shut_when_flushed(id);
    });
    let mut client = wrap_tls(client, &secure.client).unwrap();
    assert_eq!(read_to_close(&mut client), (b"patience".to_vec(), true));
    drop(client);
    assert_eq!(secure.shard.eventually_closed(name), Closed::Peer);
}

#[test]
fn last_words_arrive_with_their_end() {
    for shuts in [false, true] {
        let mut secure = Secure::start(&TLS13);
        let (mut client, name) = secure.connect(narrow_pair(), false);
        let words = pattern(1_000_000);
        let last = words.clone();
        secure.shard.ask(move |scribe, connections| {
            let id = scribe.ids[&name];
            assert_eq!(connections.write_beyond_bound(id, &last), Written::Queued);
            match shuts {
                true => connections.shut_when_flushed(id),
                false => connections.close_when_flushed(id),
            }
        });
        let (read, announced) = read_to_close(&mut client);
        assert!(read == words && announced, "shuts: {shuts}, {} bytes, announced: {announced}", read.len());
        drop(client);
        assert!(matches!(secure.shard.eventually_closed(name), Closed::Local | Closed::Peer));
    }
}

/// Without its close_notify a stream was cut; what came before is still the driver's.
#[test]
fn a_peer_that_vanishes_leaves_its_words() {
    let mut secure = Secure::start(&TLS13);
    let (mut client, name) = secure.connect(pair(), false);
    client.write_all(b"last").unwrap();
    client.flush().unwrap();
    client.sock.shutdown(Shutdown::Write).unwrap();
    assert_eq!(secure.shard.eventually_closed(name), Closed::Peer);
    assert_eq!(secure.shard.ask(move |scribe, _| scribe.received[&name].clone()), b"last");
}

#[test]
fn a_paused_connection_is_read_later() {
    let mut secure = Secure::start(&TLS13);
    let (mut client, name) = secure.connect(pair(), false);
    secure.shard.ask(move |scribe, connections| connections.set_paused(scribe.ids[&name], true));
    client.write_all(&pattern(100_000)).unwrap();
    client.flush().unwrap();
    secure.shard.ask(move |scribe, connections| {
        assert!(scribe.received[&name].is_empty());
        connections.set_paused(scribe.ids[&name], false);
    });
    secure.shard.eventually("it is read", move |scribe, _| {
        (scribe.received[&name] == pattern(100_000)).then_some(())
    });
}

#[test]
fn a_slow_session_does_not_hold_up_a_fast_one() {
    let mut secure = Secure::start(&TLS13);
    let (_slow, slow) = secure.connect(narrow_pair(), false);
    let (mut fast, name) = secure.connect(pair(), false);
    let words = Bytes::from(pattern(20_000));
    secure.shard.ask(move |scribe, connections| {
        for _ in 0..20 {
            connections.write_shared(scribe.ids[&slow].slot, &message(&words, Overflow::Drop));
        }
        assert!(connections.queued_bytes(scribe.ids[&slow]) <= QUEUE_BYTES + RECORD_BYTES_MAX);
        for _ in 0..3 {
            connections.write_shared(scribe.ids[&name].slot, &message(&words, Overflow::Disconnect));
        }
    });
    for _ in 0..3 {
        let mut read = vec![0; 20_000];
        fast.read_exact(&mut read).unwrap();
        assert!(read == pattern(20_000));
    }
}

/// STARTTLS by the driver: what it read behind its own preamble is the session's beginning.
#[test]
fn a_session_may_begin_after_other_bytes() {
    let authority = Authority::new();
    let mut shard = Running::start(QUEUE_BYTES);
    let config = Arc::new(authority.issue(2050).server_config(&[&TLS13]));
    let (mut socket, server) = pair();
    let name = shard.adopt(server);
    let mut session = client_session(&Arc::new(authority.client_config(&[&TLS13])));
    let mut first = b"preamble ".to_vec();
    session.write_tls(&mut first).unwrap();
    socket.write_all(&first).unwrap();
    let whole = first.len();
    shard.eventually("all of it has come", move |scribe, _| {
        (scribe.received[&name].len() == whole).then_some(())
    });
    shard.ask(move |scribe, connections| {
        let read = std::mem::take(scribe.received.get_mut(&name).unwrap());
        assert_eq!(&read[..9], b"preamble ");
        let session = TlsSession::new(config, &read[9..]).unwrap();
        connections.start_tls(scribe.ids[&name], Box::new(session));
    });
    let mut stream = TlsStream::new(session, socket);
    stream.write_all(b"hello").unwrap();
    stream.flush().unwrap();
    shard.eventually("it is read", move |scribe, _| (scribe.received[&name] == b"hello").then_some(()));
}

#[test]
fn a_session_moves_to_another_shard() {
    let mut secure = Secure::start(&TLS13);
    let mut to = Running::start(QUEUE_BYTES);
    // Between the adoption and the session, which are two orders here, "two" must not be taken for plaintext.
    to.ask(|scribe, _| scribe.pauses = true);
    let (mut client, name) = secure.connect(narrow_pair(), false);
    client.write_all(b"one, ").unwrap();
    client.flush().unwrap();
    secure
        .shard
        .eventually("it is read", move |scribe, _| (scribe.received[&name] == b"one, ").then_some(()));
    let words = pattern(400_000);
    let last = words.clone();
    let released = secure.shard.ask(move |scribe, connections| {
        let id = scribe.ids.remove(&name).unwrap();
        assert_eq!(connections.write_beyond_bound(id, &last), Written::Queued);
        connections.release(id).unwrap().unwrap()
    });
    client.write_all(b"two").unwrap();
    client.flush().unwrap();
    let (session, unsent) = (released.tls.unwrap(), released.unsent);
    assert!(!session.unsent().is_empty(), "a record is under way");
    let name = to.adopt(released.socket);
    to.ask(move |scribe, connections| {
        let id = scribe.ids[&name];
        connections.start_tls(id, session);
        assert!(unsent.iter().all(|bytes| connections.write_beyond_bound(id, bytes) != Written::Closed));
        connections.set_paused(id, false);
    });
    let mut read = vec![0; words.len()];
    client.read_exact(&mut read).unwrap();
    assert!(read == words);
    to.eventually("it is read", move |scribe, _| (scribe.received[&name] == b"two").then_some(()));
}

/// Many at once, each with its own words, so that the shared buffers never mix two sessions.
#[test]
fn sessions_do_not_mix() {
    let mut secure = Secure::start(&TLS13);
    let clients: Vec<_> = (0..8_u32)
        .map(|index| {
            let (mut client, _) = secure.connect(pair(), true);
            thread::spawn(move || {
                for round in 0..50_u32 {
                    let words = [index, round].map(u32::to_be_bytes).concat().repeat(700);
                    client.write_all(&words).unwrap();
                    let mut back = vec![0; words.len()];
                    client.read_exact(&mut back).unwrap();
                    assert!(back == words, "client {index}, round {round}");
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
}
