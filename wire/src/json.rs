//! JSON pieces for encoders that write by hand: strings, integers, and payloads that are JSON already; and values of
//! clients that are passed on as they are.

use std::borrow::Cow;

use base64::Engine as _;
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{error::Category, value::RawValue};

/// The JSON text of a value, as it was sent. Each of its strings is a text: half of a surrogate pair is no character (RFC
/// 8259 §8.2), and there are readers that refuse the whole message around one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JsonValue<'a> {
    json: &'a str,
    has_escapes: bool,
}

impl<'de: 'a, 'a> Deserialize<'de> for JsonValue<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = <&RawValue>::deserialize(deserializer)?.get();
        // Outside of strings JSON has no backslash.
        let Some(first) = memchr::memchr(b'\\', json.as_bytes()) else {
            return Ok(Self { json, has_escapes: false });
        };
        match has_half_pair(&json.as_bytes()[first..]) {
            true => Err(D::Error::custom("a string has half of a surrogate pair, which is no character")),
            false => Ok(Self { json, has_escapes: true }),
        }
    }
}

impl<'a> JsonValue<'a> {
    #[must_use]
    pub fn get(self) -> &'a str {
        self.json
    }

    /// What it says: the text of a string, the JSON text of anything else.
    #[must_use]
    pub fn into_text(self) -> Cow<'a, str> {
        #[derive(Deserialize)]
        struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
        let json = self.json;
        match json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
            None => Cow::Borrowed(json),
            Some(text) if !self.has_escapes => Cow::Borrowed(text),
            // It was read as JSON, and its escapes were looked at.
            Some(_) => serde_json::from_str(json).map_or(Cow::Borrowed(json), |Text(text)| text),
        }
    }
}

/// What is wrong with a JSON text, for who sent it. Its line and column are beside it. Of a syntax that is none, what a
/// parser expected there helps nobody; of members, the words are those of their types.
#[must_use]
pub fn fault(error: &serde_json::Error) -> Cow<'static, str> {
    match error.classify() {
        Category::Eof => "the JSON ends before it is complete".into(),
        Category::Syntax | Category::Io => "from here on it is no JSON, or a string in it is no text".into(),
        Category::Data => {
            let text = error.to_string();
            text.rsplit_once(" at line ").map_or(text.as_str(), |(words, _)| words).to_owned().into()
        }
    }
}

/// Whether a string in this JSON text has an escape that is half of a surrogate pair.
fn has_half_pair(json: &[u8]) -> bool {
    let mut rest = json;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        let escape = &rest[at..];
        let unit = code_unit(escape);
        let is_pair = || {
            code_unit(escape.get(6..).unwrap_or_default()).is_some_and(|low| (0xdc00..0xe000).contains(&low))
        };
        let len = match unit {
            None => 2,
            Some(0xd800..0xdc00) if is_pair() => 12,
            Some(0xd800..0xe000) => return true,
            Some(_) => 6,
        };
        rest = escape.get(len..).unwrap_or_default();
    }
    false
}

/// Of an escape such as `\u00e9` at the beginning.
fn code_unit(escape: &[u8]) -> Option<u16> {
    let digits = escape.strip_prefix(br"\u")?.get(..4)?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

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

/// Appends `text` as it is when it is one JSON object or array, and says whether it was: see [`push_value`].
pub(crate) fn push_document(text: &str, out: &mut Vec<u8>) -> bool {
    text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with(['{', '[']) && push_value(text, out)
}

/// Appends `text` as it is when it is one JSON value, and says whether it was. One that nests deeper than [`DEPTH_MAX`]
/// does not count: it would make every subscriber's parser refuse the envelope around it.
///
/// Line ends between JSON tokens become spaces: inside strings JSON forbids them raw, so none can be left, the
/// value is the same, and an event stream, or a frame of lines, around it keeps its lines.
pub(crate) fn push_value(text: &str, out: &mut Vec<u8>) -> bool {
    let text = text.trim_matches([' ', '\t', '\r', '\n']);
    if depth(text) > DEPTH_MAX || serde_json::from_str::<serde::de::IgnoredAny>(text).is_err() {
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

/// Appends a JSON string that holds bytes in base64.
pub(crate) fn push_base64(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let start = out.len();
    // Base64 writes 4 characters for every 3 bytes begun.
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written = base64::engine::general_purpose::STANDARD.encode_slice(bytes, &mut out[start..]);
    debug_assert_eq!(written, Ok(out.len() - start));
    out.push(b'"');
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
    fn half_of_a_surrogate_pair_is_no_text() {
        for good in [
            r#""a""#,
            r#""\ud83d\ude00""#,
            r#""\\ud83d""#,
            r#"{"\u00e9":["\ud83d\uDE00","\\\\"]}"#,
            "12",
            r#""\ud7ff\ue000""#,
        ] {
            let value: JsonValue<'_> = serde_json::from_str(good).expect(good);
            assert_eq!(value.get(), good);
            if let Ok(text) = serde_json::from_str::<String>(good) {
                assert_eq!(value.into_text(), text);
            }
        }
        for bad in [
            r#""\ud83d""#,
            r#""\ude00""#,
            r#""\ude00\ud83d""#,
            r#""\ud83d\u0061""#,
            r#""\ud83dx""#,
            r#"{"\ud83d":1}"#,
            r#"[["\\\ud83d"]]"#,
            r#""\ud83d\\ude00""#,
        ] {
            assert!(serde_json::from_str::<JsonValue<'_>>(bad).is_err(), "{bad}");
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
