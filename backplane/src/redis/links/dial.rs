//! Makes connections: name, address, TLS, and the greeting that tells version, mode and role.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{Cmd, Value};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream, lookup_host};
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;

use super::login::{Loaded, Login};
use super::wire::{Frame, Inbound};
use crate::redis::error::{RedisStartError, Trouble};
use crate::redis::options::HostedSocket;
use crate::redis::url::{Credentials, Server};

/// For each step: finding the addresses of a name, connecting to one of them, the greeting. A server that takes longer
/// is of no use to calls that wait 2 s.
const STEP_DEADLINE: Duration = Duration::from_secs(2);

/// An address that does not answer holds the next one up for so long (RFC 8305, section 5).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// The kernel gives up on data that was not acknowledged for so long. Without it, what was in flight to a host that
/// vanished would keep the closed socket for a quarter of an hour. (Keepalive packets are not needed: there is a
/// probe each second on every connection.)
#[cfg(target_os = "linux")]
const ACKNOWLEDGE_DEADLINE: Duration = Duration::from_secs(10);

/// A connection after its greeting.
pub(crate) struct Connection {
    pub(super) stream: Box<dyn Stream>,
    pub(super) inbound: Inbound,
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static {
    /// The socket once more, for another process.
    fn socket(&self) -> io::Result<OwnedFd>;

    /// The socket itself, to be polled elsewhere.
    fn into_socket(self: Box<Self>) -> io::Result<OwnedFd>;
}

impl Stream for TcpStream {
    fn socket(&self) -> io::Result<OwnedFd> {
        self.as_fd().try_clone_to_owned()
    }

    fn into_socket(self: Box<Self>) -> io::Result<OwnedFd> {
        Ok((*self).into_std()?.into())
    }
}

impl Stream for UnixStream {
    fn socket(&self) -> io::Result<OwnedFd> {
        self.as_fd().try_clone_to_owned()
    }

    fn into_socket(self: Box<Self>) -> io::Result<OwnedFd> {
        Ok((*self).into_std()?.into())
    }
}

impl Stream for Box<dyn HostedSocket> {
    fn socket(&self) -> io::Result<OwnedFd> {
        (**self).as_fd().try_clone_to_owned()
    }

    fn into_socket(self: Box<Self>) -> io::Result<OwnedFd> {
        (*self).socket()
    }
}

/// What its keys are is known to this process only.
impl Stream for TlsStream<TcpStream> {
    fn socket(&self) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn into_socket(self: Box<Self>) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Knows how this deployment's servers are spoken to.
pub(crate) struct Dialer {
    login: Login,
    loaded: RwLock<Arc<Loaded>>,
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

/// A socket that another process had to the server, as a stream of this one.
pub(super) fn stream_of(socket: OwnedFd, server: &Server) -> io::Result<Box<dyn Stream>> {
    Ok(match server.socket_path() {
        Some(_) => Box::new(UnixStream::from_std(socket.into())?),
        None => Box::new(TcpStream::from_std(socket.into())?),
    })
}

impl Dialer {
    pub(crate) fn new(login: Login, db: u32, node: &str) -> Result<Self, RedisStartError> {
        let loaded = RwLock::new(Arc::new(login.load()?));
        // CLIENT SETNAME takes printable ASCII without spaces.
        let printable = |c: char| if c.is_ascii_graphic() { c } else { '_' };
        let client_name = node.chars().map(printable).collect::<String>().into();
        Ok(Self { login, loaded, db, client_name })
    }

    pub(super) fn is_tls(&self) -> bool {
        self.loaded().tls.is_some()
    }

    /// A connection for pub/sub, which knows no databases.
    pub(crate) async fn raw(&self, server: &Server) -> Result<(Connection, Greeting), Trouble> {
        let loaded = self.loaded();
        let connected = self.greeted(server, &loaded, loaded.credentials.as_ref()).await;
        self.reload_after(connected)
    }

    /// A connection to a Sentinel. Most have no credentials of their own, and many none: those of Redis are said where
    /// some are demanded.
    pub(crate) async fn sentinel(&self, server: &Server) -> Result<Connection, Trouble> {
        let loaded = self.loaded();
        let connected = match self.greeted(server, &loaded, loaded.sentinel.as_ref()).await {
            Err(Trouble::Refused(error)) if error.code() == "NOAUTH" => {
                self.greeted(server, &loaded, loaded.credentials.as_ref()).await
            }
            other => other,
        };
        let (connection, greeting) = self.reload_after(connected)?;
        if greeting.mode == Mode::Sentinel { Ok(connection) } else { Err(Trouble::NotSentinel) }
    }

