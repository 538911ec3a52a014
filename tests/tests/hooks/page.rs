//! The handlers of `docs/hooks.md`, each run as it stands there, and asked by a gateway.

use std::fs;
use std::process::Command;

use serde_json::json;
use tidegate_testkit::{Gateway, WsClient, product_binary};
use tidegate_tests::application::{Application, Language, SECRET, SESSION};

fn check(language: Language) {
    let application = Application::start(language);
    let gateway = Gateway::builder().config(&application.config(SECRET)).start();
    let path = "/ws?channel=room:1&envelope=json";
    let refused = WsClient::try_connect(gateway.public(), path, &[]).unwrap_err();
    assert_eq!(refused.status, 401, "{language:?}");
    let mut client = WsClient::try_connect(gateway.public(), path, SESSION).unwrap();
    client.send_text(r#"{"message":{"n":1},"id":1}"#);
    assert_eq!(
        client.expect_json(),
        json!({"ok": {"from": "ada", "echo": {"n": 1}}, "id": 1}),
        "{language:?}"
    );
    client.send_text(r#"{"publish":{"channel":"room:1","data":"spam"},"id":2}"#);
    assert_eq!(client.expect_json()["error"]["code"], 403, "{language:?}");
    client.send_text(r#"{"publish":{"channel":"room:1","data":"hello"},"id":3}"#);
    let told = [client.expect_json(), client.expect_json()];
    assert!(told.iter().any(|told| told["data"] == "hello"), "{language:?}: {told:?}");
    assert!(told.iter().any(|told| told["ok"].is_object() && told["id"] == 3), "{language:?}: {told:?}");
    drop(client);
    let taken = [("hook", "app"), ("result", "taken")];
    gateway.eventually_metric("tidegate_hook_event_requests_total", &taken, |taken| taken == 2.0);
    // Who signs with another secret is nobody.
    let other = application.config("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
    let gateway = Gateway::builder().config(&other).start();
    let refused = WsClient::try_connect(gateway.public(), path, SESSION).unwrap_err();
    assert_eq!(refused.status, 401, "{language:?}");
}

#[test]
fn the_handler_of_ten_lines() {
    let application = Application::start(Language::ShortNode);
    let config = application.config(SECRET).replace("\"publish\", ", "");
    let gateway = Gateway::builder().config(&config).start();
    let path = "/ws?channel=room:1&envelope=json";
    let mut client = WsClient::try_connect(gateway.public(), path, SESSION).unwrap();
    client.send_text(r#"{"message":{"n":1},"id":1}"#);
    assert_eq!(client.expect_json(), json!({"ok": {"from": "ada", "echo": {"n": 1}}, "id": 1}));
}

#[test]
fn the_handler_in_node() {
    check(Language::Node);
}

#[test]
fn the_handler_in_python() {
    check(Language::Python);
}

#[test]
fn the_handler_in_go() {
    check(Language::Go);
}

#[test]
fn the_handler_in_php() {
    check(Language::Php);
}

/// What the command line says of a handler.
#[test]
fn a_handler_is_tried_by_hand() {
    let application = Application::start(Language::Go);
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, SECRET).unwrap();
    let run = |url: &str| {
        let mut command = Command::new(product_binary());
        command.args(["hooks", "test", url, "--secret-file"]).arg(&secret);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (is_answered, told) = run(&format!("http://{}/", application.address));
    let expect = [
        "connect: no; the client is told 401: the application refuses it",
        "subscribe: yes",
        "publish: yes",
        "message: yes; ",
        "refresh: yes",
        "event connected: taken (204 No Content)",
    ];
    let is_told = told.lines().zip(expect).all(|(line, expect)| line.starts_with(expect));
    assert!(is_answered && is_told && told.lines().count() == expect.len(), "{told}");
    let url = format!("http://{}/", application.address);
    drop(application);
    let (is_answered, told) = run(&url);
    assert!(
        !is_answered && told.lines().all(|line| line.contains("no answer") || line.contains("not taken")),
        "{told}"
    );
}
