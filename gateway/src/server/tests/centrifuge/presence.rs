//! Who joins and leaves: told to those who ask, or to all where the namespace says so.

use serde_json::{Value, json};
use tidegate_testkit::Rest;

use super::{
    super::apart::{token, token_of},
    Client, Rig, with_presence,
};
use crate::config::{ClientRead, Config, JoinLeave};

fn of(rig: &Rig, user: &str) -> Client {
    let claims = json!({"sub": user, "channels": ["*"], "info": {"name": user}});
    Client::connect_with(rig, json!({"token": token_of(&claims)}))
}

fn changed(mut room: impl FnMut(&mut crate::config::Namespace)) -> Config {
    let mut config = with_presence();
    config.namespaces.named.values_mut().for_each(&mut room);
    config
}

/// The next push of a channel is that somebody came, or went; who it was.
#[track_caller]
fn expect_change(client: &mut Client, change: &str, channel: &str) -> Value {
    let mut told = client.next();
    assert_eq!(told["push"]["channel"], channel, "{told}");
    assert!(told["push"][change].is_object(), "{change}: {told}");
    told["push"][change]["info"].take()
}

#[test]
fn who_asks_is_told_who_joins_and_leaves() {
    let rig = Rig::start(with_presence());
    let (mut ada, mut deaf, mut bob) = (of(&rig, "ada"), of(&rig, "deaf"), of(&rig, "bob"));
    deaf.ask("subscribe", json!({"channel": "room:1"}));
    ada.ask("subscribe", json!({"channel": "room:1", "join_leave": true}));
    bob.ask("subscribe", json!({"channel": "room:1"}));
    let came = expect_change(&mut ada, "join", "room:1");
    assert_eq!(came, json!({"user": "bob", "client": bob.name, "conn_info": {"name": "bob"}}));
    rig.publish("room:1", "1");
    assert_eq!(bob.expect_publication("room:1")["data"], 1);
    bob.ask("unsubscribe", json!({"channel": "room:1"}));
    assert_eq!(ada.expect_publication("room:1")["data"], 1);
    let left = expect_change(&mut ada, "leave", "room:1");
    assert_eq!(left, came);
    drop(bob);
    assert_eq!(deaf.expect_publication("room:1")["data"], 1);
    let name = deaf.name.clone();
    drop(deaf);
    assert_eq!(expect_change(&mut ada, "leave", "room:1")["client"], name);
}

/// It has a user to be, but asks in a channel whose members nobody tracks.
#[test]
fn a_channel_without_members_tells_none() {
    let rig = Rig::start(with_presence());
    let (mut ada, mut bob) = (of(&rig, "ada"), of(&rig, "bob"));
    for client in [&mut ada, &mut bob] {
        client.ask("subscribe", json!({"channel": "plain:1", "join_leave": true}));
    }
    drop(bob);
    rig.publish("plain:1", "1");
    assert_eq!(ada.expect_publication("plain:1")["data"], 1);
}

#[test]
fn where_the_namespace_says_so_all_are_told() {
    let rig = Rig::start(changed(|room| room.join_leave = JoinLeave::All));
    let mut ada = of(&rig, "ada");
    ada.ask("subscribe", json!({"channel": "room:1"}));
    let claims = json!({"sub": "eve", "subs": {"room:1": {}, "room:2": {}, "news": {}}});
    let mut eve = Client::connect_with(&rig, json!({"token": token_of(&claims)}));
    assert_eq!(expect_change(&mut ada, "join", "room:1")["user"], "eve");
    let mut bob = of(&rig, "bob");
    bob.ask("subscribe", json!({"channel": "room:2"}));
    assert_eq!(expect_change(&mut eve, "join", "room:2")["user"], "bob");
    let name = ada.name.clone();
    drop(ada);
    let ada = json!({"user": "ada", "client": name, "conn_info": {"name": "ada"}});
    assert_eq!(expect_change(&mut eve, "leave", "room:1"), ada);
    drop((eve, bob));
    rig.eventually_empty();
}

/// Neither in a list nor by a change.
#[test]
fn where_nobody_may_ask_nobody_is_told() {
    let rig = Rig::start(changed(|room| room.client_presence = ClientRead::Never));
    let (mut ada, mut bob) = (of(&rig, "ada"), of(&rig, "bob"));
    for client in [&mut ada, &mut bob] {
        client.ask("subscribe", json!({"channel": "room:1", "join_leave": true}));
    }
    for command in ["presence", "presence_stats"] {
        assert_eq!(ada.refused(command, json!({"channel": "room:1"})), 103);
    }
    drop(bob);
    rig.publish("room:1", "1");
    assert_eq!(ada.expect_publication("room:1")["data"], 1);
    let stream = format!("/sse?join_leave=true&channel=room:1&token={}", token());
    Rest::new(rig.address).get(&stream).expect_problem(404);
}

