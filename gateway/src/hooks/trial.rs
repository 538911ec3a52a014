//! What an application makes of each question and of an event: asked once by a person, and said in sentences.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use tidegate_backplane::{Payload, Text};

use super::{
    Caller, HandedOn, Hook, Known, No, Question, Reply, Source,
    events::{Happened, binary},
};
use crate::config::{
    ConfigError, HookDialect, HookEntry, HookEvent, HookQuestion, HookTables, Secret, Setting, WebhookUrl,
};

/// What came of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub sentence: String,
    /// It was answered: yes or no.
    pub is_answered: bool,
}

/// The connection in all of it.
const CONNECTION: &str = "test.1-0-0-0";
const CHANNEL: &str = "test";
const MESSAGE: &str = r#"{"hello":"application"}"#;

const QUESTIONS: [HookQuestion; 5] = [
    HookQuestion::Connect,
    HookQuestion::Subscribe,
    HookQuestion::Publish,
    HookQuestion::Message,
    HookQuestion::Refresh,
];

/// Sends each question, and with CloudEvents an event, to the application at `url`, as gateways do.
///
/// # Errors
/// The address, the dialect or the secret cannot be used.
pub async fn run(url: &str, dialect: &str, secret: Option<Secret>) -> Result<Vec<Told>, ConfigError> {
    let forbidden =
        |key: &str, value: &str, rule| ConfigError::Forbidden { key: key.into(), value: value.into(), rule };
    let dialect = HookDialect::from_text(dialect)
        .ok_or_else(|| forbidden("--dialect", dialect, "it is \"tidegate\" or \"centrifugo\""))?;
    let address = WebhookUrl::from_text(url)
        .ok_or_else(|| forbidden("URL", url, "it begins with http:// or https:// and has a host"))?;
    let entry = HookEntry { url: Some(address), dialect, secret, ..HookEntry::default() };
    let mut hooks = HookTables([("test".into(), entry)].into_iter().collect());
    hooks.finish()?;
    let Some(entry) = hooks.0.get("test") else { return Ok(Vec::new()) };
    let Some(hook) = Hook::new("test", entry)? else { return Ok(Vec::new()) };
    let source = Source { node: "/nodes/test".into(), ..Source::default() };
    let mut told = Vec::new();
    for kind in QUESTIONS {
        let answer = hook.ask_once(&question(kind), &source).await;
        let is_answered = answer.is_ok();
        told.push(Told { sentence: format!("{}: {}", kind.word(), sentence(kind, answer)), is_answered });
    }
    if entry.dialect == HookDialect::Tidegate {
        told.push(event(&hook, &source).await);
    }
    Ok(told)
}

fn question(kind: HookQuestion) -> Question {
    let request = HandedOn { channels: vec![CHANNEL.into()], ..HandedOn::default() };
    let known = Known { state: None, is_asked: true, request: Arc::new(request) };
    let caller = Caller {
        connection: CONNECTION.into(),
        protocol: "raw",
        way: "websocket",
        is_binary: false,
        user: (kind != HookQuestion::Connect).then(|| "test".into()),
        known: Arc::new(known),
    };
    let is_of_channel = matches!(kind, HookQuestion::Subscribe | HookQuestion::Publish);
    let has_payload = matches!(kind, HookQuestion::Publish | HookQuestion::Message);
    Question {
        kind,
        caller,
        channel: is_of_channel.then(|| CHANNEL.into()),
        payload: has_payload.then(|| Payload::Text(Text::from(MESSAGE))),
        name: None,
    }
}

fn sentence(kind: HookQuestion, answer: Result<Result<Reply, No>, String>) -> String {
    match answer {
        Ok(Ok(reply)) => yes(kind, &reply),
        Ok(Err(No::Said { code, message })) => format!("no; the client is told {code}: {message}"),
        Ok(Err(No::Disconnect { code, reason })) => {
            format!("no; the client is closed with {code}: {reason}")
        }
        Ok(Err(No::Away)) => "no answer".to_owned(),
        Err(why) => format!("no answer ({why}); clients are told 503, unless `away` is \"allow\""),
    }
}

/// What a yes says beside it.
fn yes(kind: HookQuestion, reply: &Reply) -> String {
    let mut parts = Vec::new();
    if let Some(user) = &reply.user {
        parts.push(format!("the user is {user}"));
    }
    let patterns = |patterns: &[crate::config::Pattern]| {
        patterns.iter().map(Setting::show).collect::<Vec<_>>().join(", ")
    };
    if !reply.channels.is_empty() {
        parts.push(format!("may subscribe to {}", patterns(&reply.channels)));
    }
    if !reply.publish.is_empty() {
        parts.push(format!("may publish to {}", patterns(&reply.publish)));
    }
    if !reply.subscribe.is_empty() {
        let names: Vec<&str> = reply.subscribe.iter().map(|(name, _)| &**name).collect();
        parts.push(format!("is subscribed to {}", names.join(", ")));
    }
    if let Some(expires) = reply.expires {
        let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
        parts.push(format!("lasts {} s", left.as_secs()));
    }
    if let Some(data) = &reply.data {
        let what = match kind {
            HookQuestion::Publish => "is published in its place",
            HookQuestion::Message => "is the answer",
            _ => "for the client",
        };
        parts.push(format!("{} bytes are {}", data.bytes().len(), what.trim_start_matches("is ")));
    }
    if let Some(state) = &reply.state {
        parts.push(format!("{} bytes of state come back with later questions", state.len()));
    }
    if parts.is_empty() { "yes".to_owned() } else { format!("yes; {}", parts.join("; ")) }
}

async fn event(hook: &Hook, source: &Source) -> Told {
    let happened = Happened {
        connection: Some(CONNECTION),
        protocol: Some("raw"),
        user: Some("test"),
        ..Happened::default()
    };
    let (id, headers, body) = binary(&happened.to_json(HookEvent::Connected, source));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (sentence, is_answered) = match hook.post_event(&id, now, headers, body).await {
        Ok(status) if status.is_success() => (format!("taken ({status})"), true),
        Ok(status) => (format!("not taken ({status}); it would come again"), true),
        Err(why) => (format!("not taken ({why}); it would come again"), false),
    };
    Told { sentence: format!("event connected: {sentence}"), is_answered }
}
