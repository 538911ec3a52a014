//! Certificates made for a test, and clients that trust them.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned, SupportedProtocolVersion,
};

use crate::net::{SocketOptions, connect};
use crate::wait::DEADLINE;

/// A certificate authority of one test.
#[derive(Debug)]
pub struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A server's certificate and key.
#[derive(Debug, Clone)]
pub struct Issued {
    pub certificate_pem: String,
    pub key_pem: String,
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

/// A blocking client.
pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// The name that certificates are issued for by [`Authority::issue`], beside 127.0.0.1.
pub const SERVER_NAME: &str = "localhost";

impl Authority {
    /// # Panics
    /// When the system has no random numbers.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names, no bad names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Tidegate test authority");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// A certificate for `localhost` and 127.0.0.1, valid until the end of the year.
    ///
    /// # Panics
    /// When the system has no random numbers.
    pub fn issue(&self, last_year: i32) -> Issued {
        let names = vec![SERVER_NAME.to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).expect("names are names");
        params.distinguished_name.push(DnType::CommonName, format!("valid until {last_year}"));
        params.not_after = rcgen::date_time_ymd(last_year, 12, 31);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Issued {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            certificate: certificate.der().clone(),
            key: key.serialize_der(),
        }
    }

    /// The authority's own certificate, for clients that read files.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// What a client needs that trusts this authority alone.
    ///
    /// # Panics
    /// When rustls does not know the versions.
    pub fn client_config(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).expect("a certificate of our own");
        ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .expect("versions of the provider")
            .with_root_certificates(roots)
            .with_no_client_auth()
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Issued {
    /// Writes `tls.crt` and `tls.key`, as Kubernetes names them.
    ///
    /// # Panics
    /// When the directory cannot be written.
    pub fn write_to(&self, directory: &Path) {
        fs::write(directory.join("tls.crt"), &self.certificate_pem).expect("the directory is ours");
        fs::write(directory.join("tls.key"), &self.key_pem).expect("the directory is ours");
    }

    /// What a server needs that shows this certificate.
    ///
    /// # Panics
    /// When rustls does not know the versions.
    pub fn server_config(&self, versions: &[&'static SupportedProtocolVersion]) -> ServerConfig {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .expect("versions of the provider")
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], key)
            .expect("the key is the certificate's");
        config.ticketer = aws_lc_rs::Ticketer::new().expect("random numbers");
        config
    }

    /// The certificate, to compare with what a client was shown.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }
}

/// A client's session that has not begun.
///
/// # Panics
/// When rustls refuses the configuration.
pub fn client_session(config: &Arc<ClientConfig>) -> ClientConnection {
    let name = ServerName::try_from(SERVER_NAME).expect("a name");
    ClientConnection::new(Arc::clone(config), name).expect("a session")
}

/// Connects and completes the handshake.
///
/// # Errors
/// Whatever the kernel or TLS says.
pub fn connect_tls(
    target: SocketAddr,
    config: &Arc<ClientConfig>,
    options: SocketOptions,
) -> io::Result<TlsStream> {
    wrap_tls(connect(target, options)?, config)
}

/// Completes the handshake on a socket that is connected.
///
/// # Errors
/// Whatever the kernel or TLS says.
pub fn wrap_tls(socket: TcpStream, config: &Arc<ClientConfig>) -> io::Result<TlsStream> {
    socket.set_read_timeout(Some(DEADLINE))?;
    let mut stream = StreamOwned::new(client_session(config), socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// Reads until the peer's end, and says whether it was announced (close_notify).
///
/// # Panics
/// When the stream fails otherwise.
#[track_caller]
pub fn read_to_close(stream: &mut TlsStream) -> (Vec<u8>, bool) {
    let mut read = Vec::new();
    match stream.read_to_end(&mut read) {
        Ok(_) => (read, true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => (read, false),
        Err(error) => panic!("the stream failed: {error}"),
    }
}

/// Says that nothing more follows, and keeps the socket open.
///
/// # Panics
/// When the socket fails.
#[track_caller]
pub fn close_notify(stream: &mut TlsStream) {
    stream.conn.send_close_notify();
    stream.flush().expect("the peer takes it");
}

/// A WebSocket over TLS: blocking, text only.
#[derive(Debug)]
pub struct WssClient {
    socket: tungstenite::WebSocket<TlsStream>,
}

impl WssClient {
    /// # Panics
    /// When the handshake fails or the upgrade is refused.
    #[track_caller]
    pub fn connect(target: SocketAddr, path: &str, config: &Arc<ClientConfig>) -> Self {
        let stream = connect_tls(target, config, SocketOptions::default()).expect("a TLS session");
        Self::upgrade(stream, path)
    }

    /// Upgrades a stream that may have been used before.
    ///
    /// # Panics
    /// When the upgrade is refused.
    #[track_caller]
    pub fn upgrade(stream: TlsStream, path: &str) -> Self {
        let request = format!("wss://{SERVER_NAME}{path}");
        let (socket, _) = tungstenite::client(request, stream).expect("an upgrade");
        Self { socket }
    }

    /// # Panics
    /// When the socket fails.
    #[track_caller]
    pub fn send_text(&mut self, text: &str) {
        self.socket.send(tungstenite::Message::text(text)).expect("the server takes it");
    }

    /// The next text; pings are answered on the way.
    ///
    /// # Panics
    /// When something else comes, or nothing within [`DEADLINE`].
    #[track_caller]
    pub fn expect_text(&mut self) -> String {
        loop {
            match self.socket.read().expect("a message") {
                tungstenite::Message::Text(text) => return text.to_string(),
                tungstenite::Message::Ping(_) | tungstenite::Message::Pong(_) => {}
                other => panic!("expected a text, got {other:?}"),
            }
        }
    }

    /// The stream below.
    pub fn stream(&mut self) -> &mut TlsStream {
        self.socket.get_mut()
    }
}
