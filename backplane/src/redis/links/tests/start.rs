//! What a start says when it cannot succeed, and credentials, databases, TLS.

use redis::Value;
use tidegate_testkit::redis::{RedisCluster, RedisServer, Sentinel};

use super::{Rig, channel};
use crate::redis::options::{RedisFiles, SentinelLogin};

/// A start that fails with a sentence that has these words, and no secret.
async fn check_refused(url: &str, words: &[&str]) {
    let error = Rig::try_start(url, None).await.err().expect("a start that fails").to_string();
    let error = error.to_lowercase();
    for word in words {
        assert!(error.contains(&word.to_lowercase()), "{word:?} is not in {error:?}");
    }
    assert!(!error.contains("s3cret"), "{error:?}");
}

/// It is waited for as long as it takes, and said to be away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_late() {
    let mut server = RedisServer::start();
    server.kill();
    let rig = Rig::start(&server.url()).await;
    let health = rig.links.health().unwrap_err().to_string();
    assert!(health.contains(&server.address().to_string()), "{health}");
    server.restart();
    rig.eventually_healthy();
    let master = RedisServer::start();
    let port = master.address().port().to_string();
    let replica = RedisServer::builder().option("replicaof", &format!("127.0.0.1 {port}")).start();
    let late = Rig::start(&replica.url()).await;
    let health = late.links.health().unwrap_err().to_string();
    assert!(health.contains("it is a replica"), "{health}");
    replica.command(&["REPLICAOF", "NO", "ONE"]);
    late.eventually_healthy();
    late.stop().await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_of_this_machine() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("redis.sock");
    let socket = path.display().to_string();
    let server = RedisServer::builder().option("unixsocket", &socket).start();
    let rig = Rig::start(&format!("redis+unix://{socket}?db=3")).await;
    assert_eq!(rig.call("a", &["SET", &channel("a"), "1"]).await, Ok(Value::Okay));
    rig.subscribe("a");
    assert_eq!(rig.publish("a", "hello").await, Ok(Value::Int(1)));
    rig.eventually_received("a", "hello");
    assert_eq!(server.command(&["GET", &channel("a")]), tidegate_testkit::redis::Value::Nil, "database 3");
    rig.stop().await;
}

/// Each command that is used is tried, and the one that is forbidden is named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_missing_is_named() {
    for lacking in ["-hset", "-evalsha", "-publish", "-sadd", "-script|load"] {
        let rules = format!("app on >right ~tidegate:* &tidegate:* +@all {lacking}");
        let server = RedisServer::builder().user(&rules).start();
        let name = lacking.trim_start_matches('-');
        check_refused(&server.url_as("app", "right"), &["grant", name.split('|').next().unwrap()]).await;
    }
    let server = RedisServer::builder().user("app on >right ~other:* &* +@all").start();
    check_refused(&server.url_as("app", "right"), &["grant"]).await;
}

/// A password that was rotated is read again from its file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_was_rotated() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "old\n").unwrap();
    let server = RedisServer::builder().user("app on >old ~* &* +@all").start();
    let files = RedisFiles { password: Some(file.clone()), ..RedisFiles::default() };
    let url = server.url_as("app", "of-the-url");
    let rig = Rig::try_start_with(&url, files).await.unwrap_or_else(|error| panic!("{error}"));
    server.command(&["ACL", "SETUSER", "app", "resetpass", ">new"]);
    std::fs::write(&file, "new\n").unwrap();
    server.command(&["CLIENT", "KILL", "USER", "app"]);
    // A call may still go to the connection that was killed.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        match rig.call("a", &["SET", &channel("a"), "1"]).await {
            Ok(answer) => break assert_eq!(answer, Value::Okay),
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
        rig.eventually_healthy();
    }
    rig.stop().await;
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
        "app on >right ~tidegate:* &tidegate:* -@all +@pubsub +@read +@write +@connection +@scripting +time";
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

/// Servers that ask for a certificate get the one of the files, and take nobody without one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_asks_for_a_certificate() {
    let server = RedisServer::builder().tls().option("tls-auth-clients", "yes").start();
    let files = RedisFiles {
        ca: Some(server.ca_certificate()),
        certificate: Some(server.certificate()),
        ..RedisFiles::default()
    };
    let rig = Rig::try_start_with(&server.url(), files).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(rig.call("a", &["SET", &channel("a"), "1"]).await, Ok(Value::Okay));
    rig.stop().await;
    check_without_certificate(&server).await;
}

/// Whether the start says so or the link stays away: nothing is served.
async fn check_without_certificate(server: &RedisServer) {
    let started = Rig::try_start(&server.url(), Some(server.ca_certificate())).await;
    if let Ok(rig) = started {
        assert!(rig.links.health().is_err());
        rig.stop().await;
    }
}

/// Sentinels may have another user than the servers that they watch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_with_a_user_of_their_own() {
    let mut group = Sentinel::start();
    for sentinel in group.sentinels() {
        sentinel.command(&["ACL", "SETUSER", "watcher", "on", ">seen", "+@all"]);
        sentinel.command(&["ACL", "SETUSER", "default", "resetpass", "-@all", "+auth", "+hello"]);
    }
    let directory = tempfile::tempdir().unwrap();
    let password_file = directory.path().join("password");
    std::fs::write(&password_file, "seen\n").unwrap();
    let login = SentinelLogin { user: Some("watcher".into()), password_file };
    let rig = Rig::try_start_as(&group.url(), RedisFiles::default(), Some(login)).await;
    let rig = rig.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(rig.call("a", &["SET", &channel("a"), "1"]).await, Ok(Value::Okay));
    rig.stop().await;
}
