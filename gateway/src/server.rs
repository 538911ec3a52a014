//! The composition root: binds, builds every part, and runs them until the node is drained.

mod carrier;
mod consumers;
mod parts;
mod readers;
mod reload;
mod upgrade;

use std::{
    io,
    net::{SocketAddr, TcpListener as StdTcpListener},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tidegate_backplane::{Epoch, RedisStartError, Sink};
use tidegate_ops::{
    config::Loader,
    handover::{Doorway, DoorwayError},
    listener::{ListenError, listen, listen_shared},
    probes, stopping,
    succession::{End, Launch, Ports, Predecessor, open},
};
use tidegate_reactor::{Listener, Shard};
use tokio::{runtime::Runtime, task::JoinHandle, time::MissedTickBehavior};
use tokio_util::task::TaskTracker;

use carrier::Carrier;
use parts::Parts;
use reload::Reloading;
use upgrade::{Handing, Upgrades, successor};

use crate::{
    app::apps::{self},
    auth::{ApiKeys, Authenticator},
    config::{Config, ConfigError},
    console::reporter,
    edge::handover::{self, Handovers},
    http::internal_router,
    node::drain,
    node::shards::Order,
    session::core::Shared,
};

/// Why a gateway did not start, or did not end as it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Doorway(#[from] DoorwayError),
    #[error(transparent)]
    Redis(#[from] RedisStartError),
    #[error("this process cannot take the place of the one that started it: {0}")]
    TakeOver(Box<str>),
    #[error("the process that took this one's place has ended before it served")]
    Lost,
    #[error("cannot set up {part}: {source}")]
    System { part: &'static str, source: io::Error },
    #[error(
        "{failed} of {shards} shards failed, see the log; the node has drained the others and ends, to be started again"
    )]
    ShardFailed { failed: u64, shards: usize },
}

impl StartError {
    /// What the process exits with: [`ConfigError::EXIT_CODE`] where the operator has something to mend.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Listen(_) | Self::Doorway(_) | Self::Redis(_) => ConfigError::EXIT_CODE,
            Self::System { .. } | Self::ShardFailed { .. } | Self::TakeOver(_) | Self::Lost => 1,
        }
    }
}

/// A gateway whose ports are bound.
#[derive(Debug)]
pub struct Server {
    config: Arc<Config>,
    load: Option<Loader<Config>>,
    /// As it was asked for: its port may be 0.
    listen: SocketAddr,
    public: StdTcpListener,
    internal: StdTcpListener,
    doorway: Option<Doorway>,
    public_address: SocketAddr,
    internal_address: SocketAddr,
    launch: Option<Launch>,
    /// What it was given by the process whose place it takes.
    predecessor: Option<Predecessor>,
}

/// HTTP, keys, drain and the backplane's client need little beside the shards.
const HTTP_THREADS_MAX: usize = 4;

/// How often the node renews its record and sweeps.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// How long webhooks are waited for at the end of a drain. A server that answers at all does so in this time; the
/// pod's grace period has 10 s for everything that is not the drain's own.
const WEBHOOKS_CLOSE: Duration = Duration::from_secs(3);

/// What a start looks at beside the configuration itself: whether its keys can be used.
pub fn check(config: &Config) -> Result<(), ConfigError> {
    Authenticator::new(&config.auth, TaskTracker::new())?;
    ApiKeys::new(&config.auth.api_keys).map(drop)
}

impl Server {
    /// Binds both ports, and the socket for hand-overs if there is one.
    pub fn bind(config: Config) -> Result<Self, StartError> {
        let public = match config.reuse_port {
            true => listen_shared(config.listen, "listen")?,
            false => listen(config.listen, "listen")?,
        };
        let internal = listen(config.internal, "internal")?;
        let doorway = config.handover.socket.as_deref().map(Doorway::bind).transpose()?;
        Self::bound(config, public, internal, doorway)
    }

