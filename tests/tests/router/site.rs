//! A router process, and a few gateways behind it.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;
use tidegate_testkit::{
    DEADLINE, Exit, Gateway, GatewayBuilder, Metrics, Process, Rest, Stop, eventually, product_binary,
    redis::RedisServer,
};

/// Drains that a test can wait for, and gateways whose lease is short.
pub(crate) const GATEWAY_CONFIG: &str = "\
[drain]
settle = \"200ms\"
period = \"1s\"
close_wait = \"1s\"
[redis]
lease = \"3s\"
[namespaces.packed]
compression = true
history_size = 10
history_age = \"5m\"
";

pub(crate) const SHORT_DRAIN: &str = "[drain]\nsettle = \"200ms\"\nperiod = \"1s\"\nclose_wait = \"2s\"\n";

/// A running `tidegate router`.
#[derive(Debug)]
pub(crate) struct Router {
    process: Process,
    pub(crate) public: SocketAddr,
    pub(crate) internal: SocketAddr,
    directory: TempDir,
}

/// Redis, gateways g1, g2, …, and a router that knows them.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) redis: RedisServer,
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) router: Router,
}

/// What a router prints and how it ends, when it cannot start.
#[track_caller]
pub(crate) fn run_to_exit(arguments: &[&str], config: &str) -> Exit {
    let directory = tempfile::tempdir().unwrap();
    spawn(&product_binary(), &directory, arguments, config).wait(DEADLINE)
}

fn spawn(program: &Path, directory: &TempDir, arguments: &[&str], config: &str) -> Process {
    let path = directory.path().join("router.toml");
    fs::write(&path, config).unwrap();
    let mut command = Command::new(program);
    command.args(["router", "--internal", "127.0.0.1:0", "--config"]).arg(path);
    // Off by default; tests ask it where a key belongs.
    command.env("TIDEGATE__ASSIGN__URL", "ws://{address}");
    command.args(arguments).env_remove("TIDEGATE_BIN").env_remove("TIDEGATE_CACHE");
    Process::spawn("router", &mut command)
}

/// `listening public=http://HOST:PORT internal=http://HOST:PORT`
pub(crate) fn listening(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let address = |name: &str| {
        let (_, rest) = line.split_once(name)?.1.split_once("://")?;
        rest.split_whitespace().next()?.parse().ok()
    };
    line.starts_with("listening ").then(|| Some((address("public=")?, address("internal=")?)))?
}

impl Router {
    #[track_caller]
    pub(crate) fn start(members: &str, config: &str) -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), members, config)
    }

    /// On a port of before.
    #[track_caller]
    pub(crate) fn start_at(listen: SocketAddr, members: &str, config: &str) -> Self {
        Self::start_as(&product_binary(), &["--listen", &listen.to_string(), "--members", members], config)
    }

    /// Of a program that a test may exchange.
    #[track_caller]
    pub(crate) fn start_as(program: &Path, arguments: &[&str], config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut process = spawn(program, &directory, arguments, config);
        let (public, internal) = process.wait_line("the router's addresses", DEADLINE, listening);
        Self { process, public, internal, directory }
    }

    /// What it reads again where it is replaced.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.directory.path().join("router.toml")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// A router of listed gateways.
    #[track_caller]
    pub(crate) fn of(gateways: &[&Gateway], config: &str) -> Self {
        let addresses: Vec<String> = gateways.iter().map(|gateway| gateway.public().to_string()).collect();
        Self::start(&format!("static:{}", addresses.join(",")), config)
    }

    /// REST through the router, with the key of `--dev` gateways.
    pub(crate) fn rest(&self) -> Rest {
        Rest::new(self.public).with_key("dev-key")
    }

    #[track_caller]
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        Metrics::scrape(self.internal).sum(name, labels)
    }

    #[track_caller]
    pub(crate) fn eventually_metric(&self, name: &str, labels: &[(&str, &str)], expect: f64) {
        eventually(&format!("{name}{labels:?} is {expect}"), DEADLINE, || {
            self.metric(name, labels) == expect
        });
    }

    #[track_caller]
    pub(crate) fn eventually_live(&self, gateways: usize) {
        self.eventually_metric("tidegate_nodes", &[("state", "live")], gateways as f64);
    }

    /// The node that assign names for a key.
    #[track_caller]
    pub(crate) fn assigned(&self, key: &str) -> String {
        let answer = Rest::new(self.public).get(&format!("/v1/assign?key={key}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["node"].as_str().unwrap().to_owned()
    }

    pub(crate) fn signal(&mut self, stop: Stop) {
        self.process.signal(stop);
    }

    #[track_caller]
    pub(crate) fn wait(&mut self) -> Exit {
        self.process.wait(DEADLINE)
    }
}

impl Site {
    #[track_caller]
    pub(crate) fn start(gateways: usize) -> Self {
        Self::with(gateways, GATEWAY_CONFIG, SHORT_DRAIN)
    }

    #[track_caller]
    pub(crate) fn with(gateways: usize, gateway_config: &str, router_config: &str) -> Self {
        let redis = RedisServer::start();
        let started = (1..=gateways).map(|number| node(&redis, number).config(gateway_config).start());
        let gateways: Vec<Gateway> = started.collect();
        let router = Router::start(&redis.url(), router_config);
        router.eventually_live(gateways.len());
        Self { redis, gateways, router }
    }

    /// The gateway of that name, `g1` first.
    pub(crate) fn gateway(&self, name: &str) -> &Gateway {
        &self.gateways[index(name)]
    }

    /// Keys k0, k1, … with the gateway that each belongs to, as long as all take clients.
    pub(crate) fn keys(&self, count: usize) -> Vec<(String, String)> {
        (0..count)
            .map(|number| format!("k{number}"))
            .map(|key| (self.router.assigned(&key), key))
            .map(swap)
            .collect()
    }
}

/// Gateway number N, not yet started.
pub(crate) fn node(redis: &RedisServer, number: usize) -> GatewayBuilder {
    Gateway::builder().backplane(&redis.url()).node(&format!("g{number}"))
}

pub(crate) fn index(name: &str) -> usize {
    name.trim_start_matches('g').parse::<usize>().unwrap() - 1
}

fn swap((one, other): (String, String)) -> (String, String) {
    (other, one)
}
