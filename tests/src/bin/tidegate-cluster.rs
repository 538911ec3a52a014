//! Redis, a few gateways and a router on this machine, until Ctrl-C or until one of them dies (`cargo xtask cluster`).

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use tidegate_testkit::RawTcp;
use tidegate_testkit::net::SocketOptions;
use tidegate_testkit::redis::{RedisCluster, RedisServer, Sentinel};
use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Debug, Parser)]
#[command(name = "tidegate-cluster", about = "Redis, a few gateways and a router on this machine")]
struct Arguments {
    /// The tidegate binary
    #[arg(long, value_name = "FILE")]
    tidegate: PathBuf,
    /// Where the logs of gateways and router go
    #[arg(long, value_name = "DIRECTORY")]
    logs: PathBuf,
    /// How many gateways
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    gateways: u16,
    /// What kind of Redis
    #[arg(long, value_enum, default_value_t = RedisKind::Standalone)]
    redis: RedisKind,
    /// The first gateway's port; the others follow, and 1000 above are their internal ports
    #[arg(long, value_name = "PORT", default_value_t = 8000, value_parser = clap::value_parser!(u16).range(1..=64_000))]
    base_port: u16,
    /// The router's port, the one to open; 1000 above is its internal port
    #[arg(long, value_name = "PORT", default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..=64_000))]
    router_port: u16,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RedisKind {
    Standalone,
    /// A master, two replicas, three Sentinels
    Sentinel,
    /// Three masters with a replica each
    Cluster,
}

/// From a public port to its internal one.
const INTERNAL_PORT_OFFSET: u16 = 1000;

/// A process needs milliseconds; a busy machine may need seconds.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Between two looks at the processes.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A terminal sends Ctrl-C to every process at once: a child that it ended must not look like one that died.
const SIGNAL_GRACE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")
        .and_then(|runtime| runtime.block_on(run(&Arguments::parse())));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<()> {
    // Before anything is started: a signal in between must end it as well.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut redis = Redis::start(arguments.redis);
    fs::create_dir_all(&arguments.logs).with_context(|| format!("make {}", arguments.logs.display()))?;
    let nodes = (0..arguments.gateways).map(|index| Node::start(arguments, index, &redis.url()));
    let mut nodes = nodes.collect::<Result<Vec<Node>>>()?;
    nodes.push(Node::start_router(arguments, &redis.url())?);
    let up = async {
        for node in &mut nodes {
            node.listens().await?;
        }
        // The router is the last, and ready when it knows a gateway.
        if let Some(router) = nodes.last_mut() {
            router.is_ready().await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        outcome = up => outcome?,
        () = either(&mut interrupt, &mut terminate) => return Ok(()),
    }
    println!("{}", introduction(arguments, &mut redis, &nodes));
    let died = tokio::select! {
        () = either(&mut interrupt, &mut terminate) => return Ok(()),
        died = first_death(&mut redis, &mut nodes) => died,
    };
    match tokio::time::timeout(SIGNAL_GRACE, either(&mut interrupt, &mut terminate)).await {
        Ok(()) => Ok(()),
        Err(_) => bail!("{died} ended, and so does the rest"),
    }
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

async fn first_death(redis: &mut Redis, nodes: &mut [Node]) -> String {
    loop {
        if let Some(node) = nodes.iter_mut().find_map(Node::death) {
            return node;
        }
        for server in redis.servers() {
            if server.process().try_wait().is_some() {
                return format!("redis-server at {}", server.address());
            }
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// What to try, for whoever started it.
fn introduction(arguments: &Arguments, redis: &mut Redis, nodes: &[Node]) -> String {
    let Some((router, gateways)) = nodes.split_last() else { return String::new() };
    let names: Vec<String> = gateways
        .iter()
        .map(|node| {
            format!(
                "{} http://{} metrics http://{}/metrics pid {}",
                node.name,
                node.public,
                node.internal,
                node.child.id()
            )
        })
        .collect();
    let servers: Vec<String> = redis
        .servers()
        .into_iter()
        .map(|server| format!("{} pid {}", server.address(), server.process().pid()))
        .collect();
    format!(
        "open       http://{address}/\n\
         router     metrics http://{}/metrics; curl 'http://{address}/v1/assign?key=a'\n\
         gateways   {}\n\
         redis      {} ({})\n\
         subscribe  curl -N 'http://{address}/sse?channel=news'\n\
         publish    curl -H 'authorization: Bearer dev-key' -d hello http://{address}/v1/channels/news/publish\n\
         break      kill -STOP a Redis pid, look at http://{}/readyz, kill -CONT it\n\
         logs       {}; Ctrl-C ends everything",
        router.internal,
        names.join("\n           "),
        redis.url(),
        servers.join(", "),
        gateways.first().map_or_else(String::new, |node| node.internal.to_string()),
        arguments.logs.display(),
        address = router.public,
    )
}

enum Redis {
    Standalone(RedisServer),
    Sentinel(Sentinel),
    Cluster(RedisCluster),
}

impl Redis {
    fn start(kind: RedisKind) -> Self {
        match kind {
            RedisKind::Standalone => Redis::Standalone(RedisServer::start()),
            RedisKind::Sentinel => Redis::Sentinel(Sentinel::start()),
            RedisKind::Cluster => Redis::Cluster(RedisCluster::start(3, 1)),
        }
    }

    fn url(&self) -> String {
        match self {
            Redis::Standalone(server) => server.url(),
            Redis::Sentinel(group) => group.url(),
            Redis::Cluster(cluster) => cluster.url(),
        }
    }

    /// Every server that holds data.
    fn servers(&mut self) -> Vec<&mut RedisServer> {
        match self {
            Redis::Standalone(server) => vec![server],
            Redis::Sentinel(group) => group.servers().iter_mut().collect(),
            Redis::Cluster(cluster) => cluster.nodes().iter_mut().collect(),
        }
    }
}

/// A process of ours, killed when it is dropped.
struct Node {
    name: String,
    public: SocketAddr,
    internal: SocketAddr,
    log: PathBuf,
    child: Child,
}

impl Node {
    fn start(arguments: &Arguments, index: u16, redis: &str) -> Result<Self> {
        let name = format!("g{}", index + 1);
        let port = arguments.base_port + index;
        let gateway = ["gateway", "--dev", "--backplane", redis, "--node", &name];
        Self::spawn(arguments, &name, port, &gateway)
    }

    fn start_router(arguments: &Arguments, redis: &str) -> Result<Self> {
        Self::spawn(arguments, "router", arguments.router_port, &["router", "--members", redis])
    }

    fn spawn(arguments: &Arguments, name: &str, port: u16, options: &[&str]) -> Result<Self> {
        let public = SocketAddr::from(([127, 0, 0, 1], port));
        let internal = SocketAddr::from(([127, 0, 0, 1], port + INTERNAL_PORT_OFFSET));
        let log = arguments.logs.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let mut command = Command::new(&arguments.tidegate);
        command.args(options);
        command.args(["--listen", &public.to_string(), "--internal", &internal.to_string()]);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("start {}", arguments.tidegate.display()))?;
        Ok(Self { name: name.to_owned(), public, internal, log, child })
    }

    /// Waits for the line that a process prints when it takes connections.
    async fn listens(&mut self) -> Result<()> {
        let give_up = Instant::now() + START_DEADLINE;
        while !read(&self.log).contains("listening ") {
            if let Some(death) = self.death() {
                bail!("{death} did not start: {}", read(&self.log).trim_end());
            }
            if Instant::now() > give_up {
                bail!("{} does not listen after {START_DEADLINE:?}: {}", self.name, self.log.display());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }

    async fn is_ready(&mut self) -> Result<()> {
        let give_up = Instant::now() + START_DEADLINE;
        loop {
            let mut probe = RawTcp::try_connect(self.internal, SocketOptions::default())?;
            probe.try_send(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            if probe.read_head(START_DEADLINE)?.status == 200 {
                return Ok(());
            }
            if let Some(death) = self.death() {
                bail!("{death} did not become ready: {}", read(&self.log).trim_end());
            }
            if Instant::now() > give_up {
                bail!("{} is not ready after {START_DEADLINE:?}: {}", self.name, self.log.display());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Its name and how it ended, when it has.
    fn death(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        Some(format!("{} ({status})", self.name))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a log says so far; nothing while it cannot be read.
fn read(log: &Path) -> String {
    fs::read_to_string(log).unwrap_or_default()
}
