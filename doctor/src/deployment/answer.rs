//! What a server answered, as far as it is looked at.

use std::time::Duration;

use http::{Response, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::time::timeout;

/// Of a body, more is not read: a problem document has a few hundred bytes.
const BODY_BYTES_MAX: usize = 64 << 10;

/// How long the body may take after its head: an endless one is left.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// What is looked at of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) date: Option<String>,
    pub(super) server: Option<String>,
    pub(super) location: Option<String>,
    pub(super) problem: Option<Problem>,
}

/// A problem document (RFC 9457) of Tidegate's.
#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) detail: String,
}

const PROBLEM_PREFIX: &str = "urn:tidegate:problem:";

impl Answer {
    pub(super) async fn read(response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let is_problem = text(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.to_ascii_lowercase().starts_with("application/problem+json"));
        Self {
            status: head.status.as_u16(),
            date: text(header::DATE),
            server: text(header::SERVER),
            location: text(header::LOCATION),
            problem: if is_problem { problem(body).await } else { None },
        }
    }
}

/// `None` for what is no document of Tidegate's, whole.
async fn problem(body: Incoming) -> Option<Problem> {
    let collected = timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await.ok()?;
    let problem: Problem = serde_json::from_slice(&collected.ok()?.to_bytes()).ok()?;
    problem.kind.starts_with(PROBLEM_PREFIX).then_some(problem)
}

impl Problem {
    pub(super) fn name(&self) -> &str {
        self.kind.trim_start_matches(PROBLEM_PREFIX)
    }
}
