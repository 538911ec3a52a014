//! A `redis-server` of a test's own, and the smallest [`Commands`] that reaches it.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt};
use redis::{Cmd, FromRedisValue, Value, aio::MultiplexedConnection};

use crate::{BackplaneError, redis::contract::Commands};

const DEADLINE: Duration = Duration::from_secs(30);

/// Listens on a socket in a directory of its own; ends with the value.
pub(super) struct Server {
    child: Child,
    connection: MultiplexedConnection,
    is_refusing: AtomicBool,
    _directory: tempfile::TempDir,
}

impl Server {
    pub(super) async fn start() -> Arc<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("socket");
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(&socket)
            .arg("--dir")
            .arg(directory.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let connection = tokio::time::timeout(DEADLINE, connect(socket)).await.expect("redis-server answers");
        Arc::new(Self { child, connection, is_refusing: AtomicBool::new(false), _directory: directory })
    }

    /// Calls fail as if the link were away.
    pub(super) fn refuse(&self, is_refusing: bool) {
        self.is_refusing.store(is_refusing, Ordering::SeqCst);
    }

    /// Runs any command.
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> T {
        command.query_async(&mut self.connection.clone()).await.expect("the command succeeds")
    }
}

/// Asks again until the answer satisfies.
pub(super) async fn eventually<T: std::fmt::Debug>(
    what: &str,
    ask: impl AsyncFn() -> T,
    is_good: impl Fn(&T) -> bool,
) -> T {
    let until = tokio::time::Instant::now() + DEADLINE;
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    loop {
        ticks.tick().await;
        let answer = ask().await;
        if is_good(&answer) {
            return answer;
        }
        assert!(tokio::time::Instant::now() < until, "{what}: still {answer:?}");
    }
}

async fn connect(socket: PathBuf) -> MultiplexedConnection {
    let client = redis::Client::open(format!("redis+unix://{}?protocol=resp3", socket.display()));
    let client = client.expect("a URL");
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    loop {
        ticks.tick().await;
        if let Ok(connection) = client.get_multiplexed_async_connection().await {
            return connection;
        }
    }
}

impl Commands for Server {
    fn call(&self, _tag: &str, command: Cmd) -> BoxFuture<'_, Result<Value, BackplaneError>> {
        let mut connection = self.connection.clone();
        let is_refusing = self.is_refusing.load(Ordering::SeqCst);
        async move {
            if is_refusing {
                return Err(BackplaneError::Unavailable("the test says so".into()));
            }
            match connection.send_packed_command(&command).await {
                Ok(Value::ServerError(error)) => {
                    let why = format!("{} {}", error.code(), error.details().unwrap_or_default());
                    Err(BackplaneError::Refused(why.into()))
                }
                answer => answer.map_err(|error| BackplaneError::Unconfirmed(error.to_string().into())),
            }
        }
        .boxed()
    }

    fn is_sharded(&self) -> bool {
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }
}
