//! The body of an error response (RFC 9457), for handshakes and for REST.

use std::{borrow::Cow, fmt};

use serde::Serialize;

/// Target of a line in the log for each refusal, at the level debug: `log.level = "info,refused=debug"`, as `--dev` has it.
pub(crate) const REFUSED: &str = "refused";

/// A browser hides why it was refused; the log tells it.
pub(crate) fn log_refusal(what: &str, why: &dyn fmt::Display) {
    tracing::debug!(target: REFUSED, "{what}: {why}");
}

/// Why a request was refused, with the response on its way to the log.
#[derive(Debug, Clone)]
pub(crate) struct RefusedBecause(pub(crate) std::sync::Arc<str>);

/// Media type of RFC 9457 section 3.
pub(crate) const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// Begin of every problem type; the names are listed in `docs/errors.md`.
const TYPE_PREFIX: &str = "urn:tidegate:problem:";

/// The body of an error response (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub(crate) struct Problem {
    /// Stable name of the kind of problem; docs/errors.md lists them.
    #[serde(rename = "type")]
    #[schema(value_type = String, pattern = "^urn:tidegate:problem:[a-z-]+$")]
    pub kind: Cow<'static, str>,
    /// The kind in words; the same for every occurrence.
    #[schema(value_type = String)]
    pub title: &'static str,
    /// The HTTP status code.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// This occurrence in words.
    pub detail: String,
    /// Where in a JSON body the fault is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub at: Option<Place>,
}

/// Where in a JSON body the fault is. Line and column count from 1, as editors do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub(crate) struct Place {
    #[schema(minimum = 1)]
    pub line: usize,
    #[schema(minimum = 0)]
    pub column: usize,
    /// Members and indices from the root, for example `channels[2]`; `.` is the root.
    pub path: Box<str>,
}

impl Problem {
    pub(crate) fn new(name: &str, title: &'static str, status: u16, detail: String) -> Self {
        Self { kind: Cow::Owned(format!("{TYPE_PREFIX}{name}")), title, status, detail, at: None }
    }
}
