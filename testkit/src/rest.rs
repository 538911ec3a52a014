//! REST over a real HTTP client (reqwest), with answers that a test can take apart.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::Method;
use reqwest::blocking::{Client, RequestBuilder};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

/// One server and, when set, one API key. Connections are kept alive between calls.
#[derive(Debug, Clone)]
pub struct Rest {
    client: Client,
    base: String,
    key: Option<String>,
}

/// A complete HTTP answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// Where a publication stands in its channel's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    pub epoch: String,
    pub offset: u64,
}

impl Rest {
    /// # Panics
    /// When the HTTP client cannot be built.
    pub fn new(address: SocketAddr) -> Self {
        let client = Client::builder()
            // Loopback is never reached through a proxy, whatever the environment says.
            .no_proxy()
            .timeout(Duration::from_secs(60))
            .build()
            .expect("a plain HTTP client can be built");
        Self { client, base: format!("http://{address}"), key: None }
    }

    #[must_use]
    pub fn with_key(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }

    #[must_use]
    pub fn without_key(mut self) -> Self {
        self.key = None;
        self
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], None)
    }

    /// The same of a server that may be gone: `None` when there is no complete answer.
    pub fn try_get(&self, path: &str) -> Option<Answer> {
        complete(self.request(Method::GET, path, &[], None)).ok()
    }

    /// The same of a server that may be gone: `None` when there is no complete answer.
    pub fn try_post(&self, path: &str, content_type: &str, body: impl Into<Vec<u8>>) -> Option<Answer> {
        complete(self.request(Method::POST, path, &[("content-type", content_type)], Some(body.into()))).ok()
    }

    #[track_caller]
    pub fn post(&self, path: &str, content_type: &str, body: impl Into<Vec<u8>>) -> Answer {
        self.send(Method::POST, path, &[("content-type", content_type)], Some(body.into()))
    }

    #[track_caller]
    pub fn post_json(&self, path: &str, body: &Value) -> Answer {
        self.post(path, "application/json", body.to_string())
    }

    /// Sends any request; `headers` come on top of the key.
    ///
    /// # Panics
    /// When there is no HTTP answer at all.
    #[track_caller]
    pub fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> Answer {
        let described = format!("{method} {}{path}", self.base);
        match complete(self.request(method, path, headers, body)) {
            Ok(answer) => answer,
            Err(error) => panic!("{described}: no answer: {error:?}"),
        }
    }

    /// Publishes a text payload, verbatim, and gives its position when the channel has history.
    ///
    /// # Panics
    /// When the answer is not 200 with a position object.
    #[track_caller]
    pub fn publish(&self, channel: &str, payload: &str) -> Option<Position> {
        let answer = self.post(&format!("/v1/channels/{channel}/publish"), "text/plain", payload);
        assert_eq!(answer.status, 200, "publish to {channel}: {}", answer.text());
        answer.position()
    }

    /// Publishes a binary payload.
    ///
    /// # Panics
    /// As [`Rest::publish`].
    #[track_caller]
    pub fn publish_binary(&self, channel: &str, payload: &[u8]) -> Option<Position> {
        let answer =
            self.post(&format!("/v1/channels/{channel}/publish"), "application/octet-stream", payload);
        assert_eq!(answer.status, 200, "publish to {channel}: {}", answer.text());
        answer.position()
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> RequestBuilder {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        for (name, value) in headers {
            let name: HeaderName = name.parse().expect("a header name");
            request =
                request.header(name, HeaderValue::from_bytes(value.as_bytes()).expect("a header value"));
        }
        match body {
            Some(body) => request.body(body),
            None => request,
        }
    }
}

fn complete(request: RequestBuilder) -> reqwest::Result<Answer> {
    let response = request.send()?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Ok(Answer { status, headers, body: response.bytes()?.to_vec() })
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// # Panics
    /// When the body is no JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_slice(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("status {}, no JSON ({error}): {}", self.status, self.text()),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// `{"epoch":…,"offset":…}`, `None` when both are null.
    ///
    /// # Panics
    /// When the body is something else.
    #[track_caller]
    pub fn position(&self) -> Option<Position> {
        let body = self.json();
        match (&body["epoch"], &body["offset"]) {
            (Value::Null, Value::Null) => None,
            (Value::String(epoch), Value::Number(offset)) => Some(Position {
                epoch: epoch.clone(),
                offset: offset.as_u64().expect("an offset is a whole number"),
            }),
            _ => panic!("no position: {body}"),
        }
    }

    /// Asserts an RFC 9457 problem document of this status and gives it.
    ///
    /// # Panics
    /// When status, media type or the members `type`, `title`, `status` are not as the RFC has them.
    #[track_caller]
    pub fn expect_problem(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        let content_type = self.header("content-type").unwrap_or_default();
        assert!(
            content_type.starts_with("application/problem+json"),
            "content-type {content_type:?}: {}",
            self.text()
        );
        let problem = self.json();
        assert_eq!(problem["status"], status, "{problem}");
        assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()), "{problem}");
        assert!(problem["type"].is_string(), "{problem}");
        problem
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.epoch, self.offset)
    }
}
