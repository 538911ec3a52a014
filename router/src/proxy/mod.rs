//! The data path of the router: a client's first request chooses a node, and from then on bytes move both ways.
//!
//! ```text
//! client ──► reactor::listening ─► door (limits, dealing) ──► driver, one per shard
//!                                                              │ request   head → node → head to forward
//!                    ┌── Upgrade, event stream ────────────────┤ handshake connect, retry, the node's answer
//!                    ▼                                         │ pair      bytes, ends, pauses
//!          two slab entries of one shard                       ├── any other request: http (hyper, on Tokio),
//!                                                              │    and back with the first that is none of its
//!                                                              └── handover  the socket goes to a gateway of this machine
//! ```
//!
//! An idle pair owns two slab entries: no task, no timer object, no buffer, no queue. `docs/adr/0010` says how bytes
//! move, and what is done against smuggled requests.

mod answer;
mod budget;
mod door;
mod driver;
mod handover;
mod handshake;
mod http;
mod lines;
mod link;
mod metrics;
mod moving;
mod pair;
mod preamble;
mod refusal;
mod request;
pub(crate) mod upgrade;

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use axum::Router;
use tidegate_ops::{
    budget::Rate,
    edge::Edge,
    metrics::Page,
    succession::{self, Launch, Ports, open},
};
use tidegate_reactor::{Listener, Mail, Mailbox, Shard};
use tokio::runtime::Handle;

pub use self::metrics::{
    ConnectResult, CutReason, Direction, Fallback, HandoverMiss, ProxyMetrics, RefusalReason,
};
use self::{
    door::{Door, ShardDoor},
    driver::{Command, ProxyDriver},
    http::HttpProxy,
    link::Link,
    request::RouterId,
    upgrade::{Handing, Upgrades},
};
use crate::{
    chooser::{Chooser, Filling, Node},
    key::KeyRule,
};

/// What an operator sets.
#[derive(Debug, Clone)]
pub struct Options {
    pub key: KeyRule,
    pub shards: usize,
    /// Clients held at once; each needs two descriptors.
    pub connections_max: u64,
    pub head_bytes_max: usize,
    /// From the connection to the end of its head.
    pub head_timeout: Duration,
    /// Connections to nodes begin with a PROXY protocol header that names the client.
    pub proxy_protocol_to_nodes: bool,
    /// Clients are handed over to gateways of this machine that take them.
    pub handover: bool,
    /// Until a node has taken the connection.
    pub connect_timeout: Duration,
    /// Until a node has answered; afterwards the next one is asked.
    pub answer_timeout: Duration,
    /// Handshakes per second, and how many at once; 0: no limit.
    pub handshakes: Rate,
    /// Of one client address.
    pub address_handshakes: Rate,
    /// Further attempts for 100 clients, and how many at once.
    pub retries_percent: u32,
    pub retries_burst: u32,
}

/// What a proxy counts, for who shows it.
#[derive(Debug, Clone)]
pub struct ProxyStats {
    shards: Vec<Arc<ProxyMetrics>>,
    door: Arc<Door>,
}

/// A proxy that runs.
pub struct Proxy {
    shared: Arc<Shared>,
    stats: ProxyStats,
    mailboxes: Vec<Mailbox<Mail<Link, Command>>>,
    threads: Vec<JoinHandle<()>>,
}

/// The shards of a proxy, which look for clients that are to be asked to come back.
#[derive(Debug, Clone)]
pub(crate) struct Walkers(Vec<Mailbox<Mail<Link, Command>>>);

impl Walkers {
    pub(crate) fn walk(&self, filling: &Arc<Filling>) {
        for mailbox in &self.0 {
            mailbox.send(Mail::Command(Command::Walk(Arc::clone(filling))));
        }
    }
}

/// What all shards share.
#[derive(Debug)]
struct Shared {
    options: Options,
    chooser: Arc<Chooser>,
    edge: Arc<Edge>,
    door: Arc<Door>,
    http: Arc<HttpProxy>,
    /// New requests are refused.
    draining: AtomicBool,
    router: RouterId,
}

/// What waits for one connection never exceeds what one read took (see `pair`); this is the reactor's bound for it.
const QUEUE_BYTES_MAX: usize = 64 * 1024;

impl Default for Options {
    /// The limits of a gateway (`limits` in its configuration).
    fn default() -> Self {
        Self {
            key: KeyRule::Path,
            shards: 1,
            connections_max: 8_000,
            head_bytes_max: 16 * 1024,
            head_timeout: Duration::from_secs(10),
            proxy_protocol_to_nodes: false,
            handover: true,
            connect_timeout: Duration::from_secs(2),
            answer_timeout: Duration::from_secs(5),
            handshakes: Rate { per_second: 2_000, at_once: 4_000 },
            address_handshakes: Rate { per_second: 1_000, at_once: 2_000 },
            retries_percent: 20,
            retries_burst: 100,
        }
    }
}

