//! Frames that break the protocol: the named close code, counted with its reason, and nobody else notices.

use tidegate_testkit::{DEADLINE, Gateway, RawTcp, frame, masked_frame};

/// `limits.message_bytes` of these gateways: small, so that the tests need not send much.
const CONFIG: &str = "[limits]\nmessage_bytes = \"4KiB\"\n";

/// FIN with opcode; RFC 6455 section 5.2.
const TEXT: u8 = 0x81;
const TEXT_PART: u8 = 0x01;
const BINARY_PART: u8 = 0x02;
const CONTINUATION_PART: u8 = 0x00;
const CONTINUATION: u8 = 0x80;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const RSV1: u8 = 0x40;

/// Sends the bytes on a fresh subscriber and expects the close code, the counters and an undisturbed bystander.
#[track_caller]
fn check(bytes: &[u8], code: u16, reason: &str) {
    check_on("/ws?channel=news", &[], bytes, code, reason);
}

#[track_caller]
fn check_on(path: &str, headers: &[&str], bytes: &[u8], code: u16, reason: &str) {
    let gateway = Gateway::builder().config(CONFIG).start();
    let mut bystander = gateway.subscribe("news");
    let mut client = RawTcp::connect(gateway.public());
    client.send(upgrade(path, headers).as_bytes());
    assert_eq!(client.read_head(DEADLINE).unwrap().status, 101);
    // The server may close before it has read everything, which it need not.
    drop(client.try_send(bytes));
    assert_eq!(client.read_close_code(DEADLINE).unwrap(), code);
    gateway.eventually_metric("tidegate_close_frames_total", &[("code", &code.to_string())], |count| {
        count == 1.0
    });
    gateway.eventually_metric("tidegate_disconnects_total", &[("reason", reason)], |count| count == 1.0);
    gateway.eventually_connections(1);
    gateway.rest().publish("news", "still here");
    assert_eq!(bystander.expect_text(), "still here");
}

fn upgrade(path: &str, headers: &[&str]) -> String {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
    )
}

fn concatenated(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.concat()
}

#[test]
fn unmasked_frame_1002() {
    check(&frame(TEXT, b"hello"), 1002, "protocol_error");
}

#[test]
fn reserved_bit_1002() {
    for bit in [0x40, 0x20, 0x10] {
        check(&masked_frame(TEXT | bit, b"hello"), 1002, "protocol_error");
    }
}

#[test]
fn reserved_opcode_1002() {
    for opcode in [0x3, 0x7, 0xB, 0xF] {
        check(&masked_frame(0x80 | opcode, b""), 1002, "protocol_error");
    }
}

#[test]
fn oversized_control_1002() {
    check(&masked_frame(PING, &[0; 126]), 1002, "protocol_error");
}

#[test]
fn fragmented_control_1002() {
    check(&masked_frame(PING & 0x7F, b"x"), 1002, "protocol_error");
}

#[test]
fn continuation_without_beginning_1002() {
    check(&masked_frame(CONTINUATION, b"x"), 1002, "protocol_error");
}

#[test]
fn new_message_inside_a_fragmented_one_1002() {
    check(&concatenated(&[masked_frame(TEXT_PART, b"a"), masked_frame(TEXT, b"b")]), 1002, "protocol_error");
}

#[test]
fn close_code_that_must_not_be_sent_1002() {
    check(&masked_frame(CLOSE, &1005u16.to_be_bytes()), 1002, "protocol_error");
}

#[test]
fn close_with_half_a_code_1002() {
    check(&masked_frame(CLOSE, &[3]), 1002, "protocol_error");
}

#[test]
fn bad_utf8_1007() {
    check(&masked_frame(TEXT, &[0xC3, 0x28]), 1007, "invalid_utf8");
}

#[test]
fn bad_utf8_over_fragments_1007() {
    let frames = [masked_frame(TEXT_PART, &[0xE2, 0x82]), masked_frame(CONTINUATION, b"(")];
    check(&concatenated(&frames), 1007, "invalid_utf8");
}

