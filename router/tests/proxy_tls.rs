//! Pairs whose client speaks TLS: ends of one direction, and sides that do not read.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod support;

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::Arc,
    thread,
};

use support::{Router, SWITCH, TestNode, edge, pattern, read_exact, read_head, read_to_end, upgrade};
use tidegate_ops::tls::Tls;
use tidegate_router::proxy::{CutReason, Direction, Options};
use tidegate_testkit::{
    DEADLINE, eventually,
    net::SocketOptions,
    tls::{Authority, TlsStream, close_notify, connect_tls, read_to_close},
};

/// A router that ends TLS, with one node.
struct Secure {
    router: Router,
    node: TestNode,
    client: Arc<rustls::ClientConfig>,
    _directory: tempfile::TempDir,
}

impl Secure {
    fn start() -> Self {
        let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
        authority.issue(2040).write_to(directory.path());
        let tls = Tls { directory: Some(directory.path().into()), ..Tls::default() };
        let tls = tls.server().unwrap();
        let node = TestNode::start();
        let router = Router::on("127.0.0.1:0", &[node.address], Options::default(), edge(tls.as_ref()));
        let client = Arc::new(authority.client_config(rustls::ALL_VERSIONS));
        Self { router, node, client, _directory: directory }
    }

    /// A pair whose bytes move.
    fn pair(&self, options: SocketOptions) -> (TlsStream, TcpStream) {
        let mut client = connect_tls(self.router.address, &self.client, options).unwrap();
        client.sock.set_write_timeout(Some(DEADLINE)).unwrap();
        client.write_all(upgrade("/ws?key=a").as_bytes()).unwrap();
        let mut upstream = self.node.accept();
        read_head(&mut upstream);
        upstream.write_all(SWITCH).unwrap();
        let mut switch = vec![0; SWITCH.len()];
        client.read_exact(&mut switch).unwrap();
        assert_eq!(switch, SWITCH);
        (client, upstream)
    }

    fn moved(&self) -> i64 {
        self.router.sum(|metrics| {
            (metrics.bytes.get(Direction::ToClients) + metrics.bytes.get(Direction::ToNodes)) as i64
        })
    }

    fn held(&self) -> i64 {
        self.router.sum(|metrics| metrics.queued_bytes.get())
    }
}

/// What one read takes: a queue never holds more.
const QUEUE_BYTES_MAX: i64 = 64 * 1024;

/// More than both kernel's buffers of a direction.
const MUCH: usize = 40_000_000;

#[test]
fn a_client_that_has_ended_its_session_still_gets_its_answer() {
    let secure = Secure::start();
    let (mut client, mut upstream) = secure.pair(SocketOptions::default());
    client.write_all(b"last words").unwrap();
    close_notify(&mut client);
    assert_eq!(read_to_end(&mut upstream), b"last words");
    let answer = pattern(3_000_000);
    let written = answer.clone();
    let writing = thread::spawn(move || {
        upstream.write_all(&written).unwrap();
        upstream.shutdown(Shutdown::Write).unwrap();
        upstream
    });
    let (read, announced) = read_to_close(&mut client);
    assert!(read == answer && announced, "{} bytes, {announced}", read.len());
    // Neither has closed its socket.
    secure.router.eventually_empty();
    drop(writing.join().unwrap());
    assert_eq!(secure.router.sum(|metrics| metrics.cuts.get(CutReason::Lingered) as i64), 0);
}

#[test]
fn a_node_that_has_ended_is_still_told_what_its_client_says() {
    let secure = Secure::start();
    let (mut client, mut upstream) = secure.pair(SocketOptions::default());
    upstream.write_all(b"last words").unwrap();
    upstream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_close(&mut client), (b"last words".to_vec(), true));
    let answer = pattern(3_000_000);
    let written = answer.clone();
    let writing = thread::spawn(move || {
        client.write_all(&written).unwrap();
        close_notify(&mut client);
        client
    });
    assert!(read_to_end(&mut upstream) == answer);
    drop(writing.join().unwrap());
    secure.router.eventually_empty();
}

/// One side writes without end, the other does not read: what is held for it stays bounded, and then all arrives.
#[track_caller]
fn check_back_pressure(
    secure: &Secure,
    reader: &mut impl Read,
    mut writer: impl Write + Send + 'static,
    other: (TlsStream, TcpStream),
) {
    let sent = pattern(MUCH);
    let bytes = sent.clone();
    let writing =
        thread::spawn(move || writer.write_all(&bytes).and_then(|()| writer.flush()).map(|()| writer));
    eventually("a queue is filled", DEADLINE, || secure.held() > 0);
    let before = secure.moved();
    // Others are served meanwhile.
    let (mut other_client, mut other_upstream) = other;
    other_client.write_all(b"!").unwrap();
    assert_eq!(read_exact(&mut other_upstream, 1), b"!");
    assert!((1..=QUEUE_BYTES_MAX).contains(&secure.held()), "{} bytes are held", secure.held());
    assert!(secure.moved() < before + QUEUE_BYTES_MAX, "it is still read");
    assert!(!writing.is_finished());
    let mut received = vec![0; sent.len()];
    let mut at = 0;
    while at < received.len() {
        let count = reader.read(&mut received[at..]).unwrap();
        assert!(count > 0, "an end after {at} bytes");
        at += count;
        assert!(secure.held() <= QUEUE_BYTES_MAX, "{} bytes are held", secure.held());
    }
    assert!(received == sent);
    drop(writing.join().unwrap().unwrap());
}

#[test]
fn a_client_that_does_not_read_stops_its_node() {
    let secure = Secure::start();
    let narrow = SocketOptions { receive_buffer_bytes: Some(16 * 1024), ..SocketOptions::default() };
    let (mut client, upstream) = secure.pair(narrow);
    let other = secure.pair(SocketOptions::default());
    check_back_pressure(&secure, &mut client, upstream, other);
    drop(client);
    secure.router.eventually_empty();
}

#[test]
fn a_node_that_does_not_read_stops_its_client() {
    let secure = Secure::start();
    let (client, mut upstream) = secure.pair(SocketOptions::default());
    let other = secure.pair(SocketOptions::default());
    check_back_pressure(&secure, &mut upstream, client, other);
    drop(upstream);
    secure.router.eventually_empty();
}
