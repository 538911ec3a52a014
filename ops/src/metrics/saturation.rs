//! How full each resource is, from 0 to 1: the number that says what the ceiling is.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::process::Process;
use crate::label;

label!(
    /// What a process can run out of.
    Resource, "resource", {
        Descriptors = "descriptors",
        Memory = "memory",
        Cpu = "cpu",
        AcceptQueue = "accept_queue",
        SendQueue = "send_queue",
        Recovery = "recovery",
        Connections = "connections",
        Channels = "channels",
        Hooks = "hooks",
    }
);

/// What the resources of a process are measured against.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The public listening socket, whose queue of connections not yet accepted is watched.
    pub listener: Option<Listener>,
}

/// A listening socket as it was set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    pub address: SocketAddr,
    /// What `listen()` was given; the kernel cuts it at `net.core.somaxconn`.
    pub backlog: u32,
}

/// Shortest span over which CPU is measured; scrapes that come faster see the last value again.
const WINDOW_MIN: Duration = Duration::from_secs(1);
/// Memory in a cgroup without a limit reads as `max`, or in version 1 as a number near 2^63.
const CGROUP_UNLIMITED: u64 = 1 << 60;

/// What the last scrape saw, to compute shares of the time between; before the first, what was when it was made.
#[derive(Debug)]
pub struct Load {
    last: Moment,
    cpu: Option<f64>,
}

#[derive(Debug)]
struct Moment {
    at: Instant,
    cpu_seconds: f64,
    busy: Vec<Duration>,
}

impl Default for Load {
    fn default() -> Self {
        let cpu_seconds = Process::read().cpu_seconds.unwrap_or(0.0);
        Self { last: Moment { at: Instant::now(), cpu_seconds, busy: Vec::new() }, cpu: None }
    }
}

impl Load {
    /// How much of each resource is in use, from 0 to 1; a resource that cannot be read is left out. `busy` is the total
    /// busy time of each thread of the data plane, `known` what the caller knows itself.
    pub fn read(
        &mut self,
        busy: &[Duration],
        known: &[(Resource, f64)],
        bounds: &Bounds,
    ) -> Vec<(Resource, f64)> {
        let process = Process::read();
        let shares = [
            (Resource::Descriptors, share(process.descriptors_open, process.descriptors_max)),
            (Resource::Memory, share(process.resident_bytes, memory_limit())),
            (Resource::Cpu, self.cpu(busy, process.cpu_seconds)),
            (Resource::AcceptQueue, bounds.listener.and_then(accept_queue)),
        ];
        let known = known.iter().map(|&(resource, share)| (resource, Some(share)));
        shares
            .into_iter()
            .chain(known)
            .filter_map(|(resource, share)| Some((resource, share?.clamp(0.0, 1.0))))
            .collect()
    }

    fn cpu(&mut self, busy: &[Duration], cpu_seconds: Option<f64>) -> Option<f64> {
        let now = Moment { at: Instant::now(), cpu_seconds: cpu_seconds.unwrap_or(0.0), busy: busy.to_vec() };
        if now.at.duration_since(self.last.at) >= WINDOW_MIN {
            self.cpu = Some(cpu_share(&self.last, &now));
            self.last = now;
        }
        self.cpu
    }
}

/// The busiest shard's share of the time, or the process's share of the cores, whichever is higher: one shard
/// at 1 is a ceiling although the other cores idle.
fn cpu_share(last: &Moment, now: &Moment) -> f64 {
    let span = now.at.duration_since(last.at).as_secs_f64();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
    let process = (now.cpu_seconds - last.cpu_seconds) / span / cores;
    let shards = now.busy.iter().enumerate().map(|(index, busy)| {
        let before = last.busy.get(index).copied().unwrap_or_default();
        busy.saturating_sub(before).as_secs_f64() / span
    });
    shards.fold(process, f64::max)
}

/// `None` where either is unknown, or where there is no bound.
fn share(used: Option<u64>, bound: Option<u64>) -> Option<f64> {
    match (used, bound) {
        (Some(used), Some(bound)) if bound > 0 => Some(used as f64 / bound as f64),
        _ => None,
    }
}

/// The smallest of the cgroup's limit (version 2, then 1) and the machine's memory.
fn memory_limit() -> Option<u64> {
    let cgroup = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok())
        .filter(|&limit| limit < CGROUP_UNLIMITED);
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        kib.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
    });
    cgroup.into_iter().chain(machine).min()
}

/// Connections the kernel has finished and nobody has accepted, against the room for them.
fn accept_queue(listener: Listener) -> Option<f64> {
    let path = if listener.address.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
    let waiting = listen_queue(BufReader::with_capacity(4096, File::open(path).ok()?), listener.address)?;
    let somaxconn = fs::read_to_string("/proc/sys/net/core/somaxconn").ok()?.trim().parse::<u64>().ok()?;
    share(Some(waiting), Some(u64::from(listener.backlog).min(somaxconn)))
}

/// Finds the receive queue of a listening socket, which for state 0A is the accept queue. The kernel lists the
/// listening sockets first, so the reading stops before the (perhaps very many) established ones.
fn listen_queue(table: impl Read, address: SocketAddr) -> Option<u64> {
    const LISTEN: &str = "0A";
    let port = format!(":{:04X}", address.port());
    let mut found = None;
    for line in BufReader::new(table).lines().skip(1) {
        let line = line.ok()?;
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, state, queues) = (fields.next()?, fields.nth(1)?, fields.next()?);
        if state != LISTEN {
            break;
        }
        if local.ends_with(&port) {
            let waiting = u64::from_str_radix(queues.split_once(':')?.1, 16).ok()?;
            // Several sockets may share a port (SO_REUSEPORT, several addresses): the fullest counts.
            found = found.max(Some(waiting));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:0000001F 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 0100007F:1F41 0100007F:9999 01 00000000:000000FF 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0
   3: 0100007F:1F41 00000000:0000 0A 00000000:00000007 00:00000000 00000000     0        0 4 1 0 100 0 0 10 0
";

    #[test]
    fn the_accept_queue_is_the_receive_queue_of_the_listening_socket() {
        let read = |port: u16| listen_queue(TABLE.as_bytes(), SocketAddr::from(([127, 0, 0, 1], port)));
        assert_eq!(read(8000), Some(31));
        assert_eq!(read(22), Some(0));
        assert_eq!(read(8001), None, "nothing is read past the first established socket");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn connections_that_nobody_accepts_fill_the_accept_queue() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let waiting: Vec<_> = (0..3).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let full = accept_queue(Listener { address, backlog: 10 }).unwrap();
        assert!((full - waiting.len() as f64 / 10.0).abs() < 1e-9, "{full}");
    }

    #[test]
    fn one_full_shard_is_a_full_node() {
        let at = Instant::now();
        let last =
            Moment { at, cpu_seconds: 10.0, busy: vec![Duration::from_secs(1), Duration::from_secs(1)] };
        let busy = vec![Duration::from_secs(11), Duration::from_secs(2)];
        let now = Moment { at: at + Duration::from_secs(10), cpu_seconds: 10.0, busy };
        assert!((cpu_share(&last, &now) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn no_bound_means_no_share() {
        assert_eq!(share(Some(3), Some(0)), None);
        assert_eq!(share(Some(3), None), None);
        assert_eq!(share(Some(3), Some(4)), Some(0.75));
    }
}
