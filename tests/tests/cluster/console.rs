//! The console over two gateways and Redis: one view of both, what it costs when nobody looks, who may not look, and
//! the page and the terminal that show it.

use std::process::Command;
use std::sync::Arc;
use std::thread;

use reqwest::Method;
use serde_json::Value;
use tidegate_testkit::redis::{RedisServer, Value as RedisValue};
use tidegate_testkit::{
    DEADLINE, Gateway, Process, SseClient, Tool, WsClient, chromium_path, eventually, product_binary,
    target_directory,
};

use tidegate_tests::cluster::site::{Site, TOKEN};

/// A stream of views.
struct Watcher(SseClient);

impl Watcher {
    #[track_caller]
    fn on(gateway: &Gateway) -> Self {
        let mut stream = SseClient::connect(gateway.internal(), "/console/events", None);
        assert_eq!(stream.expect_event().event, "history");
        Self(stream)
    }

    /// The first view that is as it should be.
    #[track_caller]
    fn until(&mut self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let mut view = Value::Null;
        eventually(what, DEADLINE, || {
            let event = self.0.expect_event();
            assert_eq!(event.event, "view");
            view = serde_json::from_str(&event.data).unwrap();
            is_so(&view)
        });
        view
    }
}

fn node<'v>(view: &'v Value, name: &str) -> &'v Value {
    let nodes = view["nodes"].as_array().unwrap();
    nodes.iter().find(|node| node["name"] == name).unwrap_or(&Value::Null)
}

fn has_channel(list: &Value, name: &str, is_so: impl Fn(&Value) -> bool) -> bool {
    list.as_array().unwrap().iter().any(|channel| channel["name"] == name && is_so(channel))
}

fn is_reported(redis: &RedisServer, node: &str) -> bool {
    redis.command(&["EXISTS", &format!("tidegate:{{!nodes}}:r:{node}")]) == RedisValue::Integer(1)
}

#[test]
fn two_gateways_are_one_view_and_say_nothing_when_nobody_looks() {
    let redis = RedisServer::start();
    let mut site = Site::start(&redis.url(), 2);
    let [first, second] = [site.gateways[0].public(), site.gateways[1].public()];
    let _clients = [first, first, second].map(|address| WsClient::connect(address, "/ws?channel=live:a"));
    assert!(!is_reported(&redis, "g1") && !is_reported(&redis, "g2"), "nobody watches");

    let mut watcher = Watcher::on(&site.gateways[0]);
    let is_whole = |view: &Value| {
        view["totals"]["ready"] == 2
            && view["totals"]["connections"].as_u64() >= Some(3)
            && has_channel(&view["by_subscribers"], "live:a", |channel| channel["subscribers"] == 3)
    };
    let view = watcher.until("both nodes report", is_whole);
    assert!(view["sentence"].as_str().unwrap().starts_with("All 2 nodes are ready"), "{view}");
    assert!(!view["ceiling"]["advice"].as_str().unwrap().is_empty(), "{view}");
    assert_eq!(node(&view, "g2")["redis_connected"], "1 of 1");
    assert!(is_reported(&redis, "g1") && is_reported(&redis, "g2"));

    // Published on one node, delivered on both.
    let publisher = site.gateways[0].rest();
    watcher.until("rates of both nodes", |view| {
        (0..30).for_each(|_| drop(publisher.publish("live:a", "x")));
        node(view, "g1")["deliveries"].as_f64() > Some(0.0)
            && node(view, "g2")["deliveries"].as_f64() > Some(0.0)
            && view["sample"]["publishes"].as_f64() > Some(0.0)
            && view["sample"]["p99_ms"].as_f64() > Some(0.0)
            && has_channel(&view["by_rate"], "live:a", |channel| channel["deliveries"].as_f64() > Some(0.0))
    });

    assert!(WsClient::try_connect(second, "/ws?channel=room:a&token=bad", &[]).is_err());
    watcher.until("the refusal with its reason and node", |view| {
        let refusals = view["refusals"].as_array().unwrap();
        refusals.iter().any(|refusal| refusal["reason"] == "token_invalid" && refusal["node"] == "g2")
    });

    site.gateways.pop().unwrap().kill();
    let view = watcher.until("the dead node is lost", |view| node(view, "g2")["state"] == "lost");
    assert_eq!(view["state"], "bad");
    assert!(view["sentence"].as_str().unwrap().contains("lost: g2"), "{view}");

    drop(watcher);
    eventually("the node stops reporting", DEADLINE, || !is_reported(&redis, "g1"));
}

