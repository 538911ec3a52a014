//! Presence channels: the list, and its changes, once for each user.

use serde_json::{Value, json};

use super::{
    super::rig::Rig,
    client::{Client, app, config},
};

#[track_caller]
fn added(client: &mut Client, channel: &str, user: &str) {
    let member = client.expect_on("pusher_internal:member_added", channel);
    assert_eq!(member, json!({ "user_id": user, "user_info": { "name": user } }));
}

#[track_caller]
fn removed(client: &mut Client, channel: &str, user: &str) {
    let member = client.expect_on("pusher_internal:member_removed", channel);
    assert_eq!(member, json!({ "user_id": user }));
}

#[test]
fn a_user_comes_and_goes_once_however_many_connections_it_has() {
    let rig = Rig::start(config());
    let mut ann = Client::connect(&rig);
    assert_eq!(ann.subscribe_as("presence-a", "ann"), ["ann"]);
    let [mut bob, mut bob_too] = [(); 2].map(|()| Client::connect(&rig));
    assert_eq!(bob.subscribe_as("presence-a", "bob"), ["ann", "bob"]);
    added(&mut ann, "presence-a", "bob");
    assert_eq!(bob_too.subscribe_as("presence-a", "bob"), ["ann", "bob"]);
    assert_eq!(rig.attending("presence-a"), (3, 2));
    drop(bob);
    rig.eventually_attending("presence-a", (2, 2));
    bob_too.send("pusher:unsubscribe", json!({ "channel": "presence-a" }));
    removed(&mut ann, "presence-a", "bob");
    bob_too.expect_nothing();
    drop((ann, bob_too));
    rig.eventually_attending("presence-a", (0, 0));
    rig.eventually_empty();
}

#[test]
fn who_is_who() {
    let mut config = config();
    let limits = &mut app(&mut config).limits;
    (limits.presence_members, limits.presence_user_bytes) = (2, crate::config::ByteSize::new(20));
    let rig = Rig::start(config);
    let mut client = Client::connect(&rig);
    let mut check = |data: Option<Value>, kind: &str, status: u16, expect: &str| {
        let text = data.as_ref().map(|data| data.as_str().map_or_else(|| data.to_string(), str::to_owned));
        let auth = client.auth("presence-a", text.as_deref());
        let ask = json!({ "channel": "presence-a", "auth": auth, "channel_data": text });
        client.send("pusher:subscribe", ask);
        let error = client.expect_refusal("presence-a", kind, status);
        assert!(error.contains(expect), "{error}");
    };
    check(None, "RequestError", 400, "needs channel_data");
    check(Some(json!("")), "RequestError", 400, "channel_data is not");
    check(Some(json!({})), "RequestError", 400, "channel_data is not");
    check(Some(json!({ "user_id": "" })), "RequestError", 400, "user_id");
    check(Some(json!({ "user_id": "u".repeat(129) })), "RequestError", 400, "user_id");
    let large = json!({ "user_id": "u", "user_info": "i".repeat(19) });
    check(Some(large), "RequestError", 400, "21 bytes, 20 are allowed");
    // A user more than there may be is refused; another connection of one who is there is not.
    let [mut a, mut b] = [(); 2].map(|()| Client::connect(&rig));
    a.subscribe_as("presence-a", "1");
    let numbers = json!({ "user_id": 2 }).to_string();
    let auth = b.auth("presence-a", Some(&numbers));
    b.send("pusher:subscribe", json!({ "channel": "presence-a", "auth": auth, "channel_data": numbers }));
    let list = b.expect_on("pusher_internal:subscription_succeeded", "presence-a");
    assert_eq!(list["presence"]["ids"], json!(["1", "2"]));
    assert_eq!(list["presence"]["hash"]["2"], Value::Null);
    client.ask_as("presence-a", "3", json!(null));
    assert!(client.expect_refusal("presence-a", "LimitReached", 403).contains("2 users"));
    client.ask_as("presence-a", "2", json!(null));
    client.expect_on("pusher_internal:subscription_succeeded", "presence-a");
    assert_eq!(rig.attending("presence-a"), (3, 2));
}

/// Each subscriber's list and events together are right at any time: what is in neither or in both shows.
#[test]
fn no_change_is_missed_or_told_twice() {
    let rig = Rig::start(config());
    let mut watcher = Client::connect(&rig);
    watcher.subscribe_as("presence-a", "watcher");
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(&rig)).collect();
    // All ask before any is answered to.
    for (n, client) in clients.iter_mut().enumerate() {
        client.ask_as("presence-a", &format!("u{n:02}"), json!(null));
    }
    let mut lists = Vec::new();
    for client in &mut clients {
        let list = client.expect_on("pusher_internal:subscription_succeeded", "presence-a");
        lists.push(serde_json::from_value::<Vec<String>>(list["presence"]["ids"].clone()).unwrap());
    }
    for (client, list) in clients.iter_mut().zip(&mut lists) {
        while list.len() < 21 {
            let member = client.expect_on("pusher_internal:member_added", "presence-a");
            let user = member["user_id"].as_str().unwrap().to_owned();
            assert!(!list.contains(&user), "{user} was there");
            list.push(user);
        }
        client.expect_nothing();
    }
    for _ in 0..20 {
        watcher.expect_on("pusher_internal:member_added", "presence-a");
    }
    watcher.expect_nothing();
}
