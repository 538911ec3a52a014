//! `tidegate plan`: what so many connections take, from measured costs. Arithmetic only; nothing of this machine is read.
//!
//! All costs are linear, so a plan is a sum for each resource, divided by what one machine may spend of it. The number of
//! gateways is that of the resource which needs the most of them; the report says which. Machines are filled so far that the
//! others can take over when one is lost.

mod costs;
mod report;

use std::time::Duration;

use costs::RedisCosts;
pub use costs::{Costs, CostsError};

/// What is to be carried, and on what.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub connections: u64,
    /// Publications a second.
    pub publications: u64,
    /// Subscribers of a publication.
    pub fan_out: u64,
    pub payload_bytes: u64,
    /// `None`: as many as it takes.
    pub nodes: Option<u64>,
    pub machine: MachineSize,
    pub path: Path,
    pub tls: bool,
    pub settings: Settings,
    /// Of one machine in an hour, in whatever currency.
    pub price: Option<f64>,
}

/// One machine; all are of one size.
#[derive(Debug, Clone, Copy)]
pub struct MachineSize {
    pub cores: u64,
    pub memory_bytes: u64,
    pub bits_per_second: u64,
}

/// How clients come to a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// A router moves the bytes.
    Router,
    /// A balancer of the network, hand-off on the machine, or `/v1/assign`: no bytes pass a router.
    Direct,
}

/// Settings of the product that the plan depends on, with their defaults.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub heartbeat_interval: Duration,
    pub handshakes_per_second: u64,
    pub drain_settle: Duration,
    pub drain_period: Duration,
    pub drain_close_wait: Duration,
    /// Nodes that are restarted at the same time.
    pub restarts_at_once: u64,
    /// Ports towards one gateway: `net.ipv4.ip_local_port_range`.
    pub ports: u64,
    pub descriptors_max: u64,
}

/// What it takes.
#[derive(Debug, Clone)]
pub struct Plan {
    pub wanted: Wanted,
    pub gateways: Fleet,
    pub routers: Option<Fleet>,
    pub redis_servers: u64,
    /// Bits a second that Redis sends to gateways, of all servers.
    pub redis_bits: u64,
    pub deliveries: u64,
    pub heartbeats: Heartbeats,
    pub storm: Storm,
    pub roll: Duration,
    pub kernel: Vec<(String, String)>,
}

/// Machines of one kind.
#[derive(Debug, Clone)]
pub struct Fleet {
    pub machines: u64,
    /// What needs so many, and how many each of the others would need.
    pub needs: Vec<(Resource, u64)>,
    /// Of one machine, when all run.
    pub each: Load,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    Cpu,
    Memory,
    Bandwidth,
    Descriptors,
    Ports,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    pub connections: u64,
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub bits_out: u64,
    pub bits_in: u64,
    pub descriptors: u64,
}

/// What heartbeats take of all, if no delivery spares one.
#[derive(Debug, Clone, Copy)]
pub struct Heartbeats {
    pub per_second: u64,
    pub bits_out: u64,
    pub bits_in: u64,
    pub cpu_millis: u64,
    /// At this interval they would fill 10 Gbit/s by themselves.
    pub fills_ten_gigabit_at: Duration,
}

/// After the loss of a node.
#[derive(Debug, Clone, Copy)]
pub struct Storm {
    pub clients: u64,
    pub handshakes_per_node: u64,
    /// At the rate that a node lets in.
    pub lasts: Duration,
    /// Of a node's cores, while it lasts.
    pub cpu_millis: u64,
}

/// Half of the CPU, three quarters of the memory and seven tenths of the network are for what is planned: the rest is for
/// what is lost elsewhere, and for peaks.
const CPU_PERCENT: u64 = 50;
const MEMORY_PERCENT: u64 = 75;
const BANDWIDTH_PERCENT: u64 = 70;

/// Descriptors that are no client's, as `limits.connections` leaves them.
const DESCRIPTORS_RESERVED: u64 = 200;

