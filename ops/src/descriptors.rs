//! How many descriptors the process may have.

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
}
