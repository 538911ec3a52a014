//! Whether the router drains, and who asked for it.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use tidegate_ops::stopping;
use tokio::sync::Notify;

/// The stage of a router's life.
#[derive(Debug, Default)]
pub(crate) struct Stage {
    draining: AtomicBool,
    asked: Notify,
}

impl Stage {
    /// Begins to drain; more calls change nothing.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        // Kept for whoever waits later.
        self.asked.notify_one();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Resolves when the process was told to stop, and drains then.
    pub(crate) async fn asked(&self) -> io::Result<()> {
        stopping::asked(self.asked.notified()).await?;
        self.drain();
        Ok(())
    }
}
