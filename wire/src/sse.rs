//! Server-sent events (WHATWG HTML §9.2): an event is encoded once and serves every client.

use crate::http_answer::{push_header, push_status};
use crate::json::push_u64;

/// A comment that clients ignore and proxies see as traffic.
pub const COMMENT_HEARTBEAT: &[u8] = b":\n\n";

/// Appends the head of an event stream.
///
/// The body ends with the connection (RFC 9112 §6.3, rule 8): with chunks, each client would need framing of its
/// own where it joined, and one encoded event could not be shared.
pub fn write_response_head(out: &mut Vec<u8>, extra: &[(&str, &str)]) {
    push_status(200, "OK", out);
    push_header("Content-Type", "text/event-stream; charset=utf-8", out);
    push_header("Cache-Control", "no-store", out);
    push_header("X-Accel-Buffering", "no", out);
    push_header("Connection", "close", out);
    for (name, value) in extra {
        push_header(name, value, out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends one event. `data` may hold any text; its line ends (`\r\n`, `\r`, `\n`) all arrive as `\n`, which is
/// how the format carries lines. `id` and `event` lose line ends and NUL, which it cannot carry.
pub fn encode_event(id: Option<&str>, event: Option<&str>, data: &str, out: &mut Vec<u8>) {
    if let Some(id) = id {
        push_field(b"id: ", id, out);
    }
    if let Some(event) = event {
        push_field(b"event: ", event, out);
    }
    let mut rest = data;
    loop {
        let line_len = rest.find(['\r', '\n']).unwrap_or(rest.len());
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(&rest.as_bytes()[..line_len]);
        out.push(b'\n');
        let Some(after) = strip_line_end(&rest[line_len..]) else {
            break;
        };
        rest = after;
    }
    out.push(b'\n');
}

/// Appends the time a client waits before it connects again.
pub fn encode_retry(retry_ms: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"retry: ");
    push_u64(retry_ms, out);
    out.extend_from_slice(b"\n\n");
}

fn push_field(name: &[u8], value: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend(
        value
            .bytes()
            .filter(|byte| !matches!(byte, b'\0' | b'\r' | b'\n')),
    );
    out.push(b'\n');
}

/// What follows the line end at the start of `text`; `None` at the end of the text.
fn strip_line_end(text: &str) -> Option<&str> {
    text.strip_prefix("\r\n")
        .or_else(|| text.strip_prefix(['\r', '\n']))
}
