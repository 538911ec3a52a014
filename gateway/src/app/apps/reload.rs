//! Reading the list of apps again when its file changes. (On SIGHUP it is read with the rest of the configuration.)

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use super::{Apps, metrics::ReloadResult};

/// How often the file is looked at. Kubernetes replaces the files of a ConfigMap or Secret by swapping a symbolic link
/// two directories up, which no watch on the file itself would see.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Keeps the list as its file is, for as long as the process lives. `changed` is called after each replacement. Without
/// a file there is nothing to do.
pub(crate) async fn keep_fresh(apps: Arc<Apps>, changed: impl Fn()) {
    if apps.file().is_none() {
        return;
    }
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        // A file of a few kilobytes: shorter than a hand-over to another thread.
        if look(&apps) == Some(ReloadResult::Replaced) {
            tracing::info!("the list of apps was read again");
            changed();
        }
    }
}

/// Where a file is and what it looks like from outside: another one, or another content, has another stamp.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    /// Also changes where the time of modification is set back, as tools that copy files do.
    changed: (i64, i64),
}

/// Reads the list again if its file is another one. `None`: it was not read.
fn look(apps: &Apps) -> Option<ReloadResult> {
    if apps.file().is_none_or(|path| apps.was_read(Stamp::of(&path).as_ref())) {
        return None;
    }
    let result = match apps.reload() {
        Ok(()) => ReloadResult::Replaced,
        Err(error) => {
            tracing::error!(%error, "the apps stay as they are");
            ReloadResult::Refused
        }
    };
    apps.metrics.reloads.add(result, 1);
    Some(result)
}

impl Stamp {
    /// Follows symbolic links. `None`: there is nothing that can be read.
    pub(super) fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().as_ref().map(Self::from)
    }
}

impl From<&Metadata> for Stamp {
    fn from(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            bytes: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}
