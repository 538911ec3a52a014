//! The section about who may do what: origins, token keys, API keys, and the files their secrets are in.

use std::{path::PathBuf, time::Duration};

use super::{
    error::{ConfigError, KeyProblem, Origin},
    section::{List, section},
    setting::{Secret, Setting, Sha256},
};
use crate::auth::{Algorithm, OriginRule, Pattern, Scope};

section! {
    /// Who may connect, subscribe, publish and administrate.
    AuthConfig {
        /// Web pages that may connect: `https://app.example.org`, `https://*.example.org` (any depth of
        /// subdomain, not the domain itself), `same-origin` (the page's host is the request's `Host`), `*`.
        /// Clients that send no `Origin` are not browsers and are not held to it. An empty list keeps every
        /// web page out.
        allowed_origins: Vec<OriginRule> = vec![OriginRule::SameOrigin];
        /// Keys that tokens may be signed with.
        jwt: List<JwtKey> = List::default();
        /// Keys for the REST API.
        api_keys: List<ApiKeyEntry> = List::default();
    }
}

section! {
    /// One key that tokens may be signed with, and what its tokens must say. Exactly one of `secret`,
    /// `secret_file`, `public_key`, `public_key_file`, `jwks_file` and `jwks_url` is given.
    JwtKey {
        /// The only algorithm that is accepted with this key. Required.
        algorithm: Option<Algorithm> = None;
        /// The secret of HS256, at least 32 bytes. Prefer `secret_file`.
        secret: Option<Secret> = None;
        /// File with the secret of HS256; line ends at its end are cut.
        secret_file: Option<PathBuf> = None;
        /// PEM public key of RS256, ES256 or EdDSA.
        public_key: Option<Box<str>> = None;
        /// File with the PEM public key.
        public_key_file: Option<PathBuf> = None;
        /// File with a JSON Web Key Set (RFC 7517); read again every `jwks_refresh`.
        jwks_file: Option<PathBuf> = None;
        /// `https` address of a JSON Web Key Set. `http` is accepted inside a trusted network only.
        jwks_url: Option<JwksUrl> = None;
        /// Accept only tokens whose header has this `kid`. With a key set, the set's own ids apply.
        kid: Option<Box<str>> = None;
        /// Accept only tokens whose `iss` is this.
        issuer: Option<Box<str>> = None;
        /// Accept only tokens whose `aud` is or contains this.
        audience: Option<Box<str>> = None;
        /// Refuse tokens without `exp`.
        require_exp: bool = true;
        /// How far the clocks of issuer and gateway may differ, for `exp` and `nbf`.
        leeway: Duration = Duration::from_secs(5);
        /// How often a key set is read again.
        jwks_refresh: Duration = Duration::from_secs(300);
        /// Least time between two reads of a key set, whatever tokens come: unknown key ids cannot make
        /// the gateway hammer the issuer.
        jwks_min_refetch: Duration = Duration::from_secs(10);
    }
}

section! {
    /// A key for the REST API. Exactly one of `key`, `key_file` and `key_sha256` is given.
    ApiKeyEntry {
        /// Names the key in logs. Required.
        name: Box<str> = "".into();
        /// The key, at least 16 characters. Prefer `key_file` or `key_sha256`.
        key: Option<Secret> = None;
        /// File with the key; line ends at its end are cut.
        key_file: Option<PathBuf> = None;
        /// SHA-256 digest of the key, in hexadecimal digits; the key itself is then nowhere on the server.
        key_sha256: Option<Sha256> = None;
        /// What the key may do: `publish`, `read` (channels, history, presence, nodes), `admin` (disconnect).
        scopes: Vec<Scope> = vec![Scope::Publish, Scope::Read];
        /// Patterns of the channels it may do it with; `*` stands for any run of characters.
        channels: Vec<Pattern> = vec![Pattern::any()];
    }
}

/// An `http` or `https` address of a key set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwksUrl(reqwest::Url);

impl JwksUrl {
    pub fn url(&self) -> &reqwest::Url {
        &self.0
    }
}

impl Setting for JwksUrl {
    const EXPECTED: &'static str = r#"an address such as "https://id.example.org/.well-known/jwks.json""#;

    fn from_text(text: &str) -> Option<Self> {
        let url = reqwest::Url::parse(text).ok()?;
        (matches!(url.scheme(), "http" | "https") && url.has_host()).then_some(Self(url))
    }

    fn show(&self) -> String {
        format!("\"{}\"", self.0)
    }
}

