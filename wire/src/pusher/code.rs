//! The codes of errors and of closes, and what each has clients do.

use crate::frame::CloseCode;

/// A code of `pusher:error`, and where it is one, of the close frame that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Code(pub u16);

impl Code {
    /// No app has this key.
    pub const NO_APP: Self = Self(4001);
    pub const APP_DISABLED: Self = Self(4003);
    /// The app has as many connections as it may.
    pub const OVER_QUOTA: Self = Self(4004);
    pub const PATH: Self = Self(4005);
    /// `protocol` is no number.
    pub const VERSION_FORMAT: Self = Self(4006);
    pub const VERSION_UNSUPPORTED: Self = Self(4007);
    pub const VERSION_MISSING: Self = Self(4008);
    pub const UNAUTHORIZED: Self = Self(4009);
    pub const OVER_CAPACITY: Self = Self(4100);
    pub const RECONNECT: Self = Self(4200);
    /// A ping was not answered.
    pub const NO_PONG: Self = Self(4201);
    /// An error, not a close.
    pub const CLIENT_EVENT_RATE: Self = Self(4301);
    /// An error, not a close.
    pub const WATCHLIST: Self = Self(4302);

    /// What it says to people.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::NO_APP => "there is no app with this key",
            Self::APP_DISABLED => "the app is disabled",
            Self::OVER_QUOTA => "the app has as many connections as it may",
            Self::PATH => "the path is not /app/KEY",
            Self::VERSION_FORMAT => "the protocol version is not a number",
            Self::VERSION_UNSUPPORTED => "this protocol version is not supported, 5 to 7 are",
            Self::VERSION_MISSING => "no protocol version was given",
            Self::UNAUTHORIZED => "not authorized",
            Self::OVER_CAPACITY => "over capacity, try again later",
            Self::RECONNECT => "reconnect",
            Self::NO_PONG => "a ping was not answered in time",
            Self::CLIENT_EVENT_RATE => "client events come faster than allowed",
            Self::WATCHLIST => "the watchlist is longer than allowed",
            Self(_) => "error",
        }
    }
}

impl From<Code> for CloseCode {
    fn from(code: Code) -> Self {
        Self(code.0)
    }
}
