//! The configuration: a TOML file, environment variables and flags, checked and with every default filled in.
//!
//! The machinery is `tidegate_ops::config`; here are the sections ([`Limits`], [`AuthConfig`], …) and what must fit
//! together.
//!
//! - `sections`, `apps`, `auth`, `hooks`, `redis`: the sections
//! - `flags`: which keys have a flag
//! - `reference`: `docs/configuration.md`

mod app_id;
mod apps;
mod auth;
pub mod flags;
mod hooks;
mod origin;
mod pattern;
mod redis;
mod reference;
mod sections;
#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    time::Duration,
};

pub use app_id::AppId;
pub(crate) use apps::AppSource;
pub use apps::{
    AppEntry, AppLimits, AppProblem, AppTables, WebhookEntry, WebhookEvent, WebhookSending, WebhookUrl,
};
pub use auth::{Algorithm, ApiKeyEntry, AuthConfig, JwksUrl, JwtKey, KeyProblem, Scope};
pub(crate) use hooks::secret_bytes;
pub use hooks::{
    HeaderSetting, HookAway, HookDialect, HookEntry, HookEvent, HookProblem, HookQuestion,
    Hooks as HookTables,
};
pub use origin::{OriginRule, Origins};
pub use pattern::{PATTERN_BYTES_MAX, Pattern, PatternError};
pub use redis::{BackplaneUrl, Redis, RedisAddress, RedisPrefix, Replicas};
pub use reference::reference;
pub use sections::{
    BackplaneAway, ClientPublish, ClientRead, Drain, Handover, Heartbeat, JoinLeave, Limits, Namespace,
    Namespaces, RecoveryMode, SlowReader, UntoldGap,
};
pub use tidegate_ops::{
    config::{
        ByteSize, ConfigError, Empty, Flag, List, Origin, PREFIX, Secret, Setting, Sha256, Sources,
        UnitError, parse_duration, read_secret,
    },
    hosts::HostName,
    log::Log,
    tls::Tls,
    trust::{ForwardedHeader, Network},
};
use tidegate_ops::{
    config::{Entry, Load, Node, THREADS_MAX},
    hosts::InternalAccess,
    section,
};

use crate::problem::REFUSED;
use tidegate_backplane::RedisOptions;
pub use tidegate_consumers::ConsumersConfig;

