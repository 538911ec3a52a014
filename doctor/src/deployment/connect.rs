//! From a URL to a stream: name, TCP, TLS.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{STEP_TIMEOUT, Target, trouble::Trouble};

/// A stream of bytes, encrypted or not.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// An address that took a connection.
#[derive(Debug)]
pub(super) struct Route {
    target: Target,
    address: SocketAddr,
}

pub(super) struct Opened {
    pub(super) stream: Box<dyn Stream>,
    /// `TLSv1.3`, or `TCP`.
    pub(super) version: String,
}

pub(super) async fn resolve(target: &Target) -> Result<Vec<SocketAddr>, Trouble> {
    let named = || target.host().to_owned();
    let addresses = timeout(STEP_TIMEOUT, lookup_host((target.host(), target.port()))).await;
    let found = addresses.map_err(|_| Trouble::NameTimeout { host: named() })?;
    let addresses: Vec<_> =
        found.map_err(|source| Trouble::Name { host: named(), source: Some(source) })?.collect();
    if addresses.is_empty() { Err(Trouble::Name { host: named(), source: None }) } else { Ok(addresses) }
}

/// The first address that takes a connection, and in what time.
pub(super) async fn tcp(target: &Target, addresses: &[SocketAddr]) -> Result<(Route, Duration), Trouble> {
    let mut last = Trouble::Name { host: target.host().to_owned(), source: None };
    for &address in addresses {
        let route = Route { target: target.clone(), address };
        let began = Instant::now();
        match route.connect().await {
            Ok(_) => return Ok((route, began.elapsed())),
            Err(trouble) => last = trouble,
        }
    }
    Err(last)
}

impl Route {
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    async fn connect(&self) -> Result<TcpStream, Trouble> {
        let address = self.address;
        match timeout(STEP_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(Trouble::Connect { address, source }),
            Err(_) => Err(Trouble::ConnectTimeout { address }),
        }
    }

    /// A connection over which HTTP can be spoken.
    pub(super) async fn open(&self) -> Result<Opened, Trouble> {
        let stream = self.connect().await?;
        if !self.target.is_encrypted() {
            return Ok(Opened { stream: Box::new(stream), version: "TCP".to_owned() });
        }
        let host = self.target.host();
        let name =
            ServerName::try_from(host.to_owned()).map_err(|_| Trouble::TlsName { host: host.to_owned() })?;
        let connector = TlsConnector::from(Arc::new(client_config()?));
        let handshake = timeout(STEP_TIMEOUT, connector.connect(name, stream)).await;
        let session = handshake
            .map_err(|_| Trouble::TlsTimeout)?
            .map_err(|source| Trouble::tls(self.target.host(), source))?;
        let version = session.get_ref().1.protocol_version().and_then(|version| version.as_str());
        Ok(Opened { version: version.unwrap_or("TLS").to_owned(), stream: Box::new(session) })
    }
}

/// What the system trusts; `SSL_CERT_FILE` names a private authority.
fn client_config() -> Result<ClientConfig, Trouble> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(Trouble::NoRoots);
    }
    let mut config =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|source| Trouble::Tls { source: io::Error::other(source) })?
            .with_root_certificates(roots)
            .with_no_client_auth();
    // A WebSocket opens with HTTP/1.1; without this a proxy may choose HTTP/2.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
