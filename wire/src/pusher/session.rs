//! The session as a state machine: where the connection and the channel stand, and what a message has the driver do.
//!
//! Two states, because they are independent: [`Stage`] is the connection's, [`Place`] its place in the channel that the
//! message names. [`decide`] is the table; the driver carries out the one [`Action`] that comes of it, and where it
//! waits for an answer, [`Place::next`] says where that leads. A connection is told its socket id before its first
//! message is looked at, whenever that message came, so there is no stage before `Established`.

use super::{Access, ChannelKind, ClientMessage, ClientMessageError};

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    Established,
    SignedIn,
    /// It was told that it ends.
    Closing,
}

/// A connection's place in a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    Outside,
    /// Its subscription waits for an answer.
    Entering,
    Inside,
    /// The same as `Entering`, but it has unsubscribed meanwhile.
    Withdrawn,
}

/// What a client's frame is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    Subscribe(Access),
    Unsubscribe,
    Signin,
    Ping,
    Pong,
    /// To a channel of this kind.
    ClientEvent(Access),
    Malformed,
    UnknownEvent,
    Binary,
}

/// What the driver does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Begin to subscribe.
    Enter,
    /// The same, if the signature is good.
    VerifyThenEnter,
    /// The same, if the channel is that of the connection's own user.
    EnterAsUser,
    /// End the subscription.
    Leave,
    /// The answer that comes is not wanted.
    Withdraw,
    /// Sign in, if the signature is good.
    VerifyThenSignIn,
    /// Publish, if the limits allow it.
    Publish,
    AnswerPong,
    Refuse(Refusal),
    /// It has been heard, and that is all.
    Nothing,
}

/// Why nothing but an error follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    #[error("already subscribed, or about to be")]
    AlreadySubscribed,
    #[error("not subscribed")]
    NotSubscribed,
    #[error("client events go to private and presence channels only")]
    NoClientEvents,
    #[error("only its own user, signed in, can subscribe to it")]
    NotSignedIn,
    #[error("malformed message")]
    Malformed,
    #[error("unknown event")]
    UnknownEvent,
    #[error("binary messages are not a part of the protocol")]
    Binary,
}

/// What becomes of an entrance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    Granted,
    Denied,
}

impl Input {
    /// The input that a parsed text is.
    #[must_use]
    pub fn of(message: &Result<ClientMessage<'_>, ClientMessageError>) -> Self {
        match message {
            Ok(ClientMessage::Subscribe(subscribe)) => {
                Self::Subscribe(ChannelKind::of(&subscribe.channel).access)
            }
            Ok(ClientMessage::Unsubscribe { .. }) => Self::Unsubscribe,
            Ok(ClientMessage::Signin { .. }) => Self::Signin,
            Ok(ClientMessage::Ping) => Self::Ping,
            Ok(ClientMessage::Pong) => Self::Pong,
            Ok(ClientMessage::Event { channel, .. }) => Self::ClientEvent(ChannelKind::of(channel).access),
            Err(ClientMessageError::UnknownEvent(_)) => Self::UnknownEvent,
            Err(_) => Self::Malformed,
        }
    }
}

/// The table.
#[must_use]
pub fn decide(stage: Stage, place: Place, input: Input) -> Action {
    match (stage, input, place) {
        (Stage::Closing, ..) => Action::Nothing,
        (_, Input::Ping, _) => Action::AnswerPong,
        (_, Input::Pong, _) => Action::Nothing,
        (_, Input::Malformed, _) => Action::Refuse(Refusal::Malformed),
        (_, Input::UnknownEvent, _) => Action::Refuse(Refusal::UnknownEvent),
        (_, Input::Binary, _) => Action::Refuse(Refusal::Binary),
        (_, Input::Signin, _) => Action::VerifyThenSignIn,
        (_, Input::Subscribe(_), Place::Entering | Place::Inside) => {
            Action::Refuse(Refusal::AlreadySubscribed)
        }
        (Stage::Established, Input::Subscribe(Access::User), _) => Action::Refuse(Refusal::NotSignedIn),
        (Stage::SignedIn, Input::Subscribe(Access::User), _) => Action::EnterAsUser,
        (_, Input::Subscribe(Access::Public), _) => Action::Enter,
        (_, Input::Subscribe(Access::Private | Access::Presence | Access::Encrypted), _) => {
            Action::VerifyThenEnter
        }
        (_, Input::Unsubscribe, Place::Inside) => Action::Leave,
        (_, Input::Unsubscribe, Place::Entering) => Action::Withdraw,
        (_, Input::Unsubscribe, Place::Outside | Place::Withdrawn) => Action::Refuse(Refusal::NotSubscribed),
        (_, Input::ClientEvent(Access::Private | Access::Presence), Place::Inside) => Action::Publish,
        (_, Input::ClientEvent(Access::Private | Access::Presence), _) => {
            Action::Refuse(Refusal::NotSubscribed)
        }
        (_, Input::ClientEvent(Access::Public | Access::Encrypted | Access::User), _) => {
            Action::Refuse(Refusal::NoClientEvents)
        }
    }
}

