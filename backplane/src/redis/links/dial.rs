//! Makes connections: TCP, TLS, and the greeting that tells version, mode and role.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use redis::{Cmd, Value, ValueCodec};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::codec::Framed;

use crate::redis::error::{RedisStartError, Trouble};
use crate::redis::url::{Credentials, RedisUrl, Server};

/// From the first packet to the last answer of the greeting. A server that takes longer is of no use to calls that
/// wait 2 s.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// The kernel gives up on data that was not acknowledged for so long. Without it, what was in flight to a host that
/// vanished would keep the closed socket for a quarter of an hour. (Keepalive packets are not needed: there is a
/// probe each second on every connection.)
#[cfg(target_os = "linux")]
const ACKNOWLEDGE_DEADLINE: Duration = Duration::from_secs(10);

/// A connection after its greeting, answers and pushes decoded.
pub(crate) type Raw = Framed<Box<dyn Stream>, ValueCodec>;

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {}

/// Knows how this deployment's servers are spoken to.
pub(crate) struct Dialer {
    tls: Option<TlsConnector>,
    credentials: Option<Credentials>,
    db: u32,
    /// What operators see in `CLIENT LIST`.
    client_name: Box<str>,
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Greeting {
    pub(crate) version: Box<str>,
    pub(crate) mode: Mode,
    pub(crate) is_master: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Standalone,
    Sentinel,
    Cluster,
}

impl Dialer {
    pub(crate) fn new(url: &RedisUrl, ca: Option<&Path>, node: &str) -> Result<Self, RedisStartError> {
        let tls = if url.tls { Some(connector(ca)?) } else { None };
        // CLIENT SETNAME takes printable ASCII without spaces.
        let printable = |c: char| if c.is_ascii_graphic() { c } else { '_' };
        let client_name = node.chars().map(printable).collect::<String>().into();
        Ok(Self { tls, credentials: url.credentials.clone(), db: url.db, client_name })
    }

    /// A connection for pub/sub, which knows no databases.
    pub(crate) async fn raw(&self, server: &Server) -> Result<(Raw, Greeting), Trouble> {
        within("greet", async {
            let mut raw = Framed::new(self.stream(server).await?, ValueCodec::default());
            let greeting = self.greet(&mut raw, self.credentials.as_ref()).await?;
            Ok((raw, greeting))
        })
        .await
    }

    /// A connection to a Sentinel: credentials only where it demands them, because most have none.
    pub(crate) async fn sentinel(&self, server: &Server) -> Result<Raw, Trouble> {
        within("greet", async {
            let mut raw = Framed::new(self.stream(server).await?, ValueCodec::default());
            let greeting = match self.greet(&mut raw, None).await {
                Err(Trouble::Refused(error)) if error.code() == "NOAUTH" => {
                    self.greet(&mut raw, self.credentials.as_ref()).await?
                }
                other => other?,
            };
            if greeting.mode == Mode::Sentinel { Ok(raw) } else { Err(Trouble::NotSentinel) }
        })
        .await
    }

    /// A connection for commands.
    pub(crate) async fn commands(&self, server: &Server) -> Result<Raw, Trouble> {
        let (mut raw, _) = self.raw(server).await?;
        if self.db != 0 {
            within("greet", select(&mut raw, self.db)).await?;
        }
        Ok(raw)
    }

    async fn stream(&self, server: &Server) -> Result<Box<dyn Stream>, Trouble> {
        let addresses = lookup_host((&*server.host, server.port))
            .await
            .map_err(|error| Trouble::Resolve(Arc::new(error)))?;
        let mut last = Trouble::NoAddress;
        for address in addresses {
            match self.stream_to(address, server).await {
                Ok(stream) => return Ok(stream),
                Err(trouble) => last = trouble,
            }
        }
        Err(last)
    }

    async fn stream_to(&self, address: SocketAddr, server: &Server) -> Result<Box<dyn Stream>, Trouble> {
        let connect = |error| Trouble::Connect(Arc::new(error));
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let stream = socket.map_err(connect)?.connect(address).await.map_err(connect)?;
        stream.set_nodelay(true).map_err(connect)?;
        #[cfg(target_os = "linux")]
        socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(ACKNOWLEDGE_DEADLINE)).map_err(connect)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let refused = |error| Trouble::Tls(Arc::new(error));
        let name = ServerName::try_from(String::from(&*server.host))
            .map_err(|error| refused(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        Ok(Box::new(tls.connect(name, stream).await.map_err(refused)?))
    }

    /// `HELLO` tells the version, the mode and the role, and no ACL forbids it. A server that is loading its data or
    /// waits for its master says so to `PING`.
    async fn greet(&self, raw: &mut Raw, credentials: Option<&Credentials>) -> Result<Greeting, Trouble> {
        let mut hello = redis::cmd("HELLO");
        hello.arg(3);
        if let Some(Credentials { user, password }) = credentials {
            hello.arg("AUTH").arg(user.as_deref().unwrap_or("default")).arg(&**password);
        }
        if !self.client_name.is_empty() {
            hello.arg("SETNAME").arg(&*self.client_name);
        }
        let greeting = match ask(raw, &hello).await {
            Ok(answer) => Greeting::of(&answer).ok_or(Trouble::Protocol)?,
            // Redis 5 has no HELLO.
            Err(Trouble::Refused(error))
                if crate::redis::error::sentence(&error).contains("unknown command") =>
            {
                return Err(Trouble::TooOld { version: "5 or older".into(), needed: "6.2" });
            }
            Err(trouble) => return Err(trouble),
        };
        ask(raw, &redis::cmd("PING")).await?;
        Ok(greeting)
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("tls", &self.tls.is_some()).finish_non_exhaustive()
    }
}

impl Greeting {
    fn of(answer: &Value) -> Option<Self> {
        let Value::Map(pairs) = answer else { return None };
        let field = |name: &str| {
            let pair = pairs.iter().find(|(key, _)| text(key).as_deref() == Some(name))?;
            text(&pair.1)
        };
        let mode = match &*field("mode")? {
            "standalone" => Mode::Standalone,
            "sentinel" => Mode::Sentinel,
            "cluster" => Mode::Cluster,
            _ => return None,
        };
        // A Sentinel tells no role.
        let is_master = field("role").is_some_and(|role| &*role == "master");
        Some(Self { version: field("version")?, mode, is_master })
    }

