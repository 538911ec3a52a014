//! Why a request of Pusher's HTTP API is refused: a status, and a sentence as plain text, as its SDKs expect.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::error::Category;
use tidegate_backplane::{BackplaneError, ChannelError};
use tidegate_wire::pusher::NameError;

use crate::{event::EventNameError, http::ApiError, node::PublishError, problem::RefusedBecause};

/// Where Pusher's own sentence is known, it is this one.
#[derive(Debug, thiserror::Error)]
pub(super) enum PusherError {
    #[error("Unknown app")]
    UnknownApp,
    #[error("Unknown auth_key")]
    UnknownKey,
    #[error("Version not supported")]
    Version,
    #[error("Timestamp required")]
    TimestampMissing,
    #[error("Timestamp expired: Given timestamp ({}) not within 600s of server time ({})", Utc(*given_s), Utc(*now_s))]
    TimestampExpired { given_s: u64, now_s: u64 },
    #[error(
        "Invalid signature: you should have sent HmacSHA256Hex({signed:?}, your_secret_key), but you sent {sent:?}"
    )]
    Signature { signed: Box<str>, sent: Box<str> },
    #[error(
        "Invalid body_md5: a request with a body has the MD5 of the body as body_md5, in hexadecimal digits"
    )]
    BodyMd5,
    #[error("The app is disabled")]
    AppDisabled,
    #[error("There is nothing at this path")]
    NotFound,
    #[error("This path takes {allow} requests")]
    MethodNotAllowed { allow: Method },
    #[error("Invalid body: {member} {} (line {}, column {})", json_fault(.error), .error.line(), .error.column())]
    Json { member: Box<str>, error: serde_json::Error },
    #[error("Invalid body: the data is not UTF-8")]
    Text,
    #[error("Give the channels of an event as channel or as channels, not both")]
    BothWays,
    #[error("Missing required parameter: {0}")]
    Missing(&'static str),
    #[error("Invalid channel name {name:?}: {error}")]
    Channel { name: Box<str>, error: NameError },
    #[error(transparent)]
    Inside(ChannelError),
    #[error("Invalid user id: a percent-encoding in the path is malformed, or not UTF-8")]
    UserId,
    #[error("Invalid event name: {0}")]
    Event(EventNameError),
    #[error("Invalid socket id: it has the form 123.456")]
    SocketId,
    #[error("Events may be sent to at most {max} channels at once")]
    TooManyChannels { max: u32 },
    #[error("A batch has at most {max} events")]
    TooManyEvents { max: u32 },
    #[error("Unknown info attribute {0:?}")]
    UnknownInfo(Box<str>),
    #[error("user_count is of presence channels only; give a filter_by_prefix that begins with presence-")]
    UserCountOfPrefix,
    #[error("user_count is of presence channels only")]
    UserCountOfOthers,
    #[error("cache is of cache channels only")]
    CacheOfOthers,
    #[error("Users are of presence channels only")]
    UsersOfOthers,
    #[error("The data content of this event exceeds the allowed maximum ({max} bytes).")]
    TooLarge { max: usize },
    #[error("Rate limit exceeded")]
    RateLimited,
    #[error(transparent)]
    Body(ApiError),
    #[error("This node has more events under way than it takes")]
    Overloaded,
    #[error(transparent)]
    Backplane(BackplaneError),
}

/// The parser's own words name types of ours, which say nothing to who wrote the body.
fn json_fault(error: &serde_json::Error) -> &'static str {
    match error.classify() {
        Category::Eof => "ends before the JSON is complete",
        Category::Syntax | Category::Io => "is no JSON, or a string in it is no text",
        Category::Data => "is not what this path takes",
    }
}

impl PusherError {
    fn status(&self) -> StatusCode {
        match self {
            Self::UnknownApp
            | Self::UnknownKey
            | Self::Version
            | Self::TimestampMissing
            | Self::TimestampExpired { .. }
            | Self::Signature { .. }
            | Self::BodyMd5 => StatusCode::UNAUTHORIZED,
            Self::AppDisabled => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::Body(error) => error.status(),
            Self::Overloaded | Self::Backplane(_) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

impl IntoResponse for PusherError {
    fn into_response(self) -> Response {
        let status = self.status();
        let text = self.to_string();
        let mut response = Response::new(Body::from(format!("{text}\n")));
        *response.status_mut() = status;
        response.extensions_mut().insert(RefusedBecause(text.into()));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Self::MethodNotAllowed { allow } = &self
            && let Ok(allow) = HeaderValue::from_str(allow.as_str())
        {
            headers.insert(header::ALLOW, allow);
        }
        response
    }
}

impl From<PublishError> for PusherError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Overloaded { .. } => Self::Overloaded,
            PublishError::Backplane(error) => Self::Backplane(error),
            PublishError::TooLarge { max, .. } => Self::TooLarge { max },
        }
    }
}

/// Seconds since 1970 as `2013-06-17T15:39:38Z`.
struct Utc(u64);

impl std::fmt::Display for Utc {
    /// Days to a date: years are counted from March, so that the day that a leap year adds is the last one, in eras of
    /// 400 years, which all have 146,097 days.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (days, second) = (self.0 / 86_400, self.0 % 86_400);
        // From 1 March of the year 0 to 1 January 1970.
        let days = days + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        // From March on, five months have 153 days.
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        let year = era * 400 + year + carry;
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `date -u -d @N +%FT%TZ`.
    #[test]
    fn dates() {
        for (seconds, expect) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_234, "1970-01-01T00:20:34Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_353_088_179, "2012-11-16T17:49:39Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(Utc(seconds).to_string(), expect, "{seconds}");
        }
    }
}
