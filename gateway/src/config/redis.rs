//! Which backplane, and the section about Redis.

use std::{path::PathBuf, time::Duration};

use tidegate_backplane::{LEASE, Prefix, RedisFiles, RedisOptions, RedisUrl, SentinelLogin};
use tidegate_ops::section;

use super::{Config, ConfigError, Secret, Setting, read_secret};

section! {
    /// How a node takes part in a deployment whose `backplane` is Redis.
    Redis {
        /// Begins every key and every pub/sub channel: it keeps deployments on one Redis apart. 1 to 64 letters,
        /// digits and `_-.`.
        prefix: RedisPrefix = RedisPrefix::default();
        /// File with the password, for a `backplane` without one: `redis://user@host` or `redis://host`. Line ends
        /// at its end are cut. It is read again when a login was refused, as are the files of certificates.
        password_file: Option<PathBuf> = None;
        /// PEM file with the certificates of a private authority, for URLs over TLS. Without it, those that the
        /// system trusts.
        ca_file: Option<PathBuf> = None;
        /// PEM file with the certificate that this node shows to Redis, and those between it and the authority, for
        /// servers that ask for one. Needs `key_file`.
        cert_file: Option<PathBuf> = None;
        /// PEM file with the key of `cert_file`.
        key_file: Option<PathBuf> = None;
        /// Name of the user at the Sentinels. Without it, the default user.
        sentinel_user: Option<Box<str>> = None;
        /// File with the password at the Sentinels. Without it, they are told the one of Redis where they ask for one.
        sentinel_password_file: Option<PathBuf> = None;
        /// For so long a node that is not heard of counts as living: then its connections are no longer present, and
        /// it is not in the list of nodes. At least 1 s.
        lease: Duration = LEASE;
        /// A publication with history or an idempotency key is accepted when so many replicas of its Redis server
        /// have it, and else, after 500 ms, answered as `backplane-unconfirmed`. With 0, a failover may take back
        /// what was accepted a moment before. With as many as there are, none can; but then all must be up. At least
        /// one more than this is usual.
        replicas: Replicas = Replicas::default();
    }
}

/// What carries publications between nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackplaneUrl {
    /// This process alone.
    Memory,
    Redis(RedisAddress),
}

/// The URL of the servers as it was given. Its parts are looked at when the whole configuration is there: the password
/// may be in a file. Never shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisAddress(Secret);

/// What the names of a deployment begin with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisPrefix(Prefix);

/// How many replicas must have what is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replicas(u8);

const SCHEMES: [&str; 7] =
    ["redis", "rediss", "redis-sentinel", "rediss-sentinel", "redis-cluster", "rediss-cluster", "redis+unix"];

/// The lease is renewed ten times in its time; a server that is slow for a moment must not end it.
const LEASE_MIN: Duration = Duration::from_secs(1);

impl std::fmt::Display for RedisPrefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl RedisAddress {
    /// The URL. Whoever calls this keeps it out of logs and errors.
    pub fn expose(&self) -> std::borrow::Cow<'_, str> {
        // It was made from a text.
        String::from_utf8_lossy(self.0.expose())
    }
}

impl Setting for BackplaneUrl {
    const EXPECTED: &'static str = r#""memory", or a URL such as "redis://h:6379", "redis-sentinel://s1,s2/NAME" or "redis-cluster://a,b""#;

    fn from_text(text: &str) -> Option<Self> {
        if text == "memory" {
            return Some(Self::Memory);
        }
        let (scheme, _) = text.split_once("://")?;
        SCHEMES.contains(&scheme).then(|| Self::Redis(RedisAddress(Secret::new(text.as_bytes()))))
    }

    fn show(&self) -> String {
        match self {
            Self::Memory => "\"memory\"".to_owned(),
            Self::Redis(_) => "(hidden)".to_owned(),
        }
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

impl Setting for Replicas {
    const EXPECTED: &'static str = "a whole number from 0 to 255";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }

    fn from_integer(integer: i64) -> Option<Self> {
        integer.try_into().ok().map(Self)
    }

    fn show(&self) -> String {
        self.0.to_string()
    }
}

impl Redis {
    /// What the backplane is told. Reads the file with the password.
    pub(crate) fn options(
        &self,
        address: &RedisAddress,
        config: &Config,
    ) -> Result<RedisOptions, ConfigError> {
        let url = self.url(address)?;
        if self.ca_file.is_some() && !url.is_tls() {
            return Err(contradiction("redis.ca_file", "the URL is not one over TLS, such as rediss://"));
        }
        if self.lease < LEASE_MIN {
            return Err(ConfigError::Forbidden {
                key: "redis.lease".into(),
                value: self.lease.show().into(),
                rule: "the least is \"1s\"",
            });
        }
        let certificate = match (&self.cert_file, &self.key_file) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some([certificate.clone(), key.clone()]),
            _ => {
                return Err(contradiction("redis.cert_file", "redis.key_file belongs to it, and it to that"));
            }
        };
        if certificate.is_some() && !url.is_tls() {
            return Err(contradiction("redis.cert_file", "the URL is not one over TLS, such as rediss://"));
        }
        let sentinel = self.sentinel_password_file.clone().map(|password_file| SentinelLogin {
            user: self.sentinel_user.as_deref().map(Into::into),
            password_file,
        });
        if sentinel.is_none() && self.sentinel_user.is_some() {
            let rule = "a user has a password: redis.sentinel_password_file";
            return Err(contradiction("redis.sentinel_user", rule));
        }
        let password = self.password_file.clone();
        Ok(RedisOptions {
            files: RedisFiles { password, ca: self.ca_file.clone(), certificate },
            sentinel,
            prefix: self.prefix.0.clone(),
            lease: self.lease,
            replicas: self.replicas.0,
            ..RedisOptions::new(url, &config.node)
        })
    }

    fn url(&self, address: &RedisAddress) -> Result<RedisUrl, ConfigError> {
        let text = address.expose();
        let text = match &self.password_file {
            None => text.into_owned(),
            Some(path) => {
                let password = read_secret("redis.password_file", path)?;
                password
                    .in_url(&text)
                    .ok_or_else(|| contradiction("redis.password_file", "the URL has a password itself"))?
            }
        };
        text.parse::<RedisUrl>().map_err(|problem| ConfigError::Unusable {
            key: "backplane".into(),
            path: None,
            problem: problem.into(),
        })
    }
}

fn contradiction(key: &str, rule: &'static str) -> ConfigError {
    ConfigError::Contradiction { key: key.into(), other: "backplane".into(), rule }
}
