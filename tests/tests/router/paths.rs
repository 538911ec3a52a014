//! What comes through a router: WebSockets, event streams, REST, assign; and to which gateway.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
};

use tidegate_testkit::{DEADLINE, Gateway, RawTcp, SseClient, Tool, WsClient, eventually, frame};

use crate::site::{GATEWAY_CONFIG, Router, SHORT_DRAIN, Site};

/// What each gateway holds.
fn held(site: &Site) -> Vec<f64> {
    site.gateways.iter().map(|gateway| gateway.metric("tidegate_connections", &[])).collect()
}

#[test]
fn websockets_streams_and_rest_go_through() {
    let site = Site::start(3);
    let router = site.router.public;
    let mut sockets: Vec<WsClient> =
        (0..6).map(|key| WsClient::connect(router, &format!("/ws?channel=news&key=k{key}"))).collect();
    let mut streams: Vec<SseClient> = (0..6)
        .map(|key| SseClient::connect(router, &format!("/sse?channel=news&key=k{key}"), None))
        .collect();
    let mut raw = RawTcp::upgraded(router, "/ws?channel=news");
    // Kept alive by the client, and each request to the node of its own key.
    let rest = site.router.rest();
    let long = "long ".repeat(10_000);
    for text in ["one", "two", &long] {
        rest.publish("news", text).expect("a position");
        for socket in &mut sockets {
            assert_eq!(socket.expect_text(), text);
        }
        for stream in &mut streams {
            assert_eq!(stream.expect_event().data, text);
        }
        let header = if text.len() < 126 { 2 } else { 4 };
        let expect = frame(0x81, text.as_bytes());
        assert_eq!(raw.read_exact(header + text.len(), DEADLINE).unwrap(), expect);
    }
    sockets[0].send_ping(b"are you there");
    assert_eq!(sockets[0].expect_pong(), b"are you there");
    site.router.eventually_metric("tidegate_proxied_connections", &[], 13.0);
    assert!(site.router.metric("tidegate_http_connections_total", &[]) >= 1.0);
    assert!(site.router.metric("tidegate_bytes_total", &[("direction", "to_clients")]) > 13.0 * 50_000.0);
    drop((sockets, streams, raw));
    site.router.eventually_metric("tidegate_proxied_connections", &[], 0.0);
    eventually("the gateways are empty", DEADLINE, || held(&site).iter().sum::<f64>() == 0.0);
}

/// One key after the other: assign names it, and proxying brings it there.
#[test]
fn a_key_has_one_gateway_and_assign_names_it() {
    let site = Site::start(3);
    let mut kept = Vec::new();
    let mut used = [0; 3];
    for (key, name) in site.keys(24) {
        let opened = || site.gateway(&name).metric("tidegate_connections_opened_total", &[]);
        let before = opened();
        for _ in 0..2 {
            kept.push(WsClient::connect(site.router.public, &format!("/ws?channel=news&key={key}")));
        }
        eventually(&format!("both clients of {key} are on {name}"), DEADLINE, || opened() >= before + 2.0);
        used[crate::site::index(&name)] += 1;
    }
    assert!(used.iter().all(|count| *count > 0), "every gateway has some key: {used:?}");
    assert_eq!(held(&site).iter().sum::<f64>(), 48.0);
    assert_eq!(site.router.metric("tidegate_fallbacks_total", &[]), 0.0);
    let second = Router::start(&site.redis.url(), "");
    second.eventually_live(3);
    let digest = |router: &Router| router.metric("tidegate_placement_digest", &[]);
    eventually("both routers agree", DEADLINE, || digest(&second) == digest(&site.router));
    for (key, name) in site.keys(8) {
        assert_eq!(second.assigned(&key), name, "{key}");
    }
}

