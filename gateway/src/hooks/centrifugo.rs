//! The dialect `centrifugo`: the JSON of Centrifugo's proxies, for a backend that was written for them.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tidegate_backplane::Payload;

use super::{
    question::{No, Question, Read, Reply, Unreadable, json},
    subscription::{Overrides, RawSubscription, ServerSubscription, info},
};
use crate::config::HookQuestion;

#[derive(Debug, Serialize)]
struct Request<'q> {
    client: &'q str,
    transport: &'static str,
    protocol: &'static str,
    encoding: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'q str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<&'q str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    channels: &'q [Box<str>],
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'q str,
    #[serde(skip_serializing_if = "str::is_empty")]
    version: &'q str,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'q str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'q RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    b64data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<&'q RawValue>,
}

#[derive(Debug, Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    result: Option<Answered<'a>>,
    #[serde(borrow)]
    error: Option<Error<'a>>,
    #[serde(borrow)]
    disconnect: Option<Disconnect<'a>>,
}

/// The members of all results. Others (`labels`, `tags`, …) are ignored.
#[derive(Debug, Default, Deserialize)]
struct Answered<'a> {
    #[serde(default)]
    user: Box<str>,
    #[serde(default)]
    expire_at: i64,
    #[serde(default)]
    expired: bool,
    #[serde(borrow)]
    info: Option<&'a RawValue>,
    b64info: Option<Box<str>>,
    #[serde(rename = "override")]
    overrides: Option<Overrides>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    b64data: Box<str>,
    #[serde(default)]
    channels: Vec<Box<str>>,
    #[serde(borrow, default)]
    subs: BTreeMap<Box<str>, Option<RawSubscription<'a>>>,
    #[serde(borrow)]
    meta: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct Error<'a> {
    #[serde(default)]
    code: u16,
    #[serde(borrow, default)]
    message: std::borrow::Cow<'a, str>,
}

#[derive(Debug, Deserialize)]
struct Disconnect<'a> {
    #[serde(default)]
    code: u16,
    #[serde(borrow, default)]
    reason: std::borrow::Cow<'a, str>,
}

/// The headers and the body of a question.
pub(super) fn request(question: &Question) -> (HeaderMap, Bytes) {
    let (caller, kind) = (&question.caller, question.kind);
    let (encoding, protocol) = match caller.is_binary {
        true => ("binary", "protobuf"),
        false => ("json", "json"),
    };
    let sent = question.payload.as_ref().map(Payload::bytes);
    let data =
        sent.filter(|_| !caller.is_binary).and_then(|bytes| serde_json::from_slice::<&RawValue>(bytes).ok());
    let b64data = sent.filter(|_| data.is_none()).map(|bytes| STANDARD.encode(bytes));
    let is_connect = kind == HookQuestion::Connect;
    let request = Request {
        client: &caller.connection,
        transport: caller.way,
        protocol,
        encoding,
        // As Centrifugo says it: an empty one is an anonymous user.
        user: (!is_connect).then_some(caller.user.as_deref().unwrap_or_default()),
        channel: question.channel.as_deref(),
        channels: if is_connect { &caller.known.request.channels } else { &[] },
        name: if is_connect { &caller.known.request.client.0 } else { "" },
        version: if is_connect { &caller.known.request.client.1 } else { "" },
        method: question.name.as_deref().filter(|_| kind == HookQuestion::Message),
        data,
        b64data,
        meta: caller.known.state.as_deref().and_then(|state| serde_json::from_str(state).ok()),
    };
    let body = serde_json::to_vec(&request).unwrap_or_default();
    (headers(question), body.into())
}

