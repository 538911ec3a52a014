//! `tidegate serve`: a router and gateways of this machine as children, behind one port. What each is started with.
//!
//! Gateways listen on loopback ports that the system chooses, where only the router connects to; it names the client
//! there (PROXY protocol), and hands sockets over where it can. What both have to know, as the backplane, is told to the
//! router by variables: an argument could be read by every user of the machine.

mod upgrading;

use std::{
    ffi::OsString,
    fs, io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
};

use tidegate_gateway::config::{BackplaneUrl, Config, ConfigError, PREFIX, Sources};
use tidegate_ops::{
    children::{self, ChildrenError, Program, Ready, port},
    hosts::InternalAccess,
    listener::{ListenError, listen},
    log,
    probes::Upgrade,
};

use crate::{
    Failure, announce,
    args::{GatewayArgs, ServeArgs},
    upgrade,
};

/// Why nothing is started.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(
        "`serve` needs a backplane that its gateways share: set --backplane redis://HOST:6379. One gateway without one is \
         `tidegate gateway`"
    )]
    Memory,
    #[error("`advertise` is for gateways that are reached directly, and those of `serve` are not: remove it")]
    Advertise,
    #[error(
        "`tls` belongs into the configuration of the router (--router-config), at whose port TLS ends: remove it"
    )]
    Tls,
    #[error(
        "{ports} ports are needed after {internal}, for the gateways and `serve` itself: choose a lower one"
    )]
    Ports { ports: u16, internal: SocketAddr },
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot make a directory for sockets in {}: {source}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot find this program: {0}")]
    Program(io::Error),
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        match error {
            ServeError::Directory { .. } | ServeError::Program(_) => Self::run(&error),
            _ => Self::start(&error),
        }
    }
}

impl From<ChildrenError> for Failure {
    fn from(error: ChildrenError) -> Self {
        Self { sentence: error.to_string(), code: error.exit_code() }
    }
}

/// Settings of a gateway that its router has under the same names.
const REDIS_KEYS: [&str; 7] = [
    "PREFIX",
    "PASSWORD_FILE",
    "CA_FILE",
    "CERT_FILE",
    "KEY_FILE",
    "SENTINEL_USER",
    "SENTINEL_PASSWORD_FILE",
];

/// Runs until it is told to stop.
pub(crate) fn run(args: &ServeArgs) -> Result<(), Failure> {
    let sources = args.gateway(0, Path::new("")).into_sources();
    let config = Config::load(&sources).map_err(ServeError::Config)?;
    check(args, &config)?;
    let _logging = log::init(&config.log);
    // Of this process itself.
    let own = listen(args.internal_after(args.gateways + 1), "internal").map_err(ServeError::Listen)?;
    let at = own.local_addr().map_err(|error| Failure::run(&error))?;
    let access = InternalAccess::new(&config.internal_hosts, config.drain.token_file.as_deref());
    let (access, upgrade) = (access.map_err(ServeError::Config)?, Arc::new(Upgrade::default()));
    let sockets = Sockets::new()?;
    let plan = Plan { args, config: &config, sources: &sources, sockets: &sockets.0 };
    let groups = vec![plan.gateways()?, vec![plan.router()?]];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::run(&error))?;
    let offered = Arc::clone(&upgrade);
    let on_ready = |ready: Vec<Ready>| {
        announce(&greeting(&ready, at));
        upgrading::offer(ready, &upgrade);
    };
    runtime.block_on(async {
        port::serve(own, access, offered).map_err(|error| Failure::run(&error))?;
        Ok(children::run(groups, on_ready).await?)
    })
}

fn check(args: &ServeArgs, config: &Config) -> Result<(), ServeError> {
    let ports = args.gateways + 1;
    let last = args.internal.port().checked_add(ports);
    match () {
        () if config.backplane == BackplaneUrl::Memory => Err(ServeError::Memory),
        () if config.advertise.is_some() => Err(ServeError::Advertise),
        () if config.tls.is_on() => Err(ServeError::Tls),
        () if last.is_none() => Err(ServeError::Ports { ports, internal: args.internal }),
        () => Ok(()),
    }
}

/// What the router has said, then where each gateway is looked at, and this process.
fn greeting(ready: &[Ready], own: SocketAddr) -> String {
    let (router, gateways): (Vec<_>, Vec<_>) = ready.iter().partition(|ready| &*ready.name == ROUTER);
    let mut greeting = String::new();
    for ready in router {
        greeting += &format!("listening {}\n", ready.line());
    }
    for ready in gateways {
        greeting += &format!("  {} internal={}\n", ready.name, upgrading::internal(ready));
    }
    greeting + &format!("  serve internal=http://{own}\n")
}

const ROUTER: &str = "router";

/// A directory that only this user may enter; removed with the sockets in it.
struct Sockets(PathBuf);

