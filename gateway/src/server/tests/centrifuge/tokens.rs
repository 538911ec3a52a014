//! Tokens of connections and of subscriptions.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::{
    super::apart::{token, token_of},
    Client, Rig, with_presence,
};
use crate::config::{Config, Namespace};

fn with_closed() -> Config {
    let mut config = with_presence();
    config.auth.jwt.0[0].leeway = Duration::ZERO;
    let closed =
        Namespace { anonymous_subscribe: false, presence: true, ..config.namespaces.default.clone() };
    config.namespaces.named.insert("closed".into(), closed);
    config
}

/// Whether the client brings another token is up to `expire_at`, where there is one.
#[test]
fn a_connection_may_outlast_its_token_or_end_before_it() {
    let rig = Rig::start(with_closed());
    let of = |expire_at: i64| token_of(&json!({"sub": "ada", "exp": at(3), "expire_at": expire_at}));
    let plain = token_of(&json!({"sub": "ada", "exp": at(4)}));
    let mut plain = Client::connect_with(&rig, json!({ "token": plain }));
    let mut ever = Client::open(&rig);
    let told = ever.ask("connect", json!({"token": of(0)}));
    assert_eq!((&told["expires"], &told["ttl"]), (&Value::Null, &Value::Null), "{told}");
    let mut long = Client::open(&rig);
    let told = long.ask("connect", json!({"token": of(at(600))}));
    assert!(told["expires"] == true && told["ttl"].as_u64().unwrap() > 500, "{told}");
    let early = token_of(&json!({"sub": "ada", "exp": at(600), "expire_at": at(2)}));
    let mut early = Client::connect_with(&rig, json!({ "token": early }));
    assert_eq!(early.socket.expect_close(3005), "connection expired");
    // By then the tokens of the others have ended, too.
    assert_eq!(plain.socket.expect_close(3005), "connection expired");
    ever.ask("ping", json!({}));
    long.ask("ping", json!({}));
}

/// A token for a subscription says how its client is there.
#[test]
fn a_subscription_may_be_unlisted_and_told_who_comes() {
    let rig = Rig::start(with_closed());
    let of = |user: &str, overrides: Value| {
        token_of(&json!({"sub": user, "channel": "closed:a", "override": overrides, "exp": at(600)}))
    };
    let enter = |user: &str, overrides: Value, join_leave: bool| {
        let mut client = Client::connect_with(&rig, json!({"token": token_of(&json!({"sub": user}))}));
        let subscribe =
            json!({"channel": "closed:a", "token": of(user, overrides), "join_leave": join_leave});
        client.ask("subscribe", subscribe);
        client
    };
    let mut told = enter("ada", json!({"force_push_join_leave": {"value": true}}), false);
    let mut deaf = enter("eve", json!({"force_push_join_leave": {"value": false}}), true);
    assert_eq!(told.next()["push"]["join"]["info"]["user"], "eve");
    let unlisted = enter("spy", json!({"presence": {"value": false}}), false);
    let bob = enter("bob", json!({}), false);
    assert_eq!(told.next()["push"]["join"]["info"]["user"], "bob");
    let there = rig.present("closed:a");
    let is_there = |client: &Client| there.iter().any(|name| **name == *client.name);
    assert!(is_there(&told) && is_there(&deaf) && is_there(&bob) && !is_there(&unlisted), "{there:?}");
    // Who was not there does not leave.
    drop(unlisted);
    rig.eventually_subscribers("closed:a", 3);
    drop(bob);
    assert_eq!(told.next()["push"]["leave"]["info"]["user"], "bob");
    rig.publish("closed:a", "1");
    assert_eq!(deaf.expect_publication("closed:a")["data"], 1);
}

/// Or whether its client may come back to where it was. Who asks for that gets it.
#[test]
fn a_subscription_may_have_no_place() {
    let rig = Rig::start(with_closed());
    rig.publish("closed:a", "1");
    let no = json!({"value": false});
    let told = |overrides: Value, more: Value| {
        let claims = json!({"sub": "ada", "channel": "closed:a", "override": overrides, "exp": at(600)});
        let mut client = Client::connect_with(&rig, json!({"token": token_of(&json!({"sub": "ada"}))}));
        let mut subscribe = json!({"channel": "closed:a", "token": token_of(&claims)});
        subscribe.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let told = client.ask("subscribe", subscribe);
        let is_told = ["recoverable", "positioned", "epoch", "offset"].map(|name| !told[name].is_null());
        rig.publish("closed:a", "2");
        assert_eq!(client.expect_publication("closed:a")["data"], 2);
        is_told
    };
    let [all, none, placed] = [[true; 4], [false; 4], [false, true, true, true]];
    assert_eq!(told(json!({}), json!({})), all);
    let neither = json!({"force_recovery": no, "force_positioning": no});
    assert_eq!(told(neither.clone(), json!({})), none);
    assert_eq!(told(neither.clone(), json!({"recoverable": true})), all);
    assert_eq!(told(neither.clone(), json!({"positioned": true})), placed);
    assert_eq!(told(json!({ "force_recovery": no }), json!({})), placed);
    assert_eq!(told(json!({ "force_positioning": no }), json!({})), all);
}

/// So many seconds from now.
fn at(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    i64::try_from(now).unwrap() + seconds
}

