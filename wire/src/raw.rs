//! The raw endpoints (`/ws`, `/sse`): what their query asks for, and the JSON they speak with `envelope=json`.

pub mod command;

pub use command::parse_client_publication;

use std::borrow::Cow;

use crate::head::form_decode;
use crate::json::{push_base64, push_document, push_str, push_u64};

/// What the query of a raw endpoint asks for. Unknown keys are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// Every `channel`, in order, repeated ones kept. Names are not validated here.
    pub channels: Vec<String>,
    /// `envelope=json`: frames are envelopes, not verbatim payloads.
    pub envelope: bool,
    /// `positions=true`: the client is told where its channels stand when the connection opens. Only an enveloped one can
    /// be.
    pub positions: bool,
    /// `join_leave=true`: the client is told who is in its channels, and who joins and leaves.
    pub join_leave: bool,
    /// `since=EPOCH:OFFSET,…`: what to recover from, one place for each channel, or no places at all.
    pub since: Vec<Option<Since>>,
    /// `token` or `access_token`.
    pub token: Option<String>,
    /// `lastEventId`, however it is written: what clients that cannot set headers send for `Last-Event-ID`.
    pub last_event_id: Option<String>,
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
    #[error("positions: expected true, with envelope=json")]
    Positions,
    #[error("join_leave: expected true, on a WebSocket with envelope=json")]
    JoinLeave,
    #[error("since: expected EPOCH:OFFSET, for example k3f9:42")]
    Since,
    #[error("since: expected one EPOCH:OFFSET for each channel, in their order, separated by commas")]
    SinceChannels,
}

/// One publication as subscribers with `envelope=json` and SSE clients see it.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    pub channel: &'a str,
    /// Epoch and offset, where the channel has history.
    pub position: Option<(&'a str, u64)>,
    pub event: Option<&'a str>,
    /// The client's user, where a client published.
    pub user: Option<&'a str>,
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

/// A connection of a user in a channel.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    pub connection: &'a str,
    pub user: &'a str,
    /// JSON.
    pub info: Option<&'a str>,
}

impl Query {
    /// Reads the query of a request, without the `?`.
    ///
    /// # Errors
    /// [`QueryError`], all of them the client's fault: 400.
    pub fn parse(query: Option<&str>) -> Result<Self, QueryError> {
        let mut parsed = Self::default();
        let (mut envelope, mut positions, mut join_leave, mut since) = (None, None, None, None);
        for pair in query.unwrap_or_default().split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            // A key that cannot be decoded is no key of ours, and unknown keys are ignored.
            let Ok(key) = form_decode(key) else { continue };
            match &*key {
                "channel" => parsed.channels.push(decode(value, "channel")?),
                "envelope" => set_once(&mut envelope, decode(value, "envelope")?, "envelope")?,
                "positions" => set_once(&mut positions, decode(value, "positions")?, "positions")?,
                "join_leave" => set_once(&mut join_leave, decode(value, "join_leave")?, "join_leave")?,
                "since" => set_once(&mut since, Since::parse_list(&decode(value, "since")?)?, "since")?,
                "token" => set_once(&mut parsed.token, decode(value, "token")?, "token")?,
                "access_token" => {
                    set_once(&mut parsed.token, decode(value, "access_token")?, "access_token")?
                }
                key if is_last_event_id(key) => {
                    set_once(&mut parsed.last_event_id, decode(value, "lastEventId")?, "lastEventId")?
                }
                _ => {}
            }
        }
        parsed.envelope = match envelope.as_deref() {
            None => false,
            Some("json") => true,
            Some(_) => return Err(QueryError::Envelope),
        };
        parsed.positions = match positions.as_deref() {
            None => false,
            Some("true") if parsed.envelope => true,
            Some(_) => return Err(QueryError::Positions),
        };
        parsed.join_leave = match join_leave.as_deref() {
            None => false,
            Some("true") => true,
            Some(_) => return Err(QueryError::JoinLeave),
        };
        if let Some(since) = since {
            if since.len() != parsed.channels.len() {
                return Err(QueryError::SinceChannels);
            }
            parsed.since = since;
        }
        Ok(parsed)
    }
}

