//! The command line of `tidegate`. Settings are handed on as texts: the configuration checks them, so that a bad
//! value is reported in one way, whether it comes from a file, a variable or a flag.

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand};
use tidegate_doctor::Path;
use tidegate_gateway::config::{ByteSize, Flag, Sources, UnitError, flags, parse_duration};
use tidegate_router::config::flags as router_flags;

/// A WebSocket gateway that scales out.
///
/// Without a command: `gateway --dev`.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, propagate_version = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a gateway node.
    Gateway(GatewayArgs),
    /// Run a router, which brings each client to its gateway.
    Router(RouterArgs),
    /// Run a router and gateways on this machine behind one port.
    Serve(ServeArgs),
    /// Have a gateway on this machine replaced by the program that is now on its disk; its connections stay open.
    Upgrade(UpgradeArgs),
    /// Load a deployment and report what it bears.
    Storm(StormArgs),
    /// Say how many connections this machine can hold and what limits it, and try a running deployment.
    Doctor(DoctorArgs),
    /// Say what so many connections and messages take: machines, memory, CPU, network, settings.
    Plan(PlanArgs),
    /// Subscribe, publish a few messages, and exit 0 if every one arrived.
    Check(CheckArgs),
    /// Write a commented configuration with fresh secrets.
    Init(InitArgs),
    /// Sign a token for a client, with the secret that `init` made.
    Token(TokenArgs),
    /// What concerns applications that are asked over HTTP.
    #[command(subcommand)]
    Hooks(HooksCommand),
    /// Show a cluster's console in the terminal: nodes, rates, the fullest resource, refusals.
    Top(TopArgs),
    /// Ask a gateway or router whether it lives, and exit 0 if it does, for container health checks.
    Healthcheck(HealthcheckArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum HooksCommand {
    /// Send each question and an event to an application as gateways do, say what it understood, and exit 0 if it answered.
    Test(HooksTestArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct HooksTestArgs {
    /// Where the application listens, as `hooks.NAME.url`.
    #[arg(value_name = "URL")]
    pub(crate) url: String,
    /// File with the secret that requests are signed with, as `hooks.NAME.secret_file`.
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_file: Option<PathBuf>,
    /// In which words it is asked: tidegate or centrifugo.
    #[arg(long, default_value = "tidegate", value_name = "DIALECT")]
    pub(crate) dialect: String,
}

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct GatewayArgs {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Load and check the configuration, and exit.
    #[arg(long)]
    pub(crate) check: bool,
    /// Where clients connect [default: 127.0.0.1:8000].
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<String>,
    /// Where metrics, health and drain are [default: 127.0.0.1:9000].
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) internal: Option<String>,
    /// What carries publications between nodes: memory, or the URL of Redis, Sentinels or a Cluster [default: memory].
    #[arg(long, value_name = "memory|URL")]
    pub(crate) backplane: Option<String>,
    /// Name of this node [default: host name and random characters].
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// Where clients and routers reach this node [default: --listen].
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Option<String>,
    /// Availability zone of this node.
    #[arg(long, value_name = "NAME")]
    pub(crate) zone: Option<String>,
    /// Threads that serve connections [default: one per core].
    #[arg(long, value_name = "N")]
    pub(crate) shards: Option<String>,
    /// How log lines look [default: text].
    #[arg(long, value_name = "text|json")]
    pub(crate) log_format: Option<String>,
    /// What is logged [default: info].
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// Unix socket on which routers of this machine hand clients over [default: they pass bytes on].
    #[arg(long, value_name = "PATH")]
    pub(crate) handover_socket: Option<String>,
    /// Let other gateways listen on the same address (SO_REUSEPORT).
    #[arg(long)]
    pub(crate) reuse_port: bool,
    /// Take the place of the process that has started this one for that; it is at the other end of the standard input.
    #[arg(long, hide = true)]
    pub(crate) take_over: bool,
    /// Development mode: loopback only, API key `dev-key`, anyone may subscribe.
    #[arg(long)]
    pub(crate) dev: bool,
    /// --dev on every address, for a trial in a container: whoever reaches it may publish and read.
    #[arg(long)]
    pub(crate) dev_anywhere: bool,
    /// The process that started this one: it ends with it.
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) parent: Option<u32>,
}

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct RouterArgs {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Load and check the configuration, and exit.
    #[arg(long)]
    pub(crate) check: bool,
    /// Where clients connect [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Where metrics, health and drain are [default: 127.0.0.1:9080].
    #[arg(long, value_name = "ADDRESS:PORT")]
    internal: Option<String>,
    /// Where the gateways are known from: redis://…, dns:NAME:PORT or static:HOST:PORT,HOST:PORT
    /// [default: static:127.0.0.1:8000].
    #[arg(long, value_name = "SOURCE")]
    members: Option<String>,
    /// What places a client: query:NAME, header:NAME, cookie:NAME, path or client-ip [default: query:key].
    #[arg(long, value_name = "RULE")]
    key: Option<String>,
    /// Threads that move bytes [default: one per core].
    #[arg(long, value_name = "N")]
    shards: Option<String>,
    /// How log lines look [default: text].
    #[arg(long, value_name = "text|json")]
    log_format: Option<String>,
    /// What is logged [default: info].
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Let other routers listen on the same address (SO_REUSEPORT).
    #[arg(long)]
    reuse_port: bool,
    /// Take the place of the process that has started this one for that; it is at the other end of the standard input.
    #[arg(long, hide = true)]
    pub(crate) take_over: bool,
    /// The process that started this one: it ends with it.
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) parent: Option<u32>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ServeArgs {
    /// Gateways to run; each holds as many connections as a process may have descriptors, less 200.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) gateways: u16,
    /// Configuration file of the gateways (TOML); variables that begin with TIDEGATE__ are theirs, too.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Configuration file of the router (TOML).
    #[arg(long, value_name = "FILE")]
    pub(crate) router_config: Option<PathBuf>,
    /// Where clients connect.
    #[arg(long, default_value = "127.0.0.1:8000", value_name = "ADDRESS:PORT")]
    pub(crate) listen: SocketAddr,
    /// Where metrics, health and drain of the router are; those of the gateways are on the ports after it, and the upgrade of all on
    /// the next one.
    #[arg(long, default_value = "127.0.0.1:9000", value_name = "ADDRESS:PORT")]
    pub(crate) internal: SocketAddr,
    /// URL of the Redis, Sentinels or Cluster that carries publications between the gateways.
    #[arg(long, value_name = "URL")]
    pub(crate) backplane: Option<String>,
    /// What the gateways' names begin with [default: host name and random characters].
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// What places a client: query:NAME, header:NAME, cookie:NAME, path or client-ip [default: query:key].
    #[arg(long, value_name = "RULE")]
    pub(crate) key: Option<String>,
    /// Threads that serve connections, of each gateway [default: cores / gateways].
    #[arg(long, value_name = "N")]
    pub(crate) shards: Option<String>,
    /// How log lines look [default: text].
    #[arg(long, value_name = "text|json")]
    pub(crate) log_format: Option<String>,
    /// What is logged [default: info].
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// Development mode of the gateways: API key `dev-key`, anyone may subscribe.
    #[arg(long)]
    pub(crate) dev: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StormArgs {
    /// Public address of the deployment; wss:// or https:// where it is encrypted.
    #[arg(default_value = "http://127.0.0.1:8000")]
    pub(crate) url: String,
    /// Connections to open.
    #[arg(long, default_value = "1000", value_name = "N")]
    pub(crate) connections: NonZeroU32,
    /// Channels over which the connections are spread.
    #[arg(long, default_value = "1", value_name = "N")]
    pub(crate) channels: NonZeroU32,
    /// Publications per second. Without it, a closed loop: the next follows when the last was delivered.
    #[arg(long, value_name = "N", conflicts_with = "in_flight")]
    pub(crate) rate: Option<NonZeroU32>,
    /// Publications under way at once in the closed loop.
    #[arg(long, default_value = "1", value_name = "N")]
    pub(crate) in_flight: NonZeroU32,
    /// Size of a publication's payload, such as 130 or 4KiB.
    #[arg(long, default_value = "130", value_name = "SIZE")]
    pub(crate) payload: ByteSize,
    /// How long to publish, after all connections are open.
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// Token (JWT) that every connection shows.
    #[arg(long, value_name = "JWT", env = "TIDEGATE_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// API key to publish with; the default is the one of `gateway --dev`.
    #[arg(long, default_value = "dev-key", value_name = "KEY", hide_default_value = true)]
    pub(crate) api_key: String,
    /// File with the API key, instead of --api-key; line ends at its end are cut.
    #[arg(long, value_name = "FILE", conflicts_with = "api_key")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// The deployment's metrics, to say what was saturated, such as http://127.0.0.1:9000/metrics.
    #[arg(long, value_name = "URL")]
    pub(crate) metrics: Option<String>,
    /// Report as one JSON object on standard output, without a progress bar.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DoctorArgs {
    /// Connections that this node is to hold; exit code 1 if it cannot.
    #[arg(long, value_name = "N")]
    pub(crate) connections: Option<NonZeroU32>,
    /// Reckon for a router, which needs two sockets for each client.
    #[arg(long)]
    pub(crate) router: bool,
    /// Gateways behind the router; each is a destination with ports of its own.
    #[arg(long, default_value = "1", value_name = "N", requires = "router")]
    pub(crate) gateways: NonZeroU32,
    /// The node ends TLS itself (`tls.*`), which costs memory for each connection.
    #[arg(long)]
    pub(crate) tls: bool,
    /// A running deployment to try, such as https://gate.example.org; exit code 1 if a step fails.
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// Channel to subscribe to there.
    #[arg(long, default_value = "doctor", value_name = "NAME", requires = "url")]
    pub(crate) channel: String,
    /// Token (JWT) to subscribe with.
    #[arg(long, value_name = "JWT", requires = "url", env = "TIDEGATE_DOCTOR_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Hold a silent connection for so long, to find out what ends it; 1h at most.
    #[arg(long, value_name = "DURATION", value_parser = parse_idle, requires = "url")]
    pub(crate) idle: Option<Duration>,
    /// Report as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PlanArgs {
    /// Clients connected at once, such as 10M.
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub(crate) connections: u64,
    /// Publications a second, such as 166000/s.
    #[arg(long, default_value = "0", value_name = "N/s", value_parser = parse_count)]
    pub(crate) message_rate: u64,
    /// Subscribers of a publication.
    #[arg(long, default_value = "1", value_name = "N", value_parser = parse_count)]
    pub(crate) fan_out: u64,
    /// Bytes of a publication.
    #[arg(long, default_value = "200", value_name = "N", value_parser = parse_count)]
    pub(crate) payload_bytes: u64,
    /// Gateways, instead of as many as it takes.
    #[arg(long, value_name = "N")]
    pub(crate) nodes: Option<NonZeroU32>,
    /// Cores of a machine.
    #[arg(long, default_value = "8", value_name = "N")]
    pub(crate) cores: NonZeroU32,
    /// Memory of a machine in GiB.
    #[arg(long, default_value = "32", value_name = "GIB")]
    pub(crate) memory: NonZeroU32,
    /// Network of a machine in Gbit/s.
    #[arg(long, default_value = "10", value_name = "GBIT")]
    pub(crate) network: NonZeroU32,
    /// How clients come to a gateway: through routers that move the bytes, or past them (hand-off, /v1/assign, a balancer).
    #[arg(long, default_value = "router", value_name = "router|direct", value_parser = parse_path)]
    pub(crate) path: Path,
    /// Tidegate ends TLS.
    #[arg(long)]
    pub(crate) tls: bool,
    /// `heartbeat.interval`.
    #[arg(long, default_value = "25s", value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) heartbeat: Duration,
    /// `drain.period`.
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) drain_period: Duration,
    /// Gateways that are restarted at the same time.
    #[arg(long, default_value = "1", value_name = "N")]
    pub(crate) restarts_at_once: NonZeroU32,
    /// Price of a machine in an hour.
    #[arg(long, value_name = "PRICE")]
    pub(crate) price: Option<f64>,
    /// A file of measured costs, instead of those that are built in.
    #[arg(long, value_name = "FILE")]
    pub(crate) costs: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CheckArgs {
    /// Public address of the deployment.
    pub(crate) url: String,
    /// What the name of the channel begins with. Anyone must be able to subscribe to it, or the token's bearer.
    #[arg(long, default_value = "check", value_name = "PREFIX")]
    pub(crate) channel_prefix: String,
    /// Token (JWT) to subscribe with.
    #[arg(long, value_name = "JWT", env = "TIDEGATE_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Subscribe with the API key, too: it has the scope `read`, and nobody else need be able to.
    #[arg(long, conflicts_with = "token")]
    pub(crate) subscribe_with_key: bool,
    /// File with the API key to publish with; the default key is the one of `gateway --dev`.
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TopArgs {
    /// Internal port of any gateway of the cluster.
    #[arg(long, default_value = "http://127.0.0.1:9000", value_name = "URL")]
    pub(crate) url: String,
    /// Print one snapshot as plain text, and exit; so it does where the output is no terminal.
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct InitArgs {
    /// Where to write; it is made and must not exist.
    #[arg(default_value = "tidegate", value_name = "DIRECTORY")]
    pub(crate) directory: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TokenArgs {
    /// The user, for presence and for disconnecting by user.
    #[arg(long, value_name = "USER")]
    pub(crate) sub: Option<String>,
    /// Channels that may be subscribed to, such as 'room:*'; can be repeated.
    #[arg(long = "channel", value_name = "PATTERN", required = true)]
    pub(crate) channels: Vec<String>,
    /// Channels that may be published to; can be repeated. The namespace must allow it (`client_publish`).
    #[arg(long, value_name = "PATTERN")]
    pub(crate) publish: Vec<String>,
    /// How long it is good.
    #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) expires: Duration,
    /// What other members see of this user in presence, as JSON.
    #[arg(long, value_name = "JSON")]
    pub(crate) info: Option<serde_json::Value>,
    /// File with the secret (HS256), `secret_file` of `[[auth.jwt]]`.
    #[arg(long, default_value = "tidegate/secrets/jwt", value_name = "FILE")]
    pub(crate) secret_file: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct UpgradeArgs {
    /// Internal port of the gateway.
    #[arg(default_value = "http://127.0.0.1:9000", value_name = "URL")]
    pub(crate) url: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct HealthcheckArgs {
    /// What to ask, such as http://127.0.0.1:9000/readyz. Without it: /livez of the gateway or router that runs here.
    pub(crate) url: Option<String>,
    /// How long to wait for the answer.
    #[arg(long, default_value = "3s", value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
}

impl Args {
    /// The command that was given, or `gateway --dev`.
    pub(crate) fn into_command(self) -> Command {
        self.command.unwrap_or_else(|| Command::Gateway(GatewayArgs { dev: true, ..GatewayArgs::default() }))
    }
}

impl GatewayArgs {
    /// The flags over the environment of this process over the file.
    pub(crate) fn into_sources(self) -> Sources {
        let file = self.config.clone();
        Sources::from_process(file, self.overrides())
    }

    fn overrides(self) -> Vec<(Flag, String)> {
        let anywhere = self.dev_anywhere;
        let listen = self.listen.or_else(|| anywhere.then(|| "0.0.0.0:8000".to_owned()));
        let given = [
            (flags::LISTEN, listen),
            (flags::INTERNAL, self.internal),
            (flags::BACKPLANE, self.backplane),
            (flags::NODE, self.node),
            (flags::ADVERTISE, self.advertise),
            (flags::ZONE, self.zone),
            (flags::SHARDS, self.shards),
            (flags::LOG_FORMAT, self.log_format),
            (flags::LOG_LEVEL, self.log_level),
            (flags::HANDOVER_SOCKET, self.handover_socket),
            // Absent is not `false`: the file may say `dev = true`.
            (flags::REUSE_PORT, self.reuse_port.then(|| "true".to_owned())),
            (flags::DEV, (self.dev || anywhere).then(|| "true".to_owned())),
            (flags::DEV_ANYWHERE, anywhere.then(|| "true".to_owned())),
        ];
        given.into_iter().filter_map(|(flag, text)| text.map(|text| (flag, text))).collect()
    }
}

impl RouterArgs {
    /// The flags over the environment of this process over the file.
    pub(crate) fn into_sources(self) -> Sources {
        let file = self.config.clone();
        Sources::from_process(file, self.overrides())
    }

    fn overrides(self) -> Vec<(Flag, String)> {
        let given = [
            (router_flags::LISTEN, self.listen),
            (router_flags::INTERNAL, self.internal),
            (router_flags::MEMBERS, self.members),
            (router_flags::KEY, self.key),
            (router_flags::SHARDS, self.shards),
            (router_flags::LOG_FORMAT, self.log_format),
            (router_flags::LOG_LEVEL, self.log_level),
            // Absent is not `false`: the file may say `reuse_port = true`.
            (router_flags::REUSE_PORT, self.reuse_port.then(|| "true".to_owned())),
        ];
        given.into_iter().filter_map(|(flag, text)| text.map(|text| (flag, text))).collect()
    }
}

/// Longer than any balancer's default, and it still ends.
const IDLE_MAX: Duration = Duration::from_secs(3600);

/// `10M`, `166000/s`, `1.5k`: a number, a letter for thousands, and `/s` where it is a rate.
fn parse_count(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no number such as 500, 10M or 166000/s");
    let number = text.strip_suffix("/s").unwrap_or(text);
    let (digits, factor) = match number.char_indices().last() {
        Some((at, 'k' | 'K')) => (&number[..at], 1e3),
        Some((at, 'M')) => (&number[..at], 1e6),
        Some((at, 'G')) => (&number[..at], 1e9),
        _ => (number, 1.0),
    };
    let value = digits.replace([',', '_'], "").parse::<f64>().map_err(|_| wrong())? * factor;
    if !(0.0..=1e12).contains(&value) {
        return Err(wrong());
    }
    Ok(value.round() as u64)
}

fn parse_path(text: &str) -> Result<Path, String> {
    Path::parse(text).ok_or_else(|| format!("`{text}` is neither `router` nor `direct`"))
}

fn parse_idle(text: &str) -> Result<Duration, IdleError> {
    let idle = parse_duration(text)?;
    if idle.is_zero() || idle > IDLE_MAX { Err(IdleError::Bounds) } else { Ok(idle) }
}

#[derive(Debug, thiserror::Error)]
enum IdleError {
    #[error(transparent)]
    Unit(#[from] UnitError),
    #[error("expected more than 0s and at most 1h")]
    Bounds,
}

#[cfg(test)]
mod tests;
