//! The list of apps: found by id or key in one snapshot, which a reload replaces whole.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;

use super::{
    App, AppId, Usage,
    metrics::{AppMetrics, ReloadResult},
    reload::Stamp,
    signature::Signer,
};
use crate::{
    app::webhooks::Webhooks,
    config::{AppEntry, AppSource, Config, ConfigError},
};

/// All apps of this node.
#[derive(Debug)]
pub(crate) struct Apps {
    snapshot: ArcSwap<Snapshot>,
    /// Grows with every snapshot.
    generation: AtomicU64,
    source: ArcSwap<AppSource>,
    /// What apps use, for as long as anybody holds one: an app that is taken from the list and put back while its
    /// connections are still open goes on with their number.
    usages: Mutex<HashMap<AppId, Weak<Usage>>>,
    webhooks: Arc<Webhooks>,
    pub(super) metrics: AppMetrics,
    /// What the file was when it was last read.
    stamp: Mutex<Option<Stamp>>,
}

#[derive(Debug, Default)]
struct Snapshot {
    by_id: HashMap<AppId, Arc<App>>,
    by_key: HashMap<Box<str>, Arc<App>>,
}

impl Apps {
    /// The apps of a loaded configuration, those of its `apps_file` included.
    pub(crate) fn new(config: &Config, webhooks: Arc<Webhooks>) -> Result<Self, ConfigError> {
        let apps = Self {
            snapshot: ArcSwap::default(),
            generation: AtomicU64::new(0),
            source: ArcSwap::from_pointee(config.app_source()),
            usages: Mutex::default(),
            webhooks,
            metrics: AppMetrics::default(),
            stamp: Mutex::default(),
        };
        apps.reload()?;
        Ok(apps)
    }

    /// The app that clients of this key belong to, also if it is disabled.
    pub(crate) fn by_key(&self, key: &str) -> Option<Arc<App>> {
        self.snapshot.load().by_key.get(key).cloned()
    }

    pub(crate) fn by_id(&self, id: &str) -> Option<Arc<App>> {
        self.snapshot.load().by_id.get(id).cloned()
    }

    /// The app whose channels are those of `/v1`, where there is one.
    pub(crate) fn default(&self) -> Option<Arc<App>> {
        self.source.load().default.as_ref().and_then(|id| self.by_id(id.as_str()))
    }

    /// Another number than before: apps may have changed, and what is kept of one must be looked up again.
    #[cfg(test)]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Reads the list again, all of it or nothing.
    pub(crate) fn reload(&self) -> Result<(), ConfigError> {
        self.read(&self.source.load())
    }

    /// Reads the list as another configuration has it: with its tables, and with who may have raw clients. Where the file
    /// is, and which app is the default one, stays.
    pub(crate) fn replace(&self, config: &Config) -> Result<(), ConfigError> {
        let AppSource { tables, raw, .. } = config.app_source();
        let source = AppSource { tables, raw, ..AppSource::clone(&self.source.load()) };
        let read = self.read(&source);
        self.metrics
            .reloads
            .add(if read.is_ok() { ReloadResult::Replaced } else { ReloadResult::Refused }, 1);
        read.map(|()| self.source.store(Arc::new(source)))
    }

    fn read(&self, source: &AppSource) -> Result<(), ConfigError> {
        // Before it is read: what changes while it is read is seen at the next look.
        *self.stamp() = source.file.as_deref().and_then(Stamp::of);
        let tables = source.read()?;
        let by_id: HashMap<_, _> = {
            let mut usages = self.usages.lock().unwrap_or_else(PoisonError::into_inner);
            usages.retain(|_, usage| usage.strong_count() > 0);
            let apps = tables.0.into_iter().map(|(id, entry)| {
                let known = usages.get(&id).and_then(Weak::upgrade);
                let usage = known.unwrap_or_else(|| {
                    let usage = Arc::default();
                    usages.insert(id.clone(), Arc::downgrade(&usage));
                    usage
                });
                Arc::new(self.app(source, id, entry, usage))
            });
            apps.map(|app| (app.id.clone(), app)).collect()
        };
        let by_key = by_id.values().map(|app| (app.key.clone(), Arc::clone(app))).collect();
        self.webhooks.keep_only(by_id.values().flat_map(|app| &app.webhooks));
        self.snapshot.store(Arc::new(Snapshot { by_id, by_key }));
        self.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Whether this is the file that was read last.
    pub(super) fn was_read(&self, stamp: Option<&Stamp>) -> bool {
        self.stamp().as_ref() == stamp
    }

    /// The file that the list is partly in.
    pub(super) fn file(&self) -> Option<PathBuf> {
        self.source.load().file.clone()
    }

    pub(super) fn len(&self) -> usize {
        self.snapshot.load().by_id.len()
    }

    fn stamp(&self) -> MutexGuard<'_, Option<Stamp>> {
        self.stamp.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From an entry that [`AppTables::finish`] found complete.
    fn app(&self, source: &AppSource, id: AppId, entry: AppEntry, usage: Arc<Usage>) -> App {
        let key = entry.key.unwrap_or_default();
        let secrets = entry.secret.iter().chain(&entry.previous_secret);
        let signer = Arc::new(Signer::new(key.clone(), secrets));
        App {
            webhooks: self.webhooks.endpoints(&id, &entry.webhooks, &signer),
            is_default: source.default.as_ref() == Some(&id),
            has_raw_clients: source.default.as_ref() == Some(&id) || source.raw.contains(&id),
            id,
            key,
            enabled: entry.enabled,
            limits: entry.limits,
            client_events: entry.client_events,
            subscription_count: entry.subscription_count,
            signer,
            usage,
        }
    }
}
