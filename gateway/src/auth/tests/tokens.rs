//! Tokens: every algorithm, every claim, and what forgers try.

use std::{
    io::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::rsa::KeySize;
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use tidegate_backplane::Channel;
use tokio_util::task::TaskTracker;

use super::issuer::{Issuer, RSA, pem};
use crate::{
    auth::{Algorithm, Authenticator, Claims, TokenError, Verdict},
    config::{AuthConfig, ConfigError, JwtKey, KeyProblem, List, Secret},
    hooks::{Overrides, ServerSubscription},
};

/// The time in these tests.
const NOW: u64 = 1_800_000_000;
const SECRET: &[u8] = b"a secret of at least 32 bytes, ok";

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn authenticator(entries: Vec<JwtKey>) -> Authenticator {
    try_authenticator(entries).unwrap()
}

fn try_authenticator(entries: Vec<JwtKey>) -> Result<Authenticator, ConfigError> {
    let config = AuthConfig { jwt: List(entries), ..AuthConfig::default() };
    Authenticator::new(&config, TaskTracker::new())
}

fn verify(authenticator: &Authenticator, token: &str) -> Result<Claims, TokenError> {
    match authenticator.verify(token, now()) {
        Verdict::Valid(claims) => Ok(claims),
        Verdict::Invalid(error) => Err(error),
        Verdict::NeedsKeys(fetch) => panic!("nothing to fetch, but {fetch:?}"),
    }
}

/// Claims in force, with more.
fn claims(more: Value) -> Value {
    let mut claims = json!({ "sub": "alice", "exp": NOW + 60 });
    claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    claims
}

fn channel(name: &str) -> Channel {
    Channel::new(name).unwrap()
}

fn issuers() -> Vec<Issuer> {
    vec![Issuer::hs256(SECRET), Issuer::es256(), Issuer::eddsa()]
}

#[test]
fn every_algorithm() {
    let others = issuers();
    for issuer in others.iter().chain([&*RSA]) {
        let authenticator = authenticator(vec![issuer.entry()]);
        let token = issuer.token(&claims(json!({ "channels": ["news:*"] })));
        let claims = verify(&authenticator, &token).unwrap();
        assert_eq!(claims.user.as_deref(), Some("alice"));
        assert!(claims.may_subscribe(&channel("news:1")) && !claims.may_subscribe(&channel("other")));
    }
}

/// RFC 7515 appendices A.1 and A.3: tokens and keys that others made.
#[test]
fn tokens_of_the_standard() {
    const PAYLOAD: &str =
        "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let cases = [
        (
            Algorithm::Hs256,
            json!({
                "kty": "oct",
                "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
            }),
            "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9",
            "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
        ),
        (
            Algorithm::Es256,
            json!({
                "kty": "EC",
                "crv": "P-256",
                "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
                "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
            }),
            "eyJhbGciOiJFUzI1NiJ9",
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
    ];
    for (algorithm, key, header, signature) in cases {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(file, "{}", json!({ "keys": [key] })).unwrap();
        let entry = JwtKey {
            algorithm: Some(algorithm),
            jwks_file: Some(file.path().to_owned()),
            issuer: Some("joe".into()),
            ..JwtKey::default()
        };
        let authenticator = authenticator(vec![entry]);
        let token = format!("{header}.{PAYLOAD}.{signature}");
        let before = UNIX_EPOCH + Duration::from_secs(1_300_819_379);
        assert!(matches!(authenticator.verify(&token, before), Verdict::Valid(_)), "{algorithm:?}");
        let after = UNIX_EPOCH + Duration::from_secs(1_300_819_386);
        assert!(matches!(authenticator.verify(&token, after), Verdict::Invalid(TokenError::Expired)));
    }
}

#[track_caller]
fn check_claims(change: impl FnOnce(&mut JwtKey), claims: &Value, expect: Result<(), TokenError>) {
    let issuer = Issuer::hs256(SECRET);
    let mut entry = issuer.entry();
    change(&mut entry);
    let outcome = verify(&authenticator(vec![entry]), &issuer.token(claims));
    assert_eq!(outcome.map(drop), expect, "{claims}");
}

#[test]
fn dates() {
    let plain = |_: &mut JwtKey| {};
    // The leeway is 5 s; a token ends at the moment that `exp` names, not after it (RFC 7519 section 4.1.4).
    for (date, expect) in [
        (json!(NOW + 1), Ok(())),
        (json!(NOW - 4), Ok(())),
        (json!(NOW - 5), Err(TokenError::Expired)),
        (json!(NOW as f64 - 4.5), Ok(())),
        (json!(-1), Err(TokenError::Expired)),
        (json!(1e300), Err(TokenError::Malformed("a date in its claims"))),
        (json!("2000000000"), Err(TokenError::Malformed("its claims"))),
        (json!(null), Err(TokenError::NoExpiry)),
    ] {
        check_claims(plain, &json!({ "exp": date }), expect);
    }
    for (date, expect) in [(NOW - 1, Ok(())), (NOW + 5, Ok(())), (NOW + 6, Err(TokenError::NotYetValid))] {
        check_claims(plain, &claims(json!({ "nbf": date })), expect);
    }
    check_claims(plain, &json!({}), Err(TokenError::NoExpiry));
    check_claims(|entry| entry.require_exp = false, &json!({}), Ok(()));
    check_claims(|entry| entry.require_exp = false, &json!({ "exp": 1 }), Err(TokenError::Expired));
}

#[test]
fn the_end_includes_the_leeway() {
    let issuer = Issuer::hs256(SECRET);
    let claims = verify(&authenticator(vec![issuer.entry()]), &issuer.token(&claims(json!({})))).unwrap();
    assert_eq!(claims.expires, Some(UNIX_EPOCH + Duration::from_secs(NOW + 65)));
}

#[test]
fn issuer_and_audience() {
    let demanding = |entry: &mut JwtKey| {
        entry.issuer = Some("https://id".into());
        entry.audience = Some("gate".into());
    };
    for (more, expect) in [
        (json!({ "iss": "https://id", "aud": "gate" }), Ok(())),
        (json!({ "iss": "https://id", "aud": ["other", "gate"] }), Ok(())),
        (json!({ "iss": "https://evil", "aud": "gate" }), Err(TokenError::Issuer)),
        (json!({ "aud": "gate" }), Err(TokenError::Issuer)),
        (json!({ "iss": "https://id", "aud": "other" }), Err(TokenError::Audience)),
        (json!({ "iss": "https://id", "aud": [] }), Err(TokenError::Audience)),
        (json!({ "iss": "https://id" }), Err(TokenError::Audience)),
    ] {
        check_claims(demanding, &claims(more), expect);
    }
    check_claims(|_| {}, &claims(json!({ "iss": "anyone", "aud": "anything" })), Ok(()));
}

/// Two entries with one secret: the claims decide which of them is meant.
#[test]
fn entries_that_share_a_key() {
    let issuer = Issuer::hs256(SECRET);
    let entry = |audience: &str| JwtKey { audience: Some(audience.into()), ..issuer.entry() };
    let authenticator = authenticator(vec![entry("a"), entry("b")]);
    assert!(verify(&authenticator, &issuer.token(&claims(json!({ "aud": "b" })))).is_ok());
    let neither = issuer.token(&claims(json!({ "aud": "c" })));
    assert_eq!(verify(&authenticator, &neither).map(drop), Err(TokenError::Audience));
}

#[track_caller]
fn check_rights(more: Value, subscribe: &[(&str, bool)], publish: &[(&str, bool)]) {
    let issuer = Issuer::hs256(SECRET);
    let claims = verify(&authenticator(vec![issuer.entry()]), &issuer.token(&claims(more.clone()))).unwrap();
    for (name, expect) in subscribe {
        assert_eq!(claims.may_subscribe(&channel(name)), *expect, "{more} subscribe {name}");
    }
    for (name, expect) in publish {
        assert_eq!(claims.may_publish(&channel(name)), *expect, "{more} publish {name}");
    }
}

#[test]
fn rights() {
    check_rights(json!({}), &[("a", false)], &[("a", false)]);
    check_rights(json!({ "channels": "a" }), &[("a", true), ("b", false)], &[("a", false)]);
    check_rights(json!({ "channels": ["a", "n:*"] }), &[("n:1", true), ("n", false)], &[("n:1", false)]);
    check_rights(
        json!({ "channels": ["a*"], "publish": true }),
        &[("ab", true)],
        &[("ab", true), ("b", false)],
    );
    check_rights(json!({ "channels": ["a"], "publish": false }), &[("a", true)], &[("a", false)]);
    check_rights(
        json!({ "channels": ["a"], "publish": ["b"] }),
        &[("b", false)],
        &[("a", false), ("b", true)],
    );
    check_rights(json!({ "publish": "b*" }), &[("b", false)], &[("b1", true)]);
    check_rights(json!({ "channels": [] , "publish": true }), &[("a", false)], &[("a", false)]);
}

#[test]
fn info_is_handed_on_as_it_is() {
    let issuer = Issuer::hs256(SECRET);
    let text = format!(r#"{{"exp":{},"info":{{ "name" : "Zoë" }}}}"#, NOW + 1);
    let token = issuer.token_of_texts(r#"{"alg":"HS256"}"#, &text);
    let claims = verify(&authenticator(vec![issuer.entry()]), &token).unwrap();
    assert_eq!(claims.info.as_deref(), Some(r#"{ "name" : "Zoë" }"#));
}

/// Those that tokens for Centrifugo have.
#[test]
fn info_in_base64_meta_expire_at_and_override() {
    let issuer = Issuer::hs256(SECRET);
    let authenticator = authenticator(vec![issuer.entry()]);
    let read = |more: Value| verify(&authenticator, &issuer.token(&claims(more)));
    for (octets, expect) in [
        (&b"{ \"a\": 1 }"[..], r#"{ "a": 1 }"#),
        (b"plain \"words\"", r#""plain \"words\"""#),
        (&[0, 255], r#""AP8=""#),
    ] {
        let b64info = STANDARD.encode(octets);
        let claims = read(json!({ "info": {"not": "this"}, "b64info": b64info })).unwrap();
        assert_eq!(claims.info.as_deref(), Some(expect));
    }
    assert_eq!(read(json!({ "info": 1, "b64info": "" })).unwrap().info.as_deref(), Some("1"));
    let malformed = read(json!({ "b64info": "?" })).map(drop);
    assert_eq!(malformed, Err(TokenError::Malformed("b64info in its claims")));

    let known = read(json!({ "meta": {"plan": "b"} })).unwrap().known.unwrap();
    assert_eq!((known.state.as_deref(), known.is_asked), (Some(r#"{"plan":"b"}"#), false));
    assert!(read(json!({})).unwrap().known.is_none());

    let at = |date: u64| UNIX_EPOCH + Duration::from_secs(date);
    assert_eq!(read(json!({ "expire_at": 0 })).unwrap().expires, None);
    assert_eq!(read(json!({ "expire_at": NOW + 9 })).unwrap().expires, Some(at(NOW + 9)));
    assert_eq!(read(json!({ "expire_at": NOW + 900 })).unwrap().expires, Some(at(NOW + 900)));
    assert_eq!(read(json!({ "expire_at": NOW })).map(drop), Err(TokenError::Expired));
    // It says nothing of when the token itself ends.
    let late = verify(&authenticator, &issuer.token(&json!({ "exp": NOW - 60, "expire_at": 0 })));
    assert_eq!(late.map(drop), Err(TokenError::Expired));

    let overrides = |claim: Value| read(json!({ "override": claim })).unwrap().overrides;
    assert_eq!(overrides(json!(null)), Overrides::default());
    let told = overrides(
        json!({ "presence": {"value": false}, "force_push_join_leave": {"value": true}, "join_leave": {} }),
    );
    let expect = Overrides {
        presence: Some(false),
        join_leave: Some(false),
        push_join_leave: Some(true),
        ..Overrides::default()
    };
    assert_eq!(told, expect);
    let told = overrides(json!({ "force_recovery": {}, "force_positioning": {"value": true} }));
    let expect = Overrides { recovery: Some(false), positioning: Some(true), ..Overrides::default() };
    assert_eq!(told, expect);
    assert_eq!(overrides(json!({ "presence": null })), Overrides::default());
}

#[test]
fn subscriptions_of_the_server() {
    let issuer = Issuer::hs256(SECRET);
    let authenticator = authenticator(vec![issuer.entry()]);
    let read = |subs: Value| verify(&authenticator, &issuer.token(&claims(json!({ "subs": subs }))));
    let subs = json!({
        "a": {"data": {"n": 1}, "info": 1}, "b": null, "c": {},
        "d": {"data": 1, "b64data": STANDARD.encode("[2]"), "b64info": STANDARD.encode("{}"),
              "override": {"presence": {"value": false}}},
    });
    let subscriptions = read(subs).unwrap().subscriptions;
    let of = |data: &str, info: Option<&str>, presence| ServerSubscription {
        data: data.into(),
        info: info.map(Box::from),
        overrides: Overrides { presence, ..Overrides::default() },
    };
    let expect = [
        ("a", of(r#"{"n":1}"#, Some("1"), None)),
        ("b", of("", None, None)),
        ("c", of("", None, None)),
        ("d", of("[2]", Some("{}"), Some(false))),
    ];
    assert_eq!(subscriptions, expect.map(|(name, subscription)| (name.into(), subscription)).into());
    let malformed = read(json!({ "a": {"b64data": "?"} })).map(drop);
    assert_eq!(malformed, Err(TokenError::Malformed("base64 of subs in its claims")));
}

#[test]
fn claims_that_are_none() {
    for text in [
        "",
        "null",
        "[]",
        "\"x\"",
        "{",
        r#"{"exp":1,"exp":1800000001}"#,
        r#"{"exp":1800000001,"channels":7}"#,
        r#"{"exp":1800000001,"channels":[""]}"#,
        r#"{"exp":1800000001,"publish":1}"#,
        r#"{"exp":1800000001,"sub":7}"#,
    ] {
        let issuer = Issuer::hs256(SECRET);
        let token = issuer.token_of_texts(r#"{"alg":"HS256"}"#, text);
        let outcome = verify(&authenticator(vec![issuer.entry()]), &token).map(drop);
        assert_eq!(outcome, Err(TokenError::Malformed("its claims")), "{text}");
    }
}

#[test]
fn texts_that_are_no_tokens() {
    let authenticator = authenticator(vec![Issuer::hs256(SECRET).entry()]);
    let base64 = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let parts = TokenError::Malformed("it does not have three parts");
    let header = TokenError::Malformed("its header");
    for (text, expect) in [
        (String::new(), TokenError::Missing),
        ("a".into(), parts),
        ("a.b".into(), parts),
        ("a.b.c.d".into(), parts),
        ("!.b.c".into(), TokenError::Malformed("it is not base64url")),
        (format!("{}=.b.c", base64("{}")), TokenError::Malformed("it is not base64url")),
        ("..".into(), header),
        (format!("{}..", base64("{}")), header),
        (format!("{}..", base64(r#"{"alg":7}"#)), header),
        (format!("{}..", base64(r#"{"alg":"HS256","alg":"none"}"#)), header),
        (format!("{}..", base64(r#"{"alg":"HS256"}"#)), TokenError::Signature),
        (
            format!("{}..", base64(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#)),
            TokenError::Malformed("it has a critical extension"),
        ),
    ] {
        assert_eq!(verify(&authenticator, &text).map(drop), Err(expect), "{text}");
    }
}

#[test]
fn the_token_does_not_choose_the_algorithm() {
    let everything = claims(json!({ "channels": "*", "publish": true }));
    let public_pem = RSA.pem();
    let only_rsa = authenticator(vec![RSA.entry()]);
    // The classic: an HMAC whose secret is the text of the public key.
    let forged = Issuer::hs256(public_pem.as_bytes()).token(&everything);
    assert_eq!(verify(&only_rsa, &forged).map(drop), Err(TokenError::Algorithm));
    let both = authenticator(vec![RSA.entry(), Issuer::hs256(SECRET).entry()]);
    assert_eq!(verify(&both, &forged).map(drop), Err(TokenError::Signature));
    // The same HMAC under the header of the right algorithm.
    let relabelled = Issuer::hs256(public_pem.as_bytes()).token_with(&json!({ "alg": "RS256" }), &everything);
    assert_eq!(verify(&only_rsa, &relabelled).map(drop), Err(TokenError::Signature));

    for algorithm in ["none", "None", "NONE", "", "hs256", "HS384", "RS512", "PS256", "ES384"] {
        let token = Issuer::hs256(SECRET).token_with(&json!({ "alg": algorithm }), &everything);
        assert_eq!(verify(&both, &token).map(drop), Err(TokenError::Algorithm), "{algorithm}");
        let unsigned = &token[..=token.rfind('.').unwrap()];
        assert_eq!(verify(&both, unsigned).map(drop), Err(TokenError::Algorithm), "{algorithm}");
    }
    // Right kind of key, wrong key.
    for (own, other) in [
        (Issuer::es256(), Issuer::es256()),
        (Issuer::eddsa(), Issuer::eddsa()),
        (Issuer::hs256(SECRET), Issuer::hs256(b"another secret of 32 bytes or so")),
    ] {
        let outcome = verify(&authenticator(vec![own.entry()]), &other.token(&everything));
        assert_eq!(outcome.map(drop), Err(TokenError::Signature));
    }
}

#[test]
fn keys_inside_the_token_are_ignored() {
    let (own, forger) = (Issuer::es256(), Issuer::es256());
    let header = json!({ "alg": "ES256", "jwk": forger.jwk("x"), "jku": "https://evil.example/jwks", "x5u": "https://evil.example/x" });
    let outcome = verify(&authenticator(vec![own.entry()]), &forger.token_with(&header, &claims(json!({}))));
    assert_eq!(outcome.map(drop), Err(TokenError::Signature));
}

/// An ECDSA signature of zeros verified everywhere in some libraries.
#[test]
fn zeros_are_no_signature() {
    let issuer = Issuer::es256();
    let token = issuer.token(&claims(json!({})));
    let message = &token[..=token.rfind('.').unwrap()];
    let zeros = format!("{message}{}", URL_SAFE_NO_PAD.encode([0; 64]));
    assert_eq!(verify(&authenticator(vec![issuer.entry()]), &zeros).map(drop), Err(TokenError::Signature));
}

#[test]
fn key_ids() {
    let issuer = Issuer::hs256(SECRET);
    let named = authenticator(vec![JwtKey { kid: Some("one".into()), ..issuer.entry() }]);
    assert!(verify(&named, &issuer.token_of("one", &claims(json!({})))).is_ok());
    assert!(verify(&named, &issuer.token(&claims(json!({})))).is_ok());
    let two = issuer.token_of("two", &claims(json!({})));
    assert_eq!(verify(&named, &two).map(drop), Err(TokenError::UnknownKey));
    assert!(verify(&authenticator(vec![issuer.entry()]), &two).is_ok(), "a key without an id takes any");
}

#[test]
fn without_keys_nothing_is_valid() {
    let none = authenticator(Vec::new());
    let token = Issuer::hs256(b"").token(&claims(json!({})));
    assert_eq!(verify(&none, &token).map(drop), Err(TokenError::Algorithm));
}

#[track_caller]
fn refused_key(entry: JwtKey, expect: KeyProblem) {
    match try_authenticator(vec![entry]) {
        Err(ConfigError::Unusable { problem, .. }) => assert_eq!(problem.downcast_ref(), Some(&expect)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn keys_that_cannot_be_used() {
    let with_pem = |algorithm, pem: &str| JwtKey {
        algorithm: Some(algorithm),
        public_key: Some(pem.into()),
        ..JwtKey::default()
    };
    refused_key(with_pem(Algorithm::Rs256, "no key"), KeyProblem::Pem);
    refused_key(with_pem(Algorithm::Rs256, &Issuer::es256().pem()), KeyProblem::Pem);
    refused_key(with_pem(Algorithm::Es256, &RSA.pem()), KeyProblem::Pem);
    refused_key(with_pem(Algorithm::EdDsa, &Issuer::es256().pem()), KeyProblem::Pem);
    refused_key(with_pem(Algorithm::Es256, &pem("PUBLIC KEY", &[0x30, 0])), KeyProblem::Pem);
    refused_key(with_pem(Algorithm::Es256, &pem("PRIVATE KEY", &[0x30, 0])), KeyProblem::Private);
    refused_key(with_pem(Algorithm::Es256, &pem("EC PRIVATE KEY", &[0x30, 0])), KeyProblem::Private);
    refused_key(with_pem(Algorithm::Rs256, &pem("CERTIFICATE", &[0x30, 0])), KeyProblem::Pem);
    // A public key as an HMAC secret is no secret.
    let public = Secret::new(RSA.pem().as_bytes());
    refused_key(
        JwtKey { algorithm: Some(Algorithm::Hs256), secret: Some(public), ..JwtKey::default() },
        KeyProblem::PemSecret,
    );
}

/// Public keys as `openssl` 3 writes them, made for this test with the commands in `docs/authentication.md`.
#[test]
fn keys_made_by_openssl() {
    let keys = [
        (Algorithm::Rs256, OPENSSL_RSA),
        (Algorithm::Es256, OPENSSL_P256),
        (Algorithm::EdDsa, OPENSSL_ED25519),
    ];
    for (algorithm, pem) in keys {
        let entry = JwtKey { algorithm: Some(algorithm), public_key: Some(pem.into()), ..JwtKey::default() };
        assert!(try_authenticator(vec![entry]).is_ok(), "{algorithm:?}");
    }
}

const OPENSSL_RSA: &str = "-----BEGIN PUBLIC KEY-----
MIIBojANBgkqhkiG9w0BAQEFAAOCAY8AMIIBigKCAYEAtgNpcDpHAjas6nSoPgXd
DUgJA9V/5Zr+HRyufa14GTVn8VA92ToCeKVZO8rkbAiNGfdza6hS5rXYlCvYz4+c
iHbX/xT00+qDGEDM6upAJ6kIMlxtCe3TQdK4y70evcWhVY+jLQYMKxS+DjIvQGb6
UTAWXsksB9cbePpqcHkltNsPQPpqqvo7EydUnApfQZHBQF4nLir+a1aZZc3YmMM3
eVMMJNQ5yFd16/HFBhRd71Hcy1dfCr/8TzvwJlBSHLXxqnbQNyMWH+OfomYXzv3+
H3Xqm7EZVyYjmG135pU3Cq3w3IOHr11IKNVO6cYHwfRyD/TU0ZolCnoShr4bD3ps
SafEPCrVEyleYR+SfGrmWfjZWfl0tTPY9t+ggWlF/R1n+VCA1hwEH0tCtEtesypV
WgxJDuJOq91ZaWs5pQFosDg/xvh6e63NYoPqhzlYC+Sp9AXftKu7LpuFU/2uM4OS
rNPmZWGS6seaq+Gf0qJeJUMn09ArSra3uCybq3fwusCvAgMBAAE=
-----END PUBLIC KEY-----
";
const OPENSSL_P256: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEZr+p2dkzcdYfLGMNq7kDUc6cXbQl
5KExLbOzOqhaQDCYoTuSOXVdQ8aCIoFmD57k4uW0eGZXQnv+2Iba5Gk3DQ==
-----END PUBLIC KEY-----
";
const OPENSSL_ED25519: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA2b0oKaQSrheIWK7a7+Pt8WHSoC8O4NqWsRkwVMVpeYo=
-----END PUBLIC KEY-----
";

#[test]
fn larger_rsa_keys() {
    let issuer = Issuer::rsa(KeySize::Rsa3072);
    assert!(verify(&authenticator(vec![issuer.entry()]), &issuer.token(&claims(json!({})))).is_ok());
}

proptest! {
    /// No character of a token can be changed.
    #[test]
    fn one_changed_character(at in any::<prop::sample::Index>(), to in "[A-Za-z0-9_.-]") {
        let issuer = Issuer::hs256(SECRET);
        let authenticator = authenticator(vec![issuer.entry()]);
        let token = issuer.token(&claims(json!({ "channels": "a" })));
        let at = at.index(token.len());
        let changed = format!("{}{to}{}", &token[..at], &token[at + 1..]);
        prop_assert_eq!(verify(&authenticator, &changed).is_ok(), changed == token);
    }

    #[test]
    fn any_text_is_answered(text in "\\PC{0,60}|[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}") {
        let authenticator = authenticator(vec![Issuer::hs256(SECRET).entry()]);
        prop_assert!(verify(&authenticator, &text).is_err());
    }
}