section! {
    /// The settings of a gateway node.
    Config {
        /// Where clients connect: WebSocket, SSE, REST. Loopback until something else is asked for.
        listen: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);
        /// Where operators and probes connect: metrics, health, drain. Not for the public.
        internal: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9000);
        /// Names from outside the network by which the internal port may be reached, beside addresses, names without a dot,
        /// those under `.svc`, `.local`, `.internal` and the like, and the one in `advertise`.
        internal_hosts: Vec<HostName> = Vec::new();
        /// Name of this node, unique in the cluster.
        node: Box<str> = node_default(), shown "host name and 6 random characters";
        /// `HOST:PORT` where clients and routers reach this node.
        advertise: Option<Advertise> = None,
            shown "`listen`; with the host name where `listen` is a wildcard address";
        /// Availability zone of this node, told to routers.
        zone: Option<Box<str>> = None;
        /// Threads that serve connections.
        shards: NonZeroUsize = shards_default(), shown "number of cores";
        /// Whether other gateways of the same user may listen on the same address (`SO_REUSEPORT`): the kernel deals the
        /// connections to them. They need different `internal` addresses and `node` names, and no router: it would not
        /// reach the one that it has chosen.
        reuse_port: bool = false;
        /// What carries publications between nodes. `memory` serves a single node. A Redis URL names one server, several
        /// independent ones (`redis://a,b`: channels are spread over them), the Sentinels that watch one
        /// (`redis-sentinel://s1,s2/NAME`), or some servers of a Cluster (`redis-cluster://a,b`). `user:password@` comes
        /// before the hosts, percent-encoded; `rediss`, `rediss-sentinel` and `rediss-cluster` are over TLS.
        backplane: BackplaneUrl = BackplaneUrl::Memory;
        /// Whether every connection to the public port begins with a PROXY protocol header, version 2, which names
        /// the client. One without it is closed.
        proxy_protocol: bool = false;
        /// Where the balancers are that write this header: connections from other addresses are closed, because who
        /// connects could say to be anybody. By default the networks that the internet does not route.
        proxy_protocol_from: Vec<Network> = Network::private(), shown "loopback, private and link-local networks";
        /// Proxies whose word on a client's address is taken, from the header `forwarded_header`. The client is
        /// the rightmost address in it that is not one of them.
        trusted_proxies: Vec<Network> = Vec::new();
        /// The header that the trusted proxies write. The other one is not read: clients could send it.
        forwarded_header: ForwardedHeader = ForwardedHeader::XForwardedFor;
        /// Development mode: loopback only, the API key `dev-key`, anonymous subscriptions, history.
        dev: bool = false;
        /// `dev` for a trial in a container or a virtual machine: `listen` and `internal` may be any address. Whoever
        /// reaches them may publish and read. The flag sets `dev` too, and `listen` to `0.0.0.0:8000` where nothing
        /// else is said.
        dev_anywhere: bool = false;
        /// See `tls.*`.
        tls: Tls = Tls::default();
        /// See `limits.*`.
        limits: Limits = Limits::default();
        /// See `heartbeat.*`.
        heartbeat: Heartbeat = Heartbeat::default();
        /// See `handover.*`.
        handover: Handover = Handover::default();
        /// See `drain.*`.
        drain: Drain = Drain::default();
        /// See `log.*`.
        log: Log = Log::default();
        /// See `auth.*`.
        auth: AuthConfig = AuthConfig::default();
        /// See `redis.*`.
        redis: Redis = Redis::default();
        /// See `namespaces.*`.
        namespaces: Namespaces = Namespaces::default();
        /// The app whose channels are those of raw WebSockets, event streams and `/v1`. Without it they belong to no
        /// app.
        default_app: Option<AppId> = None;
        /// File with more `[apps.ID]` tables and nothing else. It is read again when it changes and on SIGHUP, as a
        /// whole: if anything in it is wrong, the apps stay as they are.
        apps_file: Option<PathBuf> = None;
        /// See `apps.ID.*`.
        apps: AppTables = AppTables::default();
        /// See `webhooks.*`.
        webhooks: WebhookSending = WebhookSending::default();
        /// See `hooks.NAME.*`.
        hooks: HookTables = HookTables::default();
        /// See `consumers.*`.
        consumers: ConsumersConfig = ConsumersConfig::default();
    }
}

/// A host and a port that others reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertise(Box<str>);

impl Setting for Advertise {
    const EXPECTED: &'static str = r#"a host and port such as "gateway-0.gateway:8000""#;

    fn from_text(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host_fits = !host.is_empty() && !host.contains(['/', '@']) && !host.contains(char::is_whitespace);
        (host_fits && port.parse::<u16>().is_ok_and(|port| port > 0)).then(|| Self(text.into()))
    }

    fn show(&self) -> String {
        format!("{:?}", self.0)
    }
}

