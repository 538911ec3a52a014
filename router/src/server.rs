//! The composition root: binds, builds every part, and runs them until the router is drained.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdTcpListener},
    sync::Arc,
    time::Duration,
};

use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use tidegate_backplane::{ReadNodes, RedisNodes, RedisStartError};
use tidegate_ops::{
    budget::Rate,
    config::{ConfigError, Loader},
    edge::Edge,
    hosts::InternalAccess,
    listener::{ACCEPT_BACKLOG, ListenError, listen, listen_shared},
    metrics::{Bounds, Listener},
    probes::{self, Operated},
    stopping,
    succession::{End, Launch, Ports, Predecessor, UpgradeError},
    tls::{TlsCollector, TlsServer},
    trust::{Networks, Trust},
};
use tokio::{
    runtime::{Handle, Runtime},
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    assign::{self, Assigner},
    chooser::Chooser,
    config::Config,
    fill,
    members::{self, Health, Members, MembersSetting, Names},
    metrics::Metrics,
    problem::{Problem, not_found},
    proxy::{self, Proxy},
    reload::Reloading,
    stage::Stage,
};

/// Why a router did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Redis(#[from] RedisStartError),
    #[error("this process cannot take the place of the one that started it: {0}")]
    TakeOver(UpgradeError),
    #[error("the process that took this one's place has ended before it served")]
    Lost,
    #[error("cannot set up {part}: {source}")]
    System { part: &'static str, source: io::Error },
}

impl StartError {
    /// Whether what the operator asked for cannot be: to be mended, not to be tried again.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Config(_) | Self::Listen(_) | Self::Redis(_))
    }
}

/// A router whose ports are bound.
#[derive(Debug)]
pub struct Server {
    config: Arc<Config>,
    load: Option<Loader<Config>>,
    public: StdTcpListener,
    internal: StdTcpListener,
    public_address: SocketAddr,
    internal_address: SocketAddr,
    launch: Option<Launch>,
    /// What it was given by the process whose place it takes.
    predecessor: Option<Predecessor>,
}

/// HTTP, DNS, health checks and Redis need little beside the shards.
const HTTP_THREADS_MAX: usize = 4;

/// How long the first round may keep the ports shut. A router that knows no gateway begins nevertheless: it says so on
/// `/readyz`.
const FIRST_ROUND: Duration = Duration::from_secs(5);

impl Server {
    /// Binds both ports.
    pub fn bind(config: Config) -> Result<Self, StartError> {
        let public = match config.reuse_port {
            true => listen_shared(config.listen, "listen")?,
            false => listen(config.listen, "listen")?,
        };
        let internal = listen(config.internal, "internal")?;
        Self::bound(config, public, internal)
    }

    /// Takes the place of the process that started this one for that: its ports, and then its clients.
    pub fn take_over(config: Config) -> Result<Self, StartError> {
        let predecessor = Predecessor::receive().map_err(StartError::TakeOver)?;
        let ports = match config.tls.is_on() {
            true => Err(UpgradeError::NotHere("its configuration has TLS: a change of that needs a restart")),
            false => predecessor.ports(config.listen, config.internal, config.shards.get()),
        };
        let (public, internal) = ports.map_err(|error| refuse(&predecessor, error))?;
        let server = Self::bound(config, public, internal)?;
        Ok(Self { predecessor: Some(predecessor), ..server })
    }

    fn bound(config: Config, public: StdTcpListener, internal: StdTcpListener) -> Result<Self, StartError> {
        let address = |listener: &StdTcpListener| listener.local_addr().map_err(system("the listener"));
        let (public_address, internal_address) = (address(&public)?, address(&internal)?);
        Ok(Self {
            config: Arc::new(config),
            load: None,
            public,
            internal,
            public_address,
            internal_address,
            launch: None,
            predecessor: None,
        })
    }

    /// How this process's program is started in its place, when it is upgraded.
    #[must_use]
    pub fn upgradable(self, launch: Launch) -> Self {
        Self { launch: Some(launch), ..self }
    }

    /// How the configuration is read again on SIGHUP. Without it only the files are that it names.
    #[must_use]
    pub fn reloading(self, load: Loader<Config>) -> Self {
        Self { load: Some(load), ..self }
    }

    pub fn public_address(&self) -> SocketAddr {
        self.public_address
    }

    pub fn internal_address(&self) -> SocketAddr {
        self.internal_address
    }

    /// Serves until drained. `on_ready` is called once, when connections are accepted.
    pub fn run(self, on_ready: impl FnOnce()) -> Result<(), StartError> {
        let runtime = runtime(self.config.shards.get())?;
        let context = Arc::new(Context::new(&self.config, self.public_address)?);
        let served = runtime.block_on(self.serve(&context, on_ready));
        let stopped = served.and_then(|(proxy, end)| {
            proxy.stop().map_err(system("the end of the shards"))?;
            if end == End::Lost { Err(StartError::Lost) } else { Ok(()) }
        });
        runtime.shutdown_timeout(Duration::from_secs(1));
        stopped
    }

