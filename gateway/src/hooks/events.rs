//! What an application is told, as CloudEvents: written once in JSON, and sent so in a batch, or in binary mode alone.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    cloud_events::{Attributes, rfc3339},
    hook::Source,
};
use crate::config::{HookEvent, Setting as _};

/// Something that happened to a connection or a channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Happened<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connection: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) protocol: Option<&'a str>,
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
pub(crate) struct Named {
    pub(crate) connection: Option<Box<str>>,
    pub(crate) channel: Option<Box<str>>,
    user: Option<Box<str>>,
    state: Option<Box<str>>,
}

/// What is to be told of a connection whose node has died. Nodes of several versions read each other's: fields may be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Will {
    pub(crate) connection: Box<str>,
    pub(crate) protocol: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<Box<str>>,
    /// Since when it is there; milliseconds since 1970.
    pub(crate) since: u64,
    /// How often it was told to be connected again.
    #[serde(default)]
    pub(crate) again: u32,
}

impl Will {
    /// Of a connection that begins now.
    pub(crate) fn of(happened: &Happened<'_>) -> Self {
        Self {
            connection: happened.connection.unwrap_or_default().into(),
            protocol: happened.protocol.unwrap_or_default().into(),
            user: happened.user.map(Box::from),
            state: happened.state.map(Box::from),
            since: since_1970(),
            again: 0,
        }
    }

    pub(crate) fn to_text(&self) -> Arc<str> {
        // Texts and numbers: nothing that JSON cannot say.
        serde_json::to_string(self).unwrap_or_default().into()
    }

    pub(crate) fn connected(&self) -> Happened<'_> {
        Happened {
            connection: Some(&self.connection),
            protocol: Some(&self.protocol),
            user: self.user.as_deref(),
            state: self.state.as_deref(),
            ..Happened::default()
        }
    }

    /// Its node is not there any more.
    pub(crate) fn disconnected(&self) -> Happened<'_> {
        let duration_ms = Some(since_1970().saturating_sub(self.since));
        Happened { reason: Some("node_lost"), duration_ms, ..self.connected() }
    }
}

fn since_1970() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or_default()
}

/// The id of a connection's end, whichever node tells it: who keeps ids takes it once.
pub(crate) fn id_of_end(connection: &str, again: u32) -> String {
    let hash = digest(&SHA256, format!("{again} {connection}").as_bytes());
    hash.as_ref()[..16].iter().fold("msg_".to_owned(), |id, byte| format!("{id}{byte:02x}"))
}

impl Named {
    /// As far as it says where an event is told.
    pub(crate) fn happened(&self) -> Happened<'_> {
        Happened {
            connection: self.connection.as_deref(),
            channel: self.channel.as_deref(),
            ..Happened::default()
        }
    }
}

impl Happened<'_> {
    /// The event in JSON, of now.
    pub(crate) fn to_json(self, event: HookEvent, source: &Source) -> Vec<u8> {
        self.with_id(&source.ids.next(), event, source)
    }

    pub(crate) fn with_id(self, id: &str, event: HookEvent, source: &Source) -> Vec<u8> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Texts and numbers: nothing that JSON cannot say.
        let Ok(data) = serde_json::value::to_raw_value(&self) else { return Vec::new() };
        let structured = Structured {
            specversion: "1.0",
            id,
            r#type: &format!("tidegate.{}", event.word()),
            source: &source.node,
            time: &rfc3339(now),
            datacontenttype: "application/json",
            data: &data,
        };
        serde_json::to_vec(&structured).unwrap_or_default()
    }
}

/// What an event says, for who did not write it. `None`: it is none of this version's.
pub(crate) fn about(event: &[u8]) -> Option<(HookEvent, Named)> {
    let event: Structured<'_> = serde_json::from_slice(event).ok()?;
    let kind = HookEvent::from_text(event.r#type.strip_prefix("tidegate.")?)?;
    Some((kind, serde_json::from_str(event.data.get()).ok()?))
}

/// The id and the type of an event.
pub(crate) fn id_and_type(event: &[u8]) -> (&str, &str) {
    // We wrote it.
    let event = serde_json::from_slice::<Structured<'_>>(event);
    event.map_or(("", ""), |event| (event.id, event.r#type))
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
