//! What lies between a client and its first request: TLS, the header of a balancer, trusted proxies.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::ClientConfig;
use tempfile::TempDir;
use tidegate_testkit::net::{SocketOptions, connect};
use tidegate_testkit::tls::{
    Authority, TlsStream, WssClient, client_session, connect_tls, read_to_close, wrap_tls,
};
use tidegate_testkit::{DEADLINE, Gateway, Process, RawTcp, Tool, eventually, product_binary};

/// A gateway that speaks TLS, and what its clients need.
struct Secure {
    gateway: Gateway,
    authority: Authority,
    client: Arc<ClientConfig>,
    directory: TempDir,
}

impl Secure {
    fn start() -> Self {
        Self::start_with("")
    }

    /// With more configuration: top-level keys first.
    fn start_with(config: &str) -> Self {
        let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
        authority.issue(2040).write_to(directory.path());
        let client = Arc::new(authority.client_config(rustls::ALL_VERSIONS));
        let config = format!("{config}\n{}", section(directory.path()));
        Self { gateway: Gateway::builder().config(&config).start(), authority, client, directory }
    }

    fn stream(&self) -> TlsStream {
        connect_tls(self.gateway.public(), &self.client, SocketOptions::default()).unwrap()
    }

    fn subscribe(&self) -> WssClient {
        WssClient::connect(self.gateway.public(), "/ws?channel=news", &self.client)
    }
}

fn section(directory: &Path) -> String {
    format!("[tls]\ndirectory = {directory:?}\nreload_interval = \"100ms\"\n")
}

fn publish_request(text: &str) -> String {
    format!(
        "POST /v1/channels/news/publish HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer dev-key\r\n\
         Content-Length: {}\r\n\r\n{text}",
        text.len()
    )
}

/// Publishes over REST on a kept-alive connection.
#[track_caller]
fn publish(stream: &mut (impl Read + Write), text: &str) {
    stream.write_all(publish_request(text).as_bytes()).unwrap();
    let (mut answer, mut buffer) = (String::new(), [0; 4096]);
    while !answer.contains("\"offset\"") {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "{answer}");
        answer.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn websocket_and_rest_share_a_secure_port() {
    let secure = Secure::start();
    let mut subscriber = secure.subscribe();
    let mut rest = secure.stream();
    for text in ["one", "two", &"long ".repeat(10_000)] {
        publish(&mut rest, text);
        assert_eq!(subscriber.expect_text(), text);
    }
    let full = secure.gateway.metric("tidegate_tls_handshakes_total", &[("result", "full")]);
    let resumed = secure.gateway.metric("tidegate_tls_handshakes_total", &[("result", "resumed")]);
    assert_eq!(full + resumed, 2.0);
}

#[test]
fn a_secure_connection_that_published_becomes_a_websocket() {
    let secure = Secure::start();
    let mut stream = secure.stream();
    publish(&mut stream, "first");
    publish(&mut stream, "second");
    let mut client = WssClient::upgrade(stream, "/echo");
    for text in ["hello", &"back ".repeat(10_000)] {
        client.send_text(text);
        assert_eq!(client.expect_text(), text);
    }
    secure.gateway.eventually_connections(1);
}

#[test]
fn open_connections_outlive_their_certificate() {
    let secure = Secure::start();
    let mut old = secure.subscribe();
    let first = old.stream().conn.peer_certificates().unwrap()[0].clone();
    std::fs::write(secure.directory.path().join("tls.key"), "damaged").unwrap();
    secure.gateway.eventually_metric("tidegate_tls_certificate_stale", &[], |stale| stale == 1.0);
    let mut rest = secure.stream();
    publish(&mut rest, "under the old certificate");
    assert_eq!(old.expect_text(), "under the old certificate");

    let issued = secure.authority.issue(2041);
    issued.write_to(secure.directory.path());
    secure.gateway.eventually_metric("tidegate_tls_certificate_stale", &[], |stale| stale == 0.0);
    // A resumed session shows no certificate, so this client has no ticket.
    let fresh = Arc::new(secure.authority.client_config(rustls::ALL_VERSIONS));
    eventually("the new certificate is shown", DEADLINE, || {
        let stream = connect_tls(secure.gateway.public(), &fresh, SocketOptions::default()).unwrap();
        let shown = stream.conn.peer_certificates().unwrap()[0].clone();
        assert!(shown == first || shown == *issued.der());
        shown == *issued.der()
    });
    publish(&mut rest, "and still here");
    assert_eq!(old.expect_text(), "and still here");
    let expiry = secure.gateway.metric("tidegate_tls_certificate_expiry_seconds", &[]);
    // 2041-12-31.
    assert_eq!(expiry, 2_272_060_800.0);
}

#[test]
fn bad_certificates_end_the_start_with_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let check = |words: &[&str]| {
        let exit = Gateway::builder().config(&section(directory.path())).run_to_exit();
        assert_eq!(exit.code, Some(2), "{exit}");
        assert_eq!(exit.stderr.trim_end().lines().count(), 1, "one line: {exit}");
        for word in words {
            assert!(exit.stderr.contains(word), "{word:?} is named: {exit}");
        }
    };
    check(&["tls.crt", "tls.directory"]);
    Authority::new().issue(2040).write_to(directory.path());
    let other = Authority::new().issue(2040).key_pem;
    std::fs::write(directory.path().join("tls.key"), other).unwrap();
    check(&["tls.key", "not the one of the certificate"]);
}

