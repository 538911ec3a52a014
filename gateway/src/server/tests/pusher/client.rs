//! A client that speaks the protocol, and the signatures that its server would give it.

use std::net::SocketAddr;

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use serde_json::{Value, json};
use tidegate_testkit::WsClient;

use super::super::rig::{Rig, config as rig_config};
use crate::{
    app::apps::AppId,
    config::{AppEntry, Config},
};

pub(in crate::server::tests) const PATH: &str = "/app/dev-key?protocol=7&client=test";

pub(in crate::server::tests) struct Client {
    pub(in crate::server::tests) socket: WsClient,
    pub(in crate::server::tests) id: String,
}

/// As the rig's, but the app tells no counts: they would come between everything else.
pub(in crate::server::tests) fn config() -> Config {
    let mut config = rig_config();
    app(&mut config).subscription_count = false;
    config
}

/// The app of `--dev`.
pub(in crate::server::tests) fn app(config: &mut Config) -> &mut AppEntry {
    config.apps.0.get_mut(&AppId::new("1").unwrap()).unwrap()
}

impl Client {
    pub(in crate::server::tests) fn connect(rig: &Rig) -> Self {
        Self::connect_to(rig.address, PATH)
    }

    #[track_caller]
    pub(in crate::server::tests) fn connect_to(address: SocketAddr, path: &str) -> Self {
        let mut client = Self { socket: WsClient::connect(address, path), id: String::new() };
        let hello = client.expect("pusher:connection_established");
        assert_eq!(hello["activity_timeout"], 120);
        client.id = hello["socket_id"].as_str().unwrap().to_owned();
        client
    }

    pub(in crate::server::tests) fn send(&mut self, event: &str, data: Value) {
        self.socket.send_text(&json!({ "event": event, "data": data }).to_string());
    }

    pub(in crate::server::tests) fn send_event(&mut self, channel: &str, event: &str, data: Value) {
        self.socket.send_text(&json!({ "event": event, "channel": channel, "data": data }).to_string());
    }

    /// The signature of a subscription, as the app's server makes it.
    pub(in crate::server::tests) fn auth(&self, channel: &str, channel_data: Option<&str>) -> String {
        let data = channel_data.map(|data| format!(":{data}")).unwrap_or_default();
        signature(&format!("{}:{channel}{data}", self.id))
    }

    pub(in crate::server::tests) fn ask(&mut self, channel: &str) {
        let auth = self.auth(channel, None);
        self.send("pusher:subscribe", json!({ "channel": channel, "auth": auth }));
    }

    /// Subscribes to what is no presence channel.
    #[track_caller]
    pub(in crate::server::tests) fn subscribe(&mut self, channel: &str) {
        self.ask(channel);
        let succeeded = self.expect_on("pusher_internal:subscription_succeeded", channel);
        assert_eq!(succeeded, json!({}));
    }

    pub(in crate::server::tests) fn ask_as(&mut self, channel: &str, user: &str, info: Value) {
        let data = json!({ "user_id": user, "user_info": info }).to_string();
        let auth = self.auth(channel, Some(&data));
        self.send("pusher:subscribe", json!({ "channel": channel, "auth": auth, "channel_data": data }));
    }

    /// Subscribes to a presence channel; the users who are there.
    #[track_caller]
    pub(in crate::server::tests) fn subscribe_as(&mut self, channel: &str, user: &str) -> Vec<String> {
        self.ask_as(channel, user, json!({ "name": user }));
        let list = self.expect_on("pusher_internal:subscription_succeeded", channel);
        let presence = &list["presence"];
        let ids: Vec<String> = serde_json::from_value(presence["ids"].clone()).unwrap();
        assert_eq!(presence["count"], ids.len());
        for id in &ids {
            assert_eq!(presence["hash"][id], json!({ "name": id }));
        }
        ids
    }

    pub(in crate::server::tests) fn ask_sign_in(&mut self, user_data: &Value) {
        let user_data = user_data.to_string();
        let auth = signature(&format!("{}::user::{user_data}", self.id));
        self.send("pusher:signin", json!({ "auth": auth, "user_data": user_data }));
    }

    #[track_caller]
    pub(in crate::server::tests) fn sign_in(&mut self, user_data: &Value) {
        self.ask_sign_in(user_data);
        assert_eq!(self.expect("pusher:signin_success")["user_data"], user_data.to_string());
    }

    /// The next message is this event of no channel; its data.
    #[track_caller]
    pub(in crate::server::tests) fn expect(&mut self, event: &str) -> Value {
        let message = self.next();
        assert_eq!((&message["event"], &message["channel"]), (&json!(event), &Value::Null), "{message}");
        data(&message)
    }

    /// The next message is this event of this channel; its data.
    #[track_caller]
    pub(in crate::server::tests) fn expect_on(&mut self, event: &str, channel: &str) -> Value {
        let message = self.next();
        assert_eq!((&message["event"], &message["channel"]), (&json!(event), &json!(channel)), "{message}");
        data(&message)
    }

    #[track_caller]
    pub(in crate::server::tests) fn next(&mut self) -> Value {
        self.socket.expect_json()
    }

    /// The next message is an error with this code; its text.
    #[track_caller]
    pub(in crate::server::tests) fn expect_error(&mut self, code: Option<u16>) -> String {
        let message = self.next();
        assert_eq!(message["event"], "pusher:error", "{message}");
        assert_eq!(message["data"]["code"], json!(code), "{message}");
        message["data"]["message"].as_str().unwrap().to_owned()
    }

    /// A subscription is refused in both ways; why.
    #[track_caller]
    pub(in crate::server::tests) fn expect_refusal(
        &mut self,
        channel: &str,
        kind: &str,
        status: u16,
    ) -> String {
        let refusal = self.expect_on("pusher:subscription_error", channel);
        assert_eq!((&refusal["type"], &refusal["status"]), (&json!(kind), &json!(status)), "{refusal}");
        let text = self.expect_error(None);
        assert!(text.contains(channel), "{text}");
        refusal["error"].as_str().unwrap().to_owned()
    }

    /// Nothing has come that was not read.
    #[track_caller]
    pub(in crate::server::tests) fn expect_nothing(&mut self) {
        self.send("pusher:ping", json!({}));
        assert_eq!(self.expect("pusher:pong"), json!({}));
    }
}

pub(in crate::server::tests) fn signature(signed: &str) -> String {
    let digest = sign(&Key::new(HMAC_SHA256, b"dev-secret"), signed.as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("dev-key:{hex}")
}

/// The data of a message: what its string holds, if that is JSON.
pub(in crate::server::tests) fn data(message: &Value) -> Value {
    if message["data"].is_null() {
        return Value::Null;
    }
    let text = message["data"].as_str().unwrap_or_else(|| panic!("data is no string: {message}"));
    serde_json::from_str(text).unwrap_or_else(|_| json!(text))
}
