//! The same for Centrifugo's clients, with a backend that was written for Centrifugo's proxies.

use serde_json::{Value, json};
use tidegate_testkit::WsClient;

use super::{
    super::{
        apart::{token_of, with_presence},
        centrifuge::streams::{Stream, emulate},
        rig::Rig,
    },
    application::{Application, Asked},
};
use crate::config::{Config, HeaderSetting, HookDialect, HookQuestion};

const ALL: [HookQuestion; 5] = [
    HookQuestion::Connect,
    HookQuestion::Subscribe,
    HookQuestion::Publish,
    HookQuestion::Message,
    HookQuestion::Refresh,
];

/// A gateway without rights of its own.
fn config(application: &Application) -> Config {
    let mut config = application.config(&ALL);
    let hook = config.hooks.0.get_mut("app").unwrap();
    hook.dialect = HookDialect::Centrifugo;
    hook.cookies = vec!["sid".into()];
    config.namespaces.default.anonymous_subscribe = false;
    config
}

fn answer(asked: &Asked) -> (u16, String) {
    let request = asked.json();
    let result = match (&request["method"], &request["channel"], &request["data"]) {
        (Value::String(method), ..) if method == "fail" => json!({"error": {"code": 1000, "message": "no"}}),
        (Value::String(method), ..) if method == "cut" => {
            json!({"disconnect": {"code": 4500, "reason": "go"}})
        }
        (Value::String(method), ..) => {
            json!({"result": {"data": {"method": method, "user": request["user"]}}})
        }
        (_, Value::String(channel), _) if channel == "no" => {
            json!({"error": {"code": 103, "message": "denied"}})
        }
        (_, Value::String(_), Value::Object(_)) => json!({"result": {"data": {"changed": true}}}),
        (_, Value::String(_), _) => json!({"result": {"data": {"first": 1}}}),
        _ => {
            json!({"result": {"user": "ada", "data": {"hi": request["data"]}, "channels": ["own"], "meta": {"m": 1}}})
        }
    };
    (200, result.to_string())
}

#[test]
fn a_backend_of_centrifugo_serves_as_it_is() {
    let application = Application::start(answer);
    let rig = Rig::start(config(&application));
    let mut client = WsClient::connect(rig.address, "/connection/websocket");
    client.send_text(concat!(
        "{\"id\":1,\"connect\":{\"data\":{\"t\":1}}}\n{\"id\":2,\"subscribe\":{\"channel\":\"a\"}}\n",
        "{\"id\":3,\"rpc\":{\"method\":\"who\",\"data\":{}}}\n{\"id\":4,\"rpc\":{\"method\":\"fail\"}}\n",
        "{\"id\":5,\"subscribe\":{\"channel\":\"no\"}}\n{\"id\":6,\"publish\":{\"channel\":\"a\",\"data\":{\"b\":1}}}",
    ));
    let mut told = Vec::new();
    let is_answer = |told: &&Value| !told["id"].is_null();
    let is_published = |told: &Value| told["push"]["pub"].is_object();
    while told.iter().filter(is_answer).count() < 6 || !told.iter().any(is_published) {
        let next = client.expect_json();
        if next != json!({}) {
            told.push(next);
        }
    }
    let of = |id: u64| told.iter().find(|told| told["id"] == id).unwrap();
    assert_eq!(of(1)["connect"]["data"], json!({"hi": {"t": 1}}));
    assert!(of(1)["connect"]["subs"]["own"].is_object(), "{}", of(1));
    assert_eq!(of(2)["subscribe"]["data"], json!({"first": 1}));
    assert_eq!(of(3)["rpc"]["data"], json!({"method": "who", "user": "ada"}));
    assert_eq!(of(4)["error"], json!({"code": 1000, "message": "no"}));
    assert_eq!(of(5)["error"]["code"], 103);
    assert!(of(6)["publish"].is_object(), "{}", of(6));
    let published = told.iter().find(|told| is_published(told)).unwrap();
    assert_eq!(published["push"]["pub"]["data"], json!({"changed": true}));
    let asked = application.asked();
    let call = asked.iter().map(Asked::json).find(|asked| asked["method"] == "who").unwrap();
    assert_eq!((&call["transport"], &call["protocol"]), (&"websocket".into(), &"json".into()));
    assert!(asked.iter().all(|asked| asked.header("content-type") == "application/json"));
    client.send_text("{\"id\":7,\"rpc\":{\"method\":\"cut\"}}");
    assert_eq!(client.expect_close(4500), "go");
}

