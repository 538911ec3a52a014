//! Who joins and who leaves, told to raw WebSockets and event streams in band, whichever node they are on.

use std::thread;

use serde_json::Value;
use tidegate_testkit::redis::RedisServer;
use tidegate_testkit::{Gateway, SseClient, WsClient};

use tidegate_tests::cluster::site::{CONFIG, Site, TOKEN, node};

const ASKS: &str = "channel=room:a&join_leave=true";

fn start(redis: &RedisServer, gateways: usize) -> Site {
    // Who watches has no token, and so is nobody.
    let config = CONFIG.replace("[namespaces.room]", "[namespaces.room]\nanonymous_subscribe = true");
    let config = format!("{config}[drain]\nsettle = \"0s\"\nperiod = \"1s\"\n");
    let gateway = |number| node(&redis.url(), number).config(&config).start();
    Site { gateways: (1..=gateways).map(gateway).collect() }
}

fn ada(gateway: &Gateway) -> WsClient {
    WsClient::connect(gateway.public(), &format!("/ws?channel=room:a&token={TOKEN}"))
}

/// A WebSocket and an event stream, each on a node of its own.
struct Watchers {
    socket: WsClient,
    stream: SseClient,
}

impl Watchers {
    /// They are told at once that nobody is there.
    fn start(on: [&Gateway; 2]) -> Self {
        let [of_socket, of_stream] = on.map(Gateway::public);
        let mut socket = WsClient::connect(of_socket, &format!("/ws?envelope=json&{ASKS}"));
        let mut stream = SseClient::connect(of_stream, &format!("/sse?{ASKS}"), None);
        let list = socket.expect_json();
        assert_eq!((&list["members"], &list["count"]), (&Value::Array(Vec::new()), &0.into()), "{list}");
        let event = stream.expect_event();
        assert_eq!((&*event.event, data(&event.data)), ("members", list));
        Self { socket, stream }
    }

    /// Both are told the same next: of one connection, and how many ada has then.
    #[track_caller]
    fn expect(&mut self, name: &str, connections: u64) -> String {
        let notice = self.socket.expect_json();
        assert_eq!(notice[name]["connections"], connections, "{name}: {notice}");
        assert_eq!((&notice["channel"], &notice[name]["user"]), (&"room:a".into(), &"ada".into()));
        let event = self.stream.expect_event();
        assert_eq!((&*event.event, data(&event.data)), (name, notice.clone()));
        notice[name]["connection"].as_str().expect("a name").to_owned()
    }
}

fn data(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn joins_and_leaves_are_told_on_all_nodes_and_a_dead_nodes_once() {
    let redis = RedisServer::start();
    let mut site = start(&redis, 3);
    let mut watchers = Watchers::start([&site.gateways[0], &site.gateways[1]]);
    let quiet = format!("/ws?channel=room:a&envelope=json&token={TOKEN}");
    let mut quiet = WsClient::connect(site.gateways[2].public(), &quiet);
    let of_quiet = watchers.expect("join", 1);
    let second = ada(&site.gateways[0]);
    let of_second = watchers.expect("join", 2);
    assert_ne!(of_quiet, of_second);
    // Only who asks is told: the next that this one gets is a publication.
    site.gateways[1].rest().publish("room:a", "hello");
    assert_eq!(quiet.expect_json()["data"], "hello");
    assert_eq!(watchers.socket.expect_json()["data"], "hello");
    assert_eq!(watchers.stream.expect_event().data, "hello");
    drop(second);
    assert_eq!(watchers.expect("leave", 1), of_second);

    site.gateways.pop().expect("three were started").kill();
    assert_eq!(watchers.expect("leave", 0), of_quiet, "when its lease has ended");
    let back = ada(&site.gateways[1]);
    let of_back = watchers.expect("join", 1);
    drop(back);
    assert_eq!(watchers.expect("leave", 0), of_back);
}

/// Whoever a drain sends away is on another node before it leaves this one.
#[test]
fn a_drain_is_no_leave() {
    let redis = RedisServer::start();
    let mut site = start(&redis, 3);
    let mut watchers = Watchers::start([&site.gateways[0], &site.gateways[1]]);
    let mut client = ada(&site.gateways[2]);
    let before = watchers.expect("join", 1);
    let drained = site.gateways.pop().expect("three were started");
    let ended = thread::spawn(move || drained.terminate());
    client.expect_close(1012);
    let _moved = ada(&site.gateways[0]);
    let after = watchers.expect("join", 2);
    assert_ne!(before, after);
    assert_eq!(watchers.expect("leave", 1), before);
    ended.join().expect("it ends");
}
