//! Why the proxy answers a request itself: each reason knows its answer and its count.

use std::time::Duration;

use tidegate_wire::{http_answer, request::RequestError, sse};

use super::metrics::RefusalReason;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("{0}")]
    Request(#[from] RequestError),
    #[error("the request head did not arrive in time")]
    HeadTimeout,
    #[error("the body of the request broke off, or is not in chunks as it says")]
    Body,
    #[error("this router accepts no more handshakes at the moment")]
    RateLimit { retry_after: Duration },
    #[error("this router holds as many connections as it is configured for")]
    NoCapacity,
    #[error("this router is draining")]
    Draining,
    #[error("no node can be reached")]
    NoNode,
    #[error("a node failed, and this router asks no other one while so many fail")]
    RetryBudget,
    #[error(
        "this request has come through this router before: a gateway advertises the router's address as its own"
    )]
    Loop,
    #[error("this router is out of descriptors or local ports")]
    Descriptors,
    #[error("the node's answer is not HTTP, or ended early")]
    BadAnswer,
    #[error("the node did not answer in time")]
    NoAnswer,
}

pub(super) const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// Refused clients are told to wait between 1 and 4 s, so that they do not all come back at once.
const RETRY_AFTER_S: std::ops::RangeInclusive<u64> = 1..=4;

impl Refusal {
    /// Status, reason phrase, and name of the problem type.
    fn answer(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Request(error) => {
                let (status, reason) = error.status();
                let too_large = matches!(error, RequestError::TooLarge { .. });
                (status, reason, if too_large { "head-too-large" } else { "malformed-request" })
            }
            Self::Body => (400, "Bad Request", "malformed-request"),
            Self::HeadTimeout => (408, "Request Timeout", "head-timeout"),
            Self::RateLimit { .. } => (429, "Too Many Requests", "too-many-handshakes"),
            Self::NoCapacity | Self::Descriptors => (503, "Service Unavailable", "no-capacity"),
            Self::Draining => (503, "Service Unavailable", "draining"),
            Self::NoNode | Self::RetryBudget => (503, "Service Unavailable", "no-node"),
            Self::Loop => (508, "Loop Detected", "loop"),
            Self::BadAnswer => (502, "Bad Gateway", "bad-answer"),
            Self::NoAnswer => (504, "Gateway Timeout", "no-answer"),
        }
    }

    pub(super) fn status(self) -> u16 {
        self.answer().0
    }

    pub(super) fn reason(self) -> RefusalReason {
        match self {
            Self::Request(RequestError::TooLarge { .. }) => RefusalReason::TooLarge,
            Self::Request(_) | Self::Body => RefusalReason::Malformed,
            Self::HeadTimeout => RefusalReason::Timeout,
            Self::RateLimit { .. } => RefusalReason::RateLimit,
            Self::NoCapacity => RefusalReason::NoCapacity,
            Self::Draining => RefusalReason::Draining,
            Self::NoNode => RefusalReason::NoNode,
            Self::RetryBudget => RefusalReason::RetryBudget,
            Self::Loop => RefusalReason::Loop,
            Self::Descriptors => RefusalReason::Descriptors,
            Self::BadAnswer => RefusalReason::BadAnswer,
            Self::NoAnswer => RefusalReason::NoAnswer,
        }
    }

    /// What to wait, in seconds, where waiting helps. `spread` is any number that differs between clients.
    pub(super) fn retry_after_s(self, spread: u64) -> Option<u64> {
        let least = match self {
            Self::RateLimit { retry_after } => retry_after.as_secs(),
            _ if matches!(self.status(), 502..=504) => 0,
            _ => return None,
        };
        let (from, to) = RETRY_AFTER_S.into_inner();
        Some(least + from + spread % (to - from + 1))
    }

    /// A word for what keeps a client out only for a while.
    fn passing(self) -> Option<&'static str> {
        match self {
            Self::Draining => Some("draining"),
            Self::NoCapacity | Self::Descriptors => Some("full"),
            Self::RateLimit { .. } => Some("limited"),
            Self::NoNode | Self::RetryBudget | Self::Loop | Self::BadAnswer | Self::NoAnswer => Some("away"),
            Self::Request(_) | Self::HeadTimeout | Self::Body => None,
        }
    }

    /// Appends the answer to who asked for an event stream: what will pass must not be a final answer for it. `origin` is
    /// of the page that asks.
    pub(super) fn write_to_stream(self, spread: u64, origin: Option<&str>, out: &mut Vec<u8>) {
        match (self.passing(), self.retry_after_s(spread)) {
            (Some(why), retry_after) => {
                let retry_ms = retry_after.unwrap_or(*RETRY_AFTER_S.end()) * 1000;
                sse::write_come_back(retry_ms, why, origin, out);
            }
            (None, _) => self.write(spread, out),
        }
    }

    /// The problem document (RFC 9457). Its texts are ours and have nothing to escape.
    pub(super) fn problem(self) -> String {
        let (status, title, name) = self.answer();
        format!(
            r#"{{"type":"urn:tidegate:problem:{name}","title":"{title}","status":{status},"detail":"{self}"}}"#
        )
    }

    /// Appends the whole answer.
    pub(super) fn write(self, spread: u64, out: &mut Vec<u8>) {
        let (status, reason, _) = self.answer();
        let retry_after = self.retry_after_s(spread).map(|seconds| seconds.to_string());
        let extra = retry_after.as_deref().map(|seconds| ("Retry-After", seconds));
        let body = self.problem();
        http_answer::write_answer(status, reason, PROBLEM_MEDIA_TYPE, extra.as_slice(), body.as_bytes(), out);
    }
}

