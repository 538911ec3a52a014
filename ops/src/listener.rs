//! Listening sockets, set up as every port of ours is.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

/// Connections that may wait to be accepted; the kernel cuts it at `net.core.somaxconn`, 4096 by default.
pub const ACCEPT_BACKLOG: u32 = 4096;

/// Why a port is not listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} (`{key}`): {source}; stop what uses it, or choose another address")]
pub struct ListenError {
    /// The setting that names the address.
    pub key: &'static str,
    pub address: SocketAddr,
    pub source: io::Error,
}

/// Listens on the address that the setting `key` names. The socket does not block.
pub fn listen(address: SocketAddr, key: &'static str) -> Result<TcpListener, ListenError> {
    bound(address, false).map_err(|source| ListenError { key, address, source })
}

/// The same for an address that other processes of the same user may listen on too (`SO_REUSEPORT`): the kernel deals
/// the connections to all of them.
pub fn listen_shared(address: SocketAddr, key: &'static str) -> Result<TcpListener, ListenError> {
    bound(address, true).map_err(|source| ListenError { key, address, source })
}

fn bound(address: SocketAddr, is_shared: bool) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    // A restarted process need not wait until the connections of the last one have timed out.
    socket.set_reuse_address(true)?;
    if is_shared {
        socket.set_reuse_port(true)?;
    }
    // Accepted sockets inherit it: messages are whole when they are written, waiting gains nothing.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(ACCEPT_BACKLOG as i32)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
