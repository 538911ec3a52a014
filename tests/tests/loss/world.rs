//! What a row needs: Redis in one of its shapes, and gateways that use it.

use std::fs;
use std::net::SocketAddr;

use tempfile::NamedTempFile;
use tidegate_testkit::net::Blackhole;
use tidegate_testkit::redis::{Cut, RedisCluster, RedisServer, RedisServerBuilder, Sentinel};
use tidegate_testkit::{Gateway, GatewayBuilder, preloaded};
use tidegate_tests::cluster::site::{CONFIG, Site, node};

use crate::table::{Keeps, Row};

const GATEWAYS: usize = 3;

/// The servers, and whatever else a fault needs.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) site: Site,
    /// Where clients come in.
    pub(crate) doors: Vec<SocketAddr>,
    pub(crate) servers: Vec<Server>,
    pub(crate) sentinel: Option<Sentinel>,
    pub(crate) cluster: Option<RedisCluster>,
    /// Before the first server, or before the first gateway.
    pub(crate) wire: Option<Cut>,
    pub(crate) password: Option<NamedTempFile>,
    _dead: Option<Blackhole>,
    _hosts: Option<NamedTempFile>,
}

/// One server of those that stand alone, with the replica that it may have.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) master: RedisServer,
    _replica: Option<RedisServer>,
}

impl World {
    /// Starts the gateways, with what the row says added to their configuration.
    fn gateways(mut self, row: &Row, url: &str, also: impl Fn(GatewayBuilder) -> GatewayBuilder) -> Self {
        let password = self.password.as_ref().map(|file| format!("password_file = {:?}\n", file.path()));
        let config = format!("{CONFIG}replicas = {}\n{}", row.replicas, password.unwrap_or_default());
        let start = |number| also(node(url, number).config(&config)).start();
        self.site = Site { gateways: (1..=GATEWAYS).map(start).collect() };
        self.doors = self.site.addresses();
        self
    }

    fn plain_gateways(self, row: &Row, url: &str) -> Self {
        self.gateways(row, url, |gateway| gateway)
    }

    pub(crate) fn server(&mut self) -> &mut RedisServer {
        &mut self.servers.first_mut().expect("a server that stands alone").master
    }

    /// Servers that keep snapshots make one.
    pub(crate) fn snapshot(&self, row: &Row) {
        if row.keeps == Keeps::Rdb {
            self.servers.iter().for_each(|server| drop(server.master.command(&["SAVE"])));
        }
    }

    pub(crate) fn first_gateway(&mut self) -> &mut Gateway {
        self.site.gateways.first_mut().expect("there are gateways")
    }
}

fn builder(row: &Row) -> RedisServerBuilder {
    let builder = RedisServer::builder().option("repl-diskless-sync-delay", "0");
    match row.keeps {
        Keeps::Aof => builder.durable(),
        Keeps::Rdb | Keeps::Nothing => builder.option("appendonly", "no"),
    }
}

/// A server as it is wanted, with a replica where the row asks for one.
fn server(row: &Row, wanted: RedisServerBuilder) -> Server {
    let master = wanted.start();
    let replica = (row.replicas > 0).then(|| {
        // What it has on its disk is never asked for, and a publication would wait for it.
        let replica = RedisServer::builder().option("appendonly", "no").following(&master).start();
        replica.eventually_follows();
        replica
    });
    Server { master, _replica: replica }
}

fn one(row: &Row, wanted: RedisServerBuilder) -> World {
    World { servers: vec![server(row, wanted)], ..World::default() }
}

pub(crate) fn one_server(row: &Row) -> World {
    let mut world = one(row, builder(row));
    let url = world.server().url();
    world.plain_gateways(row, &url)
}

pub(crate) fn server_with_snapshots(row: &Row) -> World {
    let mut world = one(row, builder(row).option("save", "3600 1").option("enable-protected-configs", "yes"));
    let url = world.server().url();
    world.plain_gateways(row, &url)
}

pub(crate) fn server_with_a_clock(row: &Row) -> World {
    let mut world = one(row, builder(row).clock());
    let url = world.server().url();
    world.plain_gateways(row, &url)
}

pub(crate) fn server_with_little_room(row: &Row) -> World {
    let limit = ("client-output-buffer-limit", "pubsub 256kb 256kb 0");
    let mut world = one(row, builder(row).option(limit.0, limit.1));
    let url = world.server().url();
    world.plain_gateways(row, &url)
}

pub(crate) fn behind_a_wire(row: &Row) -> World {
    let mut world = one(row, builder(row));
    let wire = Cut::before(world.server().address());
    let url = wire.url();
    world.wire = Some(wire);
    world.plain_gateways(row, &url)
}

pub(crate) fn server_with_a_password(row: &Row) -> World {
    let mut world = one(row, builder(row).user("default off").user("app on >old ~* &* +@all"));
    let file = NamedTempFile::new().expect("a temporary file can be made");
    fs::write(file.path(), "old\n").expect("it is writable");
    world.password = Some(file);
    let url = world.server().url().replacen("redis://", "redis://app@", 1);
    world.plain_gateways(row, &url)
}

/// `redis.test` has two addresses; connections to the first are never made.
pub(crate) fn two_addresses(row: &Row) -> World {
    let mut world = one(row, builder(row));
    let port = world.server().address().port();
    world._dead = Some(Blackhole::at(([127, 0, 0, 2], port).into()).expect("the port is free there"));
    let hosts = NamedTempFile::new().expect("a temporary file can be made");
    fs::write(hosts.path(), "127.0.0.2 redis.test\n127.0.0.1 redis.test\n").expect("it is writable");
    let path = hosts.path().display().to_string();
    world._hosts = Some(hosts);
    world.gateways(row, &format!("redis://redis.test:{port}"), |gateway| {
        let library = preloaded("libnss_wrapper.so").display().to_string();
        gateway.environment("LD_PRELOAD", &library).environment("NSS_WRAPPER_HOSTS", &path)
    })
}

pub(crate) fn three_servers(row: &Row) -> World {
    let servers: Vec<Server> = (0..3).map(|_| server(row, builder(row))).collect();
    let addresses: Vec<String> = servers.iter().map(|server| server.master.address().to_string()).collect();
    World { servers, ..World::default() }.plain_gateways(row, &format!("redis://{}", addresses.join(",")))
}

pub(crate) fn sentinel(row: &Row) -> World {
    let sentinel = Sentinel::of(&builder(row));
    let url = sentinel.url();
    World { sentinel: Some(sentinel), ..World::default() }.plain_gateways(row, &url)
}

pub(crate) fn cluster(row: &Row) -> World {
    cluster_of(row, usize::from(row.replicas))
}

pub(crate) fn cluster_with_replicas(row: &Row) -> World {
    cluster_of(row, 1)
}

fn cluster_of(row: &Row, replicas_each: usize) -> World {
    let cluster = RedisCluster::of(&builder(row), 3, replicas_each);
    let url = cluster.url();
    World { cluster: Some(cluster), ..World::default() }.plain_gateways(row, &url)
}

/// No Redis at all: what is left to go wrong is the way to the clients.
pub(crate) fn memory(_: &Row) -> World {
    let site = Site::start("memory", 1);
    let wire = Cut::before(site.addresses()[0]);
    World { site, doors: vec![wire.address()], wire: Some(wire), ..World::default() }
}
