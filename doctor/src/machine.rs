//! Reads facts from `/proc` and `/sys`, or from a tree of the same shape.

mod cgroup;

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::facts::{
    Buffers, Conntrack, Descriptors, Fact, Facts, MachineMemory, Place, Ports, SystemFiles, TcpMemory,
    Unreadable, Why,
};

/// The root below which files are read.
#[derive(Debug, Clone)]
pub struct Machine {
    root: PathBuf,
}

impl Machine {
    /// The machine or container that this process is in.
    pub fn this() -> Self {
        Self::at("/")
    }

    /// A tree that holds `proc` and `sys` of some machine.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub fn facts(&self) -> Facts {
        Facts {
            place: self.place(),
            descriptors: self.descriptors(),
            nr_open: self.number("proc/sys/fs/nr_open"),
            files: self
                .numbers("proc/sys/fs/file-nr")
                .map(|[used, unused, max]| SystemFiles { used: used.saturating_sub(unused), max }),
            memory: self.memory(),
            memory_limit: cgroup::memory_limit(self),
            cores: self.cores(),
            cpu_quota_millis: cgroup::cpu_quota_millis(self),
            tcp_memory: self.numbers("proc/sys/net/ipv4/tcp_mem").map(|[low, pressure, max]| TcpMemory {
                low,
                pressure,
                max,
            }),
            receive_buffers: self.buffers("proc/sys/net/ipv4/tcp_rmem"),
            send_buffers: self.buffers("proc/sys/net/ipv4/tcp_wmem"),
            conntrack: self.conntrack(),
            ports: self.ports(),
            somaxconn: self.number("proc/sys/net/core/somaxconn"),
            syn_backlog: self.number("proc/sys/net/ipv4/tcp_max_syn_backlog"),
            syncookies: self.number("proc/sys/net/ipv4/tcp_syncookies"),
        }
    }

    /// What tells a container is what its runtime puts into it: the kubelet a hosts file that names it, Docker and Podman
    /// a file each. Where groups have no namespace, their names tell too.
    fn place(&self) -> Place {
        let text = |path: &str| self.text(path).unwrap_or_default();
        let groups = text("proc/self/cgroup");
        if text("etc/hosts").starts_with("# Kubernetes-managed hosts file") || groups.contains("kubepods") {
            return Place::Kubernetes;
        }
        let there = |path: &str| self.root.join(path).exists();
        if ["docker", "containerd", "libpod", "lxc"].iter().any(|name| groups.contains(name)) {
            return Place::Container;
        }
        // A virtual machine whose disk was made from an image of a container keeps the runtime's file. Who sees the
        // kernel's own threads on a disk that is no overlay is in no container.
        let is_overlay = |line: &str| line.split(' ').skip(1).take(2).eq(["/", "overlay"]);
        if text("proc/2/comm").trim() == "kthreadd" && !text("proc/self/mounts").lines().any(is_overlay) {
            return Place::Machine;
        }
        if there(".dockerenv") || there("run/.containerenv") { Place::Container } else { Place::Machine }
    }

    /// The limits of this very process: a gateway started in its place has the same.
    fn descriptors(&self) -> Fact<Descriptors> {
        const PATH: &str = "proc/self/limits";
        match self.text(PATH) {
            Ok(text) => open_files(&text).ok_or_else(|| malformed(PATH)),
            // Without /proc, or on a system that has none, the system call still answers.
            Err(_) if self.root == Path::new("/") => {
                let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
                let or_none = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
                Ok(Descriptors { soft: or_none(limit.current), hard: or_none(limit.maximum) })
            }
            Err(unreadable) => Err(unreadable),
        }
    }

    fn memory(&self) -> Fact<MachineMemory> {
        const PATH: &str = "proc/meminfo";
        let text = self.text(PATH)?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        let total = field("MemTotal").ok_or_else(|| malformed(PATH))?;
        Ok(MachineMemory { total, available: field("MemAvailable").unwrap_or(total).min(total) })
    }

    /// Cores that this process may run on.
    fn cores(&self) -> Fact<u32> {
        const PATH: &str = "proc/self/status";
        match self.text(PATH) {
            Ok(text) => {
                let list = text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
                list.and_then(|list| count_of_list(list.trim())).ok_or_else(|| malformed(PATH))
            }
            Err(unreadable) if self.root == Path::new("/") => std::thread::available_parallelism()
                .map(|cores| u32::try_from(cores.get()).unwrap_or(u32::MAX))
                .map_err(|_| unreadable),
            Err(unreadable) => Err(unreadable),
        }
    }

    fn conntrack(&self) -> Fact<Option<Conntrack>> {
        let max = match self.number("proc/sys/net/netfilter/nf_conntrack_max") {
            Ok(max) => max,
            // Where other settings of the network are shown and this one is not, nothing is tracked.
            Err(Unreadable { why: Why::Missing, .. }) if self.root.join("proc/sys/net/core").exists() => {
                return Ok(None);
            }
            Err(unreadable) => return Err(unreadable),
        };
        let used = self.number("proc/sys/net/netfilter/nf_conntrack_count")?;
        // 0 turns the bound off (nf_conntrack-sysctl of the kernel's documentation).
        Ok((max > 0).then_some(Conntrack { used, max }))
    }

    fn ports(&self) -> Fact<Ports> {
        const PATH: &str = "proc/sys/net/ipv4/ip_local_port_range";
        let [first, last] = self.numbers(PATH)?;
        match (u16::try_from(first), u16::try_from(last)) {
            (Ok(first), Ok(last)) if first <= last => Ok(Ports { first, last }),
            _ => Err(malformed(PATH)),
        }
    }

    fn buffers(&self, path: &str) -> Fact<Buffers> {
        self.numbers(path).map(|[min, initial, max]| Buffers { min, initial, max })
    }

    fn number(&self, path: &str) -> Fact<u64> {
        self.numbers(path).map(|[number]| number)
    }

    /// Exactly so many numbers with blanks between them.
    fn numbers<const N: usize>(&self, path: &str) -> Fact<[u64; N]> {
        let text = self.text(path)?;
        let numbers = text.split_ascii_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>();
        numbers.ok().and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| malformed(path))
    }

    fn text(&self, path: &str) -> Fact<String> {
        fs::read_to_string(self.root.join(path))
            .map_err(|error| Unreadable { path: shown(path), why: Why::from(&error) })
    }
}

/// `Max open files            1024                 524288               files`
fn open_files(limits: &str) -> Option<Descriptors> {
    let mut fields = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace();
    let mut next = || match fields.next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    };
    Some(Descriptors { soft: next()?, hard: next()? })
}

/// `0-3,8` is 5.
fn count_of_list(list: &str) -> Option<u32> {
    list.split(',').try_fold(0u32, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// Paths are told as the machine has them, wherever the tree is.
fn shown(path: &str) -> String {
    format!("/{path}")
}

fn malformed(path: &str) -> Unreadable {
    Unreadable { path: shown(path), why: Why::Malformed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_counted() {
        for (list, expect) in
            [("0", Some(1)), ("0-3,8", Some(5)), ("2,4-5", Some(3)), ("", None), ("3-1", None), ("a", None)]
        {
            assert_eq!(count_of_list(list), expect, "{list}");
        }
    }

    #[test]
    fn open_files_are_read_from_the_limits() {
        let line = "Limit   Soft Limit  Hard Limit  Units\nMax open files  1024  unlimited  files\n";
        assert_eq!(open_files(line), Some(Descriptors { soft: 1024, hard: u64::MAX }));
        assert_eq!(open_files("Max processes 1 2 processes"), None);
    }
}