impl Config {
    /// Reads, merges and checks all sources, files with secrets included.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let merged = sources.merge()?;
        let root = merged.root();
        Self::default().load(&merged.empty())?;
        let mut config = Self::default();
        if wants_dev(&root)? {
            config = Self::dev();
            config.auth.api_keys.0.clear();
        }
        config.load_over(&root)?;
        if config.dev {
            config.auth.api_keys.0.push(dev_key());
        }
        Ok(config)
    }

    /// The defaults of `--dev`.
    pub fn dev() -> Self {
        let mut config = Self { dev: true, ..Self::default() };
        // Loopback only, so that there is nobody to protect from a handshake rate; load tests are usual.
        config.limits.handshakes_per_second = 0;
        config.limits.messages_per_second = 0;
        config.limits.subscribes_per_second = 0;
        config.limits.inflated_bytes_per_second = ByteSize::kib(0);
        config.limits.anonymous_subscriptions = config.limits.subscriptions;
        // A page served by any local development server may connect; one from the network could read and publish with
        // the fixed key.
        config.auth.allowed_origins = vec![OriginRule::SameOrigin, OriginRule::Localhost];
        config.auth.api_keys.0.push(dev_key());
        if let Some(id) = AppId::new(DEV_APP) {
            config.default_app = Some(id.clone());
            config.apps.0.insert(id, AppEntry::dev());
        }
        // Browsers hide why a handshake was refused.
        config.log.level = config.log.level.and(REFUSED, "debug");
        // Nobody routes to it: Ctrl-C ends it within a second or two.
        config.drain = Drain {
            settle: Duration::ZERO,
            period: Duration::from_secs(1),
            close_wait: Duration::from_secs(1),
            gap_period: Duration::from_secs(1),
            token_file: None,
        };
        config.namespaces.default = Namespace {
            anonymous_subscribe: true,
            history_size: 100,
            history_age: Duration::from_secs(300),
            ..Namespace::default()
        };
        config
    }

    /// What nobody can do with these settings, in a sentence each: a gateway without keys refuses everything, which is
    /// hardly what is wanted.
    pub fn without_use(&self) -> Vec<&'static str> {
        let has_apps = !self.apps.0.is_empty() || self.apps_file.is_some();
        let is_open = self.namespaces.iter().any(|(_, namespace)| namespace.anonymous_subscribe);
        let mut said = Vec::new();
        if self.auth.api_keys.is_empty() && !has_apps {
            said.push("no API key ([[auth.api_keys]]) and no app ([apps.ID]): every request of an application is answered 401");
        }
        if self.auth.jwt.is_empty() && self.auth.api_keys.is_empty() && !has_apps && !is_open {
            said.push("no key for tokens ([[auth.jwt]]) and no namespace with anonymous_subscribe: nobody can subscribe");
        }
        said
    }

    /// Whether only programs of this machine are to reach it: its credentials are known to everybody.
    pub fn serves_this_machine_only(&self) -> bool {
        self.dev && self.listen.ip().is_loopback()
    }

    /// Who may use the internal port.
    pub(crate) fn internal_access(&self) -> Result<InternalAccess, ConfigError> {
        let advertised = self.advertised();
        let own = advertised.rsplit_once(':').and_then(|(host, _)| HostName::from_text(host));
        let hosts: Vec<_> = self.internal_hosts.iter().cloned().chain(own).collect();
        InternalAccess::new(&hosts, self.drain.token_file.as_deref())
    }

    /// `HOST:PORT` where clients and routers reach this node.
    pub fn advertised(&self) -> Box<str> {
        match &self.advertise {
            Some(Advertise(address)) => address.clone(),
            None if self.listen.ip().is_unspecified() => {
                format!("{}:{}", host_name(), self.listen.port()).into()
            }
            None => self.listen.to_string().into(),
        }
    }

    /// Where the apps come from.
    pub(crate) fn app_source(&self) -> AppSource {
        let of_tokens = self.auth.jwt.iter().filter_map(|key| key.app.clone());
        let of_keys = self.auth.api_keys.iter().filter_map(|key| key.app.clone());
        AppSource {
            raw: of_tokens.chain(of_keys).collect(),
            tables: self.apps.clone(),
            file: self.apps_file.clone(),
            default: self.default_app.clone(),
            limits: self.limits.clone(),
            webhook_queue_bytes: self.webhooks.queue_bytes,
        }
    }

    /// What a Redis backplane is told; `None` for another.
    pub(crate) fn redis_options(&self) -> Result<Option<RedisOptions>, ConfigError> {
        match &self.backplane {
            BackplaneUrl::Memory => Ok(None),
            BackplaneUrl::Redis(address) => self.redis.options(address, self).map(Some),
        }
    }

    fn load_over(&mut self, root: &Node<'_>) -> Result<(), ConfigError> {
        self.load(root)?;
        self.auth.finish(root)?;
        self.apps.finish()?;
        self.hooks.finish()?;
        let apps = self.app_source().read()?;
        self.auth.finish_apps(self.default_app.as_ref(), |id| apps.0.contains_key(id.as_str()))?;
        self.consumers.check(&root.origin())?;
        for (key, app) in self.consumers.apps() {
            if !apps.0.contains_key(app) {
                let problem = Box::new(AppProblem::Unknown);
                return Err(ConfigError::Unusable { key: key.into(), path: None, problem });
            }
        }
        self.tls.server()?;
        self.internal_access()?;
        self.check_dev()?;
        self.check_handover()?;
        self.check_limits()?;
        self.check_times()?;
        self.check_history()?;
        self.redis_options().map(drop)
    }

    fn check_dev(&self) -> Result<(), ConfigError> {
        let addresses = [("listen", self.listen), ("internal", self.internal)];
        match addresses
            .into_iter()
            .find(|(_, address)| self.dev && !self.dev_anywhere && !address.ip().is_loopback())
        {
            Some((key, address)) => Err(ConfigError::Forbidden {
                key: key.into(),
                value: address.to_string().into(),
                rule: "--dev has fixed credentials and listens on loopback addresses only (for a trial in a container: --dev-anywhere)",
            }),
            None => Ok(()),
        }
    }

    /// A router that hands a socket over has read the request: it is not within a session of this node.
    fn check_handover(&self) -> Result<(), ConfigError> {
        match self.handover.socket.is_some() && self.tls.is_on() {
            true => Err(ConfigError::Contradiction {
                key: "handover.socket".into(),
                other: "tls.cert_file".into(),
                rule: "where routers hand sockets over, they end TLS and this node does not",
            }),
            false => Ok(()),
        }
    }

    /// Pairs of limits of which one could never be reached. A default that nobody wrote gives way: who lowers a limit means
    /// all that it bounds.
    fn check_limits(&self) -> Result<(), ConfigError> {
        let limits = &self.limits;
        let defaults = if self.dev { Self::dev().limits } else { Limits::default() };
        let largest = limits.message_bytes.max(limits.publish_bytes);
        let rate = limits.publish_bytes_per_second;
        let is_above = |said: u32, default: u32, bound: u32| said != default && bound > 0 && said > bound;
        let (key, other, rule) = match () {
            () if limits.send_queue_bytes < largest => (
                "limits.send_queue_bytes",
                "limits.message_bytes, publish_bytes",
                "one message must fit in the queue",
            ),
            () if limits.body_bytes < limits.publish_bytes => {
                ("limits.body_bytes", "limits.publish_bytes", "one publication must fit in a request body")
            }
            () if rate.bytes() > 0 && rate < limits.message_bytes => (
                "limits.publish_bytes_per_second",
                "limits.message_bytes",
                "the rate must admit one whole message",
            ),
            () if limits.left_behind_bytes < limits.message_bytes => {
                ("limits.left_behind_bytes", "limits.message_bytes", "what is left behind is whole messages")
            }
            () if is_above(
                limits.publishes_per_second,
                defaults.publishes_per_second,
                limits.messages_per_second,
            ) =>
            {
                (
                    "limits.publishes_per_second",
                    "limits.messages_per_second",
                    "each publication of a client is a message",
                )
            }
            () if is_above(
                limits.subscribes_per_second,
                defaults.subscribes_per_second,
                limits.messages_per_second,
            ) =>
            {
                (
                    "limits.subscribes_per_second",
                    "limits.messages_per_second",
                    "each subscription is asked for with a message",
                )
            }
            () if limits.anonymous_subscriptions != defaults.anonymous_subscriptions
                && limits.anonymous_subscriptions > limits.subscriptions =>
            {
                (
                    "limits.anonymous_subscriptions",
                    "limits.subscriptions",
                    "who has no credentials has no more than others",
                )
            }
            () if is_above(limits.subscriptions, defaults.subscriptions, limits.channels) => (
                "limits.subscriptions",
                "limits.channels",
                "one connection has no more channels than its node",
            ),
            () if is_above(
                limits.address_handshakes_per_second,
                defaults.address_handshakes_per_second,
                limits.handshakes_per_second,
            ) =>
            {
                (
                    "limits.address_handshakes_per_second",
                    "limits.handshakes_per_second",
                    "one address has no more handshakes than all",
                )
            }
            // A head beside a token: those of browsers have some 500 bytes.
            () if limits.head_bytes < ByteSize::new(1024) => {
                ("limits.head_bytes", "1KiB", "a browser's request needs that")
            }
            // The default is what this machine has descriptors for.
            () if limits.connections != defaults.connections
                && limits.connections_per_address > limits.connections =>
            {
                (
                    "limits.connections_per_address",
                    "limits.connections",
                    "one address has no more connections than all",
                )
            }
            () => return Ok(()),
        };
        Err(ConfigError::Contradiction { key: key.into(), other: other.into(), rule })
    }

    /// Nothing arrives in no time, and a repetition that is due too late is none.
    fn check_times(&self) -> Result<(), ConfigError> {
        let nothing = [
            ("limits.handshake_timeout", self.limits.handshake_timeout),
            ("heartbeat.timeout", self.heartbeat.timeout),
            ("heartbeat.interval", self.heartbeat.interval),
            ("webhooks.timeout", self.webhooks.timeout),
        ];
        let (key, other, rule) = match nothing.into_iter().find(|(_, time)| time.is_zero()) {
            Some((key, _)) => (key, "0s", "nobody answers in no time"),
            None if self.webhooks.retry_wait > self.webhooks.retry_for => {
                ("webhooks.retry_wait", "webhooks.retry_for", "the first repetition must come within it")
            }
            None => return Ok(()),
        };
        Err(ConfigError::Contradiction { key: key.into(), other: other.into(), rule })
    }

    fn check_history(&self) -> Result<(), ConfigError> {
        let half = |options: &Namespace| (options.history_size > 0) != (options.history_age > Duration::ZERO);
        match self.namespaces.iter().find(|(_, options)| half(options)) {
            None => Ok(()),
            Some((name, _)) => Err(ConfigError::Contradiction {
                key: format!("namespaces.{name}.history_size").into(),
                other: format!("namespaces.{name}.history_age").into(),
                rule: "history needs both to be above zero, or neither",
            }),
        }
    }
}

