//! Redis that is late, forgetful, or lacks something: nodes say what, do what can be done, and make it good.

use serde_json::Value;
use tidegate_testkit::redis::{RedisServer, RedisServerBuilder};
use tidegate_testkit::{DEADLINE, Gateway, WsClient, eventually};

use tidegate_tests::cluster::site::{CONFIG, Site, TOKEN, eventually_ready, node};

fn readyz(gateway: &Gateway) -> (u16, Value) {
    let answer = gateway.internal_rest().get("/readyz");
    (answer.status, answer.json())
}

fn presence(gateway: &Gateway, channel: &str) -> usize {
    let answer = gateway.rest().get(&format!("/v1/channels/{channel}/presence"));
    answer.json()["members"].as_array().map_or(0, Vec::len)
}

/// Forgets nothing that it acknowledged.
fn durable() -> RedisServerBuilder {
    RedisServer::builder().option("appendfsync", "always")
}

#[test]
fn a_server_that_is_late_is_waited_for() {
    let mut redis = durable().start();
    redis.kill();
    let gateway = node(&redis.url(), 1).start();
    let body = eventually_ready(&gateway, false);
    assert!(body.contains(&redis.address().to_string()), "{body}");
    redis.restart();
    eventually_ready(&gateway, true);
    gateway.rest().publish("kept:a", "1").expect("a position");
}

#[test]
fn one_server_of_several_is_missed_and_the_others_serve() {
    let mut servers: Vec<RedisServer> = (0..3).map(|_| durable().start()).collect();
    let addresses: Vec<String> = servers.iter().map(|server| server.address().to_string()).collect();
    let gateway = node(&format!("redis://{}", addresses.join(",")), 1).start();
    servers[1].kill();
    eventually("the missing server is named", DEADLINE, || {
        let (status, body) = readyz(&gateway);
        status == 200 && body["missing"].to_string().contains(&addresses[1])
    });
    let accepted = (0..60).filter(|number| {
        let answer = gateway.rest().post(&format!("/v1/channels/kept:{number}/publish"), "text/plain", "1");
        assert!(matches!(answer.status, 200 | 503), "{}", answer.text());
        answer.status == 200
    });
    assert!((20..60).contains(&accepted.count()), "two of three take what is published");
    servers[1].restart();
    eventually("nothing is missing", DEADLINE, || readyz(&gateway).1["missing"].is_null());
}

#[test]
fn a_server_without_memory_is_told_and_read() {
    let redis = RedisServer::start();
    let gateway = node(&redis.url(), 1).start();
    gateway.rest().publish("kept:a", "1").expect("a position");
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let refused = gateway.rest().post("/v1/channels/kept:a/publish", "text/plain", "2");
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("backplane-overloaded"), "{}", refused.text());
    let (status, body) = readyz(&gateway);
    assert_eq!(status, 200);
    assert!(body["missing"].to_string().contains("OOM"), "{body}");
    assert!((gateway.metric("tidegate_backplane_writable", &[])).abs() < f64::EPSILON);
    let history = gateway.rest().get("/v1/channels/kept:a/history").json();
    assert_eq!(history["publications"].as_array().map(Vec::len), Some(1), "{history}");
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    eventually("nothing is missing", DEADLINE, || readyz(&gateway).1["missing"].is_null());
}

/// What nodes and presence hold has no expiry.
#[test]
fn a_server_that_would_evict_presence_is_named() {
    let redis =
        RedisServer::builder().option("maxmemory", "1gb").option("maxmemory-policy", "allkeys-lru").start();
    let gateway = node(&redis.url(), 1).start();
    let (status, body) = readyz(&gateway);
    assert_eq!(status, 200);
    assert!(body["missing"].to_string().contains("allkeys-lru"), "{body}");
}

