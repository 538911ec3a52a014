//! Refusals over HTTP as RFC 9457 problem documents, as gateways give them. `docs/errors.md` lists the names.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

/// A refusal.
#[derive(Debug)]
pub(crate) struct Problem {
    /// Last part of the type.
    pub(crate) name: &'static str,
    /// The kind in words.
    pub(crate) title: &'static str,
    pub(crate) status: StatusCode,
    /// This occurrence in words.
    pub(crate) detail: String,
}

#[derive(Serialize)]
struct Document<'p> {
    r#type: String,
    title: &'p str,
    status: u16,
    detail: &'p str,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = Document {
            r#type: format!("urn:tidegate:problem:{}", self.name),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
        };
        let mut response = Response::new(Body::from(serde_json::to_vec(&document).unwrap_or_default()));
        *response.status_mut() = self.status;
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

/// What answers a path that there is not.
pub(crate) async fn not_found() -> Problem {
    Problem {
        name: "not-found",
        title: "Nothing here",
        status: StatusCode::NOT_FOUND,
        detail: "there is nothing at this path".to_owned(),
    }
}