impl Place {
    /// Where an answer leads. Who has withdrawn is let out again, whatever the answer.
    #[must_use]
    pub fn next(self, answer: Answer) -> Self {
        match (self, answer) {
            (Self::Entering, Answer::Granted) => Self::Inside,
            (Self::Entering, Answer::Denied) | (Self::Withdrawn, _) => Self::Outside,
            (Self::Outside | Self::Inside, _) => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: [Place; 4] = [Place::Outside, Place::Entering, Place::Inside, Place::Withdrawn];

    const INPUTS: [(Input, &str); 17] = [
        (Input::Subscribe(Access::Public), "subscribe public"),
        (Input::Subscribe(Access::Private), "subscribe private"),
        (Input::Subscribe(Access::Presence), "subscribe presence"),
        (Input::Subscribe(Access::Encrypted), "subscribe encrypted"),
        (Input::Subscribe(Access::User), "subscribe user"),
        (Input::Unsubscribe, "unsubscribe"),
        (Input::Signin, "signin"),
        (Input::Ping, "ping"),
        (Input::Pong, "pong"),
        (Input::ClientEvent(Access::Public), "event public"),
        (Input::ClientEvent(Access::Private), "event private"),
        (Input::ClientEvent(Access::Presence), "event presence"),
        (Input::ClientEvent(Access::Encrypted), "event encrypted"),
        (Input::ClientEvent(Access::User), "event user"),
        (Input::Malformed, "malformed"),
        (Input::UnknownEvent, "unknown event"),
        (Input::Binary, "binary"),
    ];

    fn table(stage: Stage) -> String {
        let rows = INPUTS.iter().map(|&(input, name)| {
            let cells = PLACES.map(|place| match decide(stage, place, input) {
                Action::Refuse(refusal) => format!("!{refusal:?}"),
                action => format!("{action:?}"),
            });
            let row = format!("{name:<20}{:<20}{:<20}{:<20}{:<20}", cells[0], cells[1], cells[2], cells[3]);
            row.trim_end().to_owned()
        });
        rows.collect::<Vec<_>>().join("\n")
    }

    const ESTABLISHED: &str = "\
subscribe public    Enter               !AlreadySubscribed  !AlreadySubscribed  Enter
subscribe private   VerifyThenEnter     !AlreadySubscribed  !AlreadySubscribed  VerifyThenEnter
subscribe presence  VerifyThenEnter     !AlreadySubscribed  !AlreadySubscribed  VerifyThenEnter
subscribe encrypted VerifyThenEnter     !AlreadySubscribed  !AlreadySubscribed  VerifyThenEnter
subscribe user      !NotSignedIn        !AlreadySubscribed  !AlreadySubscribed  !NotSignedIn
unsubscribe         !NotSubscribed      Withdraw            Leave               !NotSubscribed
signin              VerifyThenSignIn    VerifyThenSignIn    VerifyThenSignIn    VerifyThenSignIn
ping                AnswerPong          AnswerPong          AnswerPong          AnswerPong
pong                Nothing             Nothing             Nothing             Nothing
event public        !NoClientEvents     !NoClientEvents     !NoClientEvents     !NoClientEvents
event private       !NotSubscribed      !NotSubscribed      Publish             !NotSubscribed
event presence      !NotSubscribed      !NotSubscribed      Publish             !NotSubscribed
event encrypted     !NoClientEvents     !NoClientEvents     !NoClientEvents     !NoClientEvents
event user          !NoClientEvents     !NoClientEvents     !NoClientEvents     !NoClientEvents
malformed           !Malformed          !Malformed          !Malformed          !Malformed
unknown event       !UnknownEvent       !UnknownEvent       !UnknownEvent       !UnknownEvent
binary              !Binary             !Binary             !Binary             !Binary";

    #[test]
    fn established() {
        assert_eq!(table(Stage::Established), ESTABLISHED);
    }

    /// Being signed in changes one row.
    #[test]
    fn signed_in() {
        let own =
            "subscribe user      EnterAsUser         !AlreadySubscribed  !AlreadySubscribed  EnterAsUser";
        let rows: Vec<&str> = ESTABLISHED
            .lines()
            .map(|row| if row.starts_with("subscribe user") { own } else { row })
            .collect();
        assert_eq!(table(Stage::SignedIn), rows.join("\n"));
    }

    #[test]
    fn closing() {
        let actions =
            INPUTS.iter().flat_map(|&(input, _)| PLACES.map(|place| decide(Stage::Closing, place, input)));
        assert!(actions.into_iter().all(|action| action == Action::Nothing));
    }

    #[test]
    fn answers() {
        use Answer::{Denied, Granted};
        let table = PLACES.map(|place| (place.next(Granted), place.next(Denied)));
        use Place::{Inside, Outside};
        assert_eq!(table, [(Outside, Outside), (Inside, Outside), (Inside, Inside), (Outside, Outside)]);
    }

    #[test]
    fn texts_are_inputs() {
        let check =
            |text: &str, expect: Input| assert_eq!(Input::of(&ClientMessage::parse(text)), expect, "{text}");
        check(
            r#"{"event":"pusher:subscribe","data":{"channel":"presence-cache-a"}}"#,
            Input::Subscribe(Access::Presence),
        );
        check(
            r##"{"event":"pusher:subscribe","data":{"channel":"#server-to-user-1"}}"##,
            Input::Subscribe(Access::User),
        );
        check(r#"{"event":"pusher:unsubscribe","data":{"channel":"a"}}"#, Input::Unsubscribe);
        check(r#"{"event":"pusher:signin","data":{"auth":"","user_data":""}}"#, Input::Signin);
        check(
            r#"{"event":"client-a","channel":"private-encrypted-a"}"#,
            Input::ClientEvent(Access::Encrypted),
        );
        check(r#"{"event":"pusher:error"}"#, Input::UnknownEvent);
        check(r#"{"event":"pusher:ping"}"#, Input::Ping);
        check(r#"{"event":"pusher:pong"}"#, Input::Pong);
        check("{", Input::Malformed);
    }
}
