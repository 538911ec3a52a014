//! The numbers of errors, ends of subscriptions and closes, with what clients read from them.

use super::message;

/// Why a command is refused. The connection stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ErrorCode {
    Internal = 100,
    Unauthorized = 101,
    UnknownChannel = 102,
    PermissionDenied = 103,
    MethodNotFound = 104,
    AlreadySubscribed = 105,
    LimitExceeded = 106,
    BadRequest = 107,
    NotAvailable = 108,
    TokenExpired = 109,
    Expired = 110,
    TooManyRequests = 111,
    UnrecoverablePosition = 112,
}

/// Why a subscription ends that its client did not end. From 2500 on the client subscribes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Unsubscribed {
    Server = 2000,
    InsufficientState = 2500,
    Expired = 2501,
}

/// Why a connection is closed: the code of the close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Disconnect {
    ConnectionClosed = 3000,
    Shutdown = 3001,
    ServerError = 3004,
    Expired = 3005,
    SubscriptionExpired = 3006,
    Slow = 3008,
    InsufficientState = 3010,
    ForceReconnect = 3011,
    NoPong = 3012,
    TooManyRequests = 3013,
    InvalidToken = 3500,
    BadRequest = 3501,
    Stale = 3502,
    Force = 3503,
    ConnectionLimit = 3504,
    ChannelLimit = 3505,
    PermissionDenied = 3507,
    NotAvailable = 3508,
}

impl ErrorCode {
    pub const ALL: [Self; 13] = [
        Self::Internal,
        Self::Unauthorized,
        Self::UnknownChannel,
        Self::PermissionDenied,
        Self::MethodNotFound,
        Self::AlreadySubscribed,
        Self::LimitExceeded,
        Self::BadRequest,
        Self::NotAvailable,
        Self::TokenExpired,
        Self::Expired,
        Self::TooManyRequests,
        Self::UnrecoverablePosition,
    ];

    /// Clients try the command again, after a wait of their own.
    #[must_use]
    pub fn is_temporary(self) -> bool {
        matches!(self, Self::Internal | Self::TooManyRequests)
    }

    /// The words that clients know.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Internal => "internal server error",
            Self::Unauthorized => "unauthorized",
            Self::UnknownChannel => "unknown channel",
            Self::PermissionDenied => "permission denied",
            Self::MethodNotFound => "method not found",
            Self::AlreadySubscribed => "already subscribed",
            Self::LimitExceeded => "limit exceeded",
            Self::BadRequest => "bad request",
            Self::NotAvailable => "not available",
            Self::TokenExpired => "token expired",
            Self::Expired => "expired",
            Self::TooManyRequests => "too many requests",
            Self::UnrecoverablePosition => "unrecoverable position",
        }
    }
}

impl From<ErrorCode> for message::Error {
    fn from(code: ErrorCode) -> Self {
        Self { code: code as u32, message: code.text().to_owned(), temporary: code.is_temporary() }
    }
}

impl Unsubscribed {
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Server => "server unsubscribe",
            Self::InsufficientState => "insufficient state",
            Self::Expired => "expired",
        }
    }
}

impl From<Unsubscribed> for message::Unsubscribe {
    fn from(code: Unsubscribed) -> Self {
        Self { code: code as u32, reason: code.text().to_owned() }
    }
}

impl Disconnect {
    pub const ALL: [Self; 18] = [
        Self::ConnectionClosed,
        Self::Shutdown,
        Self::ServerError,
        Self::Expired,
        Self::SubscriptionExpired,
        Self::Slow,
        Self::InsufficientState,
        Self::ForceReconnect,
        Self::NoPong,
        Self::TooManyRequests,
        Self::InvalidToken,
        Self::BadRequest,
        Self::Stale,
        Self::Force,
        Self::ConnectionLimit,
        Self::ChannelLimit,
        Self::PermissionDenied,
        Self::NotAvailable,
    ];

    /// Whether its client comes back by itself. Clients read it from the number: 3500 to 3999 are final.
    #[must_use]
    pub fn comes_back(self) -> bool {
        (self as u16) < 3500
    }

    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::ConnectionClosed => "connection closed",
            Self::Shutdown => "shutdown",
            Self::ServerError => "internal server error",
            Self::Expired => "connection expired",
            Self::SubscriptionExpired => "subscription expired",
            Self::Slow => "slow",
            Self::InsufficientState => "insufficient state",
            Self::ForceReconnect => "force reconnect",
            Self::NoPong => "no pong",
            Self::TooManyRequests => "too many requests",
            Self::InvalidToken => "invalid token",
            Self::BadRequest => "bad request",
            Self::Stale => "stale",
            Self::Force => "force disconnect",
            Self::ConnectionLimit => "connection limit",
            Self::ChannelLimit => "channel limit",
            Self::PermissionDenied => "permission denied",
            Self::NotAvailable => "not available",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What docs/centrifuge.md says is what is sent.
    #[test]
    fn the_page_lists_every_number() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/centrifuge.md");
        let page = std::fs::read_to_string(page).expect("the page");
        for code in ErrorCode::ALL {
            let retried = if code.is_temporary() { "yes" } else { "no" };
            let row = format!("| {} | {} | {retried} |", code as u32, code.text());
            assert!(page.contains(&row), "{row}");
        }
        for code in Disconnect::ALL {
            let comes_back = if code.comes_back() { "yes" } else { "no" };
            let row = format!("| {} | {} | {comes_back} |", code as u16, code.text());
            assert!(page.contains(&row), "{row}");
        }
        for code in [Unsubscribed::Server, Unsubscribed::InsufficientState, Unsubscribed::Expired] {
            let again = if code as u32 >= 2500 { "yes" } else { "no" };
            let row = format!("| {} | {} | {again} |", code as u32, code.text());
            assert!(page.contains(&row), "{row}");
        }
    }
}