#[test]
fn a_slow_handshake_has_no_more_time_than_a_slow_head() {
    let secure = Secure::start_with("[limits]\nhandshake_timeout = \"500ms\"\n");
    let mut socket = connect(secure.gateway.public(), SocketOptions::default()).unwrap();
    let mut hello = Vec::new();
    client_session(&secure.client).write_tls(&mut hello).unwrap();
    socket.write_all(&hello[..hello.len() / 2]).unwrap();
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "nothing that a TLS client could not read");
    secure.gateway.eventually_metric("tidegate_handshakes_total", &[("result", "timeout")], |n| n == 1.0);
    secure.gateway.eventually_connections(0);
    // A head that does not come is told so, within the session.
    let mut stream = secure.stream();
    stream.write_all(b"GET /ws?channel=news HTTP/1.1\r\n").unwrap();
    let (answer, announced) = read_to_close(&mut stream);
    assert!(answer.starts_with(b"HTTP/1.1 408 ") && announced, "{}", String::from_utf8_lossy(&answer));
}

/// A handshake of TLS costs many times what follows it: it is the one that the node's rate is about.
#[test]
fn secure_handshakes_are_within_the_nodes_rate() {
    let config = "limits.handshakes_per_second = 1\nlimits.handshakes_burst = 5\n";
    let secure = Secure::start_with(config);
    let begin = std::time::Instant::now();
    let opened = (0..40)
        .filter(|_| connect_tls(secure.gateway.public(), &secure.client, SocketOptions::default()).is_ok());
    let opened = opened.count() as u64;
    let may = 5 + begin.elapsed().as_secs() + 1;
    assert!((1..=may).contains(&opened), "{opened} of 40 were opened, {may} may be");
    let refused = secure.gateway.metric("tidegate_handshakes_total", &[("result", "rate_limit")]);
    assert!(refused >= 40.0 - may as f64, "{refused}");
}

/// What a person tries a deployment with speaks to one whose authority it trusts, and to no other.
#[test]
fn check_and_storm_speak_tls() {
    let secure = Secure::start();
    let trusted = secure.directory.path().join("authority.pem");
    std::fs::write(&trusted, secure.authority.pem()).unwrap();
    let run = |words: &[&str], roots: &Path| {
        let mut command = Command::new(product_binary());
        Process::spawn("tidegate", command.args(words).env("SSL_CERT_FILE", roots)).wait(DEADLINE)
    };
    let stranger = secure.directory.path().join("stranger.pem");
    std::fs::write(&stranger, Authority::new().pem()).unwrap();
    for scheme in ["https", "wss"] {
        let url = format!("{scheme}://{}", secure.gateway.public());
        let check = run(&["check", &url], &trusted);
        assert!(check.code == Some(0) && check.stdout.contains("delivered all"), "{check}");
        let storm = run(&["storm", &url, "--connections=3", "--duration=1s"], &trusted);
        assert!(storm.stdout.contains("connections  3 of 3"), "{storm}");
        let refused = run(&["check", &url], &stranger);
        assert!(refused.code != Some(0) && refused.stderr.contains("SSL_CERT_FILE"), "{refused}");
    }
}

