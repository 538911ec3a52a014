//! JSON pieces for encoders that write by hand: strings, integers, and payloads that are JSON already.

/// Nesting that every common JSON parser accepts. The strictest one known here, serde_json's, stops at 128, of which
/// an envelope needs one.
pub(crate) const DEPTH_MAX: usize = 120;

/// Appends `text` as a JSON string (RFC 8259 §7). No raw control character is left, so the result never holds a
/// line end and cannot break a line protocol around it.
pub(crate) fn push_str(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut copied = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[copied..at]);
        push_escape(byte, out);
        copied = at + 1;
    }
    out.extend_from_slice(&bytes[copied..]);
    out.push(b'"');
}

/// Appends `value` in decimal.
pub(crate) fn push_u64(value: u64, out: &mut Vec<u8>) {
    // 2^64 has 20 digits.
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = value;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends `text` as it is when it is one JSON object or array, and says whether it was. One that nests deeper than
/// [`DEPTH_MAX`] does not count: it would make every subscriber's parser refuse the envelope around it.
///
/// Line ends between JSON tokens become spaces: inside strings JSON forbids them raw, so none can be left, the
/// value is the same, and an event stream around it keeps its lines.
pub(crate) fn push_document(text: &str, out: &mut Vec<u8>) -> bool {
    let text = text.trim_matches([' ', '\t', '\r', '\n']);
    let is_document = text.starts_with(['{', '['])
        && depth(text) <= DEPTH_MAX
        && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
    if !is_document {
        return false;
    }
    let start = out.len();
    out.extend_from_slice(text.as_bytes());
    for byte in &mut out[start..] {
        if matches!(*byte, b'\r' | b'\n') {
            *byte = b' ';
        }
    }
    true
}

/// The deepest nesting of a document, right where it is valid JSON.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn push_escape(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    match byte {
        b'"' => out.extend_from_slice(b"\\\""),
        b'\\' => out.extend_from_slice(b"\\\\"),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        _ => {
            out.extend_from_slice(b"\\u00");
            out.push(HEX[usize::from(byte >> 4)]);
            out.push(HEX[usize::from(byte & 0xF)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn strings_read_back_and_hold_no_line_end(text in any::<String>()) {
            let mut out = Vec::new();
            push_str(&text, &mut out);
            prop_assert!(out.iter().all(|byte| *byte >= 0x20));
            prop_assert_eq!(serde_json::from_slice::<String>(&out).expect("a JSON string"), text);
        }

        #[test]
        fn integers_are_decimal(value: u64) {
            let mut out = Vec::new();
            push_u64(value, &mut out);
            prop_assert_eq!(String::from_utf8(out).expect("digits"), value.to_string());
        }
    }

    #[test]
    fn every_ascii_character_reads_back() {
        let text: String = (0u8..128).map(char::from).collect();
        let mut out = Vec::new();
        push_str(&text, &mut out);
        assert_eq!(serde_json::from_slice::<String>(&out).expect("a JSON string"), text);
    }
}
