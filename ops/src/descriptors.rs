//! How many descriptors the process may have.

/// Of the table of descriptors, made in advance: 512 KiB at most.
const ROOM_MAX: u64 = 64 * 1024;

/// Raises the soft limit of descriptors, which is a default for programs that use `select`, to the hard one, which
/// is what the operator grants. To be called before the configuration is loaded: its defaults follow the limit.
pub fn raise_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) =
            setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, "the soft limit of descriptors could not be raised");
    }
    make_room(limit.maximum.unwrap_or(ROOM_MAX).min(ROOM_MAX));
}

/// Has the kernel make its table of the process's descriptors large enough for so many. Linux doubles it as they come, and
/// in a process with threads each doubling waits some 10 to 30 ms until all cores are through with the smaller table
/// (`synchronize_rcu` in `expand_files`): in a herd of clients, or in the pause of an upgrade. Before there are threads it
/// costs nothing.
fn make_room(descriptors: u64) {
    let last = i32::try_from(descriptors.saturating_sub(1)).unwrap_or(i32::MAX);
    // Without it the table grows as it would.
    drop(rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), last));
}
