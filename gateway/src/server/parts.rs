//! The parts of a gateway, built before anything runs, and its shards' threads.

use std::{
    io,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    thread,
    time::Instant,
};

use tidegate_backplane::{Epoch, Sink};
use tidegate_ops::{
    edge::Edge,
    http::{Patience, QUIET_MAX},
    listener::ACCEPT_BACKLOG,
    probes,
    seldom::Seldom,
    tls::{Certificates, TlsCollector},
    trust::{Networks, Trust},
};
use tidegate_reactor::Shard;
use tokio::runtime::Runtime;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{StartError, carrier::Carrier, system};
use crate::{
    admission::Front,
    app::apps::{AppCollector, Apps},
    app::webhooks::{HookEventCollector, HookEvents, TransitionHooks, Webhooks},
    auth::{ApiKeys, Authenticator, Origins},
    config::Config,
    console::Console,
    edge::door::{Dealer, Doorkeeper, ShardDoor},
    hooks::Hooks,
    http::{HttpContext, PublicService, serve::HttpServer},
    hub::Hub,
    metrics::{self, Bounds, Collector, Metrics},
    node::asking::Answering,
    node::shards::ShardPort,
    node::{Node, Relay},
    protocols::{self, FORMS, PROTOCOLS},
    session::core::{Core, ShardMailbox, Shared},
    shard::ShardDriver,
};

/// Everything that is built before anything runs.
pub(super) struct Parts {
    pub(super) shared: Arc<Shared>,
    pub(super) context: Arc<HttpContext>,
    pub(super) relay: Arc<Relay>,
    pub(super) carrier: Carrier,
    pub(super) doorkeeper: Arc<Doorkeeper>,
    pub(super) certificates: Option<Arc<Certificates>>,
    pub(super) shards: Vec<Shard<ShardDriver>>,
    /// Has HTTP connections finish.
    pub(super) stop_http: CancellationToken,
}

