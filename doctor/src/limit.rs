//! How many connections each resource allows: one number for each, from the facts.

use serde::Serialize;

use crate::{
    facts::Facts,
    node::{
        CPU_SHARE_PERCENT, DESCRIPTORS_RESERVED, MEMORY_SHARE_PERCENT, Node, PROCESS_BYTES, Resource, Role,
    },
    number::{decimal, grouped},
    remedy::Remedy,
};

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

/// Above so many, a setting is meant as none.
const UNLIMITED: u64 = 1 << 60;

/// What could be read of them, in no order.
pub(crate) fn limits(facts: &Facts, node: Node) -> Vec<Limit> {
    let all = [
        descriptors(facts, node),
        system_files(facts, node),
        memory(facts, node),
        tcp_memory(facts),
        conntrack(facts, node),
        ports(facts, node),
        cpu(facts, node),
    ];
    all.into_iter().flatten().collect()
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
