//! The settings of a router, read by the machinery of `tidegate_ops::config`.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    time::Duration,
};

use config::{Value, ValueKind};
pub use tidegate_ops::config::{ByteSize, ConfigError, Flag, Sources};
use tidegate_ops::{
    budget::Rate,
    config::{Load, Setting, THREADS_MAX},
    hosts::{HostName, InternalAccess},
    log::Log,
    section,
    tls::Tls,
    trust::{ForwardedHeader, Network},
};

mod redis;

pub use self::redis::{Redis, RedisPrefix};
use crate::{key::KeyRule, members::MembersSetting, placement::LoadFactor, url_template::UrlTemplate};

section! {
    /// The settings of a router.
    Config {
        /// Where clients connect. Loopback until something else is asked for.
        listen: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
        /// Where operators and probes connect: metrics, health, drain. Not for the public.
        internal: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9080);
        /// Names from outside the network by which the internal port may be reached, beside addresses, names without a dot,
        /// and those under `.svc`, `.local`, `.internal` and the like.
        internal_hosts: Vec<HostName> = Vec::new();
        /// Where the gateways are known from: a list, a name in DNS, or the registry in Redis that gateways with
        /// the same backplane write. The default is a gateway with its default address on this machine.
        members: MembersSetting = MembersSetting::default();
        /// Which part of a request is the key that places its client. Clients with equal keys meet on one gateway.
        /// A request without a key is placed by its client's address and port, on gateways that have no more than
        /// their share.
        key: KeyRule = KeyRule::Query("key".into());
        /// How far above its share of the connections a gateway may be before new clients go to the next in their
        /// key's order. A gateway always takes 64.
        load_factor: LoadFactor = LoadFactor::DEFAULT;
        /// Threads that move bytes.
        shards: NonZeroUsize = shards_default(), shown "number of cores";
        /// Whether other processes may listen on the same address (`SO_REUSEPORT`): the kernel deals the connections
        /// to several routers.
        reuse_port: bool = false;
        /// Whether every connection to the public port begins with a PROXY protocol header, version 2, which names
        /// the client. One without it is closed.
        proxy_protocol: bool = false;
        /// Where the balancers are that write this header: connections from other addresses are closed, because who
        /// connects could say to be anybody. By default the networks that the internet does not route.
        proxy_protocol_from: Vec<Network> = Network::private(), shown "loopback, private and link-local networks";
        /// Proxies before this router whose word on a client's address is taken, from the header `forwarded_header`.
        /// The client is the rightmost address in it that is not one of them. What other clients write into such
        /// headers is removed.
        trusted_proxies: Vec<Network> = Vec::new();
        /// The header that the trusted proxies write. The other one is not read: clients could send it.
        forwarded_header: ForwardedHeader = ForwardedHeader::XForwardedFor;
        /// See `tls.*`.
        tls: Tls = Tls::default();
        /// See `upstream.*`.
        upstream: Upstream = Upstream::default();
        /// See `assign.*`.
        assign: Assign = Assign::default();
        /// See `health.*`.
        health: Health = Health::default();
        /// See `dns.*`.
        dns: Dns = Dns::default();
        /// See `redis.*`.
        redis: Redis = Redis::default();
        /// See `limits.*`.
        limits: Limits = Limits::default();
        /// See `drain.*`.
        drain: Drain = Drain::default();
        /// See `fill.*`.
        fill: Fill = Fill::default();
        /// See `log.*`.
        log: Log = Log::default();
    }
}

section! {
    /// Connections to gateways.
    Upstream {
        /// Whether each begins with a PROXY protocol header, version 2, that names the client. For gateways with
        /// `proxy_protocol`, which then need no `trusted_proxies`. Health checks of their public port have one too.
        proxy_protocol: bool = false;
        /// Whether clients are handed over to gateways of this machine that take them (`handover.socket` of a gateway): then
        /// no byte goes through the router. Clients whose TLS ends here are not.
        handover: bool = true;
        /// Attempts at another gateway for 100 clients, where the first one failed or was full: when many gateways
        /// fail, asking again and again would bring down those that are left.
        retries_percent: u32 = 20;
        /// Such attempts that may come at once on top of the share.
        retries_burst: u32 = 100;
    }
}

