//! TEMPORARY stand-in for `auth/`, replaced at merge: the types and signatures that `http` calls.

use http::StatusCode;
use tidegate_backplane::Channel;

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    Publish,
    Read,
    Admin,
}

/// One key: its scopes, and the prefix of the channels they hold for.
#[derive(Debug, Clone)]
pub struct ApiKey {
    pub secret: Box<str>,
    pub scopes: Vec<Scope>,
    pub prefix: Box<str>,
}

/// All keys of this node.
#[derive(Debug, Clone, Default)]
pub struct ApiKeys(pub Vec<ApiKey>);

/// Why a key does not open the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ApiKeyError {
    #[error("an API key is required: authorization: Bearer KEY")]
    Missing,
    #[error("the API key is not known")]
    Unknown,
    #[error("the API key lacks the scope {0:?}")]
    Scope(Scope),
    #[error("the API key may not use this channel")]
    Channel,
}

impl ApiKeyError {
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Missing | Self::Unknown => StatusCode::UNAUTHORIZED,
            Self::Scope(_) | Self::Channel => StatusCode::FORBIDDEN,
        }
    }
}

impl ApiKey {
    pub fn covers(&self, channel: &Channel) -> bool {
        channel.as_str().starts_with(&*self.prefix)
    }
}

impl ApiKeys {
    pub fn authorize(
        &self,
        bearer: Option<&str>,
        scope: Scope,
        channel: Option<&Channel>,
    ) -> Result<&ApiKey, ApiKeyError> {
        let presented = bearer.filter(|key| !key.is_empty()).ok_or(ApiKeyError::Missing)?;
        let key = self.0.iter().find(|key| &*key.secret == presented).ok_or(ApiKeyError::Unknown)?;
        match channel {
            _ if !key.scopes.contains(&scope) => Err(ApiKeyError::Scope(scope)),
            Some(channel) if !key.covers(channel) => Err(ApiKeyError::Channel),
            _ => Ok(key),
        }
    }
}

/// The credentials of the Bearer scheme.
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, credentials) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| credentials.trim())
}

/// Which web origins may call.
#[derive(Debug, Clone, Default)]
pub struct Origins(pub Vec<Box<str>>);

impl Origins {
    pub fn allows(&self, origin: Option<&str>, _host: &str) -> bool {
        origin.is_none_or(|origin| self.0.iter().any(|allowed| **allowed == *origin))
    }
}
