//! The dialect `tidegate`: CloudEvents 1.0 over HTTP in binary mode, and answers in status codes.
//!
//! What a client sends is the body as it came; what the gateway says itself (`connect`, `subscribe`, `refresh`, events) is a
//! JSON object. Attributes stand in headers, and in that object too, so that they are signed with it.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::CONTENT_TYPE};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tidegate_backplane::Payload;

use super::{
    question::{No, Question, Read, Reply, Unreadable, json},
    subscription::{Overrides, ServerSubscription},
};
use crate::config::{HookQuestion, Pattern};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const BINARY: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// CloudEvents, HTTP protocol binding, section 3.1.3.2: printable ASCII but space, quotation mark and per cent.
const ATTRIBUTE: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// The body of what the gateway says itself.
#[derive(Debug, Default, Serialize)]
struct Said<'q> {
    connection: &'q str,
    protocol: &'q str,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<std::net::IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'q str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'q str,
    #[serde(skip_serializing_if = "str::is_empty")]
    version: &'q str,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<&'q str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    channels: &'q [Box<str>],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<&'q str, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    cookies: BTreeMap<&'q str, &'q str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    query: BTreeMap<&'q str, &'q str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'q RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'q str>,
}

/// The answer to `connect`, `subscribe` and `refresh`. Unknown members are ignored.
#[derive(Debug, Default, Deserialize)]
struct Answer<'a> {
    user: Option<Box<str>>,
    expires: Option<u64>,
    #[serde(borrow)]
    info: Option<&'a RawValue>,
    #[serde(default)]
    channels: Vec<Pattern>,
    #[serde(default)]
    publish: Vec<Pattern>,
    #[serde(default)]
    subscribe: Vec<Box<str>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    state: Option<Box<str>>,
}

/// The attributes of an event, beside its id.
#[derive(Debug)]
pub(super) struct Attributes<'a> {
    pub(super) kind: &'a str,
    pub(super) source: &'a str,
    pub(super) at: Duration,
    /// Names with their values; those without a value are left out.
    pub(super) extensions: &'a [(&'static str, Option<&'a str>)],
}

impl Attributes<'_> {
    /// Appends the headers of binary mode.
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        let kind = format!("tidegate.{}", self.kind);
        let at = rfc3339(self.at);
        let fixed =
            [("ce-specversion", "1.0"), ("ce-type", &*kind), ("ce-source", self.source), ("ce-time", &*at)];
        let fixed = fixed.into_iter().map(|(name, value)| (name, Some(value)));
        for (name, value) in fixed.chain(self.extensions.iter().copied()) {
            let value = value.map(|value| utf8_percent_encode(value, ATTRIBUTE).to_string());
            if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    }
}

/// The headers and the body of a question.
pub(super) fn request(question: &Question, source: &str, at: Duration) -> (HeaderMap, Bytes) {
    let (caller, kind) = (&question.caller, question.kind);
    let mut headers = HeaderMap::with_capacity(16);
    let attributes = Attributes {
        kind: kind.word(),
        source,
        at,
        extensions: &[
            ("ce-connection", Some(&caller.connection)),
            ("ce-protocol", Some(caller.protocol)),
            ("ce-user", caller.user.as_deref()),
            ("ce-channel", question.channel.as_deref()),
            ("ce-state", caller.known.state.as_deref()),
            (if kind == HookQuestion::Message { "ce-method" } else { "ce-event" }, question.name.as_deref()),
        ],
    };
    attributes.write(&mut headers);
    let (media, body) = match (kind, &question.payload) {
        (HookQuestion::Publish | HookQuestion::Message, Some(payload)) => {
            (media_of(payload), payload.bytes().clone())
        }
        _ => (JSON, serde_json::to_vec(&said(question)).unwrap_or_default().into()),
    };
    headers.insert(CONTENT_TYPE, media);
    (headers, body)
}

fn said(question: &Question) -> Said<'_> {
    let (caller, request) = (&question.caller, &question.caller.known.request);
    let mut said = Said {
        connection: &caller.connection,
        protocol: caller.protocol,
        client: request.address,
        user: caller.user.as_deref(),
        channel: question.channel.as_deref(),
        state: caller.known.state.as_deref(),
        data: question.payload.as_ref().and_then(|payload| serde_json::from_slice(payload.bytes()).ok()),
        ..Said::default()
    };
    if question.kind == HookQuestion::Connect {
        said.channels = &request.channels;
        (said.name, said.version) = (&request.client.0, &request.client.1);
        let headers = request.headers.iter();
        said.headers = headers
            .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()).into()))
            .collect();
        said.cookies = request.cookies.iter().map(|(name, value)| (&**name, &**value)).collect();
        said.query = request.query.iter().map(|(name, value)| (&**name, &**value)).collect();
    }
    said
}

fn media_of(payload: &Payload) -> HeaderValue {
    match payload {
        Payload::Binary(_) => BINARY,
        Payload::Text(text) if serde_json::from_slice::<&RawValue>(text.as_bytes()).is_ok() => JSON,
        Payload::Text(_) => TEXT,
    }
}

