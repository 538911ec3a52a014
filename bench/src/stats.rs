//! What a fleet counts: connections that failed or ended and why, messages, order, latency.

use std::collections::BTreeMap;
use std::io;

use hdrhistogram::Histogram;

use crate::frame::FrameFault;
use crate::order::{OrderCheck, OrderCounts};
use crate::stamp::Stamp;

/// Latencies are kept in microseconds up to a minute: 3 digits over 1..6e7 take 150 KB.
const LATENCY_MAX_US: u64 = 60_000_000;

/// Why a connection was never open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum ConnectFailure {
    #[error("connection refused")]
    Refused,
    #[error("connection reset or closed during the handshake")]
    Reset,
    #[error("no answer to the handshake within 15 s")]
    Timeout,
    #[error("descriptor limit of this process reached: raise ulimit -n")]
    Descriptors,
    #[error("no local port free: use more source addresses")]
    Ports,
    #[error("host or network unreachable")]
    Unreachable,
    #[error("handshake answered with status {0}")]
    Status(u16),
    #[error("handshake answered with something that is no upgrade")]
    NoUpgrade,
    #[error("other socket error ({0:?})")]
    Other(IoKind),
}

/// Why an open connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Ending {
    #[error("closed by the server with code {0}")]
    Code(u16),
    #[error("closed by the server without a code")]
    NoCode,
    #[error("connection ended without a close frame")]
    End,
    #[error("connection reset")]
    Reset,
    #[error("the server broke the protocol")]
    Protocol,
}

/// [`io::ErrorKind`] with an order, so that it can be a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct IoKind(pub io::ErrorKind);

/// Counters of a fleet; they only grow.
#[derive(Debug, Clone)]
pub struct FleetStats {
    pub opened: u64,
    /// Connections that ended and were opened again.
    pub returned: u64,
    pub failures: BTreeMap<ConnectFailure, u64>,
    pub endings: BTreeMap<Ending, u64>,
    pub messages: u64,
    pub bytes: u64,
    /// Messages without a stamp of this run.
    pub foreign: u64,
    pub pings_answered: u64,
    pub order: OrderCounts,
    /// Publish (or echo send) to arrival, µs.
    pub latency_us: Histogram<u64>,
    /// Begin of connect to the end of the handshake, µs.
    pub handshake_us: Histogram<u64>,
    /// The last protocol fault, for the report.
    pub fault: Option<FrameFault>,
}

impl Default for FleetStats {
    fn default() -> Self {
        Self {
            opened: 0,
            returned: 0,
            failures: BTreeMap::new(),
            endings: BTreeMap::new(),
            messages: 0,
            bytes: 0,
            foreign: 0,
            pings_answered: 0,
            order: OrderCounts::default(),
            latency_us: latency_histogram(),
            handshake_us: latency_histogram(),
            fault: None,
        }
    }
}

impl FleetStats {
    /// Connections that were never open.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Connections that were open and are not any more, save those closed by this side.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.endings.values().sum()
    }

    /// Adds what another fleet counted.
    pub fn merge(&mut self, other: &Self) {
        self.opened += other.opened;
        self.returned += other.returned;
        for (&failure, count) in &other.failures {
            *self.failures.entry(failure).or_default() += count;
        }
        for (&ending, count) in &other.endings {
            *self.endings.entry(ending).or_default() += count;
        }
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.foreign += other.foreign;
        self.pings_answered += other.pings_answered;
        self.order.lost += other.order.lost;
        self.order.duplicated += other.order.duplicated;
        self.order.misordered += other.order.misordered;
        // Both sides were made by `latency_histogram`, and one range always holds the other's values.
        self.latency_us.add(&other.latency_us).unwrap_or_else(|_| unreachable!("equal ranges"));
        self.handshake_us.add(&other.handshake_us).unwrap_or_else(|_| unreachable!("equal ranges"));
        self.fault = self.fault.or(other.fault);
    }

    pub(crate) fn fail(&mut self, failure: ConnectFailure) {
        *self.failures.entry(failure).or_default() += 1;
    }

    pub(crate) fn message(&mut self, order: &mut OrderCheck, head: &[u8], now_ns: u64, run: u16) {
        self.messages += 1;
        match Stamp::read(head) {
            Some(stamp) if stamp.run == run && order.see(stamp.stream, stamp.sequence, &mut self.order) => {
                self.latency_us.saturating_record(now_ns.saturating_sub(stamp.sent_ns) / 1_000);
            }
            _ => self.foreign += 1,
        }
    }

    pub(crate) fn echo(&mut self, took_ns: u64) {
        self.messages += 1;
        self.latency_us.saturating_record(took_ns / 1_000);
    }
}

impl From<&io::Error> for ConnectFailure {
    fn from(error: &io::Error) -> Self {
        use rustix::io::Errno;
        let exhausted = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
        if error.raw_os_error().is_some_and(|code| exhausted.contains(&code)) {
            return Self::Descriptors;
        }
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => Self::Ports,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::Unreachable,
            kind => Self::Other(IoKind(kind)),
        }
    }
}

/// An empty histogram of microseconds with three digits.
#[must_use]
pub fn latency_histogram() -> Histogram<u64> {
    // The bounds are constants that the constructor accepts; the fallback has the same digits.
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 3)
        .or_else(|_| Histogram::new(3))
        .unwrap_or_else(|_| unreachable!("three digits are within the histogram's range"))
}