section! {
    /// `/v1/assign`: clients that connect to their gateway directly. Off until `assign.url` is set.
    Assign {
        /// The address that clients are told. `{address}` is the gateway's `HOST:PORT`, `{node}` its name:
        /// `"wss://{node}.gateways.example.com"`. Without it `/v1/assign` answers 404: the addresses of gateways are
        /// nobody's business.
        url: Option<UrlTemplate> = None;
        /// File with the key that a request must bring as `Authorization: Bearer KEY`. Without it, anybody may ask.
        key_file: Option<PathBuf> = None;
        /// Requests per second; more are answered 429 with `Retry-After`. 0: no limit.
        requests_per_second: u32 = 200;
        /// Requests that may come at once on top of the rate.
        requests_burst: u32 = 400;
        /// For how long a client may use an answer before it should ask again.
        lifetime: Duration = Duration::from_secs(30);
        /// Keys in one request. 1,000 keys over 1,000 gateways take about 2 ms.
        keys: u32 = 1_000;
    }
}

section! {
    /// Checks of the gateways of a list or of DNS. Those of a registry renew their leases instead, and are checked when
    /// they do not.
    Health {
        /// What is asked for with GET. On the gateway's public port, any answer below 500 is healthy.
        path: PathSetting = PathSetting("/livez".into());
        /// Where it is asked, instead of the public port: with 9000 and the path `/readyz`, a gateway that drains is
        /// seen. Then only 200 is healthy; 503 is a gateway that drains.
        port: Option<PortSetting> = None;
        /// Time between two checks of a gateway.
        interval: Duration = Duration::from_secs(2);
        /// A gateway that has not answered by then has failed the check.
        timeout: Duration = Duration::from_secs(1);
        /// Checks that fail in a row until a gateway gets no more clients. One that succeeds brings it back.
        failures: u32 = 2;
        /// Checks that fail for so long, without one that succeeds, cut the clients of a gateway, which is what a hung
        /// process or a lost machine needs. Not while nearly all gateways fail: then it is this router that is cut off.
        cut_after: Duration = Duration::from_secs(10);
    }
}

section! {
    /// Looking up names.
    Dns {
        /// Name servers to ask, instead of those of the system.
        servers: Vec<SocketAddr> = Vec::new();
    }
}

section! {
    /// What one router may use. In rates, 0 means 'no limit'.
    Limits {
        /// Clients connected at once; each needs two descriptors. More are refused with 503 and counted.
        connections: u32 = connections_default(), shown "half of (descriptor limit − 200)";
        /// Handshakes that this router accepts per second; more are answered 503 with `Retry-After`. Where this router ends
        /// TLS, every connection is one, and more are closed before the TLS handshake, which is what costs.
        handshakes_per_second: u32 = 2_000;
        /// Handshakes that may come at once on top of the rate: two seconds' worth.
        handshakes_burst: u32 = 4_000;
        /// Handshakes per second from one client address (for IPv6 from its /64), with two seconds' worth at once; more
        /// are answered 429. It is taken before `handshakes_per_second`, so half of that is left for all others. 0: no
        /// limit, for a router that sees one address for all its clients (a balancer that is not in `trusted_proxies`).
        address_handshakes_per_second: u32 = 1_000;
        /// A client that has not sent its whole request head by then is disconnected.
        handshake_timeout: Duration = Duration::from_secs(10);
        /// A gateway that has not taken a connection by then is passed over.
        connect_timeout: Duration = Duration::from_secs(2);
        /// A gateway that has not answered a handshake by then is passed over.
        answer_timeout: Duration = Duration::from_secs(5);
        /// A request line with its headers.
        head_bytes: ByteSize = ByteSize::kib(16);
    }
}

