//! What a client with `envelope=json` asks for on its open connection, and the answers.
//!
//! A text with `data` is a publication, as it always was ([`ClientPublication`]). One without is a command: the member
//! that names it says which.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{ClientPublication, Since, push_position};
use crate::json::{JsonValue, fault, push_str, push_u64};

/// A client's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientText<'a> {
    Publication(ClientPublication<'a>),
    Command(Command<'a>),
}

/// Something that is answered. `id` comes back with the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command<'a> {
    pub id: Option<u64>,
    pub kind: CommandKind<'a>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandKind<'a> {
    /// `token`, here and below: may stand in for that of the connection, for this channel.
    Subscribe {
        channel: Cow<'a, str>,
        since: Option<Since>,
        token: Option<Cow<'a, str>>,
        /// The client is told who is in the channel, and who joins and leaves.
        join_leave: bool,
    },
    Unsubscribe {
        channel: Cow<'a, str>,
    },
    Publish(ClientPublication<'a>),
    Presence {
        channel: Cow<'a, str>,
        token: Option<Cow<'a, str>>,
    },
    History {
        channel: Cow<'a, str>,
        limit: Option<usize>,
        since: Option<Since>,
        token: Option<Cow<'a, str>>,
    },
    /// The connection's token from now on.
    Token(Cow<'a, str>),
    /// For the application: JSON as it was written.
    Message(&'a str),
    Ping,
}

/// A client's text that is neither a publication nor a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct ClientTextError {
    /// As far as it could be read.
    pub id: Option<u64>,
    /// It names no command: it was meant to be published, or is nothing.
    pub is_publication: bool,
    #[source]
    pub problem: ClientTextProblem,
}

/// What is wrong with a client's text, where, and what is expected there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientTextProblem {
    #[error("expected one JSON object such as {{\"channel\":\"A\",\"data\":1}}")]
    Object,
    #[error("line {line}, column {column}: {fault}")]
    Json { line: usize, column: usize, fault: Cow<'static, str> },
    #[error("{0}: it is there twice; give each member once")]
    Repeated(&'static str),
    #[error("{member}: expected {expected}")]
    Member { member: &'static str, expected: &'static str },
    #[error(
        "nothing is asked for: give data to publish, or one of subscribe, unsubscribe, publish, presence, history, \
         message, token, ping"
    )]
    Nothing,
    #[error("one command at a time: {0} and {1} are both there")]
    Two(&'static str, &'static str),
}

/// The members of a text that mean something.
const TEXT: [&str; 14] = [
    "subscribe",
    "unsubscribe",
    "publish",
    "presence",
    "history",
    "message",
    "ping",
    "token",
    "since",
    "join_leave",
    "id",
    "data",
    "channel",
    "event",
];
/// So many of them name a command.
const COMMANDS: usize = 8;
const PUBLICATION: [&str; 3] = ["channel", "event", "data"];
const HISTORY: [&str; 3] = ["channel", "limit", "since"];

const A_CHANNEL: &str = "a string, the name of a channel";
const AN_OBJECT: &str = "an object such as {\"channel\":\"A\",\"data\":1}";
const A_POSITION: &str = "EPOCH:OFFSET, for example k3f9:42";

/// The members of an object, each as it was written; `null` is one that is not there.
struct Members<'a, const N: usize> {
    names: &'static [&'static str; N],
    values: [Option<&'a RawValue>; N],
    repeated: Option<&'static str>,
}

/// Reads what a client sent.
///
/// # Errors
/// [`ClientTextError`]: what to tell the client, and its `id` where that could be read.
pub fn parse_client_text(text: &str) -> Result<ClientText<'_>, ClientTextError> {
    let error = |id, is_publication| move |problem| ClientTextError { id, is_publication, problem };
    let members = Members::read(text, &TEXT).map_err(error(None, true))?;
    let is_command = TEXT[..COMMANDS].iter().any(|name| members.get(name).is_some());
    let data = members.values[members.at("data")].map(RawValue::get);
    if data.is_some_and(|data| data != "null" || !is_command) {
        return members.publication().map(ClientText::Publication).map_err(error(None, true));
    }
    let id = match members.get("id").map(|id| value::<u64>("id", id, "a whole number from 0 to 2^64 - 1")) {
        None => None,
        Some(Ok(id)) => Some(id),
        Some(Err(problem)) => return Err(error(None, false)(problem)),
    };
    let kind = members.once().and_then(|()| members.command()).map_err(error(id, !is_command))?;
    Ok(ClientText::Command(Command { id, kind }))
}

