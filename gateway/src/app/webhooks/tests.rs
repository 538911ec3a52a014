//! Webhooks against real servers: that take, refuse, hang, come back, and end.
#![allow(clippy::unwrap_used)]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};
use tidegate_backplane::{Backplane as _, Channel, Join, Member, MemoryBackplane, MemoryOptions};
use tidegate_testkit::{DEADLINE, eventually};
use tokio::{net::TcpListener, runtime::Runtime, sync::watch};

use super::{
    metrics::{WebhookDrop, WebhookResult},
    *,
};
use crate::{
    app::apps::Apps,
    config::{AppEntry, ByteSize, Config, List, Secret, Setting},
    node::Relay,
};

const SECRET: &str = "7ad3773142a6692b25b8";

/// How a server answers.
#[derive(Debug, Clone, PartialEq)]
enum Manner {
    Status(u16),
    Redirect(String),
    Hang,
}

/// A request as the server got it: the parsed body, whole, once for each time that it came.
#[derive(Debug)]
struct Received {
    body: Value,
    key: String,
    signature: String,
    raw: Bytes,
}

/// A real server for webhooks.
#[derive(Debug)]
struct Hook {
    address: SocketAddr,
    manner: watch::Sender<Manner>,
    received: Mutex<mpsc::Receiver<Received>>,
}

#[derive(Debug, Clone)]
struct HookState {
    manner: watch::Receiver<Manner>,
    received: mpsc::Sender<Received>,
}

/// Webhooks of one app on a runtime of their own.
struct Rig {
    webhooks: Arc<Webhooks>,
    apps: Apps,
    runtime: Runtime,
}

impl Hook {
    fn start(runtime: &Runtime, manner: Manner) -> Self {
        let (sender, received) = mpsc::channel();
        let manner = watch::Sender::new(manner);
        let state = HookState { manner: manner.subscribe(), received: sender };
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(take).with_state(state);
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { address, manner, received: Mutex::new(received) }
    }

    fn turn(&self, manner: Manner) {
        self.manner.send_replace(manner);
    }

    fn url(&self) -> String {
        format!("http://{}/hooks?a=1", self.address)
    }

    fn next(&self) -> Received {
        self.received.lock().unwrap().recv_timeout(DEADLINE).expect("a request")
    }

    /// Events of the next requests until there are so many.
    fn events(&self, number: usize) -> Vec<Value> {
        let mut events = Vec::new();
        while events.len() < number {
            let request = self.next();
            let batch = request.body["events"].as_array().unwrap().clone();
            assert!((1..=100).contains(&batch.len()), "{} events", batch.len());
            events.extend(batch);
        }
        events
    }
}

async fn take(State(mut hook): State<HookState>, headers: HeaderMap, raw: Bytes) -> Response {
    let text = |name: &str| headers[name].to_str().unwrap().to_owned();
    assert_eq!(text("content-type"), "application/json");
    let received = Received {
        body: serde_json::from_slice(&raw).unwrap(),
        key: text("x-pusher-key"),
        signature: text("x-pusher-signature"),
        raw,
    };
    let manner = hook.manner.borrow_and_update().clone();
    hook.received.send(received).unwrap();
    // Who hangs answers as soon as it is told another manner.
    let manner = match manner {
        Manner::Hang => hook.manner.wait_for(|manner| *manner != Manner::Hang).await.unwrap().clone(),
        other => other,
    };
    match manner {
        Manner::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Manner::Redirect(to) => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response(),
        Manner::Hang => unreachable!("it was waited for another"),
    }
}

/// Short waits, so that failures show soon; what a test asserts does not depend on them.
fn sending() -> WebhookSending {
    WebhookSending {
        batch_wait: Duration::ZERO,
        retry_wait: Duration::from_millis(5),
        // A starved machine must not make a request that is answered a failed one.
        timeout: DEADLINE,
        ..WebhookSending::default()
    }
}

fn entry(url: &str) -> WebhookEntry {
    WebhookEntry { url: WebhookUrl::from_text(url), batch: true, ..WebhookEntry::default() }
}