    async fn serve(
        self,
        context: &Arc<Context>,
        on_ready: impl FnOnce(),
    ) -> Result<(Proxy, End), StartError> {
        let (mut members, nodes) = members(&self.config, context).await?;
        if timeout(FIRST_ROUND, members.round()).await.is_err() {
            tracing::warn!("no member is known yet");
        }
        tokio::spawn(members.run());
        tokio::spawn(members::tick(Arc::clone(&context.chooser)));
        let tls = self.config.tls.server()?;
        let assigner = assigner(&self.config, context)?;
        let certificates = tls.as_ref().map(|tls| Arc::clone(&tls.certificates));
        let (load, config) = (self.load, Config::clone(&self.config));
        let mut reloading = Reloading { load, config, assigner: assigner.clone(), certificates };
        let hangups = stopping::hangups().map_err(system("signals"))?;
        tokio::spawn(stopping::reload_at_hangup(hangups, move || reloading.reload()));
        let clone = |port: &StdTcpListener| port.try_clone().map_err(system("a port"));
        let (public, internal) = (clone(&self.public)?, clone(&self.internal)?);
        let proxy = start_proxy(self.public_address, &self.config, context, tls, assigner)?;
        if let Some(predecessor) = &self.predecessor {
            // Nothing else runs on this thread.
            let taken = match context.chooser.has_live() {
                true => proxy.take_over(predecessor),
                false => Err(UpgradeError::NotHere("it knows no gateway that takes clients")),
            };
            taken.map_err(|error| refuse(predecessor, error))?;
        }
        proxy.listen(self.public).map_err(system("the public port"))?;
        let internal_task = serve_internal(self.internal, context)?;
        let upgrades = proxy.upgrades(self.launch, Ports { public, internal, internal_task });
        upgrades.offer(&context.upgrade);
        tokio::spawn(stopping::at_user_signal(upgrades.at_signal()));
        // Nothing more is said between the two.
        drop(self.predecessor.map(Predecessor::serve));
        let period = self.config.fill.period;
        let filled = nodes.filter(|_| !period.is_zero());
        let filling = filled.map(|nodes| {
            tokio::spawn(fill::run(Arc::clone(&context.chooser), proxy.walkers(), nodes, period))
        });
        on_ready();
        tokio::select! {
            asked = context.stage.asked() => asked.map_err(system("signals"))?,
            () = upgrades.over() => {}
        }
        let end = upgrades.end();
        context.metrics.draining.set(1);
        if let Some(filling) = filling {
            filling.abort();
        }
        // Another process has the port: nobody new comes here. What was asked of this one, above all to give way, is answered.
        let settle = if end == End::Drain { self.config.drain.settle } else { LAST_WORDS };
        tokio::select! {
            () = drain(&self.config, &proxy, settle) => {}
            _ = stopping::insisted() => tracing::info!("stopping at once"),
        }
        Ok((proxy, end))
    }
}

/// What was asked of the internal port is answered within this time.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// Says why this process does not take over.
fn refuse(predecessor: &Predecessor, error: UpgradeError) -> StartError {
    predecessor.refuse(&error);
    StartError::TakeOver(error)
}

/// What both ports share.
#[derive(Debug)]
struct Context {
    chooser: Arc<Chooser>,
    metrics: Arc<Metrics>,
    internal: InternalAccess,
    stage: Stage,
    /// How this process is upgraded.
    upgrade: probes::Upgrade,
}

impl Context {
    fn new(config: &Config, public_address: SocketAddr) -> Result<Self, ConfigError> {
        let listener = Some(Listener { address: public_address, backlog: ACCEPT_BACKLOG });
        Ok(Self {
            chooser: Arc::new(Chooser::new(config.load_factor)),
            metrics: Arc::new(Metrics::new(Bounds { listener })),
            internal: config.internal_access()?,
            stage: Stage::default(),
            upgrade: probes::Upgrade::default(),
        })
    }
}

impl Operated for Context {
    fn openmetrics(&self) -> String {
        self.metrics.openmetrics(&self.chooser)
    }

    fn not_ready(&self) -> Vec<String> {
        let reasons = [
            (self.stage.is_draining(), "the router drains"),
            (!self.chooser.has_live(), "no gateway takes clients"),
            (
                self.metrics.panicking.get() != 0,
                "nearly all gateways look bad: they are gone, or this router is cut off",
            ),
        ];
        reasons.into_iter().filter(|(holds, _)| *holds).map(|(_, reason)| reason.to_owned()).collect()
    }

    fn drain(&self) {
        self.stage.drain();
    }

    fn upgrade(&self) -> probes::Upgrading {
        self.upgrade.begin()
    }

    fn internal_access(&self) -> &InternalAccess {
        &self.internal
    }

