//! A gateway process of one's own: free ports, own configuration file, ended with the test.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::metrics::Metrics;
use crate::process::{Exit, Process, Stop, product_binary};
use crate::rest::Rest;
use crate::sse::SseClient;
use crate::wait::{DEADLINE, eventually};
use crate::ws::WsClient;

/// The API key of `--dev`.
const DEV_KEY: &str = "dev-key";

/// Drain timings that a test can wait for: 200 ms settle, 1 s of paced closes, 1 s for the echoes.
pub const SHORT_DRAIN: &str = "[drain]\nsettle = \"200ms\"\nperiod = \"1s\"\nclose_wait = \"1s\"\n";

/// A running `tidegate gateway`.
#[derive(Debug)]
pub struct Gateway {
    process: Process,
    public: SocketAddr,
    internal: SocketAddr,
    // Holds the configuration file and secrets for as long as the process may read them.
    _directory: TempDir,
}

/// How to start one. The default is `--dev` on free loopback ports.
#[derive(Debug)]
pub struct GatewayBuilder {
    dev: bool,
    listen: String,
    internal: String,
    config: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    descriptors_max: Option<u32>,
    program: Option<PathBuf>,
    directory: TempDir,
}

impl Gateway {
    /// Starts `tidegate gateway --dev` on free ports and waits until it listens.
    #[track_caller]
    pub fn start() -> Self {
        Self::builder().start()
    }

    pub fn builder() -> GatewayBuilder {
        GatewayBuilder {
            dev: true,
            listen: "127.0.0.1:0".to_owned(),
            internal: "127.0.0.1:0".to_owned(),
            config: String::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            descriptors_max: None,
            program: None,
            directory: tempfile::tempdir().expect("a temporary directory can be made"),
        }
    }

    /// Where clients and publishers connect.
    pub fn public(&self) -> SocketAddr {
        self.public
    }

    /// Where metrics and health are.
    pub fn internal(&self) -> SocketAddr {
        self.internal
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it has written there so far, and processes that took its place.
    pub fn stderr(&self) -> String {
        self.process.stderr()
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// REST on the public port with the development key.
    pub fn rest(&self) -> Rest {
        Rest::new(self.public).with_key(DEV_KEY)
    }

    /// REST on the internal port, no key.
    pub fn internal_rest(&self) -> Rest {
        Rest::new(self.internal)
    }

    /// A raw WebSocket subscriber of one channel.
    #[track_caller]
    pub fn subscribe(&self, channel: &str) -> WsClient {
        WsClient::connect(self.public, &format!("/ws?channel={channel}"))
    }

    /// An event stream of one channel.
    #[track_caller]
    pub fn event_stream(&self, channel: &str) -> SseClient {
        SseClient::connect(self.public, &format!("/sse?channel={channel}"), None)
    }

    /// One scrape of `/metrics`.
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        Metrics::scrape(self.internal)
    }

    /// Sum of the samples of `name` that carry all of `labels`; 0 when there is none.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metrics().sum(name, labels)
    }

    /// Waits until [`Gateway::metric`] satisfies `condition`.
    #[track_caller]
    pub fn eventually_metric(&self, name: &str, labels: &[(&str, &str)], condition: impl Fn(f64) -> bool) {
        let mut seen = f64::NAN;
        let what = format!("{name}{labels:?} of the gateway at {}", self.internal);
        eventually(&what, DEADLINE, || {
            seen = self.metric(name, labels);
            condition(seen)
        });
    }

    /// Waits until the gateway holds exactly `count` client connections.
    #[track_caller]
    pub fn eventually_connections(&self, count: usize) {
        self.eventually_metric("tidegate_connections", &[], |held| held == count as f64);
    }

    /// Asks it to end by SIGTERM and waits for that.
    #[track_caller]
    pub fn terminate(mut self) -> Exit {
        self.process.signal(Stop::Terminate);
        self.process.wait(DEADLINE)
    }

    /// Ends it with no chance to clean up and waits until it is gone.
    #[track_caller]
    pub fn kill(mut self) -> Exit {
        self.process.signal(Stop::Kill);
        self.process.wait(DEADLINE)
    }
}

