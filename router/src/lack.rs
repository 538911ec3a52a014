//! What this process or machine lacks, told from what a node fails at.

use std::io;

/// Whether an error says something about this side only: descriptors (EMFILE, ENFILE), a local port (EADDRNOTAVAIL),
/// memory, room for sockets (ENOBUFS). No node is to blame, and no other one would be reached either.
pub(crate) fn is_own_lack(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::OutOfMemory)
        || matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS))
}

/// The same of an error with an I/O error among its sources.
pub(crate) fn is_from_own_lack(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut source = Some(error);
    while let Some(error) = source {
        if error.downcast_ref::<io::Error>().is_some_and(is_own_lack) {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    /// As a client of HTTP tells it.
    #[derive(Debug, thiserror::Error)]
    #[error("cannot connect")]
    struct Wrapped(#[source] io::Error);

    #[test]
    fn what_this_machine_lacks_is_no_nodes_failure() {
        let check = |errno: Errno, expect| {
            let error = io::Error::from(errno);
            assert_eq!(is_own_lack(&error), expect, "{errno:?}");
            assert_eq!(is_from_own_lack(&Wrapped(error)), expect, "{errno:?}, wrapped");
        };
        for lack in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL] {
            check(lack, true);
        }
        for failure in [Errno::CONNREFUSED, Errno::CONNRESET, Errno::TIMEDOUT, Errno::HOSTUNREACH] {
            check(failure, false);
        }
    }
}