#[test]
fn pages_of_others_and_people_without_a_key_are_refused() {
    let redis = RedisServer::start();
    let site = Site::start(&redis.url(), 2);
    let internal = site.gateways[0].internal_rest().without_key();
    let own = format!("http://{}", site.gateways[0].internal());
    let ask = |path: &str, headers: &[(&str, &str)]| internal.send(Method::GET, path, headers, None).status;
    for path in ["/console", "/console/app.js", "/console/about"] {
        assert_eq!(ask(path, &[]), 200, "{path}");
        assert_eq!(ask(path, &[("origin", &own), ("sec-fetch-site", "same-origin")]), 200, "{path}");
        assert_eq!(ask(path, &[("host", "localhost:9000"), ("sec-fetch-site", "none")]), 200, "{path}");
    }
    let foreign = [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        // A name that was made to mean this machine.
        ("host", "evil.example"),
    ];
    for header in foreign {
        for path in ["/console", "/console/events", "/v1/nodes", "/console/connections/a"] {
            assert_eq!(ask(path, &[header, ("authorization", "Bearer dev-key")]), 403, "{path} {header:?}");
        }
    }
    for path in ["/v1/nodes", "/v1/channels/live:a", "/v1/channels/kept:a/history", "/console/connections/a"]
    {
        assert_eq!(ask(path, &[]), 401, "{path}");
    }
    assert_eq!(ask("/v1/nodes", &[("authorization", "Bearer dev-key")]), 200);
    let page = internal.get("/console");
    assert!(page.header("content-security-policy").unwrap().contains("frame-ancestors 'none'"));
}

