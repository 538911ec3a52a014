//! Every refusal over HTTP as one typed error, and its RFC 9457 problem document.

use std::time::Duration;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use tidegate_backplane::{BackplaneError, ChannelError};

use crate::{
    auth::ApiKeyError,
    event::EventNameError,
    node::PublishError,
    problem::{PROBLEM_MEDIA_TYPE, Place, Problem, RefusedBecause},
};

/// What a client is told to wait when the backplane is away: reconnects to it are tried within a second.
const BACKPLANE_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("{reason}")]
    InvalidJson { reason: Box<str>, at: Place },
    #[error(transparent)]
    InvalidChannel(#[from] ChannelError),
    #[error("{place} `{name}`: {fault}")]
    InvalidParameter { place: ParameterPlace, name: Box<str>, fault: ParameterFault },
    #[error(
        "the body is not UTF-8 from byte {valid_up_to} on; send binary payloads as application/octet-stream"
    )]
    InvalidText { valid_up_to: usize },
    #[error("the body ended before it was complete")]
    BodyIncomplete,
    #[error(transparent)]
    Key(ApiKeyError),
    #[error("pages of this origin may not do this")]
    OriginRefused,
    #[error("there is nothing at this path")]
    NotFound,
    #[error("no node has a connection of this name")]
    NoConnection,
    #[error("as many watch this node's console as it serves: close one, or open that of another node")]
    TooManyWatchers,
    #[error(
        "there is nothing at this path of a Tidegate gateway: /openapi.json lists its HTTP API; clients connect at /ws, \
         /sse, /app/KEY and /connection/websocket"
    )]
    NoSuchPath,
    #[error("the channel's namespace keeps no presence")]
    PresenceOff,
    #[error("this path does not answer this method; the Allow header lists those it does")]
    MethodNotAllowed,
    #[error("the body was not complete after {} s", .0.as_secs())]
    BodyTimeout(Duration),
    #[error("the body is larger than {max} bytes")]
    BodyTooLarge { max: usize },
    #[error("the payload has {bytes} bytes, {max} are allowed")]
    PayloadTooLarge { bytes: usize, max: usize },
    #[error("{number} publications in one request, counting each channel; {max} are allowed")]
    TooManyPublications { number: usize, max: usize },
    #[error("this path takes application/json")]
    UnsupportedMediaType,
    #[error("the body has a Content-Encoding, and no coding is decoded here; send it as it is")]
    ContentCoding,
    #[error("this node has more publications under way than it takes")]
    Overloaded { retry_after: Duration },
    #[error(transparent)]
    Backplane(BackplaneError),
}

/// Which part of the request held the parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ParameterPlace {
    Query,
    Header,
}

/// What is wrong with a query parameter or header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParameterFault {
    #[error("not a parameter of this path")]
    Unknown,
    #[error("given more than once")]
    Repeated,
    #[error("has a malformed percent-encoding, or is not UTF-8")]
    Encoding,
    #[error("is not ASCII text")]
    Text,
    #[error("must be a whole number from {min} to {max}")]
    Number { min: usize, max: usize },
    #[error("must be a position of the form EPOCH:OFFSET")]
    Position,
    #[error("must be at most {max} of the characters a channel name has")]
    ChannelPart { max: usize },
    #[error(transparent)]
    Event(#[from] EventNameError),
    #[error("must be 1 to {max} visible ASCII characters")]
    Key { max: usize },
    #[error("must have 1 to {max} characters")]
    Length { max: usize },
}

impl std::fmt::Display for ParameterPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Query => "query parameter",
            Self::Header => "header",
        })
    }
}

