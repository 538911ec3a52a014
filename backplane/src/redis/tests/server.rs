//! A `redis-server` of a test's own, and the smallest [`Commands`] that reaches it.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt};
use redis::{Cmd, FromRedisValue, Value, aio::MultiplexedConnection};

use crate::{
    BackplaneError,
    redis::contract::{Commands, LinkId, Route, Seat, Session},
};

const DEADLINE: Duration = Duration::from_secs(30);

/// Listens on a socket in a directory of its own; ends with the value.
pub(super) struct Server {
    child: Child,
    connection: MultiplexedConnection,
    is_refusing: AtomicBool,
    session: AtomicU64,
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
        Arc::new(Self {
            child,
            connection,
            is_refusing: AtomicBool::new(false),
            session: AtomicU64::new(1),
            _directory: directory,
        })
    }

    /// Calls fail as if the link were away.
    pub(super) fn refuse(&self, is_refusing: bool) {
        self.is_refusing.store(is_refusing, Ordering::SeqCst);
    }

    /// All that it has, but for the leases.
    pub(super) async fn copy(&self) -> Vec<(String, Vec<u8>)> {
        let mut copy = Vec::new();
        for key in self.run::<Vec<String>>(redis::cmd("KEYS").arg("*")).await {
            if key != "tidegate:{!nodes}:i" {
                let dump = self.run(redis::cmd("DUMP").arg(&key)).await;
                copy.push((key, dump));
            }
        }
        copy
    }

    /// Goes back to what it had then, as after a restart from an old file.
    pub(super) async fn restore(&self, copy: &[(String, Vec<u8>)]) {
        for key in self.run::<Vec<String>>(redis::cmd("KEYS").arg("*")).await {
            if key != "tidegate:{!nodes}:i" {
                self.run::<u8>(redis::cmd("DEL").arg(key)).await;
            }
        }
        for (key, dump) in copy {
            self.run::<()>(redis::cmd("RESTORE").arg(key).arg(0).arg(dump)).await;
        }
    }

    /// All that ends, ends so much later: the clock was set back, or the server was away.
    pub(super) async fn shift_leases(&self, ms: i64) {
        let code = "for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do \
                      if field ~= '!' then redis.call('HINCRBY', KEYS[1], field, ARGV[1]) end end \
                    local all = redis.call('HGETALL', KEYS[2]) \
                    for i = 1, #all, 2 do local held = all[i + 1] \
                      local at = struct.unpack('>I8', held) + ARGV[1] \
                      redis.call('HSET', KEYS[2], all[i], struct.pack('>I8', at) .. string.sub(held, 9)) end \
                    return 1";
        let mut command = redis::cmd("EVAL");
        command.arg(code).arg(2).arg("tidegate:{!nodes}:i").arg("tidegate:{!nodes}").arg(ms);
        self.run::<u8>(&command).await;
    }

    /// As if it were a while since somebody has looked through all nodes.
    pub(super) async fn make_sweep_due(&self) {
        self.run::<u64>(redis::cmd("DEL").arg("tidegate:{!nodes}:s")).await;
    }

    /// How often a command was run, by scripts too.
    pub(super) async fn calls_of(&self, command: &str) -> u64 {
        let stats: String = self.run(redis::cmd("INFO").arg("commandstats")).await;
        let begin = format!("cmdstat_{command}:calls=");
        let calls = stats.lines().find_map(|line| line.strip_prefix(&begin)?.split(',').next()?.parse().ok());
        calls.unwrap_or(0)
    }

    /// As if the connections were made anew.
    pub(super) fn begin_session(&self) {
        self.session.fetch_add(1, Ordering::SeqCst);
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

    fn call_all(&self, tag: &str, commands: Vec<Cmd>) -> BoxFuture<'_, Vec<Result<Value, BackplaneError>>> {
        let tag = tag.to_owned();
        async move {
            let mut answers = Vec::new();
            for command in commands {
                answers.push(self.call(&tag, command).await);
            }
            answers
        }
        .boxed()
    }

    fn is_sharded(&self) -> bool {
        false
    }

    fn route(&self, _tag: &str) -> Option<Route> {
        Some(Route { link: LinkId(0), slot: None })
    }

    fn seat(&self, _tag: &str) -> Option<Seat> {
        Some(Seat { link: LinkId(0), session: Session(self.session.load(Ordering::SeqCst)) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }
}
