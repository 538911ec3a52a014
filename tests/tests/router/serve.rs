//! `tidegate serve`: a router and gateways behind one port, with sockets handed over.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tidegate_testkit::{
    DEADLINE, Exit, Metrics, Process, Received, Rest, SseClient, Stop, WsClient, eventually, product_binary,
    redis::RedisServer,
};

use crate::site::{GATEWAY_CONFIG, SHORT_DRAIN, listening};

/// A running `tidegate serve --dev`.
pub(crate) struct Serve {
    pub(crate) process: Process,
    pub(crate) public: SocketAddr,
    /// Of the router.
    pub(crate) internal: SocketAddr,
    /// Internal ports of the gateways.
    pub(crate) gateways: BTreeMap<String, SocketAddr>,
    redis: RedisServer,
    directory: TempDir,
}

fn spawn(program: &Path, directory: &Path, config: &str, arguments: &[&str]) -> Process {
    let (gateways, router) = (directory.join("gateways.toml"), directory.join("router.toml"));
    fs::write(&gateways, config).unwrap();
    fs::write(&router, SHORT_DRAIN).unwrap();
    let mut command = Command::new(program);
    command.args(["serve", "--dev", "--listen", "127.0.0.1:0", "--internal", "127.0.0.1:0"]);
    command.arg("--config").arg(gateways).arg("--router-config").arg(router);
    command.args(arguments).env("TMPDIR", directory);
    command.env_remove("TIDEGATE_BIN").env_remove("TIDEGATE_CACHE");
    Process::spawn("serve", &mut command)
}

impl Serve {
    #[track_caller]
    fn start(gateways: usize) -> Self {
        Self::start_as(&product_binary(), gateways, GATEWAY_CONFIG)
    }

    #[track_caller]
    pub(crate) fn start_as(program: &Path, gateways: usize, config: &str) -> Self {
        let (redis, directory) = (RedisServer::start(), tempfile::tempdir().unwrap());
        let number = gateways.to_string();
        let arguments = ["--gateways", &number, "--backplane", &redis.url(), "--node", "g"];
        let mut process = spawn(program, directory.path(), config, &arguments);
        let (public, internal) = process.wait_line("the router's addresses", DEADLINE, listening);
        let serve = Self { process, public, internal, gateways: BTreeMap::new(), redis, directory };
        let serve = Self { gateways: serve.told(), ..serve };
        assert_eq!(serve.gateways.len(), gateways);
        serve.eventually_live(gateways);
        serve
    }

    /// The internal port of `serve` itself.
    pub(crate) fn own(&self) -> SocketAddr {
        let stdout = self.process.stdout();
        let own = stdout.lines().find_map(|line| line.trim().strip_prefix("serve internal=http://"));
        own.expect("it is told").parse().unwrap()
    }

    /// The internal ports that the greeting names.
    fn told(&self) -> BTreeMap<String, SocketAddr> {
        let stdout = self.process.stdout();
        let pairs = stdout.lines().filter_map(|line| line.trim().split_once(" internal=http://"));
        pairs
            .filter(|(name, _)| name.starts_with("gateway-"))
            .map(|(name, at)| (name.to_owned(), at.parse().unwrap()))
            .collect()
    }

    #[track_caller]
    pub(crate) fn eventually_live(&self, gateways: usize) {
        eventually("all gateways take clients", DEADLINE, || {
            Metrics::scrape(self.internal).sum("tidegate_nodes", &[("state", "live")]) == gateways as f64
        });
    }

    /// Of the router.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        Metrics::scrape(self.internal).sum(name, labels)
    }

    pub(crate) fn connections(&self) -> f64 {
        self.gateways.values().map(|at| Metrics::scrape(*at).sum("tidegate_connections", &[])).sum()
    }

    pub(crate) fn rest(&self) -> Rest {
        Rest::new(self.public).with_key("dev-key")
    }

    /// Its children, by what comes after the program's name and what names them.
    pub(crate) fn children(&self) -> BTreeMap<String, u32> {
        children_of(self.process.pid())
    }
}

