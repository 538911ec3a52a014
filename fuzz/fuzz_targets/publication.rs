//! Text as a client's publication and as a payload.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use serde_json::Value;
use tidegate_wire::raw::{self, Data, Envelope};
use tidegate_wire::sse;

fuzz_target!(|text: &str| {
    check_envelope(text, text, None);
    match raw::parse_client_publication(text) {
        Ok(publication) => {
            let value: Value = serde_json::from_str(text).expect("what was accepted is JSON");
            assert!(value.is_object());
            if let Value::String(data) = &value["data"] {
                assert_eq!(&*publication.data, data);
            }
            check_envelope(
                publication.channel.as_deref().unwrap_or_default(),
                &publication.data,
                publication.event.as_deref(),
            );
        }
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
});

fn check_envelope(channel: &str, text: &str, event: Option<&str>) {
    let envelope = Envelope { channel, position: Some(("e", 1)), event, user: None, data: Data::Text(text) };
    let mut out = Vec::new();
    raw::encode_envelope(&envelope, &mut out);
    assert!(!out.iter().any(|byte| matches!(byte, b'\r' | b'\n' | b'\0')), "one line");
    let json = std::str::from_utf8(&out).expect("UTF-8");
    // By grammar only: escapes of lone surrogates and numbers such as 1e999 are valid JSON that `Value` refuses.
    serde_json::from_str::<IgnoredAny>(json).expect("JSON");
    if let Ok(value) = serde_json::from_str::<Value>(json) {
        assert_eq!(value["channel"], channel);
        assert_eq!(value["event"].as_str(), event);
        if let Value::String(data) = &value["data"] {
            assert_eq!(data, text);
        }
    }
    let mut event_stream = Vec::new();
    sse::encode_event(Some(channel), event, text, &mut event_stream);
    assert!(event_stream.ends_with(b"\n\n"));
    let blank_lines = event_stream.windows(2).filter(|pair| *pair == b"\n\n").count();
    assert_eq!(blank_lines, 1, "one event");
    assert!(!event_stream.contains(&b'\r'));
}