#[test]
fn bad_utf8_in_a_close_reason_1007() {
    check(&masked_frame(CLOSE, &[0x03, 0xE8, 0xFF]), 1007, "invalid_utf8");
}

#[test]
fn too_large_1009() {
    check(&masked_frame(TEXT, &[b'x'; 4097]), 1009, "message_too_large");
}

#[test]
fn too_large_is_said_before_the_payload_comes_1009() {
    // A header that declares 8 EiB minus one, and not one byte of payload.
    let mut header = vec![0x82, 0xFF];
    header.extend_from_slice(&(i64::MAX as u64).to_be_bytes());
    header.extend_from_slice(&[0; 4]);
    check(&header, 1009, "message_too_large");
}

#[test]
fn too_large_in_fragments_1009() {
    let mut frames = vec![masked_frame(BINARY_PART, &[0; 1000])];
    frames.extend((0..4).map(|_| masked_frame(CONTINUATION_PART, &[0; 1000])));
    check(&concatenated(&frames), 1009, "message_too_large");
}

#[test]
fn too_large_once_inflated_1009() {
    // Python's zlib made these 34 bytes from 16,384 times 'a' (raw deflate, sync flush, the last four bytes taken off, RFC 7692 7.2.1).
    let offer = ["Sec-WebSocket-Extensions: permessage-deflate"];
    check_on("/echo", &offer, &masked_frame(TEXT | RSV1, DEFLATED_16K), 1009, "message_too_large");
}

/// See [`too_large_once_inflated_1009`].
const DEFLATED_16K: &[u8] = &[
    0xEC, 0xC1, 0x31, 0x01, 0x00, 0x00, 0x00, 0xC2, 0xA0, 0xAC, 0xEB, 0x5F, 0xC2, 0x18, 0x3E, 0x40, 0x01,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x6F, 0x03,
];

#[test]
fn broken_deflate_data_closes_with_an_error() {
    let gateway = Gateway::start();
    let mut client = RawTcp::connect(gateway.public());
    client.send(upgrade("/echo", &["Sec-WebSocket-Extensions: permessage-deflate"]).as_bytes());
    assert_eq!(client.read_head(DEADLINE).unwrap().status, 101);
    client.send(&masked_frame(TEXT | RSV1, &[0xFF; 16]));
    // RFC 7692 names no code; 1002 and 1007 are both in use.
    assert!(matches!(client.read_close_code(DEADLINE), Ok(1002 | 1007)));
    gateway.eventually_connections(0);
}

#[test]
fn control_frames_between_fragments_are_fine() {
    let gateway = Gateway::start();
    let mut client = RawTcp::upgraded(gateway.public(), "/echo");
    let frames =
        [masked_frame(TEXT_PART, b"he"), masked_frame(PING, b"!"), masked_frame(CONTINUATION, b"llo")];
    // One byte at a time: whatever the pieces, the messages are the same.
    for byte in concatenated(&frames) {
        client.send(&[byte]);
    }
    assert_eq!(client.read_frame(DEADLINE).unwrap(), (0x8A, b"!".to_vec()));
    assert_eq!(client.read_frame(DEADLINE).unwrap(), (TEXT, b"hello".to_vec()));
}

#[test]
fn an_orderly_close_is_echoed_and_counted() {
    let gateway = Gateway::start();
    let mut client = RawTcp::upgraded(gateway.public(), "/ws?channel=news");
    client.send(&masked_frame(CLOSE, &1000u16.to_be_bytes()));
    assert_eq!(client.read_close_code(DEADLINE).unwrap(), 1000);
    assert_eq!(client.read_to_end(DEADLINE).unwrap(), b"");
    gateway.eventually_metric("tidegate_disconnects_total", &[("reason", "client_closed")], |count| {
        count == 1.0
    });
}

#[test]
fn a_vanished_client_is_counted() {
    let gateway = Gateway::start();
    drop(RawTcp::upgraded(gateway.public(), "/ws?channel=news"));
    gateway
        .eventually_metric("tidegate_disconnects_total", &[("reason", "client_gone")], |count| count == 1.0);
    gateway.eventually_connections(0);
}