/// A copy of the file, two who join and one who leaves, and a restart from the copy within the lease.
#[test]
fn presence_that_redis_acknowledged_and_lost_is_made_good() {
    let mut redis = RedisServer::builder().option("appendonly", "no").start();
    let config = CONFIG.replace("lease = \"3s\"", "lease = \"60s\"");
    let start = |number| node(&redis.url(), number).config(&config).start();
    let gateways = [start(1), start(2)];
    let path = format!("/ws?channel=room:a&envelope=json&token={TOKEN}");
    let leaves = WsClient::connect(gateways[0].public(), &path);
    eventually("the first is there", DEADLINE, || presence(&gateways[1], "room:a") == 1);
    redis.command(&["SAVE"]);
    let _joined = [0, 1].map(|at: usize| WsClient::connect(gateways[at].public(), &path));
    eventually("three are there", DEADLINE, || presence(&gateways[1], "room:a") == 3);
    drop(leaves);
    for gateway in &gateways {
        eventually("two are there", DEADLINE, || presence(gateway, "room:a") == 2);
    }
    redis.kill();
    redis.restart();
    for gateway in &gateways {
        eventually_ready(gateway, true);
        eventually("two are there again", DEADLINE, || presence(gateway, "room:a") == 2);
    }
}

/// Databases of one server are one room for pub/sub.
#[test]
fn deployments_in_two_databases_do_not_hear_each_other() {
    let redis = RedisServer::start();
    let [first, second] = [0, 3].map(|db| node(&format!("{}/{db}", redis.url()), 1 + db).start());
    let mut hears = first.subscribe("live:a");
    second.rest().publish("live:a", "of the other");
    first.rest().publish("live:a", "its own");
    assert_eq!(hears.expect_text(), "its own");
}

/// What was sent while a password was rotated goes on with the new one.
#[test]
fn a_rotated_password_is_read_again() {
    let redis = RedisServer::builder().user("default off").user("app on >old ~* &* +@all").start();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "old\n").expect("it is written");
    let config = format!("{CONFIG}password_file = \"{}\"\n", file.path().display());
    let url = redis.url().replacen("redis://", "redis://app@", 1);
    let gateway = node(&url, 1).config(&config).start();
    redis.command(&["ACL", "SETUSER", "app", "resetpass", ">new"]);
    redis.command(&["CLIENT", "KILL", "USER", "app"]);
    eventually_ready(&gateway, false);
    std::fs::write(file.path(), "new\n").expect("it is written");
    eventually_ready(&gateway, true);
}

/// Nothing that a right is missing for is found by clients.
#[test]
fn a_missing_right_is_named_at_the_start() {
    let redis = RedisServer::builder().user("app on >secret ~* &* +@all -hset").start();
    let exit = Gateway::builder().backplane(&redis.url_as("app", "secret")).run_to_exit();
    assert_eq!(exit.code, Some(2), "{exit}");
    assert!(exit.stderr.to_lowercase().contains("hset"), "{exit}");
}

#[test]
fn all_nodes_that_were_away_for_longer_than_their_lease_are_there_again() {
    let mut redis = durable().start();
    let site = Site::start(&redis.url(), 3);
    let path = format!("/ws?channel=room:a&envelope=json&token={TOKEN}");
    let _clients: Vec<_> =
        site.gateways.iter().map(|gateway| WsClient::connect(gateway.public(), &path)).collect();
    for gateway in &site.gateways {
        eventually("all are there", DEADLINE, || presence(gateway, "room:a") == 3);
    }
    redis.kill();
    site.eventually_ready(false);
    for gateway in &site.gateways {
        gateway.eventually_metric("tidegate_backplane_leases_lapsed_total", &[], |lapsed| lapsed > 0.0);
    }
    redis.restart();
    site.eventually_ready(true);
    for gateway in &site.gateways {
        eventually("all are there again", DEADLINE, || presence(gateway, "room:a") == 3);
    }
    let removed = |gateway: &Gateway| gateway.metric("tidegate_backplane_instances_removed_total", &[]);
    assert!(site.gateways.iter().all(|gateway| removed(gateway) <= 3.0), "former instances at most");
}