    /// A connection for commands.
    pub(crate) async fn commands(&self, server: &Server) -> Result<Connection, Trouble> {
        let (mut connection, _) = self.raw(server).await?;
        if self.db != 0 {
            within("greet", select(&mut connection, self.db)).await?;
        }
        Ok(connection)
    }

    fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.loaded.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Passwords and certificates are renewed in their files: a login that was refused is tried with what is there now.
    fn reload_after<T>(&self, connected: Result<T, Trouble>) -> Result<T, Trouble> {
        let is_refused = match &connected {
            Err(Trouble::Refused(error)) => matches!(error.code(), "WRONGPASS" | "NOAUTH"),
            Err(Trouble::Tls(_)) => true,
            _ => false,
        };
        if is_refused {
            match self.login.load() {
                Ok(loaded) => {
                    *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
                }
                Err(error) => tracing::warn!(%error, "what was read before is used on"),
            }
        }
        connected
    }

    async fn greeted(
        &self,
        server: &Server,
        loaded: &Arc<Loaded>,
        credentials: Option<&Credentials>,
    ) -> Result<(Connection, Greeting), Trouble> {
        let stream = stream(server, loaded).await?;
        let mut connection = Connection { stream, inbound: Inbound::default() };
        let greeting = within("greet", self.greet(&mut connection, credentials)).await?;
        Ok((connection, greeting))
    }

    /// `HELLO` tells the version, the mode and the role, and no ACL forbids it. A server that is loading its data or
    /// waits for its master says so to `PING`.
    async fn greet(
        &self,
        connection: &mut Connection,
        credentials: Option<&Credentials>,
    ) -> Result<Greeting, Trouble> {
        let mut hello = redis::cmd("HELLO");
        hello.arg(3);
        if let Some(Credentials { user, password }) = credentials {
            hello.arg("AUTH").arg(user.as_deref().unwrap_or("default")).arg(&**password);
        }
        if !self.client_name.is_empty() {
            hello.arg("SETNAME").arg(&*self.client_name);
        }
        let greeting = match ask(connection, &hello).await {
            Ok(answer) => Greeting::of(&answer).ok_or(Trouble::Protocol)?,
            // Redis 5 has no HELLO.
            Err(Trouble::Refused(error))
                if crate::redis::error::sentence(&error).contains("unknown command") =>
            {
                return Err(Trouble::TooOld { version: "5 or older".into(), needed: "6.2" });
            }
            Err(trouble) => return Err(trouble),
        };
        ask(connection, &redis::cmd("PING")).await?;
        Ok(greeting)
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("db", &self.db).finish_non_exhaustive()
    }
}

async fn stream(server: &Server, loaded: &Arc<Loaded>) -> Result<Box<dyn Stream>, Trouble> {
    if let Some(path) = server.socket_path() {
        let connecting = async { UnixStream::connect(path).await.map_err(connect_trouble) };
        return Ok(Box::new(within("let itself be connected to", connecting).await?));
    }
    let addresses = within("resolve", async {
        lookup_host((&*server.host, server.port)).await.map_err(|error| Trouble::Resolve(Arc::new(error)))
    });
    let connect = |address| stream_to(address, server.clone(), Arc::clone(loaded));
    race(addresses.await?.collect(), connect).await
}

/// Connects to the first address that answers: the next is tried when one fails or is slow, the others go on.
async fn race<T, F: Future<Output = Result<T, Trouble>>>(
    addresses: Vec<SocketAddr>,
    connect: impl Fn(SocketAddr) -> F,
) -> Result<T, Trouble> {
    let mut left = families_in_turn(addresses).into_iter();
    let mut running = FuturesUnordered::new();
    let mut last = Trouble::NoAddress;
    loop {
        if let Some(address) = left.next() {
            running.push(within("let itself be connected to", connect(address)));
        }
        let has_more = left.len() > 0;
        tokio::select! {
            done = running.next() => match done {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(trouble)) => last = trouble,
                None if has_more => {}
                None => return Err(last),
            },
            () = sleep(NEXT_ADDRESS_AFTER), if has_more => {}
        }
    }
}

/// In the order of the resolver, but the families take turns: one that is broken costs one address (RFC 8305, section
/// 4).
fn families_in_turn(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let is_first = addresses.first().map(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| Some(address.is_ipv6()) == is_first);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut turns = Vec::new();
    loop {
        let before = turns.len();
        turns.extend(first.next());
        turns.extend(second.next());
        if turns.len() == before {
            return turns;
        }
    }
}

async fn stream_to(
    address: SocketAddr,
    server: Server,
    loaded: Arc<Loaded>,
) -> Result<Box<dyn Stream>, Trouble> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let stream = socket.map_err(connect_trouble)?.connect(address).await.map_err(connect_trouble)?;
    stream.set_nodelay(true).map_err(connect_trouble)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(&stream)
        .set_tcp_user_timeout(Some(ACKNOWLEDGE_DEADLINE))
        .map_err(connect_trouble)?;
    let Some(tls) = &loaded.tls else { return Ok(Box::new(stream)) };
    let refused = |error| Trouble::Tls(Arc::new(error));
    let name = ServerName::try_from(String::from(&*server.host))
        .map_err(|error| refused(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    Ok(Box::new(tls.connect(name, stream).await.map_err(refused)?))
}

fn connect_trouble(error: io::Error) -> Trouble {
    Trouble::Connect(Arc::new(error))
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
pub(crate) async fn ask(connection: &mut Connection, command: &Cmd) -> Result<Value, Trouble> {
    send(connection, command).await?;
    match next(connection).await? {
        Value::ServerError(error) => Err(Trouble::Refused(error)),
        value => Ok(value),
    }
}

pub(super) async fn send(connection: &mut Connection, command: &Cmd) -> Result<(), Trouble> {
    let broken = |error: io::Error| Trouble::Broken(error.into());
    connection.stream.write_all(&command.get_packed_command()).await.map_err(broken)?;
    connection.stream.flush().await.map_err(broken)
}

/// The next value that arrives; a message is a push of the library's form.
pub(super) async fn next(connection: &mut Connection) -> Result<Value, Trouble> {
    let read = |frame: Frame<'_>| match frame {
        Frame::Value(value) => value.map_err(Trouble::Broken),
        Frame::Message { channel, payload } => Ok(Value::Push {
            kind: redis::PushKind::Message,
            data: [channel, payload].map(|bytes| Value::BulkString(bytes.to_vec())).into(),
        }),
    };
    loop {
        if let Some(value) = connection.inbound.take(read)? {
            return value;
        }
        let read = connection.stream.read_buf(connection.inbound.room()).await;
        if read.map_err(|error| Trouble::Broken(error.into()))? == 0 {
            return Err(Trouble::Closed);
        }
    }
}

/// Text of a string answer.
pub(crate) fn text(value: &Value) -> Option<Box<str>> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok().map(Into::into),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text.as_str().into()),
        _ => None,
    }
}

