//! Keys of the REST API: found in constant time, each with scopes, channels and a rate.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use http::StatusCode;
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};
use tidegate_backplane::Channel;
use tidegate_ops::budget::{Rate, SharedBudget};

use super::{Pattern, Scope};
use crate::config::{ApiKeyEntry, AppId, ConfigError, Empty, Sha256};

/// The configured API keys; a reload replaces them all.
#[derive(Debug)]
pub(crate) struct ApiKeys(ArcSwap<Vec<Arc<ApiKey>>>);

/// An API key, as its digest, and what it may do.
#[derive(Debug)]
pub(crate) struct ApiKey {
    /// For logs.
    pub name: Box<str>,
    digest: Sha256,
    scopes: Vec<Scope>,
    channels: Vec<Pattern>,
    app: Option<AppId>,
    rate: Rate,
    requests: SharedBudget,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub(crate) enum ApiKeyError {
    #[error("an API key is required: authorization: Bearer KEY")]
    Missing,
    #[error("the API key is not known")]
    Unknown,
    #[error("the API key lacks the scope {:?}", .0.word())]
    Scope(Scope),
    #[error("the API key may not use this channel")]
    Channel,
    #[error("the API key is of one app, and a connection's name does not say its app: name the user instead")]
    Connection,
    #[error("requests with this API key come faster than it allows")]
    Rate { retry_after: Duration },
}

impl ApiKeys {
    /// With keys from a loaded configuration.
    pub(crate) fn new(entries: &[ApiKeyEntry]) -> Result<Self, ConfigError> {
        Ok(Self(ArcSwap::from_pointee(Self::list(entries)?)))
    }

    /// From now on these and no others.
    pub(crate) fn replace(&self, entries: &[ApiKeyEntry]) -> Result<(), ConfigError> {
        self.0.store(Arc::new(Self::list(entries)?));
        Ok(())
    }

    fn list(entries: &[ApiKeyEntry]) -> Result<Vec<Arc<ApiKey>>, ConfigError> {
        entries.iter().map(|entry| ApiKey::new(entry).map(Arc::new)).collect()
    }

    /// The key of a request, if it has the scope and, where a channel is given, the channel. Without one only the
    /// scope counts: what then names channels asks [`ApiKey::covers`] for each.
    pub(crate) fn authorize(
        &self,
        bearer: Option<&str>,
        scope: Scope,
        channel: Option<&Channel>,
    ) -> Result<Arc<ApiKey>, ApiKeyError> {
        let key = self.identify(bearer)?;
        key.check(scope, channel)?;
        Ok(key)
    }

    /// The key of a request, whatever it may do. The request counts for the rate of the key.
    pub(crate) fn identify(&self, presented: Option<&str>) -> Result<Arc<ApiKey>, ApiKeyError> {
        let presented = presented.filter(|key| !key.is_empty()).ok_or(ApiKeyError::Missing)?;
        let key = self.find(presented).ok_or(ApiKeyError::Unknown)?;
        key.requests.take(key.rate, 1).map_err(|retry_after| ApiKeyError::Rate { retry_after })?;
        Ok(key)
    }

    /// The time it takes tells nothing about the keys: digests are compared, not keys, each as a whole, and all of
    /// them, whichever fits.
    fn find(&self, presented: &str) -> Option<Arc<ApiKey>> {
        let keys = self.0.load();
        let presented = sha256(presented.as_bytes());
        let mut found = Choice::from(0);
        let mut found_at = 0u32;
        for (at, key) in (0u32..).zip(keys.iter()) {
            let same = key.digest.0.ct_eq(&presented.0);
            found_at.conditional_assign(&at, same);
            found |= same;
        }
        bool::from(found).then(|| keys.get(found_at as usize).cloned()).flatten()
    }
}

impl ApiKey {
    fn new(entry: &ApiKeyEntry) -> Result<Self, ConfigError> {
        let digest = match (&entry.key, entry.key_sha256) {
            (Some(key), _) => sha256(key.expose()),
            (None, Some(digest)) => digest,
            (None, None) => {
                return Err(ConfigError::Unusable {
                    key: format!("auth.api_keys of {:?}", entry.name).into(),
                    path: entry.key_file.clone(),
                    problem: Empty.into(),
                });
            }
        };
        Ok(Self {
            name: entry.name.clone(),
            digest,
            scopes: entry.scopes.clone(),
            channels: entry.channels.clone(),
            app: entry.app.clone(),
            rate: Rate::per_second(entry.requests_per_second),
            requests: SharedBudget::default(),
        })
    }

    /// The app in which the key holds, if it is not the default one.
    pub(crate) fn app(&self) -> Option<&AppId> {
        self.app.as_ref()
    }

    /// Whether it has the scope and, where a channel is given, the channel.
    pub(crate) fn check(&self, scope: Scope, channel: Option<&Channel>) -> Result<(), ApiKeyError> {
        let refusal = match channel {
            _ if !self.scopes.contains(&scope) => ApiKeyError::Scope(scope),
            Some(channel) if !self.covers(channel) => ApiKeyError::Channel,
            _ => return Ok(()),
        };
        tracing::debug!(key = %self.name, %refusal, "a request is refused");
        Err(refusal)
    }

