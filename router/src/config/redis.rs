//! The section about Redis, for members that are read from a backplane's registry.

use std::path::PathBuf;

use tidegate_backplane::{Prefix, RedisFiles, RedisOptions, RedisUrl, SentinelLogin};
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
        /// PEM file with the certificate that this router shows to Redis, and those between it and the authority, for
        /// servers that ask for one. Needs `key_file`.
        cert_file: Option<PathBuf> = None;
        /// PEM file with the key of `cert_file`.
        key_file: Option<PathBuf> = None;
        /// Name of the user at the Sentinels. Without it, the default user.
        sentinel_user: Option<Box<str>> = None;
        /// File with the password at the Sentinels. Without it, they are told the one of Redis where they ask for one.
        sentinel_password_file: Option<PathBuf> = None;
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
            Some(path) => read_secret("redis.password_file", path)?
                .in_url(url)
                .ok_or_else(|| contradiction("redis.password_file", "the URL has a password itself"))?,
        };
        let url: RedisUrl = url.parse().map_err(|problem| ConfigError::Unusable {
            key: "members".into(),
            path: None,
            problem: Box::new(problem),
        })?;
        let certificate = match (&self.cert_file, &self.key_file) {
            (None, None) => None,
            (Some(_), Some(_)) if !url.is_tls() => {
                return Err(contradiction(
                    "redis.cert_file",
                    "the URL is not one over TLS, such as rediss://",
                ));
            }
            (Some(certificate), Some(key)) => Some([certificate.clone(), key.clone()]),
            _ => {
                return Err(contradiction("redis.cert_file", "redis.key_file belongs to it, and it to that"));
            }
        };
        let sentinel = match (&self.sentinel_user, &self.sentinel_password_file) {
            (user, Some(file)) => {
                Some(SentinelLogin { user: user.as_deref().map(Into::into), password_file: file.clone() })
            }
            (None, None) => None,
            (Some(_), None) => {
                let rule = "a user has a password: redis.sentinel_password_file";
                return Err(contradiction("redis.sentinel_user", rule));
            }
        };
        // The name appears nowhere: a router writes nothing of itself.
        Ok(RedisOptions {
            files: RedisFiles { password: self.password_file.clone(), ca: self.ca_file.clone(), certificate },
            sentinel,
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

fn contradiction(key: &str, rule: &'static str) -> ConfigError {
    ConfigError::Contradiction { key: key.into(), other: "members".into(), rule }
}