#[test]
fn who_is_refused_is_told_and_closed() {
    let application =
        Application::start(|_: &Asked| (200, "{\"disconnect\":{\"code\":4501,\"reason\":\"bad\"}}".into()));
    let rig = Rig::start(config(&application));
    let mut client = WsClient::connect(rig.address, "/connection/websocket");
    client.send_text("{\"id\":1,\"connect\":{}}");
    assert_eq!(client.expect_close(4501), "bad");
    application.turn(|_| (500, String::new()));
    let mut client = WsClient::connect(rig.address, "/connection/websocket");
    client.send_text("{\"id\":1,\"connect\":{}}");
    assert_eq!(client.expect_json()["error"]["code"], 100, "it comes back");
}

fn open(rig: &Rig, way: &str, connect: &Value) -> Stream {
    let path = format!("/connection/{way}");
    match way.ends_with("sse") {
        true => Stream::get(rig, &path, "cf_connect", connect),
        false => Stream::post(rig, &path, &connect.to_string()),
    }
}

/// Whatever carries the connection, and by whichever request its commands come.
#[test]
fn clients_without_a_web_socket_are_asked_about_too() {
    let application = Application::start(answer);
    let rig = Rig::start(config(&application));
    let connect = json!({"id": 1, "connect": {"data": {"t": 1}}});
    for way in ["http_stream", "sse"] {
        let mut stream = open(&rig, way, &connect);
        let told = stream.next();
        assert_eq!(told["connect"]["data"], json!({"hi": {"t": 1}}), "{told}");
        assert!(told["connect"]["subs"]["own"].is_object(), "{told}");
        let commands = concat!(
            "{\"id\":2,\"subscribe\":{\"channel\":\"a\"}}\n{\"id\":3,\"rpc\":{\"method\":\"who\"}}\n",
            "{\"id\":4,\"subscribe\":{\"channel\":\"no\"}}\n{\"id\":5,\"publish\":{\"channel\":\"a\",\"data\":{}}}\n",
        );
        assert_eq!(emulate(&rig, &told["connect"]["session"], commands).status, 204);
        let mut told: Vec<Value> = (0..5).map(|_| stream.next()).collect();
        told.sort_by_key(|told| told["id"].as_u64());
        let [published, subscribed, called, refused, publish] = &told[..] else { panic!("{told:?}") };
        assert_eq!(published["push"]["pub"]["data"], json!({"changed": true}));
        assert_eq!(subscribed["subscribe"]["data"], json!({"first": 1}));
        assert_eq!(called["rpc"]["data"], json!({"method": "who", "user": "ada"}));
        assert_eq!(refused["error"]["code"], 103);
        assert!(publish["publish"].is_object(), "{publish}");
        let asked = application.asked();
        let last = asked.last().unwrap().json();
        assert_eq!((&last["transport"], &last["meta"]), (&json!(way), &json!({"m": 1})));
    }
}

/// Who sends no commands is asked about once, and subscribed to what the application says.
#[test]
fn clients_that_send_no_commands_are_asked_about_when_they_connect() {
    let application = Application::start(answer);
    let rig = Rig::start(config(&application));
    let connect = json!({"data": {"t": 1}});
    for (nth, way) in ["uni_http_stream", "uni_sse"].into_iter().enumerate() {
        let mut stream = open(&rig, way, &connect);
        let told = stream.next();
        assert_eq!(told["connect"]["data"], json!({"hi": {"t": 1}}), "{told}");
        assert!(told["connect"]["subs"]["own"].is_object(), "{told}");
        assert_eq!(application.asked()[nth].json()["transport"], way);
        rig.publish("own", "1");
        assert_eq!(stream.next()["pub"]["data"], 1);
    }
    application.turn(|_| (200, "{\"disconnect\":{\"code\":4501,\"reason\":\"bad\"}}".into()));
    let mut refused = Stream::post(&rig, "/connection/uni_http_stream", "{}");
    assert_eq!(refused.next()["disconnect"], json!({"code": 4501, "reason": "bad"}));
    application.turn(|_| (500, String::new()));
    let mut back = Stream::post(&rig, "/connection/uni_http_stream", "{}");
    assert_eq!(back.next()["disconnect"]["code"], 3004, "it comes back");
    rig.eventually_empty();
}

