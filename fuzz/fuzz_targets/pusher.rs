//! Text as a client's Pusher message, as channel data and as user data; what is accepted is written back and read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tidegate_wire::pusher::{
    ClientMessage, EVENT_NAME_BYTES_MAX, Identity, Opening, PresenceMember, USER_ID_CHARS_MAX, WATCHLIST_MAX,
    check_name,
    server::{self, Event},
    session::{Input, Place, Stage, decide},
};

fuzz_target!(|text: &str| {
    let message = ClientMessage::parse(text);
    for stage in [Stage::Established, Stage::SignedIn] {
        let _ = decide(stage, Place::Outside, Input::of(&message));
    }
    match &message {
        Ok(ClientMessage::Event { event, channel, data }) => {
            assert!(event.starts_with("client-") && event.len() <= EVENT_NAME_BYTES_MAX);
            let mut out = Vec::new();
            server::event(&Event { channel, event, data, user_id: Some(text) }, &mut out);
            let read: Value = serde_json::from_slice(&out).expect("JSON");
            assert_eq!(read["channel"], **channel);
            assert_eq!(read["event"], **event);
            assert_eq!(read["data"], **data);
            assert_eq!(read["user_id"], *text);
        }
        Ok(ClientMessage::Subscribe(subscribe)) => {
            if let Some(data) = &subscribe.channel_data {
                check_member(data);
            }
        }
        Err(error) => assert!(error.to_string().len() < 2000),
        Ok(_) => {}
    }
    check_member(text);
    if let Ok((identity, _)) = Identity::parse(text) {
        assert!(identity.watchlist.len() <= WATCHLIST_MAX);
        let channel = format!("#server-to-user-{}", identity.id);
        check_name(&channel, channel.len()).expect("a channel's name");
    }
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    if let Ok(opening) = Opening::parse(path, Some(query)) {
        assert!(!opening.key.is_empty());
    }
});

fn check_member(text: &str) {
    let Ok(member) = PresenceMember::parse(text, 1024) else {
        return;
    };
    assert!((1..=USER_ID_CHARS_MAX).contains(&member.user_id.chars().count()));
    let members = [(&*member.user_id, member.user_info.as_deref())];
    let mut out = Vec::new();
    server::presence_succeeded("presence-a", members.into_iter(), &mut out);
    let told: Value = serde_json::from_slice(&out).expect("JSON");
    assert!(told["data"].is_string());
}