    fn refuse_page(&self) -> Response {
        Problem {
            name: "origin-refused",
            title: "The origin is not allowed",
            status: StatusCode::FORBIDDEN,
            detail: "pages of this origin may not do this".to_owned(),
        }
        .into_response()
    }
}

/// The members, and whoever can give them orders: only a registry can.
async fn members(
    config: &Config,
    context: &Context,
) -> Result<(Members, Option<Arc<dyn ReadNodes>>), StartError> {
    let names = Names::new(&config.dns.servers);
    let health = Health {
        path: config.health.path.as_str().into(),
        port: config.health.port.map(|port| port.0),
        proxy_protocol: config.upstream.proxy_protocol,
        interval: config.health.interval,
        timeout: config.health.timeout,
        failures: config.health.failures,
        cut_after: config.health.cut_after,
    };
    let (chooser, metrics) = (Arc::clone(&context.chooser), Arc::clone(&context.metrics));
    Ok(match config.members.clone() {
        MembersSetting::Static(list) => (Members::of_list(list, names, health, chooser, metrics), None),
        MembersSetting::Dns(name) => (Members::of_dns(name, names, health, chooser, metrics), None),
        MembersSetting::Redis(url) => {
            let nodes: Arc<dyn ReadNodes> = RedisNodes::connect(config.redis.options(&url)?).await?;
            (Members::of_registry(Arc::clone(&nodes), names, health, chooser, metrics), Some(nodes))
        }
    })
}

fn serve_internal(listener: StdTcpListener, context: &Arc<Context>) -> Result<AbortHandle, StartError> {
    let listener = tokio::net::TcpListener::from_std(listener).map_err(system("the internal port"))?;
    let operated = Arc::clone(context) as Arc<dyn Operated>;
    let routes = probes::routes(operated).fallback(not_found);
    Ok(tokio::spawn(probes::serve(listener, routes)).abort_handle())
}

fn assigner(config: &Config, context: &Context) -> Result<Option<Arc<Assigner>>, StartError> {
    let (chooser, metrics) = (Arc::clone(&context.chooser), Arc::clone(&context.metrics));
    Ok(Assigner::new(chooser, metrics, config.key.clone(), &config.assign)?.map(Arc::new))
}

fn start_proxy(
    address: SocketAddr,
    config: &Config,
    context: &Context,
    tls: Option<TlsServer>,
    assigner: Option<Arc<Assigner>>,
) -> Result<Proxy, StartError> {
    let assign = assigner.map_or_else(assign::off, Assigner::routes);
    if let Some(tls) = &tls {
        context.metrics.add(Arc::new(TlsCollector(Arc::clone(&tls.certificates))));
        tokio::spawn(Arc::clone(&tls.certificates).keep_fresh());
    }
    let trust = Trust::new(&config.trusted_proxies, config.forwarded_header);
    let balancers = config.proxy_protocol.then(|| Networks::new(&config.proxy_protocol_from));
    let edge = Edge::new(tls.as_ref(), balancers, trust);
    let known = Arc::clone(&context.chooser);
    let proxy = Proxy::start(address, options(config), known, edge, assign, &Handle::current())
        .map_err(system("the proxy"))?;
    context.metrics.set_proxy(proxy.stats().clone());
    Ok(proxy)
}

fn options(config: &Config) -> proxy::Options {
    let limits = &config.limits;
    proxy::Options {
        key: config.key.clone(),
        shards: config.shards.get(),
        proxy_protocol_to_nodes: config.upstream.proxy_protocol,
        handover: config.upstream.handover,
        connections_max: limits.connections.into(),
        head_bytes_max: limits.head_bytes.bytes(),
        head_timeout: limits.handshake_timeout,
        connect_timeout: limits.connect_timeout,
        answer_timeout: limits.answer_timeout,
        handshakes: Rate { per_second: limits.handshakes_per_second, at_once: limits.handshakes_burst },
        address_handshakes: limits.address_handshakes(),
        retries_percent: config.upstream.retries_percent,
        retries_burst: config.upstream.retries_burst,
    }
}

/// Settles, then closes the clients in equal parts, and waits for the last of them.
async fn drain(config: &Config, proxy: &Proxy, settle: Duration) {
    let drain = &config.drain;
    sleep(settle).await;
    tracing::info!(connections = proxy.connections(), period = ?drain.period, "closing connections");
    proxy.drain(drain.period);
    let ends = Instant::now() + drain.period + drain.close_wait;
    while proxy.connections() > 0 && Instant::now() < ends {
        sleep(Duration::from_millis(50)).await;
    }
    tracing::info!(connections = proxy.connections(), "drained");
}

fn runtime(shards: usize) -> Result<Runtime, StartError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(shards.min(HTTP_THREADS_MAX))
        .thread_name("http")
        .enable_all()
        .build()
        .map_err(system("the HTTP threads"))
}

fn system(part: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { part, source }
}
