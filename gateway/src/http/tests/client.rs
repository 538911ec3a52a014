//! How the tests ask, and what they check of an answer.

use std::sync::Arc;

use axum::{Router, body::Body};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use super::{ALL, HttpState, public_router};
use crate::problem::PROBLEM_MEDIA_TYPE;

/// A request with the key that may do everything, unless its headers say otherwise.
pub(super) struct Ask(pub(super) Request<Body>);

pub(super) fn ask(method: &str, uri: &str) -> Ask {
    let request = Request::builder().method(method).uri(uri).header("host", "localhost:8000");
    Ask(request.body(Body::empty()).unwrap()).header("authorization", &format!("Bearer {ALL}"))
}

pub(super) fn post(uri: &str, body: impl Into<Body>) -> Ask {
    let mut ask = ask("POST", uri);
    *ask.0.body_mut() = body.into();
    ask
}

pub(super) fn post_json(uri: &str, body: &Value) -> Ask {
    post(uri, body.to_string()).header("content-type", "application/json")
}

pub(super) fn get(uri: &str) -> Ask {
    ask("GET", uri)
}

impl Ask {
    pub(super) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.0.headers_mut().insert(name, value.parse().unwrap());
        self
    }

    pub(super) fn key(self, key: &str) -> Self {
        self.header("authorization", &format!("Bearer {key}"))
    }

    pub(super) fn without(mut self, name: &str) -> Self {
        self.0.headers_mut().remove(name);
        self
    }

    pub(super) async fn of(self, state: &HttpState) -> Answer {
        self.through(public_router(Arc::clone(state))).await
    }

    pub(super) async fn through(self, router: Router) -> Answer {
        Answer::read(router.oneshot(self.0).await.unwrap()).await
    }
}

#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) async fn read(response: axum::response::Response) -> Self {
        let (parts, body) = response.into_parts();
        let mut headers = parts.headers;
        // axum writes it, and so does hyper where axum did not.
        headers.remove("content-length");
        Self { status: parts.status, headers, body: body.collect().await.unwrap().to_bytes() }
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    /// Checks the status and that the body is what was expected, in full.
    #[track_caller]
    pub(super) fn is(&self, status: u16, expect: Value) -> &Self {
        assert_eq!((self.status.as_u16(), self.json()), (status, expect));
        assert_eq!(self.header("content-type"), "application/json");
        self
    }

    /// Checks that it is a problem document of one kind, and consistent with the status line.
    #[track_caller]
    pub(super) fn is_problem(&self, status: u16, kind: &str) -> &Self {
        let json = self.json();
        assert_eq!(
            (self.status.as_u16(), json["type"].as_str().unwrap()),
            (status, &*format!("urn:tidegate:problem:{kind}")),
            "{json}"
        );
        assert_eq!(json["status"], status);
        assert_eq!(self.header("content-type"), PROBLEM_MEDIA_TYPE);
        assert!(
            !json["title"].as_str().unwrap().is_empty() && !json["detail"].as_str().unwrap().is_empty(),
            "{json}"
        );
        self
    }
}
