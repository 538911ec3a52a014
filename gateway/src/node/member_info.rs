//! What is kept of a member beside who it is. Most have the info of their connection, or none: that JSON text is the member's
//! info. What the subscription adds stands with it in an object, after a space, with which no info of a connection begins. To a
//! node of the version before that object is the info, and JSON all the same.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tidegate_backplane::Member;

/// Texts are JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MemberInfo<'m> {
    pub(crate) of_connection: Option<&'m str>,
    pub(crate) of_subscription: Option<&'m str>,
    /// Clients of Centrifugo's protocol are not told that it joins and leaves.
    pub(crate) is_quiet: bool,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Kept<'m> {
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    conn_info: Option<&'m RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    chan_info: Option<&'m RawValue>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    quiet: bool,
}

const MARK: char = ' ';

impl<'m> MemberInfo<'m> {
    pub(crate) fn of(member: &'m Member) -> Self {
        let Some(info) = member.info.as_deref() else { return Self::default() };
        let Some(kept) = info.strip_prefix(MARK) else {
            return Self { of_connection: Some(info), ..Self::default() };
        };
        let Kept { conn_info, chan_info, quiet } = serde_json::from_str(kept).unwrap_or_default();
        Self {
            of_connection: conn_info.map(RawValue::get),
            of_subscription: chan_info.map(RawValue::get),
            is_quiet: quiet,
        }
    }

    /// What is kept of it in the member.
    pub(crate) fn to_text(self) -> Option<Box<str>> {
        if self.of_subscription.is_none() && !self.is_quiet {
            return self.of_connection.map(Box::from);
        }
        let json = |text: Option<&'m str>| text.and_then(|text| serde_json::from_str::<&RawValue>(text).ok());
        let (conn_info, chan_info) = (json(self.of_connection), json(self.of_subscription));
        let kept = Kept { conn_info, chan_info, quiet: self.is_quiet };
        serde_json::to_string(&kept).ok().map(|kept| format!("{MARK}{kept}").into())
    }
}

/// What others see of a member's connection, whatever its subscription says.
pub(crate) fn of_connection(member: &Member) -> Option<&str> {
    MemberInfo::of(member).of_connection
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(info: MemberInfo<'_>, kept: Option<&str>) {
        let text = info.to_text();
        assert_eq!(text.as_deref(), kept);
        let member = Member { connection: "n.1".into(), user: "u".into(), info: text };
        assert_eq!(MemberInfo::of(&member), info);
        // What a node of the version before tells as it stands.
        assert!(kept.is_none_or(|kept| serde_json::from_str::<&RawValue>(kept).is_ok()));
    }

    #[test]
    fn what_is_kept_is_read() {
        let (conn, chan) = (Some(r#"{"name":"Ada é"}"#), Some("[1, 2]"));
        let none = MemberInfo::default();
        check(none, None);
        check(MemberInfo { of_connection: conn, ..none }, conn);
        check(MemberInfo { of_subscription: chan, ..none }, Some(r#" {"chan_info":[1, 2]}"#));
        let all = MemberInfo { of_connection: conn, of_subscription: chan, is_quiet: true };
        check(all, Some(r#" {"conn_info":{"name":"Ada é"},"chan_info":[1, 2],"quiet":true}"#));
        check(MemberInfo { is_quiet: true, ..none }, Some(r#" {"quiet":true}"#));
    }

    #[test]
    fn what_is_no_form_of_ours_says_nothing() {
        let member = Member { connection: "n.1".into(), user: "u".into(), info: Some(" [".into()) };
        assert_eq!(MemberInfo::of(&member), MemberInfo::default());
    }
}
