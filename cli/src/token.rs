//! `tidegate token`: a token for a client, signed with the secret of the configuration.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Map, Value};
use tidegate_gateway::config::{ConfigError, read_secret};

use crate::args::TokenArgs;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error(transparent)]
    Secret(#[from] ConfigError),
    #[error("the token cannot be signed: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

/// The token, ready to be sent.
pub(crate) fn run(args: &TokenArgs) -> Result<String, TokenError> {
    let secret = read_secret("--secret-file", &args.secret_file)?;
    let key = EncodingKey::from_secret(secret.expose());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Ok(encode(&Header::new(Algorithm::HS256), &claims(args, now), &key)?)
}

/// What docs/authentication.md lists.
fn claims(args: &TokenArgs, now: u64) -> Value {
    let mut claims = Map::new();
    claims.insert("iat".into(), now.into());
    claims.insert("exp".into(), now.saturating_add(args.expires.as_secs()).into());
    claims.insert("channels".into(), args.channels.clone().into());
    if !args.publish.is_empty() {
        claims.insert("publish".into(), args.publish.clone().into());
    }
    if let Some(sub) = &args.sub {
        claims.insert("sub".into(), sub.clone().into());
    }
    if let Some(info) = &args.info {
        claims.insert("info".into(), info.clone());
    }
    Value::Object(claims)
}
