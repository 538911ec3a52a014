//! Who may connect, subscribe, publish and administrate.
//!
//! A handshake asks [`Origins`] about the page it comes from, and [`Authenticator::verify`] about its token; the
//! answer, [`Claims`], says what the connection may subscribe and publish. A REST request asks [`ApiKeys`].
//!
//! - `authenticator`: tokens, from text to claims
//! - `claims`, `pattern`: what a token permits
//! - `keys`: key material, from secrets, PEM and JWKS
//! - `key_set`: a JWKS that is read again: single flight, least interval, old keys kept
//! - `api_keys`, `origin`

mod api_keys;
mod authenticator;
mod claims;
mod key_set;
mod keys;
mod origin;
mod pattern;
#[cfg(test)]
mod tests;
mod token;

pub use api_keys::{ApiKey, ApiKeyError, ApiKeys, bearer};
pub use authenticator::{Authenticator, KeyFetch, Verdict};
pub use claims::Claims;
pub use origin::{OriginRule, Origins};
pub use pattern::{PATTERN_BYTES_MAX, Pattern, PatternError};
pub use token::TokenError;

use tidegate_ops::choice;

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
