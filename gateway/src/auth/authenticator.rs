//! Tokens, from text to claims. Verifying never waits; a key that must be fetched first is said so.

use std::{sync::Arc, time::SystemTime};

use arc_swap::ArcSwap;
use futures_util::future::{join_all, pending};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use super::{
    Algorithm, Claims, TokenError,
    claims::Rules,
    key_set::{FETCH_TIMEOUT, KeySet, Pace, Source},
    keys::{Key, from_jwks},
    token::Token,
};
use crate::config::{AuthConfig, ConfigError, Empty, JwtKey, KeyProblem};

/// Verifies tokens with the configured keys. Shared by all threads.
#[derive(Debug)]
pub(crate) struct Authenticator {
    issuers: ArcSwap<Vec<Issuer>>,
    /// Others were put in their place.
    replaced: Notify,
    /// Reads of key sets run here.
    tasks: TaskTracker,
    /// For tokens of open connections that wait for a key, in bytes.
    room: Arc<Semaphore>,
}

/// Tokens that wait for a key, all together: 4,000 of 1 KiB, for the 5 s that a read may take.
const WAITING_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The outcome of [`Authenticator::verify`].
#[derive(Debug)]
#[must_use]
pub(crate) enum Verdict {
    Valid(Claims),
    Invalid(TokenError),
    /// A key that is not here may be there by now: await [`Authenticator::fetch`], and verify again.
    NeedsKeys(KeyFetch),
}

/// A read of a key set that is worth waiting for.
#[derive(Debug)]
#[must_use]
pub(crate) struct KeyFetch {
    set: Arc<KeySet>,
    read: u64,
}

/// One `[[auth.jwt]]`.
#[derive(Debug)]
struct Issuer {
    keys: Keys,
    rules: Rules,
}

#[derive(Debug)]
enum Keys {
    One(Algorithm, Key),
    Set(Arc<KeySet>),
}

impl Authenticator {
    /// With keys from a loaded configuration. Reads key set files, but fetches nothing: see
    /// [`keep_fresh`](Self::keep_fresh). `tasks` is what drain awaits; a read in it takes at most 5 s.
    pub(crate) fn new(config: &AuthConfig, tasks: TaskTracker) -> Result<Self, ConfigError> {
        let issuers = ArcSwap::from_pointee(issuers(config, &[])?);
        Ok(Self {
            issuers,
            replaced: Notify::new(),
            tasks,
            room: Arc::new(Semaphore::new(WAITING_BYTES_MAX)),
        })
    }

    /// From now on the keys of this configuration and no others. Key sets at an address that was known keep their keys
    /// until they have been read again.
    pub(crate) fn replace(&self, config: &AuthConfig) -> Result<(), ConfigError> {
        let issuers = issuers(config, &self.issuers.load())?;
        self.issuers.store(Arc::new(issuers));
        self.replaced.notify_one();
        Ok(())
    }