async fn within<T>(what: &'static str, work: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    let late = Trouble::Late { what, within: STEP_DEADLINE };
    timeout(STEP_DEADLINE, work).await.unwrap_or(Err(late))
}

async fn select(connection: &mut Connection, db: u32) -> Result<(), Trouble> {
    match ask(connection, redis::cmd("SELECT").arg(db)).await {
        Err(Trouble::Refused(error)) if error.code() == "ERR" => Err(Trouble::NoDatabase(db)),
        other => other.map(|_| ()),
    }
}

/// `7.0.15` is (7, 0). What cannot be read counts as 0.
fn major_minor(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
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

    /// An address that drops packets: its queue of connections is full, and further ones are not answered.
    fn silent() -> (std::net::TcpListener, Vec<std::net::TcpStream>, SocketAddr) {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let listener = std::net::TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(50));
        (listener, std::iter::from_fn(|| connect().ok()).take(64).collect(), address)
    }

    #[tokio::test]
    async fn an_address_that_drops_packets_does_not_hold_up_the_next() {
        let (_listener, _queue, silent) = silent();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let connect = |address| async move {
            tokio::net::TcpStream::connect(address).await.map_err(connect_trouble)?;
            Ok(address)
        };
        assert_eq!(race(vec![silent, server], connect).await.unwrap(), server);
        let late = race(vec![silent], connect).await.unwrap_err();
        assert!(matches!(late, Trouble::Late { .. }), "{late}");
        assert!(matches!(race(Vec::new(), connect).await, Err(Trouble::NoAddress)));
    }

    #[test]
    fn families_take_turns() {
        let [a, b, c, d] = ["[::1]:1", "[::1]:2", "1.1.1.1:1", "1.1.1.1:2"].map(|it| it.parse().unwrap());
        assert_eq!(families_in_turn(vec![a, b, c, d]), [a, c, b, d]);
        assert_eq!(families_in_turn(vec![c, a]), [c, a]);
        assert_eq!(families_in_turn(Vec::new()), []);
    }
}
