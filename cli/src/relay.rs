//! TLS for `storm` and `check`: a relay on loopback, whose other side speaks TLS. The load generator's loop stays one of
//! plain sockets; a connection through it takes three descriptors and a copy of each byte.

use std::{io, net::SocketAddr, sync::Arc};

use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

/// Why there is no relay.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    #[error("the host of {url:?} is none that a certificate can name")]
    Name { url: String },
    #[error("the TLS set-up failed: {0}")]
    Tls(#[from] rustls::Error),
    #[error("a relay for TLS cannot be started: {0}")]
    Start(#[from] io::Error),
    #[error("{host} is not reached with TLS: {source} (SSL_CERT_FILE names a private authority)")]
    Unreached { host: String, source: io::Error },
}

/// For `wss://…` or `https://…`: the address of a relay to it that lives as long as this process. `None` for others.
pub(crate) fn to(url: &str) -> Result<Option<SocketAddr>, RelayError> {
    let Some(rest) = url.strip_prefix("wss://").or_else(|| url.strip_prefix("https://")) else {
        return Ok(None);
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => (host, port),
        _ => (authority, "443"),
    };
    let bare = host.trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(bare).map_err(|_| RelayError::Name { url: url.to_owned() })?;
    let connector = TlsConnector::from(Arc::new(config()?));
    let target = format!("{host}:{port}");
    let (ready, waiting) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new().name("tls-relay".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(serve(target, name, connector, ready)),
            Err(error) => report(&ready, Err(error.into())),
        }
    })?;
    let ended = || RelayError::Start(io::ErrorKind::BrokenPipe.into());
    waiting.recv().map_err(|_| ended())?.map(Some)
}

type Ready = std::sync::mpsc::SyncSender<Result<SocketAddr, RelayError>>;

fn report(ready: &Ready, outcome: Result<SocketAddr, RelayError>) {
    if ready.send(outcome).is_err() {
        eprintln!("tidegate: nobody waits for the relay");
    }
}

/// The authorities of this machine; `SSL_CERT_FILE` names others.
fn config() -> Result<ClientConfig, RelayError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

async fn serve(target: String, name: ServerName<'static>, connector: TlsConnector, ready: Ready) {
    // One connection beforehand: a certificate that does not fit is told here and once.
    if let Err(source) = connect(&target, &name, &connector).await {
        return report(&ready, Err(RelayError::Unreached { host: target, source }));
    }
    let listener = match TcpListener::bind("127.0.0.1:0").await {
        Ok(listener) => listener,
        Err(error) => return report(&ready, Err(error.into())),
    };
    report(&ready, listener.local_addr().map_err(RelayError::from));
    // A failed accept is a lack of descriptors, which the load generator reports for its own sockets.
    while let Ok((mut client, _)) = listener.accept().await {
        let (target, name, connector) = (target.clone(), name.clone(), connector.clone());
        tokio::spawn(async move {
            let mut server = connect(&target, &name, &connector).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await
        });
    }
}

async fn connect(
    target: &str,
    name: &ServerName<'static>,
    connector: &TlsConnector,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    connector.connect(name.clone(), stream).await
}
