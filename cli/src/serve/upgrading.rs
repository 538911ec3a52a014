//! The children of `serve`, upgraded one after the other: the gateways, then the router. The first that is not ends that.

use std::sync::Arc;

use tidegate_ops::{
    children::Ready,
    probes::{Upgrade, Upgraded},
    stopping,
};
use tokio::sync::Mutex;

use crate::upgrade::{PATIENCE, ask};

/// What `POST /upgrade` on the internal port does, and SIGUSR2.
pub(super) fn offer(mut children: Vec<Ready>, upgrade: &Arc<Upgrade>) {
    // The router has no number.
    let number = |child: &Ready| child.name.rsplit('-').next().and_then(|number| number.parse().ok());
    children.sort_by_key(|child| number(child).unwrap_or(u16::MAX));
    let children = Arc::new(Mutex::new(children));
    upgrade.offer(move || {
        let children = Arc::clone(&children);
        Box::pin(async move {
            let Ok(children) = children.try_lock() else {
                return Err("another upgrade is under way".to_owned());
            };
            let upgraded = upgrade_all(&children).await;
            if let Err(why) = &upgraded {
                tracing::error!("{why}");
            }
            upgraded
        })
    });
    let upgrade = Arc::clone(upgrade);
    tokio::spawn(stopping::at_user_signal(move || drop(tokio::spawn(upgrade.begin()))));
}

/// Where the child is operated.
pub(super) fn internal(child: &Ready) -> String {
    let line = child.line();
    line.split(' ').find_map(|part| part.strip_prefix("internal=")).unwrap_or_default().to_owned()
}

async fn upgrade_all(children: &[Ready]) -> Result<Upgraded, String> {
    let mut longest = 0;
    for (done, child) in children.iter().enumerate() {
        let Upgraded { process, paused_ms } = ask(&internal(child), PATIENCE).await.map_err(|error| {
            format!(
                "{}: {error}; {done} of {} were upgraded before, the rest goes on as it is",
                child.name,
                children.len()
            )
        })?;
        tracing::info!(child = &*child.name, process, paused_ms, "a child was upgraded");
        longest = longest.max(paused_ms);
    }
    Ok(Upgraded { process: std::process::id(), paused_ms: longest })
}
