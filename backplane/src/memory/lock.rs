//! Runs a closure under a mutex, so that no guard leaves the function that took it.

use std::sync::{Mutex, PoisonError};

/// A panic under a lock (only a sink's code can cause one, and it is called last) leaves whole state behind, so a
/// poisoned lock is used on.
pub(super) fn locked<T, R>(mutex: &Mutex<T>, f: impl FnOnce(&mut T) -> R) -> R {
    f(&mut mutex.lock().unwrap_or_else(PoisonError::into_inner))
}