/// Centrifugo hands on headers as headers.
fn headers(question: &Question) -> HeaderMap {
    let request = &question.caller.known.request;
    let mut headers: HeaderMap = request.headers.iter().cloned().collect();
    if !request.cookies.is_empty() {
        let cookies: Vec<_> = request.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if let Ok(cookies) = HeaderValue::try_from(cookies.join("; ")) {
            headers.insert(header::COOKIE, cookies);
        }
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers
}

/// What an answer says.
pub(super) fn read(kind: HookQuestion, status: StatusCode, body: &[u8], now: SystemTime) -> Read {
    if status != StatusCode::OK {
        return Err(Unreadable("its status is not 200"));
    }
    let response: Response<'_> = serde_json::from_slice(body)
        .map_err(|_| Unreadable("it is no JSON object with result, error or disconnect"))?;
    if let Some(Disconnect { code, reason }) = response.disconnect {
        return Ok(Err(No::Disconnect { code, reason: reason.into() }));
    }
    if let Some(Error { code, message }) = response.error {
        return Ok(Err(No::said(code, &message)));
    }
    let result = match response.result {
        Some(result) => result,
        // Centrifugo takes it for a client without credentials.
        None if kind == HookQuestion::Connect => return Ok(Err(No::said(401, "unauthorized"))),
        None => return Err(Unreadable("it has no result, no error and no disconnect")),
    };
    result.reply(kind, now)
}

impl Answered<'_> {
    fn reply(self, kind: HookQuestion, now: SystemTime) -> Read {
        let expires = u64::try_from(self.expire_at).ok().filter(|at| *at > 0).map(Duration::from_secs);
        let expires = expires.and_then(|at| UNIX_EPOCH.checked_add(at));
        if self.expired || (kind == HookQuestion::Refresh && expires.is_some_and(|at| at <= now)) {
            return Ok(Err(No::said(401, "expired")));
        }
        let data = match (&*self.b64data, self.data) {
            ("", data) => data.and_then(json).map(|data| Payload::Text((&*data).into())),
            (text, _) => {
                let bytes = STANDARD.decode(text).map_err(|_| Unreadable("b64data is not base64"))?;
                Some(match String::from_utf8(bytes) {
                    Ok(text) => Payload::Text(text.into()),
                    Err(error) => Payload::Binary(error.into_bytes().into()),
                })
            }
        };
        let not_base64 = |_| Unreadable("b64data or b64info is not base64");
        let mut subscribe: Vec<_> =
            self.channels.into_iter().map(|channel| (channel, ServerSubscription::default())).collect();
        for (channel, said) in self.subs {
            let said = said.map(RawSubscription::read).transpose().map_err(not_base64)?;
            subscribe.push((channel, said.unwrap_or_default()));
        }
        Ok(Ok(Reply {
            user: Some(self.user).filter(|user| !user.is_empty()),
            expires,
            info: info(self.info.map(RawValue::get), self.b64info.as_deref()).map_err(not_base64)?,
            overrides: self.overrides.unwrap_or_default(),
            subscribe,
            data,
            state: self.meta.and_then(json),
            ..Reply::default()
        }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::hooks::question::{Caller, HandedOn, Known};

    #[test]
    fn a_call_as_centrifugo_asks_it() {
        let request = HandedOn { cookies: vec![("sid".into(), "5".into())], ..HandedOn::default() };
        let known = Known { state: Some("{\"a\":1}".into()), request: request.into(), ..Known::default() };
        let caller = Caller {
            connection: "c".into(),
            way: "websocket",
            protocol: "centrifuge",
            is_binary: false,
            user: Some("u".into()),
            known: known.into(),
        };
        let payload = Some(Payload::Text("{\"b\":2}".into()));
        let question = Question {
            kind: HookQuestion::Message,
            caller,
            channel: None,
            payload,
            name: Some("get".into()),
        };
        let (headers, body) = super::request(&question);
        let expect = serde_json::json!({
            "client": "c", "transport": "websocket", "protocol": "json", "encoding": "json", "user": "u",
            "method": "get", "data": {"b": 2}, "meta": {"a": 1},
        });
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).unwrap(), expect);
        assert_eq!(headers[header::COOKIE], "sid=5");
    }

    #[test]
    fn results_errors_and_disconnects() {
        let read = |kind, body: &str| super::read(kind, StatusCode::OK, body.as_bytes(), SystemTime::now());
        let connect = r#"{"result":{"user":"u","expire_at":4000000000,"channels":["a"],
                         "subs":{"b":{"data":1,"b64info":"e30=","override":{"join_leave":{"value":false}}}},
                         "meta":{"x":1},"data":{"y":2},"caps":[]}}"#;
        let reply = read(HookQuestion::Connect, connect).unwrap().unwrap();
        let of_b = ServerSubscription {
            data: b"1".to_vec(),
            info: Some("{}".into()),
            overrides: Overrides { join_leave: Some(false), ..Overrides::default() },
        };
        assert_eq!(reply.subscribe, [("a".into(), ServerSubscription::default()), ("b".into(), of_b)]);
        assert_eq!((reply.user.as_deref(), reply.state.as_deref()), (Some("u"), Some("{\"x\":1}")));
        let error = read(HookQuestion::Message, r#"{"error":{"code":1000,"message":"custom"}}"#).unwrap();
        assert!(matches!(error, Err(No::Said { code: 1000, .. })), "{error:?}");
        let cut = read(HookQuestion::Publish, r#"{"disconnect":{"code":4500,"reason":"go"}}"#).unwrap();
        assert!(matches!(cut, Err(No::Disconnect { code: 4500, .. })), "{cut:?}");
        let expired = read(HookQuestion::Refresh, r#"{"result":{"expired":true}}"#).unwrap();
        assert_eq!(expired.unwrap_err().status(), 401);
        assert!(read(HookQuestion::Message, "{}").is_err());
        let reply = read(HookQuestion::Message, r#"{"result":{"b64data":"/w=="}}"#).unwrap().unwrap();
        assert_eq!(reply.data, Some(Payload::Binary(Bytes::from_static(&[255]))));
    }
}