#[cfg(test)]
mod tests {
    use tidegate_wire::{framing::FramingError, head::HeadError};

    use super::*;

    #[track_caller]
    fn check(refusal: Refusal, status: u16, retry_after: Option<&str>, kind: &str) {
        let mut out = Vec::new();
        refusal.write(2, &mut out);
        let text = String::from_utf8(out).expect("ASCII");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        let told = head.lines().find_map(|line| line.strip_prefix("Retry-After: "));
        assert_eq!(told, retry_after, "{head}");
        assert!(body.contains(&format!("urn:tidegate:problem:{kind}\"")), "{body}");
        // Nothing in a text breaks the JSON around it.
        assert_eq!(body.matches('"').count(), 14, "{body}");
    }

    #[test]
    fn each_reason_has_its_answer() {
        check(Refusal::Request(HeadError::Host.into()), 400, None, "malformed-request");
        check(Refusal::Request(FramingError::Encoding.into()), 400, None, "malformed-request");
        check(Refusal::Request(FramingError::CodingUnknown.into()), 501, None, "malformed-request");
        check(RequestError::TooLarge { max: 16384 }.into(), 431, None, "head-too-large");
        check(Refusal::HeadTimeout, 408, None, "head-timeout");
        check(
            Refusal::RateLimit { retry_after: Duration::from_secs(2) },
            429,
            Some("5"),
            "too-many-handshakes",
        );
        check(Refusal::NoNode, 503, Some("3"), "no-node");
        check(Refusal::BadAnswer, 502, Some("3"), "bad-answer");
    }

    /// WHATWG HTML §9.2.2: any status but 200 ends an event source for good.
    #[test]
    fn an_event_source_is_told_to_come_back() {
        let told = |refusal: Refusal| {
            let mut out = Vec::new();
            refusal.write_to_stream(2, Some("http://page"), &mut out);
            String::from_utf8(out).expect("text")
        };
        for (refusal, retry) in [
            (Refusal::Draining, "retry: 3000"),
            (Refusal::NoCapacity, "retry: 3000"),
            (Refusal::NoNode, "retry: 3000"),
            (Refusal::RateLimit { retry_after: Duration::from_secs(2) }, "retry: 5000"),
        ] {
            let answer = told(refusal);
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(retry), "{answer}");
            assert!(answer.contains("Access-Control-Allow-Origin: http://page"), "{answer}");
        }
        assert!(told(Refusal::Request(HeadError::Host.into())).starts_with("HTTP/1.1 400 "));
    }
}
