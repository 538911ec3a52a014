//! What no client of the protocol sends: each has the code of the protocol, and nothing is left of it.

use serde_json::json;
use tidegate_testkit::WsClient;

use super::{Client, PATH, Rig, config};

/// What an open connection sends first, and the code that it is closed with.
#[track_caller]
fn check(rig: &Rig, connects: bool, text: &str, code: u16) {
    let mut client = if connects { Client::connect(rig) } else { Client::open(rig) };
    client.socket.send_text(text);
    client.socket.expect_close(code);
}

#[test]
fn before_it_connects_a_client_may_only_connect() {
    let rig = Rig::start(config());
    for text in [
        r#"{"id":1,"subscribe":{"channel":"a"}}"#,
        r#"{"id":1,"ping":{}}"#,
        r#"{"connect":{}}"#,
        r#"{"send":{"data":1}}"#,
        "{}",
        "x",
    ] {
        check(&rig, false, text, 3501);
    }
    rig.eventually_empty();
}

#[test]
fn what_cannot_be_a_command_is_a_bad_request() {
    let rig = Rig::start(config());
    for text in [
        "{",
        "[]",
        "\"x\"",
        "{}\n",
        r#"{"id":5}"#,
        r#"{"id":5,"teleport":{}}"#,
        r#"{"subscribe":{"channel":"a"}}"#,
        r#"{"id":5,"connect":{}}"#,
        r#"{"id":5,"subscribe":{}}"#,
        r#"{"id":5,"unsubscribe":{}}"#,
        r#"{"id":5,"publish":{"channel":"plain:a"}}"#,
        r#"{"id":5,"publish":{"data":1}}"#,
        r#"{"id":5,"presence":{}}"#,
        r#"{"id":5,"presence_stats":{}}"#,
        r#"{"id":5,"history":{}}"#,
        r#"{"id":5,"refresh":{}}"#,
        r#"{"id":5,"sub_refresh":{"channel":"a"}}"#,
        r#"{"id":-5,"ping":{}}"#,
        r#"{"id":5,"subscribe":"a"}"#,
    ] {
        check(&rig, true, text, 3501);
    }
    rig.eventually_metric("tidegate_disconnects_total{reason=\"protocol_error\"}", 19.0);
    check(&rig, true, r#"{"send":{"data":1}}"#, 3508);
    check(&rig, true, r#"{"id":5,"send":{"data":1}}"#, 3508);
    rig.eventually_empty();
}

/// An id may come again: it is the client's, and says nothing here.
#[test]
fn an_id_that_comes_again_is_answered_again() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    client.socket.send_text("{\"id\":7,\"ping\":{}}\n{\"id\":7,\"ping\":{}}");
    assert_eq!([client.next(), client.next()], [json!({"id": 7, "ping": {}}), json!({"id": 7, "ping": {}})]);
}

#[test]
fn a_frame_of_the_other_encoding_is_a_bad_request() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    client.socket.send_binary(&[0]);
    client.socket.expect_close(3501);
    let offer = [("sec-websocket-protocol", "centrifuge-protobuf")];
    let mut client = WsClient::try_connect(rig.address, PATH, &offer).unwrap();
    client.send_text("{}");
    client.expect_close(3501);
    for bytes in [&[0x05][..], &[0xff; 11], &[0x04, 0x2a, 0x02, 0x0a, 0x7f], &[0]] {
        let mut client = WsClient::connect(rig.address, &format!("{PATH}?cf_protocol=protobuf"));
        client.send_binary(bytes);
        client.expect_close(3501);
    }
    rig.eventually_empty();
}

#[test]
fn a_message_that_is_too_long_is_final_for_clients() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    client.socket.send_text(&"x".repeat(65 * 1024));
    client.socket.expect_close(1009);
}

#[test]
fn names_of_odd_characters_are_refused_and_said_back_to_nobody() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    for name in ["\u{0}", "a b", "\u{1f30a}", "*", "a!b", &"x".repeat(300)] {
        assert_eq!(client.refused("subscribe", json!({ "channel": name })), 107, "{name}");
    }
}
