//! What clients are told: each function appends the text of one message. `data` is a JSON string that holds JSON, but
//! for `pusher:error`, whose data is an object.

use super::Code;
use crate::json::{push_str, push_u64};

/// The name of an event that was published without one.
pub const EVENT_UNNAMED: &str = "message";

/// The name of an event whose payload is binary and that has no other: its data is base64.
pub const EVENT_BINARY: &str = "binary";

/// A publication as subscribers see it.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    pub channel: &'a str,
    pub event: &'a str,
    pub data: &'a str,
    /// Who sent it, on presence channels.
    pub user_id: Option<&'a str>,
}

/// A subscription that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscriptionError<'a> {
    pub kind: ErrorKind,
    pub message: &'a str,
}

/// The `type` and `status` of a refused subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The signature is not good.
    Auth,
    /// The name or the data is not what it has to be.
    Request,
    /// There are as many as there may be.
    Limit,
    /// It cannot be done now.
    Unavailable,
}

impl ErrorKind {
    fn answer(self) -> (&'static str, u16) {
        match self {
            Self::Auth => ("AuthError", 401),
            Self::Request => ("RequestError", 400),
            Self::Limit => ("LimitReached", 403),
            Self::Unavailable => ("ServerError", 503),
        }
    }
}

pub fn established(socket_id: &str, activity_timeout_s: u64, out: &mut Vec<u8>) {
    message("pusher:connection_established", None, out, |data| {
        data.extend_from_slice(b"{\"socket_id\":");
        push_str(socket_id, data);
        data.extend_from_slice(b",\"activity_timeout\":");
        push_u64(activity_timeout_s, data);
        data.push(b'}');
    });
}

pub fn pong(out: &mut Vec<u8>) {
    message("pusher:pong", None, out, empty);
}

/// An error; `channel` names the one it is about.
pub fn error(code: Option<Code>, text: &str, channel: Option<&str>, out: &mut Vec<u8>) {
    head("pusher:error", channel, out);
    out.extend_from_slice(b"{\"code\":");
    match code {
        Some(code) => push_u64(u64::from(code.0), out),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"message\":");
    push_str(text, out);
    out.extend_from_slice(b"}}");
}

pub fn subscription_succeeded(channel: &str, out: &mut Vec<u8>) {
    message("pusher_internal:subscription_succeeded", Some(channel), out, empty);
}

/// The same for a presence channel, with everyone who is there: user and JSON text of the user's info.
pub fn presence_succeeded<'a>(
    channel: &str,
    members: impl ExactSizeIterator<Item = (&'a str, Option<&'a str>)> + Clone,
    out: &mut Vec<u8>,
) {
    message("pusher_internal:subscription_succeeded", Some(channel), out, |data| {
        data.extend_from_slice(b"{\"presence\":{\"ids\":[");
        separated(members.clone(), data, |(user, _), data| push_str(user, data));
        data.extend_from_slice(b"],\"hash\":{");
        separated(members.clone(), data, |(user, info), data| {
            push_str(user, data);
            data.push(b':');
            data.extend_from_slice(info.unwrap_or("null").as_bytes());
        });
        data.extend_from_slice(b"},\"count\":");
        push_u64(members.len() as u64, data);
        data.extend_from_slice(b"}}");
    });
}

pub fn subscription_error(channel: &str, error: SubscriptionError<'_>, out: &mut Vec<u8>) {
    let (kind, status) = error.kind.answer();
    message("pusher:subscription_error", Some(channel), out, |data| {
        data.extend_from_slice(b"{\"type\":");
        push_str(kind, data);
        data.extend_from_slice(b",\"error\":");
        push_str(error.message, data);
        data.extend_from_slice(b",\"status\":");
        push_u64(u64::from(status), data);
        data.push(b'}');
    });
}

pub fn cache_miss(channel: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"event\":\"pusher:cache_miss\",\"channel\":");
    push_str(channel, out);
    out.push(b'}');
}

pub fn signin_success(user_data: &str, out: &mut Vec<u8>) {
    message("pusher:signin_success", None, out, |data| {
        data.extend_from_slice(b"{\"user_data\":");
        push_str(user_data, data);
        data.push(b'}');
    });
}