impl Rig {
    fn new(runtime: Runtime, sending: WebhookSending, webhooks: Vec<WebhookEntry>) -> Self {
        let mut config = Config::default();
        config.apps.0.insert(AppId::new("app").unwrap(), app(SECRET, webhooks));
        config.webhooks = sending;
        let webhooks = Arc::new(Webhooks::new(config.webhooks.clone(), runtime.handle().clone()).unwrap());
        let apps = Apps::new(&config, Arc::clone(&webhooks)).unwrap();
        Self { webhooks, apps, runtime }
    }

    fn notify(&self, event: Event<'_>) {
        self.webhooks.notify(&self.apps.by_id("app").unwrap().webhooks, event);
    }

    fn occupied(&self, channels: std::ops::Range<usize>) {
        for number in channels {
            self.notify(Event::ChannelOccupied { channel: &format!("c{number}") });
        }
    }

    fn dropped(&self, reason: WebhookDrop) -> u64 {
        self.webhooks.metrics.dropped.get(reason)
    }

    fn requests(&self, result: WebhookResult) -> u64 {
        self.webhooks.metrics.requests.get(result)
    }

    fn queued_bytes(&self) -> i64 {
        self.webhooks.metrics.queue_bytes.get()
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn app(secret: &str, webhooks: Vec<WebhookEntry>) -> AppEntry {
    AppEntry {
        key: Some("the-key".into()),
        secret: Some(Secret::new(secret.as_bytes())),
        webhooks: List(webhooks),
        subscription_count: true,
        ..AppEntry::default()
    }
}

fn occupied(channels: std::ops::Range<usize>) -> Vec<Value> {
    channels.map(|number| json!({ "name": "channel_occupied", "channel": format!("c{number}") })).collect()
}

#[test]
fn events_arrive_in_order_signed_and_together() {
    let runtime = runtime();
    let hook = Hook::start(&runtime, Manner::Status(200));
    let rig = Rig::new(runtime, sending(), vec![entry(&hook.url())]);
    rig.occupied(0..1);
    let first = hook.next();
    assert_eq!(first.body["events"], json!(occupied(0..1)));
    assert!(first.body["time_ms"].as_u64().unwrap() > 1_700_000_000_000);
    assert_eq!(first.key, "the-key");
    let signer = Signer::new("".into(), [Secret::new(SECRET.as_bytes())].iter());
    assert!(signer.verify(&first.raw, &first.signature));
    rig.occupied(1..251);
    assert_eq!(hook.events(250), occupied(1..251));
    eventually("an empty queue", DEADLINE, || rig.queued_bytes() == 0);
    assert_eq!(rig.webhooks.metrics.events.get(), 251);
    assert_eq!(rig.webhooks.metrics.retries.get(), 0);
}

#[test]
fn each_event_has_its_form() {
    let runtime = runtime();
    let hook = Hook::start(&runtime, Manner::Status(204));
    let rig = Rig::new(runtime, sending(), vec![entry(&hook.url())]);
    let client = |user_id| Event::ClientEvent {
        channel: "private-a",
        event: "client-x",
        data: r#"{"a":1}"#,
        socket_id: "1.2",
        user_id,
    };
    let channel = "presence-a";
    for (event, expect) in [
        (Event::ChannelOccupied { channel }, json!({"name": "channel_occupied", "channel": channel})),
        (Event::ChannelVacated { channel }, json!({"name": "channel_vacated", "channel": channel})),
        (
            Event::MemberAdded { channel, user_id: "u\"1" },
            json!({"name": "member_added", "channel": channel, "user_id": "u\"1"}),
        ),
        (
            Event::MemberRemoved { channel, user_id: "u" },
            json!({"name": "member_removed", "channel": channel, "user_id": "u"}),
        ),
        (
            client(None),
            json!({"name": "client_event", "channel": "private-a", "event": "client-x", "data": "{\"a\":1}", "socket_id": "1.2"}),
        ),
        (
            client(Some("u")),
            json!({"name": "client_event", "channel": "private-a", "event": "client-x", "data": "{\"a\":1}", "socket_id": "1.2", "user_id": "u"}),
        ),
        (Event::CacheMiss { channel: "cache-a" }, json!({"name": "cache_miss", "channel": "cache-a"})),
        (
            Event::SubscriptionCount { channel: "a", subscription_count: 7 },
            json!({"name": "subscription_count", "channel": "a", "subscription_count": 7}),
        ),
    ] {
        rig.notify(event);
        assert_eq!(hook.events(1), [expect]);
    }
}

#[test]
fn addresses_are_told_what_they_ask_for() {
    let runtime = runtime();
    let [all, some] = [(); 2].map(|()| Hook::start(&runtime, Manner::Status(200)));
    let filtered = WebhookEntry {
        events: vec![WebhookEvent::MemberAdded, WebhookEvent::ChannelVacated],
        channel_prefixes: vec!["presence-".into(), "x".into()],
        ..entry(&some.url())
    };
    let rig = Rig::new(runtime, sending(), vec![entry(&all.url()), filtered]);
    let told = rig.apps.by_id("app").unwrap();
    assert!(told.tells(WebhookEvent::CacheMiss) && told.tells(WebhookEvent::MemberAdded));
    rig.notify(Event::ChannelOccupied { channel: "x1" });
    rig.notify(Event::ChannelVacated { channel: "private-x" });
    rig.notify(Event::ChannelVacated { channel: "x1" });
    rig.notify(Event::MemberRemoved { channel: "presence-1", user_id: "u" });
    rig.notify(Event::MemberAdded { channel: "presence-1", user_id: "u" });
    assert_eq!(all.events(5).len(), 5);
    let expect = [
        json!({"name": "channel_vacated", "channel": "x1"}),
        json!({"name": "member_added", "channel": "presence-1", "user_id": "u"}),
    ];
    assert_eq!(some.events(2), expect);
}

#[test]
fn what_is_refused_is_sent_again_until_it_is_taken() {
    let runtime = runtime();
    let hook = Hook::start(&runtime, Manner::Status(500));
    let rig = Rig::new(runtime, sending(), vec![entry(&hook.url())]);
    rig.occupied(0..1);
    let bodies: Vec<_> = (0..3).map(|_| hook.next().raw).collect();
    assert!(bodies.iter().all(|body| *body == bodies[0]), "{bodies:?}");
    rig.occupied(1..2);
    hook.turn(Manner::Status(201));
    // Those that were already refused are the same event again; after it was taken the next one comes.
    loop {
        let request = hook.next();
        if request.body["events"] != json!(occupied(0..1)) {
            assert_eq!(request.body["events"], json!(occupied(1..2)));
            break;
        }
    }
    eventually("an empty queue", DEADLINE, || rig.queued_bytes() == 0);
    let metrics = &rig.webhooks.metrics;
    assert_eq!(rig.requests(WebhookResult::Taken), 2);
    assert_eq!(rig.requests(WebhookResult::Refused), metrics.retries.get());
    assert!(metrics.retries.get() >= 3);
}

#[test]
fn a_redirect_is_a_refusal_and_is_not_followed() {
    let runtime = runtime();
    let other = Hook::start(&runtime, Manner::Status(200));
    let hook = Hook::start(&runtime, Manner::Redirect(other.url()));
    let rig = Rig::new(runtime, sending(), vec![entry(&hook.url())]);
    rig.occupied(0..1);
    drop([hook.next(), hook.next()]);
    assert!(other.received.lock().unwrap().try_recv().is_err());
    assert!(rig.requests(WebhookResult::Refused) >= 1);
}

#[test]
fn one_that_hangs_costs_a_bounded_amount_and_nobody_else() {
    let runtime = runtime();
    let [good, bad] = [Manner::Status(200), Manner::Hang].map(|manner| Hook::start(&runtime, manner));
    let max = 16 * 1024;
    let sending = WebhookSending { queue_bytes: ByteSize::new(max), ..sending() };
    let filtered = WebhookEntry { channel_prefixes: vec!["c".into()], ..entry(&bad.url()) };
    let rig = Rig::new(runtime, sending, vec![entry(&good.url()), filtered]);
    rig.occupied(0..1);
    drop(bad.next());
    assert_eq!(good.events(1), occupied(0..1));
    // The good one takes as many as fit, while the other one fills up: never more than both bounds.
    for round in 0..200 {
        rig.occupied(round..round + 10);
        assert_eq!(good.events(10), occupied(round..round + 10));
        assert!(rig.queued_bytes() <= 2 * max as i64);
    }
    assert!(rig.dropped(WebhookDrop::QueueFull) > 0);
    // The newest were kept. As soon as it answers they come.
    bad.turn(Manner::Status(200));
    eventually("the last event", DEADLINE, || {
        let events = bad.events(1);
        events.last() == occupied(208..209).last()
    });
    eventually("an empty queue", DEADLINE, || rig.queued_bytes() == 0);
    let metrics = &rig.webhooks.metrics;
    assert_eq!(metrics.events.get(), 2 * 2001);
    assert_eq!(metrics.retries.get(), 0);
}

#[test]
fn no_answer_in_time_is_a_failure() {
    let runtime = runtime();
    let hook = Hook::start(&runtime, Manner::Hang);
    let sending = WebhookSending { timeout: Duration::from_millis(10), ..sending() };
    let rig = Rig::new(runtime, sending, vec![entry(&hook.url())]);
    rig.occupied(0..1);
    eventually("two failures", DEADLINE, || rig.requests(WebhookResult::Timeout) >= 2);
    assert_eq!(rig.requests(WebhookResult::Taken), 0);
}

#[test]
fn what_is_never_taken_is_given_up() {
    let runtime = runtime();
    let hook = Hook::start(&runtime, Manner::Status(404));
    let sending = WebhookSending { retry_for: Duration::ZERO, ..sending() };
    let rig = Rig::new(runtime, sending, vec![entry(&hook.url())]);
    rig.occupied(0..3);
    eventually("three dropped", DEADLINE, || rig.dropped(WebhookDrop::GivenUp) == 3);
    eventually("an empty queue", DEADLINE, || rig.queued_bytes() == 0);
}

#[test]
fn nobody_listens() {
    let runtime = runtime();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let rig = Rig::new(runtime, sending(), vec![entry(&format!("http://{address}/"))]);
    rig.occupied(0..1);
    eventually("two failures", DEADLINE, || rig.requests(WebhookResult::Failed) >= 2);
}

#[test]
fn an_address_that_is_taken_away_ends_with_its_queue() {
    let runtime = runtime();
    let hook = Hook::start(&runtime, Manner::Hang);
    let rig = Rig::new(runtime, sending(), vec![entry(&hook.url())]);
    rig.occupied(0..1);
    drop(hook.next());
    rig.occupied(1..4);
    let before = rig.apps.by_id("app").unwrap();
    rig.webhooks.keep_only(std::iter::empty());
    eventually("all dropped", DEADLINE, || rig.dropped(WebhookDrop::Removed) == 4 && rig.queued_bytes() == 0);
    rig.webhooks.notify(&before.webhooks, Event::CacheMiss { channel: "c" });
    assert_eq!(rig.dropped(WebhookDrop::Removed), 5);
    eventually("no sender", DEADLINE, || rig.webhooks.senders.is_empty());
}

#[test]
fn the_end_waits_for_what_is_queued_and_for_no_longer_than_it_may() {
    let runtime = runtime();
    let [good, bad] = [Manner::Status(200), Manner::Hang].map(|manner| Hook::start(&runtime, manner));
    let sending = WebhookSending { batch_wait: Duration::from_secs(3600), ..sending() };
    let rig = Rig::new(runtime, sending.clone(), vec![entry(&good.url())]);
    rig.occupied(0..150);
    rig.runtime.block_on(rig.webhooks.close(DEADLINE));
    assert_eq!(good.events(150), occupied(0..150));
    assert_eq!(rig.queued_bytes(), 0);

    let stuck = Rig::new(self::runtime(), sending, vec![entry(&bad.url())]);
    stuck.occupied(0..150);
    stuck.runtime.block_on(stuck.webhooks.close(Duration::from_millis(10)));
    assert!(stuck.queued_bytes() > 0);
    // The runtime ends, and with it the sender: what it held is counted.
    let webhooks = Arc::clone(&stuck.webhooks);
    drop(stuck);
    assert_eq!(webhooks.metrics.dropped.get(WebhookDrop::Drain), 100);
}

#[test]
fn transitions_are_told_to_the_app_of_the_channel() {
    let runtime = runtime();
    let [default, other] = [(); 2].map(|()| Hook::start(&runtime, Manner::Status(200)));
    let mut config = Config { default_app: AppId::new("own"), ..Config::default() };
    config.apps.0.insert(AppId::new("own").unwrap(), app(SECRET, vec![entry(&default.url())]));
    // Counts of an app that has them off are told to nobody, its webhooks included.
    let second = AppEntry {
        key: Some("key-2".into()),
        subscription_count: false,
        ..app(SECRET, vec![entry(&other.url())])
    };
    config.apps.0.insert(AppId::new("2").unwrap(), second);
    config.webhooks = sending();
    let webhooks = Arc::new(Webhooks::new(config.webhooks.clone(), runtime.handle().clone()).unwrap());
    let apps = Arc::new(Apps::new(&config, Arc::clone(&webhooks)).unwrap());
    let relay = Arc::new(Relay::new(Vec::new()));
    relay.transition_hooks.get_or_init(|| TransitionHooks::new(apps, webhooks, Arc::default()));
    let backplane = MemoryBackplane::new(relay, MemoryOptions::default());
    let enter = |channel: Channel, user: &str| {
        let member = Member { connection: "n.1".into(), user: user.into(), info: None };
        let join = Join { tells_counts: Some(true), ..Join::listed(member) };
        runtime.block_on(backplane.join(&channel, join)).unwrap();
    };
    enter(Channel::new("#watch-ada").unwrap(), "bob");
    enter(Channel::in_app("gone", "presence-a").unwrap(), "eve");
    enter(Channel::new("presence-a").unwrap(), "ada");
    for (channel, user) in [("presence-a", "bob"), ("presence-b", "eve")] {
        enter(Channel::in_app("2", channel).unwrap(), user);
    }
    let occupied = |channel: &str| json!({"name": "channel_occupied", "channel": channel});
    let added =
        |channel: &str, user: &str| json!({"name": "member_added", "channel": channel, "user_id": user});
    let counted = json!({"name": "subscription_count", "channel": "presence-a", "subscription_count": 1});
    for (hook, expect) in [
        (&default, vec![occupied("presence-a"), added("presence-a", "ada"), counted]),
        (
            &other,
            vec![
                occupied("presence-a"),
                added("presence-a", "bob"),
                occupied("presence-b"),
                added("presence-b", "eve"),
            ],
        ),
    ] {
        let mut events = hook.events(expect.len());
        events.sort_by_key(|event| (event["channel"].to_string(), event["name"].to_string()));
        assert_eq!(events, expect);
    }
}

#[test]
fn a_new_secret_signs_what_waits() {
    let runtime = runtime();
    let hook = Hook::start(&runtime, Manner::Status(500));
    let rig = Rig::new(runtime, sending(), vec![entry(&hook.url())]);
    rig.occupied(0..1);
    drop(hook.next());
    let id = AppId::new("app").unwrap();
    let secrets = [Secret::new(b"another-secret")];
    let signer = Arc::new(Signer::new("another-key".into(), secrets.iter()));
    let endpoints = rig.webhooks.endpoints(&id, &[entry(&hook.url())], &signer);
    eventually("the new signature", DEADLINE, || {
        let request = hook.next();
        request.key == "another-key" && signer.verify(&request.raw, &request.signature)
    });
    assert_eq!(endpoints.len(), 1);
    assert_eq!(rig.webhooks.senders.len(), 1);
}
