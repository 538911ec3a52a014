//! SIGHUP: what can be read again while the node serves is taken; of the rest it is said that it needs a restart.

use std::sync::Arc;

use tidegate_ops::{
    config::{Load as _, Loader},
    log,
    tls::Certificates,
};

use crate::{
    app::apps::Apps,
    auth::{ApiKeys, Authenticator},
    config::{Config, ConfigError},
    node::{Relay, shards::Order},
};

/// What a reload replaces.
pub(super) struct Reloading {
    /// `None`: it came from nowhere, and only the files that it names are read again.
    pub(super) load: Option<Loader<Config>>,
    /// As it was last taken.
    pub(super) config: Config,
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) api_keys: Arc<ApiKeys>,
    pub(super) apps: Arc<Apps>,
    pub(super) certificates: Option<Arc<Certificates>>,
    pub(super) relay: Arc<Relay>,
}

/// Keys, or sections, that are taken.
const TAKEN: [&str; 4] = ["log.level", "auth.jwt", "auth.api_keys", "apps"];

impl Reloading {
    pub(super) fn reload(&mut self) {
        let fresh = self.load.as_ref().map_or_else(|| Ok(self.config.clone()), Loader::load);
        match fresh.and_then(|fresh| self.take(fresh)) {
            Ok(ignored) if ignored.is_empty() => tracing::info!(
                "SIGHUP: certificates, keys, secrets, the list of apps and the log level were read again"
            ),
            Ok(ignored) => tracing::warn!(
                needs_restart = ignored.join(", "),
                "SIGHUP: certificates, keys, secrets, the list of apps and the log level were read again; other settings \
                 have changed and are as they were until a restart"
            ),
            Err(error) => tracing::error!(%error, "SIGHUP: all stays as it is"),
        }
    }

    /// Keys that have changed and are not taken.
    fn take(&mut self, mut fresh: Config) -> Result<Vec<String>, ConfigError> {
        // Its default is another one each time.
        fresh.node.clone_from(&self.config.node);
        // What may still be refused comes first.
        self.authenticator.replace(&fresh.auth)?;
        self.api_keys.replace(&fresh.auth.api_keys)?;
        self.apps.replace(&fresh)?;
        self.relay.to_all(&Order::AppsChanged);
        if let Some(certificates) = &self.certificates {
            certificates.reload_if_changed();
        }
        if fresh.log.level != self.config.log.level {
            log::set_level(&fresh.log.level);
        }
        let is_taken =
            |key: &str| TAKEN.contains(&key) || key.starts_with("auth.jwt") || key.starts_with("apps.");
        let ignored = self.config.differing(&fresh).into_iter().filter(|key| !is_taken(key)).collect();
        self.config.log.level = fresh.log.level;
        Ok(ignored)
    }
}