/// Reads `{"channel":"A"?, "data":any, "event":"E"?}`. Unknown members are ignored, missing `data` is an error.
///
/// # Errors
/// [`ClientTextProblem`]: what to tell the client.
pub fn parse_client_publication(text: &str) -> Result<ClientPublication<'_>, ClientTextProblem> {
    Members::read(text, &PUBLICATION)?.publication()
}

impl<'a, const N: usize> Members<'a, N> {
    fn read(text: &'a str, names: &'static [&'static str; N]) -> Result<Self, ClientTextProblem> {
        if !text.trim_start().starts_with('{') {
            return Err(ClientTextProblem::Object);
        }
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let empty = Self { names, values: [None; N], repeated: None };
        let read = empty.deserialize(&mut deserializer).and_then(|members| {
            deserializer.end()?;
            Ok(members)
        });
        read.map_err(|error| ClientTextProblem::Json {
            line: error.line(),
            column: error.column(),
            fault: fault(&error),
        })
    }

    fn at(&self, name: &str) -> usize {
        self.names.iter().position(|own| *own == name).unwrap_or(N)
    }

    fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.values.get(self.at(name)).copied().flatten().filter(|value| value.get() != "null")
    }

    fn text(
        &self,
        name: &'static str,
        expected: &'static str,
    ) -> Result<Option<Cow<'a, str>>, ClientTextProblem> {
        self.get(name).map(|value| text(name, value, expected)).transpose()
    }

    fn since(&self) -> Result<Option<Since>, ClientTextProblem> {
        let wrong = ClientTextProblem::Member { member: "since", expected: A_POSITION };
        let since = self.text("since", A_POSITION)?;
        since.map(|since| Since::parse(&since).map_err(|_| wrong)).transpose()
    }

    fn once(&self) -> Result<(), ClientTextProblem> {
        self.repeated.map_or(Ok(()), |name| Err(ClientTextProblem::Repeated(name)))
    }

    fn publication(&self) -> Result<ClientPublication<'a>, ClientTextProblem> {
        self.once()?;
        let expected = "what is to be published: any JSON, in which every string is text";
        let missing = ClientTextProblem::Member { member: "data", expected };
        let data = self.values.get(self.at("data")).copied().flatten().ok_or_else(|| missing.clone())?;
        let data = serde_json::from_str::<JsonValue<'a>>(data.get()).map_err(|_| missing)?;
        Ok(ClientPublication {
            channel: self.text("channel", A_CHANNEL)?,
            event: self.text("event", "a string, the name of an event")?,
            data: data.into_text(),
        })
    }

    fn command(&self) -> Result<CommandKind<'a>, ClientTextProblem> {
        let takes_token = ["subscribe", "presence", "history"].iter().any(|name| self.get(name).is_some());
        let token = || self.text("token", "a string, a token");
        // Beside a command that names a channel, the token is for that one.
        let names = TEXT[..COMMANDS].iter().filter(|name| **name != "token" || !takes_token);
        let mut there = names.filter_map(|name| Some((*name, self.get(name)?)));
        let Some((name, value)) = there.next() else { return Err(ClientTextProblem::Nothing) };
        if let Some((other, _)) = there.next() {
            return Err(ClientTextProblem::Two(name, other));
        }
        let channel = || text(name, value, A_CHANNEL);
        Ok(match name {
            "subscribe" => {
                let join_leave = self.get("join_leave").map(|value| flag("join_leave", value)).transpose()?;
                let join_leave = join_leave.unwrap_or_default();
                CommandKind::Subscribe {
                    channel: channel()?,
                    since: self.since()?,
                    token: token()?,
                    join_leave,
                }
            }
            "unsubscribe" => CommandKind::Unsubscribe { channel: channel()? },
            "publish" => CommandKind::Publish(object(name, value, &PUBLICATION)?.publication()?),
            "presence" => CommandKind::Presence { channel: channel()?, token: token()? },
            "history" => {
                let history = object(name, value, &HISTORY)?;
                let limit = history
                    .get("limit")
                    .map(|limit| self::value("limit", limit, "a whole number, 0 or more"));
                let missing = ClientTextProblem::Member { member: "history.channel", expected: A_CHANNEL };
                CommandKind::History {
                    channel: history.text("channel", A_CHANNEL)?.ok_or(missing)?,
                    limit: limit.transpose()?,
                    since: history.since()?,
                    token: token()?,
                }
            }
            "message" => CommandKind::Message(value.get()),
            "token" => CommandKind::Token(text(name, value, "a string, a token")?),
            _ if value.get() == "true" => CommandKind::Ping,
            _ => return Err(ClientTextProblem::Member { member: "ping", expected: "true" }),
        })
    }
}

