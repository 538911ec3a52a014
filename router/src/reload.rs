//! SIGHUP: what can be read again while the router serves is taken; of the rest it is said that it needs a restart.

use std::sync::Arc;

use tidegate_ops::{
    config::{ConfigError, Load as _, Loader},
    log,
    tls::Certificates,
};

use crate::{assign::Assigner, config::Config};

/// What a reload replaces.
#[derive(Debug)]
pub(crate) struct Reloading {
    /// `None`: it came from nowhere, and only the files that it names are read again.
    pub(crate) load: Option<Loader<Config>>,
    /// As it was last taken.
    pub(crate) config: Config,
    pub(crate) assigner: Option<Arc<Assigner>>,
    pub(crate) certificates: Option<Arc<Certificates>>,
}

impl Reloading {
    pub(crate) fn reload(&mut self) {
        let fresh = self.load.as_ref().map_or_else(|| Ok(self.config.clone()), Loader::load);
        match fresh.and_then(|fresh| self.take(fresh)) {
            Ok(ignored) if ignored.is_empty() => {
                tracing::info!(
                    "SIGHUP: the certificate, the key of /v1/assign and the log level were read again"
                );
            }
            Ok(ignored) => tracing::warn!(
                needs_restart = ignored.join(", "),
                "SIGHUP: the certificate, the key of /v1/assign and the log level were read again; other settings have \
                 changed and are as they were until a restart"
            ),
            Err(error) => tracing::error!(%error, "SIGHUP: all stays as it is"),
        }
    }

    /// Keys that have changed and are not taken.
    fn take(&mut self, fresh: Config) -> Result<Vec<String>, ConfigError> {
        if let Some(assigner) = &self.assigner {
            assigner.reload(&self.config.assign)?;
        }
        if let Some(certificates) = &self.certificates {
            certificates.reload_if_changed();
        }
        if fresh.log.level != self.config.log.level {
            log::set_level(&fresh.log.level);
        }
        let ignored = self.config.differing(&fresh).into_iter().filter(|key| key != "log.level").collect();
        self.config.log.level = fresh.log.level;
        Ok(ignored)
    }
}
