//! What may wait for answers of one server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use redis::{Arg, Cmd};

/// Bytes of commands that may wait for their answers: two seconds of 8 MiB/s. Subscribe commands that wait to be
/// written have as much again: 160,000 channels of 100 bytes.
pub(crate) const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes that commands hold of their link's bound.
#[derive(Debug)]
pub(super) struct Room {
    waiting: Arc<AtomicUsize>,
    bytes: usize,
}

impl Room {
    pub(super) fn take(waiting: &Arc<AtomicUsize>, commands: &[&Cmd]) -> Option<Self> {
        let bytes = commands.iter().map(|command| size_of_command(command)).sum();
        let before = waiting.fetch_add(bytes, Ordering::Relaxed);
        let room = Self { waiting: Arc::clone(waiting), bytes };
        // A command is let in when nothing else waits, however long it is.
        (before == 0 || before + bytes <= WAITING_BYTES_MAX).then_some(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Its arguments, and about 16 bytes of lengths and line ends for each.
fn size_of_command(command: &Cmd) -> usize {
    let size = |argument: Arg<&[u8]>| match argument {
        Arg::Simple(bytes) => bytes.len() + 16,
        Arg::Cursor => 24,
        _ => 16,
    };
    command.args_iter().map(size).sum()
}
