//! Bytes as a request head, and what the gateway reads from it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_wire::head::Head;
use tidegate_wire::raw::Query;
use tidegate_wire::upgrade::{self, Upgrade};

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some(head)) = Head::parse(bytes) else {
        return;
    };
    assert!(head.path.starts_with('/') || head.path == "*");
    let alone = Head::parse(&bytes[..head.len]);
    assert!(matches!(alone, Ok(Some(same)) if same.len == head.len && same.path == head.path));
    let longer = [bytes, b"\x81\x80abcd"].concat();
    assert!(matches!(Head::parse(&longer), Ok(Some(same)) if same.len == head.len));

    match Query::parse(head.query) {
        Ok(query) => assert!(query.since.is_empty() || query.since.len() == query.channels.len()),
        Err(error) => assert!(error.to_string().starts_with(error.parameter())),
    }
    let offered = head.header_joined("sec-websocket-protocol").unwrap_or_default();
    let protocol = upgrade::protocols(&offered).next();
    match Upgrade::negotiate(head.method, head.minor_version, |name| head.header_joined(name), true) {
        Ok(upgrade) => check_response(&upgrade, protocol),
        Err(error) => assert!(matches!(error.status().0, 400 | 405 | 426)),
    }
});

/// The answer is one head that ends where it should, whatever the request quoted.
fn check_response(upgrade: &Upgrade, protocol: Option<&str>) {
    let mut out = Vec::new();
    upgrade.write_response(&mut out, protocol);
    let text = std::str::from_utf8(&out).expect("a response head is ASCII");
    assert!(text.starts_with("HTTP/1.1 101 "));
    assert_eq!(text.find("\r\n\r\n"), Some(text.len() - 4));
    if let Some(deflate) = upgrade.deflate {
        assert!((9..=15).contains(&deflate.server_window_bits()));
    }
}