    fn bound(
        mut config: Config,
        public: StdTcpListener,
        internal: StdTcpListener,
        doorway: Option<Doorway>,
    ) -> Result<Self, StartError> {
        let address = |listener: &StdTcpListener| {
            listener.local_addr().map_err(|source| StartError::System { part: "the listener", source })
        };
        let (public_address, internal_address) = (address(&public)?, address(&internal)?);
        // A port that the kernel chose (0) is the one that other nodes are told.
        let listen = std::mem::replace(&mut config.listen, public_address);
        let config = Arc::new(config);
        Ok(Self {
            config,
            load: None,
            listen,
            public,
            internal,
            doorway,
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
        for lack in self.config.without_use() {
            tracing::warn!("{lack}; `tidegate init` writes a configuration that has what it takes");
        }
        let runtime = runtime(self.config.shards.get())?;
        let tasks = TaskTracker::new();
        let life = match &self.predecessor {
            Some(predecessor) => Epoch(predecessor.life),
            None => new_life().map_err(system("the random source"))?,
        };
        let mut parts = Parts::build(
            &self.config,
            life,
            self.public_address,
            &runtime,
            tasks.clone(),
            |sink, shards| Carrier::new(&self.config, life, sink, shards, runtime.handle()),
        )?;
        let _internal = runtime.enter();
        // One that comes while connections are taken over waits.
        let hangups = stopping::hangups().map_err(system("signals"))?;
        let clone = |listener: &StdTcpListener| listener.try_clone().map_err(system("a port"));
        let (public, internal) = (clone(&self.public)?, clone(&self.internal)?);
        let mailboxes: Vec<_> = parts.shards.iter().map(Shard::mailbox).collect();
        let predecessor = self.predecessor;
        let (taken, handovers) = match &predecessor {
            Some(predecessor) => {
                parts.take(predecessor).map(|(taken, handovers)| (Some(taken), handovers))?
            }
            None => {
                let bound = self.doorway.map(|doorway| Handovers::new(doorway, Vec::new()));
                (None, bound.transpose().map_err(system("the hand-over socket"))?)
            }
        };
        if taken.is_some() {
            parts.carrier.go_on();
        }
        let shards = parts.start_shards()?;
        let sink = Arc::clone(&parts.relay) as Arc<dyn Sink>;
        if let Some(taken) = taken {
            successor::settle(taken, &mailboxes).map_err(|error| take_over(&error))?;
            parts.carrier.begin(sink)?;
            parts.telling().resume();
        } else {
            runtime.block_on(parts.carrier.start(sink))?;
        }
        open::<Handing>(&mailboxes, &Listener::new(self.public).map_err(system("the public port"))?);
        let listener =
            tokio::net::TcpListener::from_std(self.internal).map_err(system("the internal port"))?;
        let internal_service = internal_router(Arc::clone(&parts.context));
        let internal_task = runtime.spawn(async move { probes::serve(listener, internal_service).await });
        let node = Arc::clone(&parts.shared.node);
        let handovers = handovers.map(Arc::new);
        let taking_over = handovers.clone().map(|handovers| {
            node.handover.get_or_init(|| handovers.place());
            runtime.spawn(handover::run(handovers, Arc::clone(&parts.doorkeeper), Arc::clone(&node)))
        });
        let keeping = runtime.spawn(housekeeping(Arc::clone(&parts.shared), parts.carrier.clone()));
        let reporting = runtime.spawn(reporter::run(Arc::clone(&node), Arc::clone(&parts.shared.metrics)));
        let tasks_of_node = [Some(&keeping), Some(&reporting), taking_over.as_ref()];
        let tasks_of_node = tasks_of_node.into_iter().flatten().map(JoinHandle::abort_handle).collect();
        let (carrier, of) = (parts.carrier.clone(), Arc::clone(&node));
        let consumers = consumers::of(
            &self.config.consumers,
            &node,
            &parts.shared.life.to_string(),
            runtime.handle().clone(),
        );
        let consumers = Arc::new(consumers);
        parts.shared.metrics.register(Arc::new(consumers.counts()));
        let handing = Handing {
            carrier,
            life: life.0,
            node: of,
            handovers,
            tasks: tasks_of_node,
            consumers: Arc::clone(&consumers),
            telling: parts.telling(),
            runtime: runtime.handle().clone(),
        };
        let ports = Ports { public, internal, internal_task: internal_task.abort_handle() };
        let upgrades = Upgrades::new(handing, self.launch, mailboxes, ports);
        upgrades.offer(&parts.context.upgrade);
        runtime.spawn(stopping::at_user_signal(upgrades.at_signal()));
        if let Some(predecessor) = predecessor {
            let hooks = Arc::clone(&parts.shared.hook_events);
            successor::serve(predecessor, Arc::clone(node.backplane()), hooks, runtime.handle().clone());
        }
        let authenticator = Arc::clone(&parts.shared.authenticator);
        runtime.spawn(async move { authenticator.keep_fresh().await });
        let relay = Arc::clone(&parts.relay);
        let tell = move || relay.to_all(&Order::AppsChanged);
        runtime.spawn(apps::keep_fresh(Arc::clone(&parts.context.apps), tell));
        let mut reloading = Reloading {
            load: self.load,
            config: Config { listen: self.listen, ..Config::clone(&self.config) },
            authenticator: Arc::clone(&parts.shared.authenticator),
            api_keys: Arc::clone(&parts.shared.api_keys),
            apps: Arc::clone(&parts.context.apps),
            certificates: parts.certificates.clone(),
            relay: Arc::clone(&parts.relay),
        };
        if let Some(certificates) = parts.certificates {
            runtime.spawn(certificates.keep_fresh());
        }
        runtime.spawn(stopping::reload_at_hangup(hangups, move || reloading.reload()));
        consumers.begin();
        on_ready();
        runtime.block_on(async {
            tokio::select! {
                asked = stopping::asked(node.drain_asked()) => asked.map_err(system("signals"))?,
                () = upgrades.over() => {}
            }
            consumers.stop().await;
            let end = upgrades.end();
            let ending = async {
                match end {
                    End::Drain => drain::run(&node, &parts.relay, &parts.stop_http, &tasks).await,
                    End::Given | End::Lost => drain::give_way(&node, &parts.stop_http, &tasks).await,
                }
            };
            tokio::select! {
                () = ending => {}
                _ = stopping::insisted() => tracing::info!("stopping at once"),
            }
            parts.shared.webhooks.close(WEBHOOKS_CLOSE).await;
            parts.carrier.close().await;
            if end == End::Lost { Err(StartError::Lost) } else { Ok(()) }
        })?;
        parts.relay.stop_shards();
        let number = shards.len();
        // How a shard ended, its thread has told the node.
        let _ended: Vec<thread::Result<()>> = shards.into_iter().map(thread::JoinHandle::join).collect();
        drop(_internal);
        runtime.shutdown_timeout(Duration::from_secs(1));
        match node.shards_failed() {
            0 => Ok(()),
            failed => Err(StartError::ShardFailed { failed, shards: number }),
        }
    }
}

fn new_life() -> io::Result<Epoch> {
    getrandom::u64().map(Epoch).map_err(io::Error::other)
}

async fn housekeeping(shared: Arc<Shared>, carrier: Carrier) {
    let node = &shared.node;
    let mut every = tokio::time::interval(HOUSEKEEPING);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = true;
    loop {
        every.tick().await;
        carrier.sweep();
        node.note_bounds();
        note_hooks(&shared);
        node.rosters().sweep();
        node.histories().sweep(Instant::now());
        // A server that is away is away for many rounds: said once.
        let announced = node.backplane().announce(node.record()).await;
        node.note_announced(&announced);
        match announced {
            Err(error) if told => {
                tracing::warn!(%error, "the node registry could not be told about this node")
            }
            Ok(()) if !told => tracing::info!("the node registry knows this node again"),
            result => {
                told = result.is_ok();
                continue;
            }
        }
        told = !told;
    }
}

fn note_hooks(shared: &Shared) {
    let fullness = shared.hooks.fullness().max(shared.hook_events.fullness());
    let has_hooks = !shared.hooks.is_empty() || !shared.hook_events.is_empty();
    shared.metrics.node.hooks_permille.set((fullness * 1000.0) as i64);
    shared.metrics.node.hooks_bound.set(if has_hooks { 1000 } else { 0 });
}

fn runtime(shards: usize) -> Result<Runtime, StartError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(shards.min(HTTP_THREADS_MAX))
        .thread_name("http")
        .enable_all()
        .build()
        .map_err(system("the HTTP threads"))
}

fn take_over(error: &dyn std::error::Error) -> StartError {
    StartError::TakeOver(error.to_string().into())
}

fn system(part: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { part, source }
}

#[cfg(test)]
mod tests;