/// Who of a watchlist is online now and who is not; a list that is empty is left out.
pub fn watchlist<'a>(
    online: impl ExactSizeIterator<Item = &'a str>,
    offline: impl ExactSizeIterator<Item = &'a str>,
    out: &mut Vec<u8>,
) {
    message("pusher_internal:watchlist_events", None, out, |data| {
        data.extend_from_slice(b"{\"events\":[");
        let both = online.len() > 0 && offline.len() > 0;
        push_status("online", online, data);
        if both {
            data.push(b',');
        }
        push_status("offline", offline, data);
        data.extend_from_slice(b"]}");
    });
}

pub fn member_added(channel: &str, user: &str, info: Option<&str>, out: &mut Vec<u8>) {
    message("pusher_internal:member_added", Some(channel), out, |data| {
        data.extend_from_slice(b"{\"user_id\":");
        push_str(user, data);
        data.extend_from_slice(b",\"user_info\":");
        data.extend_from_slice(info.unwrap_or("null").as_bytes());
        data.push(b'}');
    });
}

pub fn member_removed(channel: &str, user: &str, out: &mut Vec<u8>) {
    message("pusher_internal:member_removed", Some(channel), out, |data| {
        data.extend_from_slice(b"{\"user_id\":");
        push_str(user, data);
        data.push(b'}');
    });
}

pub fn subscription_count(channel: &str, count: u64, out: &mut Vec<u8>) {
    message("pusher_internal:subscription_count", Some(channel), out, |data| {
        data.extend_from_slice(b"{\"subscription_count\":");
        push_u64(count, data);
        data.push(b'}');
    });
}

/// Appends a publication.
pub fn event(event: &Event<'_>, out: &mut Vec<u8>) {
    head(event.event, Some(event.channel), out);
    push_str(event.data, out);
    if let Some(user_id) = event.user_id {
        out.extend_from_slice(b",\"user_id\":");
        push_str(user_id, out);
    }
    out.push(b'}');
}

/// Appends an event that is no publication; of a user's own channel, or of none.
pub fn message_of(event: &str, channel: Option<&str>, data: &str, out: &mut Vec<u8>) {
    head(event, channel, out);
    push_str(data, out);
    out.push(b'}');
}

/// A message whose data is what `write` writes, as a string.
fn message(event: &str, channel: Option<&str>, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    head(event, channel, out);
    let mut data = Vec::new();
    write(&mut data);
    push_str(&String::from_utf8_lossy(&data), out);
    out.push(b'}');
}

fn head(event: &str, channel: Option<&str>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"event\":");
    push_str(event, out);
    if let Some(channel) = channel {
        out.extend_from_slice(b",\"channel\":");
        push_str(channel, out);
    }
    out.extend_from_slice(b",\"data\":");
}

fn empty(data: &mut Vec<u8>) {
    data.extend_from_slice(b"{}");
}

fn push_status<'a>(name: &str, users: impl ExactSizeIterator<Item = &'a str>, data: &mut Vec<u8>) {
    if users.len() == 0 {
        return;
    }
    data.extend_from_slice(b"{\"name\":");
    push_str(name, data);
    data.extend_from_slice(b",\"user_ids\":[");
    separated(users, data, push_str);
    data.extend_from_slice(b"]}");
}