/// `dev` changes the defaults, so it is looked up before anything else is loaded.
fn wants_dev(root: &Node<'_>) -> Result<bool, ConfigError> {
    let mut dev = false;
    if let Some(value) = root.table()?.get("dev") {
        dev.load(&root.child("dev", value))?;
    }
    Ok(dev)
}

/// The app of `--dev`.
const DEV_APP: &str = "1";

/// The fixed credentials of `--dev`.
fn dev_key() -> ApiKeyEntry {
    ApiKeyEntry {
        name: "dev-key".into(),
        key: Some(Secret::new(b"dev-key")),
        scopes: vec![Scope::Publish, Scope::Read, Scope::Admin],
        channels: vec![Pattern::any()],
        ..ApiKeyEntry::default()
    }
}

/// The random part keeps two processes on one host apart; 36^6 is 2.2 thousand million.
fn node_default() -> Box<str> {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut random = getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()));
    let suffix = std::iter::repeat_with(|| {
        let digit = DIGITS[(random % 36) as usize];
        random /= 36;
        char::from(digit)
    });
    format!("{}-{}", host_name(), suffix.take(6).collect::<String>()).into()
}

fn host_name() -> String {
    match rustix::system::uname().nodename().to_str() {
        Ok("") | Err(_) => "localhost".to_owned(),
        Ok(name) => name.to_owned(),
    }
}

fn shards_default() -> NonZeroUsize {
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    cores.min(THREADS_MAX)
}