/// What a subscription says of itself stands beside what its connection does, and only there.
#[test]
fn a_subscription_has_info_of_its_own() {
    let rig = Rig::start(with_presence());
    let mut ada = of(&rig, "ada");
    ada.ask("subscribe", json!({"channel": "room:1", "join_leave": true}));
    let subs = json!({"room:1": {"info": {"seat": 1}}, "room:2": {"b64info": "bm90IGpzb24="}});
    let bob = json!({"sub": "bob", "info": {"name": "bob"}, "subs": subs});
    let bob = Client::connect_with(&rig, json!({"token": token_of(&bob)}));
    let expect_bob =
        json!({"user": "bob", "client": bob.name, "conn_info": {"name": "bob"}, "chan_info": {"seat": 1}});
    assert_eq!(expect_change(&mut ada, "join", "room:1"), expect_bob);
    let mut eve = Client::connect_with(&rig, json!({"token": token_of(&json!({"sub": "eve"}))}));
    let own = token_of(&json!({"sub": "eve", "channel": "room:1", "info": [7]}));
    eve.ask("subscribe", json!({"channel": "room:1", "token": own}));
    let expect_eve = json!({"user": "eve", "client": eve.name, "chan_info": [7]});
    assert_eq!(expect_change(&mut ada, "join", "room:1"), expect_eve);
    let told = ada.ask("presence", json!({"channel": "room:1"}));
    assert_eq!(told["presence"][&bob.name], expect_bob);
    assert_eq!(told["presence"][&eve.name], expect_eve);
    let told = ada.ask("presence", json!({"channel": "room:2"}));
    assert_eq!(told["presence"][&bob.name]["chan_info"], "not json");
    // Other protocols have no word for it.
    let listed = Rest::new(rig.address).with_key("dev-key").get("/v1/channels/room:1/presence").json();
    let infos: Vec<&Value> = listed["members"].as_array().unwrap().iter().map(|it| &it["info"]).collect();
    assert!(infos.contains(&&json!({"name": "bob"})) && infos.contains(&&Value::Null), "{listed}");
    drop(bob);
    assert_eq!(expect_change(&mut ada, "leave", "room:1"), expect_bob);
    drop(eve);
    assert_eq!(expect_change(&mut ada, "leave", "room:1"), expect_eve);
}

/// It is in the list all the same.
#[test]
fn a_subscription_may_come_and_go_unsaid() {
    let rig = Rig::start(with_presence());
    let mut ada = of(&rig, "ada");
    ada.ask("subscribe", json!({"channel": "room:1", "join_leave": true}));
    let quiet = json!({"room:1": {"override": {"join_leave": {"value": false}}}});
    let spy = json!({"sub": "spy", "info": {"name": "spy"}, "subs": quiet});
    let spy = Client::connect_with(&rig, json!({"token": token_of(&spy)}));
    let told = ada.ask("presence", json!({"channel": "room:1"}));
    assert_eq!(told["presence"][&spy.name]["conn_info"], json!({"name": "spy"}));
    let loud = json!({"room:1": {"override": {"join_leave": {"value": true}}}});
    let bob = Client::connect_with(&rig, json!({"token": token_of(&json!({"sub": "bob", "subs": loud}))}));
    assert_eq!(expect_change(&mut ada, "join", "room:1")["user"], "bob");
    drop(spy);
    rig.eventually_subscribers("room:1", 2);
    drop(bob);
    assert_eq!(expect_change(&mut ada, "leave", "room:1")["user"], "bob");
}

/// As one user without a name, to clients that know of that.
#[test]
fn who_is_anonymous_is_listed_with_no_user() {
    let rig = Rig::start(with_presence());
    let mut ada = of(&rig, "ada");
    ada.ask("subscribe", json!({"channel": "room:1", "join_leave": true}));
    let mut nobody = [Client::connect(&rig), Client::connect(&rig)];
    for client in &mut nobody {
        client.ask("subscribe", json!({"channel": "room:1"}));
        assert_eq!(expect_change(&mut ada, "join", "room:1"), json!({"client": client.name}));
    }
    let [one, two] = nobody;
    let told = two.name.clone();
    let counts = ada.ask("presence_stats", json!({"channel": "room:1"}));
    assert_eq!(counts, json!({"num_clients": 3, "num_users": 2}));
    let listed = ada.ask("presence", json!({"channel": "room:1"}));
    assert_eq!(listed["presence"][&told], json!({"client": told}));
    drop(one);
    assert!(expect_change(&mut ada, "leave", "room:1")["client"].is_string());
    drop(two);
    assert_eq!(expect_change(&mut ada, "leave", "room:1"), json!({"client": told}));
}