impl AuthConfig {
    /// Checks what a single value cannot tell and reads the files. Afterwards `secret`, `public_key` and `key`
    /// hold what `secret_file`, `public_key_file` and `key_file` name.
    pub(crate) fn finish(&mut self, origin: &Origin) -> Result<(), ConfigError> {
        for (index, key) in self.jwt.0.iter_mut().enumerate() {
            key.finish(&format!("auth.jwt[{index}]"), origin)?;
        }
        for (index, key) in self.api_keys.0.iter_mut().enumerate() {
            key.finish(&format!("auth.api_keys[{index}]"), origin)?;
        }
        let mut names: Vec<_> = self.api_keys.iter().map(|key| &key.name).collect();
        names.sort();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(ConfigError::Duplicate { key: "auth.api_keys", name: pair[0].clone() }),
            None => Ok(()),
        }
    }
}

impl JwtKey {
    fn finish(&mut self, key: &str, origin: &Origin) -> Result<(), ConfigError> {
        let algorithm = self.algorithm.ok_or_else(|| missing(key, "algorithm", origin))?;
        let given = [
            self.secret.is_some(),
            self.secret_file.is_some(),
            self.public_key.is_some(),
            self.public_key_file.is_some(),
            self.jwks_file.is_some(),
            self.jwks_url.is_some(),
        ];
        one_of(key, "secret, secret_file, public_key, public_key_file, jwks_file, jwks_url", &given, origin)?;
        self.check_kind(key, algorithm)?;
        if let Some(path) = &self.secret_file {
            self.secret = Some(Secret::new(&read_key(&format!("{key}.secret_file"), path)?));
        }
        if let Some(path) = &self.public_key_file {
            self.public_key = Some(read_key(&format!("{key}.public_key_file"), path)?);
        }
        match &self.secret {
            Some(secret) if secret.expose().len() < HS256_SECRET_BYTES_MIN => Err(ConfigError::KeyMaterial {
                key: format!("{key}.secret").into(),
                path: self.secret_file.clone(),
                problem: KeyProblem::SecretShort,
            }),
            _ => Ok(()),
        }
    }

    /// A secret is for HS256 and a public key is not: the confusion of the two is how tokens get forged.
    fn check_kind(&self, key: &str, algorithm: Algorithm) -> Result<(), ConfigError> {
        let symmetric = algorithm == Algorithm::Hs256;
        let rule = match () {
            () if !symmetric && (self.secret.is_some() || self.secret_file.is_some()) => "a secret is for HS256 only",
            () if symmetric && (self.public_key.is_some() || self.public_key_file.is_some()) => {
                "HS256 has a secret, not a public key"
            }
            () if symmetric && self.jwks_url.is_some() => "the secret of HS256 must not be served over HTTP",
            () => return Ok(()),
        };
        Err(ConfigError::Contradiction {
            key: format!("{key}.algorithm").into(),
            other: format!("{key} key").into(),
            rule,
        })
    }
}

impl ApiKeyEntry {
    fn finish(&mut self, key: &str, origin: &Origin) -> Result<(), ConfigError> {
        if self.name.is_empty() {
            return Err(missing(key, "name", origin));
        }
        let given = [self.key.is_some(), self.key_file.is_some(), self.key_sha256.is_some()];
        one_of(key, "key, key_file, key_sha256", &given, origin)?;
        if let Some(path) = &self.key_file {
            self.key = Some(Secret::new(&read_key(&format!("{key}.key_file"), path)?));
        }
        match &self.key {
            Some(secret) if secret.expose().len() < API_KEY_BYTES_MIN => Err(ConfigError::KeyMaterial {
                key: format!("{key}.key").into(),
                path: self.key_file.clone(),
                problem: KeyProblem::ApiKeyShort,
            }),
            _ => Ok(()),
        }
    }
}

/// RFC 7518 section 3.2.
const HS256_SECRET_BYTES_MIN: usize = 32;
/// See [`KeyProblem::ApiKeyShort`].
const API_KEY_BYTES_MIN: usize = 16;

fn missing(key: &str, name: &str, origin: &Origin) -> ConfigError {
    ConfigError::Missing { key: format!("{key}.{name}").into(), origin: origin.clone() }
}

fn one_of(key: &str, one_of: &'static str, given: &[bool], origin: &Origin) -> Result<(), ConfigError> {
    match given.iter().filter(|given| **given).count() {
        1 => Ok(()),
        given => Err(ConfigError::OneOf { key: key.into(), origin: origin.clone(), one_of, given }),
    }
}

/// Editors end files with a line end that is no part of the secret.
fn read_key(key: &str, path: &PathBuf) -> Result<Box<str>, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::KeyFile {
        key: key.into(),
        path: path.clone(),
        source,
    })?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(ConfigError::KeyMaterial { key: key.into(), path: Some(path.clone()), problem: KeyProblem::Empty }),
        text => Ok(text.into()),
    }
}