/// What an answer says.
pub(super) fn read(kind: HookQuestion, status: StatusCode, media: Option<&HeaderValue>, body: Bytes) -> Read {
    match status {
        StatusCode::NO_CONTENT => Ok(Ok(Reply::default())),
        StatusCode::OK if body.is_empty() => Ok(Ok(Reply::default())),
        StatusCode::OK if matches!(kind, HookQuestion::Publish | HookQuestion::Message) => {
            let data = payload(media, body)?;
            Ok(Ok(Reply { data: Some(data), ..Reply::default() }))
        }
        StatusCode::OK => {
            let answer = serde_json::from_slice::<Answer<'_>>(&body);
            answer.map(|answer| Ok(answer.into())).map_err(|_| {
                Unreadable("it is no JSON object with the members of this question, see docs/hooks.md")
            })
        }
        status if status.is_client_error() => {
            let is_text = media.is_none_or(|media| media.as_bytes().starts_with(b"text/plain"));
            let words = if is_text { std::str::from_utf8(&body).unwrap_or_default() } else { "" };
            Ok(Err(No::said(status.as_u16(), words)))
        }
        _ => Err(Unreadable("its status means nothing here: 200, 204 and 400 to 499 do")),
    }
}

fn payload(media: Option<&HeaderValue>, body: Bytes) -> Result<Payload, Unreadable> {
    if media.is_some_and(|media| media.as_bytes().starts_with(BINARY.as_bytes())) {
        return Ok(Payload::Binary(body));
    }
    let text = std::str::from_utf8(&body).map_err(|_| Unreadable("it is text by its type and no UTF-8"))?;
    Ok(Payload::Text(text.into()))
}

impl From<Answer<'_>> for Reply {
    fn from(answer: Answer<'_>) -> Self {
        let expires = answer.expires.map(Duration::from_secs);
        Self {
            user: answer.user,
            expires: expires.and_then(|at| std::time::UNIX_EPOCH.checked_add(at)),
            info: answer.info.and_then(json),
            channels: answer.channels,
            publish: answer.publish,
            overrides: Overrides::default(),
            subscribe: answer.subscribe.into_iter().map(|it| (it, ServerSubscription::default())).collect(),
            data: answer.data.and_then(json).map(|data| Payload::Text((&*data).into())),
            state: answer.state,
        }
    }
}

/// RFC 3339, in UTC with milliseconds, of a time since 1970.
pub(super) fn rfc3339(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, of_month) = date(day);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let millis = since_epoch.subsec_millis();
    format!("{year:04}-{month:02}-{of_month:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Year, month and day of a day since 1970. Years begin in March, so that the day that some lack is their last; 400 of
/// them have 146,097 days.
fn date(day: u64) -> (u64, u64, u64) {
    let shifted = day + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (400 * era + year_of_era + u64::from(month <= 2), month, of_month)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use super::*;
    use crate::hooks::question::{Caller, HandedOn, Known};

    fn question(kind: HookQuestion, payload: Option<Payload>) -> Question {
        let request = HandedOn {
            channels: vec!["news".into()],
            cookies: vec![("sid".into(), "5".into())],
            ..HandedOn::default()
        };
        let known = Known { state: Some("é %".into()), request: Arc::new(request), ..Known::default() };
        let caller = Caller {
            connection: "n.1-0-0-0".into(),
            way: "websocket",
            protocol: "raw",
            is_binary: false,
            user: Some("u".into()),
            known: Arc::new(known),
        };
        Question { kind, caller, channel: None, payload, name: None }
    }

    #[test]
    fn what_a_client_sends_is_the_body() {
        let at = Duration::from_millis(1_700_000_000_123);
        let payload = Some(Payload::Text("{\"a\":1}".into()));
        let (headers, body) = request(&question(HookQuestion::Message, payload), "/nodes/n", at);
        assert_eq!((&*body, &headers[CONTENT_TYPE]), (&b"{\"a\":1}"[..], &JSON));
        assert_eq!(headers["ce-type"], "tidegate.message");
        assert_eq!(headers["ce-time"], "2023-11-14T22:13:20.123Z");
        assert_eq!(headers["ce-state"], "%C3%A9%20%25");
        let (headers, body) = request(&question(HookQuestion::Connect, None), "/nodes/n", at);
        let said: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(said["channels"], serde_json::json!(["news"]));
        assert_eq!((&said["cookies"]["sid"], &said["user"]), (&"5".into(), &"u".into()));
        assert_eq!(
            (&said["state"], &headers["ce-specversion"]),
            (&"é %".into(), &HeaderValue::from_static("1.0"))
        );
    }

    #[test]
    fn statuses_mean_what_they_say() {
        let read = |kind, status: u16, body: &'static str| {
            super::read(
                kind,
                StatusCode::from_u16(status).unwrap(),
                None,
                Bytes::from_static(body.as_bytes()),
            )
        };
        assert!(read(HookQuestion::Connect, 204, "").unwrap().unwrap().user.is_none());
        let reply =
            read(HookQuestion::Connect, 200, r#"{"user":"u","expires":5,"channels":["a*"],"data":{"b":1}}"#);
        let reply = reply.unwrap().unwrap();
        assert_eq!(reply.user.as_deref(), Some("u"));
        assert_eq!(reply.data, Some(Payload::Text("{\"b\":1}".into())));
        let no = read(HookQuestion::Connect, 422, "no seats left").unwrap().unwrap_err();
        assert_eq!((no.status(), no.to_string()), (422, "no seats left".into()));
        for (kind, status, body) in [
            (HookQuestion::Connect, 200, "<html>"),
            (HookQuestion::Message, 302, ""),
            (HookQuestion::Publish, 500, ""),
        ] {
            assert!(read(kind, status, body).is_err(), "{kind:?} {status}");
        }
        let reply = read(HookQuestion::Message, 200, "pong").unwrap().unwrap();
        assert_eq!(reply.data, Some(Payload::Text("pong".into())));
    }

    #[test]
    fn dates() {
        for (seconds, expect) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(seconds)), expect);
        }
    }
}