section! {
    /// Stopping without a reconnect storm, as a gateway does. A pod's grace period must exceed `settle` + `period` +
    /// `close_wait` + 10 s.
    Drain {
        /// Time to go on accepting after the router said that it drains, while load balancers hear of it.
        settle: Duration = Duration::from_secs(5);
        /// Time over which the connections are closed in equal slices.
        period: Duration = Duration::from_secs(30);
        /// Time to wait for what is left at the end.
        close_wait: Duration = Duration::from_secs(5);
        /// File with a token. `POST /drain` with `Authorization: Bearer TOKEN` is then taken from other machines, too.
        token_file: Option<PathBuf> = None;
    }
}

section! {
    /// Filling a gateway that was added, or came back: clients whose key belongs to it, and that are elsewhere, are asked to
    /// come back. Only those that miss nothing by it are: their protocol recovers, and their channels have history. For
    /// members of the registry.
    Fill {
        /// Each such client is asked once in this time on average, so with 60 s half of them have been after 42 s. 0: nobody is.
        period: Duration = Duration::from_secs(60);
    }
}

/// The flags of `tidegate router` that are settings.
pub mod flags {
    use super::Flag;

    pub const LISTEN: Flag = Flag { name: "--listen", key: "listen" };
    pub const INTERNAL: Flag = Flag { name: "--internal", key: "internal" };
    pub const MEMBERS: Flag = Flag { name: "--members", key: "members" };
    pub const KEY: Flag = Flag { name: "--key", key: "key" };
    pub const SHARDS: Flag = Flag { name: "--shards", key: "shards" };
    pub const REUSE_PORT: Flag = Flag { name: "--reuse-port", key: "reuse_port" };
    pub const LOG_FORMAT: Flag = Flag { name: "--log-format", key: "log.format" };
    pub const LOG_LEVEL: Flag = Flag { name: "--log-level", key: "log.level" };

    /// All of them.
    pub const ALL: [Flag; 8] = [LISTEN, INTERNAL, MEMBERS, KEY, SHARDS, REUSE_PORT, LOG_FORMAT, LOG_LEVEL];
}

/// A path that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathSetting(Box<str>);

/// A TCP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortSetting(pub u16);

impl Config {
    /// Reads, merges and checks all sources.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let merged = sources.merge()?;
        Self::default().load(&merged.empty())?;
        let mut config = Self::default();
        Load::load(&mut config, &merged.root())?;
        config.check()?;
        Ok(config)
    }

    /// Who may use the internal port.
    pub(crate) fn internal_access(&self) -> Result<InternalAccess, ConfigError> {
        InternalAccess::new(&self.internal_hosts, self.drain.token_file.as_deref())
    }

    fn check(&self) -> Result<(), ConfigError> {
        let health = &self.health;
        let zero = [
            ("health.interval", health.interval.is_zero()),
            ("health.timeout", health.timeout.is_zero()),
            ("health.failures", health.failures == 0),
            ("health.cut_after", health.cut_after.is_zero()),
            ("assign.keys", self.assign.keys == 0),
            ("assign.lifetime", self.assign.lifetime.is_zero()),
        ];
        if let MembersSetting::Redis(url) = &self.members {
            self.redis.options(url)?;
        }
        self.tls.server()?;
        self.internal_access()?;
        self.assign.key()?;
        match zero.into_iter().find(|(_, is_zero)| *is_zero) {
            Some((key, _)) => Err(ConfigError::Forbidden {
                key: key.into(),
                value: "0".into(),
                rule: "it must be above zero",
            }),
            None => Ok(()),
        }
    }
}

impl Assign {
    /// Reads the file with the key.
    pub(crate) fn key(&self) -> Result<Option<Box<str>>, ConfigError> {
        let Some(path) = &self.key_file else { return Ok(None) };
        let key = std::fs::read_to_string(path).map_err(|source| ConfigError::KeyFile {
            key: "assign.key_file".into(),
            path: path.clone(),
            source,
        })?;
        match key.trim_end_matches(['\r', '\n']) {
            "" => Err(ConfigError::Unusable {
                key: "assign.key_file".into(),
                path: Some(path.clone()),
                problem: "the file is empty".into(),
            }),
            key => Ok(Some(key.into())),
        }
    }
}

