//! The raw endpoints (`/ws`, `/sse`): what their query asks for, and the JSON they speak with `envelope=json`.

use std::borrow::Cow;

use base64::Engine as _;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::head::form_decode;
use crate::json::{push_document, push_str, push_u64};

/// What the query of a raw endpoint asks for. Unknown keys are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// Every `channel`, in order, repeated ones kept. Names are not validated here.
    pub channels: Vec<String>,
    /// `envelope=json`: frames are envelopes, not verbatim payloads.
    pub envelope: bool,
    /// `since=EPOCH:OFFSET`: what to recover from.
    pub since: Option<Since>,
    /// `token` or `access_token`.
    pub token: Option<String>,
}

/// The last position a client has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Since {
    pub epoch: String,
    pub offset: u64,
}

/// A query that does not say what it means; each names the parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    #[error("{parameter}: malformed percent-encoding, or not UTF-8")]
    Encoding { parameter: &'static str },
    #[error("{parameter}: given more than once")]
    Repeated { parameter: &'static str },
    #[error("envelope: the only envelope is json")]
    Envelope,
    #[error("since: expected EPOCH:OFFSET, for example k3f9:42")]
    Since,
    #[error("since: recovers one channel, so give exactly one channel")]
    SinceChannels,
}

/// One publication as subscribers with `envelope=json` and SSE clients see it.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    pub channel: &'a str,
    /// Epoch and offset, where the channel has history.
    pub position: Option<(&'a str, u64)>,
    pub event: Option<&'a str>,
    pub data: Data<'a>,
}

/// A payload.
#[derive(Debug, Clone, Copy)]
pub enum Data<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
}

/// What a client with `envelope=json` sends to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientPublication<'a> {
    /// `None`: the one channel the connection is subscribed to.
    pub channel: Option<Cow<'a, str>>,
    pub event: Option<Cow<'a, str>>,
    /// A JSON string's text, or the JSON text of any other value.
    pub data: Cow<'a, str>,
}

/// A client's text that is not a publication.
#[derive(Debug, thiserror::Error)]
pub enum ClientPublicationError {
    #[error("expected a JSON object such as {{\"channel\":\"A\",\"data\":1}}")]
    Object,
    #[error("malformed publication: {0}")]
    Json(#[from] serde_json::Error),
}

impl Query {
    /// Reads the query of a request, without the `?`.
    ///
    /// # Errors
    /// [`QueryError`], all of them the client's fault: 400.
    pub fn parse(query: Option<&str>) -> Result<Self, QueryError> {
        let mut parsed = Self::default();
        let mut envelope = None;
        for pair in query.unwrap_or_default().split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            // A key that cannot be decoded is no key of ours, and unknown keys are ignored.
            let Ok(key) = form_decode(key) else { continue };
            match &*key {
                "channel" => parsed.channels.push(decode(value, "channel")?),
                "envelope" => set_once(&mut envelope, decode(value, "envelope")?, "envelope")?,
                "since" => set_once(
                    &mut parsed.since,
                    Since::parse(&decode(value, "since")?)?,
                    "since",
                )?,
                "token" => set_once(&mut parsed.token, decode(value, "token")?, "token")?,
                "access_token" => set_once(
                    &mut parsed.token,
                    decode(value, "access_token")?,
                    "access_token",
                )?,
                _ => {}
            }
        }
        parsed.envelope = match envelope.as_deref() {
            None => false,
            Some("json") => true,
            Some(_) => return Err(QueryError::Envelope),
        };
        if parsed.since.is_some() && parsed.channels.len() != 1 {
            return Err(QueryError::SinceChannels);
        }
        Ok(parsed)
    }
}

impl Since {
    /// Reads `EPOCH:OFFSET`, as in `since` and in `Last-Event-ID`.
    ///
    /// # Errors
    /// [`QueryError::Since`].
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        let (epoch, offset) = text.split_once(':').ok_or(QueryError::Since)?;
        // Digits only: `u64::from_str` would take a `+` too.
        if epoch.is_empty() || !offset.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(QueryError::Since);
        }
        let offset = offset.parse().map_err(|_| QueryError::Since)?;
        Ok(Self {
            epoch: epoch.to_owned(),
            offset,
        })
    }
}

impl QueryError {
    /// The parameter at fault.
    #[must_use]
    pub fn parameter(self) -> &'static str {
        match self {
            Self::Encoding { parameter } | Self::Repeated { parameter } => parameter,
            Self::Envelope => "envelope",
            Self::Since | Self::SinceChannels => "since",
        }
    }
}

