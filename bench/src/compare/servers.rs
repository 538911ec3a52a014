//! The servers of the comparison: their versions, how the peers are installed, and how each is started.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::pusher::{APP_ID, APP_KEY, APP_SECRET};

use super::launch::{
    Launch, Places, Running, ServerError, environment, free_address, launch, system_program, write,
};

/// The peers' sources travel in the binary, so that the runner works from any directory.
const PEER_FILES: [(&str, &str); 6] = [
    ("package.json", include_str!("../../peers/package.json")),
    ("bun.ts", include_str!("../../peers/bun.ts")),
    ("ws.mjs", include_str!("../../peers/ws.mjs")),
    ("socketio.mjs", include_str!("../../peers/socketio.mjs")),
    ("http.mjs", include_str!("../../peers/http.mjs")),
    ("http.go", include_str!("../../peers/http.go")),
];

/// A server of the comparison, or a deployment of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Server {
    Tidegate,
    /// The gateway of another build, to be compared with.
    Before,
    Floor,
    Bun,
    Ws,
    /// One gateway with the memory backplane, beside those that are joined by Redis.
    OneNode,
    SocketIo,
    RedisBenchmark,
    Haproxy,
    Nginx,
    #[value(name = "gateways-1")]
    Gateways1,
    #[value(name = "gateways-2")]
    Gateways2,
    #[value(name = "gateways-4")]
    Gateways4,
    #[value(name = "gateways-8")]
    Gateways8,
    #[value(name = "proxied-8")]
    Proxied8,
    Sockudo,
    /// The same gateway by `/ws` and `/v1`, beside another protocol of it.
    Raw,
    NodeHttp,
    GoHttp,
    /// A gateway that clients connect to, beside one that a router gives them to.
    Direct,
    /// A gateway behind a router that passes bytes on.
    Proxied,
}

impl Server {
    /// Its name in the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tidegate => "Tidegate",
            Self::Before => "before",
            Self::Floor => "floor",
            Self::Bun => "Bun",
            Self::Ws => "Node ws",
            Self::OneNode => "one node",
            Self::SocketIo => "Socket.IO",
            Self::RedisBenchmark => "redis-benchmark",
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
            Self::Gateways1 => "1 gateway",
            Self::Gateways2 => "2 gateways",
            Self::Gateways4 => "4 gateways",
            Self::Gateways8 => "8 gateways",
            Self::Proxied8 => "8 by proxy",
            Self::Sockudo => "sockudo",
            Self::Raw => "raw",
            Self::NodeHttp => "Node http",
            Self::GoHttp => "Go net/http",
            Self::Direct => "direct",
            Self::Proxied => "by proxy",
        }
    }

    /// Its source is among the peers' files.
    #[must_use]
    pub fn is_peer(self) -> bool {
        matches!(self, Self::Bun | Self::Ws | Self::SocketIo | Self::NodeHttp | Self::GoHttp)
    }
}

impl Places {
    /// The binary of a gateway.
    fn gateway(&self, server: Server) -> PathBuf {
        let before = self.before.as_ref().filter(|_| server == Server::Before);
        before.unwrap_or(&self.tidegate).clone()
    }
}

/// Installs the npm packages of the peers below `places.peers` unless exactly these versions are there.
pub fn install_peers(places: &Places) -> Result<(), ServerError> {
    let path = &places.peers;
    let write = |source| ServerError::Write { path: path.clone(), source };
    fs::create_dir_all(path).map_err(write)?;
    let installed = path.join("node_modules/.installed");
    let wanted = PEER_FILES[0].1;
    for (name, content) in PEER_FILES {
        fs::write(path.join(name), content).map_err(write)?;
    }
    if fs::read_to_string(&installed).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    let status = Command::new("npm")
        .args(["install", "--no-package-lock", "--no-audit", "--no-fund"])
        .current_dir(path)
        .stdout(Stdio::null())
        .status()
        .map_err(|source| ServerError::Npm { path: path.clone(), source })?;
    if !status.success() || !bun(places).exists() {
        return Err(ServerError::Install { path: path.clone() });
    }
    fs::write(installed, wanted).map_err(write)
}

