//! One server, and a list of them: calls, subscriptions, kills, hangs.

use redis::Value;
use tidegate_testkit::redis::{Cut, RedisServer};
use tidegate_testkit::{DEADLINE, eventually};

use super::{Event, Rig, channel};
use crate::BackplaneError;
use crate::redis::contract::{Commands, Subscribing};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_answered_and_messages_arrive() {
    let server = RedisServer::start();
    let rig = Rig::start(&server.url()).await;
    assert_eq!(rig.call("a", &["SET", "tidegate:{a}", "1"]).await, Ok(Value::Okay));
    let (route, session) = rig.subscribe("a");
    assert_eq!(rig.publish("a", "hello").await, Ok(Value::Int(1)));
    rig.eventually_received("a", "hello");
    assert!(rig.links.unsubscribe(route.link, session, &[channel("a").as_bytes()]));
    let ended = Event::Ended(route.link, session, channel("a"));
    rig.recorder.eventually("the end", |event| *event == ended);
    assert_eq!(rig.publish("a", "nobody").await, Ok(Value::Int(0)));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_see_the_name_of_the_node() {
    let server = RedisServer::start();
    let rig = Rig::start(&server.url()).await;
    let clients = server.command(&["CLIENT", "LIST"]).text();
    assert_eq!(clients.matches(" name=n1 ").count(), 3, "{clients}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_told_with_its_code() {
    let server = RedisServer::start();
    let rig = Rig::start(&server.url()).await;
    let nowhere = "0000000000000000000000000000000000000000";
    let answer = rig.call("a", &["EVALSHA", nowhere, "0"]).await;
    assert!(
        matches!(&answer, Err(BackplaneError::Refused(why)) if why.starts_with("NOSCRIPT ")),
        "{answer:?}"
    );
    let answer = rig.call("a", &["GET"]).await;
    assert!(
        matches!(&answer, Err(BackplaneError::Refused(why)) if why.starts_with("ERR wrong")),
        "{answer:?}"
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_comes_back_with_a_new_session() {
    let mut server = RedisServer::start();
    let rig = Rig::start(&server.url()).await;
    let (route, first) = rig.subscribe("a");
    server.kill();
    rig.eventually_away("a");
    let answer = rig.publish("a", "lost").await;
    assert!(matches!(&answer, Err(BackplaneError::Unavailable(_))), "{answer:?}");
    let health = rig.links.health().unwrap_err().to_string();
    assert!(health.contains(&server.address().to_string()), "{health}");
    assert!(!rig.links.subscribe(route.link, first, &[b"late"]), "the session is over");
    server.restart();
    rig.eventually_healthy();
    let (_, second) = rig.subscribe("a");
    assert!(second > first);
    assert_eq!(rig.publish("a", "again").await, Ok(Value::Int(1)));
    rig.eventually_received("a", "again");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_is_away_and_what_was_sent_is_unconfirmed() {
    let mut server = RedisServer::start();
    let rig = Rig::start(&server.url()).await;
    server.stop();
    let answer = rig.publish("a", "perhaps").await;
    assert!(matches!(&answer, Err(BackplaneError::Unconfirmed(_))), "{answer:?}");
    let answer = rig.publish("a", "no").await;
    assert!(matches!(&answer, Err(BackplaneError::Unavailable(_))), "{answer:?}");
    server.cont();
    rig.eventually_healthy();
    assert_eq!(rig.publish("a", "yes").await, Ok(Value::Int(0)));
    let counters = &rig.links.counters()[0];
    assert_eq!(counters.calls_unconfirmed, 1);
    assert!(counters.calls_refused_away >= 1);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silence_without_calls_is_noticed_by_the_probe() {
    let server = RedisServer::start();
    let cut = Cut::before(server.address());
    let rig = Rig::start(&cut.url()).await;
    cut.silence();
    rig.eventually_away("a");
    cut.go_on();
    rig.eventually_healthy();
    let counters = &rig.links.counters()[0];
    assert_eq!(counters.probes_lost + counters.replaced[1], 1, "{counters:?}");
    assert_eq!(counters.sessions, 2);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_replaced_when_asked_for() {
    let server = RedisServer::start();
    let rig = Rig::start(&server.url()).await;
    let (route, session) = rig.subscribe("a");
    rig.links.replace(route.link, session, "three confirmations are missing");
    eventually("another session", DEADLINE, || rig.session(route.link) > session);
    rig.links.replace(route.link, session, "an old one is let be");
    assert_eq!(rig.links.counters()[0].replaced[4], 1);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_answers_is_bounded() {
    let mut server = RedisServer::start();
    let rig = Rig::start(&server.url()).await;
    server.stop();
    let payload = "x".repeat(1024 * 1024);
    let calls = (0..20).map(|_| rig.publish("a", &payload));
    let answers = futures_util::future::join_all(calls).await;
    let refused = |answer: &&Result<_, _>| matches!(answer, Err(BackplaneError::Overloaded(_)));
    // 16 MiB hold fifteen such commands and no sixteenth: each has some bytes more.
    assert_eq!(answers.iter().filter(refused).count(), 5);
    assert_eq!(rig.links.counters()[0].calls_refused_bound, 5);
    // What was not written whole cannot have happened; of the rest nobody knows.
    let has = |is: fn(&BackplaneError) -> bool| answers.iter().any(|answer| answer.as_ref().is_err_and(is));
    assert!(has(|error| matches!(error, BackplaneError::Unconfirmed(_))), "{answers:?}");
    assert!(has(|error| matches!(error, BackplaneError::Unavailable(_))), "{answers:?}");
    server.cont();
    rig.eventually_healthy();
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_turned_replica_is_left() {
    let server = RedisServer::start();
    let master = RedisServer::start();
    let rig = Rig::start(&server.url()).await;
    let port = master.address().port().to_string();
    server.command(&["REPLICAOF", "127.0.0.1", &port]);
    let answer = rig.call("a", &["SET", "tidegate:{a}", "1"]).await;
    assert!(matches!(&answer, Err(BackplaneError::Unavailable(_))), "{answer:?}");
    rig.eventually_away("a");
    server.command(&["REPLICAOF", "NO", "ONE"]);
    rig.eventually_healthy();
    assert_eq!(rig.call("a", &["SET", "tidegate:{a}", "1"]).await, Ok(Value::Okay));
    rig.stop().await;
}

/// Whoever only publishes is told by the probe: a replica takes what is published, and hands it to nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_turned_replica_is_left_by_who_only_publishes() {
    let server = RedisServer::start();
    let master = RedisServer::start();
    let rig = Rig::start(&server.url()).await;
    server.command(&["REPLICAOF", "127.0.0.1", &master.address().port().to_string()]);
    rig.eventually_away("a");
    assert!(rig.publish("a", "to nobody").await.is_err());
    rig.stop().await;
}

/// A bulk load that fills what may wait keeps no lease from being renewed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_a_node_alive_has_its_own_way() {
    let mut server = RedisServer::start();
    let rig = Rig::start(&server.url()).await;
    server.stop();
    let payload = "x".repeat(1024 * 1024);
    let bulk = futures_util::future::join_all((0..20).map(|_| rig.publish("a", &payload)));
    let vital = rig.links.vital();
    let renewal = async { vital.call("a", super::cmd(&["SET", &channel("a"), "1"])).await };
    let goes_on = async {
        eventually("the bound is reached", DEADLINE, || rig.links.counters()[0].calls_refused_bound > 0);
        server.cont();
    };
    let (_, renewed, ()) = tokio::join!(bulk, renewal, goes_on);
    assert_eq!(renewed, Ok(Value::Okay));
    rig.stop().await;
}

/// A probe behind a backlog is late, not lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_is_no_dead_link() {
    let server = RedisServer::start();
    let cut = Cut::before(server.address());
    let rig = Rig::start(&cut.url()).await;
    rig.subscribe("a");
    cut.slow(100_000);
    let mut client = server.client();
    let payload = "x".repeat(10_000);
    for _ in 0..60 {
        client.command(&["PUBLISH", &channel("a"), &payload]).unwrap();
    }
    client.command(&["PUBLISH", &channel("a"), "last"]).unwrap();
    rig.eventually_received("a", "last");
    let counters = &rig.links.counters()[0];
    assert_eq!((counters.sessions, counters.probes_lost), (1, 0), "{counters:?}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_spreads_tags_and_loses_only_those_of_a_dead_server() {
    let mut servers: Vec<RedisServer> = (0..3).map(|_| RedisServer::start()).collect();
    let addresses: Vec<String> = servers.iter().map(|server| server.address().to_string()).collect();
    let rig = Rig::start(&format!("redis://{}", addresses.join(","))).await;
    let tags: Vec<String> = (0..60).map(|number| format!("news:{number}")).collect();
    for tag in &tags {
        assert_eq!(rig.call(tag, &["SET", &channel(tag), "1"]).await, Ok(Value::Okay));
    }
    let keys = |server: &RedisServer| server.command(&["KEYS", "tidegate:{news:*"]).elements().len();
    let sizes: Vec<usize> = servers.iter().map(keys).collect();
    assert_eq!(sizes.iter().sum::<usize>(), tags.len());
    assert!(sizes.iter().all(|size| *size > 0), "{sizes:?}");
    servers[0].kill();
    let lost = rig.links.route(&tags[0]).unwrap().link;
    let of_first = |tag: &&String| rig.links.route(tag).unwrap().link.0 == 0;
    rig.eventually_away(tags.iter().find(of_first).unwrap());
    for tag in &tags {
        let answer = rig.call(tag, &["GET", &channel(tag)]).await;
        assert_eq!(answer.is_err(), of_first(&tag), "{tag} {answer:?} {lost:?}");
    }
    rig.stop().await;
}
