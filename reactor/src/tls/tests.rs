//! Sessions against rustls' client, without sockets.

#![allow(clippy::unwrap_used)]

use std::{
    io::{Read, Write},
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, Error, ServerConfig, SupportedProtocolVersion,
    version::{TLS12, TLS13},
};
use tidegate_testkit::tls::{Authority, client_session};

use super::{RECORD_BYTES_MAX, TlsSession, session::SCRATCH_BYTES};

/// A client and a server; bytes go from one to the other when a test says so.
struct Pair {
    client: ClientConnection,
    server: TlsSession,
    /// What the server has read.
    plaintext: Vec<u8>,
}

struct Configs {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

const BOTH: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

impl Configs {
    fn new(version: &'static SupportedProtocolVersion) -> Self {
        let authority = Authority::new();
        let server = authority.issue(2050).server_config(&[version]);
        Self { client: Arc::new(authority.client_config(&[version])), server: Arc::new(server) }
    }

    fn pair(&self) -> Pair {
        let server = TlsSession::new(Arc::clone(&self.server), &[]).unwrap();
        Pair { client: client_session(&self.client), server, plaintext: Vec::new() }
    }

    fn open_pair(&self) -> Pair {
        let mut pair = self.pair();
        pair.shake_hands(usize::MAX).unwrap();
        pair
    }
}

impl Pair {
    /// What the client has to send.
    fn flight(&mut self) -> Vec<u8> {
        let mut flight = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut flight).unwrap();
        }
        flight
    }

    /// Gives bytes to the server, at most `portion` at once.
    fn feed_server(&mut self, bytes: &[u8], portion: usize) -> Result<(), Error> {
        for portion in bytes.chunks(portion.min(16 * 1024)) {
            let mut buffer = vec![0; 64 * 1024];
            let held = self.server.lay_out(&mut buffer);
            let end = held + portion.len();
            buffer[held..end].copy_from_slice(portion);
            self.server.receive(&mut buffer[..end], &mut self.plaintext)?;
        }
        Ok(())
    }

    /// Gives the client what the server has to send.
    fn tell_client(&mut self) -> Result<(), Error> {
        let unsent = self.server.unsent().to_vec();
        self.server.sent(unsent.len());
        self.feed_client(&unsent)
    }

    fn feed_client(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            self.client.read_tls(&mut bytes).unwrap();
            self.client.process_new_packets()?;
        }
        Ok(())
    }

    fn shake_hands(&mut self, portion: usize) -> Result<(), Error> {
        while self.client.is_handshaking() || !self.server.is_open() {
            let flight = self.flight();
            self.feed_server(&flight, portion)?;
            self.tell_client()?;
        }
        self.tell_client()
    }

    /// Bytes of the server, as the client reads them.
    fn say(&mut self, plaintext: &[u8]) -> Vec<u8> {
        let mut heard = Vec::new();
        let mut rest = plaintext;
        let mut record = vec![0; SCRATCH_BYTES];
        while !rest.is_empty() {
            let (taken, bytes) = self.server.encrypt(rest, &mut record).unwrap().unwrap();
            self.tell_client().unwrap();
            self.feed_client(&record[..bytes]).unwrap();
            let before = heard.len();
            heard.resize(before + taken, 0);
            self.client.reader().read_exact(&mut heard[before..]).unwrap();
            rest = &rest[taken..];
        }
        heard
    }

    /// Bytes of the client, as the server reads them.
    fn hear(&mut self, plaintext: &[u8], portion: usize) -> Vec<u8> {
        for part in plaintext.chunks(16 * 1024) {
            self.client.writer().write_all(part).unwrap();
            let flight = self.flight();
            self.feed_server(&flight, portion).unwrap();
        }
        std::mem::take(&mut self.plaintext)
    }
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes as u32).step_by(4).flat_map(u32::to_be_bytes).take(bytes).collect()
}

#[test]
fn a_handshake_may_come_in_any_portions() {
    for version in BOTH {
        let configs = Configs::new(version);
        for portion in (1..40).chain([100, 500, usize::MAX]) {
            let mut pair = configs.pair();
            pair.shake_hands(portion).unwrap();
            assert_eq!(pair.client.protocol_version(), Some(version.version));
            assert_eq!(pair.hear(b"hello", 1), b"hello", "{portion}");
            assert_eq!(pair.say(b"world"), b"world", "{portion}");
        }
    }
}

#[test]
fn a_client_hello_may_be_cut_at_every_byte() {
    let configs = Configs::new(&TLS13);
    let hello = configs.pair().flight().len();
    for cut in 1..hello {
        let mut pair = configs.pair();
        let flight = pair.flight();
        pair.feed_server(&flight[..cut], usize::MAX).unwrap();
        assert!(pair.server.unsent().is_empty(), "nothing is answered before the end");
        pair.feed_server(&flight[cut..], usize::MAX).unwrap();
        pair.tell_client().unwrap();
        pair.shake_hands(usize::MAX).unwrap();
    }
}

#[test]
fn what_was_read_before_the_session_belongs_to_it() {
    let configs = Configs::new(&TLS13);
    let mut pair = configs.pair();
    let flight = pair.flight();
    pair.server = TlsSession::new(Arc::clone(&configs.server), &flight[..100]).unwrap();
    assert!(pair.server.is_fresh());
    pair.feed_server(&flight[100..], 1).unwrap();
    pair.tell_client().unwrap();
    pair.shake_hands(usize::MAX).unwrap();
}