/// The version a server reports, for the line about the machine.
#[must_use]
pub fn version(server: Server, places: &Places) -> Option<String> {
    let (program, flag) = match server {
        Server::Bun => (bun(places), "--version"),
        Server::Ws | Server::NodeHttp => (PathBuf::from("node"), "--version"),
        Server::GoHttp => (PathBuf::from("go"), "version"),
        Server::Tidegate => (places.tidegate.clone(), "--version"),
        Server::Before => (places.gateway(server), "--version"),
        Server::RedisBenchmark => (PathBuf::from("redis-server"), "--version"),
        Server::Haproxy => (system_program("haproxy"), "-v"),
        Server::Nginx => (system_program("nginx"), "-v"),
        Server::Sockudo => (sockudo()?, "--version"),
        Server::SocketIo => {
            let packages = ["socket.io", "@socket.io/redis-adapter"];
            let [server, adapter] = packages.map(|package| package_version(places, package));
            return Some(format!("{}, redis-adapter {}", server?, adapter?));
        }
        _ => return None,
    };
    let output = Command::new(program).arg(flag).output().ok()?;
    // nginx says it on standard error.
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let text = String::from_utf8(text).ok()?;
    let line = text.lines().next()?.trim();
    match server {
        Server::Ws => Some(format!("{line}, ws {}", package_version(places, "ws")?)),
        Server::RedisBenchmark | Server::Haproxy | Server::Nginx | Server::Sockudo => {
            Some(number_in(line)?.to_owned())
        }
        _ => Some(line.to_owned()),
    }
}

/// The first word, or part of one behind `=` or `/`, that begins with a digit.
fn number_in(line: &str) -> Option<&str> {
    let words = line.split([' ', '=', '/']);
    words.into_iter().find(|word| word.starts_with(|first: char| first.is_ascii_digit()))
}

fn package_version(places: &Places, package: &str) -> Option<String> {
    let package = fs::read(places.peers.join("node_modules").join(package).join("package.json")).ok()?;
    let package: serde_json::Value = serde_json::from_slice(&package).ok()?;
    Some(package.get("version")?.as_str()?.to_owned())
}

/// Starts a server of the gateway group on the servers' core.
pub(super) fn start(server: Server, places: &Places) -> Result<Running, ServerError> {
    let core = places.server_core;
    let address = free_address()?;
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let (program, arguments) = match server {
        Server::Floor => return start_floor(places, core),
        Server::Bun => (bun(places), vec!["bun.ts".to_owned(), host, port]),
        Server::Ws => (PathBuf::from("node"), vec!["ws.mjs".to_owned(), host, port]),
        _ => return launch_gateway(places, places.gateway(server), core, &[], Vec::new()),
    };
    launch(
        places,
        Launch {
            name: server.name(),
            program,
            arguments,
            environment: Vec::new(),
            address,
            core: Some(core),
        },
    )
}

/// The floor server.
pub(super) fn start_floor(places: &Places, core: usize) -> Result<Running, ServerError> {
    let address = free_address()?;
    let arguments = vec![address.to_string()];
    let program = places.floor.clone();
    launch(
        places,
        Launch { name: "floor", program, arguments, environment: Vec::new(), address, core: Some(core) },
    )
}

/// A gateway without history, with more arguments than its ports.
pub(super) fn start_gateway(
    places: &Places,
    core: impl Into<Option<usize>>,
    more: &[&str],
) -> Result<Running, ServerError> {
    // Development mode keeps history, which costs a script in Redis for each publication.
    let no_history = [
        ("TIDEGATE__NAMESPACES__DEFAULT__HISTORY_SIZE", "0"),
        ("TIDEGATE__NAMESPACES__DEFAULT__HISTORY_AGE", "0s"),
    ];
    launch_gateway(places, places.tidegate.clone(), core, more, environment(&no_history))
}

/// The same for clients of Pusher. Counts are off as they are unless asked for: a message to every subscriber each 5 s.
pub(super) fn start_pusher_gateway(places: &Places, core: usize) -> Result<Running, ServerError> {
    let file = write(&places.logs, "pusher.toml", "[apps.1]\nsubscription_count = false\n")?;
    start_gateway(places, core, &["--config", &file])
}