impl<'de: 'a, 'a, const N: usize> DeserializeSeed<'de> for Members<'a, N> {
    type Value = Self;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de: 'a, 'a, const N: usize> Visitor<'de> for Members<'a, N> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some(Text(name)) = map.next_key()? {
            let at = self.at(&name);
            if at == N {
                map.next_value::<IgnoredAny>()?;
            } else if self.values[at].replace(map.next_value()?).is_some() {
                self.repeated.get_or_insert(self.names[at]);
            }
        }
        Ok(self)
    }
}

/// A string that borrows when it holds no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

fn value<'a, T: Deserialize<'a>>(
    member: &'static str,
    value: &'a RawValue,
    expected: &'static str,
) -> Result<T, ClientTextProblem> {
    serde_json::from_str(value.get()).map_err(|_| ClientTextProblem::Member { member, expected })
}

fn text<'a>(
    member: &'static str,
    value: &'a RawValue,
    expected: &'static str,
) -> Result<Cow<'a, str>, ClientTextProblem> {
    self::value::<Text<'a>>(member, value, expected).map(|text| text.0)
}

fn flag(member: &'static str, value: &RawValue) -> Result<bool, ClientTextProblem> {
    self::value(member, value, "true or false")
}

/// An object inside of another one.
fn object<'a, const N: usize>(
    member: &'static str,
    value: &'a RawValue,
    names: &'static [&'static str; N],
) -> Result<Members<'a, N>, ClientTextProblem> {
    let members = Members::read(value.get(), names);
    let members = members.map_err(|_| ClientTextProblem::Member { member, expected: AN_OBJECT })?;
    members.once().map(|()| members)
}

/// Appends `{"ok":{…},"id":N}`; `body` writes the members of the object.
pub fn encode_ok(id: Option<u64>, body: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"ok\":{");
    body(out);
    out.push(b'}');
    push_id(id, out);
    out.push(b'}');
}

/// Appends `{"ok":…,"id":N}` with the JSON that an application has answered.
pub fn encode_answer(id: Option<u64>, json: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"ok\":");
    out.extend_from_slice(json.as_bytes());
    push_id(id, out);
    out.push(b'}');
}

/// Appends the answer to something that could not be done; without `id`, to something that was no command.
pub fn encode_error(id: Option<u64>, code: u16, message: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"error\":{\"code\":");
    push_u64(u64::from(code), out);
    out.extend_from_slice(b",\"message\":");
    push_str(message, out);
    out.push(b'}');
    push_id(id, out);
    out.push(b'}');
}

/// Appends the members of a place in a channel.
pub fn push_place(channel: &str, position: Option<(&str, u64)>, out: &mut Vec<u8>) {
    push_channel(channel, out);
    out.push(b',');
    push_position(position, out);
}

/// Appends the member `channel`.
pub fn push_channel(channel: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"\"channel\":");
    push_str(channel, out);
}

/// Appends a member that is true or false.
pub fn push_flag(name: &str, value: bool, out: &mut Vec<u8>) {
    out.push(b',');
    push_str(name, out);
    out.extend_from_slice(if value { b":true" } else { b":false" });
}

