//! Gives sessions up whose master the Sentinels have deposed.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::sentinel::Sentinels;
use super::shared::Shared;
use crate::redis::error::Trouble;

/// How often the Sentinels are asked while the link is up. A master that was deposed without breaking its connections
/// serves nobody for longer.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn run(sentinels: Arc<Sentinels>, shared: Arc<Shared>) {
    let mut ticks = interval(ASK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(live) = shared.map().links.first().and_then(|link| link.live()) else { continue };
        // Sentinels that are away are no reason to leave a master that serves.
        if let Ok(server) = sentinels.master(&shared.dialer).await
            && server != live.server
        {
            live.give_up(Trouble::OtherMaster("a Sentinel"));
        }
    }
}