/// Where one machine takes more publications a second than this, they come in batches.
const BATCHED_FROM: u64 = 10_000;

/// Linux makes 524,288 lists of established sockets by itself at most. With two in each, finding one costs little; eight in each
/// were 13 % of all CPU time.
const SOCKETS_FOUND_FAST: u64 = 1_048_576;

const TEN_GIGABIT: u64 = 10_000_000_000;

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(25),
            handshakes_per_second: 2_000,
            drain_settle: Duration::from_secs(5),
            drain_period: Duration::from_secs(30),
            drain_close_wait: Duration::from_secs(5),
            restarts_at_once: 1,
            ports: 28_232,
            descriptors_max: 1_048_576,
        }
    }
}

impl Plan {
    pub fn of(wanted: Wanted, costs: &Costs) -> Self {
        let deliveries = wanted.publications.saturating_mul(wanted.fan_out);
        let gateways = gateways(&wanted, costs, deliveries);
        let routers =
            (wanted.path == Path::Router).then(|| routers(&wanted, costs, deliveries, gateways.machines));
        let reached = nodes_reached(gateways.machines, wanted.fan_out);
        let message = costs.wire.message(wanted.payload_bytes + costs.redis.publication_bytes);
        let redis_bits = wanted.publications.saturating_mul(reached).saturating_mul(message) * 8;
        let by_cpu = redis_ns(&wanted, &costs.redis, gateways.machines, reached).div_ceil(1_000_000_000);
        let by_network = redis_bits.div_ceil(share(wanted.machine.bits_per_second, BANDWIDTH_PERCENT));
        Self {
            redis_servers: by_cpu.max(by_network).max(1),
            redis_bits,
            deliveries,
            heartbeats: heartbeats(&wanted, costs),
            storm: storm(&wanted, costs, gateways.machines),
            roll: roll(&wanted.settings, gateways.machines),
            kernel: kernel(&gateways, routers.as_ref(), &wanted),
            gateways,
            routers,
            wanted,
        }
    }

    pub fn machines(&self) -> u64 {
        self.gateways.machines + self.redis_servers + self.routers.as_ref().map_or(0, |fleet| fleet.machines)
    }
}

/// What one thread of Redis does in a second, if it did all.
fn redis_ns(wanted: &Wanted, redis: &RedisCosts, nodes: u64, reached: u64) -> u64 {
    let accepting = 1_000_000_000 / redis.publications_per_second.max(1);
    let publication = accepting + reached.saturating_mul(redis.receiver_ns);
    wanted.publications.saturating_mul(publication).saturating_add(nodes.saturating_mul(redis.node_ns))
}

/// The sums of all gateways, but for what every one of them gets.
fn gateways(wanted: &Wanted, costs: &Costs, deliveries: u64) -> Fleet {
    let (gateway, beats) = (&costs.gateway, heartbeats(wanted, costs));
    let connection = gateway.connection_user_bytes
        + gateway.connection_kernel_bytes
        + if wanted.tls { gateway.tls_bytes } else { 0 };
    let message = costs.wire.message(wanted.payload_bytes);
    let load = |machines: u64| {
        let each = |sum: u64| sum.div_ceil(machines);
        let received = received(wanted, machines);
        let received_ns = match received {
            0..BATCHED_FROM => gateway.publication_from_node_ns,
            _ => gateway.publication_from_node_batched_ns,
        };
        let ns = each(deliveries).saturating_mul(gateway.delivery_ns)
            + received.saturating_mul(received_ns)
            + each(wanted.publications).saturating_mul(gateway.publication_over_rest_ns);
        let from_redis = costs.wire.message(wanted.payload_bytes + costs.redis.publication_bytes);
        let acknowledgements = each(deliveries).saturating_mul(costs.wire.segment_bytes);
        Load {
            connections: each(wanted.connections),
            cpu_millis: ns.div_ceil(1_000_000) + each(beats.cpu_millis),
            memory_bytes: each(wanted.connections) * connection + gateway.process_bytes,
            bits_out: each(beats.bits_out)
                + 8 * (each(deliveries).saturating_mul(message)
                    + each(wanted.publications).saturating_mul(from_redis)),
            bits_in: each(beats.bits_in)
                + 8 * (acknowledgements
                    + received.saturating_mul(from_redis)
                    + each(wanted.publications).saturating_mul(message)),
            descriptors: each(wanted.connections) + DESCRIPTORS_RESERVED,
        }
    };
    fleet(wanted, wanted.nodes, load, None)
}

