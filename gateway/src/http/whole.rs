//! Publishes that a shard answers without hyper: requests that came whole, with their bodies, and have nothing in them that
//! would take more than one answer.
//!
//! The service is the same; this file only makes its request from a head that was judged already, and writes its answer.

use std::{
    cell::RefCell,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::response::Response;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header};
use http_body_util::{BodyExt as _, Full};
use tidegate_wire::head::Head;

use super::PublicService;
use crate::session::plain_http::{Answer, Answering};

/// Most heads of publishers have fewer.
const HEADERS_USUAL: usize = 8;

/// Of the head of an answer, beside its own headers.
const ANSWER_HEAD_BYTES: usize = 192;

/// Answers the request, if it is a publish of this kind.
pub(super) fn answer(service: &PublicService, head: &Head<'_>, body: &[u8]) -> Option<Answering> {
    if head.method != "POST" || head.minor_version != 1 || !service.is_publish(head.path) {
        return None;
    }
    let request = request(head, body)?;
    let service = service.clone();
    Some(Box::pin(async move { written(service.call(request).await).await }))
}

fn request(head: &Head<'_>, body: &[u8]) -> Option<Request<Full<Bytes>>> {
    let uri: Uri = match head.query {
        None => head.path.parse().ok()?,
        Some(query) => format!("{}?{query}", head.path).parse().ok()?,
    };
    let mut request = Request::new(Full::new(Bytes::copy_from_slice(body)));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_11;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.reserve(HEADERS_USUAL);
    for (name, value) in head.headers() {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        if !is_plain(&name, value) {
            return None;
        }
        headers.append(name, HeaderValue::from_bytes(value).ok()?);
    }
    Some(request)
}

/// Whether a header changes nothing about how its connection goes on.
fn is_plain(name: &HeaderName, value: &[u8]) -> bool {
    match *name {
        header::CONNECTION => value.eq_ignore_ascii_case(b"keep-alive"),
        header::EXPECT | header::UPGRADE | header::TE | header::TRAILER => false,
        _ => true,
    }
}

async fn written(response: Response) -> Answer {
    let (parts, body) = response.into_parts();
    // The bodies of answers are in memory, and cannot fail.
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    // Who has no key may not keep a shard busy with it.
    let is_last = matches!(parts.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    let mut bytes = Vec::with_capacity(ANSWER_HEAD_BYTES + body.len());
    bytes.extend_from_slice(b"HTTP/1.1 ");
    bytes.extend_from_slice(parts.status.as_str().as_bytes());
    bytes.push(b' ');
    bytes.extend_from_slice(parts.status.canonical_reason().unwrap_or_default().as_bytes());
    for (name, value) in &parts.headers {
        put_header(name.as_str().as_bytes(), value.as_bytes(), &mut bytes);
    }
    put_header(b"content-length", itoa::Buffer::new().format(body.len()).as_bytes(), &mut bytes);
    with_date(|date| put_header(b"date", date, &mut bytes));
    if is_last {
        put_header(b"connection", b"close", &mut bytes);
    }
    bytes.extend_from_slice(b"\r\n\r\n");
    bytes.extend_from_slice(&body);
    Answer { bytes, is_last }
}

fn put_header(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
}

thread_local! {
    /// The second, and its text for the header `Date` (RFC 9110 section 6.6.1).
    static DATE: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

fn with_date(put: impl FnOnce(&[u8])) {
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    DATE.with_borrow_mut(|(of, text)| {
        if *of != second || text.is_empty() {
            (*of, *text) = (second, httpdate::fmt_http_date(now));
        }
        put(text.as_bytes());
    });
}