impl Proxy {
    /// Serves those that come to a bound port, once it [listens](Self::listen). Requests that do not stay in a shard run on
    /// `runtime`; `assign` answers those that are for the router itself. Clients of a node that the chooser has lost are cut.
    pub fn start(
        address: SocketAddr,
        options: Options,
        chooser: Arc<Chooser>,
        edge: Edge,
        assign: Router,
        runtime: &Handle,
    ) -> io::Result<Self> {
        let edge = Arc::new(edge);
        // Differs from every other router's, also of one that is started at the same moment: that is all it is for.
        let router = RouterId(RandomState::new().hash_one(std::process::id()));
        let shards = (0..options.shards.max(1))
            .map(|_| Shard::<ProxyDriver>::new(QUEUE_BYTES_MAX))
            .collect::<io::Result<Vec<_>>>()?;
        let metrics: Vec<Arc<ProxyMetrics>> = shards.iter().map(|_| Arc::default()).collect();
        let mailboxes: Vec<_> = shards.iter().map(Shard::mailbox).collect();
        let doors = mailboxes.iter().cloned().map(ShardDoor::new).collect();
        let door = Arc::new(Door::new(&options, Arc::clone(&edge), address, doors));
        let http = Arc::new(HttpProxy::new(
            &options,
            Arc::clone(&chooser),
            Arc::clone(&edge),
            Arc::clone(&door),
            assign,
            router,
            runtime.clone(),
        ));
        let shared = Arc::new(Shared {
            options,
            chooser,
            edge,
            door: Arc::clone(&door),
            http,
            draining: AtomicBool::new(false),
            router,
        });
        let lost = mailboxes.clone();
        shared.chooser.on_lost(Box::new(move |node| cut(&lost, node)));
        let threads = shards
            .into_iter()
            .enumerate()
            .map(|(index, shard)| {
                let driver = ProxyDriver::new(index, Arc::clone(&shared), Arc::clone(&metrics[index]));
                spawn(index, shard, driver)
            })
            .collect::<io::Result<Vec<_>>>()?;
        let stats = ProxyStats { shards: metrics, door };
        Ok(Self { shared, stats, mailboxes, threads })
    }

    /// From now on clients are accepted, and those that are here are read.
    pub fn listen(&self, listener: TcpListener) -> io::Result<()> {
        open::<Handing>(&self.mailboxes, &Listener::new(listener)?);
        Ok(())
    }

    /// Clients held, those in HTTP included.
    pub fn connections(&self) -> u64 {
        self.shared.door.connections()
    }

    /// What an upgrade of this process takes.
    pub(crate) fn upgrades(&self, launch: Option<Launch>, ports: Ports) -> Arc<Upgrades> {
        let (has_tls, chooser) = (self.shared.edge.tls.is_some(), Arc::clone(&self.shared.chooser));
        succession::Upgrades::new(Handing { has_tls, chooser }, launch, self.mailboxes.clone(), ports)
    }

    pub(crate) fn walkers(&self) -> Walkers {
        Walkers(self.mailboxes.clone())
    }

    pub fn stats(&self) -> &ProxyStats {
        &self.stats
    }

    /// Takes no more clients, and closes those that are here in equal parts over the time.
    pub fn drain(&self, over: Duration) {
        self.shared.drain();
        for mailbox in &self.mailboxes {
            mailbox.send(Mail::StopListening);
            mailbox.send(Mail::Command(Command::Drain { over }));
        }
    }

    /// Ends the shards; what is still open is cut.
    pub fn stop(mut self) -> io::Result<()> {
        self.shared.drain();
        for mailbox in &self.mailboxes {
            mailbox.send(Mail::Stop);
        }
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| io::Error::other("a shard panicked"))?;
        }
        Ok(())
    }
}

impl ProxyStats {
    /// One group for each shard, and one for the door and HTTP.
    pub fn groups(&self) -> Vec<&ProxyMetrics> {
        self.shards.iter().map(|metrics| &**metrics).chain([self.door.metrics()]).collect()
    }

    /// How long each shard has been busy.
    pub fn busy(&self) -> Vec<Duration> {
        self.shards.iter().map(|metrics| Duration::from_nanos(metrics.busy_ns.get())).collect()
    }

    /// Writes the families.
    pub fn encode(&self, page: &mut Page<'_>) -> fmt::Result {
        ProxyMetrics::encode(&self.groups(), page)
    }
}

impl Shared {
    /// From now on requests are refused.
    fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.http.drain();
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("connections", &self.connections()).finish_non_exhaustive()
    }
}

/// A node is gone: its clients are closed at once, to come back elsewhere.
fn cut(mailboxes: &[Mailbox<Mail<Link, Command>>], node: &Arc<Node>) {
    for mailbox in mailboxes {
        mailbox.send(Mail::Command(Command::Cut { node: Arc::clone(node) }));
    }
}

fn spawn(index: usize, shard: Shard<ProxyDriver>, driver: ProxyDriver) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(format!("shard-{index}")).spawn(move || {
        if let Err(error) = shard.run(driver) {
            tracing::error!(%error, shard = index, "a shard has failed");
        }
    })
}
