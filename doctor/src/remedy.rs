//! The line that raises a limit, and where it goes.

use serde::Serialize;

use crate::{
    facts::{Facts, Place},
    node::{DESCRIPTORS_RESERVED, Node, Resource, Role},
    number::decimal,
};

/// One line to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// Where it goes.
    pub at: &'static str,
    pub line: String,
}

/// Of a machine, written once and kept over a restart.
const SYSCTL_FILE: &str = "in /etc/sysctl.d/90-tidegate.conf, then `sysctl --system`";
/// The kernel has one of it for all containers.
const SYSCTL_HOST: &str =
    "on the host, not in the container, in /etc/sysctl.d/90-tidegate.conf, then `sysctl --system`";
const CONTAINER_RUN: &str = "as an argument of `docker run`";
const POD: &str = "in the container's specification";
const POD_SYSCTL: &str = "under sysctls in the pod's securityContext";
const POD_SYSCTL_UNSAFE: &str =
    "under sysctls in the pod's securityContext, where the kubelet has --allowed-unsafe-sysctls for it";
/// Of those that are told here, the ones that any pod may have; the last two since Kubernetes 1.32.
const SAFE_SYSCTLS: [&str; 3] = ["net.ipv4.tcp_syncookies", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"];

/// Ports that a process without privileges may use.
pub(crate) const PORT_FIRST: u64 = 1024;
pub(crate) const PORTS_MAX: u64 = 65_536 - PORT_FIRST;

/// What raises `resource` so that `connections` fit.
pub(crate) fn raise(resource: Resource, connections: u64, facts: &Facts, node: Node) -> Vec<Remedy> {
    let sockets = connections.saturating_mul(node.sockets());
    match resource {
        Resource::Descriptors => descriptors(round_up(sockets + DESCRIPTORS_RESERVED, 1024), facts),
        Resource::SystemFiles => {
            let used = facts.files.as_ref().map_or(0, |files| files.used);
            vec![host(facts, format!("fs.file-max = {}", round_up(sockets + used, 65_536)))]
        }
        Resource::Memory => memory(round_up(node.memory_for(connections), 64 << 20) >> 20, facts),
        Resource::TcpMemory => {
            // The kernel's own proportions: low is three quarters of pressure, max twice of low (tcp_init_mem).
            let pressure = round_up(connections, 4096);
            let low = pressure / 4 * 3;
            vec![host(facts, format!("net.ipv4.tcp_mem = {low} {pressure} {}", low * 2))]
        }
        Resource::Conntrack => {
            let used = facts.conntrack.as_ref().ok().copied().flatten().map_or(0, |table| table.used);
            let max = round_up(sockets + used, 65_536);
            vec![host(facts, format!("net.netfilter.nf_conntrack_max = {max}"))]
        }
        Resource::Ports => ports(connections, facts, node),
        Resource::Cpu => cpu(node.cpu_millis_for(connections), facts),
    }
}

fn descriptors(limit: u64, facts: &Facts) -> Vec<Remedy> {
    // No limit of a process can be above fs.nr_open (getrlimit(2)).
    let ceiling = facts.nr_open.as_ref().ok().filter(|ceiling| **ceiling < limit);
    let ceiling = ceiling.map(|_| host(facts, format!("fs.nr_open = {limit}")));
    let own = match facts.place {
        Place::Machine => vec![
            ("under [Service] in the unit of systemd", format!("LimitNOFILE={limit}")),
            ("or in the shell that starts it, as root", format!("ulimit -n {limit}")),
        ],
        Place::Container => vec![
            (CONTAINER_RUN, format!("--ulimit nofile={limit}:{limit}")),
            ("or in the service of a compose file", format!("ulimits: {{nofile: {limit}}}")),
        ],
        Place::Kubernetes => {
            vec![("under [Service] in the unit of containerd on the node", format!("LimitNOFILE={limit}"))]
        }
    };
    let own = own.into_iter().map(|(at, line)| Remedy { at, line });
    ceiling.into_iter().chain(own).collect()
}

fn memory(mib: u64, facts: &Facts) -> Vec<Remedy> {
    let limited = facts.memory_limit.as_ref().ok().copied().flatten();
    let machine = facts.memory.as_ref().ok().map(|memory| memory.available >> 20);
    let mut remedies = Vec::new();
    if limited.is_some_and(|limit| limit >> 20 < mib) {
        let (at, line) = match facts.place {
            Place::Machine => ("under [Service] in the unit of systemd", format!("MemoryMax={mib}M")),
            Place::Container => (CONTAINER_RUN, format!("--memory={mib}m")),
            Place::Kubernetes => (POD, format!("resources: {{limits: {{memory: {mib}Mi}}}}")),
        };
        remedies.push(Remedy { at, line });
    }
    if machine.is_some_and(|available| available < mib) {
        let line = format!("a machine with {mib} MiB of memory free, or more nodes");
        remedies.push(Remedy { at: "no setting gives more than there is", line });
    }
    remedies
}

/// Every gateway is one more destination, and has the whole range again.
fn ports(connections: u64, facts: &Facts, node: Node) -> Vec<Remedy> {
    let Role::Router { gateways } = node.role else { return Vec::new() };
    let gateways_needed = connections.div_ceil(PORTS_MAX);
    let line = format!("net.ipv4.ip_local_port_range = {PORT_FIRST} 65535");
    let is_whole = facts.ports.as_ref().is_ok_and(|ports| ports.count() >= PORTS_MAX);
    let mut remedies = Vec::new();
    if !is_whole {
        remedies.push(match facts.place {
            Place::Machine => Remedy { at: SYSCTL_FILE, line },
            Place::Container => Remedy { at: CONTAINER_RUN, line: sysctl_argument(&line) },
            Place::Kubernetes => Remedy { at: POD_SYSCTL, line: pod_sysctl(&line) },
        });
    }
    if gateways_needed > u64::from(gateways) {
        let line = format!("{gateways_needed} gateways behind it, or more routers");
        remedies.push(Remedy { at: "each address has 64,512 ports towards a gateway at most", line });
    }
    remedies
}

fn cpu(millis: u64, facts: &Facts) -> Vec<Remedy> {
    let cores = millis.div_ceil(1000);
    let mut remedies = Vec::new();
    if facts.cpu_quota_millis.as_ref().ok().copied().flatten().is_some_and(|quota| quota < millis) {
        let (at, line) = match facts.place {
            Place::Machine => {
                ("under [Service] in the unit of systemd", format!("CPUQuota={}%", millis.div_ceil(10)))
            }
            Place::Container => (CONTAINER_RUN, format!("--cpus={}", decimal(millis))),
            Place::Kubernetes => (POD, format!("resources: {{limits: {{cpu: {millis}m}}}}")),
        };
        remedies.push(Remedy { at, line });
    }
    if facts.cores.as_ref().is_ok_and(|have| u64::from(*have) < cores) {
        let line = format!("{cores} cores, or more nodes");
        remedies.push(Remedy { at: "no setting gives more than there is", line });
    }
    remedies
}

/// A setting that belongs to the kernel, or to the network of the host.
fn host(facts: &Facts, line: String) -> Remedy {
    let at = if facts.place == Place::Machine { SYSCTL_FILE } else { SYSCTL_HOST };
    Remedy { at, line }
}

/// A setting of which every network namespace has its own.
pub(crate) fn network(facts: &Facts, line: String) -> Remedy {
    match facts.place {
        Place::Machine => Remedy { at: SYSCTL_FILE, line },
        Place::Container => Remedy { at: CONTAINER_RUN, line: sysctl_argument(&line) },
        Place::Kubernetes => {
            let safe = SAFE_SYSCTLS.iter().any(|name| line.starts_with(name));
            Remedy { at: if safe { POD_SYSCTL } else { POD_SYSCTL_UNSAFE }, line: pod_sysctl(&line) }
        }
    }
}

fn sysctl_argument(line: &str) -> String {
    let (name, value) = line.split_once(" = ").unwrap_or((line, ""));
    format!("--sysctl {name}=\"{value}\"")
}

fn pod_sysctl(line: &str) -> String {
    let (name, value) = line.split_once(" = ").unwrap_or((line, ""));
    format!("{{name: {name}, value: \"{value}\"}}")
}

fn round_up(number: u64, step: u64) -> u64 {
    number.div_ceil(step).saturating_mul(step)
}
