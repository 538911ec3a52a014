//! Two gateways behind a router, and an application that they ask: while it answers, while it is away or answers badly, and
//! when it is back.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, thread};

use serde_json::json;
use tidegate_testkit::{DEADLINE, Gateway, WsClient, eventually, eventually_some};
use tidegate_tests::{
    answers::{Answers, Asked, answer, yes},
    application::{Application, Language, SECRET, SESSION},
};

use super::site::{GATEWAY_CONFIG, SHORT_DRAIN, Site};

const CLIENTS: usize = 500;
const PATH: &str = "/ws?channel=room:1&envelope=json";

fn site(application: &Application) -> Site {
    Site::with(2, &format!("{GATEWAY_CONFIG}{}", application.config(SECRET)), SHORT_DRAIN)
}

/// A message to the application, and what came of it: its status, 200 for an answer.
fn ask(client: &mut WsClient) -> u64 {
    client.send_text(r#"{"message":{"n":1},"id":1}"#);
    let answer = client.expect_json();
    if answer["ok"]["from"] == "ada" { 200 } else { answer["error"]["code"].as_u64().unwrap() }
}

#[test]
fn five_hundred_clients_stay_while_the_application_is_killed_and_comes_back() {
    let application = Application::start(Language::Go);
    let address = application.address;
    let site = site(&application);
    let connect = || WsClient::try_connect(site.router.public, PATH, SESSION);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| connect().unwrap()).collect();
    assert!(clients.iter_mut().all(|client| ask(client) == 200), "the application answers all of them");
    drop(application);
    // None is closed for it.
    for client in &mut clients {
        assert_eq!(ask(client), 503);
    }
    assert_eq!(connect().unwrap_err().status, 503);
    site.router.rest().publish("room:1", "\"on\"");
    for client in &mut clients {
        assert_eq!(client.expect_json()["data"], "\"on\"");
    }
    let _back = Application::start_at(Language::Go, address.port());
    for client in &mut clients {
        eventually("the application is asked again", DEADLINE, || ask(client) == 200);
    }
    eventually("who comes is let in", DEADLINE, || connect().is_ok());
}

#[test]
fn connections_of_a_user_are_found_and_sent_to_on_both_nodes() {
    let application = Application::start(Language::Go);
    let site = site(&application);
    let connect = |nth: usize| {
        let gateway = site.gateways[nth].public();
        WsClient::try_connect(gateway, PATH, SESSION).unwrap()
    };
    let mut clients = [connect(0), connect(1)];
    let rest = site.gateways[0].rest();
    let found = rest.get("/v1/connections?user=ada").json();
    let nodes: BTreeSet<_> = found["connections"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["node"])
        .collect::<Vec<_>>()
        .into_iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!((nodes.len(), &found["silent"]), (2, &json!([])), "{found}");
    let sent = rest.post_json("/v1/send", &json!({"user": "ada", "data": {"n": 1}, "event": "note"})).json();
    assert_eq!(sent, json!({"connections": 2, "refused": 0, "nodes": 2, "silent": []}));
    for client in &mut clients {
        assert_eq!(client.expect_json(), json!({"message": {"event": "note", "data": {"n": 1}}}));
    }
    let one = found["connections"][1]["connection"].as_str().unwrap();
    let sent = rest.post_json("/v1/send", &json!({"connection": one, "data": 2})).json();
    assert_eq!(sent["connections"], 1, "{sent}");
}

/// What a client of `bad:room` has its application asked.
const QUESTIONS: [&str; 4] = ["connect", "subscribe", "publish", "message"];

/// Asks each question, one after the other or while none is answered, and says what came of it: its status, 101 or 200
/// for a yes.
struct Asker<'s> {
    gateway: &'s Gateway,
    path: String,
    client: WsClient,
    subscribed: usize,
}

impl<'s> Asker<'s> {
    /// Through a router, or to the gateway itself.
    fn start(gateway: &'s Gateway, address: SocketAddr, key: &str) -> Self {
        let path = format!("/ws?channel=bad:room&envelope=json&key={key}");
        let connected = || WsClient::try_connect(address, &path, &[]).ok();
        let client = eventually_some("it is let in", DEADLINE, connected);
        Self { gateway, path, client, subscribed: 0 }
    }

    fn connect(&self) -> u16 {
        let connected = WsClient::try_connect(self.gateway.public(), &self.path, &[]);
        connected.map_or_else(|refused| refused.status, |_| 101)
    }

    fn send(&mut self, question: &str) {
        let command = match question {
            "subscribe" => {
                self.subscribed += 1;
                json!({"subscribe": format!("bad:{}", self.subscribed), "id": 1})
            }
            "publish" => json!({"publish": {"channel": "bad:room", "data": "x"}, "id": 1}),
            _ => json!({"message": 1, "id": 1}),
        };
        self.client.send_text(&command.to_string());
    }

    fn status(&mut self) -> u16 {
        loop {
            let told = self.client.expect_json();
            // Publications come between.
            if told["id"] == 1 {
                return told["error"]["code"].as_u64().map_or(200, |code| code as u16);
            }
        }
    }

    fn ask(&mut self, question: &str) -> u16 {
        if question == "connect" {
            return self.connect();
        }
        self.send(question);
        self.status()
    }