#[test]
fn a_token_says_who_it_is_and_which_channels() {
    let rig = Rig::start(with_closed());
    let claims = json!({"sub": "ada", "channels": ["closed:*"], "publish": ["closed:p"], "exp": at(60)});
    let mut client = Client::open(&rig);
    let told = client.ask("connect", json!({"token": token_of(&claims)}));
    assert_eq!((&told["expires"], &told["ping"]), (&json!(true), &json!(25)), "{told}");
    assert!((20..60).contains(&told["ttl"].as_u64().unwrap()), "{told}");
    client.ask("subscribe", json!({"channel": "closed:p"}));
    let id = client.send("publish", json!({"channel": "closed:p", "data": {"n": 1}}));
    let mut told = [client.next(), client.next()];
    told.sort_by_key(|told| told["id"].is_null());
    assert_eq!(told[0], json!({"id": id, "publish": {}}));
    assert_eq!(told[1]["push"]["pub"]["info"], json!({"user": "ada"}));
    assert_eq!(client.refused("publish", json!({"channel": "closed:q", "data": 1})), 103);
}

#[test]
fn a_token_that_does_not_count_has_its_code() {
    let rig = Rig::start(with_closed());
    let mut client = Client::open(&rig);
    assert_eq!(
        client.refused("connect", json!({"token": token_of(&json!({"sub": "ada", "exp": at(-60)}))})),
        109
    );
    // It is not connected, and may say no more.
    client.send("connect", json!({}));
    client.socket.expect_close(3501);
    let of_subscription = token_of(&json!({"sub": "ada", "channel": "closed:a"}));
    for token in ["x", "a.b.c", &format!("{}x", token()), &of_subscription] {
        let mut client = Client::open(&rig);
        client.send("connect", json!({ "token": token }));
        assert_eq!(client.socket.expect_close(3500), "invalid token");
    }
    // What came with it is of no use, and not what it is closed for: its client asks for another token.
    let mut client = Client::open(&rig);
    let expired = json!({"id": 1, "connect": {"token": token_of(&json!({"exp": at(-60)}))}});
    client.socket.send_text(&format!("{expired}\n{{\"id\":2,\"subscribe\":{{\"channel\":\"a\"}}}}"));
    assert_eq!(client.next()["error"]["code"], 109);
    client.socket.send_close(1000, "");
    client.socket.expect_close(1000);
}

#[test]
fn a_connection_lasts_as_long_as_its_token_unless_that_is_renewed() {
    let rig = Rig::start(with_closed());
    let of = |user: &str, seconds| token_of(&json!({"sub": user, "exp": at(seconds)}));
    let mut left = Client::connect_with(&rig, json!({"token": of("ada", 3)}));
    let mut stays = Client::connect_with(&rig, json!({"token": of("ada", 3)}));
    let told = stays.ask("refresh", json!({"token": of("ada", 600)}));
    assert!(told["expires"] == true && told["ttl"].as_u64().unwrap() > 500, "{told}");
    assert_eq!(left.socket.expect_close(3005), "connection expired");
    stays.ask("ping", json!({}));
    stays.send("refresh", json!({"token": of("bob", 600)}));
    stays.socket.expect_close(3500);
    let mut expired = Client::connect_with(&rig, json!({"token": of("ada", 600)}));
    expired.send("refresh", json!({"token": of("ada", -5)}));
    expired.socket.expect_close(3005);
}

#[test]
fn a_subscription_has_a_token_of_its_own() {
    let rig = Rig::start(with_closed());
    let of = |user: &str, channel: &str, seconds| {
        token_of(&json!({"sub": user, "channel": channel, "exp": at(seconds)}))
    };
    let mut client = Client::connect_with(&rig, json!({"token": token_of(&json!({"sub": "ada"}))}));
    let subscribe = |channel: &str, token: String| json!({"channel": channel, "token": token});
    assert_eq!(client.refused("subscribe", json!({"channel": "closed:a"})), 103);
    assert_eq!(client.refused("subscribe", subscribe("closed:a", of("ada", "closed:a", -5))), 109);
    for channel in ["closed:a", "closed:b"] {
        let told = client.ask("subscribe", subscribe(channel, of("ada", channel, 3)));
        assert!(told["expires"] == true && told["ttl"].as_u64().unwrap() <= 3, "{told}");
    }
    let told = client.ask("sub_refresh", subscribe("closed:b", of("ada", "closed:b", 600)));
    assert!(told["expires"] == true && told["ttl"].as_u64().unwrap() > 500, "{told}");
    let unsubscribe = json!({"code": 2501, "reason": "expired"});
    assert_eq!(client.next(), json!({"push": {"channel": "closed:a", "unsubscribe": unsubscribe}}));
    rig.eventually_subscribers("closed:a", 0);
    client.ask("subscribe", subscribe("closed:a", of("ada", "closed:a", 600)));
    // Of another channel it is a right that is missing; of another user, or of nobody's, it is no token.
    assert_eq!(client.refused("subscribe", subscribe("closed:c", of("ada", "closed:x", 600))), 103);
    client.send("subscribe", subscribe("closed:c", of("bob", "closed:c", 600)));
    client.socket.expect_close(3500);
    rig.eventually_subscribers("closed:b", 0);
}

#[test]
fn a_token_may_end_before_its_subscription_begins() {
    let rig = Rig::start(with_closed());
    let mut client = Client::connect_with(&rig, json!({"token": token_of(&json!({"sub": "ada"}))}));
    rig.backplane.joins.shut();
    let own = token_of(&json!({"sub": "ada", "channel": "closed:a", "exp": at(3)}));
    let subscribe = json!({"channel": "closed:a", "token": own, "join_leave": true});
    assert_eq!(client.refused("subscribe", subscribe), 110);
    rig.backplane.joins.open();
    client.ask("ping", json!({}));
    rig.eventually_subscribers("closed:a", 0);
}

/// It cannot become a user, as which it would be listed.
#[test]
fn who_connected_without_a_token_brings_none_later() {
    let rig = Rig::start(with_closed());
    let mut client = Client::connect(&rig);
    client.send("refresh", json!({"token": token_of(&json!({"sub": "ada"}))}));
    assert_eq!(client.socket.expect_close(3500), "invalid token");
}
