//! When a process is told to stop, or to read its files again.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Resolves when the process was told to drain: SIGTERM, SIGINT or `posted`, which is `POST /drain`.
pub async fn asked(posted: impl Future<Output = ()>) -> io::Result<()> {
    let (mut terminate, mut interrupt) = signals()?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
        _ = interrupt.recv() => tracing::info!("SIGINT: draining; once more to stop at once"),
        () = posted => tracing::info!("POST /drain: draining"),
    }
    Ok(())
}

/// Resolves at a second signal: whoever sends it does not want to wait.
pub async fn insisted() -> io::Result<()> {
    let (mut terminate, mut interrupt) = signals()?;
    tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
    Ok(())
}

/// SIGHUP: a terminal that closes, or a reload. From now on it ends nobody.
pub fn hangups() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// As long as the process runs, `reload` reads again what can be read again while it serves, and logs what became of it.
pub async fn reload_at_hangup(mut hangups: Signal, mut reload: impl FnMut()) {
    while hangups.recv().await.is_some() {
        reload();
    }
}

/// SIGUSR2, as long as the process runs.
pub async fn at_user_signal(mut work: impl FnMut()) -> io::Result<()> {
    let mut asked = signal(SignalKind::user_defined2())?;
    while asked.recv().await.is_some() {
        work();
    }
    Ok(())
}

fn signals() -> io::Result<(Signal, Signal)> {
    Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
}