pub(crate) fn children_of(parent: u32) -> BTreeMap<String, u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let of = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse::<u32>().ok()?;
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<&str> = line.split('\0').collect();
        let node = words.iter().position(|word| *word == "--node").and_then(|at| words.get(at + 1));
        let name = node.or(words.get(1))?;
        (of == parent).then(|| ((*name).to_owned(), pid))
    })
    .collect()
}

pub(crate) fn is_running(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !status.is_empty() && !status.contains(") Z ")
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

pub(crate) fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn clients_of_every_protocol_are_handed_over() {
    let serve = Serve::start(2);
    let mut raw = WsClient::connect(serve.public, "/ws?channel=news&key=a");
    let mut stream = SseClient::connect(serve.public, "/sse?channel=news&key=b", None);
    let mut pusher = WsClient::connect(serve.public, "/app/dev-key?protocol=7&key=c");
    assert_eq!(pusher.expect_json()["event"], "pusher:connection_established");
    pusher.send_text(r#"{"event":"pusher:subscribe","data":{"channel":"news"}}"#);
    assert_eq!(pusher.expect_json()["event"], "pusher_internal:subscription_succeeded");
    let mut centrifuge = WsClient::connect(serve.public, "/connection/websocket?key=d");
    centrifuge.send_text(r#"{"id":1,"connect":{}}"#);
    assert!(centrifuge.expect_json()["connect"].is_object());
    centrifuge.send_text(r#"{"id":2,"subscribe":{"channel":"news"}}"#);
    assert_eq!(centrifuge.expect_json()["id"], 2);

    assert_eq!(serve.metric("tidegate_upstream_connects_total", &[("result", "handed_over")]), 4.0);
    assert_eq!(serve.metric("tidegate_proxied_connections_opened_total", &[]), 0.0);
    eventually("the gateways hold them", DEADLINE, || serve.connections() == 4.0);
    // Requests go through the router.
    serve.rest().publish("news", r#""hello""#);
    assert_eq!(raw.expect_text(), r#""hello""#);
    assert_eq!(stream.expect_event().data, r#""hello""#);
    assert!(centrifuge.expect_json()["push"]["pub"]["data"] == "hello");
    // What a client sends arrives, and what is after a refused handshake as well.
    raw.send_ping(b"still here");
    assert_eq!(raw.expect_pong(), b"still here");
    assert!(WsClient::try_connect(serve.public, "/ws?channel=%00&key=a", &[]).is_err());
    drop((raw, stream, pusher, centrifuge));
    eventually("all are gone", DEADLINE, || serve.connections() == 0.0);
}

/// Lines that are opened meanwhile, one from each shard of the router to each gateway, and connections of this test's own
/// scrapes. A leak of one for each client would be 300.
const SPARE: usize = 16;

#[test]
fn no_descriptor_is_left_of_those_that_were_handed_over() {
    let serve = Serve::start(2);
    let round = || {
        let open = |number: usize| WsClient::connect(serve.public, &format!("/ws?channel=a&key={number}"));
        let clients: Vec<WsClient> = (0..100).map(open).collect();
        eventually("the gateways hold them", DEADLINE, || serve.connections() == 100.0);
        drop(clients);
        eventually("all are gone", DEADLINE, || serve.connections() == 0.0);
    };
    round();
    let counted = || -> Vec<usize> { serve.children().values().map(|pid| descriptors(*pid)).collect() };
    let before = counted();
    for _ in 0..3 {
        round();
    }
    let mut after = Vec::new();
    eventually(&format!("as many descriptors as before ({before:?})"), DEADLINE, || {
        after = counted();
        after.iter().zip(&before).all(|(after, before)| *after <= before + SPARE)
    });
}

#[test]
fn a_gateway_that_is_killed_is_started_again_and_takes_clients() {
    let serve = Serve::start(2);
    let mut clients: Vec<WsClient> = (0..20)
        .map(|number| WsClient::connect(serve.public, &format!("/ws?channel=a&key={number}")))
        .collect();
    let children = serve.children();
    kill(children["g-1"]);
    eventually("it is started again", DEADLINE, || {
        serve.children().get("g-1").is_some_and(|pid| *pid != children["g-1"])
    });
    assert_eq!(serve.children()["g-2"], children["g-2"]);
    serve.eventually_live(2);
    assert!(serve.process.stderr().contains("a child has ended and is started again"));
    assert!(serve.process.stderr().contains("gateway-1: "), "log lines say whose they are");
    // Those of the other gateway have noticed nothing, and whoever comes back is served.
    let mut lost = 0;
    serve.rest().publish("a", "after");
    for (number, client) in clients.iter_mut().enumerate() {
        if let Received::Closed(_) = client.next(DEADLINE) {
            lost += 1;
            *client = WsClient::connect(serve.public, &format!("/ws?channel=a&key={number}"));
        }
    }
    assert!(lost > 0 && lost < 20, "{lost}");
    serve.rest().publish("a", "again");
    let handed = || serve.metric("tidegate_upstream_connects_total", &[("result", "handed_over")]);
    eventually("the new one is handed clients", DEADLINE, || {
        drop(WsClient::connect(serve.public, "/ws?channel=b"));
        handed() >= 20.0 + lost as f64
    });
}

/// The others go on, and the log says how long it is waited for, and from the fifth time on that it is no accident.
#[test]
fn a_gateway_that_dies_in_a_loop_is_started_ever_later_and_that_is_said() {
    let serve = Serve::start(2);
    let mut other = (0..).find_map(|number| {
        let client = WsClient::connect(serve.public, &format!("/ws?channel=a&key={number}"));
        let of = &serve.gateways["gateway-2"];
        eventually("a gateway holds it", DEADLINE, || serve.connections() > 0.0);
        (Metrics::scrape(*of).sum("tidegate_connections", &[]) > 0.0).then_some(client)
    });
    let mut last = 0;
    for _ in 0..5 {
        eventually("it runs again", DEADLINE, || serve.children().get("g-1").is_some_and(|pid| *pid != last));
        last = serve.children()["g-1"];
        kill(last);
    }
    let said = |part: &str| eventually(part, DEADLINE, || serve.process.stderr().contains(part));
    ["again_in=200ms", "again_in=400ms", "again_in=800ms", "again_in=1.6s", "again_in=3.2s"]
        .into_iter()
        .for_each(said);
    said("it ends each time within a minute");
    serve.rest().publish("a", "still here");
    assert_eq!(other.as_mut().unwrap().expect_text(), "still here");
}

#[test]
fn a_stop_drains_all_and_leaves_nothing() {
    let mut serve = Serve::start(2);
    let mut clients: Vec<WsClient> = (0..20)
        .map(|number| WsClient::connect(serve.public, &format!("/ws?channel=a&key={number}")))
        .collect();
    let children = serve.children();
    assert_eq!(children.len(), 3);
    serve.process.signal(Stop::Terminate);
    for client in &mut clients {
        client.expect_close(1012);
    }
    let exit = serve.process.wait(DEADLINE * 2);
    assert_eq!(exit.code, Some(0), "{exit}");
    assert!(children.values().all(|pid| !is_running(*pid)));
    assert_eq!(sockets(serve.directory.path()), Vec::<PathBuf>::new());
    drop(serve.redis);
}

fn sockets(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

#[test]
fn children_end_with_who_started_them() {
    let mut serve = Serve::start(1);
    let children = serve.children();
    serve.process.signal(Stop::Kill);
    serve.process.wait(DEADLINE);
    eventually("the children have ended", DEADLINE * 2, || children.values().all(|pid| !is_running(*pid)));
}

#[test]
fn what_cannot_be_served_is_said() {
    let run = |arguments: &[&str]| -> Exit {
        let directory = tempfile::tempdir().unwrap();
        spawn(&product_binary(), directory.path(), GATEWAY_CONFIG, arguments).wait(DEADLINE)
    };
    let exit = run(&["--gateways", "2"]);
    assert_eq!(exit.code, Some(2), "{exit}");
    assert!(exit.stderr.contains("`serve` needs a backplane that its gateways share"), "{exit}");
    // A child says itself what is wrong, and its code is this one's.
    let redis = RedisServer::start();
    let exit = run(&["--gateways", "1", "--backplane", &redis.url(), "--key", "zebra"]);
    assert_eq!(exit.code, Some(2), "{exit}");
    assert!(exit.stderr.contains("router: ") && exit.stderr.contains("zebra"), "{exit}");
}
