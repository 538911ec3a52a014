//! What a start says when it cannot succeed, and credentials, databases, TLS.

use redis::Value;
use tidegate_testkit::redis::{RedisCluster, RedisServer, Sentinel};

use super::{Rig, channel};

/// A start that fails with a sentence that has these words, and no secret.
async fn check_refused(url: &str, words: &[&str]) {
    let error = Rig::try_start(url, None).await.err().expect("a start that fails").to_string();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
    assert!(!error.contains("s3cret"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there() {
    let address = tidegate_testkit::net::free_address();
    check_refused(&format!("redis://:s3cret@{address}"), &[&address.to_string(), "out of reach"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials() {
    let users = RedisServer::builder().user("app on >right ~tidegate:* &tidegate:* +@all");
    let server = users.user("default on >right ~* &* +@all").start();
    check_refused(&server.url_as("app", "s3cret"), &["WRONGPASS", "credentials"]).await;
    check_refused(&server.url(), &["NOAUTH", "credentials"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_few_rights() {
    let rules =
        "app on >right ~tidegate:* &tidegate:* -@all +@pubsub +@read +@write +@connection +@scripting";
    let server = RedisServer::builder().user(rules).user("few on >right ~* resetchannels +@all").start();
    let rig = Rig::start(&server.url_as("app", "right")).await;
    assert_eq!(rig.call("a", &["SET", &channel("a"), "1"]).await, Ok(Value::Okay));
    rig.subscribe("a");
    rig.stop().await;
    check_refused(&server.url_as("few", "right"), &["NOPERM", "grant"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_its_own() {
    let server = RedisServer::start();
    let rig = Rig::start(&format!("{}/3", server.url())).await;
    assert_eq!(rig.call("a", &["SET", &channel("a"), "1"]).await, Ok(Value::Okay));
    assert_eq!(server.command(&["DBSIZE"]).text(), "0");
    rig.stop().await;
    check_refused(&format!("{}/99", server.url()), &["no database 99"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_of_another_topology() {
    let server = RedisServer::start();
    check_refused(&format!("redis-cluster://{}", server.address()), &["not a Cluster"]).await;
    check_refused(&format!("redis-sentinel://{}/main", server.address()), &["not a Sentinel"]).await;
    let cluster = RedisCluster::start(3, 0);
    check_refused(&format!("redis://{}", cluster.master(0)), &["part of a Cluster", "redis-cluster://"])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_the_sentinels_do_not_know() {
    let mut sentinel = Sentinel::start();
    let address = sentinel.sentinels()[0].address();
    check_refused(&format!("redis-sentinel://{address}/other"), &["no master named other"]).await;
    check_refused(&format!("redis://{address}"), &["is a Sentinel"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_a_private_authority() {
    let server = RedisServer::builder().tls().start();
    let rig =
        Rig::try_start(&server.url(), Some(server.ca_certificate())).await.unwrap_or_else(|e| panic!("{e}"));
    rig.subscribe("a");
    assert_eq!(rig.publish("a", "hello").await, Ok(Value::Int(1)));
    rig.eventually_received("a", "hello");
    rig.stop().await;
    check_refused(&server.url(), &["not trusted", "authority"]).await;
    let missing = server.ca_certificate().with_file_name("missing.pem");
    let error = Rig::try_start(&server.url(), Some(missing)).await.err().expect("no file").to_string();
    assert!(error.contains("missing.pem"), "{error}");
}
