//! What is known about a machine. Each fact may be unreadable; then it says where and why.

use std::{fmt, io};

use serde::Serialize;

/// A value, or why there is none.
pub type Fact<T> = Result<T, Unreadable>;

/// Something that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{path} {why}")]
pub struct Unreadable {
    pub path: String,
    pub why: Why,
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    Missing,
    Forbidden,
    /// It was read and is not what proc(5) or the kernel's documentation says.
    Malformed,
    Failed,
}

/// All that the arithmetic looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub place: Place,
    pub descriptors: Fact<Descriptors>,
    /// `fs.nr_open`: the highest limit of descriptors that a process can be given.
    pub nr_open: Fact<u64>,
    pub files: Fact<SystemFiles>,
    pub memory: Fact<MachineMemory>,
    /// Bytes; `None` when the control group has no limit.
    pub memory_limit: Fact<Option<u64>>,
    pub cores: Fact<u32>,
    /// Thousandths of a core; `None` when the control group has no quota.
    pub cpu_quota_millis: Fact<Option<u64>>,
    pub tcp_memory: Fact<TcpMemory>,
    pub receive_buffers: Fact<Buffers>,
    pub send_buffers: Fact<Buffers>,
    /// `None` when connections are not tracked in this network namespace.
    pub conntrack: Fact<Option<Conntrack>>,
    pub ports: Fact<Ports>,
    pub somaxconn: Fact<u64>,
    pub syn_backlog: Fact<u64>,
    pub syncookies: Fact<u64>,
}

/// Where limits are set here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    Machine,
    Container,
    Kubernetes,
}

/// `RLIMIT_NOFILE`; `u64::MAX` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    pub soft: u64,
    pub hard: u64,
}

/// `fs.file-nr`: open files of the whole system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemFiles {
    pub used: u64,
    pub max: u64,
}

/// Of the machine, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineMemory {
    pub total: u64,
    pub available: u64,
}

/// `net.ipv4.tcp_mem`, in pages. Above `pressure` buffers shrink; at `max` data is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpMemory {
    pub low: u64,
    pub pressure: u64,
    pub max: u64,
}

/// `net.ipv4.tcp_rmem` or `tcp_wmem`, in bytes per socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffers {
    pub min: u64,
    pub initial: u64,
    pub max: u64,
}

/// Entries of the connection tracking table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conntrack {
    pub used: u64,
    pub max: u64,
}

/// `net.ipv4.ip_local_port_range`: ports of outgoing connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    pub first: u16,
    pub last: u16,
}

impl Facts {
    /// The soonest of the facts that are missing, in the order of the fields.
    pub fn unreadable(&self) -> Vec<Unreadable> {
        let problems = [
            self.descriptors.as_ref().err(),
            self.nr_open.as_ref().err(),
            self.files.as_ref().err(),
            self.memory.as_ref().err(),
            self.memory_limit.as_ref().err(),
            self.cores.as_ref().err(),
            self.cpu_quota_millis.as_ref().err(),
            self.tcp_memory.as_ref().err(),
            self.receive_buffers.as_ref().err(),
            self.send_buffers.as_ref().err(),
            self.conntrack.as_ref().err(),
            self.ports.as_ref().err(),
            self.somaxconn.as_ref().err(),
            self.syn_backlog.as_ref().err(),
            self.syncookies.as_ref().err(),
        ];
        problems.into_iter().flatten().cloned().collect()
    }
}

impl Ports {
    /// Connections from one address to one other address and port.
    pub fn count(self) -> u64 {
        u64::from(self.last.saturating_sub(self.first)) + 1
    }
}

impl From<&io::Error> for Why {
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            io::ErrorKind::PermissionDenied => Self::Forbidden,
            _ => Self::Failed,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "is not there",
            Self::Forbidden => "may not be read by this user",
            Self::Malformed => "has a form that is not known",
            Self::Failed => "could not be read",
        })
    }
}
