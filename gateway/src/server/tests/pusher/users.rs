//! Users: signing in, their own channel, who watches whom.

use serde_json::{Value, json};
use tidegate_backplane::{Backplane as _, Control, Target};
use tidegate_testkit::Rest;

use super::{
    super::rig::Rig,
    client::{Client, config, signature},
};

#[track_caller]
fn status(client: &mut Client, status: &str, user: &str) {
    let told = client.expect("pusher_internal:watchlist_events");
    assert_eq!(told, json!({ "events": [{ "name": status, "user_ids": [user] }] }));
}

#[test]
fn a_user_has_a_channel_of_its_own() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    let own = "#server-to-user-u";
    let ask = |client: &mut Client, channel: &str| {
        client.send("pusher:subscribe", json!({ "channel": channel, "auth": "" }));
    };
    ask(&mut client, own);
    client.expect_refusal(own, "AuthError", 401);
    client.sign_in(&json!({ "id": "u", "user_info": { "name": "U" } }));
    ask(&mut client, "#server-to-user-v");
    client.expect_refusal("#server-to-user-v", "AuthError", 401);
    ask(&mut client, own);
    client.expect_on("pusher_internal:subscription_succeeded", own);
    rig.publish_as(own, Some("hello"), "{}", None);
    assert_eq!(client.expect_on("hello", own), json!({}));
    assert_eq!(rig.attending(own), (0, 0), "it is no channel that others hear of");
    rig.eventually_attending("#watch-u", (1, 1));
    // Once more, and as somebody else.
    client.sign_in(&json!({ "id": "u" }));
    client.ask_sign_in(&json!({ "id": "v" }));
    assert!(client.expect_error(None).contains("as another user"));
    rig.eventually_attending("#watch-u", (1, 1));
    drop(client);
    rig.eventually_attending("#watch-u", (0, 0));
    rig.eventually_empty();
}

/// Its id and what others see of it come from the sign-in.
#[test]
fn who_is_signed_in_enters_a_presence_channel_without_channel_data() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    client.ask("presence-a");
    client.expect_refusal("presence-a", "RequestError", 400);
    client.sign_in(&json!({ "id": "u", "user_info": { "name": "U" } }));
    client.ask("presence-a");
    let list = client.expect_on("pusher_internal:subscription_succeeded", "presence-a");
    assert_eq!(list["presence"]["hash"], json!({ "u": { "name": "U" } }));
    rig.eventually_attending("presence-a", (1, 1));
}

#[test]
fn a_wrong_signature_ends_the_connection() {
    let rig = Rig::start(config());
    let other = Client::connect(&rig);
    for auth in [String::new(), signature("x"), signature(&format!("{}::user::{{}}", other.id))] {
        let mut client = Client::connect(&rig);
        client.send("pusher:signin", json!({ "auth": auth, "user_data": "{}" }));
        client.expect_error(Some(4009));
        client.socket.expect_close(4009);
    }
    let mut client = Client::connect(&rig);
    for user in [json!({}), json!({ "id": "" }), json!({ "id": "a b" }), json!([1])] {
        client.ask_sign_in(&user);
        assert!(client.expect_error(None).contains("signing in failed"), "{user}");
    }
}

#[test]
fn who_is_watched_is_told_online_and_offline() {
    let rig = Rig::start(config());
    let mut ann = Client::connect(&rig);
    ann.sign_in(&json!({ "id": "ann" }));
    let mut watcher = Client::connect(&rig);
    watcher.sign_in(&json!({ "id": "w", "watchlist": ["ann", "bob", "ann"] }));
    let told = watcher.expect("pusher_internal:watchlist_events");
    let both =
        [("online", "ann"), ("offline", "bob")].map(|(name, id)| json!({ "name": name, "user_ids": [id] }));
    assert_eq!(told, json!({ "events": both }));
    let [mut bob, mut bob_too] = [(); 2].map(|()| Client::connect(&rig));
    bob.sign_in(&json!({ "id": "bob" }));
    status(&mut watcher, "online", "bob");
    bob_too.sign_in(&json!({ "id": "bob" }));
    rig.eventually_attending("#watch-bob", (2, 1));
    drop(ann);
    status(&mut watcher, "offline", "ann");
    drop(bob);
    rig.eventually_attending("#watch-bob", (1, 1));
    drop(bob_too);
    status(&mut watcher, "offline", "bob");
    watcher.expect_nothing();
    drop(watcher);
    rig.eventually_empty();
    assert_eq!(rig.attending("#watch-w"), (0, 0));
}

