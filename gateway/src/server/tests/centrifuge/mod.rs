//! Clients of Centrifugo's protocol, by frames: a real one is in the end-to-end tests.

mod bad_input;
mod commands;
mod deltas;
mod entering;
mod order;
mod orders;
mod presence;
mod recovery;
mod rights;
pub(super) mod streams;
mod table;
mod tokens;

use std::time::Duration;

use serde_json::{Value, json};
use tidegate_testkit::WsClient;

use super::{
    apart::with_presence,
    rig::{Rig, config},
};

const PATH: &str = "/connection/websocket";

struct Client {
    socket: WsClient,
    id: u32,
    /// As the server names it.
    name: String,
}

impl Client {
    /// Connected, without a token.
    #[track_caller]
    fn connect(rig: &Rig) -> Self {
        Self::connect_with(rig, json!({}))
    }

    #[track_caller]
    fn connect_with(rig: &Rig, connect: Value) -> Self {
        let mut client = Self::open(rig);
        let told = client.ask("connect", connect);
        client.name = told["client"].as_str().unwrap().to_owned();
        assert_eq!(told["pong"], true, "{told}");
        client
    }

    /// An open socket, and nothing said.
    #[track_caller]
    fn open(rig: &Rig) -> Self {
        Self { socket: WsClient::connect(rig.address, PATH), id: 0, name: String::new() }
    }

    fn send(&mut self, command: &str, request: Value) -> u32 {
        self.id += 1;
        self.socket.send_text(&json!({ "id": self.id, command: request }).to_string());
        self.id
    }

    /// The next line that is no ping; a frame has one line.
    #[track_caller]
    fn next(&mut self) -> Value {
        loop {
            let told = self.socket.expect_json();
            if told != json!({}) {
                return told;
            }
        }
    }

    /// The result of a command; nothing else comes before.
    #[track_caller]
    fn ask(&mut self, command: &str, request: Value) -> Value {
        let id = self.send(command, request);
        let mut told = self.next();
        assert_eq!(told["id"], id, "{told}");
        assert!(told[command].is_object(), "{told}");
        told[command].take()
    }

    #[track_caller]
    fn refused(&mut self, command: &str, request: Value) -> u64 {
        let id = self.send(command, request);
        let told = self.next();
        assert_eq!(told["id"], id, "{told}");
        told["error"]["code"].as_u64().unwrap_or_else(|| panic!("{told}"))
    }

    #[track_caller]
    fn expect_publication(&mut self, channel: &str) -> Value {
        let mut told = self.next();
        assert_eq!(told["push"]["channel"], channel, "{told}");
        told["push"]["pub"].take()
    }
}

#[test]
fn an_anonymous_client_that_is_idle_owns_nothing_and_is_pinged() {
    let mut config = config();
    config.heartbeat.interval = Duration::from_millis(500);
    config.heartbeat.timeout = Duration::from_secs(10);
    let rig = Rig::start(config);
    let mut client = Client::connect(&rig);
    for _ in 0..3 {
        assert_eq!(client.socket.expect_json(), json!({}));
        client.socket.send_text("{}");
    }
    // It lives, and is asked again.
    client.ask("ping", json!({}));
    drop(client);
    rig.eventually_empty();
}

#[test]
fn who_does_not_answer_a_ping_is_closed() {
    let mut config = config();
    config.heartbeat.interval = Duration::from_millis(250);
    config.heartbeat.timeout = Duration::from_millis(500);
    let rig = Rig::start(config);
    let mut client = Client::connect(&rig);
    assert_eq!(client.socket.expect_json(), json!({}));
    assert_eq!(client.socket.expect_close(3012), "no pong");
    rig.eventually_metric("tidegate_disconnects_total{reason=\"ping_timeout\"}", 1.0);
}

#[test]
fn who_does_not_connect_is_stale() {
    let mut config = config();
    config.limits.handshake_timeout = Duration::from_secs(1);
    let rig = Rig::start(config);
    let mut client = Client::open(&rig);
    assert_eq!(client.socket.expect_close(3502), "stale");
}