impl Since {
    /// Reads places as in the id of an event stream: separated by commas, empty where there is no position.
    fn parse_list(text: &str) -> Result<Vec<Option<Self>>, QueryError> {
        let place = |place: &str| (!place.is_empty()).then(|| Self::parse(place)).transpose();
        let places = text.split(',').map(place).collect::<Result<Vec<_>, _>>()?;
        if places.iter().all(Option::is_none) { Err(QueryError::Since) } else { Ok(places) }
    }

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
        Ok(Self { epoch: epoch.to_owned(), offset })
    }
}

impl QueryError {
    /// The parameter at fault.
    #[must_use]
    pub fn parameter(self) -> &'static str {
        match self {
            Self::Encoding { parameter } | Self::Repeated { parameter } => parameter,
            Self::Envelope => "envelope",
            Self::Positions => "positions",
            Self::JoinLeave => "join_leave",
            Self::Since | Self::SinceChannels => "since",
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
    if let Some(user) = envelope.user {
        out.extend_from_slice(b",\"user\":");
        push_str(user, out);
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
    begin_notice(channel, "gap", out);
    out.extend_from_slice(b"{\"reason\":");
    push_str(reason, out);
    out.push(b',');
    push_position(position, out);
    out.extend_from_slice(b"}}");
}

/// Appends the notice of where the client is in a channel that it is subscribed to, and whether what it missed follows.
pub fn encode_subscribed(channel: &str, position: Option<(&str, u64)>, recovered: bool, out: &mut Vec<u8>) {
    begin_notice(channel, "subscribed", out);
    out.push(b'{');
    push_position(position, out);
    out.extend_from_slice(if recovered { b",\"recovered\":true}}" } else { b",\"recovered\":false}}" });
}

/// Appends what an application says to the client that it lets in: JSON.
pub fn encode_connected(json: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"connected\":{\"data\":");
    out.extend_from_slice(json.as_bytes());
    out.extend_from_slice(b"}}");
}

/// Appends the notice that a subscription has ended, and why: a status as in HTTP, and a sentence.
pub fn encode_unsubscribed(channel: &str, code: u16, message: &str, out: &mut Vec<u8>) {
    begin_notice(channel, "unsubscribed", out);
    out.extend_from_slice(b"{\"code\":");
    push_u64(u64::from(code), out);
    out.extend_from_slice(b",\"message\":");
    push_str(message, out);
    out.extend_from_slice(b"}}");
}

/// Appends the notice that a slow reader missed `count` publications.
pub fn encode_dropped(channel: &str, count: u64, out: &mut Vec<u8>) {
    begin_notice(channel, "dropped", out);
    push_u64(count, out);
    out.push(b'}');
}

/// Appends the notice that a connection has joined; `connections`: how many its user has in the channel now.
pub fn encode_join(channel: &str, member: &Member<'_>, connections: u64, out: &mut Vec<u8>) {
    begin_notice(channel, "join", out);
    begin_member(member.connection, member.user, out);
    push_info(member.info, out);
    end_change(connections, out);
}

/// Appends the notice that a connection has left.
pub fn encode_leave(channel: &str, connection: &str, user: &str, connections: u64, out: &mut Vec<u8>) {
    begin_notice(channel, "leave", out);
    begin_member(connection, user, out);
    end_change(connections, out);
}

/// Appends `"members":[…],"count":N`. As many members are named as fit in `bytes_max`; `count` is of all.
pub fn push_members<'a>(
    members: impl Iterator<Item = Member<'a>>,
    count: usize,
    bytes_max: usize,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"\"members\":[");
    let begin = out.len();
    for (nth, member) in members.enumerate() {
        let before = out.len();
        if nth > 0 {
            out.push(b',');
        }
        begin_member(member.connection, member.user, out);
        push_info(member.info, out);
        out.push(b'}');
        if out.len() - begin > bytes_max {
            out.truncate(before);
            break;
        }
    }
    out.extend_from_slice(b"],\"count\":");
    push_u64(count as u64, out);
}

