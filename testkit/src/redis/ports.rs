//! Ports that stay free while a server is dead, so that it can come back on the same one.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below 32768, where Linux begins to give ports to outgoing connections: a client that tries again and again to
/// reach a dead server would else be given that server's own port and be connected to itself.
const FIRST: u16 = 10_000;

/// `FIRST..FIRST + SPAN` for clients; the same plus [`BUS_OFFSET`] for the Cluster bus, up to 30,000.
const SPAN: u16 = 10_000;

/// Where a Cluster node listens for the others (`cluster-port` is this much higher unless set).
const BUS_OFFSET: u16 = 10_000;

/// A port of 127.0.0.1 that nobody listens on, nor on its bus port, and that this process has not given before.
///
/// Test processes run side by side: each begins at a place of its own, and a server that still finds its port taken
/// is started again on another.
pub(crate) fn free_port() -> u16 {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    // 37 is coprime to 10,000 and more than a test takes: neighbouring pids do not meet.
    let start = (std::process::id() % u32::from(SPAN)) as u16;
    let start = (u32::from(start) * 37 % u32::from(SPAN)) as u16;
    for _ in 0..SPAN {
        let step = GIVEN.fetch_add(1, Ordering::Relaxed) % SPAN;
        let port = FIRST + (start + step) % SPAN;
        if is_free(port) && is_free(port + BUS_OFFSET) {
            return port;
        }
    }
    panic!("no free port in {FIRST}..{}", FIRST + SPAN);
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_given_once_and_taken_ones_are_passed_over() {
        let first = free_port();
        let _held = TcpListener::bind((Ipv4Addr::LOCALHOST, first + 1)).ok();
        let second = free_port();
        assert_ne!(first, second);
        assert_ne!(second, first + 1);
    }
}
