//! Pusher's HTTP API over real sockets: answers to the letter, counts from presence, and who may not.

use http::Method;
use serde_json::{Value, json};
use tidegate_backplane::{Backplane as _, Channel, Join, Member};
use tidegate_testkit::{Rest, WsClient};

use super::{
    apart::{token, with_presence},
    rig::Rig,
};
use crate::{
    app::apps::AppId,
    auth::Scope,
    config::{ApiKeyEntry, AppEntry, Config, Secret},
    testing::signed_path,
};

/// App `1` of `--dev`, app `2` with limits, app `3` disabled.
fn apps() -> Config {
    let mut config = with_presence();
    let mut app = |id: &str, change: fn(&mut AppEntry)| {
        let mut entry = AppEntry {
            key: Some(format!("key-{id}").into()),
            secret: Some(Secret::new(format!("secret-{id}").as_bytes())),
            ..AppEntry::default()
        };
        change(&mut entry);
        config.apps.0.insert(AppId::new(id).unwrap(), entry);
    };
    app("2", |entry| {
        entry.limits.channel_name_bytes = 20;
        entry.limits.channels_per_event = 2;
        entry.limits.events_per_batch = 2;
        entry.limits.event_bytes = tidegate_ops::config::ByteSize::new(10);
    });
    app("3", |entry| entry.enabled = false);
    app("4", |entry| {
        entry.limits.events_per_second = 1;
        entry.limits.reads_per_second = 1;
    });
    config
}

/// A server of one app.
struct Backend {
    rest: Rest,
    id: &'static str,
    key: String,
    secret: String,
}

impl Backend {
    fn dev(rig: &Rig) -> Self {
        Self { rest: Rest::new(rig.address), id: "1", key: "dev-key".into(), secret: "dev-secret".into() }
    }

    fn of(rig: &Rig, id: &'static str) -> Self {
        Self { rest: Rest::new(rig.address), id, key: format!("key-{id}"), secret: format!("secret-{id}") }
    }

    /// The status and the body of the answer to a signed request.
    fn ask(&self, method: Method, path: &str, parameters: &[(&str, &str)], body: &str) -> (u16, String) {
        let path = format!("/apps/{}{path}", self.id);
        let path = signed_path(method.as_str(), &path, parameters, body, &self.key, &self.secret);
        let answer = self.rest.send(method, &path, &[], Some(body.into()));
        let kind = if answer.status < 300 { "application/json" } else { "text/plain; charset=utf-8" };
        assert_eq!(answer.header("content-type"), Some(kind));
        (answer.status, answer.text())
    }

    fn post(&self, path: &str, body: &Value) -> (u16, String) {
        self.ask(Method::POST, path, &[], &body.to_string())
    }

    #[track_caller]
    fn get(&self, path: &str, parameters: &[(&str, &str)], expect: Value) {
        let (status, body) = self.ask(Method::GET, path, parameters, "");
        let body: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{status} {body}"));
        assert_eq!((status, body), (200, expect), "{path} {parameters:?}");
    }

    #[track_caller]
    fn refuses(
        &self,
        method: Method,
        path: &str,
        parameters: &[(&str, &str)],
        body: &str,
        expect: (u16, &str),
    ) {
        let (status, text) = self.ask(method, path, parameters, body);
        assert_eq!((status, text.trim_end()), expect, "{path} {parameters:?} {body}");
    }
}

/// A connection `ada.1` is of the user `ada`.
fn join(rig: &Rig, channel: &Channel, connection: Option<&str>) {
    let member = connection.and_then(|connection| connection.split_once('.')).map(|(user, number)| Member {
        connection: number.into(),
        user: user.into(),
        info: None,
    });
    rig.block_on(rig.backplane.join(channel, Join { member, ..Join::counted() })).unwrap();
}

const DONE: (u16, &str) = (200, "{}");

#[track_caller]
fn is((status, body): (u16, String), expect: (u16, &str)) {
    assert_eq!((status, &*body), expect);
}

/// Raw clients are told of gaps, drops and closes in events of those names, and only they.
#[test]
fn names_of_notices_are_free_in_apps_without_raw_clients() {
    let rig = Rig::start(apps());
    let (first, second) = (Backend::dev(&rig), Backend::of(&rig, "2"));
    for name in ["gap", "dropped", "disconnect", "binary"] {
        let event = json!({"name": name, "channel": "news", "data": "1"});
        is(second.post("/events", &event), DONE);
        assert_eq!(first.post("/events", &event).0, 400, "{name}");
    }
}

