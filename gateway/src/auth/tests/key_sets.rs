//! Key sets over a real HTTP server: rotation, failures, pacing, one read at a time.

use std::{
    future::Future,
    io::Write as _,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header::LOCATION},
    routing::get,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::task::TaskTracker;

use super::issuer::{Issuer, RSA};
use crate::{
    auth::{Authenticator, KeyFetch, TokenError, Verdict},
    config::{AuthConfig, JwksUrl, JwtKey, List, Setting as _},
};

/// Nothing here takes a second; the rest is for a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(30);

/// A server of a key set.
#[derive(Clone)]
struct Server {
    answer: Arc<Mutex<(StatusCode, String)>>,
    /// Requests that came.
    requests: Arc<watch::Sender<usize>>,
    /// While false, requests wait.
    open: Arc<watch::Sender<bool>>,
    url: String,
}

impl Server {
    async fn start(keys: &[Value]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            answer: Arc::new(Mutex::new((StatusCode::OK, String::new()))),
            requests: Arc::new(watch::Sender::new(0)),
            open: Arc::new(watch::Sender::new(true)),
            url: format!("http://{}/jwks", listener.local_addr().unwrap()),
        };
        server.serve_keys(keys);
        let good = json!({ "keys": keys }).to_string();
        let app = Router::new()
            .route("/jwks", get(Self::answer))
            .route("/elsewhere", get(|| async { good }))
            .with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        server
    }

    async fn answer(State(server): State<Self>) -> (StatusCode, HeaderMap, String) {
        server.requests.send_modify(|count| *count += 1);
        server.open.subscribe().wait_for(|open| *open).await.unwrap();
        let (status, body) = server.answer.lock().unwrap().clone();
        let headers = HeaderMap::from_iter([(LOCATION, "/elsewhere".parse().unwrap())]);
        (status, headers, body)
    }

    fn serve(&self, status: StatusCode, body: &str) {
        *self.answer.lock().unwrap() = (status, body.to_owned());
    }

    fn serve_keys(&self, keys: &[Value]) {
        self.serve(StatusCode::OK, &json!({ "keys": keys }).to_string());
    }

    fn requests(&self) -> usize {
        *self.requests.borrow()
    }

    async fn wait_for_requests(&self, count: usize) {
        let mut requests = self.requests.subscribe();
        within(requests.wait_for(|now| *now >= count)).await.unwrap();
    }

    fn authenticator(&self, issuer: &Issuer) -> Arc<Authenticator> {
        authenticator(JwtKey {
            algorithm: Some(issuer.algorithm()),
            jwks_url: Some(JwksUrl::from_text(&self.url).unwrap()),
            ..JwtKey::default()
        })
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}

fn authenticator(entry: JwtKey) -> Arc<Authenticator> {
    let config = AuthConfig { jwt: List(vec![entry]), ..AuthConfig::default() };
    Arc::new(Authenticator::new(&config, TaskTracker::new()).unwrap())
}

fn token(issuer: &Issuer, kid: &str) -> String {
    let exp = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + 3_600;
    issuer.token_of(kid, &json!({ "sub": "alice", "exp": exp }))
}

/// Later than the least interval between two reads.
fn later() -> SystemTime {
    SystemTime::now() + JwtKey::default().jwks_min_refetch
}

