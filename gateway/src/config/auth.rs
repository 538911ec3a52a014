//! The section about who may do what: origins, token keys, API keys, and the files their secrets are in.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tidegate_ops::{choice, section};

use super::{
    AppId, AppProblem, ConfigError, List, Node, Origin, OriginRule, Pattern, Secret, Setting, Sha256,
    read_secret,
};

section! {
    /// Who may connect, subscribe, publish and administrate.
    AuthConfig {
        /// Web pages that may connect: `https://app.example.org`, `https://*.example.org` (any depth of
        /// subdomain, not the domain itself), `same-origin` (the page's host is the request's `Host`), `localhost` (pages
        /// of this machine on any port), `null` and `file://` (pages without a host, as files are), `*`.
        /// Clients that send no `Origin` are not browsers and are not held to it. An empty list keeps every
        /// web page out.
        allowed_origins: Vec<OriginRule> = vec![OriginRule::SameOrigin];
        /// Keys that tokens may be signed with.
        jwt: List<JwtKey> = List::default();
        /// Keys for the REST API.
        api_keys: List<ApiKeyEntry> = List::default();
    }
}

choice! {
    /// How a token is signed (RFC 7518 section 3.1, RFC 8037). `none` is not among them.
    Algorithm, r#""HS256", "RS256", "ES256" or "EdDSA""#, "a list of algorithms", {
        Hs256 = "HS256",
        Rs256 = "RS256",
        Es256 = "ES256",
        EdDsa = "EdDSA",
    }
}

choice! {
    /// What an API key may do.
    Scope, r#""publish", "read" or "admin""#, r#"a list of "publish", "read", "admin""#, {
        Publish = "publish",
        /// Channels, history, presence, nodes.
        Read = "read",
        /// Disconnect clients.
        Admin = "admin",
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
        /// The app whose channels the tokens are for; the default app unless given.
        app: Option<AppId> = None;
        /// Whether a client of Centrifugo's protocol is subscribed by the server to what the claim `channels` names, patterns
        /// aside, as Centrifugo does. It stays what a client may subscribe to by itself.
        subscribe_channels: bool = false;
    }
}

section! {
    /// A key for the REST API. Exactly one of `key`, `key_file` and `key_sha256` is given.
    ApiKeyEntry {
        /// Names the key in logs. Required.
        name: Box<str> = "".into(), shown "none";
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
        /// The app in which it may do it; the default app unless given.
        app: Option<AppId> = None;
        /// Requests per second with it on one node, with one second's worth at once; more are answered 429 with
        /// `Retry-After`. 0: no limit.
        requests_per_second: u32 = 0;
    }
}

/// What is wrong with a key or a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyProblem {
    /// RFC 7518 section 3.2: a key of the size of the hash output or larger must be used.
    #[error("HS256 needs a secret of at least 32 bytes")]
    SecretShort,
    /// 16 random characters of an alphabet of 64 are 96 bits.
    #[error("an API key has at least 16 characters")]
    ApiKeyShort,
    #[error("it is a private key; only the public key belongs here")]
    Private,
    /// Public keys are not secret: whoever reads one could sign tokens with it.
    #[error("it is a PEM key; HS256 needs a secret")]
    PemSecret,
    #[error("it is not a PEM public key for the algorithm of this entry")]
    Pem,
    #[error("it is not a JSON Web Key Set with a key for the algorithm of this entry")]
    Jwks,
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
    pub(crate) fn finish(&mut self, root: &Node<'_>) -> Result<(), ConfigError> {
        for (index, key) in self.jwt.0.iter_mut().enumerate() {
            key.finish(&Place::new(root, "jwt", index))?;
        }
        for (index, key) in self.api_keys.0.iter_mut().enumerate() {
            key.finish(&Place::new(root, "api_keys", index))?;
        }
        let mut names: Vec<_> = self.api_keys.iter().map(|key| &key.name).collect();
        names.sort();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(ConfigError::Duplicate { key: "auth.api_keys", name: pair[0].clone() }),
            None => Ok(()),
        }
    }
}

