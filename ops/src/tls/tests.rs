//! Files, good and bad, and streams against rustls' client.

#![allow(clippy::unwrap_used)]

use std::{fs, os::unix::fs::symlink, path::Path, sync::Arc};

use rustls::{ClientConnection, ServerConfig};
use tempfile::TempDir;
use tidegate_reactor::TlsSession;
use tidegate_testkit::tls::{Authority, Issued, client_session};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

fn section(directory: &Path) -> Tls {
    Tls { directory: Some(directory.to_owned()), ..Tls::default() }
}

/// The certificate that a new connection is shown.
fn shown(server: &TlsServer, authority: &Authority) -> Vec<u8> {
    let mut client = client_session(&Arc::new(authority.client_config(rustls::ALL_VERSIONS)));
    let mut session = TlsSession::new(Arc::clone(&server.config), &[]).unwrap();
    while client.is_handshaking() {
        exchange(&mut client, &mut session);
    }
    client.peer_certificates().unwrap()[0].to_vec()
}

fn exchange(client: &mut ClientConnection, session: &mut TlsSession) {
    let mut flight = Vec::new();
    client.write_tls(&mut flight).unwrap();
    session.receive(&mut flight, &mut Vec::new()).unwrap();
    let unsent = session.unsent().to_vec();
    session.sent(unsent.len());
    let mut unsent = &unsent[..];
    while !unsent.is_empty() {
        client.read_tls(&mut unsent).unwrap();
        client.process_new_packets().unwrap();
    }
}

#[test]
fn without_a_certificate_there_is_no_tls() {
    assert!(!Tls::default().is_on());
    assert!(Tls::default().server().unwrap().is_none());
}

#[test]
fn a_new_certificate_is_taken_and_a_bad_one_is_not() {
    let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
    let (old, new) = (authority.issue(2040), authority.issue(2041));
    old.write_to(directory.path());
    let server = section(directory.path()).server().unwrap().unwrap();
    assert!(shown(&server, &authority) == old.der().to_vec());
    let first = server.certificates.expires_s();

    fs::write(directory.path().join("tls.crt"), "not PEM").unwrap();
    server.certificates.reload_if_changed();
    assert!(shown(&server, &authority) == old.der().to_vec(), "the old one stays");
    server.certificates.reload_if_changed();
    assert_eq!(metric(&server, "tls_certificate_reload_failures_total"), 1, "told and counted once");
    assert_eq!(metric(&server, "tls_certificate_stale"), 1);

    new.write_to(directory.path());
    server.certificates.reload_if_changed();
    assert!(shown(&server, &authority) == new.der().to_vec());
    assert_eq!(metric(&server, "tls_certificate_stale"), 0);
    assert_eq!(metric(&server, "tls_certificate_reloads_total"), 1);
    assert!(server.certificates.expires_s() > first);
    let expiry = metric(&server, "tls_certificate_expiry_seconds");
    assert_eq!(Some(expiry), server.certificates.expires_s());
}

fn metric(server: &TlsServer, name: &str) -> i64 {
    let collector: Arc<dyn crate::metrics::Collector> =
        Arc::new(TlsCollector(Arc::clone(&server.certificates)));
    let text = crate::metrics::openmetrics([collector]);
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("tidegate_{name} "))).unwrap();
    line.parse::<f64>().unwrap() as i64
}

/// As kubelet does it: a link to a directory takes the place of another in one step.
#[test]
fn a_swapped_link_is_a_new_certificate() {
    let (authority, mount) = (Authority::new(), TempDir::new().unwrap());
    let mount = mount.path();
    let publish = |issued: &Issued, name: &str| {
        fs::create_dir(mount.join(name)).unwrap();
        issued.write_to(&mount.join(name));
        symlink(name, mount.join("..data_tmp")).unwrap();
        fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
    };
    let (old, new) = (authority.issue(2040), authority.issue(2041));
    publish(&old, "..1");
    symlink("..data/tls.crt", mount.join("tls.crt")).unwrap();
    symlink("..data/tls.key", mount.join("tls.key")).unwrap();
    let server = section(mount).server().unwrap().unwrap();
    server.certificates.reload_if_changed();
    assert_eq!(metric(&server, "tls_certificate_reloads_total"), 0, "nothing has changed");
    publish(&new, "..2");
    server.certificates.reload_if_changed();
    assert!(shown(&server, &authority) == new.der().to_vec());
}

#[test]
fn each_mistake_is_one_line_that_names_the_file() {
    let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
    let path = directory.path();
    let good = authority.issue(2040);
    let check = |certificate: &str, key: &str, expect: &str| {
        fs::write(path.join("tls.crt"), certificate).unwrap();
        fs::write(path.join("tls.key"), key).unwrap();
        let error = section(path).server().unwrap_err().to_string();
        assert!(error.starts_with("`tls.directory` in ") && error.ends_with(expect), "{error}");
        assert!(!error.contains('\n'), "{error}");
    };
    check("", &good.key_pem, "tls.crt cannot be used: it holds no PEM certificate");
    check(&good.key_pem, &good.key_pem, "tls.crt cannot be used: it holds no PEM certificate");
    check(
        &good.certificate_pem,
        &good.certificate_pem,
        "tls.key cannot be used: it holds no PEM private key that is not encrypted",
    );
    let other = authority.issue(2040).key_pem;
    check(&good.certificate_pem, &other, "tls.key cannot be used: the key is not the one of the certificate");
    fs::remove_file(path.join("tls.key")).unwrap();
    let error = section(path).server().unwrap_err().to_string();
    assert!(error.starts_with("cannot read ") && error.contains("tls.key for `tls.directory`: "), "{error}");
}