/// What a token says of its connection for the application.
#[test]
fn the_claim_meta_is_told() {
    let application = Application::start(answer);
    let mut config = config(&application);
    config.auth.jwt = with_presence().auth.jwt;
    let rig = Rig::start(config);
    let mut client = WsClient::connect(rig.address, "/connection/websocket");
    let connect =
        json!({"id": 1, "connect": {"token": token_of(&json!({"sub": "eve", "meta": {"plan": 7}}))}});
    client.send_text(&format!("{connect}\n{}", json!({"id": 2, "rpc": {"method": "who"}})));
    assert_eq!(client.expect_json()["connect"]["data"], Value::Null);
    assert_eq!(client.expect_json()["rpc"]["data"]["user"], "eve");
    assert_eq!(application.asked()[0].json()["meta"], json!({"plan": 7}));
}

/// What an application says of subscriptions is what others see.
#[test]
fn members_have_the_info_that_the_application_says() {
    let application = Application::start(|asked: &Asked| {
        let result = match asked.json()["channel"].as_str() {
            Some(_) => json!({"info": {"seat": 2}, "override": {"join_leave": {"value": false}}}),
            None => json!({"user": "ada", "b64info": "e30=", "subs": {"room:1": {"info": {"seat": 1}}}}),
        };
        (200, json!({ "result": result }).to_string())
    });
    let mut config = config(&application);
    config.namespaces.named = with_presence().namespaces.named;
    let rig = Rig::start(config);
    let mut client = WsClient::connect(rig.address, "/connection/websocket");
    client.send_text(
        "{\"id\":1,\"connect\":{}}\n{\"id\":2,\"subscribe\":{\"channel\":\"room:2\",\"join_leave\":true}}",
    );
    let name = client.expect_json()["connect"]["client"].as_str().unwrap().to_owned();
    assert!(client.expect_json()["subscribe"].is_object());
    for (channel, seat) in [("room:1", 1), ("room:2", 2)] {
        client.send_text(&json!({"id": 3, "presence": {"channel": channel}}).to_string());
        let told = client.expect_json();
        let expect = json!({"user": "ada", "client": name, "conn_info": {}, "chan_info": {"seat": seat}});
        assert_eq!(told["presence"]["presence"], json!({ name.as_str(): expect }));
    }
}

/// Of what a client says of itself only what the configuration names is handed on.
#[test]
fn a_client_says_its_name_and_headers() {
    let application = Application::start(answer);
    let mut config = config(&application);
    let hook = config.hooks.0.get_mut("app").unwrap();
    hook.emulated_headers = vec![HeaderSetting("authorization".parse().unwrap())];
    let rig = Rig::start(config);
    let connect = |said: Value| {
        let mut client = WsClient::connect(rig.address, "/connection/websocket");
        client.send_text(&json!({"id": 1, "connect": said}).to_string());
        client
    };
    let headers = json!({"Authorization": "Bearer x", "x-user-id": "1"});
    let mut client = connect(json!({"name": "js", "version": "5", "headers": headers}));
    assert!(client.expect_json()["connect"].is_object());
    let asked = &application.asked()[0];
    assert_eq!((&asked.json()["name"], &asked.json()["version"]), (&"js".into(), &"5".into()));
    assert_eq!(asked.header("authorization"), "Bearer x");
    assert!(asked.headers.get("x-user-id").is_none());
    // Handed on with what is asked later, as headers that were sent are.
    client.send_text("{\"id\":2,\"rpc\":{\"method\":\"who\"}}");
    assert!(client.expect_json()["rpc"].is_object());
    let asked = &application.asked()[1];
    assert_eq!((asked.header("authorization"), &asked.json()["name"]), ("Bearer x", &Value::Null));
    let long = "x".repeat(256);
    for said in [
        json!({"name": long}),
        json!({"version": long}),
        json!({"headers": {"authorization": "a\nb"}}),
        json!({"headers": {"authorization": "x".repeat(20_000)}}),
    ] {
        assert_eq!(connect(said).expect_close(3501), "bad request");
    }
}