#[test]
fn large_messages_arrive_whole_both_ways() {
    for version in BOTH {
        let mut pair = Configs::new(version).open_pair();
        let bytes = pattern(300_001);
        assert!(pair.say(&bytes) == bytes);
        for portion in [7, 1000, 16 * 1024] {
            assert!(pair.hear(&bytes, portion) == bytes, "{portion}");
        }
        assert_eq!(pair.server.held.capacity(), 0, "nothing is held of whole records");
        assert_eq!(pair.server.unsent.capacity(), 0);
    }
}

#[test]
fn a_second_session_resumes_the_first() {
    for version in BOTH {
        let configs = Configs::new(version);
        let mut first = configs.open_pair();
        assert!(!first.server.is_resumed());
        first.say(b"the tickets of TLS 1.3 come with the first bytes");
        let second = configs.open_pair();
        assert!(second.server.is_resumed(), "{version:?}");
        assert_eq!(second.client.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    }
}

#[test]
fn what_is_not_tls_is_answered_with_an_alert() {
    let configs = Configs::new(&TLS13);
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[0xFF; 64], b"\x16\x03\x01\x00\x04\x02\x00\x00\x00"]
    {
        let mut pair = configs.pair();
        pair.feed_server(garbage, usize::MAX).unwrap_err();
        // An alert of the level 'fatal' (RFC 8446 section 6).
        assert_eq!(pair.server.unsent().first(), Some(&21), "{garbage:?}");
        assert_eq!(pair.server.unsent()[5], 2, "{garbage:?}");
        assert!(!pair.server.is_open());
    }
}

#[test]
fn a_version_that_is_too_old_is_told_so() {
    let (new, old) = (Configs::new(&TLS13), Authority::new());
    let client = Arc::new(old.client_config(&[&TLS12]));
    let mut pair = Pair { client: client_session(&client), ..new.pair() };
    let flight = pair.flight();
    pair.feed_server(&flight, usize::MAX).unwrap_err();
    let told = pair.tell_client().unwrap_err();
    assert_eq!(told, Error::AlertReceived(rustls::AlertDescription::ProtocolVersion));
}

#[test]
fn a_record_that_was_changed_ends_the_session() {
    let mut pair = Configs::new(&TLS13).open_pair();
    pair.client.writer().write_all(b"a message").unwrap();
    let mut flight = pair.flight();
    *flight.last_mut().unwrap() ^= 1;
    assert_eq!(pair.feed_server(&flight, usize::MAX).unwrap_err(), Error::DecryptError);
    let told = pair.tell_client().unwrap_err();
    assert_eq!(told, Error::AlertReceived(rustls::AlertDescription::BadRecordMac));
}

/// A declared length reserves nothing, and a message that does not end is not collected.
#[test]
fn an_endless_hello_is_cut_off() {
    let mut pair = Configs::new(&TLS13).pair();
    // Handshake, TLS 1.0, 16 KiB; ClientHello, 64 KiB.
    let mut record = vec![22, 3, 1, 0x40, 0, 1, 0, 0xFF, 0xFF];
    record.resize(5 + 0x4000, 0);
    pair.feed_server(&record, 1000).unwrap();
    record[5..9].fill(0);
    pair.feed_server(&record, 1000).unwrap_err();
    assert!(pair.server.held.capacity() <= 2 * RECORD_BYTES_MAX, "{}", pair.server.held.capacity());
}

#[test]
fn both_ends_say_that_they_end() {
    for version in BOTH {
        let mut pair = Configs::new(version).open_pair();
        pair.client.writer().write_all(b"last words").unwrap();
        pair.client.send_close_notify();
        let flight = pair.flight();
        pair.feed_server(&flight, usize::MAX).unwrap();
        assert_eq!(pair.plaintext, b"last words");
        assert!(pair.server.peer_closed());
        assert_eq!(pair.say(b"an answer"), b"an answer", "its own end is not ours");
        pair.server.close();
        pair.server.close();
        assert!(pair.server.encrypt(b"too late", &mut [0; SCRATCH_BYTES]).unwrap().is_none());
        pair.tell_client().unwrap();
        assert_eq!(pair.client.reader().read(&mut [0; 8]).unwrap(), 0, "an end that was said");
    }
}

#[test]
fn fresh_keys_are_taken_and_given() {
    let mut pair = Configs::new(&TLS13).open_pair();
    for round in 0..10 {
        pair.client.refresh_traffic_keys().unwrap();
        assert_eq!(pair.hear(b"under new keys", round + 1), b"under new keys");
        assert_eq!(pair.say(b"and back"), b"and back");
    }
}

/// Portions, sizes and directions by a generator with a fixed seed: the stream is the same whatever its cuts.
#[test]
fn random_traffic_stays_in_order() {
    for version in BOTH {
        let mut pair = Configs::new(version).open_pair();
        let mut state = 7_u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % below) as usize
        };
        for _ in 0..200 {
            let bytes = pattern(1 + random(40_000));
            match random(2) {
                0 => assert!(pair.say(&bytes) == bytes),
                _ => assert!(pair.hear(&bytes, 1 + random(5_000)) == bytes),
            }
        }
    }
}

#[test]
fn nothing_is_encrypted_before_the_handshake() {
    let mut pair = Configs::new(&TLS13).pair();
    assert!(pair.server.encrypt(b"early", &mut [0; SCRATCH_BYTES]).unwrap().is_none());
    pair.server.close();
    assert!(pair.server.unsent().is_empty());
}