impl ClientPublicationError {
    /// Line and column, from 1, of what is wrong.
    #[must_use]
    pub fn place(&self) -> (usize, usize) {
        match self {
            Self::Object => (1, 1),
            Self::Json(error) => (error.line(), error.column()),
        }
    }
}

/// Appends an envelope: one JSON object on one line.
///
/// Text that is a JSON object or array is embedded as it is (line ends between its tokens become spaces); any
/// other text becomes a JSON string; binary becomes base64 with `"encoding":"base64"` beside it.
pub fn encode_envelope(envelope: &Envelope<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"channel\":");
    push_str(envelope.channel, out);
    out.push(b',');
    push_position(envelope.position, out);
    if let Some(event) = envelope.event {
        out.extend_from_slice(b",\"event\":");
        push_str(event, out);
    }
    out.extend_from_slice(b",\"data\":");
    match envelope.data {
        Data::Text(text) => {
            if !push_document(text, out) {
                push_str(text, out);
            }
        }
        Data::Binary(bytes) => {
            push_base64(bytes, out);
            out.extend_from_slice(b",\"encoding\":\"base64\"");
        }
    }
    out.push(b'}');
}

/// Appends the notice that publications were lost; `position` is where the channel continues, when known.
pub fn encode_gap(channel: &str, reason: &str, position: Option<(&str, u64)>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"channel\":");
    push_str(channel, out);
    out.extend_from_slice(b",\"gap\":{\"reason\":");
    push_str(reason, out);
    out.push(b',');
    push_position(position, out);
    out.extend_from_slice(b"}}");
}

/// Appends the notice that a slow reader missed `count` publications.
pub fn encode_dropped(channel: &str, count: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"channel\":");
    push_str(channel, out);
    out.extend_from_slice(b",\"dropped\":");
    push_u64(count, out);
    out.push(b'}');
}

/// Appends the answer to something a client sent that could not be done.
pub fn encode_error(code: u16, message: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"error\":{\"code\":");
    push_u64(u64::from(code), out);
    out.extend_from_slice(b",\"message\":");
    push_str(message, out);
    out.extend_from_slice(b"}}");
}

/// Reads `{"channel":"A"?, "data":any, "event":"E"?}`. Unknown keys are ignored, missing `data` is an error.
///
/// # Errors
/// [`ClientPublicationError`] with the place.
pub fn parse_client_publication(
    text: &str,
) -> Result<ClientPublication<'_>, ClientPublicationError> {
    // serde reads a struct from an array as well, by position; that is no form of ours.
    if text.trim_start().starts_with('[') {
        return Err(ClientPublicationError::Object);
    }
    let object: ClientObject<'_> = serde_json::from_str(text)?;
    let data = match object.data.get() {
        string if string.starts_with('"') => serde_json::from_str::<Text<'_>>(string)?.0,
        other => Cow::Borrowed(other),
    };
    Ok(ClientPublication {
        channel: object.channel.map(|text| text.0),
        event: object.event.map(|text| text.0),
        data,
    })
}

#[derive(Deserialize)]
struct ClientObject<'a> {
    #[serde(borrow)]
    channel: Option<Text<'a>>,
    #[serde(borrow)]
    event: Option<Text<'a>>,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// A string that borrows when it holds no escapes; serde does not see through `Option<Cow<str>>` by itself.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

fn decode(value: &str, parameter: &'static str) -> Result<String, QueryError> {
    form_decode(value)
        .map(Cow::into_owned)
        .map_err(|_| QueryError::Encoding { parameter })
}

fn set_once<T>(slot: &mut Option<T>, value: T, parameter: &'static str) -> Result<(), QueryError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(QueryError::Repeated { parameter }),
    }
}

fn push_position(position: Option<(&str, u64)>, out: &mut Vec<u8>) {
    match position {
        Some((epoch, offset)) => {
            out.extend_from_slice(b"\"epoch\":");
            push_str(epoch, out);
            out.extend_from_slice(b",\"offset\":");
            push_u64(offset, out);
        }
        None => out.extend_from_slice(b"\"epoch\":null,\"offset\":null"),
    }
}

fn push_base64(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let start = out.len();
    // Base64 writes 4 characters for every 3 bytes begun.
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written = base64::engine::general_purpose::STANDARD.encode_slice(bytes, &mut out[start..]);
    debug_assert_eq!(written, Ok(out.len() - start));
    out.push(b'"');
}
