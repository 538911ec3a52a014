//! What a machine is to run, and what a client of it takes: pure arithmetic.

use serde::Serialize;

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

/// The default of `limits.connections` leaves so many descriptors for what is no client (gateway/src/config/sections.rs).
pub(crate) const DESCRIPTORS_RESERVED: u64 = 200;

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
pub(crate) const MEMORY_SHARE_PERCENT: u64 = 75;

/// CPU time of an idle connection in nanoseconds per second. Gateway: 0.65 % of a core for 15,000 connections at 25 s
/// between heartbeats (docs/benchmarks.md) is 433 ns. Router: a ping and a pong in 25 s at 9.8 µs each, 784 ns.
const GATEWAY_IDLE_NS: u64 = 433;
const ROUTER_IDLE_NS: u64 = 784;

/// Half of the CPU is left to messages.
pub(crate) const CPU_SHARE_PERCENT: u64 = 50;

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

    /// Memory that so many clients need: the inverse of what limits by memory (`limit.rs`).
    pub(crate) fn memory_for(self, connections: u64) -> u64 {
        let bytes = connections.saturating_mul(self.connection_bytes());
        (bytes / MEMORY_SHARE_PERCENT).saturating_mul(100).saturating_add(PROCESS_BYTES)
    }

    /// Thousandths of a core that so many idle clients need.
    pub(crate) fn cpu_millis_for(self, connections: u64) -> u64 {
        let ns_per_second = connections.saturating_mul(self.idle_ns()) / CPU_SHARE_PERCENT * 100;
        ns_per_second.div_ceil(1_000_000)
    }

    pub(crate) fn idle_ns(self) -> u64 {
        match self.role {
            Role::Gateway => GATEWAY_IDLE_NS,
            Role::Router { .. } => ROUTER_IDLE_NS,
        }
    }
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
