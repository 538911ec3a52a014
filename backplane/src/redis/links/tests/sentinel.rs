//! A master that the Sentinels name, through failovers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redis::Value;
use tidegate_testkit::redis::{RedisServer, Sentinel};
use tidegate_testkit::{DEADLINE, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{Rig, channel};
use crate::BackplaneError;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_link_follows_the_master() {
    let mut sentinel = Sentinel::start();
    let rig = Rig::start(&sentinel.url()).await;
    let (_, first) = rig.subscribe("a");
    let new_master = sentinel.failover();
    rig.eventually_healthy();
    let (_, second) = rig.subscribe("a");
    assert!(second > first);
    assert_eq!(rig.call("a", &["SET", &channel("a"), "1"]).await, Ok(Value::Okay));
    assert_eq!(rig.publish("a", "hello").await, Ok(Value::Int(1)));
    rig.eventually_received("a", "hello");
    assert_eq!(sentinel.master().address(), new_master);
    assert_eq!(sentinel.master().command(&["GET", &channel("a")]).text(), "1");
    // The old one returns as a replica and changes nothing.
    sentinel.revive();
    assert_eq!(rig.call("a", &["SET", &channel("a"), "2"]).await, Ok(Value::Okay));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_deposed_alive_is_left() {
    let mut sentinel = Sentinel::start();
    let rig = Rig::start(&sentinel.url()).await;
    let old = sentinel.master().address();
    sentinel.sentinels()[0].command(&["SENTINEL", "FAILOVER", tidegate_testkit::redis::SENTINEL_MASTER]);
    eventually("another master", DEADLINE, || sentinel.master().address() != old);
    // Until the switch is through, a call may be refused or have no known outcome; then it works on the new one.
    let mut answers = Vec::new();
    let done = loop {
        match rig.call("a", &["SET", &channel("a"), "1"]).await {
            Ok(answer) if sentinel.master().command(&["GET", &channel("a")]).text() == "1" => break answer,
            Ok(_) => {}
            Err(error @ BackplaneError::Refused(_)) => panic!("{error}"),
            Err(error) => answers.push(error),
        }
        tokio::task::yield_now().await;
        assert!(answers.len() < 1_000_000, "{:?}", answers.last());
    };
    assert_eq!(done, Value::Okay);
    assert!(rig.links.counters()[0].sessions >= 2);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_sentinel_is_enough() {
    let mut sentinel = Sentinel::start();
    let url = sentinel.url();
    sentinel.sentinels()[0].kill();
    sentinel.sentinels()[1].stop();
    let rig = Rig::start(&url).await;
    assert_eq!(rig.publish("a", "hello").await, Ok(Value::Int(0)));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_deposed_while_it_is_connected_to_serves_nobody() {
    let [old, new] = [RedisServer::start(), RedisServer::start()];
    let rig = Rig::start(&sentinel_that_fails_over(old.address(), new.address()).await).await;
    rig.call("a", &["SET", &channel("a"), "1"]).await.expect("it is up");
    assert_eq!(old.command(&["GET", &channel("a")]), tidegate_testkit::redis::Value::Nil);
    assert_eq!(new.command(&["GET", &channel("a")]).text(), "1");
    assert_eq!(rig.links.counters()[0].sessions, 1);
    rig.stop().await;
}

/// Names the old master once. From then on it has a new epoch and a new address, and the old address where one says so during
/// a failover.
async fn sentinel_that_fails_over(old: SocketAddr, new: SocketAddr) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let url = format!("redis-sentinel://{}/tidegate", listener.local_addr().expect("it is bound"));
    let has_named = Arc::new(AtomicBool::new(false));
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let has_named = Arc::clone(&has_named);
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                // One question at a time, each a packet of its own.
                while let Ok(read @ 1..) = socket.read(&mut buffer).await {
                    let question = String::from_utf8_lossy(&buffer[..read]).into_owned();
                    let answer = if question.contains("HELLO") {
                        "%2\r\n+version\r\n+7.0.0\r\n+mode\r\n+sentinel\r\n".to_owned()
                    } else if question.contains("GET-MASTER-ADDR-BY-NAME") {
                        let named = if has_named.swap(true, Ordering::Relaxed) { new } else { old };
                        format!("*2\r\n+{}\r\n+{}\r\n", named.ip(), named.port())
                    } else if question.contains("MASTER") {
                        let epoch = u8::from(has_named.load(Ordering::Relaxed));
                        let [ip, port] = [old.ip().to_string(), old.port().to_string()];
                        format!("%3\r\n+ip\r\n+{ip}\r\n+port\r\n+{port}\r\n+config-epoch\r\n+{epoch}\r\n")
                    } else {
                        "+PONG\r\n".to_owned()
                    };
                    if socket.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}