#[test]
fn a_connection_is_found_on_whichever_node_it_is_and_can_be_ended() {
    let redis = RedisServer::start();
    let site = Site::start(&redis.url(), 2);
    let path = format!("/ws?channel=room:a&envelope=json&token={TOKEN}");
    let mut client = WsClient::connect(site.gateways[1].public(), &path);
    for id in [7, 8] {
        client.send_text(&format!(r#"{{"ping":1,"id":{id}}}"#));
        assert!(client.expect_text().contains("ping: expected true"));
    }
    let console = site.gateways[0].internal_rest().with_key("dev-key");
    let mut name = String::new();
    eventually("it is present", DEADLINE, || {
        let presence = console.get("/v1/channels/room:a/presence").json();
        name = presence["members"][0]["connection"].as_str().unwrap_or_default().to_owned();
        !name.is_empty()
    });
    let found = console.get(&format!("/console/connections/{name}")).json();
    assert_eq!(
        (&found["user"], &found["node"], &found["phase"]),
        (&"ada".into(), &"g2".into(), &"open".into())
    );
    assert_eq!((&found["protocol"], &found["channels"][0]), (&"raw".into(), &"room:a".into()));
    assert!(found["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{found}");
    let told = &found["told"][0];
    let expect = (&Value::from("command: 400 ping: expected true"), &Value::from(2));
    assert_eq!((&told["text"], &told["times"]), expect, "{found}");

    let order = serde_json::json!({ "connection": name, "reason": "by the console" });
    assert_eq!(console.post_json("/v1/disconnect", &order).status, 202);
    assert_eq!(client.expect_close(4403), "by the console");
    // Its node reports once a second.
    eventually("it is found no more", DEADLINE, || {
        console.get(&format!("/console/connections/{name}")).status == 404
    });
}

#[test]
fn few_watch_one_node_at_once_and_a_drain_ends_their_streams() {
    let gateway = Gateway::start();
    let mut watchers: Vec<Watcher> = (0..8).map(|_| Watcher::on(&gateway)).collect();
    let refused = SseClient::try_connect(gateway.internal(), "/console/events", None);
    assert_eq!(refused.err().map(|(head, _)| head.status), Some(503));
    watchers.pop();
    eventually("a place is free again", DEADLINE, || {
        SseClient::try_connect(gateway.internal(), "/console/events", None).is_ok()
    });
    let view = watchers[0].until("the node reports", |view| view["totals"]["ready"] == 1);
    assert_eq!(node(&view, view["served_by"].as_str().unwrap())["redis_connected"], Value::Null);
    let exit = gateway.terminate();
    assert_eq!(exit.code, Some(0), "{exit}");
    watchers[0].0.expect_end();
}

fn top(arguments: &[&str]) -> tidegate_testkit::Exit {
    let mut command = Command::new(product_binary());
    command.arg("top").args(arguments).env_remove("TIDEGATE_BIN").env_remove("TIDEGATE_CACHE");
    Process::spawn("tidegate top", &mut command).wait(DEADLINE)
}

#[test]
fn top_prints_the_cluster_once() {
    let redis = RedisServer::start();
    let site = Site::start(&redis.url(), 2);
    let _client = WsClient::connect(site.gateways[1].public(), "/ws?channel=live:a");
    let url = format!("http://{}", site.gateways[0].internal());
    let exit = top(&["--once", "--url", &url]);
    assert_eq!(exit.code, Some(0), "{exit}");
    for part in [
        "All 2 nodes are ready",
        "The next ceiling is ",
        "g1 ",
        "g2 ",
        "live:a",
        "nodes ready            2 of 2",
    ] {
        assert!(exit.stdout.contains(part), "{part} in {}", exit.stdout);
    }
    let exit = top(&["--once", "--url", "http://127.0.0.1:1"]);
    assert_eq!(exit.code, Some(1), "{exit}");
    assert!(exit.stderr.contains("http://127.0.0.1:1 does not answer"), "{exit}");
    assert!(exit.stderr.contains("internal port of a gateway"), "{exit}");
    let public = format!("http://{}", site.gateways[0].public());
    let router = top(&["--once", "--url", &format!("{public}/nothing")]);
    assert!(router.stderr.contains("has no console"), "{router}");
}

/// Pictures go to `target/e2e`; with `BLESS=1` to `docs/`.
#[test]
fn the_page_shows_a_cluster_under_load_on_desktop_and_phone_in_both_schemes() {
    let redis = RedisServer::start();
    let site = Site::start(&redis.url(), 3);
    let channel =
        |number: usize| format!("/ws?channel={}", ["live:prices", "live:scores", "live:chat"][number % 3]);
    let _clients: Vec<WsClient> = (0..60)
        .map(|number| WsClient::connect(site.gateways[number % 3].public(), &channel(number / 3)))
        .collect();
    let _member = WsClient::connect(site.gateways[1].public(), &format!("/ws?channel=room:a&token={TOKEN}"));
    let pictures = match std::env::var_os("BLESS") {
        Some(_) => tidegate_testkit::scripts_directory().join("../../docs"),
        None => target_directory(),
    };
    let exit = thread::scope(|scope| {
        // The load ends with it, also where this thread panics.
        let load = Arc::new(());
        for (gateway, name) in site.gateways.iter().zip(["live:prices", "live:scores", "live:chat"]) {
            let (rest, load) = (gateway.rest(), Arc::downgrade(&load));
            scope.spawn(move || {
                while load.strong_count() > 0 {
                    rest.publish(name, "a message of some length, as it comes from an application");
                    assert!(
                        WsClient::try_connect(gateway.public(), "/ws?channel=room:a&token=bad", &[]).is_err()
                    );
                }
            });
        }
        let script = Tool::node("console.cjs")
            .gateway(site.gateways[0].internal())
            .environment("CHROMIUM", chromium_path())
            .environment("PICTURES", &pictures);
        script.spawn().wait(DEADLINE * 2)
    });
    assert_eq!(exit.code, Some(0), "{exit}");
    for picture in ["desktop-light", "desktop-dark", "phone-light", "phone-dark"] {
        let file = pictures.join(format!("console-{picture}.png"));
        let length = std::fs::metadata(&file).map(|file| file.len()).unwrap_or(0);
        assert!(length > 5_000, "{} has {length} bytes", file.display());
    }
}
