//! Who may connect, subscribe, publish and administrate.
//!
//! A handshake asks [`Origins`] about the page it comes from, and [`Authenticator::verify`] about its token; the
//! answer, [`Claims`], says what the connection may subscribe and publish. A REST request asks [`ApiKeys`].
//!
//! - `authenticator`: tokens, from text to claims
//! - `claims`: what a token permits
//! - `keys`: key material, from secrets, PEM and JWKS
//! - `key_set`: a JWKS that is read again: single flight, least interval, old keys kept
//! - `api_keys`: keys of the REST API
//!
//! Origins and channel patterns are settings: they are in `config`.

mod api_keys;
mod authenticator;
mod claims;
mod key_set;
mod keys;
#[cfg(test)]
mod tests;
mod token;

pub(crate) use api_keys::{ApiKey, ApiKeyError, ApiKeys, bearer};
pub(crate) use authenticator::{Authenticator, KeyFetch, Verdict};
pub(crate) use claims::Claims;
pub(crate) use token::TokenError;

pub(crate) use crate::config::{Algorithm, Origins, Pattern, Scope};
