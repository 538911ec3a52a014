//! The head of a request that hyper has parsed, as bytes again.

use http::{Request, Version, header};
use hyper::body::Body;

/// The head of a request that a shard serves; `None` when it is HTTP's.
///
/// The rule is the shard's own, so a request cannot go back and forth: what is written here has the same method and
/// path, and no header that says there is a body. hyper found that there is none; a `Content-Length` of zero in a
/// spelling that the shard does not know is left out.
pub(super) fn of_shard<B: Body>(request: &Request<B>, is_shards: fn(&str, &str) -> bool) -> Option<Vec<u8>> {
    let uri = request.uri();
    if !is_shards(request.method().as_str(), uri.path()) || !request.body().is_end_stream() {
        return None;
    }
    let target = uri.path_and_query().map_or(uri.path(), |target| target.as_str());
    let version = if request.version() == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" };
    let mut head = format!("{} {target} {version}\r\n", request.method()).into_bytes();
    for (name, value) in request.headers() {
        if *name == header::CONTENT_LENGTH || *name == header::TRANSFER_ENCODING {
            continue;
        }
        // No line end can be in a value: hyper's parser ends it there, and takes no folded lines (RFC 9112
        // section 5.2).
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    Some(head)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::Bytes;
    use http_body_util::{Empty, Full};
    use tidegate_wire::head::Head;

    use super::*;
    use crate::protocols;

    fn request(method: &str, uri: &str) -> Request<Empty<Bytes>> {
        Request::builder().method(method).uri(uri).body(Empty::new()).unwrap()
    }

    #[test]
    fn what_a_shard_serves_is_written_as_it_came() {
        let mut request = request("GET", "/ws?channel=a%20b&x=?");
        for (name, value) in [("host", "h"), ("upgrade", "websocket"), ("x", "1"), ("x", "2")] {
            request.headers_mut().append(name, value.parse().unwrap());
        }
        let head = of_shard(&request, protocols::serve).unwrap();
        let expect =
            "GET /ws?channel=a%20b&x=? HTTP/1.1\r\nhost: h\r\nupgrade: websocket\r\nx: 1\r\nx: 2\r\n\r\n";
        assert_eq!(String::from_utf8(head).unwrap(), expect);
    }

    #[test]
    fn an_old_version_and_an_absolute_target_are_kept_in_meaning() {
        let mut request = request("GET", "http://h/sse?channel=a");
        *request.version_mut() = Version::HTTP_10;
        assert_eq!(of_shard(&request, protocols::serve).unwrap(), b"GET /sse?channel=a HTTP/1.0\r\n\r\n");
    }

    /// Otherwise a shard would hand the request to HTTP again, which would give it back.
    #[test]
    fn nothing_that_goes_back_has_a_body_for_the_shard() {
        for length in ["0", "00"] {
            let mut request = request("GET", "/ws?channel=a");
            request.headers_mut().insert("content-length", length.parse().unwrap());
            let head = of_shard(&request, protocols::serve).unwrap();
            assert!(!Head::parse(&head).unwrap().unwrap().has_body(), "{length}");
        }
    }

    #[test]
    fn the_rest_is_for_http() {
        let rows = [
            ("POST", "/ws", true),
            ("HEAD", "/ws", true),
            ("GET", "/wss", true),
            ("GET", "/ws/", true),
            ("GET", "/v1/channels", true),
            ("GET", "/echo", false),
        ];
        for (method, path, dev) in rows {
            assert_eq!(
                of_shard(&request(method, path), if dev { protocols::serve_dev } else { protocols::serve }),
                None,
                "{method} {path}"
            );
        }
        assert!(of_shard(&request("GET", "/echo"), protocols::serve_dev).is_some());
        let with_body = request("GET", "/ws?channel=a").map(|_| Full::new(Bytes::from_static(b"x")));
        assert_eq!(of_shard(&with_body, protocols::serve_dev), None);
    }
}
