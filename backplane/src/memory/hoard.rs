//! What a channel holds and can forget, with what a ledger knows of it.

/// Something of a channel that can forget its oldest item.
pub(super) trait Hoard {
    /// Forgets one; returns the bytes that it cost.
    fn shed_oldest(&mut self) -> Option<usize>;
    fn is_empty(&self) -> bool;
}

/// What a hoard let go of.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Released {
    pub(super) items: u64,
    pub(super) bytes: u64,
}

impl Released {
    pub(super) fn add(&mut self, shed: Option<usize>) {
        self.items += u64::from(shed.is_some());
        self.bytes += shed.unwrap_or(0) as u64;
    }
}

/// A hoard's place in its channel, with its standing in the ledger.
#[derive(Debug)]
pub(super) struct Part<T> {
    pub(super) held: Option<Box<T>>,
    /// Stands in the ledger's queue.
    pub(super) queued: bool,
    /// Grew since the queue last asked it.
    pub(super) touched: bool,
}

impl<T> Default for Part<T> {
    fn default() -> Self {
        Self { held: None, queued: false, touched: false }
    }
}
