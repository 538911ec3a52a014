//! A token issuer for tests. It signs with aws-lc directly, so that it shares no code with what verifies.

use std::sync::LazyLock;

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    hmac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
        RsaKeyPair,
    },
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};

use crate::{
    auth::Algorithm,
    config::{JwtKey, Secret},
};

pub(super) enum Issuer {
    Hs256(Vec<u8>),
    Rs256(Box<RsaKeyPair>),
    Es256(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
}

/// RSA keys take a while to make; all tests share this one.
pub(super) static RSA: LazyLock<Issuer> = LazyLock::new(|| Issuer::rsa(KeySize::Rsa2048));

impl Issuer {
    pub(super) fn hs256(secret: &[u8]) -> Self {
        Self::Hs256(secret.to_vec())
    }

    pub(super) fn rsa(size: KeySize) -> Self {
        Self::Rs256(Box::new(RsaKeyPair::generate(size).unwrap()))
    }

    pub(super) fn es256() -> Self {
        Self::Es256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    pub(super) fn eddsa() -> Self {
        Self::EdDsa(Ed25519KeyPair::generate().unwrap())
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        match self {
            Self::Hs256(_) => Algorithm::Hs256,
            Self::Rs256(_) => Algorithm::Rs256,
            Self::Es256(_) => Algorithm::Es256,
            Self::EdDsa(_) => Algorithm::EdDsa,
        }
    }

    /// A token with the usual header.
    pub(super) fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({ "alg": self.algorithm().word(), "typ": "JWT" }), claims)
    }

    pub(super) fn token_of(&self, kid: &str, claims: &Value) -> String {
        self.token_with(&json!({ "alg": self.algorithm().word(), "kid": kid }), claims)
    }

    pub(super) fn token_with(&self, header: &Value, claims: &Value) -> String {
        self.token_of_texts(&header.to_string(), &claims.to_string())
    }

    pub(super) fn token_of_texts(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Hs256(secret) => {
                hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec()
            }
            Self::Rs256(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
            Self::Es256(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::EdDsa(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    /// The public key as PEM.
    pub(super) fn pem(&self) -> String {
        let der: PublicKeyX509Der<'_> = match self {
            Self::Hs256(_) => panic!("a secret has no public key"),
            Self::Rs256(pair) => pair.public_key().as_der().unwrap(),
            Self::Es256(pair) => pair.public_key().as_der().unwrap(),
            Self::EdDsa(pair) => pair.public_key().as_der().unwrap(),
        };
        pem("PUBLIC KEY", der.as_ref())
    }

    /// The public key as a JSON Web Key.
    pub(super) fn jwk(&self, kid: &str) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match self {
            Self::Hs256(secret) => json!({ "kty": "oct", "kid": kid, "k": text(secret) }),
            Self::Rs256(pair) => {
                let n = modulus(pair.public_key().as_ref());
                json!({ "kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256", "n": text(n), "e": "AQAB" })
            }
            Self::Es256(pair) => {
                // RFC 7518 section 6.2.1; an uncompressed point is 0x04, x, y.
                let point = pair.public_key().as_ref();
                json!({ "kty": "EC", "kid": kid, "crv": "P-256", "x": text(&point[1..33]), "y": text(&point[33..]) })
            }
            Self::EdDsa(pair) => {
                json!({ "kty": "OKP", "kid": kid, "crv": "Ed25519", "x": text(pair.public_key().as_ref()) })
            }
        }
    }

    /// The configuration entry for this issuer, with its key inline.
    pub(super) fn entry(&self) -> JwtKey {
        let mut entry = JwtKey { algorithm: Some(self.algorithm()), ..JwtKey::default() };
        match self {
            Self::Hs256(secret) => entry.secret = Some(Secret::new(secret)),
            _ => entry.public_key = Some(self.pem().into()),
        }
        entry
    }
}

pub(super) fn pem(tag: &str, der: &[u8]) -> String {
    let lines: Vec<_> = STANDARD.encode(der).into_bytes().chunks(64).map(|line| line.to_vec()).collect();
    let body = String::from_utf8(lines.join(&b'\n')).unwrap();
    format!("-----BEGIN {tag}-----\n{body}\n-----END {tag}-----\n")
}

/// The modulus in `SEQUENCE { INTEGER n, INTEGER e }` (RFC 8017 appendix A.1.1) for a size of 2048 bits: 4 bytes
/// of sequence head, 4 of integer head, and a zero that keeps the number positive.
fn modulus(der: &[u8]) -> &[u8] {
    assert_eq!(&der[4..9], [0x02, 0x82, 0x01, 0x01, 0x00], "a key of 2048 bits");
    &der[9..265]
}
