//! What does not lower the number of connections, and spoils the day all the same.

use serde::Serialize;

use crate::{
    facts::{Buffers, Facts},
    limit::Limit,
    node::{Node, Resource, Role},
    number::grouped,
    remedy::{PORT_FIRST, PORTS_MAX, Remedy, network},
};

/// Something to change or to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    pub kind: WarningKind,
    pub sentence: String,
    pub raise: Option<Remedy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WarningKind {
    AcceptQueue,
    SynFlood,
    ReceiveBuffers,
    SendBuffers,
    ConnectionsLimit,
    ProxyPorts,
}

/// What a node asks for in `listen()` (ops/src/listener.rs); the kernel cuts it at `net.core.somaxconn`.
const ACCEPT_BACKLOG: u64 = 4096;

/// Kernel defaults for long: 128 KiB to begin with, 6 MiB and 4 MiB at most (tcp(7)). Recent ones let a socket receive 32 MiB,
/// which suits a few fast transfers and not many connections.
const RECEIVE_INITIAL: u64 = 128 << 10;
const RECEIVE_MAX: u64 = 6 << 20;
const SEND_MAX: u64 = 4 << 20;

pub(crate) fn warnings(facts: &Facts, node: Node, limits: &[Limit], wanted: Option<u64>) -> Vec<Warning> {
    [
        accept_queue(facts),
        syn_flood(facts),
        receive_buffers(facts),
        send_buffers(facts),
        connections_limit(limits, node),
        proxy_ports(facts, node, limits, wanted),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn accept_queue(facts: &Facts) -> Option<Warning> {
    let somaxconn = *facts.somaxconn.as_ref().ok()?;
    (somaxconn < ACCEPT_BACKLOG).then(|| Warning {
        kind: WarningKind::AcceptQueue,
        sentence: format!(
            "net.core.somaxconn is {somaxconn}: of clients that come back at once, those beyond wait a second or more"
        ),
        raise: Some(network(facts, format!("net.core.somaxconn = {ACCEPT_BACKLOG}"))),
    })
}

fn syn_flood(facts: &Facts) -> Option<Warning> {
    let (cookies, backlog) = (*facts.syncookies.as_ref().ok()?, *facts.syn_backlog.as_ref().ok()?);
    (cookies == 0).then(|| Warning {
        kind: WarningKind::SynFlood,
        sentence: format!(
            "SYN cookies are off: {} half-open connections keep new clients out",
            grouped(backlog)
        ),
        raise: Some(network(facts, "net.ipv4.tcp_syncookies = 1".to_owned())),
    })
}

/// What a peer sends faster than it is read waits in the kernel.
fn receive_buffers(facts: &Facts) -> Option<Warning> {
    let Buffers { min, initial, max } = *facts.receive_buffers.as_ref().ok()?;
    (initial > RECEIVE_INITIAL * 4 || max > RECEIVE_MAX * 2).then(|| Warning {
        kind: WarningKind::ReceiveBuffers,
        sentence: format!(
            "tcp_rmem lets one socket hold {} KiB that were not read, {} KiB at first",
            grouped(max >> 10),
            grouped(initial >> 10)
        ),
        raise: Some(network(
            facts,
            format!("net.ipv4.tcp_rmem = {} {RECEIVE_INITIAL} {RECEIVE_MAX}", min.min(4096)),
        )),
    })
}

/// A slow reader's backlog is in the kernel before it is in `limits.send_queue_bytes`.
fn send_buffers(facts: &Facts) -> Option<Warning> {
    let Buffers { min, initial, max } = *facts.send_buffers.as_ref().ok()?;
    (max > SEND_MAX).then(|| Warning {
        kind: WarningKind::SendBuffers,
        sentence: format!(
            "tcp_wmem lets one slow reader hold {} KiB in the kernel before its queue is used",
            grouped(max >> 10)
        ),
        raise: Some(network(
            facts,
            format!("net.ipv4.tcp_wmem = {} {} {SEND_MAX}", min.min(4096), initial.min(16_384)),
        )),
    })
}

/// A node refuses clients by its descriptors. Where memory ends sooner, it is killed instead.
fn connections_limit(limits: &[Limit], node: Node) -> Option<Warning> {
    let of = |resource| limits.iter().find(|limit| limit.resource == resource);
    let (memory, descriptors) = (of(Resource::Memory)?, of(Resource::Descriptors)?);
    (memory.connections < descriptors.connections).then(|| Warning {
        kind: WarningKind::ConnectionsLimit,
        sentence: format!(
            "descriptors allow {}, memory {}: without a limit of its own the {} takes more clients than it has memory for",
            grouped(descriptors.connections),
            grouped(memory.connections),
            match node.role {
                Role::Gateway => "gateway",
                Role::Router { .. } => "router",
            }
        ),
        raise: Some(Remedy {
            at: "in its environment",
            line: format!("TIDEGATE__LIMITS__CONNECTIONS={}", memory.connections),
        }),
    })
}

/// A proxy's ports bound what it can bring to one gateway, and are the proxy's to change.
fn proxy_ports(facts: &Facts, node: Node, limits: &[Limit], wanted: Option<u64>) -> Option<Warning> {
    let ports = facts.ports.as_ref().ok()?.count();
    let connections = wanted.or(limits.first().map(|limit| limit.connections))?;
    (node.role == Role::Gateway && connections > ports).then(|| Warning {
        kind: WarningKind::ProxyPorts,
        sentence: format!(
            "a proxy or router in front with this machine's port range brings {} clients here for each of its addresses",
            grouped(ports)
        ),
        raise: (ports < PORTS_MAX).then(|| Remedy {
            at: "on the proxy's machine, in /etc/sysctl.d/90-tidegate.conf; beyond 64,512, more proxies or addresses",
            line: format!("net.ipv4.ip_local_port_range = {PORT_FIRST} 65535"),
        }),
    })
}
