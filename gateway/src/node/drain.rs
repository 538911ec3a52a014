//! Stopping without losing anyone: say so, settle, refuse, close evenly, wait for the last words, go.

use std::{sync::Arc, time::Duration};

use tidegate_backplane::PRESENCE_SETTLE;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::node::{Node, Relay, Stage, shards::Order};

/// What was asked of this process, above all to give way, is answered within this time.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// Another process has this one's connections: waits for those that stayed, and for requests that are under way.
pub(crate) async fn give_way(node: &Node, http: &CancellationToken, tasks: &TaskTracker) {
    http.cancel();
    tasks.close();
    let ends = Instant::now() + node.config().drain.close_wait;
    sleep(LAST_WORDS).await;
    while node.connections() > 0 && Instant::now() < ends {
        sleep(Duration::from_millis(50)).await;
    }
    if timeout(Duration::from_secs(1), tasks.wait()).await.is_err() {
        tracing::warn!("some requests were cut");
    }
    tracing::info!(connections = node.connections(), "gave way");
}

/// Drains the node; what is left afterwards is cut.
pub(crate) async fn run(node: &Arc<Node>, relay: &Relay, http: &CancellationToken, tasks: &TaskTracker) {
    let drain = node.config().drain.clone();
    node.set_stage(Stage::Settling);
    if let Err(error) = node.backplane().announce(node.record()).await {
        tracing::warn!(%error, "the node registry does not know that this node drains");
    }
    sleep(drain.settle).await;
    node.set_stage(Stage::Closing);
    tracing::info!(connections = node.connections(), period = ?drain.period, "closing connections");
    relay.to_all(&Order::Drain { over: drain.period });
    // HTTP connections finish the request they are in; idle ones close now.
    http.cancel();
    tasks.close();
    let ends = Instant::now() + drain.period + drain.close_wait;
    while node.connections() > 0 && Instant::now() < ends {
        sleep(Duration::from_millis(50)).await;
    }
    if timeout(Duration::from_secs(1), tasks.wait()).await.is_err() {
        tracing::warn!("some requests were cut");
    }
    // Whoever has not come to another node meanwhile leaves its channels.
    node.moves().close();
    if timeout(PRESENCE_SETTLE + Duration::from_secs(1), node.moves().wait()).await.is_err() {
        tracing::warn!("some channels still count clients of this node, until its lease has ended");
    }
    if let Err(error) = node.backplane().retire(&node.config().node).await {
        tracing::warn!(%error, "the node registry still names this node");
    }
    tracing::info!(connections = node.connections(), "drained");
}
