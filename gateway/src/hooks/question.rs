//! What an application is asked, and what it says: the same in every dialect.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use http::{HeaderName, HeaderValue};
use serde_json::value::RawValue;
use tidegate_backplane::Payload;

use super::subscription::{Overrides, ServerSubscription};
use crate::config::{HookQuestion, Pattern};

/// A question of one client, for whose answer it waits.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) kind: HookQuestion,
    pub(crate) caller: Caller,
    /// The channel that a subscription or publication is for, as its client names it.
    pub(crate) channel: Option<Box<str>>,
    /// What the client sent: a publication, a message, or what its protocol lets it say with a question.
    pub(crate) payload: Option<Payload>,
    /// The event of a publication, or the method of a call.
    pub(crate) name: Option<Box<str>>,
}

/// Who waits for the answer.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The connection's name in the cluster.
    pub(crate) connection: Box<str>,
    pub(crate) protocol: &'static str,
    /// How it has come: `websocket`, `sse`, `http_stream`.
    pub(crate) way: &'static str,
    /// Whether it speaks Protobuf.
    pub(crate) is_binary: bool,
    pub(crate) user: Option<Box<str>>,
    pub(crate) known: Arc<Known>,
}

/// What is kept of a connection for later questions: what the application knows it by, and what its request said.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    /// What the application returned; clients never see it.
    pub(crate) state: Option<Box<str>>,
    /// It was let in by the application's word, and not by a token.
    pub(crate) is_asked: bool,
    pub(crate) request: Arc<HandedOn>,
}

/// What is handed on of a client's request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HandedOn {
    pub(crate) address: Option<IpAddr>,
    /// The channels that its URL names.
    pub(crate) channels: Vec<Box<str>>,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) cookies: Vec<(Box<str>, Box<str>)>,
    pub(crate) query: Vec<(Box<str>, Box<str>)>,
    /// What the client calls itself, and its version, where its protocol lets it say so.
    pub(crate) client: (Box<str>, Box<str>),
}

/// The application has said yes, and this.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    pub(crate) user: Option<Box<str>>,
    /// Until when what it allows lasts; `None`: as long as the connection.
    pub(crate) expires: Option<SystemTime>,
    /// What other members see in presence: JSON. With `subscribe` it is the subscription's.
    pub(crate) info: Option<Box<str>>,
    /// With `subscribe`.
    pub(crate) overrides: Overrides,
    /// Channels that the connection may subscribe to without a further question.
    pub(crate) channels: Vec<Pattern>,
    /// Channels that it may publish to, of those that clients may publish to at all.
    pub(crate) publish: Vec<Pattern>,
    /// Channels that the connection is subscribed to.
    pub(crate) subscribe: Vec<(Box<str>, ServerSubscription)>,
    /// For the client: JSON with `connect` and `subscribe`, the answer to a message, or what is published in place of what
    /// was sent.
    pub(crate) data: Option<Payload>,
    /// `None`: as it was.
    pub(crate) state: Option<Box<str>>,
}

/// Why something is not done.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum No {
    /// The application has said so: a status, or a code of its own, and words for the client.
    #[error("{message}")]
    Said { code: u16, message: Box<str> },
    /// The same, and the connection is to be closed with this code.
    #[error("{reason}")]
    Disconnect { code: u16, reason: Box<str> },
    #[error("the application has not answered; try again")]
    Away,
}

/// An answer that says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer cannot be read: {0}")]
pub(crate) struct Unreadable(pub(crate) &'static str);

/// What was made of an answer.
pub(crate) type Read = Result<Result<Reply, No>, Unreadable>;

/// Longest text of a refusal that a client is told.
const MESSAGE_CHARACTERS_MAX: usize = 200;

impl No {
    /// A refusal in the application's words, or in ours where it has none.
    pub(crate) fn said(code: u16, message: &str) -> Self {
        let message = message.trim();
        let is_text = !message.is_empty() && !message.chars().any(char::is_control);
        let message = if is_text { message } else { "the application refuses it" };
        Self::Said { code, message: message.chars().take(MESSAGE_CHARACTERS_MAX).collect::<String>().into() }
    }

    /// A status as in HTTP.
    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::Said { code, .. } if (400..500).contains(code) => *code,
            Self::Said { .. } | Self::Disconnect { .. } => 403,
            Self::Away => 503,
        }
    }
}

/// JSON that an application gives for its clients, as text.
pub(crate) fn json(value: &RawValue) -> Option<Box<str>> {
    (value.get() != "null").then(|| value.get().into())
}