fn begin_notice(channel: &str, name: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"channel\":");
    push_str(channel, out);
    out.push(b',');
    push_str(name, out);
    out.push(b':');
}

fn begin_member(connection: &str, user: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"connection\":");
    push_str(connection, out);
    out.extend_from_slice(b",\"user\":");
    push_str(user, out);
}

/// What a token says of its user is JSON; if it is none after all, null.
fn push_info(info: Option<&str>, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"info\":");
    let value = info.and_then(|info| serde_json::from_str::<serde_json::Value>(info).ok());
    match info.zip(value) {
        Some((info, _)) if push_document(info, out) => {}
        Some((_, value)) => out.extend_from_slice(value.to_string().as_bytes()),
        None => out.extend_from_slice(b"null"),
    }
}

fn end_change(connections: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"connections\":");
    push_u64(connections, out);
    out.extend_from_slice(b"}}");
}

/// Polyfills write it as `lastEventId`, `lastEventID`, `Last-Event-ID` or `evs_last_event_id`.
fn is_last_event_id(key: &str) -> bool {
    let letters = key.strip_prefix("evs_").unwrap_or(key).bytes().filter(u8::is_ascii_alphanumeric);
    letters.map(|byte| byte.to_ascii_lowercase()).eq(*b"lasteventid")
}