#[test]
fn events_reach_the_subscribers_of_the_app() {
    let rig = Rig::start(apps());
    let (first, second) = (Backend::dev(&rig), Backend::of(&rig, "2"));
    let mut news = WsClient::connect(rig.address, "/ws?channel=news");
    let mut both = WsClient::connect(rig.address, "/ws?channel=news&channel=sport");
    is(first.post("/events", &json!({"name": "e", "channel": "news", "data": "1"})), DONE);
    let event = json!({"name": "e", "channels": ["news", "sport"], "data": "{\"a\":2}", "socket_id": "1.2"});
    is(first.post("/events", &event), DONE);
    // Another app's channel of that name is another channel.
    is(second.post("/events", &json!({"name": "e", "channel": "news", "data": "none"})), DONE);
    let batch = json!({"batch": [
        {"name": "e", "channel": "news", "data": "3"},
        {"name": "f", "channel": "news", "data": "4", "socket_id": null, "info": null},
    ]});
    is(first.post("/batch_events", &batch), DONE);
    let older =
        first.ask(Method::POST, "/channels/news/events", &[("name", "e"), ("socket_id", "1.2")], "[5]");
    is(older, (202, "{}"));
    for text in ["1", "{\"a\":2}", "3", "4", "[5]"] {
        assert_eq!(news.expect_text(), text);
    }
    let received: Vec<_> = (0..6).map(|_| both.expect_text()).collect();
    assert_eq!(received.iter().filter(|text| *text == "{\"a\":2}").count(), 2);
    assert_eq!(rig.metric("tidegate_publish_requests_total{code=\"200\"}"), 4.0);
}

#[test]
fn counts_are_of_all_who_are_present() {
    let rig = Rig::start(apps());
    let (first, second) = (Backend::dev(&rig), Backend::of(&rig, "2"));
    let own = |name: &str| Channel::new(name).unwrap();
    let other = |name: &str| Channel::in_app("2", name).unwrap();
    for (channel, connection) in [
        (own("presence-a"), Some("ada.1")),
        (own("presence-a"), Some("ada.2")),
        (own("presence-a"), Some("bob.3")),
        (own("news"), None),
        (own("#watch-ada"), Some("bob.3")),
        (own("#server-to-user-ada"), None),
        (other("presence-a"), Some("eve.4")),
    ] {
        join(&rig, &channel, connection);
    }
    let all = "user_count,subscription_count";
    first.get("/channels", &[], json!({"channels": {"news": {}, "presence-a": {}}}));
    let counted = json!({"channels": {"presence-a": {"user_count": 2, "subscription_count": 3}}});
    first.get("/channels", &[("filter_by_prefix", "presence-"), ("info", all)], counted);
    let counted =
        json!({"channels": {"news": {"subscription_count": 1}, "presence-a": {"subscription_count": 3}}});
    first.get("/channels", &[("info", "subscription_count")], counted);
    first.get("/channels", &[("filter_by_prefix", "x")], json!({"channels": {}}));
    second.get("/channels", &[("filter_by_prefix", "pres")], json!({"channels": {"presence-a": {}}}));

    let counted = json!({"occupied": true, "user_count": 2, "subscription_count": 3});
    first.get("/channels/presence-a", &[("info", all)], counted);
    first.get("/channels/news", &[], json!({"occupied": true}));
    first.get(
        "/channels/old",
        &[("info", "subscription_count")],
        json!({"occupied": false, "subscription_count": 0}),
    );
    second.get("/channels/news", &[], json!({"occupied": false}));
    first.get("/channels/presence-a/users", &[], json!({"users": [{"id": "ada"}, {"id": "bob"}]}));
    second.get("/channels/presence-a/users", &[], json!({"users": [{"id": "eve"}]}));
    second.get("/channels/presence-b/users", &[], json!({"users": []}));

    let event = json!({"name": "e", "channels": ["presence-a", "news"], "data": "1", "info": all});
    let (status, body) = first.post("/events", &event);
    let counted = json!({"channels": {
        "presence-a": {"user_count": 2, "subscription_count": 3}, "news": {"subscription_count": 1},
    }});
    assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()), (200, counted));
    let batch = json!({"batch": [
        {"name": "e", "channel": "news", "data": "3"},
        {"name": "e", "channel": "presence-a", "data": "3", "info": "user_count"},
    ]});
    let (status, body) = first.post("/batch_events", &batch);
    let counted = json!({"batch": [{}, {"user_count": 2}]});
    assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()), (200, counted));
}

#[test]
fn the_cached_event_of_a_channel() {
    let rig = Rig::start(apps());
    let backend = Backend::dev(&rig);
    backend.get("/channels/cache-a", &[("info", "cache")], json!({"occupied": false, "cache": null}));
    is(backend.post("/events", &json!({"name": "e", "channel": "cache-a", "data": "{\"a\":1}"})), DONE);
    let (status, body) = backend.ask(Method::GET, "/channels/cache-a", &[("info", "cache")], "");
    let mut body: Value = serde_json::from_str(&body).unwrap();
    // Kept for half an hour, of which little has passed.
    let ttl = body["cache"].as_object_mut().unwrap().remove("ttl").and_then(|ttl| ttl.as_u64()).unwrap();
    assert!((60..=1_800).contains(&ttl), "{ttl}");
    assert_eq!((status, body), (200, json!({"occupied": false, "cache": {"data": "{\"a\":1}"}})));
}

