//! The few operating-system calls std does not wrap: monotonic time, source addresses, limits, cores.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use mio::net::TcpStream;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// `CLOCK_MONOTONIC` in nanoseconds: one clock for every process of a machine, so a stamp made by a
/// publisher can be subtracted by a subscriber in another thread or process.
#[must_use]
pub fn now_ns() -> u64 {
    clock_ns(ClockId::Monotonic)
}

/// CPU time of the calling thread in nanoseconds.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    clock_ns(ClockId::ThreadCPUTime)
}

fn clock_ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// How a client socket is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConnectOptions {
    /// Local address; `None` lets the kernel choose.
    pub source: Option<Ipv4Addr>,
    /// Close with RST, so that a torn-down fleet leaves no TIME_WAIT behind.
    pub reset_on_close: bool,
}

/// Starts a non-blocking connect.
pub fn connect(target: SocketAddr, options: ConnectOptions) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if options.reset_on_close {
        socket.set_linger(Some(std::time::Duration::ZERO))?;
    }
    if let Some(source) = options.source {
        bind_without_port(&socket)?;
        socket.bind(&SockAddr::from(SocketAddr::from((source, 0))))?;
    }
    match socket.connect(&SockAddr::from(target)) {
        Ok(()) => {}
        Err(error) if in_progress(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(TcpStream::from_std(socket.into()))
}

fn in_progress(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
        || error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error())
}

/// Lets `connect` choose the port instead of `bind`: only then does the kernel look at the whole 4-tuple, so
/// a port in use towards one server is free towards another and TIME_WAIT ports are reusable.
#[cfg(target_os = "linux")]
fn bind_without_port(socket: &Socket) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for the length of the call, and the pointer and length describe `on`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            std::ptr::from_ref(&on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
fn bind_without_port(_socket: &Socket) -> io::Result<()> {
    Ok(())
}

/// Raises the soft descriptor limit to the hard one and returns what now holds.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

/// Confines the calling thread, and every thread and process it starts from now on, to one core; `None` frees it.
#[cfg(target_os = "linux")]
pub fn pin_thread(core: Option<usize>) -> io::Result<()> {
    use rustix::thread::CpuSet;
    let mut cores = CpuSet::new();
    match core {
        Some(core) => cores.set(core),
        // The kernel leaves out those that are not there.
        None => (0..CpuSet::MAX_CPU).for_each(|core| cores.set(core)),
    }
    Ok(rustix::thread::sched_setaffinity(None, &cores)?)
}

/// Confining to a core is a Linux call; elsewhere it is refused.
#[cfg(not(target_os = "linux"))]
pub fn pin_thread(_core: Option<usize>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