#[track_caller]
fn needs_keys(verdict: Verdict) -> KeyFetch {
    match verdict {
        Verdict::NeedsKeys(fetch) => fetch,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_kind_of_key() {
    let others = [Issuer::es256(), Issuer::eddsa()];
    for issuer in others.iter().chain([&*RSA]) {
        let server = Server::start(&[issuer.jwk("one")]).await;
        let authenticator = server.authenticator(issuer);
        let token = token(issuer, "one");
        let fetch = needs_keys(authenticator.verify(&token, SystemTime::now()));
        within(authenticator.fetch(fetch)).await;
        assert!(matches!(authenticator.verify(&token, SystemTime::now()), Verdict::Valid(_)));
        assert_eq!(server.requests(), 1);
    }
}

#[tokio::test]
async fn rotation() {
    let (first, second) = (Issuer::es256(), Issuer::es256());
    let server = Server::start(&[first.jwk("first")]).await;
    let authenticator = server.authenticator(&first);
    assert!(within(authenticator.authenticate(&token(&first, "first"))).await.is_ok());

    server.serve_keys(&[second.jwk("second")]);
    let renewed = token(&second, "second");
    // Too early for another read.
    let verdict = authenticator.verify(&renewed, SystemTime::now());
    assert!(matches!(verdict, Verdict::Invalid(TokenError::UnknownKey)), "{verdict:?}");
    let fetch = needs_keys(authenticator.verify(&renewed, later()));
    within(authenticator.fetch(fetch)).await;
    assert!(matches!(authenticator.verify(&renewed, SystemTime::now()), Verdict::Valid(_)));
    let old = authenticator.verify(&token(&first, "first"), SystemTime::now());
    assert!(matches!(old, Verdict::Invalid(TokenError::UnknownKey)), "{old:?}");
}

#[tokio::test]
async fn a_wrong_signature_under_a_known_id_fetches_nothing() {
    let (issuer, forger) = (Issuer::es256(), Issuer::es256());
    let server = Server::start(&[issuer.jwk("one")]).await;
    let authenticator = server.authenticator(&issuer);
    within(authenticator.authenticate(&token(&issuer, "one"))).await.unwrap();
    let verdict = authenticator.verify(&token(&forger, "one"), later());
    assert!(matches!(verdict, Verdict::Invalid(TokenError::Signature)), "{verdict:?}");
}

#[tokio::test]
async fn failures_keep_the_keys() {
    let issuer = Issuer::eddsa();
    let server = Server::start(&[issuer.jwk("one")]).await;
    let authenticator = server.authenticator(&issuer);
    let good = token(&issuer, "one");
    within(authenticator.authenticate(&good)).await.unwrap();
    // What is refused would have brought the key that is asked for.
    let new = json!({ "keys": [issuer.jwk("new")] }).to_string();
    let too_large = json!({ "keys": [issuer.jwk("new")], "padding": "x".repeat(1 << 20) }).to_string();
    let foreign = json!({ "keys": [RSA.jwk("one"), Issuer::es256().jwk("one")] }).to_string();
    for (status, body) in [
        (StatusCode::INTERNAL_SERVER_ERROR, &new[..]),
        (StatusCode::ACCEPTED, &new),
        (StatusCode::NO_CONTENT, ""),
        (StatusCode::OK, "<html>maintenance</html>"),
        (StatusCode::OK, r#"{"keys":[]}"#),
        (StatusCode::OK, &foreign),
        (StatusCode::OK, &too_large),
    ] {
        let before = server.requests();
        server.serve(status, body);
        let fetch = needs_keys(authenticator.verify(&token(&issuer, "new"), later()));
        within(authenticator.fetch(fetch)).await;
        assert_eq!(server.requests(), before + 1);
        assert!(
            matches!(authenticator.verify(&good, SystemTime::now()), Verdict::Valid(_)),
            "{status} {body:.20}"
        );
        let refused = authenticator.verify(&token(&issuer, "new"), SystemTime::now());
        assert!(matches!(refused, Verdict::Invalid(TokenError::UnknownKey)), "{status} {body:.20}");
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let issuer = Issuer::eddsa();
    let server = Server::start(&[issuer.jwk("one")]).await;
    server.serve(StatusCode::FOUND, "");
    let outcome = within(server.authenticator(&issuer).authenticate(&token(&issuer, "one"))).await;
    assert_eq!(outcome.map(drop), Err(TokenError::UnknownKey));
}

#[tokio::test]
async fn a_server_that_is_away() {
    let issuer = Issuer::eddsa();
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let authenticator = authenticator(JwtKey {
        algorithm: Some(issuer.algorithm()),
        jwks_url: JwksUrl::from_text(&format!("http://127.0.0.1:{port}/jwks")),
        ..JwtKey::default()
    });
    let outcome = within(authenticator.authenticate(&token(&issuer, "one"))).await;
    assert_eq!(outcome.map(drop), Err(TokenError::UnknownKey));
}

/// On a paused clock, which jumps to the next timer when nothing else is left to do.
#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let issuer = Issuer::eddsa();
    let server = Server::start(&[issuer.jwk("one")]).await;
    server.open.send_replace(false);
    let authenticator = server.authenticator(&issuer);
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    let outcome = authenticator.authenticate(&token(&issuer, "one")).await;
    assert_eq!(outcome.map(drop), Err(TokenError::UnknownKey));
    let waited_s = begun.elapsed().as_secs();
    assert!((5..7).contains(&waited_s), "{waited_s} s of the paused clock");
}

#[tokio::test]
async fn unknown_keys_cannot_hammer() {
    let issuer = Issuer::eddsa();
    let server = Server::start(&[issuer.jwk("one")]).await;
    let authenticator = server.authenticator(&issuer);
    let now = SystemTime::now();
    for index in 0..200 {
        let forged = token(&issuer, &format!("forged-{index}"));
        if let Verdict::NeedsKeys(fetch) = authenticator.verify(&forged, now) {
            within(authenticator.fetch(fetch)).await;
        }
    }
    assert_eq!(server.requests(), 1);
    assert!(matches!(authenticator.verify(&token(&issuer, "one"), now), Verdict::Valid(_)));
}

#[tokio::test]
async fn any_number_of_callers_share_one_read() {
    let issuer = Issuer::eddsa();
    let server = Server::start(&[issuer.jwk("one")]).await;
    server.open.send_replace(false);
    let authenticator = server.authenticator(&issuer);
    let token: Arc<str> = token(&issuer, "one").into();
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let (authenticator, token) = (Arc::clone(&authenticator), Arc::clone(&token));
            tokio::spawn(async move { authenticator.authenticate(&token).await })
        })
        .collect();
    server.wait_for_requests(1).await;
    // One that comes while the read is under way joins it.
    let late = needs_keys(authenticator.verify(&token, SystemTime::now()));
    server.open.send_replace(true);
    within(authenticator.fetch(late)).await;
    for caller in callers {
        within(caller).await.unwrap().unwrap();
    }
    assert_eq!(server.requests(), 1);
}

/// A client that connects with an unknown key and goes away, over and over, has begun one read in all.
#[tokio::test]
async fn callers_that_leave_do_not_restart_the_read() {
    let issuer = Issuer::eddsa();
    let server = Server::start(&[issuer.jwk("one")]).await;
    server.open.send_replace(false);
    let authenticator = server.authenticator(&issuer);
    let token = token(&issuer, "one");
    for _ in 0..10 {
        let fetch = needs_keys(authenticator.verify(&token, SystemTime::now()));
        tokio::select! {
            biased;
            () = authenticator.fetch(fetch) => panic!("the server does not answer yet"),
            () = server.wait_for_requests(1) => {}
        }
    }
    server.open.send_replace(true);
    within(authenticator.authenticate(&token)).await.unwrap();
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn keys_are_read_before_they_are_needed_and_stay_fresh() {
    let (first, second) = (Issuer::eddsa(), Issuer::eddsa());
    let server = Server::start(&[first.jwk("first")]).await;
    let authenticator = authenticator(JwtKey {
        algorithm: Some(first.algorithm()),
        jwks_url: JwksUrl::from_text(&server.url),
        jwks_refresh: Duration::from_millis(20),
        jwks_min_refetch: Duration::from_millis(10),
        ..JwtKey::default()
    });
    let refresher = tokio::spawn({
        let authenticator = Arc::clone(&authenticator);
        async move { authenticator.keep_fresh().await }
    });
    // The second request begins after the first was taken in.
    server.wait_for_requests(2).await;
    assert!(matches!(authenticator.verify(&token(&first, "first"), SystemTime::now()), Verdict::Valid(_)));
    server.serve_keys(&[second.jwk("second")]);
    let seen = server.requests();
    server.wait_for_requests(seen + 3).await;
    assert!(matches!(authenticator.verify(&token(&second, "second"), SystemTime::now()), Verdict::Valid(_)));
    // It goes on after failures.
    server.serve(StatusCode::BAD_GATEWAY, "");
    let seen = server.requests();
    server.wait_for_requests(seen + 3).await;
    assert!(matches!(authenticator.verify(&token(&second, "second"), SystemTime::now()), Verdict::Valid(_)));
    refresher.abort();
}

/// To try each key would let whoever sends a token choose the cost: a signature for each key of the set.
#[tokio::test]
async fn a_token_names_its_key_where_keys_have_names() {
    let issuer = Issuer::es256();
    let exp = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + 60;
    let unnamed = issuer.token_with(&json!({ "alg": "ES256" }), &json!({ "sub": "alice", "exp": exp }));
    let mut nameless = issuer.jwk("one");
    nameless.as_object_mut().unwrap().remove("kid");
    let other = Issuer::es256();
    let mut other_nameless = other.jwk("two");
    other_nameless.as_object_mut().unwrap().remove("kid");
    for (keys, expect) in [
        (vec![issuer.jwk("one")], false),
        (vec![other.jwk("two"), issuer.jwk("one")], false),
        (vec![nameless.clone()], true),
        (vec![other_nameless, nameless], true),
    ] {
        let server = Server::start(&keys).await;
        let outcome = within(server.authenticator(&issuer).authenticate(&unnamed)).await;
        assert_eq!(outcome.is_ok(), expect, "{keys:?}: {outcome:?}");
    }
}

/// Of a set, only what is for this algorithm and for signatures counts.
#[tokio::test]
async fn keys_of_a_set_are_picked() {
    let issuer = Issuer::es256();
    let with = |name: &str, value: Value| {
        let mut key = issuer.jwk("one");
        key[name] = value;
        key
    };
    let oct =
        json!({ "kty": "oct", "kid": "one", "k": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" });
    let noise =
        [json!(null), json!({}), json!({ "kty": "XYZ" }), oct, RSA.jwk("one"), Issuer::eddsa().jwk("one")];
    for (key, expect) in [
        (issuer.jwk("one"), true),
        (with("use", json!("sig")), true),
        (with("key_ops", json!(["verify"])), true),
        (with("alg", json!("ES256")), true),
        (with("use", json!("enc")), false),
        (with("key_ops", json!(["encrypt"])), false),
        (with("alg", json!("ES384")), false),
        (with("crv", json!("P-384")), false),
        (with("crv", json!("secp256k1")), false),
        (with("x", json!("AAAA")), false),
        (with("x", json!("!")), false),
        (with("kid", json!("two")), false),
    ] {
        let mut keys = noise.to_vec();
        keys.push(key.clone());
        let server = Server::start(&keys).await;
        let outcome = within(server.authenticator(&issuer).authenticate(&token(&issuer, "one"))).await;
        assert_eq!(outcome.is_ok(), expect, "{key}");
    }
}

#[tokio::test]
async fn a_file_rotates_too() {
    let (first, second) = (Issuer::es256(), Issuer::es256());
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "{}", json!({ "keys": [first.jwk("first")] })).unwrap();
    let authenticator = authenticator(JwtKey {
        algorithm: Some(first.algorithm()),
        jwks_file: Some(file.path().to_owned()),
        ..JwtKey::default()
    });
    // Read at the start, so nothing is to be fetched.
    assert!(matches!(authenticator.verify(&token(&first, "first"), SystemTime::now()), Verdict::Valid(_)));
    std::fs::write(file.path(), json!({ "keys": [second.jwk("second")] }).to_string()).unwrap();
    assert!(within(authenticator.authenticate(&token(&second, "second"))).await.is_ok());
}
