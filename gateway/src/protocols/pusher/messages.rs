//! What clients say: a text becomes a message, the table says what it means, and this calls who does it.

use tidegate_reactor::{ConnectionId, Connections};
use tidegate_wire::pusher::{
    ClientMessage, ClientMessageError, EVENT_NAME_BYTES_MAX,
    server::{self, ErrorKind},
    session::{Action, Input, Place, Refusal, Stage, decide},
    watched_user,
};

use crate::{metrics::DropReason, session::Session, shard::Core};

impl Core {
    pub(crate) fn pusher_text(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        text: &str,
    ) {
        let message = ClientMessage::parse(text);
        let (stage, place) = self.standing(connections, id, &message);
        match (decide(stage, place, Input::of(&message)), message) {
            (Action::Refuse(refusal), message) => self.refuse_message(connections, id, refusal, &message),
            (
                action @ (Action::Enter | Action::VerifyThenEnter | Action::EnterAsUser),
                Ok(ClientMessage::Subscribe(it)),
            ) => self.pusher_subscribe(connections, id, &it, action),
            (Action::Leave | Action::Withdraw, Ok(ClientMessage::Unsubscribe { channel })) => {
                self.pusher_unsubscribe(connections, id, &channel);
            }
            (Action::VerifyThenSignIn, Ok(ClientMessage::Signin { auth, user_data })) => {
                self.pusher_sign_in(connections, id, &auth, &user_data);
            }
            (Action::Publish, Ok(ClientMessage::Event { event, channel, data })) => {
                self.pusher_publish(connections, id, &channel, &event, &data);
            }
            (Action::AnswerPong, _) => self.tell(connections, id, server::pong),
            // The table gives an action only to the message that it is for.
            _ => {}
        }
    }

    pub(crate) fn pusher_binary(&mut self, connections: &mut Connections<Session>, id: ConnectionId) {
        self.tell_error(connections, id, None, &Refusal::Binary.to_string());
    }

    fn standing(
        &self,
        connections: &Connections<Session>,
        id: ConnectionId,
        message: &Result<ClientMessage<'_>, ClientMessageError>,
    ) -> (Stage, Place) {
        let Some(open) = connections.get(id).and_then(Session::open) else {
            return (Stage::Closing, Place::Outside);
        };
        let name = match message {
            Ok(ClientMessage::Subscribe(subscribe)) => &*subscribe.channel,
            Ok(ClientMessage::Unsubscribe { channel } | ClientMessage::Event { channel, .. }) => &**channel,
            _ => return (open.stage(), Place::Outside),
        };
        // Who watches whom is the gateway's own: a client is in no channel of such a name.
        let app = self.apps.get(open.app).filter(|_| watched_user(name).is_none());
        let channel = app.and_then(|app| app.channel(name).ok());
        let key = channel.and_then(|channel| self.hub.key_of(channel.as_str()));
        (open.stage(), self.place_in(open, key))
    }

    fn refuse_message(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        refusal: Refusal,
        message: &Result<ClientMessage<'_>, ClientMessageError>,
    ) {
        match message {
            Ok(ClientMessage::Subscribe(it)) if refusal == Refusal::NotSignedIn => {
                self.deny(connections, id, &it.channel, ErrorKind::Auth, &refusal.to_string());
            }
            Ok(ClientMessage::Event { channel, .. }) => {
                self.metrics.messages_dropped.add(DropReason::Forbidden, 1);
                self.tell_error(connections, id, Some(channel), &format!("client event refused: {refusal}"));
            }
            Ok(ClientMessage::Subscribe(it)) => {
                self.tell_error(connections, id, Some(&it.channel), &refusal.to_string());
            }
            Ok(ClientMessage::Unsubscribe { channel }) => {
                self.tell_error(connections, id, Some(channel), &refusal.to_string());
            }
            Ok(_) => self.tell_error(connections, id, None, &refusal.to_string()),
            Err(error) => {
                self.metrics.messages_dropped.add(DropReason::Forbidden, 1);
                self.tell_error(connections, id, None, &error.to_string());
            }
        }
    }

    /// An error without a code. The name of the channel is said back, as far as it can be one.
    pub(super) fn tell_error(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        channel: Option<&str>,
        text: &str,
    ) {
        let channel = channel.map(shown);
        self.tell(connections, id, |out| server::error(None, text, channel, out));
    }
}

/// What a client wrote, bounded for the answer.
pub(super) fn shown(name: &str) -> &str {
    &name[..name.floor_char_boundary(EVENT_NAME_BYTES_MAX)]
}