#[test]
fn plain_http_on_a_secure_port_is_an_alert() {
    let secure = Secure::start();
    let mut client = RawTcp::connect(secure.gateway.public());
    client.send(b"GET /ws?channel=news HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let answer = client.read_to_end(DEADLINE).expect("an end");
    assert_eq!(answer.first(), Some(&21), "{answer:?}");
    secure.gateway.eventually_metric("tidegate_handshakes_total", &[("result", "tls_failed")], |n| n == 1.0);
}

/// A script that drives a plain gateway drives a secure one just as well.
#[track_caller]
fn check_foreign(tool: Tool, trusts_by: &str) {
    let config = "[namespaces.packed]\ncompression = true\nhistory_size = 10\nhistory_age = \"5m\"\n";
    let secure = Secure::start_with(config);
    let authority = secure.directory.path().join("authority.pem");
    std::fs::write(&authority, secure.authority.pem()).unwrap();
    let url = format!("https://localhost:{}", secure.gateway.public().port());
    let exit = tool.environment(trusts_by, &authority).environment("GATEWAY", url).spawn().wait(DEADLINE);
    assert_eq!(exit.code, Some(0), "{exit}");
    assert!(exit.stdout.trim_end().ends_with("ok"), "{exit}");
    secure.gateway.eventually_connections(0);
    assert_eq!(secure.gateway.metric("tidegate_tls_handshakes_total", &[("result", "failed")]), 0.0);
}

#[test]
fn python_websockets_over_tls() {
    check_foreign(Tool::python("client.py"), "SSL_CERT_FILE");
}

#[test]
fn node_ws_over_tls() {
    check_foreign(Tool::node("client.cjs"), "NODE_EXTRA_CA_CERTS");
}

// ---- the header of a balancer ----

/// PROXY protocol v2: TCP over IPv4, from this client to 192.0.2.1:80.
fn proxied(client: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C".to_vec();
    header.extend_from_slice(&client);
    header.extend_from_slice(&[192, 0, 2, 1, 0x30, 0x39, 0, 80]);
    header
}

const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

fn upgrade(headers: &str) -> Vec<u8> {
    format!("GET /ws?channel=news HTTP/1.1\r\nHost: localhost\r\n{headers}{UPGRADE}").into_bytes()
}

/// Sends all of it in pieces and reads the status of the answer; the connection stays open.
#[track_caller]
fn request(address: SocketAddr, pieces: &[&[u8]]) -> (RawTcp, u16) {
    let mut client = RawTcp::connect(address);
    for piece in pieces {
        client.send(piece);
    }
    let status = client.read_head(DEADLINE).expect("an answer").status;
    (client, status)
}

#[test]
fn the_balancers_header_names_the_client() {
    let config = "proxy_protocol = true\n[limits]\nconnections_per_address = 1\n";
    let gateway = Gateway::builder().config(config).start();
    let address = gateway.public();
    let first = [10, 0, 0, 1];
    let (held, status) = request(address, &[&proxied(first), &upgrade("")]);
    assert_eq!(status, 101);
    let (_other, status) = request(address, &[&[proxied([10, 0, 0, 2]), upgrade("")].concat()]);
    assert_eq!(status, 101, "another client of the same balancer, in one piece");
    let (_, status) = request(address, &[&proxied(first)[..5], &proxied(first)[5..], &upgrade("")]);
    assert_eq!(status, 429, "the same client again");
    drop(held);
    eventually("its place is free again", DEADLINE, || {
        request(address, &[&proxied(first), &upgrade("")]).1 == 101
    });
    // REST goes the same way.
    let (_, status) =
        request(address, &[&proxied([10, 0, 0, 3]), b"GET /v1/nodes HTTP/1.1\r\nHost: h\r\n\r\n"]);
    assert_eq!(status, 401);
}

#[test]
fn a_connection_without_the_header_is_closed_and_counted() {
    let mut gateway = Gateway::builder().config("proxy_protocol = true\n").start();
    let refused = |gateway: &Gateway, count: f64| {
        let labels = [("result", "proxy_header")];
        gateway.eventually_metric("tidegate_handshakes_total", &labels, |n| n == count);
    };
    let garbage: [&[u8]; 3] =
        [&upgrade(""), b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", b"\r\n\r\n\0\r\nQUIT\n\x31"];
    for (index, bytes) in garbage.iter().enumerate() {
        let mut client = RawTcp::connect(gateway.public());
        client.send(bytes);
        // An end or a reset, as bytes were left unread or not; never an answer.
        let answer = client.read_to_end(DEADLINE).unwrap_or_default();
        assert!(answer.is_empty(), "{answer:?}");
        refused(&gateway, index as f64 + 1.0);
    }
    // One line of many, for whoever wonders why nobody gets in.
    let told = "closed a connection without the balancer's header";
    assert_eq!(gateway.process().stderr().matches(told).count(), 1);
    // A health check of the balancer itself.
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    assert_eq!(request(gateway.public(), &[local, &upgrade("")]).1, 101);
    gateway.eventually_connections(0);
}

#[test]
fn the_header_comes_before_the_handshake() {
    let secure = Secure::start_with("proxy_protocol = true\n[limits]\nconnections_per_address = 1\n");
    let open = |client| {
        let mut socket = connect(secure.gateway.public(), SocketOptions::default()).unwrap();
        socket.write_all(&proxied(client)).unwrap();
        wrap_tls(socket, &secure.client).unwrap()
    };
    let mut subscriber = WssClient::upgrade(open([10, 0, 0, 1]), "/ws?channel=news");
    publish(&mut open([10, 0, 0, 2]), "hello");
    assert_eq!(subscriber.expect_text(), "hello");
    let mut again = open([10, 0, 0, 1]);
    again.write_all(&upgrade("")).unwrap();
    let (answer, _) = read_to_close(&mut again);
    assert!(answer.starts_with(b"HTTP/1.1 429 "), "{}", String::from_utf8_lossy(&answer));
}

// ---- trusted proxies ----

#[test]
fn a_trusted_proxy_names_the_client() {
    let config =
        "trusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]\n[limits]\nconnections_per_address = 1\n";
    let gateway = Gateway::builder().config(config).start();
    let ask = |headers: &str| request(gateway.public(), &[&upgrade(headers)]);
    let (_held, status) = ask("X-Forwarded-For: 6.6.6.6, 198.51.100.1, 10.0.0.9\r\n");
    assert_eq!(status, 101);
    assert_eq!(ask("X-Forwarded-For: 198.51.100.1\r\n").1, 429, "the same client");
    assert_eq!(ask("X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: 10.0.0.9\r\n").1, 429, "in two lines");
    let (_other, status) = ask("X-Forwarded-For: 198.51.100.2\r\n");
    assert_eq!(status, 101);
    assert_eq!(ask("Forwarded: for=198.51.100.2\r\n").1, 101, "the header that is not read");
    let (_unreadable, status) = ask("X-Forwarded-For: unknown\r\n");
    assert_eq!(status, 101, "the proxy itself");
    assert_eq!(ask("X-Forwarded-For: hidden\r\n").1, 429, "the proxy again");
    // On a connection that had a request before.
    let mut kept = RawTcp::connect(gateway.public());
    kept.send(publish_request("x").as_bytes());
    assert_eq!(kept.read_head(DEADLINE).expect("an answer").status, 200);
    kept.send(&upgrade("X-Forwarded-For: 198.51.100.1\r\n"));
    let rest = kept.read_to_end(DEADLINE).expect("a refusal");
    assert!(String::from_utf8_lossy(&rest).contains("HTTP/1.1 429 "), "{}", String::from_utf8_lossy(&rest));
}

#[test]
fn nobody_else_is_believed() {
    let config = "trusted_proxies = [\"10.0.0.0/8\"]\n[limits]\nconnections_per_address = 1\n";
    let gateway = Gateway::builder().config(config).start();
    let (_held, status) = request(gateway.public(), &[&upgrade("X-Forwarded-For: 198.51.100.1\r\n")]);
    assert_eq!(status, 101);
    let (_, status) = request(gateway.public(), &[&upgrade("X-Forwarded-For: 198.51.100.2\r\n")]);
    assert_eq!(status, 429, "both are 127.0.0.1");
}