#[test]
fn assign_is_answered_by_the_router_on_any_connection() {
    let site = Site::start(1);
    let rest = site.router.rest();
    rest.publish("news", "x");
    let answer = rest.get("/v1/assign?key=a");
    assert_eq!(answer.json()["url"], format!("ws://{}", site.gateways[0].public()));
    let body = serde_json::json!({"keys": ["a", "b"]});
    assert_eq!(rest.post_json("/v1/assign", &body).json()["assignments"][1]["node"], "g1");
    rest.post("/v1/assign", "text/plain", "a").expect_problem(415);
    assert_eq!(rest.get("/v1/nodes").status, 200, "the gateway's, on the same connection");
    assert_eq!(rest.get("/v1/no-such-path").expect_problem(404)["type"], "urn:tidegate:problem:not-found");
    // As a stream or an upgrade it is the router's too.
    let mut raw = RawTcp::upgrade(site.router.public, "/v1/assign?key=a");
    assert_eq!(raw.read_head(DEADLINE).unwrap().status, 200);
}

/// A script that drives a gateway drives a router with one gateway behind it just as well.
#[track_caller]
fn check_foreign(tool: Tool) {
    let packed = &GATEWAY_CONFIG[GATEWAY_CONFIG.find("[namespaces").unwrap()..];
    let gateway = Gateway::builder().config(packed).start();
    let router = Router::of(&[&gateway], SHORT_DRAIN);
    router.eventually_live(1);
    let exit = tool.gateway(router.public).spawn().wait(DEADLINE);
    assert_eq!(exit.code, Some(0), "{exit}");
    assert!(exit.stdout.trim_end().ends_with("ok"), "{exit}");
    router.eventually_metric("tidegate_proxied_connections", &[], 0.0);
}

#[test]
fn node_ws_through_the_router() {
    check_foreign(Tool::node("client.cjs"));
}

#[test]
fn python_websockets_through_the_router() {
    check_foreign(Tool::python("client.py"));
}

/// RFC 9112 section 9.6: as many answers as effects, and all of them.
#[test]
fn who_closes_its_side_after_a_request_is_answered() {
    let site = Site::start(2);
    let ask = |request: &str| {
        let mut socket = TcpStream::connect(site.router.public).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        socket
    };
    let head = |request: &str| {
        format!(
            "{request} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer dev-key\r\nContent-Length: 1\r\n\r\n1"
        )
    };
    let publish = head("POST /v1/channels/news/publish");
    for _ in 0..20 {
        for request in [&publish, &head("GET /v1/nodes")] {
            let mut answer = String::new();
            ask(request).read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
    }
    let history = site.router.rest().get("/v1/channels/news/history").json();
    assert_eq!(history["publications"].as_array().unwrap().len(), 20);

    let mut stream = ask("GET /sse?channel=news HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let subscribers = || site.gateways.iter().map(|it| it.metric("tidegate_subscriptions", &[])).sum::<f64>();
    eventually("the stream is subscribed", DEADLINE, || subscribers() == 1.0);
    for text in ["one", "two"] {
        site.router.rest().publish("news", text).expect("a position");
        let mut told = String::new();
        let mut buffer = [0; 4096];
        while !told.contains(text) {
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0, "the stream was cut: {told}");
            told.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    }
}

/// The same of who is answered while it still sends: by the router, or by a gateway.
#[test]
fn who_is_refused_may_go_on_sending() {
    let site = Site::start(1);
    let length = "Content-Length: 2000000";
    let websocket = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let check = |request: &str, headers: &str, status: u16| {
        let head = format!("{request} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n");
        let (answer, _) = RawTcp::answer_before_body(site.router.public, &head);
        assert_eq!(answer.status, status, "{head}{answer:?}");
    };
    for _ in 0..20 {
        check("GET /ws", websocket, 400);
        check("GET /ws?channel=news", &format!("{websocket}\r\n{length}"), 413);
        check("POST /v1/channels/news/publish", length, 401);
        check("POST /v1/publish", "Transfer-Encoding: gzip", 400);
        check("POST /v1/assign", length, 415);
    }
}