#[test]
fn what_is_refused_says_why() {
    let rig = Rig::start(apps());
    let backend = Backend::of(&rig, "2");
    let post =
        |path: &str, body: Value, expect| backend.refuses(Method::POST, path, &[], &body.to_string(), expect);
    let get = |path: &str, parameters: &[(&str, &str)], expect| {
        backend.refuses(Method::GET, path, parameters, "", expect);
    };
    let e = "/events";
    post(e, json!({"channel": "a", "data": "1"}), (400, "Missing required parameter: name"));
    post(e, json!({"name": "e", "channel": "a"}), (400, "Missing required parameter: data"));
    post(e, json!({"name": "e", "data": "1"}), (400, "Missing required parameter: channels"));
    post(e, json!({"name": "e", "data": "1", "channels": []}), (400, "Missing required parameter: channels"));
    let too_large = "The data content of this event exceeds the allowed maximum (10 bytes).";
    post(e, json!({"name": "e", "channel": "a", "data": "12345678901"}), (413, too_large));
    let too_many = "Events may be sent to at most 2 channels at once";
    post(e, json!({"name": "e", "channels": ["a", "b", "c"], "data": "1"}), (400, too_many));
    let bad = "Invalid channel name \"a b\": the channel name has a character that is not allowed; letters, digits \
               and _-=@,.; are";
    post(e, json!({"name": "e", "channel": "a b", "data": "1"}), (400, bad));
    let long =
        "Invalid channel name \"aaaaaaaaaaaaaaaaaaaaa\": the channel name has 21 bytes, 20 are allowed";
    post(e, json!({"name": "e", "channel": "a".repeat(21), "data": "1"}), (400, long));
    let socket = "Invalid socket id: it has the form 123.456";
    for id in ["1", "1.", ".1", "a.b", "1.2.3", "-1.2"] {
        post(e, json!({"name": "e", "channel": "a", "data": "1", "socket_id": id}), (400, socket));
    }
    let reserved =
        "Invalid event name: event names that begin with pusher: or pusher_internal: are the gateway's own";
    for name in ["pusher:error", "pusher_internal:member_added"] {
        post(e, json!({"name": name, "channel": "a", "data": "1"}), (400, reserved));
    }
    let long = "Invalid event name: an event name has 1 to 200 characters and no control characters";
    post(e, json!({"name": "e".repeat(201), "channel": "a", "data": "1"}), (400, long));
    let unknown = "Unknown info attribute \"x\"";
    post(e, json!({"name": "e", "channel": "a", "data": "1", "info": "x"}), (400, unknown));

    let event = json!({"name": "e", "channel": "a", "data": "1"});
    let b = "/batch_events";
    post(b, json!({}), (400, "Missing required parameter: batch"));
    post(b, json!({"batch": [event, event, event]}), (400, "A batch has at most 2 events"));
    let second_is_bad = json!({"batch": [event, {"name": "e", "channel": "a", "data": "12345678901"}]});
    post(b, second_is_bad, (413, too_large));

    let of_prefix =
        "user_count is of presence channels only; give a filter_by_prefix that begins with presence-";
    get("/channels", &[("info", "user_count")], (400, of_prefix));
    get("/channels", &[("info", "user_count"), ("filter_by_prefix", "pres")], (400, of_prefix));
    get("/channels/news", &[("info", "user_count")], (400, "user_count is of presence channels only"));
    get("/channels/news", &[("info", "cache")], (400, "cache is of cache channels only"));
    get("/channels/news", &[("info", "x")], (400, unknown));
    get("/channels/news/users", &[], (400, "Users are of presence channels only"));
    get("/channels/a/b/c", &[], (404, "There is nothing at this path"));
    get("/other", &[], (404, "There is nothing at this path"));
    get(e, &[], (405, "This path takes POST requests"));
    post("/channels", json!({}), (405, "This path takes GET requests"));
    // Nothing of all that was published.
    let published = rig.block_on(rig.backplane.presence_channels(Some("2"), "")).unwrap();
    assert!(published.is_empty());
    assert_eq!(rig.metric("tidegate_publish_requests_total{code=\"200\"}"), 0.0);
}

