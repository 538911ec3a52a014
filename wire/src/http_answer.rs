//! HTTP answers that a shard gives by itself, without hyper: one answer, then the connection ends.

/// Appends a whole answer with `Content-Length` and `Connection: close`.
///
/// `extra` headers come from code, but their values may quote a request: control characters in them are dropped,
/// so that no value can start a header of its own (RFC 9110 §5.5). Statuses 1xx, 204 and 304 are not for this
/// function: it always writes a `Content-Length` (RFC 9110 §8.6).
pub fn write_answer(
    status: u16,
    reason: &str,
    content_type: &str,
    extra: &[(&str, &str)],
    body: &[u8],
    out: &mut Vec<u8>,
) {
    push_status(status, reason, out);
    push_header("Content-Type", content_type, out);
    out.extend_from_slice(b"Content-Length: ");
    crate::json::push_u64(body.len() as u64, out);
    out.extend_from_slice(b"\r\nConnection: close\r\n");
    for (name, value) in extra {
        push_header(name, value, out);
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
}

/// Appends the head of an answer that goes on until the connection ends (RFC 9112 §6.3, rule 8): with chunks, each client
/// would need framing of its own where it joined, and what is encoded once could not be shared.
pub fn write_stream_head(media_type: &str, extra: &[(&str, &str)], out: &mut Vec<u8>) {
    push_status(200, "OK", out);
    push_header("Content-Type", media_type, out);
    push_header("Cache-Control", "no-store", out);
    push_header("X-Accel-Buffering", "no", out);
    push_header("Connection", "close", out);
    for (name, value) in extra {
        push_header(name, value, out);
    }
    out.extend_from_slice(b"\r\n");
}

pub(crate) fn push_status(status: u16, reason: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    crate::json::push_u64(u64::from(status), out);
    out.push(b' ');
    push_clean(reason, out);
    out.extend_from_slice(b"\r\n");
}

pub(crate) fn push_header(name: &str, value: &str, out: &mut Vec<u8>) {
    push_clean(name, out);
    out.extend_from_slice(b": ");
    push_clean(value, out);
    out.extend_from_slice(b"\r\n");
}

/// Header text without control characters.
fn push_clean(text: &str, out: &mut Vec<u8>) {
    out.extend(text.bytes().filter(|byte| *byte >= 0x20 && *byte != 0x7F));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_answer() {
        let mut out = Vec::new();
        write_answer(429, "Too Many Requests", "text/plain", &[("Retry-After", "3")], b"later", &mut out);
        let expected = "HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\
                        Connection: close\r\nRetry-After: 3\r\n\r\nlater";
        assert_eq!(String::from_utf8(out).expect("ASCII"), expected);
    }

    #[test]
    fn a_value_cannot_start_another_header() {
        let mut out = Vec::new();
        write_answer(
            400,
            "Bad\r\nRequest",
            "text/plain",
            &[("X-Name", "a\r\nSet-Cookie: b\0")],
            b"",
            &mut out,
        );
        let text = String::from_utf8(out).expect("ASCII");
        assert!(text.starts_with("HTTP/1.1 400 BadRequest\r\n"), "{text}");
        assert!(text.contains("X-Name: aSet-Cookie: b\r\n"), "{text}");
        let (head, _) = text.split_once("\r\n\r\n").expect("a head");
        assert_eq!(head.lines().count(), 5);
    }
}
