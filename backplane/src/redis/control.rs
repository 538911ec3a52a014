//! Orders to all nodes: their form, and the pub/sub channel that every node is always subscribed to.
//!
//! An order is a JSON object: `{"kind":"disconnect","user":U,"reason":R}`, with `app` beside `user` where it is not the
//! default one, or with `connection`, `channel` or `everyone` in place of `user`; `{"kind":"watch","connections":[C]}`;
//! `{"kind":"ask_back","node":N,"peers":["ADDRESS:PORT"]}`; or
//! `{"kind":"instruct","user":U,"text":T}`, whose target is said as that of `disconnect`.
//! Nodes skip and count kinds that they do not know. An order is not kept: a node that is cut off from Redis while it
//! is given does not get it.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use redis::Cmd;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{
    contract::{Commands, Seat, Subscribing},
    counters::Tallies,
    names::{CONTROL, Prefix},
};
use crate::{BackplaneError, Channel, Control, Sink, Target};

const DISCONNECT: &str = "disconnect";
const WATCH: &str = "watch";
const ASK_BACK: &str = "ask_back";
const INSTRUCT: &str = "instruct";

/// Publishes an order.
pub(crate) async fn send(
    commands: &dyn Commands,
    prefix: &Prefix,
    control: &Control,
) -> Result<(), BackplaneError> {
    let mut command = Cmd::new();
    command.arg(if commands.is_sharded() { "SPUBLISH" } else { "PUBLISH" });
    command.arg(prefix.pubsub(CONTROL)).arg(encode(control));
    commands.call(CONTROL, command).await?;
    Ok(())
}

/// Keeps the subscription to orders where their channel lives, and hands them over.
pub(crate) struct Orders {
    /// Not owned: the links own this.
    subscribing: Weak<dyn Subscribing>,
    sink: Arc<dyn Sink>,
    channel: Vec<u8>,
    state: Mutex<State>,
    has_confirmed: AtomicBool,
    confirmed: Notify,
    tallies: Arc<Tallies>,
}

#[derive(Debug, Default)]
struct State {
    sessions: Vec<Seat>,
    confirmed: Option<Seat>,
}

/// Why bytes are not an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OrderError {
    /// Of a newer version.
    Unknown,
    Undecodable,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct StoredOrder {
    kind: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    app: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    connection: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    channel: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "is_false")]
    everyone: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    connections: Vec<Box<str>>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    node: Box<str>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    peers: Vec<SocketAddr>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    reason: Box<str>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    text: Box<str>,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Orders {
    pub(crate) fn new(
        subscribing: Weak<dyn Subscribing>,
        sink: Arc<dyn Sink>,
        prefix: &Prefix,
        tallies: Arc<Tallies>,
    ) -> Self {
        Self {
            subscribing,
            sink,
            channel: prefix.pubsub(CONTROL).into_bytes(),
            state: Mutex::default(),
            has_confirmed: AtomicBool::new(false),
            confirmed: Notify::new(),
            tallies,
        }
    }

    /// Subscribes if that is not confirmed where the channel lives. Called when something changes, and each second for
    /// what was lost.
    pub(crate) fn subscribe(&self) {
        let Some(subscribing) = self.subscribing.upgrade() else { return };
        let Some(route) = subscribing.route(CONTROL) else { return };
        let seat = self.with(|state| {
            let seat = state.sessions.iter().find(|seat| seat.link == route.link).copied();
            seat.filter(|_| seat != state.confirmed)
        });
        if let Some(Seat { link, session }) = seat {
            // False: the session is over, and the next one begins with this.
            subscribing.subscribe(link, session, &[&self.channel]);
        }
    }

    /// The session in which orders are received.
    pub(crate) fn seat(&self) -> Option<Seat> {
        self.with(|state| state.confirmed)
    }

    /// Goes on with sessions of another process, and where that received orders.
    pub(crate) fn go_on(&self, sessions: Vec<Seat>, confirmed: Option<Seat>) {
        self.with(|state| *state = State { sessions, confirmed });
        self.has_confirmed.store(confirmed.is_some(), Relaxed);
    }

    /// Awaits the first confirmation.
    pub(crate) async fn until_confirmed(&self) {
        loop {
            let mut confirmed = std::pin::pin!(self.confirmed.notified());
            confirmed.as_mut().enable();
            if self.has_confirmed.load(Relaxed) {
                return;
            }
            confirmed.await;
        }
    }

    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the owner of the links passes on.
impl Orders {
    pub(crate) fn up(&self, seat: Seat) {
        self.with(|state| state.sessions.push(seat));
        self.subscribe();
    }

    pub(crate) fn down(&self, seat: Seat) {
        self.with(|state| {
            state.sessions.retain(|held| *held != seat);
            state.confirmed = state.confirmed.filter(|held| *held != seat);
        });
    }

    pub(crate) fn is_for(&self, channel: &[u8]) -> bool {
        channel == self.channel
    }

    pub(crate) fn confirmed(&self, seat: Seat) {
        self.with(|state| state.confirmed = Some(seat));
        self.has_confirmed.store(true, Relaxed);
        self.confirmed.notify_waiters();
    }

    pub(crate) fn ended(&self, seat: Seat) {
        self.with(|state| state.confirmed = state.confirmed.filter(|held| *held != seat));
        self.subscribe();
    }

    pub(crate) fn message(&self, payload: &[u8]) {
        let tally = match decode(payload) {
            Ok(control) => {
                self.sink.control(control);
                &self.tallies.orders_received
            }
            Err(OrderError::Unknown) => &self.tallies.orders_unknown,
            Err(OrderError::Undecodable) => &self.tallies.orders_undecodable,
        };
        tally.fetch_add(1, Relaxed);
    }
}

impl std::fmt::Debug for Orders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Orders").field("state", &self.state).finish_non_exhaustive()
    }
}

