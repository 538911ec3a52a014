//! Clients that cannot have a WebSocket: HTTP streams and event streams whose commands come by requests of their own, and
//! the ways of clients that send none.

use serde_json::{Value, json};
use tidegate_testkit::{Answer, DEADLINE, RawTcp, Rest};

use super::{super::apart::token_of, Rig, with_presence};

/// An answer that goes on, and what it says.
pub(in crate::server::tests) struct Stream {
    tcp: RawTcp,
    head: String,
    received: Vec<u8>,
    is_events: bool,
}

impl Stream {
    #[track_caller]
    pub(in crate::server::tests) fn post(rig: &Rig, path: &str, body: &str) -> Self {
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
        Self::open(rig, &[head.as_bytes(), body.as_bytes()])
    }

    #[track_caller]
    pub(in crate::server::tests) fn get(rig: &Rig, path: &str, parameter: &str, message: &Value) -> Self {
        let message: String = form_urlencoded::byte_serialize(message.to_string().as_bytes()).collect();
        let head = format!("GET {path}?{parameter}={message} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        Self::open(rig, &[head.as_bytes()])
    }

    /// Its parts come one after the other.
    #[track_caller]
    fn open(rig: &Rig, parts: &[&[u8]]) -> Self {
        let mut tcp = RawTcp::connect(rig.address);
        parts.iter().for_each(|part| tcp.send(part));
        let head = tcp.read_head(DEADLINE).unwrap();
        let head = format!("{head:?}");
        assert!(head.contains("200"), "{head}");
        let is_events = head.contains("text/event-stream");
        Self { tcp, head, received: Vec::new(), is_events }
    }

    /// What is said next, pings aside.
    #[track_caller]
    pub(in crate::server::tests) fn next(&mut self) -> Value {
        loop {
            let end: &[u8] = if self.is_events { b"\n\n" } else { b"\n" };
            let Some(at) = self.received.windows(end.len()).position(|it| it == end) else {
                let more = self.tcp.read_some(DEADLINE).unwrap();
                self.received.extend(more);
                continue;
            };
            let line: Vec<u8> = self.received.drain(..at + end.len()).collect();
            let line = String::from_utf8(line).unwrap();
            let line = if self.is_events { line.strip_prefix("data: ").unwrap_or("{}") } else { &line };
            let told: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
            if told != json!({}) {
                return told;
            }
        }
    }

    #[track_caller]
    fn expect_end(&mut self) {
        assert_eq!(self.tcp.read_to_end(DEADLINE).unwrap(), b"");
    }
}

#[track_caller]
pub(in crate::server::tests) fn emulate(rig: &Rig, session: &Value, frame: &str) -> Answer {
    let body = json!({"session": session, "node": "", "data": frame});
    Rest::new(rig.address).without_key().post_json("/emulation", &body)
}

#[test]
fn commands_come_by_requests_of_their_own() {
    let rig = Rig::start(with_presence());
    let connect = json!({"id": 1, "connect": {"token": token_of(&json!({"sub": "ada", "channels": ["*"]}))}});
    let lines = Stream::post(&rig, "/connection/http_stream", &format!("{connect}\n"));
    let events = Stream::get(&rig, "/connection/sse", "cf_connect", &connect);
    for mut stream in [lines, events] {
        let told = stream.next();
        let (session, connected) = (told["connect"]["session"].clone(), &told["connect"]);
        // Nobody has to answer pings: the kernel says whether the client is there.
        assert_eq!((&told["id"], &connected["pong"]), (&json!(1), &Value::Null), "{told}");
        assert_eq!(connected["node"], rig.node.name());
        let commands = "{\"id\":2,\"subscribe\":{\"channel\":\"room:1\"}}\n{\"id\":3,\"presence_stats\":{\"channel\":\"room:1\"}}";
        assert_eq!(emulate(&rig, &session, commands).status, 204);
        assert_eq!(stream.next()["id"], 2);
        assert_eq!(stream.next()["presence_stats"]["num_users"], 1);
        rig.publish("room:1", "{\"n\":1}");
        assert_eq!(stream.next()["push"]["pub"]["data"], json!({"n": 1}));
        assert_eq!(emulate(&rig, &session, "no command").status, 204);
        let told = stream.next();
        assert_eq!(told["push"]["disconnect"]["code"], 3501, "{told}");
        stream.expect_end();
    }
    rig.eventually_empty();
}

/// The name of a connection is told to others; its session is not.
#[test]
fn a_session_is_its_clients_alone() {
    let rig = Rig::start(with_presence());
    let connect = "{\"id\":1,\"connect\":{}}";
    let mut stream = Stream::post(&rig, "/connection/http_stream", connect);
    let told = stream.next();
    let (session, client) =
        (told["connect"]["session"].as_str().unwrap(), told["connect"]["client"].as_str().unwrap());
    let subscribe = "{\"id\":2,\"subscribe\":{\"channel\":\"plain:1\"}}";
    for foreign in [format!("{client}!"), format!("{client}!{}", "A".repeat(22)), format!("x{session}")] {
        assert_eq!(emulate(&rig, &json!(foreign), subscribe).status, 204);
    }
    for none in ["", "x"] {
        assert_eq!(emulate(&rig, &json!(none), subscribe).status, 400);
    }
    let rest = Rest::new(rig.address).without_key();
    for bad in ["", "{", "[]", "{\"session\":1}"] {
        assert_eq!(rest.post("/emulation", "application/json", bad).status, 400, "{bad}");
    }
    assert_eq!(rest.get("/emulation").status, 405);
    let large = json!({"session": session, "data": "x".repeat(65 * 1024)});
    assert_eq!(rest.post_json("/emulation", &large).status, 413);
    assert_eq!(emulate(&rig, &json!(session), subscribe).status, 204);
    assert_eq!(stream.next()["id"], 2);
    rig.eventually_subscribers("plain:1", 1);
}

#[test]
fn clients_that_send_no_commands_are_subscribed_to_what_they_name() {
    let mut config = with_presence();
    config.namespaces.named.get_mut("room").unwrap().anonymous_subscribe = false;
    let rig = Rig::start(config);
    rig.publish("news", "1");
    let request = json!({"subs": {"news": {"recover": true}, "plain:a": {}, "room:1": {}}});
    let lines = Stream::post(&rig, "/connection/uni_http_stream", &request.to_string());
    let events = Stream::get(&rig, "/connection/uni_sse", "cf_connect", &request);
    let older = Stream::get(&rig, "/connection/uni_sse", "connect", &request);
    for mut stream in [lines, events, older] {
        let told = stream.next();
        let subs = told["connect"]["subs"].as_object().unwrap();
        assert_eq!(subs.keys().collect::<Vec<_>>(), ["news", "plain:a"], "{told}");
        assert_eq!(subs["news"]["publications"][0]["data"], 1, "{told}");
        rig.publish("plain:a", "{\"n\":2}");
        assert_eq!(stream.next(), json!({"channel": "plain:a", "pub": {"data": {"n": 2}}}));
    }
    let mut socket = tidegate_testkit::WsClient::connect(rig.address, "/connection/uni_websocket");
    socket.send_text(&request.to_string());
    assert_eq!(socket.expect_json()["connect"]["subs"]["plain:a"], json!({}));
    socket.send_text("it means nothing");
    rig.publish("plain:a", "3");
    assert_eq!(socket.expect_json(), json!({"channel": "plain:a", "pub": {"data": 3}}));
    drop(socket);
    rig.eventually_empty();
}

/// Who sends no commands asks for differences where it names its channels.
#[test]
fn clients_that_send_no_commands_are_told_by_differences() {
    let mut config = with_presence();
    config.namespaces.default.delta = true;
    let rig = Rig::start(config);
    let payload = |number: usize| {
        json!({"number": number, "text": "a text that stays as it is", "more": [1, 2, 3, 4, 5, 6]})
            .to_string()
    };
    rig.publish("news", &payload(0));
    let request =
        json!({"subs": {"news": {"recover": true, "delta": "fossil"}, "plain:a": {"delta": "fossil"}}});
    let lines = Stream::post(&rig, "/connection/uni_http_stream", &request.to_string());
    let events = Stream::get(&rig, "/connection/uni_sse", "cf_connect", &request);
    let mut streams = [lines, events];
    let mut socket = tidegate_testkit::WsClient::connect(rig.address, "/connection/uni_websocket");
    socket.send_text(&request.to_string());
    let mut told: Vec<Value> = streams.iter_mut().map(Stream::next).collect();
    told.push(socket.expect_json());
    for told in &told {
        let subs = &told["connect"]["subs"];
        assert_eq!((&subs["news"]["delta"], &subs["plain:a"]), (&json!(true), &json!({})), "{told}");
        assert_eq!(subs["news"]["publications"][0]["data"], payload(0), "{told}");
    }
    let (mut before, mut deltas) = (vec![Vec::new(); 3], 0);
    for number in 1..20 {
        rig.publish("news", &payload(number));
        let mut told: Vec<Value> = streams.iter_mut().map(Stream::next).collect();
        told.push(socket.expect_json());
        for (told, before) in told.iter().zip(&mut before) {
            let (publication, data) = (&told["pub"], told["pub"]["data"].as_str().unwrap().as_bytes());
            *before = match publication["delta"] == true {
                true => {
                    deltas += 1;
                    tidegate_wire::centrifuge::delta::apply(before, data).unwrap()
                }
                false => data.to_vec(),
            };
            assert_eq!(String::from_utf8_lossy(before), payload(number));
        }
    }
    // Each begins with those that come whole, while it follows what it has recovered.
    assert!(deltas > 3 * 10, "{deltas}");
}

#[test]
fn what_is_no_first_message_has_its_code() {
    let rig = Rig::start(with_presence());
    for (path, body, code) in [
        ("/connection/http_stream", "{\"id\":1,\"subscribe\":{\"channel\":\"a\"}}", 3501),
        ("/connection/http_stream", "{\"id\":1,\"connect\":{\"token\":\"a.b.c\"}}", 3500),
        ("/connection/uni_http_stream", "{\"token\":\"a.b.c\"}", 3500),
        ("/connection/uni_http_stream", "[1]", 3501),
        ("/connection/uni_sse", "no", 3501),
    ] {
        let mut stream = Stream::post(&rig, path, body);
        let told = stream.next();
        let told = if path.contains("uni") { &told } else { &told["push"] };
        assert_eq!(told["disconnect"]["code"], code, "{path} {body}");
        stream.expect_end();
    }
    let expired = token_of(&json!({"sub": "ada", "exp": 1}));
    let mut stream =
        Stream::post(&rig, "/connection/uni_http_stream", &json!({"token": expired}).to_string());
    assert_eq!(stream.next()["disconnect"]["code"], 3005);
    rig.eventually_empty();
}

/// A body that is too long, or does not say how long it is, is refused before it is read.
#[test]
fn a_body_has_a_length_and_a_bound() {
    let rig = Rig::start(with_presence());
    let path = "/connection/http_stream";
    for lines in ["Content-Length: 65537", "Transfer-Encoding: chunked"] {
        let mut tcp = RawTcp::connect(rig.address);
        tcp.send(format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n\r\n").as_bytes());
        let head = tcp.read_head(DEADLINE).unwrap();
        assert!(format!("{head:?}").contains("413"), "{lines}: {head:?}");
    }
    // One that comes byte by byte, without a line end in it, is waited for.
    let body = "{\"id\":1,\"connect\":{}}";
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut parts: Vec<&[u8]> = vec![head.as_bytes()];
    parts.extend(body.as_bytes().chunks(1));
    assert_eq!(Stream::open(&rig, &parts).next()["id"], 1);
    // On a connection that HTTP has had.
    let mut tcp = RawTcp::connect(rig.address);
    tcp.send(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n");
    tcp.read_head(DEADLINE).unwrap();
    tcp.send([head.as_bytes(), body.as_bytes()].concat().as_slice());
    let mut received = Vec::new();
    while !received.windows(9).any(|it| it == b"\"connect\"") {
        received.extend(tcp.read_some(DEADLINE).unwrap());
    }
    rig.eventually_metric("tidegate_connections_opened_total", 2.0);
}

/// A client that reads nothing cannot have answers pile up for it, however it asks.
#[test]
fn who_reads_nothing_ends_as_a_slow_reader() {
    let mut config = with_presence();
    config.limits.send_queue_bytes = crate::config::ByteSize::kib(64);
    config.limits.messages_per_second = 0;
    let rig = Rig::start(config);
    for number in 0..100 {
        rig.publish("news", &format!("\"{number}{}\"", "x".repeat(8 * 1024)));
    }
    let mut stream = Stream::post(&rig, "/connection/http_stream", "{\"id\":1,\"connect\":{}}");
    let session = stream.next()["connect"]["session"].clone();
    let ask = "{\"id\":2,\"history\":{\"channel\":\"news\",\"limit\":100}}";
    let slow = "tidegate_disconnects_total{reason=\"slow_reader\"}";
    tidegate_testkit::eventually("it reads nothing", DEADLINE, || {
        emulate(&rig, &session, ask);
        rig.metric(slow) == 1.0
    });
    rig.eventually_empty();
}

/// Pages of other origins may read it where they are allowed to, and ask before they send.
#[test]
fn pages_of_allowed_origins_fall_back_too() {
    let mut config = with_presence();
    config.dev = false;
    config.auth.allowed_origins = vec![crate::config::Setting::from_text("https://app.example.org").unwrap()];
    let rig = Rig::start(config);
    let body = "{\"id\":1,\"connect\":{}}";
    let request = |origin: &str| {
        format!(
            "POST /connection/http_stream HTTP/1.1\r\nHost: h\r\nOrigin: {origin}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let stream = Stream::open(&rig, &[request("https://app.example.org").as_bytes()]);
    assert!(stream.head.contains("https://app.example.org"), "{}", stream.head);
    let mut tcp = RawTcp::connect(rig.address);
    tcp.send(request("https://evil.example.org").as_bytes());
    assert!(format!("{:?}", tcp.read_head(DEADLINE).unwrap()).contains("403"));
    for path in ["/connection/http_stream", "/emulation"] {
        let mut tcp = RawTcp::connect(rig.address);
        let ask = "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type";
        tcp.send(
            format!("OPTIONS {path} HTTP/1.1\r\nHost: h\r\nOrigin: https://app.example.org\r\n{ask}\r\n\r\n")
                .as_bytes(),
        );
        let head = format!("{:?}", tcp.read_head(DEADLINE).unwrap());
        assert!(head.contains("204") && head.contains("https://app.example.org"), "{path}: {head}");
    }
}

/// TCP does not slow who sends by requests of their own: what waits has a bound.
#[test]
fn who_sends_more_than_is_answered_is_closed() {
    let rig = Rig::start(with_presence());
    rig.publish("news", "1");
    let mut stream = Stream::post(&rig, "/connection/http_stream", "{\"id\":1,\"connect\":{}}");
    let session = stream.next()["connect"]["session"].take();
    rig.backplane.history.shut();
    assert_eq!(emulate(&rig, &session, "{\"id\":2,\"subscribe\":{\"channel\":\"news\"}}").status, 204);
    rig.backplane.history.eventually_arrived(1);
    let pings = "{\"id\":3,\"ping\":{}}\n".repeat(2_500);
    for _ in 0..6 {
        assert_eq!(emulate(&rig, &session, &pings).status, 204);
    }
    let told = stream.next();
    let disconnect = json!({"code": 3013, "reason": "too many requests"});
    assert_eq!(told["push"]["disconnect"], disconnect, "{told}");
    stream.expect_end();
    rig.backplane.history.open();
    rig.eventually_empty();
}