impl Sockets {
    fn new() -> Result<Self, ServeError> {
        let path = std::env::temp_dir().join(format!("tidegate-{}", std::process::id()));
        let failed = |source| ServeError::Directory { path: path.clone(), source };
        // A process of the same number that was killed may have left one.
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
            fs::remove_dir_all(&path).map_err(failed)?;
        }
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        Ok(Self(path))
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("tidegate: {} was not removed: {error}", self.0.display());
        }
    }
}

/// What the children are started with.
struct Plan<'a> {
    args: &'a ServeArgs,
    config: &'a Config,
    sources: &'a Sources,
    sockets: &'a Path,
}

impl Plan<'_> {
    fn gateways(&self) -> Result<Vec<Program>, ServeError> {
        (1..=self.args.gateways).map(|number| self.gateway(number)).collect()
    }

    fn gateway(&self, number: u16) -> Result<Program, ServeError> {
        let node = Some(format!("{}-{number}", self.config.node));
        let args = GatewayArgs { node, ..self.args.gateway(number, self.sockets) };
        let mut command = command("gateway", self.args.config.as_deref())?;
        for (flag, value) in args.into_sources().overrides {
            match value.as_str() {
                "true" => command.arg(flag.name),
                // Credentials may be in it.
                _ if flag.key == "backplane" => command.env(variable("backplane"), value),
                value => command.args([flag.name, value]),
            };
        }
        let from_router = [("proxy_protocol", "true"), ("proxy_protocol_from", "127.0.0.0/8")];
        command.envs(from_router.map(|(key, value)| (variable(key), value)));
        Ok(self.program(&format!("gateway-{number}"), command))
    }

    fn router(&self) -> Result<Program, ServeError> {
        let args = self.args;
        let mut command = command(ROUTER, args.router_config.as_deref())?;
        command.args(["--listen", &args.listen.to_string(), "--internal", &args.internal.to_string()]);
        let flags =
            [("--key", &args.key), ("--log-format", &args.log_format), ("--log-level", &args.log_level)];
        for (flag, value) in flags {
            command.args(value.iter().flat_map(|value| [flag, value]));
        }
        // Those are of the gateways.
        for (name, _) in &self.sources.environment {
            if name.to_str().is_some_and(|name| name.starts_with(PREFIX)) {
                command.env_remove(name);
            }
        }
        if let BackplaneUrl::Redis(address) = &self.config.backplane {
            command.env(variable("members"), &*address.expose());
        }
        command.envs(self.redis());
        command.env(variable("upstream__proxy_protocol"), "true");
        Ok(self.program(ROUTER, command))
    }

    /// How the registry is reached.
    fn redis(&self) -> impl Iterator<Item = (String, OsString)> {
        let redis = &self.config.redis;
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.clone().into_os_string());
        let values = [
            Some(redis.prefix.to_string().into()),
            path(&redis.password_file),
            path(&redis.ca_file),
            path(&redis.cert_file),
            path(&redis.key_file),
            redis.sentinel_user.as_deref().map(OsString::from),
            path(&redis.sentinel_password_file),
        ];
        let named = REDIS_KEYS.into_iter().zip(values);
        named.filter_map(|(key, value)| Some((variable(&format!("redis__{key}")), value?)))
    }

    fn program(&self, name: &str, mut command: Command) -> Program {
        command.args(["--parent", &std::process::id().to_string()]);
        let names_lines = self.config.log.format != log::LogFormat::Json;
        Program { name: name.into(), command, names_lines }
    }
}

impl ServeArgs {
    /// The internal port so many after the router's.
    fn internal_after(&self, number: u16) -> SocketAddr {
        let port = match self.internal.port() {
            0 => 0,
            port => port.saturating_add(number),
        };
        SocketAddr::new(self.internal.ip(), port)
    }

    /// What the gateway of this number has on its command line, from 1; its name is to follow.
    fn gateway(&self, number: u16, sockets: &Path) -> GatewayArgs {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let shards = (cores / usize::from(self.gateways)).max(1).to_string();
        GatewayArgs {
            config: self.config.clone(),
            listen: Some("127.0.0.1:0".to_owned()),
            internal: Some(self.internal_after(number).to_string()),
            backplane: self.backplane.clone(),
            node: self.node.clone(),
            shards: Some(self.shards.clone().unwrap_or(shards)),
            log_format: self.log_format.clone(),
            log_level: self.log_level.clone(),
            handover_socket: Some(sockets.join(format!("gateway-{number}")).display().to_string()),
            dev: self.dev,
            ..GatewayArgs::default()
        }
    }
}

/// This program again.
fn command(name: &str, config: Option<&Path>) -> Result<Command, ServeError> {
    let mut command = Command::new(upgrade::program().map_err(ServeError::Program)?);
    command.arg(name);
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    Ok(command)
}

fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase())
}