fn encode(control: &Control) -> Vec<u8> {
    let order = match control.clone() {
        Control::Disconnect { target, reason } => {
            StoredOrder { kind: DISCONNECT.into(), reason, ..StoredOrder::to(target) }
        }
        Control::Instruct { target, text } => {
            StoredOrder { kind: INSTRUCT.into(), text, ..StoredOrder::to(target) }
        }
        Control::AskBack { node, peers } => {
            StoredOrder { kind: ASK_BACK.into(), node, peers, ..StoredOrder::default() }
        }
        Control::Watch { connections } => {
            StoredOrder { kind: WATCH.into(), connections, ..StoredOrder::default() }
        }
    };
    serde_json::to_vec(&order).expect("texts are JSON")
}

fn decode(bytes: &[u8]) -> Result<Control, OrderError> {
    let order: StoredOrder = serde_json::from_slice(bytes).map_err(|_| OrderError::Undecodable)?;
    let StoredOrder {
        kind,
        app,
        user,
        connection,
        channel,
        everyone,
        connections,
        node,
        peers,
        reason,
        text,
    } = order;
    let target = match (app, user, connection, channel, everyone) {
        (app, Some(user), None, None, false) => Some(Target::User { app, user }),
        (None, None, Some(connection), None, false) => Some(Target::Connection(connection)),
        (None, None, None, Some(channel), false) => Channel::from_inside(&channel).ok().map(Target::Channel),
        (app, None, None, None, true) => Some(Target::Everyone { app }),
        _ => None,
    };
    match (&*kind, target) {
        (ASK_BACK, _) => Ok(Control::AskBack { node, peers }),
        (WATCH, _) => Ok(Control::Watch { connections }),
        (DISCONNECT, Some(target)) => Ok(Control::Disconnect { target, reason }),
        (INSTRUCT, Some(target)) => Ok(Control::Instruct { target, text }),
        _ => Err(OrderError::Unknown),
    }
}

impl StoredOrder {
    fn to(target: Target) -> Self {
        let none = Self::default();
        match target {
            Target::User { app, user } => Self { app, user: Some(user), ..none },
            Target::Connection(connection) => Self { connection: Some(connection), ..none },
            Target::Channel(channel) => Self { channel: Some(channel.as_str().into()), ..none },
            Target::Everyone { app } => Self { app, everyone: true, ..none },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_back_and_others_told_apart() {
        let user =
            |app: Option<&str>, user: &str| Target::User { app: app.map(Into::into), user: user.into() };
        for target in [
            user(None, "ü\n\""),
            user(Some("1"), "a!b"),
            Target::Connection("n.1".into()),
            Target::Channel(Channel::in_app("1", "a:b").expect("a channel")),
            Target::Everyone { app: None },
            Target::Everyone { app: Some("1".into()) },
        ] {
            let control = Control::Disconnect { target: target.clone(), reason: "banned".into() };
            assert_eq!(decode(&encode(&control)), Ok(control));
            let control = Control::Instruct { target, text: "{\"a\":\"\\n\"}".into() };
            assert_eq!(decode(&encode(&control)), Ok(control));
        }
        for connections in [vec![], vec!["n.1".into(), "a\"b".into()]] {
            let control = Control::Watch { connections };
            assert_eq!(decode(&encode(&control)), Ok(control));
        }
        let control =
            Control::AskBack { node: "g1".into(), peers: vec!["127.0.0.1:5".parse().expect("an address")] };
        assert_eq!(decode(&encode(&control)), Ok(control));
        let check = |text: &str, expect: Result<Control, OrderError>| {
            assert_eq!(decode(text.as_bytes()), expect, "{text}");
        };
        let target = user(None, "u");
        let control = Control::Disconnect { target, reason: "".into() };
        check(r#"{"kind":"disconnect","user":"u"}"#, Ok(control.clone()));
        check(r#"{"kind":"disconnect","user":"u","reason":"","since":1}"#, Ok(control));
        check(r#"{"kind":"disconnect","everybody":true}"#, Err(OrderError::Unknown));
        check(r#"{"kind":"terminate","user":"u"}"#, Err(OrderError::Unknown));
        check("{}", Err(OrderError::Undecodable));
        check("\u{1}", Err(OrderError::Undecodable));
    }
}
