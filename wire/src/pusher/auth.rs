//! What is signed, and the form of a signature: `KEY:HEX`, the HMAC-SHA256 of the text under the app's secret.

/// The parts of an `auth` value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature<'a> {
    pub key: &'a str,
    pub digest: &'a str,
}

impl<'a> Signature<'a> {
    /// `None`: there is no `:` in it.
    #[must_use]
    pub fn parse(auth: &'a str) -> Option<Self> {
        auth.split_once(':').map(|(key, digest)| Self { key, digest })
    }
}

/// What is signed for a subscription: `SOCKET:CHANNEL`, and `:CHANNEL_DATA` where there is any, on private channels
/// too.
#[must_use]
pub fn subscription(socket_id: &str, channel: &str, channel_data: Option<&str>) -> String {
    match channel_data {
        Some(data) => format!("{socket_id}:{channel}:{data}"),
        None => format!("{socket_id}:{channel}"),
    }
}

/// What is signed for a user: `SOCKET::user::USER_DATA`.
#[must_use]
pub fn signin(socket_id: &str, user_data: &str) -> String {
    format!("{socket_id}::user::{user_data}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The strings of Pusher's page on authorising, whose digests the gateway's tests recompute.
    #[test]
    fn what_is_signed() {
        assert_eq!(subscription("1234.1234", "private-foobar", None), "1234.1234:private-foobar");
        let data = r#"{"user_id":10}"#;
        let signed = r#"1234.1234:presence-foobar:{"user_id":10}"#;
        assert_eq!(subscription("1234.1234", "presence-foobar", Some(data)), signed);
        assert_eq!(signin("1234.1234", r#"{"id":"1"}"#), r#"1234.1234::user::{"id":"1"}"#);
        assert_eq!(Signature::parse("key:ab:c"), Some(Signature { key: "key", digest: "ab:c" }));
        assert_eq!(Signature::parse(""), None);
    }
}