fn decode(value: &str, parameter: &'static str) -> Result<String, QueryError> {
    form_decode(value).map(Cow::into_owned).map_err(|_| QueryError::Encoding { parameter })
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

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;

    use crate::json::DEPTH_MAX;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn query(text: &str) -> Result<Query, QueryError> {
        Query::parse(Some(text))
    }

    #[track_caller]
    fn check(envelope: &Envelope<'_>, expected: &str) {
        let mut out = Vec::new();
        encode_envelope(envelope, &mut out);
        assert_eq!(String::from_utf8(out).expect("UTF-8"), expected);
    }

    fn with_data(data: Data<'_>) -> Envelope<'_> {
        Envelope { channel: "a", position: None, event: None, user: None, data }
    }

    fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Value {
        let mut out = Vec::new();
        encode(&mut out);
        serde_json::from_slice(&out).expect("JSON")
    }

    #[test]
    fn the_last_event_id_has_many_names() {
        for key in ["lastEventId", "lastEventID", "last_event_id", "Last-Event-ID", "evs_last_event_id"] {
            let query = Query::parse(Some(&format!("channel=a&{key}=k3:5"))).expect("a query");
            assert_eq!(query.last_event_id.as_deref(), Some("k3:5"), "{key}");
        }
        assert_eq!(Query::parse(Some("eventId=1&last=2")), Ok(Query::default()));
        assert!(Query::parse(Some("lastEventId=1&last_event_id=2")).is_err());
    }

    #[test]
    fn queries() {
        assert_eq!(Query::parse(None), Ok(Query::default()));
        assert_eq!(query(""), Ok(Query::default()));
        let all =
            query("channel=a%2Fb&x=%zz&&since=k3f9:42&envelope=json&token=t%26t&=v&%zz=1").expect("good");
        assert_eq!(all.channels, ["a/b"]);
        assert!(all.envelope);
        let place = |offset| Some(Since { epoch: "k3f9".to_owned(), offset });
        assert_eq!(all.since, [place(42)]);
        let many = query("channel=a&channel=b&channel=c&since=k3f9:1,,k3f9:3").expect("good");
        assert_eq!(many.since, [place(1), None, place(3)]);
        assert_eq!(all.token.as_deref(), Some("t&t"));
        assert_eq!(
            query("channel=b&channel=a&channel=b&channel").expect("good").channels,
            ["b", "a", "b", ""]
        );
        assert_eq!(query("access_token=x+y").expect("good").token.as_deref(), Some("x y"));
    }

    #[test]
    fn bad_queries_name_the_parameter() {
        let cases: &[(&str, QueryError)] = &[
            ("channel=%zz", QueryError::Encoding { parameter: "channel" }),
            ("token=%ff", QueryError::Encoding { parameter: "token" }),
            ("envelope=xml", QueryError::Envelope),
            ("envelope", QueryError::Envelope),
            ("envelope=json&positions=1", QueryError::Positions),
            ("positions=true", QueryError::Positions),
            ("join_leave=1", QueryError::JoinLeave),
            ("envelope=json&envelope=json", QueryError::Repeated { parameter: "envelope" }),
            ("token=a&access_token=b", QueryError::Repeated { parameter: "access_token" }),
            ("channel=a&since=", QueryError::Since),
            ("channel=a&since=42", QueryError::Since),
            ("channel=a&since=:1", QueryError::Since),
            ("channel=a&since=e:", QueryError::Since),
            ("channel=a&since=e:+1", QueryError::Since),
            ("channel=a&since=e:%2B1", QueryError::Since),
            ("channel=a&since=e:-1", QueryError::Since),
            ("channel=a&since=e:1:2", QueryError::Since),
            ("channel=a&since=e:18446744073709551616", QueryError::Since),
            ("since=e:1", QueryError::SinceChannels),
            ("channel=a&channel=b&since=e:1", QueryError::SinceChannels),
            ("channel=a&since=e:1,e:2", QueryError::SinceChannels),
            ("channel=a&channel=b&since=,", QueryError::Since),
            ("channel=a&channel=b&since=e:1,2", QueryError::Since),
        ];
        for (text, error) in cases {
            assert_eq!(query(text), Err(*error), "{text}");
            assert!(error.to_string().starts_with(error.parameter()), "{error}");
        }
    }

    #[test]
    fn envelopes() {
        let full = Envelope {
            channel: "room:\"1\"",
            position: Some(("k3f9", u64::MAX)),
            event: Some("new\nline"),
            user: Some("u\"1"),
            data: Data::Text(r#"{"x": [1, 2]}"#),
        };
        let expected = r#"{"channel":"room:\"1\"","epoch":"k3f9","offset":18446744073709551615,"event":"new\nline","user":"u\"1","data":{"x": [1, 2]}}"#;
        check(&full, expected);
        let cases: &[(Data<'_>, &str)] = &[
            (Data::Text("plain \"text\""), r#""plain \"text\"""#),
            (Data::Text(""), r#""""#),
            (Data::Text("42"), r#""42""#),
            (Data::Text("null"), r#""null""#),
            (Data::Text(r#""quoted""#), r#""\"quoted\"""#),
            (Data::Text("[]"), "[]"),
            (Data::Text("\r\n[1,\r\n2]\n"), "[1,  2]"),
            (Data::Text("{\"a\":\"\n\"}"), r#""{\"a\":\"\n\"}""#),
            (Data::Text("{} {}"), r#""{} {}""#),
            (Data::Text("{\"a\":1,}"), r#""{\"a\":1,}""#),
            (Data::Text("{"), r#""{""#),
            (Data::Text("\u{a0}{}"), "\"\u{a0}{}\""),
            (Data::Binary(b""), r#""","encoding":"base64""#),
            (Data::Binary(&[0, 255, 16, 1]), r#""AP8QAQ==","encoding":"base64""#),
        ];
        for (data, expected) in cases {
            let expected = format!(r#"{{"channel":"a","epoch":null,"offset":null,"data":{expected}}}"#);
            check(&with_data(*data), &expected);
        }
    }

    #[test]
    fn documents_nested_too_deep_are_text() {
        let nest = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let is_text = |document: &str| {
            encoded(|out| encode_envelope(&with_data(Data::Text(document)), out))["data"].is_string()
        };
        assert!(!is_text(&nest(DEPTH_MAX)));
        assert!(is_text(&nest(DEPTH_MAX + 1)));
        assert!(is_text(&nest(100_000)));
        assert!(!is_text(&format!("[\"{}\"]", "[\\\"".repeat(1_000))), "brackets in a string are no nesting");
    }

    #[test]
    fn notices() {
        let gap = json!({"channel": "a", "gap": {"reason": "overflow", "epoch": "e", "offset": 7}});
        assert_eq!(encoded(|out| encode_gap("a", "overflow", Some(("e", 7)), out)), gap);
        let gap = json!({"channel": "a", "gap": {"reason": "reset", "epoch": null, "offset": null}});
        assert_eq!(encoded(|out| encode_gap("a", "reset", None, out)), gap);
        assert_eq!(encoded(|out| encode_dropped("a", 3, out)), json!({"channel": "a", "dropped": 3}));
        let member = |info| Member { connection: "n.1", user: "ü", info };
        let join = json!({"connection": "n.1", "user": "ü", "info": {"a": [1]}, "connections": 2});
        let info = Some("{\"a\":\n[1]}");
        assert_eq!(
            encoded(|out| encode_join("a", &member(info), 2, out)),
            json!({"channel": "a", "join": join})
        );
        let leave = json!({"connection": "n.1", "user": "ü", "connections": 0});
        assert_eq!(
            encoded(|out| encode_leave("a", "n.1", "ü", 0, out)),
            json!({"channel": "a", "leave": leave})
        );
        let list = encoded(|out| {
            out.push(b'{');
            push_members([None, Some("7"), Some("no JSON")].map(member).into_iter(), 9, 1024, out);
            out.push(b'}');
        });
        let infos: Vec<_> =
            list["members"].as_array().expect("a list").iter().map(|one| &one["info"]).collect();
        assert_eq!((infos, &list["count"]), (vec![&Value::Null, &json!(7), &Value::Null], &json!(9)));

        let bounded = encoded(|out| {
            out.push(b'{');
            push_members((0..9).map(|_| member(None)), 9, 100, out);
            out.push(b'}');
        });
        let named = bounded["members"].as_array().expect("a list").len();
        assert_eq!((named, &bounded["count"]), (2, &json!(9)), "one has 46 bytes or so");
    }

    proptest! {
        #[test]
        fn envelopes_read_back(
            channel in any::<String>(), event in any::<Option<String>>(), text in any::<String>(),
            bytes in prop::collection::vec(any::<u8>(), 0..50), offset: u64,
        ) {
            let text_envelope =
                Envelope { channel: &channel, position: Some(("e", offset)), event: event.as_deref(), user: None, data: Data::Text(&text) };
            let value = encoded(|out| encode_envelope(&text_envelope, out));
            prop_assert_eq!(&value["channel"], &json!(channel));
            prop_assert_eq!(&value["offset"], &json!(offset));
            prop_assert_eq!(value.get("event").cloned(), event.map(Value::from));
            if value["data"].is_string() {
                prop_assert_eq!(&value["data"], &json!(text));
            }
            let value = encoded(|out| encode_envelope(&with_data(Data::Binary(&bytes)), out));
            let decoded = base64::engine::general_purpose::STANDARD.decode(value["data"].as_str().expect("base64"));
            prop_assert_eq!(decoded.expect("base64"), bytes);
        }

        #[test]
        fn nothing_breaks_a_line(pieces in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", "\"", "\\", "\n", "\r", "\r\n", ":", ",", "1", "a", " ", "\u{0}", "é", "\"k\":", "[1]",
        ]), 0..12)) {
            let mut out = Vec::new();
            encode_envelope(&with_data(Data::Text(&pieces.concat())), &mut out);
            prop_assert!(out.iter().all(|byte| *byte >= 0x20));
            prop_assert!(serde_json::from_slice::<Value>(&out).is_ok());
        }
    }
}