    /// Whether the version is at least `needed`, for example `6.2`. Valkey tells its own version, which began at 7.2.
    pub(crate) fn require(&self, needed: &'static str) -> Result<(), Trouble> {
        if major_minor(&self.version) >= major_minor(needed) {
            Ok(())
        } else {
            Err(Trouble::TooOld { version: self.version.clone(), needed })
        }
    }
}

/// Sends a command on a connection that has nothing else in flight, and reads its answer.
pub(crate) async fn ask(raw: &mut Raw, command: &Cmd) -> Result<Value, Trouble> {
    raw.send(command.get_packed_command()).await.map_err(Trouble::Broken)?;
    match raw.next().await {
        Some(Ok(Value::ServerError(error))) => Err(Trouble::Refused(error)),
        Some(Ok(value)) => Ok(value),
        Some(Err(error)) => Err(Trouble::Broken(error)),
        None => Err(Trouble::Closed),
    }
}

/// Text of a string answer.
pub(crate) fn text(value: &Value) -> Option<Box<str>> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok().map(Into::into),
        Value::SimpleString(text) => Some(text.as_str().into()),
        _ => None,
    }
}

async fn within<T>(what: &'static str, work: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    let late = Trouble::Late { what, within: CONNECT_DEADLINE };
    timeout(CONNECT_DEADLINE, work).await.unwrap_or(Err(late))
}

async fn select(raw: &mut Raw, db: u32) -> Result<(), Trouble> {
    match ask(raw, redis::cmd("SELECT").arg(db)).await {
        Err(Trouble::Refused(error)) if error.code() == "ERR" => Err(Trouble::NoDatabase(db)),
        other => other.map(|_| ()),
    }
}

/// `7.0.15` is (7, 0). What cannot be read counts as 0.
fn major_minor(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The certificates of `ca`, or else those that the system trusts. The provider is named, so that it does not matter
/// which one the process has installed.
fn connector(ca: Option<&Path>) -> Result<TlsConnector, RedisStartError> {
    let roots = match ca {
        Some(path) => authority(path)?,
        None => system_roots(),
    };
    if roots.is_empty() {
        return Err(RedisStartError::SystemCertificates { cause: "there are none".into() });
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| RedisStartError::SystemCertificates { cause: error.to_string().into() })?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn authority(path: &Path) -> Result<RootCertStore, RedisStartError> {
    let refused = |cause: String| RedisStartError::Authority { path: path.to_owned(), cause: cause.into() };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| refused(error.to_string()))? {
        let certificate = certificate.map_err(|error| refused(error.to_string()))?;
        roots.add(certificate).map_err(|error| refused(error.to_string()))?;
    }
    if roots.is_empty() { Err(refused("there are none in it".to_owned())) } else { Ok(roots) }
}

/// Certificates that cannot be read are left out, as other clients do; none at all is an error of the caller's.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn hello(version: &str, mode: &str, role: &str) -> Value {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let pairs = [("server", "redis"), ("version", version), ("mode", mode), ("role", role)];
        Value::Map(pairs.iter().map(|(key, value)| (bulk(key), bulk(value))).collect())
    }

    #[test]
    fn a_greeting_is_read() {
        let greeting = Greeting::of(&hello("7.0.15", "cluster", "replica")).unwrap();
        assert_eq!(greeting, Greeting { version: "7.0.15".into(), mode: Mode::Cluster, is_master: false });
        assert_eq!(Greeting::of(&Value::Nil), None);
        assert_eq!(Greeting::of(&hello("7.0.15", "new", "master")), None);
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, needed, holds) in [
            ("6.2.0", "6.2", true),
            ("6.0.16", "6.2", false),
            ("7.0.15", "6.2", true),
            ("7.2.4", "7.0", true),
            ("6.2.14", "7.0", false),
            ("10.0.0", "7.0", true),
            ("8.1.1", "7.0", true),
            ("unstable", "6.2", false),
        ] {
            let greeting = Greeting::of(&hello(version, "standalone", "master")).unwrap();
            assert_eq!(greeting.require(needed).is_ok(), holds, "{version} {needed}");
        }
    }
}
