//! How many processes a number of connections takes, and whether the machine has what they need. Pure, but for reading
//! what the machine has.

use std::{
    fs, io,
    net::{TcpListener, TcpStream},
    str::FromStr,
};

use super::crowd::SOURCES;

/// What the machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// A process may have so many descriptors.
    pub descriptors: u64,
    /// All processes together may have so many more.
    pub files_left: u64,
    pub memory_bytes: u64,
    /// Local ports of one address.
    pub ports: u64,
    /// Connections that may still be tracked. `None`: none are.
    pub tracked_left: Option<u64>,
}

/// Processes, and what each holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub connections: u64,
    pub gateways: u64,
    pub crowds: u64,
    /// Clients of one crowd: the last has the rest.
    pub crowd_clients: u64,
}

/// What the machine has not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("a process may have {0} descriptors, which is too few: raise `ulimit -n` to 20000")]
    Descriptors(u64),
    #[error("{needed} files would be open, and the machine allows {left} more: raise fs.file-max")]
    Files { needed: u64, left: u64 },
    #[error(
        "{needed_mib} MiB of memory are needed (7.5 KiB for both ends of each connection), and {available_mib} MiB are \
         available: take fewer --connections"
    )]
    Memory { needed_mib: u64, available_mib: u64 },
    #[error("an address has {0} local ports, which is too few: widen net.ipv4.ip_local_port_range")]
    Ports(u64),
    #[error(
        "{needed} connections would be tracked, and {left} more can be: raise net.netfilter.nf_conntrack_max, or take loopback \
         out of connection tracking"
    )]
    Tracking { needed: u64, left: u64 },
}

/// Descriptors of a process that are no connections: a gateway keeps 200, and Redis, lines and logs are among them.
const RESERVE: u64 = 300;

/// A gateway is planned for so much of what it takes: the fullest of those that bounded load fills has more than its share.
const FILL_PERCENT: u64 = 93;

/// Both ends of a connection in the kernel, and its state in the gateway and in the crowd: 6.4 KiB were measured.
const CONNECTION_BYTES: u64 = 7_680;

/// Redis, and what the processes are by themselves.
const PROCESS_BYTES: u64 = 24 << 20;

impl Facts {
    /// Of this machine.
    pub fn of_this_machine() -> Self {
        let number = |path: &str| numbers(path).first().copied();
        let files: Vec<u64> = numbers("/proc/sys/fs/file-nr");
        let ports: Vec<u64> = numbers("/proc/sys/net/ipv4/ip_local_port_range");
        let tracked_max: Option<u64> = number("/proc/sys/net/netfilter/nf_conntrack_max");
        let tracked = tracked();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        Self {
            descriptors: limit.unwrap_or(u64::MAX),
            files_left: files.get(2).unwrap_or(&u64::MAX).saturating_sub(*files.first().unwrap_or(&0)),
            memory_bytes: available_bytes(),
            ports: ports.get(1).unwrap_or(&0).saturating_sub(*ports.first().unwrap_or(&0)),
            tracked_left: tracked_max
                .filter(|_| is_loopback_tracked())
                .map(|max| max.saturating_sub(tracked)),
        }
    }
}

impl Plan {
    pub fn of(connections: u64, facts: Facts) -> Result<Self, PlanError> {
        let each = facts.descriptors.min(20_000).checked_sub(RESERVE).filter(|each| *each >= 500);
        let each = each.ok_or(PlanError::Descriptors(facts.descriptors))?;
        // Half of an address's ports are quick to find.
        let crowd_clients = each.min((facts.ports / 2).saturating_sub(500) * SOURCES as u64);
        if crowd_clients < 500 {
            return Err(PlanError::Ports(facts.ports));
        }
        let gateways = connections.div_ceil(each * FILL_PERCENT / 100).max(2);
        let crowds = connections.div_ceil(crowd_clients).max(1);
        let plan = Self { connections, gateways, crowds, crowd_clients: connections.div_ceil(crowds) };
        let files = 2 * connections + (gateways + crowds) * RESERVE;
        let memory = connections * CONNECTION_BYTES + (gateways + crowds) * PROCESS_BYTES;
        match () {
            () if files > facts.files_left => Err(PlanError::Files { needed: files, left: facts.files_left }),
            () if memory > facts.memory_bytes => {
                Err(PlanError::Memory { needed_mib: memory >> 20, available_mib: facts.memory_bytes >> 20 })
            }
            () => match facts.tracked_left.filter(|left| connections > *left) {
                Some(left) => Err(PlanError::Tracking { needed: connections, left }),
                None => Ok(plan),
            },
        }
    }

    /// Clients of the crowd at this place.
    pub fn clients_of(&self, crowd: u64) -> u64 {
        self.connections.saturating_sub(crowd * self.crowd_clients).min(self.crowd_clients)
    }
}

fn tracked() -> u64 {
    numbers("/proc/sys/net/netfilter/nf_conntrack_count").first().copied().unwrap_or(0)
}

/// The kernel has the module on many machines where no rule asks for it, and tracks nothing then.
fn is_loopback_tracked() -> bool {
    const SAMPLE: u64 = 64;
    let sample = || -> io::Result<u64> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let before = tracked();
        let _open: Vec<TcpStream> =
            (0..SAMPLE).map(|_| TcpStream::connect(address)).collect::<io::Result<_>>()?;
        Ok(tracked().saturating_sub(before))
    };
    // What cannot be found out is taken for the worse. Others may end connections meanwhile.
    !sample().is_ok_and(|grown| grown < SAMPLE / 2)
}

fn numbers<T: FromStr>(path: &str) -> Vec<T> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// What the kernel says that programs may still take.
pub(super) fn available_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: Facts = Facts {
        descriptors: 20_000,
        files_left: 10_000_000,
        memory_bytes: 16 << 30,
        ports: 28_231,
        tracked_left: None,
    };

    #[test]
    fn a_million_takes_so_many_processes() {
        let plan = Plan::of(1_000_000, PLENTY).expect("there is plenty");
        assert_eq!((plan.gateways, plan.crowds), (55, 51));
        assert_eq!((0..plan.crowds).map(|crowd| plan.clients_of(crowd)).sum::<u64>(), 1_000_000);
        assert!(plan.crowd_clients <= 19_700);
        let small = Plan::of(100, PLENTY).expect("there is plenty");
        assert_eq!((small.gateways, small.crowds, small.clients_of(0)), (2, 1, 100));
    }

    #[test]
    fn what_is_missing_is_said() {
        let check = |facts: Facts, part: &str| {
            let error = Plan::of(1_000_000, facts).expect_err(part);
            assert!(error.to_string().contains(part), "{error}");
        };
        check(Facts { descriptors: 700, ..PLENTY }, "700 descriptors");
        check(Facts { files_left: 1_000_000, ..PLENTY }, "raise fs.file-max");
        check(Facts { memory_bytes: 4 << 30, ..PLENTY }, "MiB of memory are needed");
        check(Facts { ports: 1_400, ..PLENTY }, "1400 local ports");
        check(Facts { tracked_left: Some(262_144), ..PLENTY }, "262144 more can be");
    }
}