    fn results(&self, result: &str) -> f64 {
        self.gateway.metric("tidegate_hook_questions_total", &[("hook", "bad"), ("result", result)])
    }
}

fn hook(name: &str, application: &Answers, questions: &[&str], timeout: &str) -> String {
    format!(
        "[hooks.{name}]\nurl = \"http://{}/\"\nquestions = {questions:?}\nchannels = [\"{name}:*\"]\n\
         timeout = \"{timeout}\"\nanswer_bytes = \"1KiB\"\n",
        application.address
    )
}

#[test]
fn bad_answers_refuse_whom_they_are_for_on_both_nodes_and_nobody_else() {
    let (bad, good) = (Answers::start(yes), Answers::start(yes));
    let hooks = hook("bad", &bad, &QUESTIONS, "30s") + &hook("good", &good, &QUESTIONS[1..3], "30s");
    let site = Site::with(2, &format!("{GATEWAY_CONFIG}{hooks}"), SHORT_DRAIN);
    let keys = site.keys(20);
    let key = |node: &str| &*keys.iter().find(|(_, own)| own == node).unwrap().0;
    let nodes = [(&site.gateways[0], key("g1")), (&site.gateways[1], key("g2"))];
    let start = |(gateway, key)| Asker::start(gateway, site.router.public, key);
    let mut askers = nodes.map(start);
    let elsewhere = format!("http://{}/elsewhere", bad.address);
    type Bad = Box<dyn Fn(&Asked) -> Vec<u8> + Send + Sync>;
    let redirect = move |_: &Asked| {
        format!("HTTP/1.1 307 Said\r\nlocation: {elsewhere}\r\ncontent-length: 0\r\n\r\n").into_bytes()
    };
    let manners: [(&str, Bad); 6] = [
        ("unusable", Box::new(|_| answer(200, "text/plain", b"\xff no text"))),
        ("unusable", Box::new(|_| answer(500, "text/plain", b""))),
        ("unusable", Box::new(redirect)),
        ("unreachable", Box::new(|_| b"no HTTP\r\n\r\n".to_vec())),
        ("unreachable", Box::new(|_| Vec::new())),
        ("too_large", Box::new(|_| answer(200, "application/json", &[b' '; 1 << 20]))),
    ];
    for (result, manner) in manners {
        let manner = Arc::new(manner);
        for asker in &mut askers {
            let before = asker.results(result);
            for question in QUESTIONS {
                bad.turn(yes);
                // More than half are answered, wherever a window begins, so that its circuit stays closed.
                assert_eq!([asker.ask("message"), asker.ask("message")], [200; 2]);
                let manner = Arc::clone(&manner);
                bad.turn(move |asked| manner(asked));
                assert_eq!(asker.ask(question), 503, "{result} to {question}");
            }
            assert_eq!(asker.results(result), before + QUESTIONS.len() as f64, "{result}");
        }
    }
    bad.turn(yes);
    assert!(bad.asked().iter().all(|asked| asked.path == "/"), "a redirect is followed by nobody");

    let others = || WsClient::connect(site.router.public, "/ws?channel=good:room&envelope=json");
    let mut others = [others(), others()];
    let mut waiting = Vec::new();
    for node in nodes {
        waiting.extend(QUESTIONS[1..].iter().map(|question| (start(node), *question)));
    }
    bad.stick(true);
    waiting.iter_mut().for_each(|(asker, question)| asker.send(question));
    thread::scope(|scope| {
        let connecting = askers.each_ref().map(|asker| scope.spawn(|| asker.connect()));
        let asked = waiting.len() + connecting.len();
        eventually("it keeps all of them", DEADLINE, || bad.stuck() == asked);
        for other in &mut others {
            other.send_text(r#"{"subscribe":"good:other","id":1}"#);
            assert!(other.expect_json()["ok"].is_object());
        }
        for (other, text) in others.iter_mut().zip(["one", "two"]) {
            other.send_text(&json!({"publish": {"channel": "good:room", "data": text}}).to_string());
        }
        for other in &mut others {
            // Each is answered, too.
            let told: Vec<_> = (0..3).map(|_| other.expect_json()["data"].take()).collect();
            assert!(told.contains(&"one".into()) && told.contains(&"two".into()), "{told:?}");
        }
        assert_eq!(bad.stuck(), asked, "it answers nobody yet");
        bad.stick(false);
        connecting.into_iter().for_each(|connecting| assert_eq!(connecting.join().unwrap(), 101));
    });
    waiting.iter_mut().for_each(|(asker, question)| assert_eq!(asker.status(), 200, "{question}"));
}

#[test]
fn an_application_that_is_late_has_not_answered() {
    let late = Answers::start(yes);
    let gateway = Gateway::builder().config(&hook("bad", &late, &QUESTIONS, "300ms")).start();
    let mut asker = Asker::start(&gateway, gateway.public(), "k");
    late.stick(true);
    for question in QUESTIONS {
        assert_eq!(asker.ask(question), 503, "{question}");
    }
    assert!(asker.results("timeout") >= 1.0);
    late.stick(false);
    eventually("it is asked again", DEADLINE, || asker.ask("message") == 200);
}