#[test]
fn bodies_that_are_no_events() {
    let rig = Rig::start(apps());
    let backend = Backend::dev(&rig);
    for body in [
        "{",
        "[]",
        "1",
        r#"{"name":1,"channel":"a","data":"1"}"#,
        r#"{"name":"e","channels":"a","data":"1"}"#,
    ] {
        let (status, text) = backend.ask(Method::POST, "/events", &[], body);
        assert_eq!((status, text.starts_with("Invalid body: ")), (400, true), "{body}: {text}");
    }
}

#[test]
fn who_may_not() {
    let rig = Rig::start(apps());
    let good = Backend::dev(&rig);
    let body = r#"{"name":"e","channel":"a","data":"1"}"#;
    let path = signed_path("POST", "/apps/1/events", &[], body, "dev-key", "dev-secret");
    let ask = |path: &str, body: &str, expect: (u16, &str)| {
        let answer = good.rest.send(Method::POST, path, &[], Some(body.into()));
        let text = answer.text();
        assert_eq!(answer.status, expect.0, "{path}: {text}");
        assert!(text.starts_with(expect.1), "{path}: {text}");
        assert!(!text.contains("dev-secret"));
    };
    ask(&path, body, (200, "{}"));
    // A signature says nothing about another body, another path or another app.
    ask(&path, &body.replace('1', "2"), (401, "Invalid body_md5"));
    ask(
        &path.replace("/events", "/batch_events"),
        body,
        (401, "Invalid signature: you should have sent HmacSHA256Hex("),
    );
    ask(&path.replace("/apps/1/", "/apps/2/"), body, (401, "Unknown auth_key"));
    ask(&path.replace("/apps/1/", "/apps/9/"), body, (401, "Unknown app"));
    ask("/apps/1/events", body, (401, "Unknown auth_key"));
    ask("/apps/1", body, (404, "There is nothing"));
    let wrong = signed_path("POST", "/apps/1/events", &[], body, "dev-key", "another-secret");
    ask(&wrong, body, (401, "Invalid signature: "));
    let old = signed_path("POST", "/apps/3/events", &[], body, "key-3", "secret-3");
    ask(&old, body, (403, "The app is disabled"));
    assert_eq!(rig.metric("tidegate_publish_requests_total{code=\"401\"}"), 6.0);
}

#[test]
fn keys_and_tokens_may_be_of_another_app() {
    let mut config = apps();
    let app = AppId::new("2");
    config.auth.jwt.0[0].app = app.clone();
    config.auth.api_keys.0.push(ApiKeyEntry {
        name: "two".into(),
        key: Some(Secret::new(b"the-key-of-app-two")),
        scopes: vec![Scope::Publish, Scope::Read, Scope::Admin],
        app,
        ..ApiKeyEntry::default()
    });
    let rig = Rig::start(config);
    let mut first = WsClient::connect(rig.address, "/ws?channel=news");
    let mut second = WsClient::connect(rig.address, &format!("/ws?channel=news&token={}", token()));
    let [dev, two] = ["dev-key", "the-key-of-app-two"].map(|key| Rest::new(rig.address).with_key(key));
    is(Backend::of(&rig, "2").post("/events", &json!({"name": "e", "channel": "news", "data": "1"})), DONE);
    two.publish("news", "2");
    let many = two.post_json("/v1/publish", &json!({"channels": ["news"], "data": "3"}));
    assert_eq!(many.json()["results"][0]["channel"], "news");
    dev.publish("news", "own");
    for text in ["1", "2", "3"] {
        assert_eq!(second.expect_text(), text);
    }
    assert_eq!(first.expect_text(), "own");
    let listed = two.get("/v1/channels").json();
    assert_eq!(listed["channels"], json!([{"channel": "news", "subscribers": 1}]));
    let history = two.get("/v1/channels/news/history").json();
    assert_eq!(history["publications"].as_array().unwrap().len(), 3);
    // A user of that name in the default app is another user.
    assert_eq!(dev.post_json("/v1/disconnect", &json!({"user": "ada"})).status, 202);
    two.publish("news", "still there");
    assert_eq!(second.expect_text(), "still there");
    assert_eq!(two.post_json("/v1/disconnect", &json!({"user": "ada"})).status, 202);
    second.expect_close(4403);
}

#[test]
fn an_app_may_have_rates() {
    let rig = Rig::start(apps());
    let backend = Backend::of(&rig, "4");
    // Ten events at one per second: until 9 s later there is no room for as many again.
    let batch = vec![json!({"name": "e", "channel": "a", "data": "1"}); 10];
    let mut answers = (0..30).map(|_| backend.post("/batch_events", &json!({"batch": batch})));
    is(answers.next().unwrap(), DONE);
    assert!(answers.any(|answer| answer == (429, "Rate limit exceeded\n".to_owned())));
    // Reading has a rate of its own.
    backend.get("/channels", &[], json!({"channels": {}}));
}
