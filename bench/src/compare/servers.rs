//! The servers of the comparison as processes: installed, started on their core, ended on drop.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::sys::pin_thread;
use crate::target::Target;

/// A server that does not listen within this time has failed.
const START_MAX: Duration = Duration::from_secs(20);

/// The peers' sources travel in the binary, so that the runner works from any directory.
const PEER_FILES: [(&str, &str); 3] = [
    ("package.json", include_str!("../../peers/package.json")),
    ("bun.ts", include_str!("../../peers/bun.ts")),
    ("ws.mjs", include_str!("../../peers/ws.mjs")),
];

/// A server of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Server {
    Tidegate,
    Floor,
    Bun,
    Ws,
}

impl Server {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 4] = [Self::Tidegate, Self::Floor, Self::Bun, Self::Ws];

    /// Its name in the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tidegate => "Tidegate",
            Self::Floor => "floor",
            Self::Bun => "Bun",
            Self::Ws => "Node ws",
        }
    }
}

/// Where the programs and directories are.
#[derive(Debug, Clone)]
pub struct Places {
    /// The gateway's binary.
    pub tidegate: PathBuf,
    /// More arguments for the gateway.
    pub tidegate_args: Vec<String>,
    /// The floor server's binary.
    pub floor: PathBuf,
    /// Where the peers are installed.
    pub peers: PathBuf,
    /// Where the servers' output goes.
    pub logs: PathBuf,
    pub server_core: usize,
    pub client_core: usize,
}

/// Why a server is not there to be measured.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("the peers could not be put into {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("npm could not be run in {path}: {source}; install Node.js and npm")]
    Npm { path: PathBuf, source: io::Error },
    #[error("npm install failed in {path}: its output is above")]
    Install { path: PathBuf },
    #[error("{program} could not be started: {source}")]
    Spawn { program: PathBuf, source: io::Error },
    #[error("{name} ended before it listened: see {log}")]
    Ended { name: &'static str, log: PathBuf },
    #[error("{name} does not listen on {address} after {} s: see {log}", START_MAX.as_secs())]
    Silent { name: &'static str, address: SocketAddr, log: PathBuf },
    #[error("confining to core {core} failed: {source}")]
    Pin { core: usize, source: io::Error },
    #[error("no free port on loopback: {0}")]
    Port(#[source] io::Error),
}

/// A running server; dropping it ends the process.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pub address: SocketAddr,
}

impl Running {
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    #[must_use]
    pub fn target(&self) -> Target {
        Target::of(self.address)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if the process is gone already, which is what is wanted.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Installs Bun and ws below `places.peers` unless exactly these versions are there.
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
    let program = match server {
        Server::Bun => bun(places),
        Server::Ws => PathBuf::from("node"),
        Server::Tidegate => places.tidegate.clone(),
        Server::Floor => return None,
    };
    let output = Command::new(program).arg("--version").output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    match server {
        Server::Ws => Some(format!("{version}, ws {}", ws_version(places)?)),
        _ => Some(version),
    }
}

fn ws_version(places: &Places) -> Option<String> {
    let package = fs::read(places.peers.join("node_modules/ws/package.json")).ok()?;
    let package: serde_json::Value = serde_json::from_slice(&package).ok()?;
    Some(package.get("version")?.as_str()?.to_owned())
}

/// Starts a server on its core and waits until it listens.
pub fn start(server: Server, places: &Places) -> Result<Running, ServerError> {
    let address = free_address()?;
    let (program, arguments) = command(server, places, address)?;
    let log = places.logs.join(format!("{server:?}.log").to_lowercase());
    let output = open_log(&log)?;
    let errors = output.try_clone().map_err(|source| ServerError::Write { path: log.clone(), source })?;
    // A child inherits the cores of the thread that starts it.
    pin(places.server_core)?;
    let child = Command::new(&program)
        .args(arguments)
        .current_dir(&places.peers)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn();
    pin(places.client_core)?;
    let child = child.map_err(|source| ServerError::Spawn { program, source })?;
    let mut running = Running { child, address };
    wait_listening(&mut running, server, log)?;
    Ok(running)
}

/// Keeps the calling thread, and what it starts from now on, on one core.
pub fn pin(core: usize) -> Result<(), ServerError> {
    pin_thread(core).map_err(|source| ServerError::Pin { core, source })
}

fn command(
    server: Server,
    places: &Places,
    address: SocketAddr,
) -> Result<(PathBuf, Vec<String>), ServerError> {
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    Ok(match server {
        Server::Tidegate => {
            let internal = free_address()?.to_string();
            let listen = address.to_string();
            let mut arguments: Vec<String> =
                ["gateway", "--dev", "--listen", &listen, "--internal", &internal].map(str::to_owned).into();
            arguments.extend_from_slice(&places.tidegate_args);
            (places.tidegate.clone(), arguments)
        }
        Server::Floor => (places.floor.clone(), vec![address.to_string()]),
        Server::Bun => (bun(places), vec!["bun.ts".to_owned(), host, port]),
        Server::Ws => (PathBuf::from("node"), vec!["ws.mjs".to_owned(), host, port]),
    })
}

/// The npm package puts the native program there on every system, whatever its ending.
fn bun(places: &Places) -> PathBuf {
    places.peers.join("node_modules/bun/bin/bun.exe")
}

/// A port that was free a moment ago. Nothing else on a benchmark machine takes it in between.
fn free_address() -> Result<SocketAddr, ServerError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(ServerError::Port)
}

fn open_log(path: &Path) -> Result<File, ServerError> {
    let write = |source| ServerError::Write { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(write)?;
    }
    File::options().create(true).append(true).open(path).map_err(write)
}

fn wait_listening(running: &mut Running, server: Server, log: PathBuf) -> Result<(), ServerError> {
    let began = Instant::now();
    while began.elapsed() < START_MAX {
        if TcpStream::connect(running.address).is_ok() {
            return Ok(());
        }
        if matches!(running.child.try_wait(), Ok(Some(_)) | Err(_)) {
            return Err(ServerError::Ended { name: server.name(), log });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(ServerError::Silent { name: server.name(), address: running.address, log })
}
