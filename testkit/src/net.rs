//! Free ports and many loopback source addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

/// An address on 127.0.0.1 that was free a moment ago.
///
/// Prefer port 0 and the address that the server reports; this is for the few cases that must name a port before
/// the server starts.
///
/// # Panics
/// When loopback has no free port.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    listener.local_addr().expect("a bound socket has an address")
}

/// The `index`th loopback source address: 127.0.1.1, 127.0.1.2, … 127.0.255.254.
///
/// One source address has about 28,000 ephemeral ports towards one server port, and a closed connection holds its
/// port for 60 s in TIME_WAIT. Tests that open more than that spread over several.
pub fn source_address(index: usize) -> IpAddr {
    let third = 1 + (index / 254) % 255;
    let fourth = 1 + index % 254;
    // Both are in 1..=255 by the modulo above.
    IpAddr::V4(Ipv4Addr::new(127, 0, third as u8, fourth as u8))
}

/// Lets this process, and those it starts from now on, have as many descriptors as the machine allows it. The soft limit
/// is 1,024 on many.
pub fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where it is refused, the test that needs descriptors says so.
    let _refused = setrlimit(Resource::Nofile, limit);
}

/// An address at which connections are begun and never made, as behind a firewall that drops packets.
#[derive(Debug)]
pub struct Blackhole {
    _listener: Socket,
    _waiting: Vec<TcpStream>,
}

impl Blackhole {
    /// # Errors
    /// Whatever the kernel answers when the address is bound.
    ///
    /// # Panics
    /// When the kernel goes on taking connections.
    pub fn at(address: SocketAddr) -> io::Result<Self> {
        // A listener whose queue is full lets the kernel drop what asks for a connection.
        const QUEUE_MAX: usize = 16;
        let listener = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        listener.set_reuse_address(true)?;
        listener.bind(&address.into())?;
        listener.listen(0)?;
        let mut waiting = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            waiting.push(stream);
            assert!(waiting.len() < QUEUE_MAX, "{address} takes connections");
        }
        Ok(Self { _listener: listener, _waiting: waiting })
    }
}

/// What a client socket is like.
#[derive(Debug, Clone, Copy, Default)]
pub struct SocketOptions {
    /// Bind to this address first (see [`source_address`]).
    pub source: Option<IpAddr>,
    /// `SO_RCVBUF`: a small one makes a reader that stops be felt soon by the sender.
    pub receive_buffer_bytes: Option<usize>,
    /// `SO_LINGER` 0: closing sends a reset and leaves no TIME_WAIT behind.
    pub reset_on_close: bool,
}

/// Connects to `target`.
///
/// # Errors
/// Whatever the kernel answers, refusal and time-out (10 s) included.
pub fn connect(target: SocketAddr, options: SocketOptions) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(bytes) = options.receive_buffer_bytes {
        socket.set_recv_buffer_size(bytes)?;
    }
    if let Some(source) = options.source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    if options.reset_on_close {
        socket.set_linger(Some(Duration::ZERO))?;
    }
    socket.connect_timeout(&target.into(), Duration::from_secs(10))?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}
