//! From facts to connections: pure arithmetic, one number for each resource.

use serde::Serialize;

use crate::{
    facts::{Facts, Place, Unreadable},
    remedy::{Remedy, raise},
    warning::{Warning, warnings},
};

/// What the machine is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    pub role: Role,
    /// It ends TLS itself.
    pub tls: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Gateway,
    /// Each client has a second connection, to one of so many gateways.
    Router {
        gateways: u32,
    },
}

/// What bounds the number of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    Descriptors,
    SystemFiles,
    Memory,
    TcpMemory,
    Conntrack,
    Ports,
    Cpu,
}

/// How many connections one resource allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limit {
    pub resource: Resource,
    pub connections: u64,
    /// The sum, in words.
    pub because: String,
    /// How to raise it; empty where it is not in the way.
    pub raise: Vec<Remedy>,
}

/// What the facts come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Assessment {
    pub place: Place,
    /// `None` when no limit could be read.
    pub connections: Option<u64>,
    /// The resource that is used up first.
    pub first: Option<Resource>,
    pub wanted: Option<u64>,
    /// Whether `wanted` fits; absent when nothing is wanted. Where nothing could be read it does not.
    pub met: Option<bool>,
    /// Lowest first.
    pub limits: Vec<Limit>,
    pub warnings: Vec<Warning>,
    pub unreadable: Vec<Unreadable>,
}

/// The default of `limits.connections` leaves so many descriptors for what is no client (gateway/src/config/sections.rs).
pub(crate) const DESCRIPTORS_RESERVED: u64 = 200;

/// Above so many, a setting is meant as none.
const UNLIMITED: u64 = 1 << 60;

/// User memory of an idle connection, and of a proxied pair: docs/benchmarks.md has 138 B and 193 B, single runs up to 230 B.
const USER_BYTES: u64 = 230;

/// Kernel memory of an idle connected socket, the slabs of Linux 6.18 on x86-64 with what lies idle in their pages: TCP
/// 2,500, inode 860, file 200, directory entry 200, epoll item 130 and its list head 20, security label 30: 3,940, rounded
/// up to a page. How it was measured: docs/operations.md, 'Memory'.
const KERNEL_BYTES: u64 = 4096;

/// A session of rustls that is idle: docs/adr/0011-tls-in-the-reactor.md.
const TLS_BYTES: u64 = 3700;

/// A process without connections: 10 MiB resident, and what its threads take under load.
pub(crate) const PROCESS_BYTES: u64 = 32 << 20;

/// A quarter of the memory is left to messages on their way: a page for each socket that has one.
const MEMORY_SHARE_PERCENT: u64 = 75;

/// CPU time of an idle connection in nanoseconds per second. Gateway: 0.65 % of a core for 15,000 connections at 25 s
/// between heartbeats (docs/benchmarks.md) is 433 ns. Router: a ping and a pong in 25 s at 9.8 µs each, 784 ns.
const GATEWAY_IDLE_NS: u64 = 433;
const ROUTER_IDLE_NS: u64 = 784;

/// Half of the CPU is left to messages.
const CPU_SHARE_PERCENT: u64 = 50;

impl Assessment {
    /// How many connections `node` can hold with these facts; with `wanted`, also what must change to hold so many.
    pub fn of(facts: &Facts, node: Node, wanted: Option<u64>) -> Self {
        let mut limits: Vec<Limit> = [
            descriptors(facts, node),
            system_files(facts, node),
            memory(facts, node),
            tcp_memory(facts),
            conntrack(facts, node),
            ports(facts, node),
            cpu(facts, node),
        ]
        .into_iter()
        .flatten()
        .collect();
        limits.sort_by_key(|limit| (limit.connections, limit.resource));
        let first = limits.first();
        let (connections, resource) =
            (first.map(|limit| limit.connections), first.map(|limit| limit.resource));
        let target = wanted.or_else(|| next_step(&limits));
        for (at, limit) in limits.iter_mut().enumerate() {
            let in_the_way = match wanted {
                Some(wanted) => limit.connections < wanted,
                None => at == 0,
            };
            if let Some(target) = target.filter(|target| in_the_way && limit.connections < *target) {
                limit.raise = raise(limit.resource, target, facts, node);
            }
        }
        Self {
            place: facts.place,
            connections,
            first: resource,
            wanted,
            met: wanted.map(|wanted| connections.is_some_and(|connections| connections >= wanted)),
            warnings: warnings(facts, node, &limits, wanted),
            limits,
            unreadable: facts.unreadable(),
        }
    }
}

/// Where raising the first limit ends: at the next one that is higher.
fn next_step(limits: &[Limit]) -> Option<u64> {
    let first = limits.first()?.connections;
    let next = limits.iter().map(|limit| limit.connections).find(|connections| *connections > first);
    Some(next.unwrap_or(first.saturating_mul(2).max(1000)))
}

impl Node {
    /// Sockets, and with them descriptors, for each client.
    pub(crate) fn sockets(self) -> u64 {
        match self.role {
            Role::Gateway => 1,
            Role::Router { .. } => 2,
        }
    }

    /// Memory of one idle client, user and kernel.
    pub(crate) fn connection_bytes(self) -> u64 {
        USER_BYTES + self.sockets() * KERNEL_BYTES + if self.tls { TLS_BYTES } else { 0 }
    }

    /// Memory that so many clients need: the inverse of what [`memory`] computes.
    pub(crate) fn memory_for(self, connections: u64) -> u64 {
        let bytes = connections.saturating_mul(self.connection_bytes());
        (bytes / MEMORY_SHARE_PERCENT).saturating_mul(100).saturating_add(PROCESS_BYTES)
    }

