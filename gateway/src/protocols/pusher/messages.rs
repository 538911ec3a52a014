//! What clients say: a text becomes a message, the table says what it means, and this calls who does it.

use tidegate_wire::pusher::{
    ClientMessage, ClientMessageError, EVENT_NAME_BYTES_MAX,
    server::{self, ErrorKind},
    session::{Action, Input, Place, Refusal, Stage, decide},
    watched_user,
};

use super::AppKey;
use crate::{
    metrics::DropReason,
    session::{Ctx, Session},
};

impl Ctx<'_> {
    pub(crate) fn pusher_text(&mut self, text: &str) {
        let message = ClientMessage::parse(text);
        let (stage, place) = self.standing(&message);
        match (decide(stage, place, Input::of(&message)), message) {
            (Action::Refuse(refusal), message) => self.refuse_message(refusal, &message),
            (
                action @ (Action::Enter | Action::VerifyThenEnter | Action::EnterAsUser),
                Ok(ClientMessage::Subscribe(it)),
            ) => self.pusher_subscribe(&it, action),
            (Action::Leave | Action::Withdraw, Ok(ClientMessage::Unsubscribe { channel })) => {
                self.pusher_unsubscribe(&channel);
            }
            (Action::VerifyThenSignIn, Ok(ClientMessage::Signin { auth, user_data })) => {
                self.pusher_sign_in(&auth, &user_data);
            }
            (Action::Publish, Ok(ClientMessage::Event { event, channel, data })) => {
                self.pusher_publish(&channel, &event, &data);
            }
            (Action::AnswerPong, _) => self.tell(server::pong),
            // The table gives an action only to the message that it is for.
            _ => {}
        }
    }

    pub(crate) fn pusher_binary(&mut self) {
        self.tell_error(None, &Refusal::Binary.to_string());
    }

    fn standing(&self, message: &Result<ClientMessage<'_>, ClientMessageError>) -> (Stage, Place) {
        let Some(open) = self.connections.get(self.id).and_then(Session::open) else {
            return (Stage::Closing, Place::Outside);
        };
        let name = match message {
            Ok(ClientMessage::Subscribe(subscribe)) => &*subscribe.channel,
            Ok(ClientMessage::Unsubscribe { channel } | ClientMessage::Event { channel, .. }) => &**channel,
            _ => return (open.stage(), Place::Outside),
        };
        // Who watches whom is the gateway's own: a client is in no channel of such a name.
        let app = self.core.rooms.pusher().apps.get(AppKey(open.tag));
        let app = app.filter(|_| watched_user(name).is_none());
        let channel = app.and_then(|app| app.channel(name).ok());
        let key = channel.and_then(|channel| self.core.hub.key_of(channel.as_str()));
        (open.stage(), self.place_in(open, key))
    }

    fn refuse_message(&mut self, refusal: Refusal, message: &Result<ClientMessage<'_>, ClientMessageError>) {
        match message {
            Ok(ClientMessage::Subscribe(it)) if refusal == Refusal::NotSignedIn => {
                self.deny(&it.channel, ErrorKind::Auth, &refusal.to_string());
            }
            Ok(ClientMessage::Event { channel, .. }) => {
                self.core.metrics.messages_dropped.add(DropReason::Forbidden, 1);
                self.tell_error(Some(channel), &format!("client event refused: {refusal}"));
            }
            Ok(ClientMessage::Subscribe(it)) => {
                self.tell_error(Some(&it.channel), &refusal.to_string());
            }
            Ok(ClientMessage::Unsubscribe { channel }) => {
                self.tell_error(Some(channel), &refusal.to_string());
            }
            Ok(_) => self.tell_error(None, &refusal.to_string()),
            Err(error) => {
                self.core.metrics.messages_dropped.add(DropReason::Forbidden, 1);
                self.tell_error(None, &error.to_string());
            }
        }
    }

    /// An error without a code. The name of the channel is said back, as far as it can be one.
    pub(super) fn tell_error(&mut self, channel: Option<&str>, text: &str) {
        let channel = channel.map(shown);
        self.note_told(channel.unwrap_or("message"), &text);
        self.tell(|out| server::error(None, text, channel, out));
    }
}

/// What a client wrote, bounded for the answer.
pub(super) fn shown(name: &str) -> &str {
    &name[..name.floor_char_boundary(EVENT_NAME_BYTES_MAX)]
}
