//! Key material: from a secret, a PEM text or a JSON Web Key Set to something that verifies signatures.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256};
use jsonwebtoken::{
    DecodingKey, DecodingKeyKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;

use super::{Algorithm, token::Token};
use crate::config::KeyProblem;

/// A key and the one algorithm that it is for.
pub(super) struct Key {
    algorithm: Algorithm,
    id: Option<Box<str>>,
    key: DecodingKey,
}

/// Keys of a set that are looked at. A token without `kid` is tried with each, so the bound is also one on the
/// work that a forged token causes: 32 ES256 checks are about 2 ms.
const SET_KEYS_MAX: usize = 32;

impl Key {
    pub(super) fn from_secret(secret: &[u8], id: Option<Box<str>>) -> Result<Self, KeyProblem> {
        // Whoever can read a public key could sign with it.
        if secret.starts_with(b"-----BEGIN") {
            return Err(KeyProblem::PemSecret);
        }
        Ok(Self { algorithm: Algorithm::Hs256, id, key: DecodingKey::from_secret(secret) })
    }

    pub(super) fn from_pem(
        algorithm: Algorithm,
        pem: &str,
        id: Option<Box<str>>,
    ) -> Result<Self, KeyProblem> {
        if pem.contains("PRIVATE KEY-----") {
            return Err(KeyProblem::Private);
        }
        // Of a certificate, the first bit string would be taken for the key.
        if !pem.contains("PUBLIC KEY-----") {
            return Err(KeyProblem::Pem);
        }
        let key = match algorithm {
            Algorithm::Hs256 => return Err(KeyProblem::Pem),
            Algorithm::Rs256 => DecodingKey::from_rsa_pem(pem.as_bytes()),
            Algorithm::Es256 => DecodingKey::from_ec_pem(pem.as_bytes()),
            Algorithm::EdDsa => DecodingKey::from_ed_pem(pem.as_bytes()),
        };
        let key = key.map_err(|_| KeyProblem::Pem)?;
        if verifies(algorithm, &key) { Ok(Self { algorithm, id, key }) } else { Err(KeyProblem::Pem) }
    }

    /// Whether a token that names this key, or none, could be signed with it.
    pub(super) fn is_candidate(&self, token: &Token<'_>) -> bool {
        let same_id = match (&self.id, &token.key_id) {
            (Some(id), Some(wanted)) => id == wanted,
            (None, _) | (_, None) => true,
        };
        self.algorithm == token.algorithm && same_id
    }

    pub(super) fn has_id(&self) -> bool {
        self.id.is_some()
    }

    /// Whether the token names exactly this key.
    pub(super) fn is_named_by(&self, token: &Token<'_>) -> bool {
        self.id.is_some() && self.id == token.key_id
    }

    /// The algorithm is the key's, never the token's.
    pub(super) fn signed(&self, token: &Token<'_>) -> bool {
        let algorithm = library_algorithm(self.algorithm);
        jsonwebtoken::crypto::verify(token.signature, token.message.as_bytes(), &self.key, algorithm)
            .unwrap_or(false)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("algorithm", &self.algorithm)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The keys of a set that are for `algorithm` (RFC 7517 section 5: keys that are not understood are ignored). A
/// set without any is an error: it would lock everyone out, and is more often a broken issuer than meant.
pub(super) fn from_jwks(algorithm: Algorithm, json: &[u8]) -> Result<Vec<Key>, KeyProblem> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set = serde_json::from_slice(json).map_err(|_| KeyProblem::Jwks)?;
    let keys: Vec<_> = set
        .keys
        .into_iter()
        .filter_map(|key| serde_json::from_value(key).ok())
        .filter_map(|jwk| from_jwk(algorithm, &jwk))
        .take(SET_KEYS_MAX)
        .collect();
    if keys.is_empty() { Err(KeyProblem::Jwks) } else { Ok(keys) }
}

fn from_jwk(algorithm: Algorithm, jwk: &Jwk) -> Option<Key> {
    let common = &jwk.common;
    let for_signatures = matches!(common.public_key_use, None | Some(PublicKeyUse::Signature))
        && common
            .key_operations
            .as_ref()
            .is_none_or(|operations| operations.contains(&KeyOperations::Verify));
    let for_algorithm =
        common.key_algorithm.is_none_or(|named| named == KeyAlgorithm::from(library_algorithm(algorithm)));
    let fits = match (&jwk.algorithm, algorithm) {
        (AlgorithmParameters::RSA(_), Algorithm::Rs256)
        | (AlgorithmParameters::OctetKey(_), Algorithm::Hs256) => true,
        (AlgorithmParameters::EllipticCurve(key), Algorithm::Es256) => key.curve == EllipticCurve::P256,
        (AlgorithmParameters::OctetKeyPair(key), Algorithm::EdDsa) => key.curve == EllipticCurve::Ed25519,
        _ => false,
    };
    if !(for_signatures && for_algorithm && fits) {
        return None;
    }
    let key = DecodingKey::from_jwk(jwk).ok()?;
    verifies(algorithm, &key).then(|| Key { algorithm, id: common.key_id.as_deref().map(Into::into), key })
}

/// Whether the material is sound, so that a wrong file shows when it is loaded and not at the first token.
fn verifies(algorithm: Algorithm, key: &DecodingKey) -> bool {
    match (algorithm, key.kind()) {
        // RFC 7518 section 3.2.
        (Algorithm::Hs256, DecodingKeyKind::SecretOrDer(secret)) => secret.len() >= 32,
        // RFC 7518 section 3.3: 2048 bits or more.
        (Algorithm::Rs256, DecodingKeyKind::RsaModulusExponent { n, .. }) => n.len() >= RSA_MODULUS_BYTES_MIN,
        (Algorithm::Rs256, DecodingKeyKind::SecretOrDer(der)) => {
            der.len() > RSA_MODULUS_BYTES_MIN
                && ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, der).is_ok()
        }
        (Algorithm::Es256, DecodingKeyKind::SecretOrDer(point)) => {
            ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).is_ok()
        }
        (Algorithm::EdDsa, DecodingKeyKind::SecretOrDer(point)) => {
            ParsedPublicKey::new(&ED25519, point).is_ok()
        }
        _ => false,
    }
}

const RSA_MODULUS_BYTES_MIN: usize = 2048 / 8;

const fn library_algorithm(algorithm: Algorithm) -> jsonwebtoken::Algorithm {
    match algorithm {
        Algorithm::Hs256 => jsonwebtoken::Algorithm::HS256,
        Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
        Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
        Algorithm::EdDsa => jsonwebtoken::Algorithm::EdDSA,
    }
}
