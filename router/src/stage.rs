//! Whether the router drains, and who asked for it.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

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

    /// Resolves when the process was told to stop: SIGTERM, SIGINT or `POST /drain`.
    pub(crate) async fn asked(&self) -> io::Result<()> {
        let (mut terminate, mut interrupt) = signals()?;
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
            _ = interrupt.recv() => tracing::info!("SIGINT: draining; once more to stop at once"),
            () = self.asked.notified() => tracing::info!("POST /drain: draining"),
        }
        self.drain();
        Ok(())
    }
}

/// Resolves at a second signal: whoever sends it does not want to wait.
pub(crate) async fn insisted() -> io::Result<()> {
    let (mut terminate, mut interrupt) = signals()?;
    tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
    Ok(())
}

fn signals() -> io::Result<(tokio::signal::unix::Signal, tokio::signal::unix::Signal)> {
    Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
}
