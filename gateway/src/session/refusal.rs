//! Why a handshake is refused: each reason knows its answer, its count, and what to do about it.

use std::{borrow::Cow, time::Duration};

use tidegate_backplane::{BackplaneError, ChannelError, PositionError};
use tidegate_wire::{http_answer, raw::QueryError, request::RequestError, sse, upgrade::UpgradeError};

use super::{Ctx, Earlier, Phase, protocol::ProtocolId};
use crate::{
    admission::Over,
    auth::{ApiKeyError, TokenError},
    hooks::No,
    metrics::{AuthFailure, HandshakeResult},
    problem::{PROBLEM_MEDIA_TYPE, Problem, log_refusal},
};

#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("the request head did not arrive in time")]
    HeadTimeout,
    #[error("more than {max} bytes came before the answer")]
    TooEarly { max: usize },
    #[error("the body of this request has at most {max} bytes, and its Content-Length says how many")]
    Body { max: usize },
    #[error("disconnected by order: {0}")]
    Ordered(Box<str>),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("channel: {0}")]
    Channel(#[from] ChannelError),
    #[error("channel: name at least one channel, for example ?channel=news")]
    NoChannel,
    #[error(
        "channel: {given} channels are named, {max} are allowed on one connection with these credentials"
    )]
    TooManyChannels { given: usize, max: usize },
    #[error("this node has subscribers in as many channels as it is configured for")]
    NoChannels,
    #[error("join_leave: the namespace of no channel of this URL keeps presence; turn presence on for one")]
    NoPresence,
    #[error("channel: {0} is named twice")]
    RepeatedChannel(tidegate_backplane::Channel),
    #[error("since: {0}")]
    Position(#[from] PositionError),
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    #[error("pages of this origin may not connect; add it to auth.allowed_origins")]
    Origin,
    #[error("the channel {channel} needs a token: ?token=… or Authorization: Bearer …")]
    TokenMissing { channel: tidegate_backplane::Channel },
    #[error("the token is refused: {0}")]
    Token(#[from] TokenError),
    #[error("the credentials are refused: {0}")]
    ApiKey(#[from] ApiKeyError),
    #[error("the token does not allow to subscribe to {channel}")]
    Rights { channel: tidegate_backplane::Channel },
    #[error("{}", over_text(*.0))]
    Over(Over),
    #[error("this node is draining")]
    Draining,
    #[error(transparent)]
    Backplane(#[from] BackplaneError),
    #[error(transparent)]
    Application(#[from] No),
}

/// How long refused clients are told to wait: between 1 and 4 s, spread so that they do not all come back at once.
const RETRY_AFTER_S: std::ops::RangeInclusive<u64> = 1..=4;

impl Ctx<'_> {
    /// Answers and ends a handshake.
    pub(crate) fn refuse(&mut self, refusal: &Refusal) {
        let (mut protocol, mut origin) = (None, None);
        if let Some(Phase::Opening(opening)) = self.session().map(|session| &session.phase) {
            (protocol, origin) = (Some(opening.protocol()), opening.cross_origin().map(str::to_owned));
        }
        self.refuse_as(refusal, protocol, origin.as_deref());
    }

    /// The same where the protocol of the request is known, and the origin of the page that may read the answer. Any status
    /// but 200 ends an event source for good (WHATWG HTML 9.2.3), so what will pass is told it in a stream that ends.
    pub(crate) fn refuse_as(
        &mut self,
        refusal: &Refusal,
        protocol: Option<ProtocolId>,
        origin: Option<&str>,
    ) {
        let protocol = protocol.map(|protocol| protocol.of_list(self.core.shared.protocols));
        let is_stream = protocol.is_some_and(|protocol| protocol.is_event_source());
        match refusal.passing().filter(|_| is_stream) {
            Some(why) => self.refuse_with(refusal, |spread, out| {
                sse::write_come_back(refusal.retry_after(spread) * 1000, why, origin, out);
            }),
            None => self.refuse_with(refusal, |spread, out| refusal.write(spread, origin, out)),
        }
    }

    fn refuse_with(&mut self, refusal: &Refusal, write: impl FnOnce(u64, &mut Vec<u8>)) {
        self.set_earlier(Earlier::None);
        self.core.metrics.handshakes.add(refusal.result(), 1);
        if let Some(failure) = refusal.auth_failure() {
            self.core.shared.metrics.node.auth_failures.add(failure, 1);
        }
        log_refusal("handshake", refusal);
        let spread = u64::from(self.id.generation);
        self.write(|out| write(spread, out));
        if let Some(session) = self.connections.get_mut(self.id)
            && let Phase::Opening(opening) = std::mem::replace(&mut session.phase, Phase::Leaving(None))
        {
            self.abandon_opening(*opening);
        }
        self.connections.shut_when_flushed(self.id);
        self.set_leave_timer();
    }
}

impl Refusal {
    /// Status, reason phrase, and name of the problem type (see `docs/errors.md`).
    fn answer(&self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Request(error @ RequestError::TooLarge { .. }) => {
                (error.status().0, error.status().1, "head-too-large")
            }
            Self::Request(error) => (error.status().0, error.status().1, "malformed-request"),
            Self::TooEarly { .. } => (400, "Bad Request", "malformed-request"),
            Self::Body { .. } => (413, "Content Too Large", "body-too-large"),
            Self::HeadTimeout => (408, "Request Timeout", "head-timeout"),
            Self::Query(_) | Self::Position(_) => (400, "Bad Request", "invalid-parameter"),
            Self::Channel(_) | Self::NoChannel | Self::RepeatedChannel(_) | Self::TooManyChannels { .. } => {
                (400, "Bad Request", "invalid-channel")
            }
            Self::NoPresence => (404, "Not Found", "presence-off"),
            Self::Upgrade(error) => (error.status().0, error.status().1, "invalid-upgrade"),
            Self::TokenMissing { .. } | Self::Token(_) => (401, "Unauthorized", "unauthorized"),
            Self::ApiKey(error) if error.status() == http::StatusCode::UNAUTHORIZED => {
                (401, "Unauthorized", "unauthorized")
            }
            Self::ApiKey(ApiKeyError::Rate { .. }) => (429, "Too Many Requests", "rate-limited"),
            Self::Origin => (403, "Forbidden", "origin-refused"),
            Self::Rights { .. } | Self::ApiKey(_) | Self::Ordered(_) => (403, "Forbidden", "forbidden"),
            Self::Over(Over::Address) => (429, "Too Many Requests", "too-many-connections"),
            Self::Over(Over::Rate { .. } | Over::AddressRate { .. }) => {
                (429, "Too Many Requests", "too-many-handshakes")
            }
            Self::Over(Over::Node) | Self::NoChannels => (503, "Service Unavailable", "no-capacity"),
            Self::Draining => (503, "Service Unavailable", "draining"),
            Self::Application(No::Away) => (503, "Service Unavailable", "application-away"),
            Self::Application(no) => (no.status(), reason_of(no.status()), "application-refused"),
            Self::Backplane(
                BackplaneError::Unavailable(_)
                | BackplaneError::Overloaded(_)
                | BackplaneError::Unconfirmed(_),
            ) => (503, "Service Unavailable", "backplane-unavailable"),
            Self::Backplane(BackplaneError::Refused(_)) => (503, "Service Unavailable", "backplane-refused"),
        }
    }

    pub(crate) fn result(&self) -> HandshakeResult {
        match self {
            Self::HeadTimeout => HandshakeResult::Timeout,
            Self::TokenMissing { .. } | Self::Token(_) => HandshakeResult::Unauthorized,
            Self::ApiKey(error) if error.status() == http::StatusCode::UNAUTHORIZED => {
                HandshakeResult::Unauthorized
            }
            Self::ApiKey(ApiKeyError::Rate { .. }) => HandshakeResult::RateLimit,
            Self::Rights { .. } | Self::ApiKey(_) | Self::Ordered(_) => HandshakeResult::Forbidden,
            Self::Origin => HandshakeResult::OriginRefused,
            Self::Over(over) => over.result(),
            Self::NoChannels => HandshakeResult::NodeLimit,
            Self::Draining => HandshakeResult::Draining,
            Self::Application(No::Away) => HandshakeResult::ApplicationAway,
            Self::Application(_) => HandshakeResult::ApplicationRefused,
            Self::Backplane(
                BackplaneError::Unavailable(_)
                | BackplaneError::Overloaded(_)
                | BackplaneError::Unconfirmed(_),
            ) => HandshakeResult::BackplaneUnavailable,
            Self::Backplane(BackplaneError::Refused(_)) => HandshakeResult::BackplaneRefused,
            _ => HandshakeResult::BadRequest,
        }
    }

    pub(crate) fn auth_failure(&self) -> Option<AuthFailure> {
        Some(match self {
            Self::TokenMissing { .. } => AuthFailure::TokenMissing,
            Self::Token(TokenError::Expired) => AuthFailure::TokenExpired,
            Self::Token(TokenError::UnknownKey) => AuthFailure::KeysUnavailable,
            Self::Token(_) => AuthFailure::TokenInvalid,
            Self::ApiKey(error) if error.status() == http::StatusCode::UNAUTHORIZED => {
                AuthFailure::KeyUnknown
            }
            Self::ApiKey(ApiKeyError::Rate { .. }) => AuthFailure::KeyRate,
            Self::ApiKey(_) => AuthFailure::KeyScope,
            Self::Rights { .. } => AuthFailure::TokenRights,
            Self::Origin => AuthFailure::Origin,
            _ => return None,
        })
    }

    /// Appends the answer. `spread` is any number that differs between clients; `origin` is of the page that may read it,
    /// so that it can tell a refusal from a network that is down.
    pub(crate) fn write(&self, spread: u64, origin: Option<&str>, out: &mut Vec<u8>) {
        let (status, reason, name) = self.answer();
        let mut extra: Vec<(&str, Cow<'_, str>)> = Vec::new();
        match self {
            Self::Upgrade(error) => {
                extra.extend(error.headers().iter().map(|&(name, value)| (name, value.into())))
            }
            _ if status == 401 => extra.push(("WWW-Authenticate", "Bearer".into())),
            // Refused for good: waiting does not help.
            Self::Backplane(BackplaneError::Refused(_)) => {}
            _ if matches!(status, 429 | 503) => {
                extra.push(("Retry-After", self.retry_after(spread).to_string().into()))
            }
            _ => {}
        }
        if let Some(origin) = origin {
            extra.push(("Access-Control-Allow-Origin", origin.into()));
            extra.push(("Access-Control-Expose-Headers", "retry-after, www-authenticate".into()));
            extra.push(("Vary", "Origin".into()));
        }
        let extra: Vec<(&str, &str)> = extra.iter().map(|(name, value)| (*name, &**value)).collect();
        let problem = Problem::new(name, reason, status, self.to_string());
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        http_answer::write_answer(status, reason, PROBLEM_MEDIA_TYPE, &extra, &body, out);
    }

    /// A word for what keeps a client out only for a while.
    fn passing(&self) -> Option<&'static str> {
        match self {
            Self::Draining => Some("draining"),
            Self::Over(Over::Node) | Self::NoChannels => Some("full"),
            Self::Over(_) | Self::ApiKey(ApiKeyError::Rate { .. }) => Some("limited"),
            Self::Backplane(
                BackplaneError::Unavailable(_)
                | BackplaneError::Overloaded(_)
                | BackplaneError::Unconfirmed(_),
            )
            | Self::Application(No::Away) => Some("away"),
            _ => None,
        }
    }

    fn retry_after(&self, spread: u64) -> u64 {
        let least = match self {
            Self::Over(Over::Rate { retry_after } | Over::AddressRate { retry_after }) => {
                retry_after.as_secs()
            }
            _ => Duration::ZERO.as_secs(),
        };
        let (from, to) = RETRY_AFTER_S.into_inner();
        least + from + spread % (to - from + 1)
    }
}

/// The phrase of a status that an application has chosen.
fn reason_of(status: u16) -> &'static str {
    let status = http::StatusCode::from_u16(status).ok();
    status.and_then(|status| status.canonical_reason()).unwrap_or("Refused")
}

fn over_text(over: Over) -> &'static str {
    match over {
        Over::Node => "this node holds as many connections as it is configured for",
        Over::Address => "this address has as many connections as one address may have",
        Over::Rate { .. } => "this node accepts no more handshakes at the moment",
        Over::AddressRate { .. } => "this address asks for more handshakes than one address may",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tidegate_wire::head::HeadError;

    use super::*;

    /// Status, problem type and `Retry-After` of an answer, which `docs/errors.md` must list.
    #[track_caller]
    fn check(refusal: Refusal, status: u16, kind: &str, retry_after: Option<&str>) {
        let mut out = Vec::new();
        refusal.write(2, None, &mut out);
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        let told = head.lines().find_map(|line| line.strip_prefix("Retry-After: "));
        assert_eq!(told, retry_after, "{head}");
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(problem["type"], format!("urn:tidegate:problem:{kind}"));
        assert_eq!(problem["status"], status);
        let list = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");
        let list = std::fs::read_to_string(list).unwrap();
        let (_, handshakes) = list.split_once("## Handshakes").unwrap();
        assert!(handshakes.contains(&format!("| `{kind}` | {status} |")), "{kind} {status}");
    }

    #[test]
    fn each_reason_has_its_answer() {
        check(RequestError::from(HeadError::Host).into(), 400, "malformed-request", None);
        check(Refusal::Body { max: 1 }, 413, "body-too-large", None);
        check(Refusal::Origin, 403, "origin-refused", None);
        check(Refusal::Over(Over::Address), 429, "too-many-connections", Some("3"));
        let rate = Over::Rate { retry_after: Duration::from_secs(2) };
        check(Refusal::Over(rate), 429, "too-many-handshakes", Some("5"));
        check(Refusal::Over(Over::Node), 503, "no-capacity", Some("3"));
        check(Refusal::Draining, 503, "draining", Some("3"));
        check(Refusal::NoPresence, 404, "presence-off", None);
        let unavailable = BackplaneError::Unavailable("no answer".into());
        check(unavailable.into(), 503, "backplane-unavailable", Some("3"));
        check(BackplaneError::Refused("no".into()).into(), 503, "backplane-refused", None);
        check(No::Away.into(), 503, "application-away", Some("3"));
    }
}
