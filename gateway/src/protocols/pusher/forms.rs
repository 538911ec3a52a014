//! How clients of Pusher Channels are told what happens in a channel.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tidegate_backplane::{Channel, Payload, PresenceKind, Publication};
use tidegate_wire::{
    frame::Opcode,
    pusher::{Access, ChannelKind, server, watched_user},
};

use crate::{
    hub::{
        content::{Content, gap_reason},
        form::{Form, FormId, Said},
    },
    node::member_info,
};

pub(crate) const EVENT: FormId = FormId::new(6);

/// A message of protocol 7.
#[derive(Debug)]
pub(crate) struct PusherEvent;

impl Form for PusherEvent {
    fn id(&self) -> FormId {
        EVENT
    }

    fn say<'a>(&self, channel: &Channel, content: &'a Content, scratch: &'a mut Vec<u8>) -> Option<Said<'a>> {
        let name = channel.name();
        match content {
            Content::Publication(publication) => put_publication(name, publication, scratch),
            Content::Gap(gap) => {
                let text = format!("events of this channel were missed: {}", gap_reason(gap.reason));
                server::error(None, &text, Some(name), scratch);
            }
            Content::Presence(event) => put_presence(name, &event.kind, scratch),
        }
        (!scratch.is_empty()).then_some(Said::Message(Opcode::Text, scratch))
    }

    fn says_presence(&self) -> bool {
        true
    }
}

fn put_publication(name: &str, publication: &Publication, out: &mut Vec<u8>) {
    let base64;
    let (data, unnamed) = match &publication.payload {
        Payload::Text(text) => (&**text, server::EVENT_UNNAMED),
        Payload::Binary(bytes) => {
            base64 = STANDARD.encode(bytes);
            (&*base64, server::EVENT_BINARY)
        }
    };
    let event = publication.event.as_deref().unwrap_or(unnamed);
    let tells_user = ChannelKind::of(name).access == Access::Presence;
    let sender = publication.sender.as_deref().filter(|_| tells_user);
    let user_id = sender.and_then(|sender| sender.user.as_deref());
    server::event(&server::Event { channel: name, event, data, user_id }, out);
}

/// Whoever subscribes to `#watch-USER` is told of that user; the others are told of who is in their channel.
fn put_presence(name: &str, kind: &PresenceKind, out: &mut Vec<u8>) {
    let one = std::iter::once::<&str>;
    match (watched_user(name), kind) {
        (Some(user), PresenceKind::Joined { connections: 1, .. }) => {
            server::watchlist(one(user), std::iter::empty(), out);
        }
        (Some(user), PresenceKind::Left { connections: 0, .. }) => {
            server::watchlist(std::iter::empty(), one(user), out);
        }
        (None, PresenceKind::Joined { member, connections: 1 }) => {
            server::member_added(name, &member.user, member_info::of_connection(member), out);
        }
        (None, PresenceKind::Left { member, connections: 0 }) => {
            server::member_removed(name, &member.user, out);
        }
        // A user is told once, however many connections it has.
        (_, PresenceKind::Joined { .. } | PresenceKind::Left { .. }) => {}
        (Some(_), PresenceKind::Count { .. }) => {}
        (None, PresenceKind::Count { subscriptions }) => {
            server::subscription_count(name, *subscriptions, out)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use tidegate_backplane::{Gap, GapReason, Member, PresenceEvent, Sender, Text};

    use super::*;

    #[track_caller]
    fn check(channel: &str, content: Content, expect: &str) {
        let channel = Channel::in_app("2", channel).expect("a channel");
        let mut scratch = Vec::new();
        let said = match PusherEvent.say(&channel, &content, &mut scratch) {
            Some(Said::Message(Opcode::Text, text)) => text,
            other => {
                assert_eq!(other, None);
                b""
            }
        };
        assert_eq!(String::from_utf8_lossy(said), expect);
    }

    fn publication(payload: Payload, event: Option<&str>, user: Option<&str>) -> Content {
        let sender = Box::new(Sender { connection: Some("1.2".into()), user: user.map(Box::from) });
        let event = event.map(Box::from);
        Content::Publication(Arc::new(Publication { position: None, event, payload, sender: Some(sender) }))
    }

    #[test]
    fn publications_as_clients_of_pusher_are_told_them() {
        let text = || Payload::Text(Text::from_static("{\"a\":1}"));
        let binary = || Payload::Binary(Bytes::from_static(&[0, 255]));
        let data = r#""data":"{\"a\":1}""#;
        check(
            "a",
            publication(text(), None, None),
            &format!(r#"{{"event":"message","channel":"a",{data}}}"#),
        );
        check("a", publication(text(), Some("e"), None), &format!(r#"{{"event":"e","channel":"a",{data}}}"#));
        check("a", publication(binary(), None, None), r#"{"event":"binary","channel":"a","data":"AP8="}"#);
        check("a", publication(binary(), Some("e"), None), r#"{"event":"e","channel":"a","data":"AP8="}"#);
        // Only presence channels tell users.
        let told = format!(r#"{{"event":"e","channel":"presence-a",{data},"user_id":"u"}}"#);
        check("presence-a", publication(text(), Some("e"), Some("u")), &told);
        let told = format!(r#"{{"event":"e","channel":"private-a",{data}}}"#);
        check("private-a", publication(text(), Some("e"), Some("u")), &told);
    }

    #[test]
    fn gaps_and_changes_as_clients_of_pusher_are_told_them() {
        let gap = Gap { reason: GapReason::Hole, top: None };
        let told = r#"{"event":"pusher:error","channel":"a","data":{"code":null,"message":"events of this channel were missed: hole"}}"#;
        check("a", Content::Gap(gap), told);
        let change = |kind| Content::Presence(Arc::new(PresenceEvent { sequence: 1, kind }));
        let member = Member { connection: "n.1".into(), user: "u".into(), info: Some("[1]".into()) };
        let member = Arc::new(member);
        let joined_as =
            |connections| change(PresenceKind::Joined { member: Arc::clone(&member), connections });
        let left_as = |connections| change(PresenceKind::Left { member: Arc::clone(&member), connections });
        let (joined, left) = (|| joined_as(1), || left_as(0));
        let count = || change(PresenceKind::Count { subscriptions: 7 });
        for channel in ["presence-a", "#watch-u"] {
            check(channel, joined_as(2), "");
            check(channel, left_as(1), "");
        }
        let told = r#"{"event":"pusher_internal:member_added","channel":"presence-a","data":"{\"user_id\":\"u\",\"user_info\":[1]}"}"#;
        check("presence-a", joined(), told);
        let told = r#"{"event":"pusher_internal:member_removed","channel":"presence-a","data":"{\"user_id\":\"u\"}"}"#;
        check("presence-a", left(), told);
        let told = r#"{"event":"pusher_internal:subscription_count","channel":"a","data":"{\"subscription_count\":7}"}"#;
        check("a", count(), told);
        let status = |status: &str| {
            format!(
                r#"{{"event":"pusher_internal:watchlist_events","data":"{{\"events\":[{{\"name\":\"{status}\",\"user_ids\":[\"u\"]}}]}}"}}"#
            )
        };
        check("#watch-u", joined(), &status("online"));
        check("#watch-u", left(), &status("offline"));
        check("#watch-u", count(), "");
    }
}
