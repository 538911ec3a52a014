//! An application: an HTTP server that answers as a test says, and remembers what it was asked.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, header};
use serde_json::Value;
use tidegate_testkit::{DEADLINE, eventually};
use tokio::{net::TcpListener, runtime::Runtime, sync::watch};

use super::super::rig::config;
use crate::config::{Config, HookEntry, HookQuestion, Setting as _, WebhookUrl};

/// What it was asked.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// How it answers: a status and a body, which is JSON unless it begins with another letter.
type Manner = Arc<dyn Fn(&Asked) -> (u16, String) + Send + Sync>;

#[derive(Clone)]
struct Shared {
    manner: watch::Receiver<Manner>,
    /// Answers wait for it to be true.
    answers: watch::Receiver<bool>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

pub(super) struct Application {
    pub(super) address: SocketAddr,
    manner: watch::Sender<Manner>,
    answers: watch::Sender<bool>,
    asked: Arc<Mutex<Vec<Asked>>>,
    _runtime: Runtime,
}

impl Asked {
    #[track_caller]
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.headers)).to_str().unwrap()
    }

    /// The question: `connect`, `message`, …
    pub(super) fn kind(&self) -> &str {
        self.header("ce-type").strip_prefix("tidegate.").unwrap()
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Application {
    pub(super) fn start(manner: impl Fn(&Asked) -> (u16, String) + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), manner)
    }

    pub(super) fn start_at(
        address: SocketAddr,
        manner: impl Fn(&Asked) -> (u16, String) + Send + Sync + 'static,
    ) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (manner, answers) = (watch::Sender::new(Arc::new(manner) as Manner), watch::Sender::new(true));
        let asked = Arc::default();
        let shared =
            Shared { manner: manner.subscribe(), answers: answers.subscribe(), asked: Arc::clone(&asked) };
        let listener = runtime.block_on(TcpListener::bind(address)).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(take).with_state(shared);
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { address, manner, answers, asked, _runtime: runtime }
    }

    pub(super) fn turn(&self, manner: impl Fn(&Asked) -> (u16, String) + Send + Sync + 'static) {
        self.manner.send_replace(Arc::new(manner));
    }

    /// Whether it answers at all.
    pub(super) fn answers(&self, answers: bool) {
        self.answers.send_replace(answers);
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    #[track_caller]
    pub(super) fn eventually_asked(&self, number: usize) {
        eventually(&format!("{number} questions"), DEADLINE, || self.asked().len() == number);
    }

    /// A gateway that asks it this.
    pub(super) fn config(&self, questions: &[HookQuestion]) -> Config {
        let mut config = config();
        config.hooks.0.insert("app".into(), self.hook(questions));
        config
    }

    pub(super) fn hook(&self, questions: &[HookQuestion]) -> HookEntry {
        HookEntry {
            url: WebhookUrl::from_text(&format!("http://{}/hooks", self.address)),
            questions: questions.to_vec(),
            // A starved machine must not make an answer none.
            timeout: DEADLINE,
            ..HookEntry::default()
        }
    }
}

async fn take(State(mut shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let asked = Asked { headers, body };
    shared.asked.lock().unwrap().push(asked.clone());
    shared.answers.wait_for(|answers| *answers).await.unwrap();
    let manner = shared.manner.borrow().clone();
    let (status, body) = manner(&asked);
    let status = StatusCode::from_u16(status).unwrap();
    match status {
        StatusCode::TEMPORARY_REDIRECT => (status, [(header::LOCATION, body)]).into_response(),
        _ => (status, body).into_response(),
    }
}

pub(super) fn yes(_: &Asked) -> (u16, String) {
    (204, String::new())
}
