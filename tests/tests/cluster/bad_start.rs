//! A backplane that cannot be what was asked for: exit code 2, and one line that says what and what to do.

use tidegate_testkit::Gateway;
use tidegate_testkit::redis::RedisServer;

#[track_caller]
fn check(url: &str, words: &[&str]) {
    let exit = Gateway::builder().backplane(url).run_to_exit();
    assert_eq!(exit.code, Some(2), "{url}: {exit}");
    assert_eq!(exit.stderr.trim_end().lines().count(), 1, "one line: {url}: {exit}");
    for word in words {
        assert!(exit.stderr.contains(word), "{word:?} is named: {url}: {exit}");
    }
}

#[test]
fn a_url_that_cannot_be_read_is_named() {
    check("redis://", &["backplane"]);
    check("redis://127.0.0.1:many", &["backplane"]);
    check("redis-sentinel://127.0.0.1:26379", &["backplane"]);
    check("valkey-ring://127.0.0.1:1", &["backplane", "redis-cluster://"]);
}

#[test]
fn refused_credentials_are_told_without_the_password() {
    let redis = RedisServer::builder().user("default off").user("alice on >secret ~* &* +@all").start();
    let wrong = redis.url_as("alice", "wrong-password");
    let exit = Gateway::builder().backplane(&wrong).run_to_exit();
    assert!(!exit.to_string().contains("wrong-password"), "{exit}");
    let address = redis.address().to_string();
    check(&wrong, &[&address]);
    check(&redis.url(), &[&address]);
}

#[test]
fn a_server_that_is_no_cluster_is_told() {
    let redis = RedisServer::start();
    check(&redis.url().replace("redis://", "redis-cluster://"), &["luster", "redis://"]);
}