/// `docs/router-configuration.md`.
pub fn reference() -> String {
    tidegate_ops::config::reference(INTRODUCTION, &Config::default(), &Config::default(), &flags::ALL)
}

const INTRODUCTION: &str = "\
# Configuration of the router

<!-- Made from router/src/config.rs by its tests; `BLESS=1 cargo test -p tidegate-router reference` writes it. -->

`tidegate router` reads the same sources as a gateway, each over the one before: defaults, the TOML file named by
`--config` or `TIDEGATE__CONFIG`, environment variables that begin with `TIDEGATE__`, flags.
[configuration.md](configuration.md) says how values are written and how mistakes are reported. The two processes have
different keys: give each a file of its own. What the settings do is in [router.md](router.md).
";

impl PathSetting {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Setting for PathSetting {
    const EXPECTED: &'static str = r#"a path such as "/readyz""#;

    /// What could end a request line early is refused.
    fn from_text(text: &str) -> Option<Self> {
        (text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| Self(text.into()))
    }

    fn show(&self) -> String {
        format!("{:?}", self.0)
    }
}

impl Setting for PortSetting {
    const EXPECTED: &'static str = "a port from 1 to 65535";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok().filter(|port| *port > 0).map(Self)
    }

    fn from_integer(integer: i64) -> Option<Self> {
        u16::try_from(integer).ok().filter(|port| *port > 0).map(Self)
    }

    fn show(&self) -> String {
        self.0.to_string()
    }
}

impl Setting for KeyRule {
    const EXPECTED: &'static str = Self::EXPECTED;

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn show(&self) -> String {
        format!("\"{self}\"")
    }
}

impl Setting for LoadFactor {
    const EXPECTED: &'static str = "a number from 1 to 100 with at most two decimals, such as 1.25";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok().and_then(of_number)
    }

    fn from_integer(integer: i64) -> Option<Self> {
        u32::try_from(integer)
            .ok()?
            .checked_mul(100)
            .and_then(|hundredths| Self::from_hundredths(hundredths).ok())
    }

    fn read(value: &Value) -> Option<Self> {
        match &value.kind {
            ValueKind::String(text) => Self::from_text(text),
            ValueKind::I64(integer) => Self::from_integer(*integer),
            ValueKind::Float(number) => of_number(*number),
            _ => None,
        }
    }

    fn show(&self) -> String {
        format!("{}.{:02}", self.hundredths() / 100, self.hundredths() % 100)
    }
}

/// Every router must compute the same bound: a number that hundredths cannot say is refused, not rounded.
fn of_number(number: f64) -> Option<LoadFactor> {
    let hundredths = (number * 100.0).round();
    let exact = (number * 100.0 - hundredths).abs() < 1e-6 && (0.0..=10_000.0).contains(&hundredths);
    exact.then_some(hundredths as u32).and_then(|hundredths| LoadFactor::from_hundredths(hundredths).ok())
}

fn shards_default() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN).min(THREADS_MAX)
}

/// Standard streams, listeners, epoll and wake-ups of the shards, Tokio, Redis or DNS, kept-alive HTTP connections: as
/// in the gateway, rounded up.
const DESCRIPTORS_RESERVED: u64 = 200;

impl Limits {
    /// What one address may take of the router's handshakes; of no limit there is no share.
    pub(crate) fn address_handshakes(&self) -> Rate {
        let per_second = match self.handshakes_per_second {
            0 => 0,
            _ => self.address_handshakes_per_second,
        };
        Rate { per_second, at_once: per_second.saturating_mul(2) }
    }
}

fn connections_default() -> u32 {
    let soft = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let usable = soft.unwrap_or(u64::from(u32::MAX)).saturating_sub(DESCRIPTORS_RESERVED) / 2;
    u32::try_from(usable).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests;
