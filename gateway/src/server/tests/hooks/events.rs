//! What an application is told, nobody waiting: each once, in order, again until it is taken.

use std::time::Duration;

use serde_json::{Value, json};
use tidegate_testkit::{DEADLINE, SseClient, WsClient, eventually_some};

use super::{
    super::{
        apart::{token, with_presence},
        rig::Rig,
    },
    application::{Application, Asked, yes},
};
use crate::config::{Config, HookEvent, Secret};

fn config(application: &Application, events: &[HookEvent]) -> Config {
    let mut config = application.config(&[]);
    config.hooks.0.get_mut("app").unwrap().events = events.to_vec();
    config.hooks.0.get_mut("app").unwrap().secret =
        Some(Secret::new(b"whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"));
    config.webhooks.retry_wait = Duration::from_millis(5);
    config.webhooks.batch_wait = Duration::ZERO;
    // A starved machine must not make a request that is answered a failed one.
    config.webhooks.timeout = DEADLINE;
    config
}

/// Kind and body of the first events, by now or later.
fn told(application: &Application, number: usize) -> Vec<(String, Value)> {
    eventually_some(&format!("{number} events"), DEADLINE, || {
        let asked = application.asked();
        let told = asked.iter().map(|asked| (asked.kind().to_owned(), asked.json()));
        (asked.len() >= number).then(|| told.collect())
    })
}

#[test]
fn each_connection_comes_and_goes_once() {
    let application = Application::start(yes);
    let rig = Rig::start(config(&application, &[HookEvent::Connected, HookEvent::Disconnected]));
    let mut client = WsClient::connect(rig.address, "/ws?channel=plain:a");
    let connected = told(&application, 1);
    assert_eq!((&*connected[0].0, &connected[0].1["protocol"]), ("connected", &json!("raw")));
    client.send_close(1000, "");
    client.expect_close(1000);
    let both = told(&application, 2);
    assert_eq!((&*both[1].0, &both[1].1["reason"]), ("disconnected", &json!("client_closed")));
    assert!(
        both[1].1["duration_ms"].is_u64() && both[1].1["connection"] == both[0].1["connection"],
        "{both:?}"
    );
    let stream = SseClient::connect(rig.address, "/sse?channel=plain:a", None);
    told(&application, 3);
    drop(stream);
    assert_eq!(told(&application, 4)[3].1["reason"], "client_gone");
    let asked = application.asked();
    assert!(asked.iter().all(|asked| asked.header("webhook-id") == asked.header("ce-id")));
    assert!(asked[0].header("webhook-signature").starts_with("v1,"));
}

/// A client of Centrifugo is connected when it has said who it is.
#[test]
fn who_never_connects_is_not_told() {
    let application = Application::start(yes);
    let rig = Rig::start(config(&application, &[HookEvent::Connected, HookEvent::Disconnected]));
    drop(WsClient::connect(rig.address, "/connection/websocket"));
    rig.eventually_empty();
    let mut client = WsClient::connect(rig.address, "/connection/websocket");
    client.send_text("{\"id\":1,\"connect\":{}}");
    let events = told(&application, 1);
    assert_eq!((events.len(), &events[0].1["protocol"]), (1, &json!("centrifuge")));
}

#[test]
fn what_is_not_taken_comes_again_in_its_order() {
    let application = Application::start(|_: &Asked| (500, String::new()));
    let rig = Rig::start(config(&application, &[HookEvent::Connected, HookEvent::Disconnected]));
    drop(WsClient::connect(rig.address, "/ws?channel=plain:a"));
    told(&application, 3);
    application.turn(yes);
    rig.eventually_metric("tidegate_hook_event_requests_total{hook=\"app\",result=\"taken\"}", 2.0);
    let mut kinds: Vec<String> = told(&application, 4).into_iter().map(|(kind, _)| kind).collect();
    let ids: std::collections::HashSet<_> =
        application.asked().iter().map(|asked| asked.header("webhook-id").to_owned()).collect();
    kinds.dedup();
    assert_eq!((kinds, ids.len()), (vec!["connected".to_owned(), "disconnected".to_owned()], 2));
}

#[test]
fn channels_are_occupied_and_vacated() {
    let application = Application::start(yes);
    let rig = Rig::start(config(&application, &[HookEvent::Occupied, HookEvent::Vacated]));
    let one = WsClient::connect(rig.address, "/ws?channel=plain:a");
    assert_eq!(told(&application, 1)[0], ("channel.occupied".into(), json!({"channel": "plain:a"})));
    let other = WsClient::connect(rig.address, "/ws?channel=plain:a");
    rig.eventually_attending("plain:a", (2, 0));
    drop((one, other));
    rig.eventually_attending("plain:a", (0, 0));
    rig.backplane.sweep_after(60);
    let events = told(&application, 2);
    assert_eq!(events[1], ("channel.vacated".into(), json!({"channel": "plain:a"})));
}

/// Who is counted for `channel.occupied` and then says who it is, is listed; what it was before is gone.
#[test]
fn who_says_later_who_it_is_is_there_once() {
    let application = Application::start(yes);
    let mut config = with_presence();
    config.hooks = self::config(&application, &[HookEvent::Occupied, HookEvent::Vacated]).hooks;
    config.webhooks = self::config(&application, &[]).webhooks;
    let rig = Rig::start(config);
    let mut client = WsClient::connect(rig.address, "/ws?channel=room:1&envelope=json");
    rig.eventually_attending("room:1", (1, 0));
    client.send_text(&format!(r#"{{"token":"{}","id":1}}"#, token()));
    assert_eq!(client.expect_json()["id"], 1);
    rig.eventually_attending("room:1", (1, 1));
    drop(client);
    rig.eventually_attending("room:1", (0, 0));
    rig.backplane.sweep_after(60);
    let events = told(&application, 2);
    assert_eq!((&*events[0].0, &*events[1].0), ("channel.occupied", "channel.vacated"));
}

/// In order with what else happens to the connection; those that end with it, before its end.
#[test]
fn subscriptions_stand_and_end() {
    let application = Application::start(yes);
    let events = [HookEvent::Subscribed, HookEvent::Unsubscribed, HookEvent::Disconnected];
    let rig = Rig::start(config(&application, &events));
    let mut client = WsClient::connect(rig.address, "/ws?channel=plain:a&envelope=json");
    for command in [r#"{"subscribe":"plain:b","id":1}"#, r#"{"unsubscribe":"plain:a","id":2}"#] {
        client.send_text(command);
        assert!(client.expect_json()["ok"].is_object());
    }
    drop(client);
    let events = told(&application, 5);
    let what: Vec<_> =
        events.iter().map(|(kind, body)| (&**kind, body["channel"].as_str().unwrap_or_default())).collect();
    let expect = [
        ("subscribed", "plain:a"),
        ("subscribed", "plain:b"),
        ("unsubscribed", "plain:a"),
        ("unsubscribed", "plain:b"),
        ("disconnected", ""),
    ];
    assert_eq!(what, expect);
}

#[test]
fn a_batch_is_a_list_of_events() {
    let application = Application::start(yes);
    let mut config = config(&application, &[HookEvent::Connected]);
    config.hooks.0.get_mut("app").unwrap().batch = true;
    let rig = Rig::start(config);
    let _client = WsClient::connect(rig.address, "/ws?channel=plain:a");
    application.eventually_asked(1);
    let asked = application.asked();
    assert_eq!(asked[0].header("content-type"), "application/cloudevents-batch+json");
    assert_eq!(asked[0].json()[0]["type"], "tidegate.connected");
}
