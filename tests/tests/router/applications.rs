//! Two gateways behind a router, and an application of `docs/hooks.md` that they ask: while it answers, while it is away, and
//! when it is back.

use std::collections::BTreeSet;

use serde_json::json;
use tidegate_testkit::{DEADLINE, WsClient, eventually};
use tidegate_tests::application::{Application, Language, SECRET, SESSION};

use super::site::{GATEWAY_CONFIG, SHORT_DRAIN, Site};

const CLIENTS: usize = 500;
const PATH: &str = "/ws?channel=room:1&envelope=json";

fn site(application: &Application) -> Site {
    Site::with(2, &format!("{GATEWAY_CONFIG}{}", application.config(SECRET)), SHORT_DRAIN)
}

/// A message to the application, and what came of it: its status, 200 for an answer.
fn ask(client: &mut WsClient) -> u64 {
    client.send_text(r#"{"message":{"n":1},"id":1}"#);
    let answer = client.expect_json();
    if answer["ok"]["from"] == "ada" { 200 } else { answer["error"]["code"].as_u64().unwrap() }
}

#[test]
fn five_hundred_clients_stay_while_the_application_is_killed_and_comes_back() {
    let application = Application::start(Language::Go);
    let address = application.address;
    let site = site(&application);
    let connect = || WsClient::try_connect(site.router.public, PATH, SESSION);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| connect().unwrap()).collect();
    assert!(clients.iter_mut().all(|client| ask(client) == 200), "the application answers all of them");
    drop(application);
    // None is closed for it.
    for client in &mut clients {
        assert_eq!(ask(client), 503);
    }
    assert_eq!(connect().unwrap_err().status, 503);
    site.router.rest().publish("room:1", "\"on\"");
    for client in &mut clients {
        assert_eq!(client.expect_json()["data"], "\"on\"");
    }
    let _back = Application::start_at(Language::Go, address.port());
    for client in &mut clients {
        eventually("the application is asked again", DEADLINE, || ask(client) == 200);
    }
    eventually("who comes is let in", DEADLINE, || connect().is_ok());
}

#[test]
fn connections_of_a_user_are_found_and_sent_to_on_both_nodes() {
    let application = Application::start(Language::Go);
    let site = site(&application);
    let connect = |nth: usize| {
        let gateway = site.gateways[nth].public();
        WsClient::try_connect(gateway, PATH, SESSION).unwrap()
    };
    let mut clients = [connect(0), connect(1)];
    let rest = site.gateways[0].rest();
    let found = rest.get("/v1/connections?user=ada").json();
    let nodes: BTreeSet<_> = found["connections"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["node"])
        .collect::<Vec<_>>()
        .into_iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!((nodes.len(), &found["silent"]), (2, &json!([])), "{found}");
    let sent = rest.post_json("/v1/send", &json!({"user": "ada", "data": {"n": 1}, "event": "note"})).json();
    assert_eq!(sent, json!({"connections": 2, "refused": 0, "nodes": 2, "silent": []}));
    for client in &mut clients {
        assert_eq!(client.expect_json(), json!({"message": {"event": "note", "data": {"n": 1}}}));
    }
    let one = found["connections"][1]["connection"].as_str().unwrap();
    let sent = rest.post_json("/v1/send", &json!({"connection": one, "data": 2})).json();
    assert_eq!(sent["connections"], 1, "{sent}");
}
