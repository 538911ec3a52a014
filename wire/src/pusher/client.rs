//! What clients say: text to a typed message. `data` comes as an object or as a string that holds one.

use std::borrow::Cow;

use serde::Deserialize;

use crate::json::{JsonValue, fault};

/// Longest name of an event.
pub const EVENT_NAME_BYTES_MAX: usize = 200;

/// Longest id of a user.
pub const USER_ID_CHARS_MAX: usize = 128;

/// Users on one watchlist.
pub const WATCHLIST_MAX: usize = 100;

/// One message of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientMessage<'a> {
    Subscribe(Subscribe<'a>),
    Unsubscribe {
        channel: Cow<'a, str>,
    },
    Signin {
        auth: Cow<'a, str>,
        user_data: Cow<'a, str>,
    },
    Ping,
    Pong,
    /// `client-*`; `data` is the text of a JSON string, or the JSON text of any other value.
    Event {
        event: Cow<'a, str>,
        channel: Cow<'a, str>,
        data: Cow<'a, str>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe<'a> {
    pub channel: Cow<'a, str>,
    /// Empty where none was given.
    pub auth: Cow<'a, str>,
    pub channel_data: Option<Cow<'a, str>>,
}

/// A text that is no message.
#[derive(Debug, thiserror::Error)]
pub enum ClientMessageError {
    #[error("the message is not a JSON object with an event: {}", fault(.0))]
    Json(serde_json::Error),
    #[error("the data of {event} is not what it has to be: {}", fault(.source))]
    Data { event: &'static str, source: serde_json::Error },
    #[error("a client event names its channel")]
    NoChannel,
    #[error("there is no event {0:?} for clients to send; names of their own begin with client-")]
    UnknownEvent(Box<str>),
    #[error("the event's name is longer than {EVENT_NAME_BYTES_MAX} bytes or has a control character")]
    EventName,
}

/// Who a subscriber of a presence channel is: what `channel_data` holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresenceMember {
    pub user_id: Box<str>,
    /// JSON text.
    pub user_info: Option<Box<str>>,
}

/// Why `channel_data` names nobody.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    #[error("channel_data is not a JSON object with a user_id")]
    Json(#[from] serde_json::Error),
    #[error("user_id is empty or longer than {USER_ID_CHARS_MAX} characters")]
    UserId,
    #[error("the user's object has {bytes} bytes, {max} are allowed")]
    TooLarge { bytes: usize, max: usize },
}

/// Who signed in: what `user_data` holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub id: Box<str>,
    /// `user_info`, as JSON text: what others see of the user in a presence channel that it enters without
    /// `channel_data`.
    pub info: Option<Box<str>>,
    /// Users whose presence is wanted, each once.
    pub watchlist: Vec<Box<str>>,
}

/// Why `user_data` names nobody.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("user_data is not a JSON object with an id")]
    Json(#[from] serde_json::Error),
    #[error("the user's id is empty or longer than {USER_ID_CHARS_MAX} characters")]
    Length,
    #[error("the user's id has {0:?}; letters, digits and _-=@,.; are allowed")]
    Character(char),
}

impl<'a> ClientMessage<'a> {
    /// Reads one message.
    ///
    /// # Errors
    /// [`ClientMessageError`]; the connection can stay.
    pub fn parse(text: &'a str) -> Result<Self, ClientMessageError> {
        let frame: Frame<'a> = object(text).map_err(ClientMessageError::Json)?;
        Ok(match &*frame.event.0 {
            "pusher:subscribe" => {
                let data: SubscribeData<'_> = frame.data("pusher:subscribe")?;
                Self::Subscribe(Subscribe {
                    channel: data.channel.0,
                    auth: data.auth.map(|auth| auth.0).unwrap_or_default(),
                    channel_data: data.channel_data.map(|data| data.0),
                })
            }
            "pusher:unsubscribe" => {
                let data: UnsubscribeData<'_> = frame.data("pusher:unsubscribe")?;
                Self::Unsubscribe { channel: data.channel.0 }
            }
            "pusher:signin" => {
                let data: SigninData<'_> = frame.data("pusher:signin")?;
                Self::Signin { auth: data.auth.0, user_data: data.user_data.0 }
            }
            "pusher:ping" => Self::Ping,
            "pusher:pong" => Self::Pong,
            name if name.starts_with("client-") => return frame.into_client_event(),
            name => {
                // What is said back is bounded, whatever came.
                let shown = &name[..name.floor_char_boundary(EVENT_NAME_BYTES_MAX)];
                return Err(ClientMessageError::UnknownEvent(shown.into()));
            }
        })
    }
}

impl PresenceMember {
    /// Reads `channel_data`; an id that is a number is its digits.
    ///
    /// # Errors
    /// [`MemberError`].
    pub fn parse(channel_data: &str, bytes_max: usize) -> Result<Self, MemberError> {
        let data: MemberData<'_> = object(channel_data)?;
        let user_id = data.user_id.into_id();
        if user_id.is_empty() || user_id.chars().count() > USER_ID_CHARS_MAX {
            return Err(MemberError::UserId);
        }
        let user_info = data.user_info.map(JsonValue::get);
        let bytes = user_info.map_or(0, str::len);
        if bytes > bytes_max {
            return Err(MemberError::TooLarge { bytes, max: bytes_max });
        }
        Ok(Self { user_id: user_id.into(), user_info: user_info.map(Box::from) })
    }
}

impl Identity {
    /// Reads `user_data`. `true`: the watchlist is longer than [`WATCHLIST_MAX`], and only its first users count.
    ///
    /// # Errors
    /// [`UserError`].
    pub fn parse(user_data: &str) -> Result<(Self, bool), UserError> {
        let data: UserData<'_> = object(user_data)?;
        let id = data.id.into_id();
        check_user_name(&id)?;
        let too_long = data.watchlist.len() > WATCHLIST_MAX;
        let users = data.watchlist.into_iter().take(WATCHLIST_MAX).map(Id::into_id);
        // Who can be no user is never online.
        let mut watchlist: Vec<Box<str>> =
            users.filter(|user| check_user_name(user).is_ok()).map(Box::from).collect();
        watchlist.sort_unstable();
        watchlist.dedup();
        let info = data.user_info.map(|info| info.get().into());
        Ok((Self { id: id.into(), info, watchlist }, too_long))
    }
}

/// Whether a user's id can be a part of a channel's name, as that of one who signs in is.
fn check_user_name(id: &str) -> Result<(), UserError> {
    if id.is_empty() || id.chars().count() > USER_ID_CHARS_MAX {
        return Err(UserError::Length);
    }
    let is_allowed = |character: &char| character.is_ascii_alphanumeric() || "_-=@,.;".contains(*character);
    match id.chars().find(|character| !is_allowed(character)) {
        Some(character) => Err(UserError::Character(character)),
        None => Ok(()),
    }
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Frame<'a> {
    #[serde(borrow)]
    event: Text<'a>,
    #[serde(borrow, default)]
    data: Option<JsonValue<'a>>,
    #[serde(borrow, default)]
    channel: Option<Text<'a>>,
}

impl<'a> Frame<'a> {
    /// The data of an event of the protocol, in either form.
    fn data<T: FromText<'a>>(&self, event: &'static str) -> Result<T, ClientMessageError> {
        let raw = self.data.map_or("null", JsonValue::get);
        T::from_raw(raw).map_err(|source| ClientMessageError::Data { event, source })
    }

    fn into_client_event(self) -> Result<ClientMessage<'a>, ClientMessageError> {
        let (event, channel) = (self.event.0, self.channel.ok_or(ClientMessageError::NoChannel)?.0);
        if event.len() > EVENT_NAME_BYTES_MAX || event.chars().any(char::is_control) {
            return Err(ClientMessageError::EventName);
        }
        let data = self.data.map_or(Cow::Borrowed("null"), JsonValue::into_text);
        Ok(ClientMessage::Event { event, channel, data })
    }
}