/// A router moves each message once, and keeps two sockets for a client.
fn routers(wanted: &Wanted, costs: &Costs, deliveries: u64, gateways: u64) -> Fleet {
    let (router, beats) = (&costs.router, heartbeats(wanted, costs));
    let pair = router.pair_user_bytes
        + router.pair_kernel_bytes
        + if wanted.tls { costs.gateway.tls_bytes } else { 0 };
    let message = costs.wire.message(wanted.payload_bytes);
    let load = |machines: u64| {
        let each = |sum: u64| sum.div_ceil(machines);
        let messages = each(deliveries) + each(beats.per_second) * 2;
        let beats_bits = each(beats.bits_out + beats.bits_in);
        let bits = each(deliveries).saturating_mul(message + costs.wire.segment_bytes) * 8 + beats_bits;
        Load {
            connections: each(wanted.connections),
            cpu_millis: messages.saturating_mul(router.message_ns).div_ceil(1_000_000),
            memory_bytes: each(wanted.connections) * pair + costs.gateway.process_bytes,
            bits_out: bits,
            bits_in: bits,
            descriptors: 2 * each(wanted.connections) + DESCRIPTORS_RESERVED,
        }
    };
    fleet(wanted, None, load, Some(wanted.settings.ports.saturating_mul(gateways)))
}

/// Whether a load fits into one machine.
type Fits<'f> = &'f dyn Fn(&Load) -> bool;

/// As many machines as the scarcest resource needs, and one more. `connections_max`: what ports allow for one machine.
fn fleet(
    wanted: &Wanted,
    given: Option<u64>,
    load: impl Fn(u64) -> Load,
    connections_max: Option<u64>,
) -> Fleet {
    let machine = wanted.machine;
    let bits = share(machine.bits_per_second, BANDWIDTH_PERCENT);
    let fits: [(Resource, Fits<'_>); 5] = [
        (Resource::Cpu, &|load| load.cpu_millis <= share(machine.cores * 1_000, CPU_PERCENT)),
        (Resource::Memory, &|load| load.memory_bytes <= share(machine.memory_bytes, MEMORY_PERCENT)),
        (Resource::Bandwidth, &|load| load.bits_out.max(load.bits_in) <= bits),
        (Resource::Descriptors, &|load| load.descriptors <= wanted.settings.descriptors_max),
        (Resource::Ports, &|load| connections_max.is_none_or(|max| load.connections <= max)),
    ];
    let mut needs: Vec<(Resource, u64)> =
        fits.iter().map(|(resource, fits)| (*resource, least(|machines| fits(&load(machines))))).collect();
    needs.sort_by_key(|(_, machines)| std::cmp::Reverse(*machines));
    let needed = needs.first().map_or(1, |(_, machines)| *machines);
    let machines = given.unwrap_or(needed.saturating_add(1)).max(1);
    Fleet { machines, each: load(machines), needs }
}

/// The least number of machines for which something fits, doubling and then halving; a million where none does: what every
/// machine gets is too much already.
fn least(fits: impl Fn(u64) -> bool) -> u64 {
    const MOST: u64 = 1 << 20;
    let (mut low, mut high) = (0, 1);
    while !fits(high) {
        if high >= MOST {
            return MOST;
        }
        (low, high) = (high, high * 2);
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) { high = middle } else { low = middle }
    }
    high
}