    /// Never blocks, and may be called by reactor threads. Cost: the signature, 5 µs (HS256) to 60 µs (ES256).
    pub(crate) fn verify(&self, token: &str, now: SystemTime) -> Verdict {
        let token = match Token::parse(token) {
            Ok(token) => token,
            Err(error) => return Verdict::Invalid(error),
        };
        // The error that says most: claims of a signed token, then a signature, then no key at all.
        let mut refusal = None;
        let mut tried = false;
        let issuers = self.issuers.load();
        let of_algorithm = || issuers.iter().filter(|issuer| issuer.keys.algorithm() == token.algorithm);
        for issuer in of_algorithm() {
            let (signed, candidates) = issuer.keys.try_all(&token);
            tried |= candidates;
            if !signed {
                continue;
            }
            match token.payload().and_then(|payload| Claims::check(&payload, &issuer.rules, now)) {
                Ok(claims) => return Verdict::Valid(claims),
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        if let Some(error) = refusal {
            return Verdict::Invalid(error);
        }
        if let Some(fetch) = of_algorithm().find_map(|issuer| issuer.keys.fetch_for(&token, now)) {
            return Verdict::NeedsKeys(fetch);
        }
        Verdict::Invalid(match tried {
            true => TokenError::Signature,
            false if token.key_id.is_none() && of_algorithm().any(|it| it.keys.need_id()) => {
                TokenError::Malformed("its header has no kid, and the keys here have ids")
            }
            false if of_algorithm().next().is_none() => TokenError::Algorithm,
            false => TokenError::UnknownKey,
        })
    }

    /// Room for a token that an open connection has wait for a key; `None` when as many bytes wait as may.
    pub(crate) fn room_for(&self, token: &str) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(token.len()).ok()?;
        Arc::clone(&self.room).try_acquire_many_owned(bytes).ok()
    }

    /// Waits until the keys were read, well or not. Any number of callers share one read.
    pub(crate) async fn fetch(&self, fetch: KeyFetch) {
        fetch.set.read(fetch.read, &self.tasks).await;
    }

    /// Verifies, and fetches keys where that may help. For callers that may wait.
    pub(crate) async fn authenticate(&self, token: &str) -> Result<Claims, TokenError> {
        // Every fetch is of another set, or the least interval between two has passed meanwhile.
        for _ in 0..=self.issuers.load().len() {
            match self.verify(token, SystemTime::now()) {
                Verdict::Valid(claims) => return Ok(claims),
                Verdict::Invalid(error) => return Err(error),
                Verdict::NeedsKeys(fetch) => self.fetch(fetch).await,
            }
        }
        Err(TokenError::UnknownKey)
    }

    /// Reads the key sets now and at every refresh, and never returns. To be spawned once, next to the server.
    pub(crate) async fn keep_fresh(&self) {
        loop {
            let issuers = self.issuers.load_full();
            let sets = issuers.iter().filter_map(|issuer| match &issuer.keys {
                Keys::Set(set) => Some(Arc::clone(set).keep_fresh(&self.tasks)),
                Keys::One(..) => None,
            });
            let fresh = async {
                join_all(sets).await;
                pending::<()>().await;
            };
            tokio::select! { () = self.replaced.notified() => {}, () = fresh => {} }
        }
    }
}

/// What the configuration has now; `before` is what was there.
fn issuers(config: &AuthConfig, before: &[Issuer]) -> Result<Vec<Issuer>, ConfigError> {
    let keys = config.jwt.iter().enumerate();
    keys.map(|(index, key)| Ok(Issuer { keys: Keys::new(index, key, before)?, rules: Rules::new(key) }))
        .collect()
}

impl Keys {
    fn new(index: usize, entry: &JwtKey, before: &[Issuer]) -> Result<Self, ConfigError> {
        let at = |name: &str| format!("auth.jwt[{index}].{name}").into();
        let algorithm = entry.algorithm.ok_or_else(|| ConfigError::Missing {
            key: at("algorithm"),
            origin: crate::config::Origin::Default,
        })?;
        let unusable = |name, path: &Option<std::path::PathBuf>, problem: KeyProblem| ConfigError::Unusable {
            key: at(name),
            path: path.clone(),
            problem: problem.into(),
        };
        let id = entry.kid.clone();
        if let Some(secret) = &entry.secret {
            let key = Key::from_secret(secret.expose(), id);
            return key
                .map(|key| Self::One(algorithm, key))
                .map_err(|problem| unusable("secret", &entry.secret_file, problem));
        }
        if let Some(pem) = &entry.public_key {
            let key = Key::from_pem(algorithm, pem, id);
            return key
                .map(|key| Self::One(algorithm, key))
                .map_err(|problem| unusable("public_key", &entry.public_key_file, problem));
        }
        let pace = Pace { refresh: entry.jwks_refresh, min_refetch: entry.jwks_min_refetch };
        if let Some(path) = &entry.jwks_file {
            let json = std::fs::read(path).map_err(|source| ConfigError::KeyFile {
                key: at("jwks_file"),
                path: path.clone(),
                source,
            })?;
            let keys = from_jwks(algorithm, &json)
                .map_err(|problem| unusable("jwks_file", &entry.jwks_file, problem))?;
            let source = Source::File(path.clone());
            return Ok(Self::Set(Arc::new(KeySet::new(algorithm, source, pace, keys.into()))));
        }
        let Some(address) = &entry.jwks_url else {
            return Err(ConfigError::Unusable { key: at("secret"), path: None, problem: Empty.into() });
        };
        if address.url().scheme() == "http" {
            tracing::warn!(
                index,
                "a JWKS is fetched without TLS: whoever is on the way can replace its keys"
            );
        }
        let source = Source::Url { url: address.url().clone(), client: client()? };
        let known = before.iter().find_map(|issuer| match &issuer.keys {
            Self::Set(set) => set.keys_from(algorithm, address.url()),
            Self::One(..) => None,
        });
        Ok(Self::Set(Arc::new(KeySet::new(algorithm, source, pace, known.unwrap_or_default()))))
    }

    fn algorithm(&self) -> Algorithm {
        match self {
            Self::One(algorithm, _) => *algorithm,
            Self::Set(set) => set.algorithm(),
        }
    }

    /// Whether a token must name its key.
    fn need_id(&self) -> bool {
        match self {
            Self::One(_, key) => key.has_id(),
            Self::Set(set) => set.snapshot().keys.iter().any(Key::has_id),
        }
    }

    /// Whether one of these keys signed the token, and whether one could have.
    fn try_all(&self, token: &Token<'_>) -> (bool, bool) {
        let try_in = |keys: &[Key]| {
            let mut candidates = keys.iter().filter(|key| key.is_candidate(token)).peekable();
            let any = candidates.peek().is_some();
            (candidates.any(|key| key.signed(token)), any)
        };
        match self {
            Self::One(_, key) => try_in(std::slice::from_ref(key)),
            // In a set with ids a token says which key it means: to try all would cost a signature for each of them.
            Self::Set(set) if token.key_id.is_none() && set.snapshot().keys.iter().any(Key::has_id) => {
                (false, false)
            }
            Self::Set(set) => try_in(&set.snapshot().keys),
        }
    }

    /// A read that may bring the token's key. Not when the token names a key that is here: its signature is
    /// wrong, and reading the key again would not mend it.
    fn fetch_for(&self, token: &Token<'_>, now: SystemTime) -> Option<KeyFetch> {
        let Self::Set(set) = self else { return None };
        let keys = &set.snapshot().keys;
        let is_here = keys.iter().any(|key| key.is_named_by(token));
        if is_here || (token.key_id.is_none() && keys.iter().any(Key::has_id)) {
            return None;
        }
        set.next_read(now).map(|read| KeyFetch { set: Arc::clone(set), read })
    }
}

/// No redirects: where keys come from is said in the configuration. No proxy from the environment, which is read
/// in `config` only.
fn client() -> Result<reqwest::Client, ConfigError> {
    reqwest::Client::builder()
        .timeout(FETCH_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| ConfigError::Unusable {
            key: "auth.jwt.jwks_url".into(),
            path: None,
            problem: error.into(),
        })
}