    /// Whether the key may use a channel of this name in its app.
    pub(crate) fn covers(&self, channel: &Channel) -> bool {
        self.channels.iter().any(|pattern| pattern.matches(channel.name()))
    }
}

impl ApiKeyError {
    pub(crate) const fn status(self) -> StatusCode {
        match self {
            Self::Missing | Self::Unknown => StatusCode::UNAUTHORIZED,
            Self::Scope(_) | Self::Channel | Self::Connection => StatusCode::FORBIDDEN,
            Self::Rate { .. } => StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

/// The credentials in an `authorization` header of the Bearer scheme (RFC 6750 section 2.1); they may be empty, and are
/// then no good ones. The scheme's case does not matter (RFC 9110 section 11.1).
pub(crate) fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, credentials) = authorization.split_once(' ').unwrap_or((authorization, ""));
    scheme.eq_ignore_ascii_case("bearer").then(|| credentials.trim())
}

fn sha256(text: &[u8]) -> Sha256 {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, text).as_ref());
    Sha256(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Secret};

    fn entry(name: &str, key: &str, scopes: &[Scope], channels: &[&str]) -> ApiKeyEntry {
        ApiKeyEntry {
            name: name.into(),
            key: Some(Secret::new(key.as_bytes())),
            scopes: scopes.to_vec(),
            channels: channels
                .iter()
                .map(|pattern| Pattern::new(pattern).expect("a valid pattern"))
                .collect(),
            ..ApiKeyEntry::default()
        }
    }

    fn keys() -> ApiKeys {
        ApiKeys::new(&[
            entry("all", "all-all-all-all-all", &[Scope::Publish, Scope::Read, Scope::Admin], &["*"]),
            entry("news", "news-news-news-news", &[Scope::Publish], &["news:*", "front"]),
            ApiKeyEntry {
                key: None,
                key_sha256: Some(sha256(b"only-a-digest-here")),
                ..entry("d", "", &[Scope::Read], &["*"])
            },
        ])
        .expect("valid keys")
    }

    fn check(
        bearer: Option<&str>,
        scope: Scope,
        channel: Option<&str>,
        expect: Result<&str, (ApiKeyError, u16)>,
    ) {
        let channel = channel.map(|name| Channel::new(name).expect("a valid channel"));
        let keys = keys();
        let answer = keys.authorize(bearer, scope, channel.as_ref());
        let answer = answer.as_ref().map(|key| &*key.name).map_err(|error| (*error, error.status().as_u16()));
        assert_eq!(answer, expect, "{bearer:?} {scope:?} {channel:?}");
    }

    #[test]
    fn table() {
        use ApiKeyError as E;
        check(None, Scope::Publish, None, Err((E::Missing, 401)));
        check(Some(""), Scope::Publish, None, Err((E::Missing, 401)));
        check(Some("wrong"), Scope::Publish, None, Err((E::Unknown, 401)));
        check(Some("all-all-all-all-al"), Scope::Publish, None, Err((E::Unknown, 401)));
        check(Some("all-all-all-all-all "), Scope::Publish, None, Err((E::Unknown, 401)));
        check(Some("all-all-all-all-all"), Scope::Admin, Some("x"), Ok("all"));
        check(Some("news-news-news-news"), Scope::Publish, Some("news:1"), Ok("news"));
        check(Some("news-news-news-news"), Scope::Publish, Some("front"), Ok("news"));
        check(Some("news-news-news-news"), Scope::Publish, None, Ok("news"));
        check(Some("news-news-news-news"), Scope::Publish, Some("other"), Err((E::Channel, 403)));
        check(Some("news-news-news-news"), Scope::Read, Some("news:1"), Err((E::Scope(Scope::Read), 403)));
        check(Some("only-a-digest-here"), Scope::Read, Some("x"), Ok("d"));
    }

    #[test]
    fn no_keys_no_entry() {
        let none = ApiKeys::new(&Config::default().auth.api_keys).expect("no keys");
        assert_eq!(none.authorize(Some("dev-key"), Scope::Read, None).err(), Some(ApiKeyError::Unknown));
        assert!(none.authorize(Some(""), Scope::Read, None).is_err());
    }

    #[test]
    fn dev_key_has_every_scope() {
        let dev = ApiKeys::new(&Config::dev().auth.api_keys).expect("the dev key");
        for scope in [Scope::Publish, Scope::Read, Scope::Admin] {
            assert!(dev.authorize(Some("dev-key"), scope, None).is_ok());
        }
    }

    #[test]
    fn debug_shows_no_key() {
        let shown = format!("{:?} {:?}", keys(), entry("n", "a-secret-nobody-sees", &[], &[]));
        assert!(!shown.contains("a-secret-nobody-sees"), "{shown}");
        let digest = sha256(b"all-all-all-all-all").0;
        assert!(!shown.contains(&format!("{}, {}", digest[0], digest[1])), "{shown}");
    }

    #[test]
    fn bearer_scheme() {
        for (header, expect) in [
            ("Bearer k", Some("k")),
            ("bearer k", Some("k")),
            ("BEARER   k ", Some("k")),
            ("Basic k", None),
            ("Bearer", Some("")),
            ("Bearerk", None),
            ("", None),
        ] {
            assert_eq!(bearer(header), expect, "{header:?}");
        }
    }
}