/// Publications a second that one of so many gateways receives: those with a subscriber there.
fn received(wanted: &Wanted, machines: u64) -> u64 {
    wanted.publications.saturating_mul(nodes_reached(machines, wanted.fan_out)).div_ceil(machines.max(1))
}

/// Of so many nodes, those that have one of so many subscribers, which are anywhere: n · (1 − (1 − 1/n)^f).
fn nodes_reached(nodes: u64, subscribers: u64) -> u64 {
    let nodes_f = nodes as f64;
    let reached = nodes_f * (1.0 - (1.0 - 1.0 / nodes_f).powf(subscribers as f64));
    (reached.round() as u64).clamp(1, nodes.max(1)).min(subscribers.max(1))
}

fn heartbeats(wanted: &Wanted, costs: &Costs) -> Heartbeats {
    let (out, back) = costs.wire.heartbeat();
    let interval = wanted.settings.heartbeat_interval.as_secs_f64().max(0.001);
    let per_second = (wanted.connections as f64 / interval).ceil() as u64;
    Heartbeats {
        per_second,
        bits_out: per_second * out * 8,
        bits_in: per_second * back * 8,
        cpu_millis: per_second.saturating_mul(costs.gateway.heartbeat_ns).div_ceil(1_000_000),
        fills_ten_gigabit_at: Duration::from_secs_f64(
            (wanted.connections * out * 8) as f64 / TEN_GIGABIT as f64,
        ),
    }
}

fn storm(wanted: &Wanted, costs: &Costs, machines: u64) -> Storm {
    let clients = wanted.connections.div_ceil(machines);
    let each = clients.div_ceil(machines.saturating_sub(1).max(1));
    let rate = wanted.settings.handshakes_per_second.max(1);
    Storm {
        clients,
        handshakes_per_node: each,
        lasts: Duration::from_secs_f64(each as f64 / rate as f64),
        cpu_millis: each.min(rate).saturating_mul(costs.gateway.accept_ns).div_ceil(1_000_000),
    }
}

fn roll(settings: &Settings, machines: u64) -> Duration {
    let one = settings.drain_settle + settings.drain_period + settings.drain_close_wait;
    let rounds = machines.div_ceil(settings.restarts_at_once.max(1));
    one * u32::try_from(rounds).unwrap_or(u32::MAX)
}

/// What has to be set on the machines of gateways, and of routers where there are any.
fn kernel(gateways: &Fleet, routers: Option<&Fleet>, wanted: &Wanted) -> Vec<(String, String)> {
    let most = routers.map_or(0, |fleet| fleet.each.descriptors).max(gateways.each.descriptors);
    // What one more machine's loss brings, and a quarter for the bound of placement.
    let sockets = most + most / 4;
    let descriptors = sockets.next_power_of_two().max(65_536);
    let pages = gateways.each.connections + gateways.each.connections / 4;
    let mut settings = vec![
        ("LimitNOFILE".to_owned(), descriptors.to_string()),
        ("fs.nr_open".to_owned(), descriptors.max(1_048_576).to_string()),
        ("fs.file-max".to_owned(), (descriptors * 2).max(1_048_576).to_string()),
        ("net.core.somaxconn".to_owned(), "4096".to_owned()),
        ("net.ipv4.tcp_mem".to_owned(), format!("{} {} {}", pages, pages * 4 / 3, pages * 2)),
        (
            "net.netfilter.nf_conntrack_max".to_owned(),
            format!("{} (or no tracking of these ports)", (most * 2).next_power_of_two()),
        ),
    ];
    if sockets > SOCKETS_FOUND_FAST {
        let entries = sockets.next_power_of_two();
        settings.push(("thash_entries".to_owned(), format!("{entries} (of the kernel's command line)")));
    }
    if routers.is_some_and(|fleet| fleet.each.connections > wanted.settings.ports) {
        settings.push(("net.ipv4.ip_local_port_range".to_owned(), "1024 65535".to_owned()));
    }
    settings
}

fn share(of: u64, percent: u64) -> u64 {
    (u128::from(of) * u128::from(percent) / 100).max(1) as u64
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