impl AuthConfig {
    /// Finds the app of each key among those that there are. The default app is the one of keys that name none.
    pub(crate) fn finish_apps(
        &mut self,
        default: Option<&AppId>,
        is_there: impl Fn(&AppId) -> bool,
    ) -> Result<(), ConfigError> {
        let tokens = self.jwt.0.iter_mut().map(|key| ("jwt", &mut key.app)).enumerate();
        let keys = self.api_keys.0.iter_mut().map(|key| ("api_keys", &mut key.app)).enumerate();
        for (index, (list, app)) in tokens.chain(keys) {
            match app {
                Some(id) if Some(&*id) == default => *app = None,
                Some(id) if !is_there(id) => {
                    return Err(ConfigError::Unusable {
                        key: format!("auth.{list}[{index}].app").into(),
                        path: None,
                        problem: AppProblem::Unknown.into(),
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl JwtKey {
    fn finish(&mut self, place: &Place) -> Result<(), ConfigError> {
        let algorithm = self.algorithm.ok_or_else(|| place.missing("algorithm"))?;
        place.one_of(
            "secret, secret_file, public_key, public_key_file, jwks_file, jwks_url",
            &[
                self.secret.is_some(),
                self.secret_file.is_some(),
                self.public_key.is_some(),
                self.public_key_file.is_some(),
                self.jwks_file.is_some(),
                self.jwks_url.is_some(),
            ],
        )?;
        self.check_kind(place, algorithm)?;
        self.check_pace(place)?;
        if let Some(path) = &self.secret_file {
            self.secret = Some(place.read("secret_file", path)?);
        }
        if let Some(path) = &self.public_key_file {
            let text = String::from_utf8(place.read("public_key_file", path)?.expose().to_vec())
                .map_err(|_| place.unusable("public_key_file", Some(path), KeyProblem::Pem))?;
            self.public_key = Some(text.into());
        }
        match &self.secret {
            Some(secret) if secret.expose().len() < HS256_SECRET_BYTES_MIN => {
                Err(place.unusable("secret", self.secret_file.as_ref(), KeyProblem::SecretShort))
            }
            _ => Ok(()),
        }
    }

    /// A secret is for HS256 and a public key is not: the confusion of the two is how tokens get forged.
    fn check_kind(&self, place: &Place, algorithm: Algorithm) -> Result<(), ConfigError> {
        let symmetric = algorithm == Algorithm::Hs256;
        let (other, rule) = match () {
            () if !symmetric && self.secret.is_some() => ("secret", "a secret is for HS256 only"),
            () if !symmetric && self.secret_file.is_some() => ("secret_file", "a secret is for HS256 only"),
            () if symmetric && self.public_key.is_some() => ("public_key", "HS256 has a secret"),
            () if symmetric && self.public_key_file.is_some() => ("public_key_file", "HS256 has a secret"),
            () if symmetric && self.jwks_url.is_some() => {
                ("jwks_url", "a secret must not be served over HTTP")
            }
            () => return Ok(()),
        };
        Err(place.contradiction("algorithm", other, rule))
    }

    /// The least interval is what protects the issuer, so it cannot be switched off.
    fn check_pace(&self, place: &Place) -> Result<(), ConfigError> {
        if self.jwks_min_refetch < JWKS_MIN_REFETCH_MIN || self.jwks_refresh < self.jwks_min_refetch {
            let rule = "jwks_min_refetch is at least 1s, and jwks_refresh at least jwks_min_refetch";
            return Err(place.contradiction("jwks_min_refetch", "jwks_refresh", rule));
        }
        Ok(())
    }
}

impl ApiKeyEntry {
    fn finish(&mut self, place: &Place) -> Result<(), ConfigError> {
        if self.name.is_empty() {
            return Err(place.missing("name"));
        }
        let given = [self.key.is_some(), self.key_file.is_some(), self.key_sha256.is_some()];
        place.one_of("key, key_file, key_sha256", &given)?;
        if let Some(path) = &self.key_file {
            self.key = Some(place.read("key_file", path)?);
        }
        match &self.key {
            Some(key) if key.expose().len() < API_KEY_BYTES_MIN => {
                Err(place.unusable("key", self.key_file.as_ref(), KeyProblem::ApiKeyShort))
            }
            _ => Ok(()),
        }
    }
}

/// RFC 7518 section 3.2.
const HS256_SECRET_BYTES_MIN: usize = 32;
/// See [`KeyProblem::ApiKeyShort`].
const API_KEY_BYTES_MIN: usize = 16;
const JWKS_MIN_REFETCH_MIN: Duration = Duration::from_secs(1);

/// An entry of one of the lists, for errors.
struct Place {
    /// `auth.jwt[0]`
    key: String,
    origin: Origin,
}

impl Place {
    fn new(root: &Node<'_>, list: &str, index: usize) -> Self {
        let origin = root
            .table()
            .ok()
            .and_then(|table| root.child("auth", table.get("auth")?).table().ok())
            .and_then(|auth| auth.get(list).copied())
            .and_then(|list| root.child("list", list).list().ok())
            .and_then(|items| items.get(index))
            .map_or(Origin::Default, |item| root.item(index, item).origin());
        Self { key: format!("auth.{list}[{index}]"), origin }
    }

    fn at(&self, name: &str) -> Box<str> {
        format!("{}.{name}", self.key).into()
    }

    fn missing(&self, name: &str) -> ConfigError {
        ConfigError::Missing { key: self.at(name), origin: self.origin.clone() }
    }

    fn contradiction(&self, name: &str, other: &str, rule: &'static str) -> ConfigError {
        ConfigError::Contradiction { key: self.at(name), other: self.at(other), rule }
    }

    fn unusable(&self, name: &str, path: Option<&PathBuf>, problem: KeyProblem) -> ConfigError {
        ConfigError::Unusable { key: self.at(name), path: path.cloned(), problem: problem.into() }
    }

    fn one_of(&self, one_of: &'static str, given: &[bool]) -> Result<(), ConfigError> {
        match given.iter().filter(|given| **given).count() {
            1 => Ok(()),
            given => Err(ConfigError::OneOf {
                key: self.key.as_str().into(),
                origin: self.origin.clone(),
                one_of,
                given,
            }),
        }
    }

    fn read(&self, name: &str, path: &Path) -> Result<Secret, ConfigError> {
        read_secret(&self.at(name), path)
    }
}