#[test]
fn files_are_named_in_one_way() {
    let check = |tls: Tls, expect: &str| {
        assert!(tls.is_on());
        assert_eq!(tls.server().unwrap_err().to_string(), expect);
    };
    let file = || Some("f".into());
    check(
        Tls { directory: file(), certificate_file: file(), ..Tls::default() },
        "`tls.directory` and `tls.certificate_file` do not fit together: the files are named once",
    );
    check(
        Tls { directory: file(), key_file: file(), ..Tls::default() },
        "`tls.directory` and `tls.key_file` do not fit together: the files are named once",
    );
    check(
        Tls { key_file: file(), ..Tls::default() },
        "`tls.certificate_file` and `tls.key_file` do not fit together: a certificate and its key come together",
    );
}

#[test]
fn the_oldest_version_and_the_protocol_are_held_to() {
    let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
    authority.issue(2040).write_to(directory.path());
    let check = |min_version, offered: &[&'static SupportedProtocolVersion], alpn: &[u8]| {
        let server = Tls { min_version, ..section(directory.path()) }.server().unwrap().unwrap();
        let mut config = authority.client_config(offered);
        config.alpn_protocols = vec![alpn.to_vec()];
        let mut client = client_session(&Arc::new(config));
        let mut session = TlsSession::new(Arc::clone(&server.config), &[]).unwrap();
        let mut flight = Vec::new();
        client.write_tls(&mut flight).unwrap();
        session.receive(&mut flight, &mut Vec::new()).is_ok()
    };
    assert!(check(TlsVersion::Tls12, &[&TLS12], b"http/1.1"));
    assert!(check(TlsVersion::Tls12, &[&TLS13], b"http/1.1"));
    assert!(check(TlsVersion::Tls13, &[&TLS13], b"http/1.1"));
    assert!(!check(TlsVersion::Tls13, &[&TLS12], b"http/1.1"));
    assert!(!check(TlsVersion::Tls12, &[&TLS13], b"h2"), "only HTTP/2 is not spoken");
}

/// A stream whose handshake a client has completed, and the client's end.
fn streams(config: Arc<ServerConfig>, authority: &Authority) -> (TlsStream<DuplexStream>, Remote) {
    let mut client = client_session(&Arc::new(authority.client_config(&[&TLS13])));
    let mut session = TlsSession::new(config, &[]).unwrap();
    while client.is_handshaking() || !session.is_open() {
        exchange(&mut client, &mut session);
    }
    let (near, far) = duplex(10_000);
    (TlsStream::new(near, Box::new(session)), Remote { client, socket: far })
}

/// The client's end, by hand.
struct Remote {
    client: ClientConnection,
    socket: DuplexStream,
}

impl Remote {
    async fn send(&mut self, plaintext: &[u8]) {
        for part in plaintext.chunks(16 * 1024) {
            std::io::Write::write_all(&mut self.client.writer(), part).unwrap();
            self.flush().await;
        }
    }

    async fn flush(&mut self) {
        let mut flight = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut flight).unwrap();
        }
        self.socket.write_all(&flight).await.unwrap();
    }

    /// Until the stream's end; whether that was announced.
    async fn read_to_end(&mut self) -> (Vec<u8>, bool) {
        let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let count = self.socket.read(&mut buffer).await.unwrap();
            if count == 0 {
                return (all, false);
            }
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                self.client.read_tls(&mut rest).unwrap();
                let state = self.client.process_new_packets().unwrap();
                let mut plaintext = vec![0; state.plaintext_bytes_to_read()];
                std::io::Read::read_exact(&mut self.client.reader(), &mut plaintext).unwrap();
                all.extend_from_slice(&plaintext);
                if state.peer_has_closed() {
                    return (all, true);
                }
            }
        }
    }
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes as u32).step_by(4).flat_map(u32::to_be_bytes).take(bytes).collect()
}

#[tokio::test]
async fn a_stream_carries_much_both_ways_and_says_its_end() {
    let authority = Authority::new();
    let config = Arc::new(authority.issue(2040).server_config(&[&TLS13]));
    let (mut stream, mut remote) = streams(config, &authority);
    let words = pattern(200_000);
    let expect = words.clone();
    let far = tokio::spawn(async move {
        remote.send(&expect).await;
        remote.client.send_close_notify();
        remote.flush().await;
        remote.read_to_end().await
    });
    let mut read = Vec::new();
    stream.read_to_end(&mut read).await.unwrap();
    assert!(read == words);
    stream.write_all(&words).await.unwrap();
    stream.shutdown().await.unwrap();
    let (back, announced) = far.await.unwrap();
    assert!(back == words && announced);
}

#[tokio::test]
async fn a_stream_taken_apart_goes_on_where_it_was() {
    let authority = Authority::new();
    let config = Arc::new(authority.issue(2040).server_config(&[&TLS13]));
    let (mut stream, mut remote) = streams(config, &authority);
    remote.send(b"one two three").await;
    let mut one = [0; 4];
    stream.read_exact(&mut one).await.unwrap();
    let (socket, session, unread) = stream.into_parts();
    assert_eq!((&one, &unread[..]), (b"one ", &b"two three"[..]));
    remote.send(b" four").await;
    let mut again = TlsStream::new(socket, session);
    let mut four = [0; 5];
    again.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b" four");
}

#[tokio::test]
async fn a_changed_record_is_an_error() {
    let authority = Authority::new();
    let config = Arc::new(authority.issue(2040).server_config(&[&TLS13]));
    let (mut stream, mut remote) = streams(config, &authority);
    remote.socket.write_all(b"\x17\x03\x03\x00\x14garbagegarbagegarbag").await.unwrap();
    let error = stream.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
}
