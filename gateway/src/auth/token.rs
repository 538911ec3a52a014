//! A token's text taken apart (RFC 7515 section 7.1), and why a token is refused.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, de::IgnoredAny};

use super::Algorithm;
use crate::config::Setting as _;

/// Why a token is refused. All of them are answered with 401.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("a token is required")]
    Missing,
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// No key of this gateway is for the algorithm that the token names.
    #[error("the token's algorithm is not accepted here")]
    Algorithm,
    #[error("the token is signed with a key that is not known here")]
    UnknownKey,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token has expired")]
    Expired,
    #[error("the token never expires, which is not accepted here")]
    NoExpiry,
    #[error("the token is not valid yet")]
    NotYetValid,
    #[error("the token is from another issuer")]
    Issuer,
    #[error("the token is for another audience")]
    Audience,
}

/// A token in its parts. Nothing in it is trusted yet.
pub(super) struct Token<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) key_id: Option<Box<str>>,
    /// What is signed: header and payload, as they came.
    pub(super) message: &'a str,
    /// In base64url.
    pub(super) signature: &'a str,
    payload: &'a str,
}

#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow, default)]
    kid: Option<Cow<'a, str>>,
    #[serde(default)]
    crit: Option<IgnoredAny>,
}

impl<'a> Token<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, TokenError> {
        if text.is_empty() {
            return Err(TokenError::Missing);
        }
        let (message, signature) = text.rsplit_once('.').ok_or(NOT_THREE_PARTS)?;
        let (header, payload) = message.split_once('.').ok_or(NOT_THREE_PARTS)?;
        if payload.contains('.') {
            return Err(NOT_THREE_PARTS);
        }
        let json = decode(header)?;
        let header: Header<'_> =
            serde_json::from_slice(&json).map_err(|_| TokenError::Malformed("its header"))?;
        // RFC 7515 section 4.1.11: what is critical must be understood, and no extension is.
        if header.crit.is_some() {
            return Err(TokenError::Malformed("it has a critical extension"));
        }
        let algorithm = Algorithm::from_text(&header.alg).ok_or(TokenError::Algorithm)?;
        let key_id = header.kid.map(|kid| kid.into());
        Ok(Self { algorithm, key_id, message, signature, payload })
    }

    /// The JSON text of the claims.
    pub(super) fn payload(&self) -> Result<Vec<u8>, TokenError> {
        decode(self.payload)
    }
}

const NOT_THREE_PARTS: TokenError = TokenError::Malformed("it does not have three parts");

fn decode(part: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed("it is not base64url"))
}
