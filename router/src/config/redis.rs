//! The section about Redis, for members that are read from a backplane's registry.

use std::path::PathBuf;

use tidegate_backplane::{Prefix, RedisFiles, RedisOptions, RedisUrl};
use tidegate_ops::{
    config::{ConfigError, Setting, read_secret},
    section,
};

section! {
    /// How the registry is reached. The same as the gateways have.
    Redis {
        /// What the names of the deployment begin with.
        prefix: RedisPrefix = RedisPrefix::default();
        /// File with the password, for a URL without one: `redis://user@host` or `redis://host`. Line ends at its end
        /// are cut.
        password_file: Option<PathBuf> = None;
        /// PEM file with the certificates of a private authority, for URLs over TLS. Without it, those that the system
        /// trusts.
        ca_file: Option<PathBuf> = None;
    }
}

/// What the names of a deployment begin with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisPrefix(Prefix);

impl Redis {
    /// What the backplane is told. Reads the file with the password.
    pub(crate) fn options(&self, url: &str) -> Result<RedisOptions, ConfigError> {
        let url = match &self.password_file {
            None => url.to_owned(),
            Some(path) => read_secret("redis.password_file", path)?.in_url(url).ok_or_else(|| {
                let (key, other) = ("redis.password_file".into(), "members".into());
                ConfigError::Contradiction { key, other, rule: "the URL has a password itself" }
            })?,
        };
        let url: RedisUrl = url.parse().map_err(|problem| ConfigError::Unusable {
            key: "members".into(),
            path: None,
            problem: Box::new(problem),
        })?;
        // The name appears nowhere: a router writes nothing of itself.
        Ok(RedisOptions {
            files: RedisFiles {
                password: self.password_file.clone(),
                ca: self.ca_file.clone(),
                certificate: None,
            },
            prefix: self.prefix.0.clone(),
            ..RedisOptions::new(url, "router")
        })
    }
}

impl Setting for RedisPrefix {
    const EXPECTED: &'static str = "1 to 64 letters, digits or characters of _-.";

    fn from_text(text: &str) -> Option<Self> {
        Prefix::new(text).ok().map(Self)
    }

    fn show(&self) -> String {
        format!("\"{}\"", self.0)
    }
}