/// One message for all of them.
#[track_caller]
fn all_offline(client: &mut Client) {
    let told = client.expect("pusher_internal:watchlist_events");
    let events = told["events"].as_array().unwrap();
    assert_eq!((events.len(), &events[0]["name"]), (1, &json!("offline")));
    assert_eq!(events[0]["user_ids"].as_array().unwrap().len(), 100);
}

#[test]
fn a_watchlist_has_a_limit() {
    let mut config = config();
    config.limits.subscriptions = 1;
    let rig = Rig::start(config);
    let users = |count: usize| (0..count).map(|n| json!(format!("u{n}"))).collect::<Vec<Value>>();
    let mut client = Client::connect(&rig);
    client.sign_in(&json!({ "id": "w", "watchlist": users(101) }));
    client.expect_error(Some(4302));
    all_offline(&mut client);
    client.expect_nothing();
    let mut client = Client::connect(&rig);
    client.sign_in(&json!({ "id": "w", "watchlist": users(100) }));
    all_offline(&mut client);
    // It does not count as channels.
    client.subscribe("a");
    client.ask("b");
    client.expect_refusal("b", "LimitReached", 403);
}

#[test]
fn terminating_a_user_closes_its_connections_with_4009() {
    let rig = Rig::start(config());
    let [mut ann, mut ann_too, mut bob] = [(); 3].map(|()| Client::connect(&rig));
    for (client, id) in [(&mut ann, "ann"), (&mut ann_too, "ann"), (&mut bob, "bob")] {
        client.sign_in(&json!({ "id": id }));
    }
    let terminate = |app: Option<&str>, user: &str| {
        let target = Target::User { app: app.map(Box::from), user: user.into() };
        let order = Control::Disconnect { target, reason: "terminated".into() };
        futures_util::FutureExt::now_or_never(rig.backplane.control(order)).unwrap().unwrap();
    };
    terminate(Some("2"), "ann");
    terminate(None, "nobody");
    ann.expect_nothing();
    terminate(None, "ann");
    for client in [&mut ann, &mut ann_too] {
        assert_eq!(client.expect_error(Some(4009)), "terminated");
        client.socket.expect_close(4009);
    }
    bob.expect_nothing();
    rig.eventually_metric("tidegate_disconnects_total{reason=\"ordered\"}", 2.0);
    let order = Control::Disconnect { target: Target::Connection(bob.id.as_str().into()), reason: "".into() };
    futures_util::FutureExt::now_or_never(rig.backplane.control(order)).unwrap().unwrap();
    bob.expect_error(Some(4009));
}

/// What an application sends a user comes as on the user's own channel.
#[test]
fn an_application_sends_to_a_user_and_ends_its_connections() {
    let rig = Rig::start(config());
    let [mut ann, mut bob] = [(); 2].map(|()| Client::connect(&rig));
    ann.sign_in(&json!({ "id": "ann" }));
    let did = |path: &str, body: Value| {
        let answer = Rest::new(rig.address).with_key("dev-key").post_json(path, &body);
        let told = answer.json();
        (told["connections"].as_u64().unwrap(), told["refused"].as_u64().unwrap())
    };
    let own = "#server-to-user-ann";
    assert_eq!(did("/v1/send", json!({"user": "ann", "event": "invoice", "data": {"id": 7}})), (1, 0));
    assert_eq!(ann.expect_on("invoice", own), json!({ "id": 7 }));
    // Nobody is signed in there: it is of no channel.
    assert_eq!(did("/v1/send", json!({"connection": bob.id, "data": "8"})), (1, 0));
    let told = bob.next();
    assert_eq!((&told["event"], told.get("channel"), &told["data"]), (&json!("message"), None, &json!("8")));
    assert_eq!(did("/v1/subscribe", json!({"user": "ann", "channel": "a"})), (0, 1));
    assert_eq!(did("/v1/refresh", json!({"user": "ann", "expired": true})), (1, 0));
    ann.expect_error(Some(4009));
    ann.socket.expect_close(4009);
    bob.expect_nothing();
}
