//! What a client with `envelope=json` asks for on its open connection, and the answers.
//!
//! A text with `data` is a publication, as it always was ([`ClientPublication`]). One without is a command: the member
//! that names it says which.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    ClientPublication, ClientPublicationError, Since, Text, parse_client_publication, push_position,
};
use crate::json::{push_str, push_u64};

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
    Ping,
}

/// A client's text that is neither a publication nor a command.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub struct ClientTextError {
    /// As far as it could be read.
    pub id: Option<u64>,
    #[source]
    pub problem: ClientTextProblem,
}

#[derive(Debug, thiserror::Error)]
pub enum ClientTextProblem {
    #[error("malformed publication: {0}")]
    Publication(#[from] ClientPublicationError),
    #[error("{member}: {error}")]
    Member {
        member: &'static str,
        #[source]
        error: serde_json::Error,
    },
    #[error("since: expected EPOCH:OFFSET, for example k3f9:42")]
    Since,
    #[error("one command at a time: {0} and {1} are both there")]
    Two(&'static str, &'static str),
    #[error("ping: expected true")]
    Ping,
}

/// The members that make a command, in no order.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Members<'a> {
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    subscribe: Option<&'a RawValue>,
    #[serde(borrow)]
    unsubscribe: Option<&'a RawValue>,
    #[serde(borrow)]
    publish: Option<&'a RawValue>,
    #[serde(borrow)]
    presence: Option<&'a RawValue>,
    #[serde(borrow)]
    history: Option<&'a RawValue>,
    #[serde(borrow)]
    token: Option<&'a RawValue>,
    #[serde(borrow)]
    ping: Option<&'a RawValue>,
    #[serde(borrow)]
    since: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object such as {\"channel\":\"A\"}")]
struct HistoryMembers<'a> {
    #[serde(borrow)]
    channel: Text<'a>,
    limit: Option<usize>,
    #[serde(borrow)]
    since: Option<Text<'a>>,
}

/// Reads what a client sent.
///
/// # Errors
/// [`ClientTextError`]: what to tell the client, and its `id` where that could be read.
pub fn parse_client_text(text: &str) -> Result<ClientText<'_>, ClientTextError> {
    let publication = || {
        let parsed = parse_client_publication(text).map(ClientText::Publication);
        parsed.map_err(|error| ClientTextError { id: None, problem: error.into() })
    };
    // Arrays are no form of ours, and whatever cannot be read is told as it always was.
    let Ok(members) = serde_json::from_str::<Members<'_>>(text) else { return publication() };
    if members.data.is_some() || text.trim_start().starts_with('[') {
        return publication();
    }
    let id = match members.id.map(|id| member::<u64>("id", id)) {
        None => None,
        Some(Ok(id)) => Some(id),
        Some(Err(problem)) => return Err(ClientTextError { id: None, problem }),
    };
    match members.command() {
        Ok(Some(kind)) => Ok(ClientText::Command(Command { id, kind })),
        Ok(None) => publication().map_err(|error| ClientTextError { id, ..error }),
        Err(problem) => Err(ClientTextError { id, problem }),
    }
}

impl<'a> Members<'a> {
    fn command(&self) -> Result<Option<CommandKind<'a>>, ClientTextProblem> {
        let takes_token = [self.subscribe, self.presence, self.history].iter().any(Option::is_some);
        let token = || self.token.map(|token| text("token", token)).transpose();
        let named = [
            ("subscribe", self.subscribe),
            ("unsubscribe", self.unsubscribe),
            ("publish", self.publish),
            ("presence", self.presence),
            ("history", self.history),
            ("ping", self.ping),
            // Beside a command that names a channel it is for that one.
            ("token", self.token.filter(|_| !takes_token)),
        ];
        let mut there = named.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let Some((name, value)) = there.next() else { return Ok(None) };
        if let Some((other, _)) = there.next() {
            return Err(ClientTextProblem::Two(name, other));
        }
        Ok(Some(match name {
            "subscribe" => CommandKind::Subscribe {
                channel: text(name, value)?,
                since: self.since.map(|since| position(&text("since", since)?)).transpose()?,
                token: token()?,
            },
            "unsubscribe" => CommandKind::Unsubscribe { channel: text(name, value)? },
            "publish" => CommandKind::Publish(parse_client_publication(value.get())?),
            "presence" => CommandKind::Presence { channel: text(name, value)?, token: token()? },
            "history" => {
                let HistoryMembers { channel, limit, since } = member(name, value)?;
                let since = since.map(|since| position(&since.0)).transpose()?;
                CommandKind::History { channel: channel.0, limit, since, token: token()? }
            }
            "token" => CommandKind::Token(text(name, value)?),
            _ if value.get() == "true" => CommandKind::Ping,
            _ => return Err(ClientTextProblem::Ping),
        }))
    }
}

fn member<'a, T: Deserialize<'a>>(member: &'static str, value: &'a RawValue) -> Result<T, ClientTextProblem> {
    serde_json::from_str(value.get()).map_err(|error| ClientTextProblem::Member { member, error })
}

fn text<'a>(name: &'static str, value: &'a RawValue) -> Result<Cow<'a, str>, ClientTextProblem> {
    member::<Text<'a>>(name, value).map(|text| text.0)
}

fn position(text: &str) -> Result<Since, ClientTextProblem> {
    Since::parse(text).map_err(|_| ClientTextProblem::Since)
}

/// Appends `{"ok":{…},"id":N}`; `body` writes the members of the object.
pub fn encode_ok(id: Option<u64>, body: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"ok\":{");
    body(out);
    out.push(b'}');
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
        let subscribe = |since, token| CommandKind::Subscribe { channel: "a".into(), since, token };
        let id = Some(7);
        check(r#"{"subscribe":"a","id":7}"#, Command { id, kind: subscribe(None, None) });
        let text = r#"{"id":7,"token":"t","since":"k3:5","subscribe":"\u0061"}"#;
        check(text, Command { id, kind: subscribe(since("k3", 5), Some("t".into())) });
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
        let missing = "malformed publication: missing field `data` at line 1 column 2";
        check_error("{}", None, missing);
        check_error(r#"{"id":7}"#, Some(7), "malformed publication: missing field `data` at line 1 column 8");
        check_error(
            "[1]",
            None,
            r#"malformed publication: expected a JSON object such as {"channel":"A","data":1}"#,
        );
        check_error(r#"{"ping":1,"id":7}"#, Some(7), "ping: expected true");
        check_error(
            r#"{"subscribe":"a","unsubscribe":"b","id":7}"#,
            Some(7),
            "one command at a time: subscribe and unsubscribe are both there",
        );
        check_error(
            r#"{"subscribe":"a","since":"5","id":7}"#,
            Some(7),
            "since: expected EPOCH:OFFSET, for example k3f9:42",
        );
        check_error(
            r#"{"subscribe":1,"id":7}"#,
            Some(7),
            "subscribe: invalid type: integer `1`, expected a string at line 1 column 1",
        );
        check_error(
            r#"{"ping":true,"id":-1}"#,
            None,
            "id: invalid value: integer `-1`, expected u64 at line 1 column 2",
        );
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
