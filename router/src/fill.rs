//! Brings a node that has room its clients back: each second a look at the loads, a walk over the clients, and an order to
//! the nodes that have too many.
//!
//! Who is asked is decided by `placement` (`fill`); the gateway asks those that lose nothing by it, in their protocol's own
//! way. Routers need not know of each other: each asks the same part of its own clients (docs/adr/0022-filling.md).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tidegate_backplane::{Control, ReadNodes};
use tokio::time::{MissedTickBehavior, interval};

use crate::{chooser::Chooser, proxy::Walkers};

/// Addresses in one order: 4,096 of at most 47 characters are less than 200 KB.
const ADDRESSES_MAX: usize = 4_096;

/// Runs until the router ends.
pub(crate) async fn run(
    chooser: Arc<Chooser>,
    walkers: Walkers,
    nodes: Arc<dyn ReadNodes>,
    period: Duration,
) {
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut walked = None;
    loop {
        seconds.tick().await;
        if let Some(filling) = walked.take() {
            order(&*nodes, filling).await;
        }
        walked = chooser.filling(period, Instant::now()).map(Arc::new);
        if let Some(filling) = &walked {
            walkers.walk(filling);
        }
    }
}

async fn order(nodes: &dyn ReadNodes, filling: Arc<crate::chooser::Filling>) {
    for (node, peers) in filling.take_asked() {
        for peers in peers.chunks(ADDRESSES_MAX) {
            tracing::debug!(node = &*node, clients = peers.len(), "asking clients to come back");
            let order = Control::AskBack { node: node.clone(), peers: peers.to_vec() };
            // They are asked again in a later second.
            if let Err(error) = nodes.order(order).await {
                tracing::warn!(%error, "clients could not be asked to come back");
            }
        }
    }
}
