//! What the kernel knows of the way to a peer: whether bytes came that nobody has read, and when it last sent and was last
//! acknowledged.

use std::time::Duration;

use super::{Connections, Unread};
use crate::slab::ConnectionId;

/// How long ago something happened between two kernels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path {
    /// Data was sent last.
    pub sent: Duration,
    /// The peer's kernel acknowledged something last: it was there, and both directions worked.
    pub acknowledged: Duration,
}

impl<C> Connections<C> {
    /// Whether the peer has sent something that was not handled yet, so that it is not the one who is late. Asks the kernel
    /// where the shard knows of nothing.
    pub fn has_unhandled(&self, id: ConnectionId) -> bool {
        let Some(entry) = self.entry(id) else { return false };
        let is_known = entry.is_paused() || entry.flags.unread != Unread::No || self.rests.has(id);
        is_known
            || entry
                .socket
                .as_ref()
                .is_some_and(|socket| rustix::io::ioctl_fionread(socket).is_ok_and(|n| n > 0))
    }

    /// `None` where the kernel does not say, which only Linux does.
    pub fn path(&self, id: ConnectionId) -> Option<Path> {
        let socket = self.entry(id)?.socket.as_ref()?;
        tcp_info(socket)
    }
}

#[cfg(target_os = "linux")]
fn tcp_info(socket: &mio::net::TcpStream) -> Option<Path> {
    use std::{mem::MaybeUninit, os::fd::AsRawFd};

    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the length of the call, and the kernel writes `len` bytes at most. All of the
    // structure is integers, for which zeroes are values.
    let info = unsafe {
        let into = info.as_mut_ptr().cast();
        match libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, into, &raw mut len) {
            0 => info.assume_init(),
            _ => return None,
        }
    };
    let ago = |ms: u32| Duration::from_millis(u64::from(ms));
    Some(Path { sent: ago(info.tcpi_last_data_sent), acknowledged: ago(info.tcpi_last_ack_recv) })
}

#[cfg(not(target_os = "linux"))]
fn tcp_info(_: &mio::net::TcpStream) -> Option<Path> {
    None
}