/// The same with variables of its own.
pub(super) fn launch_gateway(
    places: &Places,
    program: PathBuf,
    core: impl Into<Option<usize>>,
    more: &[&str],
    environment: Vec<(&'static str, String)>,
) -> Result<Running, ServerError> {
    launch_gateway_at(places, program, core.into(), free_address()?, more, environment)
}

/// The same with an internal port that the caller knows.
pub(super) fn launch_gateway_at(
    places: &Places,
    program: PathBuf,
    core: Option<usize>,
    internal: SocketAddr,
    more: &[&str],
    environment: Vec<(&'static str, String)>,
) -> Result<Running, ServerError> {
    let address = free_address()?;
    let (listen, internal) = (address.to_string(), internal.to_string());
    let mut arguments = vec!["gateway", "--dev", "--listen", &listen, "--internal", &internal];
    arguments.extend_from_slice(more);
    let mut arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
    arguments.extend_from_slice(&places.tidegate_args);
    launch(places, Launch { name: "gateway", program, arguments, environment, address, core })
}

/// A router on the given ports.
pub(super) fn start_router(
    places: &Places,
    core: usize,
    [address, internal]: [SocketAddr; 2],
    more: &[&str],
) -> Result<Running, ServerError> {
    start_router_with(places, core, [address, internal], more, &[])
}

/// The same with variables of its own.
pub(super) fn start_router_with(
    places: &Places,
    core: usize,
    [address, internal]: [SocketAddr; 2],
    more: &[&str],
    variables: &[(&'static str, &str)],
) -> Result<Running, ServerError> {
    let (listen, internal) = (address.to_string(), internal.to_string());
    let mut arguments = vec!["router", "--listen", &listen, "--internal", &internal, "--shards", "1"];
    arguments.extend_from_slice(more);
    let launched = Launch {
        name: "router",
        program: places.tidegate.clone(),
        arguments: arguments.into_iter().map(str::to_owned).collect(),
        environment: environment(&[&ROUTER, variables].concat()),
        address,
        core: Some(core),
    };
    launch(places, launched)
}

/// A gateway in development mode has no limit of handshakes, and neither have the proxies beside a router. Health checks
/// come on top of a core that is fully used: a late answer is no failed node here.
const ROUTER: [(&str, &str); 4] = [
    ("TIDEGATE__LIMITS__HANDSHAKES_PER_SECOND", "0"),
    ("TIDEGATE__HEALTH__FAILURES", "1000000"),
    ("TIDEGATE__ASSIGN__URL", "ws://{address}"),
    ("TIDEGATE__ASSIGN__REQUESTS_PER_SECOND", "0"),
];

/// A Redis that keeps nothing on disk.
pub(super) fn start_redis(places: &Places, core: usize) -> Result<Running, ServerError> {
    redis_at(places, core, free_address()?)
}

/// The same where another one was.
pub(super) fn redis_at(places: &Places, core: usize, address: SocketAddr) -> Result<Running, ServerError> {
    let port = address.port().to_string();
    let arguments = ["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no"];
    let launched = Launch {
        name: "redis",
        program: PathBuf::from("redis-server"),
        arguments: arguments.map(str::to_owned).into(),
        environment: Vec::new(),
        address,
        core: Some(core),
    };
    launch(places, launched)
}

/// A Socket.IO server with the Redis adapter.
pub(super) fn start_socket_io(
    places: &Places,
    core: usize,
    redis: SocketAddr,
) -> Result<Running, ServerError> {
    let address = free_address()?;
    let words = [address.ip().to_string(), address.port().to_string(), format!("redis://{redis}")];
    let launched = Launch {
        name: Server::SocketIo.name(),
        program: PathBuf::from("node"),
        arguments: std::iter::once("socketio.mjs".to_owned()).chain(words).collect(),
        // What Node's own documentation says of running a server for others.
        environment: environment(&[("NODE_ENV", "production")]),
        address,
        core: Some(core),
    };
    launch(places, launched)
}

/// sockudo, where `SOCKUDO` names it or `PATH` has it. Building it takes half an hour, so it takes part only where it is.
pub(super) fn sockudo() -> Option<PathBuf> {
    let named = std::env::var_os("SOCKUDO").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|directory| directory.join("sockudo"));
    named.into_iter().chain(found).find(|program| program.is_file())
}

/// sockudo with the app of `--dev`, everything in memory, no limits of rate, no metrics.
pub(super) fn start_sockudo(places: &Places, core: usize) -> Result<Running, ServerError> {
    let address = free_address()?;
    let mut environment = environment(&SOCKUDO);
    environment.extend([("HOST", address.ip().to_string()), ("PORT", address.port().to_string())]);
    let program = sockudo().unwrap_or_else(|| PathBuf::from("sockudo"));
    launch(
        places,
        Launch { name: "sockudo", program, arguments: Vec::new(), environment, address, core: Some(core) },
    )
}

/// Names and values are those of its documentation.
const SOCKUDO: [(&str, &str); 11] = [
    ("SOCKUDO_DEFAULT_APP_ID", APP_ID),
    ("SOCKUDO_DEFAULT_APP_KEY", APP_KEY),
    ("SOCKUDO_DEFAULT_APP_SECRET", APP_SECRET),
    ("SOCKUDO_DEFAULT_APP_MAX_CONNECTIONS", "1000000"),
    ("SOCKUDO_DEFAULT_APP_MAX_BACKEND_EVENTS_PER_SECOND", "100000000"),
    ("APP_MANAGER_DRIVER", "memory"),
    ("ADAPTER_DRIVER", "local"),
    ("CACHE_DRIVER", "memory"),
    ("RATE_LIMITER_ENABLED", "false"),
    ("METRICS_ENABLED", "false"),
    ("RUST_LOG", "warn"),
];

/// The npm package puts the native program there on every system, whatever its ending.
pub(super) fn bun(places: &Places) -> PathBuf {
    places.peers.join("node_modules/bun/bin/bun.exe")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_a_line() {
        for (line, version) in [
            ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0", Some("7.0.15")),
            ("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/", Some("2.6.12-1+deb12u4")),
            ("nginx version: nginx/1.22.1", Some("1.22.1")),
            ("no number", None),
        ] {
            assert_eq!(number_in(line), version, "{line}");
        }
    }
}