impl ApiError {
    /// The HTTP status code.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::InvalidJson { .. }
            | Self::InvalidChannel(_)
            | Self::InvalidParameter { .. }
            | Self::InvalidText { .. }
            | Self::BodyIncomplete
            | Self::TooManyPublications { .. } => StatusCode::BAD_REQUEST,
            Self::Key(error) => error.status(),
            Self::OriginRefused => StatusCode::FORBIDDEN,
            Self::NotFound | Self::NoSuchPath | Self::NoConnection | Self::PresenceOff => {
                StatusCode::NOT_FOUND
            }
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTimeout(_) => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge { .. } | Self::PayloadTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType | Self::ContentCoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Overloaded { .. } | Self::TooManyWatchers | Self::Backplane(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    /// Last part of the problem type, and the title that belongs to it.
    pub(crate) fn kind(&self) -> (&'static str, &'static str) {
        match self {
            Self::InvalidJson { .. } => ("invalid-json", "The JSON body is not what this path takes"),
            Self::InvalidChannel(_) => ("invalid-channel", "Not a channel name"),
            Self::InvalidParameter { .. } => ("invalid-parameter", "A parameter or header has a wrong value"),
            Self::InvalidText { .. } => ("invalid-text", "The text payload is not UTF-8"),
            Self::BodyIncomplete => ("body-incomplete", "The body broke off"),
            Self::Key(ApiKeyError::Missing | ApiKeyError::Unknown) => {
                ("unauthorized", "A valid API key is needed")
            }
            Self::Key(ApiKeyError::Scope(_) | ApiKeyError::Channel | ApiKeyError::Connection) => {
                ("forbidden", "The API key does not allow this")
            }
            Self::Key(ApiKeyError::Rate { .. }) => ("rate-limited", "More requests than the limit allows"),
            Self::OriginRefused => ("origin-refused", "The origin is not allowed"),
            Self::NotFound | Self::NoSuchPath | Self::NoConnection => ("not-found", "Nothing here"),
            Self::TooManyWatchers => ("overloaded", "The node is overloaded"),
            Self::PresenceOff => ("presence-off", "The channel keeps no presence"),
            Self::MethodNotAllowed => ("method-not-allowed", "Method not allowed here"),
            Self::BodyTimeout(_) => ("body-timeout", "The body took too long"),
            Self::BodyTooLarge { .. } => ("body-too-large", "The body is too large"),
            Self::PayloadTooLarge { .. } => ("payload-too-large", "The payload is too large"),
            Self::TooManyPublications { .. } => {
                ("too-many-publications", "Too many publications in one request")
            }
            Self::UnsupportedMediaType | Self::ContentCoding => {
                ("unsupported-media-type", "Unsupported media type")
            }
            Self::Overloaded { .. } => ("overloaded", "The node is overloaded"),
            Self::Backplane(BackplaneError::Unavailable(_)) => {
                ("backplane-unavailable", "The backplane is out of reach")
            }
            Self::Backplane(BackplaneError::Unconfirmed(_)) => {
                ("backplane-unconfirmed", "The backplane did not answer")
            }
            Self::Backplane(BackplaneError::Overloaded(_)) => {
                ("backplane-overloaded", "The backplane has no room")
            }
            Self::Backplane(BackplaneError::Refused(_)) => ("backplane-refused", "The backplane refused"),
        }
    }

    /// How long the client should wait, where waiting helps.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after } | Self::Key(ApiKeyError::Rate { retry_after }) => {
                Some(*retry_after)
            }
            Self::Backplane(
                BackplaneError::Unavailable(_)
                | BackplaneError::Overloaded(_)
                | BackplaneError::Unconfirmed(_),
            ) => Some(BACKPLANE_RETRY_AFTER),
            _ => None,
        }
    }

    /// The problem document.
    pub(crate) fn problem(&self) -> Problem {
        let (name, title) = self.kind();
        let at = match self {
            Self::InvalidJson { at, .. } => Some(at.clone()),
            _ => None,
        };
        Problem { at, ..Problem::new(name, title, self.status().as_u16(), self.to_string()) }
    }

    /// RFC 6750 section 3: the challenge names the error only when a key was given.
    fn challenge(&self) -> Option<&'static str> {
        match self {
            Self::Key(ApiKeyError::Missing) => Some(r#"Bearer realm="tidegate""#),
            Self::Key(ApiKeyError::Unknown) => Some(r#"Bearer realm="tidegate", error="invalid_token""#),
            Self::Key(ApiKeyError::Rate { .. }) => None,
            Self::Key(_) => Some(r#"Bearer realm="tidegate", error="insufficient_scope""#),
            _ => None,
        }
    }

    /// Whether unread bytes of the body may follow on the connection, which must then be closed.
    fn leaves_body_unread(&self) -> bool {
        matches!(
            self,
            Self::BodyTooLarge { .. } | Self::BodyTimeout(_) | Self::BodyIncomplete | Self::ContentCoding
        )
    }
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Overloaded { retry_after } => Self::Overloaded { retry_after },
            PublishError::Backplane(error) => Self::Backplane(error),
            PublishError::TooLarge { bytes, max } => Self::PayloadTooLarge { bytes, max },
        }
    }
}

impl From<BackplaneError> for ApiError {
    fn from(error: BackplaneError) -> Self {
        Self::Backplane(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = self.problem();
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status();
        response.extensions_mut().insert(RefusedBecause(problem.detail.into()));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_MEDIA_TYPE));
        if let Some(challenge) = self.challenge() {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if let Some(wait) = self.retry_after() {
            // Whole seconds (RFC 9110 section 10.2.3), rounded up: never earlier than asked.
            headers.insert(
                header::RETRY_AFTER,
                HeaderValue::from(wait.as_millis().div_ceil(1000).max(1) as u64),
            );
        }
        if self.leaves_body_unread() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
