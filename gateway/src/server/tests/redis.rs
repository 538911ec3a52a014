//! Whole servers that meet on a real Redis: they behave as one, and say so when it is away.

use std::{net::SocketAddr, thread, time::Duration};

use serde_json::json;
use tidegate_testkit::{DEADLINE, Rest, WsClient, eventually, eventually_some, redis::RedisServer};

use super::apart::{token, with_presence};
use crate::{
    config::{BackplaneAway, BackplaneUrl, Config, ConfigError, Namespace, Setting as _},
    server::{Server, StartError},
};

/// A server on free ports, with a thread that runs it until it is dropped.
pub(super) struct Running {
    pub(super) public: SocketAddr,
    pub(super) rest: Rest,
    internal: Rest,
    thread: Option<thread::JoinHandle<Result<(), StartError>>>,
}

pub(super) fn config(url: &str, name: &str) -> Config {
    let mut config = with_presence();
    config.backplane = BackplaneUrl::from_text(url).unwrap();
    config.node = name.into();
    config.listen.set_port(0);
    config.internal.set_port(0);
    config.drain.period = Duration::ZERO;
    let local = Namespace { backplane_away: BackplaneAway::Local, ..config.namespaces.default.clone() };
    config.namespaces.named.insert("local".into(), local);
    config
}

impl Running {
    fn start(redis: &RedisServer, name: &str) -> Self {
        Self::start_with(config(&redis.url(), name))
    }

    pub(super) fn start_with(config: Config) -> Self {
        let server = Server::bind(config).unwrap();
        let (public, internal) = (server.public_address(), server.internal_address());
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || server.run(move || ready.send(()).unwrap()));
        is_ready.recv_timeout(DEADLINE).unwrap();
        let rest = Rest::new(public).with_key("dev-key");
        Self { public, rest, internal: Rest::new(internal), thread: Some(thread) }
    }

    fn subscribe(&self, channel: &str) -> WsClient {
        WsClient::connect(self.public, &format!("/ws?channel={channel}&token={}", token()))
    }

    fn publish(&self, channel: &str, text: &str) -> (u16, serde_json::Value) {
        let answer = self.rest.post(&format!("/v1/channels/{channel}/publish"), "text/plain", text);
        (answer.status, answer.json())
    }

    fn nodes(&self) -> Vec<String> {
        let nodes = self.rest.get("/v1/nodes").json()["nodes"].clone();
        nodes.as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Users and connections in a channel.
    fn present(&self, channel: &str) -> Vec<String> {
        let answer = self.rest.get(&format!("/v1/channels/{channel}/presence")).json();
        let members = answer["members"].as_array().unwrap().iter();
        members.map(|member| member["connection"].as_str().unwrap().to_owned()).collect()
    }

    pub(super) fn reasons(&self) -> Vec<String> {
        let answer = self.internal.get("/readyz");
        let reasons = answer.json()["reasons"].as_array().cloned().unwrap_or_default();
        assert_eq!(answer.status == 200, reasons.is_empty());
        reasons.iter().map(|reason| reason.as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        assert_eq!(self.internal.post("/drain", "text/plain", "").status, 202);
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

#[test]
fn two_nodes_on_one_redis_behave_as_one() {
    let redis = RedisServer::start();
    let (a, b) = (Running::start(&redis, "a"), Running::start(&redis, "b"));
    eventually("each knows both", DEADLINE, || a.nodes() == ["a", "b"] && b.nodes() == ["a", "b"]);

    let (mut near, mut far) = (a.subscribe("news"), b.subscribe("news"));
    for n in 1..=20 {
        let (status, answer) = a.publish("news", &n.to_string());
        assert_eq!((status, &answer["offset"]), (200, &json!(n)), "{answer}");
        assert_eq!((near.expect_text(), far.expect_text()), (n.to_string(), n.to_string()));
    }
    let mut plain = b.subscribe("plain:x");
    assert_eq!(a.publish("plain:x", "x"), (200, json!({"epoch": null, "offset": null})));
    assert_eq!(plain.expect_text(), "x");
    let here = a.rest.get("/v1/channels/plain:x").json();
    assert_eq!(here, json!({"node": "a", "channel": "plain:x", "subscribers": 0}), "it is on the other node");

    // Presence and orders.
    let mut ada = b.subscribe("room:1");
    eventually("the other node sees who is present", DEADLINE, || a.present("room:1").len() == 1);
    let order = json!({"connection": a.present("room:1")[0], "reason": "signed out"});
    assert_eq!(a.rest.post_json("/v1/disconnect", &order).status, 202);
    assert_eq!(ada.expect_close(4403), "signed out");
    eventually("nobody is present", DEADLINE, || a.present("room:1").is_empty());

    let metrics = a.internal.get("/metrics").text();
    for sample in [
        "tidegate_backplane_connected{server=",
        "tidegate_backplane_published_total{way=\"script\"} 20",
        "tidegate_backplane_published_total{way=\"plain\"} 1",
        "tidegate_backplane_gaps_total{reason=\"unrecoverable\"} 0",
    ] {
        assert!(metrics.contains(sample), "{sample}:\n{metrics}");
    }
    drop(b);
    eventually("the drained node is not listed", DEADLINE, || a.nodes() == ["a"]);
}

#[test]
fn while_redis_is_away_the_node_says_so_and_then_repairs() {
    let mut redis = RedisServer::builder().option("appendonly", "yes").start();
    let a = Running::start(&redis, "a");
    let mut news = a.subscribe("news");
    let mut local = a.subscribe("local:x");
    assert_eq!(a.publish("news", "1").0, 200);
    assert_eq!(news.expect_text(), "1");
    assert!(a.reasons().is_empty());

    redis.kill();
    let reason = eventually_some("it is not ready", DEADLINE, || a.reasons().pop());
    assert!(reason.starts_with("the backplane is out of reach"), "{reason}");
    assert_eq!(a.internal.get("/livez").status, 200);
    let refused = a.rest.post("/v1/channels/news/publish", "text/plain", "lost");
    assert_eq!(refused.expect_problem(503)["type"], "urn:tidegate:problem:backplane-unavailable");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(a.publish("local:x", "here").1, json!({"epoch": null, "offset": null, "local": true}));
    assert_eq!(local.expect_text(), "here");

    redis.restart();
    eventually("it is ready again", DEADLINE, || a.reasons().is_empty());
    eventually("publishes are taken", DEADLINE, || a.publish("news", "2").0 == 200);
    assert_eq!(news.expect_text(), "2");
}

#[test]
fn a_redis_that_cannot_be_used_is_one_line_at_the_start() {
    let redis = RedisServer::start();
    let url = redis.url_as("nobody", "wrong");
    let server = Server::bind(config(&url, "a")).unwrap();
    let error = server.run(|| panic!("it is not ready")).unwrap_err();
    assert!(matches!(error, StartError::Redis(_)), "{error}");
    assert_eq!(error.exit_code(), ConfigError::EXIT_CODE);
    let sentence = error.to_string();
    assert!(sentence.contains("credentials") && !sentence.contains('\n'), "{sentence}");
    assert!(!sentence.contains("wrong"), "{sentence}");
}
