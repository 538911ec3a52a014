//! A `redis-server` of a test's own, and the smallest [`Commands`] that reaches it.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
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
        Arc::new(Self { child, connection, _directory: directory })
    }

    /// Runs any command.
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> T {
        command.query_async(&mut self.connection.clone()).await.expect("the command succeeds")
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
        async move {
            let answer = connection.send_packed_command(&command).await.and_then(Value::extract_error);
            answer.map_err(|error| BackplaneError::Refused(error.to_string().into()))
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