impl GatewayBuilder {
    /// Starts without `--dev`: no default credentials, production defaults.
    #[must_use]
    pub fn production(mut self) -> Self {
        self.dev = false;
        self
    }

    /// The configuration file's content (TOML).
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        toml.clone_into(&mut self.config);
        self
    }

    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// What carries its publications: `redis://…`, `redis-sentinel://…`, `redis-cluster://…`.
    #[must_use]
    pub fn backplane(self, url: &str) -> Self {
        self.argument("--backplane").argument(url)
    }

    /// Its name among the nodes.
    #[must_use]
    pub fn node(self, name: &str) -> Self {
        self.argument("--node").argument(name)
    }

    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The public address, for the cases where it has to be known or kept over a restart.
    #[must_use]
    pub fn listen(mut self, address: impl ToString) -> Self {
        self.listen = address.to_string();
        self
    }

    #[must_use]
    pub fn internal(mut self, address: impl ToString) -> Self {
        self.internal = address.to_string();
        self
    }

    /// Soft and hard limit of open descriptors of the process.
    #[must_use]
    pub fn descriptors_max(mut self, limit: u32) -> Self {
        self.descriptors_max = Some(limit);
        self
    }

    /// Another path to the program, which may be exchanged while it runs.
    #[must_use]
    pub fn program(mut self, path: &Path) -> Self {
        self.program = Some(path.to_owned());
        self
    }

    /// Writes a file beside the configuration (a key, a secret) and gives its path.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, content).expect("the temporary directory is writable");
        path
    }

    /// Starts it and waits for the line that tells the real ports.
    ///
    /// # Panics
    /// When it ends or stays silent instead.
    #[track_caller]
    pub fn start(self) -> Gateway {
        let mut process = self.spawn();
        let (public, internal) =
            process.wait_line("the line `listening public=… internal=…`", DEADLINE, listening);
        Gateway { process, public, internal, _directory: self.directory }
    }

    /// Runs it to its end, for start-ups that must fail.
    ///
    /// # Panics
    /// When it still runs after the deadline.
    #[track_caller]
    pub fn run_to_exit(self) -> Exit {
        self.spawn().wait(DEADLINE)
    }

    fn spawn(&self) -> Process {
        let binary = self.program.clone().unwrap_or_else(product_binary);
        let mut command = match self.descriptors_max {
            // The shell lowers its own limit and becomes the gateway: same pid, and no window before the limit holds.
            Some(limit) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {limit} && exec \"$0\" \"$@\"")]).arg(binary);
                shell
            }
            None => Command::new(binary),
        };
        command.args(["gateway", "--listen", &self.listen, "--internal", &self.internal]);
        if self.dev {
            command.arg("--dev");
        }
        if !self.config.is_empty() {
            command.arg("--config").arg(self.file("tidegate.toml", self.config.as_bytes()));
        }
        command.args(&self.arguments);
        // For the test runner alone, not for the program.
        command.env_remove("TIDEGATE_BIN").env_remove("TIDEGATE_CACHE");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Process::spawn("tidegate", &mut command)
    }
}

/// Reads `listening public=http://HOST:PORT internal=http://HOST:PORT`; the public port may be `https`.
fn listening(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let mut fields = line.split_whitespace().skip_while(|word| *word != "listening").skip(1);
    let (_, public) = fields.next()?.strip_prefix("public=http")?.split_once("://")?;
    let public = public.parse().ok()?;
    let internal = fields.next()?.strip_prefix("internal=http://")?.parse().ok()?;
    Some((public, internal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listening_line_is_read() {
        let (public, internal) =
            listening("listening public=http://127.0.0.1:41 internal=http://127.0.0.1:42").expect("read");
        assert_eq!((public.port(), internal.port()), (41, 42));
        let (public, _) =
            listening("listening public=https://127.0.0.1:43 internal=http://127.0.0.1:42").expect("read");
        assert_eq!(public.port(), 43);
    }

    #[test]
    fn other_lines_are_passed_over() {
        for line in
            ["", "listening", "listening public=127.0.0.1:1 internal=127.0.0.1:2", "open http://127.0.0.1:1"]
        {
            assert_eq!(listening(line), None, "{line}");
        }
    }
}