fn push_id(id: Option<u64>, out: &mut Vec<u8>) {
    if let Some(id) = id {
        out.extend_from_slice(b",\"id\":");
        push_u64(id, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Command<'_>) {
        assert_eq!(parse_client_text(text).ok(), Some(ClientText::Command(expect)), "{text}");
    }

    #[track_caller]
    fn check_error(text: &str, id: Option<u64>, expect: &str) {
        let error = parse_client_text(text).expect_err(text);
        assert_eq!((error.id, &*error.to_string()), (id, expect), "{text}");
    }

    fn since(epoch: &str, offset: u64) -> Option<Since> {
        Some(Since { epoch: epoch.to_owned(), offset })
    }

    #[test]
    fn commands() {
        let subscribe =
            |since, token| CommandKind::Subscribe { channel: "a".into(), since, token, join_leave: false };
        let id = Some(7);
        check(r#"{"subscribe":"a","id":7}"#, Command { id, kind: subscribe(None, None) });
        let text = r#"{"id":7,"token":"t","since":"k3:5","subscribe":"\u0061"}"#;
        check(text, Command { id, kind: subscribe(since("k3", 5), Some("t".into())) });
        let (channel, join_leave) = ("a".into(), true);
        let kind = CommandKind::Subscribe { channel, since: None, token: None, join_leave };
        check(r#"{"subscribe":"a","join_leave":true,"id":7}"#, Command { id, kind });
        let kind = CommandKind::Unsubscribe { channel: "a".into() };
        check(r#"{"unsubscribe":"a"}"#, Command { id: None, kind });
        let publication = ClientPublication { channel: Some("a".into()), event: None, data: "[1]".into() };
        let kind = CommandKind::Publish(publication);
        check(r#"{"publish":{"channel":"a","data":[1]},"id":7}"#, Command { id, kind });
        check(
            r#"{"presence":"a","id":7}"#,
            Command { id, kind: CommandKind::Presence { channel: "a".into(), token: None } },
        );
        let kind = CommandKind::Presence { channel: "a".into(), token: Some("t".into()) };
        check(r#"{"presence":"a","token":"t","id":7}"#, Command { id, kind });
        let history =
            |token| CommandKind::History { channel: "a".into(), limit: Some(3), since: since("e", 0), token };
        let text = r#"{"history":{"channel":"a","limit":3,"since":"e:0"},"id":7}"#;
        check(text, Command { id, kind: history(None) });
        let text = r#"{"history":{"channel":"a","limit":3,"since":"e:0"},"token":"t","id":7}"#;
        check(text, Command { id, kind: history(Some("t".into())) });
        check(r#"{"message":[1],"id":7}"#, Command { id, kind: CommandKind::Message("[1]") });
        check(r#"{"token":"t","id":7}"#, Command { id, kind: CommandKind::Token("t".into()) });
        check(r#"{"ping":true,"id":0}"#, Command { id: Some(0), kind: CommandKind::Ping });
    }

    #[test]
    fn what_has_data_is_a_publication_as_it_was() {
        for text in [
            r#"{"channel":"a","data":1}"#,
            r#"{"data":"x","subscribe":"a","id":"not a number"}"#,
            r#"{"data":{},"ping":3}"#,
        ] {
            let expect = parse_client_publication(text).map(ClientText::Publication).expect("a publication");
            assert_eq!(parse_client_text(text).ok(), Some(expect), "{text}");
        }
    }

    #[test]
    fn what_is_neither_says_why() {
        let nothing = "nothing is asked for: give data to publish, or one of subscribe, unsubscribe, publish, presence, \
                       history, message, token, ping";
        check_error("{}", None, nothing);
        check_error(r#"{"id":7}"#, Some(7), nothing);
        check_error("[1]", None, r#"expected one JSON object such as {"channel":"A","data":1}"#);
        check_error("", None, r#"expected one JSON object such as {"channel":"A","data":1}"#);
        check_error(r#"{"id":7"#, None, "line 1, column 7: the JSON ends before it is complete");
        let no_json = "line 2, column 11: from here on it is no JSON, or a string in it is no text";
        check_error("{\"id\":7,\n\"channel\":x}", None, no_json);
        check_error(
            r#"{"data":1} x"#,
            None,
            "line 1, column 12: from here on it is no JSON, or a string in it is no text",
        );
        let twice = "subscribe: it is there twice; give each member once";
        check_error(r#"{"subscribe":"a","subscribe":"b","id":7}"#, Some(7), twice);
        check_error(
            r#"{"id":7,"ping":true,"id":8}"#,
            Some(8),
            "id: it is there twice; give each member once",
        );
        check_error(r#"{"data":1,"data":2}"#, None, "data: it is there twice; give each member once");
        let twice = "channel: it is there twice; give each member once";
        check_error(r#"{"history":{"channel":"a","channel":"b"},"id":7}"#, Some(7), twice);
        check_error(r#"{"ping":1,"id":7}"#, Some(7), "ping: expected true");
        check_error(
            r#"{"subscribe":"a","unsubscribe":"b","id":7}"#,
            Some(7),
            "one command at a time: subscribe and unsubscribe are both there",
        );
        let since = "since: expected EPOCH:OFFSET, for example k3f9:42";
        check_error(r#"{"subscribe":"a","since":"5","id":7}"#, Some(7), since);
        check_error(r#"{"subscribe":"a","since":5,"id":7}"#, Some(7), since);
        let channel = "subscribe: expected a string, the name of a channel";
        check_error(r#"{"subscribe":1,"id":7}"#, Some(7), channel);
        check_error(
            r#"{"subscribe":"a","join_leave":1,"id":7}"#,
            Some(7),
            "join_leave: expected true or false",
        );
        check_error(r#"{"ping":true,"id":-1}"#, None, "id: expected a whole number from 0 to 2^64 - 1");
        check_error(r#"{"channel":5,"data":1}"#, None, "channel: expected a string, the name of a channel");
        let data = "data: expected what is to be published: any JSON, in which every string is text";
        check_error(r#"{"publish":{"channel":"a"},"id":7}"#, Some(7), data);
        let object = r#"publish: expected an object such as {"channel":"A","data":1}"#;
        check_error(r#"{"publish":1,"id":7}"#, Some(7), object);
    }

    #[test]
    fn client_publications() {
        type Fields = (Option<&'static str>, Option<&'static str>, &'static str);
        let cases: &[(&str, Fields)] = &[
            (r#"{"data":"text"}"#, (None, None, "text")),
            (r#"{"channel":"a","data":{"x": 1},"event":"e"}"#, (Some("a"), Some("e"), r#"{"x": 1}"#)),
            (r#"{"data":"a\n\"b\"\u00e9","channel":"\u0061"}"#, (Some("a"), None, "a\n\"b\"é")),
            (r#" {"data": null, "channel": null, "more": [1]} "#, (None, None, "null")),
            (r#"{"data":12.50}"#, (None, None, "12.50")),
            (r#"{"data":[ 1 ]}"#, (None, None, "[ 1 ]")),
        ];
        for (text, (channel, event, data)) in cases {
            let publication = parse_client_publication(text).expect(text);
            let actual = (publication.channel.as_deref(), publication.event.as_deref(), &*publication.data);
            assert_eq!(actual, (*channel, *event, *data), "{text}");
        }
        let text = r#"{"channel":"a","data":"plain"}"#;
        let publication = parse_client_publication(text).expect("good");
        assert!(matches!(publication.data, Cow::Borrowed(_)), "no copy without escapes");
        assert!(matches!(publication.channel, Some(Cow::Borrowed(_))));
        assert!(parse_client_publication(r#"{"data":"\ud800"}"#).is_err(), "half of a character");
    }

    #[test]
    fn answers() {
        let mut out = Vec::new();
        encode_ok(Some(7), |out| push_place("a", Some(("e", 3)), out), &mut out);
        assert_eq!(out, br#"{"ok":{"channel":"a","epoch":"e","offset":3},"id":7}"#);
        out.clear();
        encode_error(None, 403, "no", &mut out);
        assert_eq!(out, br#"{"error":{"code":403,"message":"no"}}"#);
    }
}
