//! Clients on two servers that meet on a real Redis.

use serde_json::{Value, json};
use tidegate_testkit::{DEADLINE, eventually, redis::RedisServer};

use super::{
    super::redis::{Running, config},
    client::{Client, PATH, app},
};

fn start(redis: &RedisServer, name: &str) -> Running {
    let mut config = config(&redis.url(), name);
    app(&mut config).subscription_count = false;
    Running::start_with(config)
}

fn connect(server: &Running) -> Client {
    Client::connect_to(server.public, PATH)
}

fn publish(server: &Running, channel: &str, text: &str) {
    let path = format!("/v1/channels/{channel}/publish");
    assert_eq!(server.rest.post(&path, "text/plain", text).status, 200);
}

#[test]
fn members_and_their_events_on_two_servers() {
    let redis = RedisServer::start();
    let (first, second) = (start(&redis, "first"), start(&redis, "second"));
    let (mut ann, mut ann_too, mut bob) = (connect(&first), connect(&first), connect(&second));
    assert_eq!(ann.subscribe_as("presence-a", "ann"), ["ann"]);
    assert_eq!(bob.subscribe_as("presence-a", "bob"), ["ann", "bob"]);
    let added = ann.expect_on("pusher_internal:member_added", "presence-a");
    assert_eq!(added, json!({ "user_id": "bob", "user_info": { "name": "bob" } }));
    // Another connection of a user who is there is no news.
    assert_eq!(ann_too.subscribe_as("presence-a", "ann"), ["ann", "bob"]);
    ann.send_event("presence-a", "client-x", json!(1));
    for client in [&mut ann_too, &mut bob] {
        let message = client.next();
        assert_eq!((&message["event"], &message["user_id"]), (&json!("client-x"), &json!("ann")));
    }
    bob.send_event("presence-a", "client-y", json!(2));
    // Its own event was not handed back to it.
    assert_eq!(ann.expect_on("client-y", "presence-a"), 2);
    assert_eq!(ann_too.expect_on("client-y", "presence-a"), 2);
    drop(second);
    bob.socket.expect_close(1001);
    let removed = ann.expect_on("pusher_internal:member_removed", "presence-a");
    assert_eq!(removed, json!({ "user_id": "bob" }));
}

#[test]
fn the_last_event_of_another_server() {
    let redis = RedisServer::start();
    let (first, second) = (start(&redis, "first"), start(&redis, "second"));
    let mut early = connect(&second);
    early.subscribe("cache-a");
    early.expect_on("pusher:cache_miss", "cache-a");
    publish(&first, "cache-a", "1");
    publish(&first, "cache-a", "2");
    assert_eq!(early.expect_on("message", "cache-a"), 1);
    assert_eq!(early.expect_on("message", "cache-a"), 2);
    let mut late = connect(&second);
    late.subscribe("cache-a");
    assert_eq!(late.expect_on("message", "cache-a"), 2);
    publish(&first, "cache-a", "3");
    assert_eq!(late.expect_on("message", "cache-a"), 3);
    assert_eq!(early.expect_on("message", "cache-a"), 3);
}

#[test]
fn users_of_two_servers() {
    let redis = RedisServer::start();
    let (first, second) = (start(&redis, "first"), start(&redis, "second"));
    let mut watcher = connect(&first);
    watcher.sign_in(&json!({ "id": "w", "watchlist": ["u"] }));
    let status = |client: &mut Client| -> Value {
        client.expect("pusher_internal:watchlist_events")["events"][0]["name"].clone()
    };
    assert_eq!(status(&mut watcher), "offline");
    let mut user = connect(&second);
    user.sign_in(&json!({ "id": "u" }));
    assert_eq!(status(&mut watcher), "online");
    user.send("pusher:subscribe", json!({ "channel": "#server-to-user-u", "auth": "" }));
    user.expect_on("pusher_internal:subscription_succeeded", "#server-to-user-u");
    publish(&first, "%23server-to-user-u", "7");
    assert_eq!(user.expect_on("message", "#server-to-user-u"), 7);
    drop(user);
    assert_eq!(status(&mut watcher), "offline");
}

/// Whoever subscribes while Redis is away is sent off with a code after which it comes back, and has it then.
#[test]
fn while_redis_is_away_clients_come_back_later() {
    let mut redis = RedisServer::start();
    let server = start(&redis, "one");
    let mut client = connect(&server);
    client.subscribe("a");
    redis.kill();
    eventually("the server notices", DEADLINE, || !server.reasons().is_empty());
    client.ask_as("presence-a", "u", json!(null));
    client.expect_refusal("presence-a", "ServerError", 503);
    client.expect_error(Some(4100));
    client.socket.expect_close(4100);
    redis.restart();
    eventually("the server is back", DEADLINE, || server.reasons().is_empty());
    let mut client = connect(&server);
    client.ask_as("presence-a", "u", json!(null));
    client.expect_on("pusher_internal:subscription_succeeded", "presence-a");
}