    /// Thousandths of a core that so many idle clients need.
    pub(crate) fn cpu_millis_for(self, connections: u64) -> u64 {
        let ns_per_second = connections.saturating_mul(self.idle_ns()) / CPU_SHARE_PERCENT * 100;
        ns_per_second.div_ceil(1_000_000)
    }

    fn idle_ns(self) -> u64 {
        match self.role {
            Role::Gateway => GATEWAY_IDLE_NS,
            Role::Router { .. } => ROUTER_IDLE_NS,
        }
    }
}

/// The program raises its soft limit to the hard one by itself.
fn descriptors(facts: &Facts, node: Node) -> Option<Limit> {
    let hard = facts.descriptors.as_ref().ok()?.hard;
    // Without a limit, the kernel's ceiling for one process.
    let hard = if hard == u64::MAX { *facts.nr_open.as_ref().ok()? } else { hard };
    let connections = hard.saturating_sub(DESCRIPTORS_RESERVED) / node.sockets();
    let because = format!(
        "{} descriptors (hard limit), {DESCRIPTORS_RESERVED} not for clients, {} per client",
        grouped(hard),
        node.sockets()
    );
    Some(limit(Resource::Descriptors, connections, because))
}

fn system_files(facts: &Facts, node: Node) -> Option<Limit> {
    // systemd sets it to 2^63 - 1: no limit.
    let files = facts.files.as_ref().ok().filter(|files| files.max < UNLIMITED)?;
    let connections = files.max.saturating_sub(files.used) / node.sockets();
    let because = format!("fs.file-max {}, {} in use", grouped(files.max), grouped(files.used));
    Some(limit(Resource::SystemFiles, connections, because))
}

fn memory(facts: &Facts, node: Node) -> Option<Limit> {
    let (bytes, source) = memory_bytes(facts)?;
    let usable = bytes.saturating_sub(PROCESS_BYTES) / 100 * MEMORY_SHARE_PERCENT;
    let connections = usable / node.connection_bytes();
    let because = format!(
        "{} MiB {source}, {MEMORY_SHARE_PERCENT} % of them for idle clients of {} bytes",
        grouped(bytes >> 20),
        grouped(node.connection_bytes())
    );
    Some(limit(Resource::Memory, connections, because))
}

/// What this process may use: its group's limit, or what the machine has left, whichever is less.
pub(crate) fn memory_bytes(facts: &Facts) -> Option<(u64, &'static str)> {
    let group = facts.memory_limit.as_ref().ok().copied().flatten().map(|bytes| (bytes, "(control group)"));
    let machine = facts.memory.as_ref().ok().map(|memory| (memory.available, "available"));
    group.into_iter().chain(machine).min_by_key(|(bytes, _)| *bytes)
}

/// One message on its way to each client is a page each in the kernel's count, whatever its size up to a page.
fn tcp_memory(facts: &Facts) -> Option<Limit> {
    let pages = facts.tcp_memory.as_ref().ok()?.pressure;
    let because =
        format!("tcp_mem: pressure at {} pages, one per client with a message on its way", grouped(pages));
    Some(limit(Resource::TcpMemory, pages, because))
}

fn conntrack(facts: &Facts, node: Node) -> Option<Limit> {
    let table = (*facts.conntrack.as_ref().ok()?)?;
    let connections = table.max.saturating_sub(table.used) / node.sockets();
    let because = format!("nf_conntrack_max {}, {} in use", grouped(table.max), grouped(table.used));
    Some(limit(Resource::Conntrack, connections, because))
}

/// A client of a router takes a port towards its gateway.
fn ports(facts: &Facts, node: Node) -> Option<Limit> {
    let Role::Router { gateways } = node.role else { return None };
    let ports = *facts.ports.as_ref().ok()?;
    let because = format!(
        "ports {} to {} towards each gateway, {} of them",
        ports.first,
        ports.last,
        grouped(u64::from(gateways))
    );
    Some(limit(Resource::Ports, ports.count() * u64::from(gateways), because))
}

fn cpu(facts: &Facts, node: Node) -> Option<Limit> {
    let millis = cpu_millis(facts)?;
    let connections = millis * 1_000_000 / 100 * CPU_SHARE_PERCENT / node.idle_ns();
    let because =
        format!("{} cores, {CPU_SHARE_PERCENT} % of them for heartbeats every 25 s", decimal(millis));
    Some(limit(Resource::Cpu, connections, because))
}

/// Thousandths of a core: cores that may be used, or the quota, whichever is less.
pub(crate) fn cpu_millis(facts: &Facts) -> Option<u64> {
    let cores = facts.cores.as_ref().ok().map(|cores| u64::from(*cores) * 1000);
    let quota = facts.cpu_quota_millis.as_ref().ok().copied().flatten();
    cores.into_iter().chain(quota).min()
}

fn limit(resource: Resource, connections: u64, because: String) -> Limit {
    Limit { resource, connections, because, raise: Vec::new() }
}

impl Resource {
    /// As it is written for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Descriptors => "descriptors",
            Self::SystemFiles => "system files",
            Self::Memory => "memory",
            Self::TcpMemory => "TCP memory",
            Self::Conntrack => "conntrack",
            Self::Ports => "ports",
            Self::Cpu => "CPU",
        }
    }
}

/// `1,234,567`
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Thousandths as a decimal number: 500 is `0.5`.
pub(crate) fn decimal(millis: u64) -> String {
    let text = format!("{}.{:03}", millis / 1000, millis % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
