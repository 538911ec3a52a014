//! The stream of views: server-sent events, read line by line.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tidegate_gateway::console::view::{History, View};

use super::TopError;

/// An event of the stream.
#[derive(Debug)]
pub(super) enum Told {
    History(History),
    View(Box<View>),
}

/// An open stream.
#[derive(Debug)]
pub(super) struct Views {
    url: String,
    response: reqwest::Response,
    /// What came and is no whole event yet.
    rest: Vec<u8>,
}

const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// A view comes each second; one of 200 nodes has about 100 KiB.
const SILENCE_MAX: Duration = Duration::from_secs(10);
const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;

impl Views {
    pub(super) async fn open(url: &str) -> Result<Self, TopError> {
        let unreachable = |source: reqwest::Error| TopError::Unreachable {
            url: url.to_owned(),
            source: source.without_url(),
        };
        let client = reqwest::Client::builder().connect_timeout(CONNECT_PATIENCE).read_timeout(SILENCE_MAX);
        let client = client.build().map_err(unreachable)?;
        let stream = format!("{}/console/events", url.trim_end_matches('/'));
        let response = client.get(stream).send().await.map_err(unreachable)?;
        let status = response.status().as_u16();
        match status {
            200 => Ok(Self { url: url.to_owned(), response, rest: Vec::new() }),
            404 => Err(TopError::NoConsole { url: url.to_owned() }),
            _ => {
                let problem = response.json::<Value>().await.unwrap_or_default();
                let detail = problem["detail"].as_str().unwrap_or("it does not say why").to_owned();
                Err(TopError::Refused { url: url.to_owned(), status, detail: clean(&detail) })
            }
        }
    }

    /// The next event. May be dropped while it waits: nothing is lost.
    pub(super) async fn next(&mut self) -> Result<Told, TopError> {
        loop {
            if let Some(end) = self.rest.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.rest.drain(..end + 2).collect();
                if let Some(told) = self.read(&event)? {
                    return Ok(told);
                }
                continue;
            }
            let url = || self.url.clone();
            let chunk = self.response.chunk().await;
            let chunk =
                chunk.map_err(|source| TopError::Unreachable { url: url(), source: source.without_url() })?;
            let chunk = chunk.ok_or_else(|| TopError::Ended { url: url() })?;
            if self.rest.len() + chunk.len() > EVENT_BYTES_MAX {
                return Err(TopError::NoView { url: url() });
            }
            self.rest.extend_from_slice(&chunk);
        }
    }

    fn read(&self, event: &[u8]) -> Result<Option<Told>, TopError> {
        let no_view = || TopError::NoView { url: self.url.clone() };
        let text = std::str::from_utf8(event).map_err(|_| no_view())?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let (Some(kind), Some(data)) = (field("event: "), field("data: ")) else { return Ok(None) };
        match kind {
            "history" => Ok(Some(Told::History(parse(data).ok_or_else(no_view)?))),
            "view" => Ok(Some(Told::View(Box::new(parse(data).ok_or_else(no_view)?)))),
            _ => Ok(None),
        }
    }
}

fn parse<T: DeserializeOwned>(data: &str) -> Option<T> {
    let mut value: Value = serde_json::from_str(data).ok()?;
    clean_all(&mut value);
    serde_json::from_value(value).ok()
}

/// Texts come from nodes, and some of them from clients: none of them may steer the terminal.
fn clean_all(value: &mut Value) {
    match value {
        Value::String(text) => *text = clean(text),
        Value::Array(values) => values.iter_mut().for_each(clean_all),
        Value::Object(fields) => fields.values_mut().for_each(clean_all),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn clean(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_steers_the_terminal() {
        let data = r#"{"name":"a\u001b[2Jb","notes":["\u0007","ok ü"],"n":1}"#;
        let value: Option<Value> = parse(data);
        let expect = serde_json::json!({"name": "a\u{fffd}[2Jb", "notes": ["\u{fffd}", "ok ü"], "n": 1});
        assert_eq!(value, Some(expect));
    }
}
