//! What an application is told, as CloudEvents: written once in JSON, and sent so in a batch, or in binary mode alone.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    cloud_events::{Attributes, rfc3339},
    hook::Source,
};
use crate::config::HookEvent;

/// Something that happened to a connection or a channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Happened<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connection: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) channel: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<&'a str>,
    /// Why it ended, and how long it was open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) duration_ms: Option<u64>,
}

/// An event in CloudEvents' JSON. The attributes are strings; the texts that a client chose stand in `data` only.
#[derive(Debug, Serialize, Deserialize)]
struct Structured<'a> {
    specversion: &'a str,
    id: &'a str,
    r#type: &'a str,
    source: &'a str,
    time: &'a str,
    datacontenttype: &'a str,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// Attributes of ours, which headers have beside the body.
#[derive(Debug, Default, Deserialize)]
struct Named {
    connection: Option<Box<str>>,
    channel: Option<Box<str>>,
    user: Option<Box<str>>,
    state: Option<Box<str>>,
}

impl Happened<'_> {
    /// The event in JSON, of now.
    pub(crate) fn to_json(self, event: HookEvent, source: &Source) -> Vec<u8> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Texts and numbers: nothing that JSON cannot say.
        let Ok(data) = serde_json::value::to_raw_value(&self) else { return Vec::new() };
        let structured = Structured {
            specversion: "1.0",
            id: &source.ids.next(),
            r#type: &format!("tidegate.{}", event.word()),
            source: &source.node,
            time: &rfc3339(now),
            datacontenttype: "application/json",
            data: &data,
        };
        serde_json::to_vec(&structured).unwrap_or_default()
    }
}

/// One event in HTTP's binary mode: its id, the headers, the body.
pub(crate) fn binary(event: &[u8]) -> (String, HeaderMap, Bytes) {
    let mut headers = HeaderMap::with_capacity(12);
    let Ok(event) = serde_json::from_slice::<Structured<'_>>(event) else { return Default::default() };
    let named: Named = serde_json::from_str(event.data.get()).unwrap_or_default();
    let attributes = Attributes {
        kind: event.r#type.trim_start_matches("tidegate."),
        source: event.source,
        at: Duration::ZERO,
        extensions: &[
            ("ce-id", Some(event.id)),
            ("ce-time", Some(event.time)),
            ("ce-connection", named.connection.as_deref()),
            ("ce-channel", named.channel.as_deref()),
            ("ce-user", named.user.as_deref()),
            ("ce-state", named.state.as_deref()),
        ],
    };
    attributes.write(&mut headers);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    (event.id.to_owned(), headers, Bytes::copy_from_slice(event.data.get().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_in_both_modes() {
        let source = Source { node: "/nodes/n".into(), ..Source::default() };
        let happened = Happened {
            connection: Some("n.1"),
            user: Some("é"),
            duration_ms: Some(5),
            ..Happened::default()
        };
        let json = happened.to_json(HookEvent::Disconnected, &source);
        let event: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
        assert_eq!(
            (&event["type"], &event["data"]["duration_ms"]),
            (&"tidegate.disconnected".into(), &5.into())
        );
        let (id, headers, body) = binary(&json);
        assert_eq!(
            (&*id, &headers["ce-user"]),
            (event["id"].as_str().expect("an id"), &HeaderValue::from_static("%C3%A9"))
        );
        assert_eq!(
            (&headers["ce-type"], &headers["ce-id"]),
            (
                &HeaderValue::from_static("tidegate.disconnected"),
                &HeaderValue::try_from(&id).expect("a header")
            )
        );
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).expect("JSON"), event["data"]);
    }
}