fn separated<T>(items: impl Iterator<Item = T>, out: &mut Vec<u8>, mut write: impl FnMut(T, &mut Vec<u8>)) {
    for (at, item) in items.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write(item, out);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn messages() {
        let check = |write: &dyn Fn(&mut Vec<u8>), expect: &str| assert_eq!(text(|out| write(out)), expect);
        check(
            &|out| established("1.2", 120, out),
            r#"{"event":"pusher:connection_established","data":"{\"socket_id\":\"1.2\",\"activity_timeout\":120}"}"#,
        );
        check(&pong, r#"{"event":"pusher:pong","data":"{}"}"#);
        check(
            &|out| error(None, "no \"such\"", None, out),
            r#"{"event":"pusher:error","data":{"code":null,"message":"no \"such\""}}"#,
        );
        check(
            &|out| error(Some(Code::CLIENT_EVENT_RATE), "slow", Some("private-a"), out),
            r#"{"event":"pusher:error","channel":"private-a","data":{"code":4301,"message":"slow"}}"#,
        );
        check(
            &|out| subscription_succeeded("a", out),
            r#"{"event":"pusher_internal:subscription_succeeded","channel":"a","data":"{}"}"#,
        );
        check(
            &|out| subscription_error("a", SubscriptionError { kind: ErrorKind::Auth, message: "no" }, out),
            r#"{"event":"pusher:subscription_error","channel":"a","data":"{\"type\":\"AuthError\",\"error\":\"no\",\"status\":401}"}"#,
        );
        check(&|out| cache_miss("a", out), r#"{"event":"pusher:cache_miss","channel":"a"}"#);
        check(
            &|out| member_added("presence-a", "u", Some(r#"{"n":"x"}"#), out),
            r#"{"event":"pusher_internal:member_added","channel":"presence-a","data":"{\"user_id\":\"u\",\"user_info\":{\"n\":\"x\"}}"}"#,
        );
        check(
            &|out| member_removed("presence-a", "u", out),
            r#"{"event":"pusher_internal:member_removed","channel":"presence-a","data":"{\"user_id\":\"u\"}"}"#,
        );
        check(
            &|out| subscription_count("a", 7, out),
            r#"{"event":"pusher_internal:subscription_count","channel":"a","data":"{\"subscription_count\":7}"}"#,
        );
        let publication = Event { channel: "a", event: "e", data: "{\"x\":\n1}", user_id: None };
        check(&|out| event(&publication, out), r#"{"event":"e","channel":"a","data":"{\"x\":\n1}"}"#);
        let publication = Event { user_id: Some("u"), ..publication };
        check(
            &|out| event(&publication, out),
            r#"{"event":"e","channel":"a","data":"{\"x\":\n1}","user_id":"u"}"#,
        );
        check(
            &|out| signin_success(r#"{"id":"u"}"#, out),
            r#"{"event":"pusher:signin_success","data":"{\"user_data\":\"{\\\"id\\\":\\\"u\\\"}\"}"}"#,
        );
    }

    #[test]
    fn lists_of_users() {
        let data = |text: String| -> Value {
            let message: Value = serde_json::from_str(&text).expect("JSON");
            serde_json::from_str(message["data"].as_str().expect("a string")).expect("JSON in it")
        };
        let members = [("a", Some(r#"{"n":1}"#)), ("b\"", None)];
        let told = data(text(|out| presence_succeeded("presence-a", members.into_iter(), out)));
        let expect = serde_json::json!({"presence": {"ids": ["a", "b\""], "hash": {"a": {"n": 1}, "b\"": null}, "count": 2}});
        assert_eq!(told, expect);
        let told = data(text(|out| presence_succeeded("presence-a", [].into_iter(), out)));
        assert_eq!(told, serde_json::json!({"presence": {"ids": [], "hash": {}, "count": 0}}));
        let told = |online: &[&'static str], offline: &[&'static str]| {
            data(text(|out| watchlist(online.iter().copied(), offline.iter().copied(), out)))
        };
        let (on, off) = (
            serde_json::json!({"name": "online", "user_ids": ["a", "b"]}),
            serde_json::json!({"name": "offline", "user_ids": ["c"]}),
        );
        assert_eq!(told(&["a", "b"], &["c"]), serde_json::json!({"events": [on, off]}));
        assert_eq!(told(&["a", "b"], &[]), serde_json::json!({"events": [on]}));
        assert_eq!(told(&[], &["c"]), serde_json::json!({"events": [off]}));
    }

    proptest! {
        #[test]
        fn any_event_is_json_that_says_the_same(name: String, data: String, user: Option<String>) {
            let written = Event { channel: "a", event: &name, data: &data, user_id: user.as_deref() };
            let read: Value = serde_json::from_str(&text(|out| event(&written, out))).expect("JSON");
            prop_assert_eq!(read["event"].as_str(), Some(&*name));
            prop_assert_eq!(read["data"].as_str(), Some(&*data));
            prop_assert_eq!(read["user_id"].as_str(), user.as_deref());
        }
    }
}