/// What can be read from an object, or from a string that holds one.
trait FromText<'a>: Sized {
    fn from_raw(raw: &'a str) -> serde_json::Result<Self>;
}

macro_rules! from_text {
    ($data:ident { $($field:ident),* }) => {
        impl<'a> FromText<'a> for $data<'a> {
            fn from_raw(raw: &'a str) -> serde_json::Result<Self> {
                if !raw.starts_with('"') {
                    return object(raw);
                }
                let text: String = serde_json::from_str(raw)?;
                let data: $data<'_> = object(&text)?;
                Ok($data { $($field: data.$field.into_owned()),* })
            }
        }
    };
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct SubscribeData<'a> {
    #[serde(borrow)]
    channel: Text<'a>,
    #[serde(borrow, default)]
    auth: Option<Text<'a>>,
    #[serde(borrow, default)]
    channel_data: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct UnsubscribeData<'a> {
    #[serde(borrow)]
    channel: Text<'a>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct SigninData<'a> {
    #[serde(borrow)]
    auth: Text<'a>,
    #[serde(borrow)]
    user_data: Text<'a>,
}

from_text!(SubscribeData { channel, auth, channel_data });
from_text!(UnsubscribeData { channel });
from_text!(SigninData { auth, user_data });

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct MemberData<'a> {
    #[serde(borrow)]
    user_id: Id<'a>,
    #[serde(borrow, default)]
    user_info: Option<JsonValue<'a>>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct UserData<'a> {
    #[serde(borrow)]
    id: Id<'a>,
    #[serde(borrow, default)]
    user_info: Option<JsonValue<'a>>,
    #[serde(borrow, default)]
    watchlist: Vec<Id<'a>>,
}

/// A string that borrows when it holds no escapes; serde does not see through `Option<Cow<str>>` by itself.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A string, or a number whose digits are meant.
#[derive(Deserialize)]
#[serde(untagged)]
enum Id<'a> {
    Text(#[serde(borrow)] Cow<'a, str>),
    Unsigned(u64),
    Signed(i64),
}

/// A value that no longer borrows from the text it was read from.
trait IntoOwned<'a> {
    type Owned;
    fn into_owned(self) -> Self::Owned;
}

impl<'a> IntoOwned<'a> for Text<'_> {
    type Owned = Text<'a>;
    fn into_owned(self) -> Text<'a> {
        Text(Cow::Owned(self.0.into_owned()))
    }
}

impl<'a> IntoOwned<'a> for Option<Text<'_>> {
    type Owned = Option<Text<'a>>;
    fn into_owned(self) -> Option<Text<'a>> {
        self.map(|text| Text(Cow::Owned(text.0.into_owned())))
    }
}

impl Id<'_> {
    fn into_id(self) -> String {
        match self {
            Self::Text(text) => text.into_owned(),
            Self::Unsigned(number) => number.to_string(),
            Self::Signed(number) => number.to_string(),
        }
    }
}

/// Reads an object; serde would read a struct from an array as well, by position.
fn object<'a, T: Deserialize<'a>>(text: &'a str) -> serde_json::Result<T> {
    if text.trim_start().starts_with('[') {
        return Err(serde::de::Error::custom("invalid type: sequence, expected an object"));
    }
    serde_json::from_str(text)
}

#[cfg(test)]
mod tests;