impl Parts {
    pub(super) fn build(
        config: &Arc<Config>,
        life: Epoch,
        public_address: SocketAddr,
        runtime: &Runtime,
        tasks: TaskTracker,
        carry: impl FnOnce(Arc<dyn Sink>, Box<[ShardMailbox]>) -> Result<Carrier, StartError>,
    ) -> Result<Self, StartError> {
        let metrics = Arc::new(Metrics::new(Bounds {
            listener: Some(metrics::Listener { address: public_address, backlog: ACCEPT_BACKLOG }),
        }));
        let shards = (0..config.shards.get())
            .map(|_| Shard::<ShardDriver>::new(config.limits.send_queue_bytes.bytes()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(system("a shard"))?;
        let ports = shards.iter().map(|shard| Box::new(shard.mailbox()) as Box<dyn ShardPort>);
        let relay = Arc::new(Relay::new(ports.collect()));
        let webhooks = Arc::new(Webhooks::new(config.webhooks.clone(), runtime.handle().clone())?);
        metrics.register(webhooks.collector());
        let hooks = Arc::new(Hooks::new(config, runtime.handle().clone())?);
        metrics.register(hooks.collector());
        let apps = Arc::new(Apps::new(config, Arc::clone(&webhooks))?);
        let hook_events = Arc::new(HookEvents::new(config, hooks.source(), &webhooks)?);
        metrics.register(Arc::new(HookEventCollector(Arc::clone(&hook_events))));
        relay.transition_hooks.get_or_init(|| {
            TransitionHooks::new(Arc::clone(&apps), Arc::clone(&webhooks), Arc::clone(&hook_events))
        });
        metrics.register(Arc::new(AppCollector(Arc::clone(&apps))));
        let mailboxes = shards.iter().map(Shard::mailbox).collect();
        let carrier = carry(Arc::clone(&relay) as Arc<dyn Sink>, mailboxes)?;
        relay.answering.get_or_init(|| {
            let runtime = runtime.handle().clone();
            Answering::new(&carrier.backplane, runtime, &config.node, Arc::clone(&metrics))
        });
        metrics.register(carrier.collector());
        hook_events.keep_wills(&carrier.backplane, runtime.handle().clone());
        relay.rosters.begin(&carrier.backplane, runtime.handle().clone());
        metrics.register(Arc::clone(&relay.rosters) as Arc<dyn Collector>);
        let front = Arc::new(Front::new(config.limits.clone()));
        let node = Arc::new(Node::new(
            Arc::clone(config),
            Arc::clone(&carrier.backplane),
            Arc::clone(&relay),
            Arc::clone(&front),
            Arc::clone(&metrics),
        ));
        metrics.register(Arc::clone(node.histories()) as Arc<dyn Collector>);
        metrics.node.connections_limit.set(i64::from(config.limits.connections));
        metrics.node.channels_limit.set(i64::from(config.limits.channels));
        let started = Instant::now();
        let doors = shards
            .iter()
            .map(|shard| ShardDoor {
                mailbox: shard.mailbox(),
                connections: Arc::new(AtomicU64::new(0)),
                failed: AtomicBool::new(false),
            })
            .collect();
        let dealer = Arc::new(Dealer::new(doors, started));
        let stop_http = CancellationToken::new();
        let console = Console::new(Arc::clone(&node), runtime.handle().clone(), stop_http.clone());
        let context = Arc::new(HttpContext {
            node: Arc::clone(&node),
            keys: Arc::new(ApiKeys::new(&config.auth.api_keys)?),
            apps,
            origins: Arc::new(
                Origins::new(&config.auth.allowed_origins)
                    .with_local_hosts_only(config.serves_this_machine_only()),
            ),
            metrics: Arc::clone(&metrics),
            console: Arc::new(console),
            apis: protocols::APIS,
            is_shards: if config.dev { protocols::serve_dev } else { protocols::serve },
            internal: config.internal_access()?,
            upgrade: probes::Upgrade::default(),
            dev: config.dev,
        });
        let http = HttpServer {
            service: PublicService::new(Arc::clone(&context)),
            front: Arc::clone(&front),
            dealer: Arc::clone(&dealer),
            metrics: Arc::clone(&metrics),
            is_shards: protocols::is_shards(config.dev),
            patience: Patience { head: config.limits.handshake_timeout, quiet: QUIET_MAX },
            head_bytes_max: config.limits.head_bytes.bytes(),
            runtime: runtime.handle().clone(),
            stop: stop_http.clone(),
            tasks: tasks.clone(),
        };
        let tls = config.tls.server()?;
        if let Some(tls) = &tls {
            metrics.register(Arc::new(TlsCollector(Arc::clone(&tls.certificates))));
        }
        let edge = Arc::new(Edge::new(
            tls.as_ref(),
            config.proxy_protocol.then(|| Networks::new(&config.proxy_protocol_from)),
            Trust::new(&config.trusted_proxies, config.forwarded_header),
        ));
        let shared = Arc::new(Shared {
            node,
            protocols: PROTOCOLS,
            front: Arc::clone(&front),
            authenticator: Arc::new(Authenticator::new(&config.auth, tasks)?),
            api_keys: Arc::clone(&context.keys),
            apps: Arc::clone(&context.apps),
            webhooks,
            hooks,
            hook_events,
            origins: Arc::clone(&context.origins),
            edge: Arc::clone(&edge),
            metrics: Arc::clone(&metrics),
            runtime: runtime.handle().clone(),
            http: Arc::new(http),
            started,
            life,
        });
        let strangers = Seldom::default();
        let doorkeeper = Arc::new(Doorkeeper { front, metrics, dealer, edge, strangers });
        let certificates = tls.map(|tls| tls.certificates);
        Ok(Self { shared, context, relay, carrier, doorkeeper, certificates, shards, stop_http })
    }

    /// They accept nothing yet.
    pub(super) fn start_shards(&mut self) -> Result<Vec<thread::JoinHandle<()>>, StartError> {
        let shards = std::mem::take(&mut self.shards);
        shards.into_iter().enumerate().map(|(index, shard)| self.start_shard(index, shard)).collect()
    }

    fn start_shard(
        &self,
        index: usize,
        shard: Shard<ShardDriver>,
    ) -> Result<thread::JoinHandle<()>, StartError> {
        let interests = Arc::clone(&self.relay.interests);
        let hub = Hub::new(index, interests, Arc::clone(self.shared.node.backplane()), FORMS);
        let core = Core::new(
            index,
            Arc::clone(&self.shared),
            hub,
            shard.mailbox(),
            self.shared.metrics.shard(),
            Arc::clone(&self.doorkeeper.dealer.door(index).connections),
        );
        let driver = ShardDriver::new(core, Arc::clone(&self.doorkeeper));
        let runtime = self.shared.runtime.clone();
        let (node, dealer) = (Arc::clone(&self.shared.node), Arc::clone(&self.doorkeeper.dealer));
        thread::Builder::new()
            .name(format!("shard-{index}"))
            .spawn(move || {
                // Futures of the backplane are first polled where they are made: they may set timers and spawn.
                let _runtime = runtime.enter();
                // Nothing of the shard is used afterwards: its sockets close, its mailbox takes nothing more.
                match catch_unwind(AssertUnwindSafe(|| shard.run(driver))) {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => tracing::error!(%error, shard = index, "a shard has failed: draining"),
                    Err(_) => tracing::error!(shard = index, "a shard has panicked: draining"),
                }
                node.shard_failed(dealer.give_up(index));
            })
            .map_err(system("a shard's thread"))
    }
}
