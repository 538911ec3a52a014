//! Good and bad input, case by case, each in one piece and byte by byte.

use tidegate_wire::decoder::DecodeError;
use tidegate_wire::frame::CloseCode;

use crate::support::*;

const BYTES_MAX: usize = 1 << 20;

#[track_caller]
fn check(stream: &[u8], messages: &[Owned]) {
    assert_eq!(decode(stream, BYTES_MAX, false), (messages.to_vec(), Ok(())));
}

/// `messages` come out, then `error`, which closes with `code`.
#[track_caller]
fn check_fails(stream: &[u8], messages: &[Owned], error: DecodeError, code: u16) {
    assert_eq!(decode(stream, BYTES_MAX, false), (messages.to_vec(), Err(error)));
    assert_eq!(error.close_code(), CloseCode(code));
}

#[test]
fn rfc_6455_section_5_7_examples() {
    check(&[0x81, 0x85, 0x37, 0xFA, 0x21, 0x3D, 0x7F, 0x9F, 0x4D, 0x51, 0x58], &[text("Hello")]);
    check(
        &[0x8A, 0x85, 0x37, 0xFA, 0x21, 0x3D, 0x7F, 0x9F, 0x4D, 0x51, 0x58],
        &[Owned::Pong(b"Hello".to_vec())],
    );
}

#[test]
fn messages_of_every_length_form() {
    for len in [0, 1, 3, 4, 31, 32, 125, 126, 127, 65_535, 65_536, 200_000] {
        let payload: Vec<u8> = (0..len).map(|at| (at * 7) as u8).collect();
        let stream = frame(FIN | BINARY, &payload);
        let expected = (vec![binary(&payload)], Ok(()));
        assert_eq!(decode_in_pieces(&stream, &[], BYTES_MAX, false), expected, "{len} in one piece");
        assert_eq!(decode_in_pieces(&stream, &[1, 3, 9, 40], BYTES_MAX, false), expected, "{len} in pieces");
    }
}

#[test]
fn fragments_are_joined_and_control_frames_pass_between_them() {
    let stream = [
        frame(TEXT, b"Hel"),
        frame(FIN | PING, b"p"),
        frame(0, b""),
        frame(FIN | PONG, b""),
        frame(FIN, b"lo"),
        frame(FIN | BINARY, b"next"),
    ];
    let expected = [Owned::Ping(b"p".to_vec()), Owned::Pong(vec![]), text("Hello"), binary(b"next")];
    check(&stream.concat(), &expected);
}

#[test]
fn text_may_be_cut_inside_a_character() {
    let bytes = "κόσμε€𐍈".as_bytes();
    let fragment = |at: usize| {
        let first = if at == 0 { TEXT } else { 0 };
        let fin = if at + 1 == bytes.len() { FIN } else { 0 };
        frame(first | fin, &bytes[at..=at])
    };
    let stream: Vec<u8> = (0..bytes.len()).flat_map(fragment).collect();
    check(&stream, &[text("κόσμε€𐍈")]);
}

#[test]
fn frames_a_client_must_not_send() {
    let before = frame(FIN | TEXT, b"before");
    let cases: &[(&str, Vec<u8>, DecodeError)] = &[
        ("unmasked", vec![0x81, 0x01, b'x'], DecodeError::Unmasked),
        ("unmasked, empty", vec![0x81, 0x00], DecodeError::Unmasked),
        ("RSV1 without extension", frame(FIN | RSV1 | TEXT, b"x"), DecodeError::ReservedBits),
        ("RSV2", frame(FIN | 0x20 | TEXT, b"x"), DecodeError::ReservedBits),
        ("RSV3", frame(FIN | 0x10 | BINARY, b"x"), DecodeError::ReservedBits),
        ("RSV1 on a ping", frame(FIN | RSV1 | PING, b"x"), DecodeError::ReservedBits),
        ("opcode 3", frame(FIN | 0x3, b""), DecodeError::ReservedOpcode),
        ("opcode 7", frame(FIN | 0x7, b""), DecodeError::ReservedOpcode),
        ("opcode 11", frame(FIN | 0xB, b""), DecodeError::ReservedOpcode),
        ("opcode 15", frame(FIN | 0xF, b""), DecodeError::ReservedOpcode),
        ("fragmented ping", frame(PING, b""), DecodeError::ControlFragmented),
        ("fragmented close", frame(CLOSE, b""), DecodeError::ControlFragmented),
        ("ping of 126", frame(FIN | PING, &[0; 126]), DecodeError::ControlOversized),
        ("close of 64 KiB", header(FIN | CLOSE, 65_536, KEY), DecodeError::ControlOversized),
        ("continuation of nothing", frame(FIN, b"x"), DecodeError::ContinuationUnexpected),
        ("open continuation of nothing", frame(0, b"x"), DecodeError::ContinuationUnexpected),
        ("2 bytes for 125", vec![0x82, 0xFE, 0, 125, 1, 2, 3, 4], DecodeError::LengthEncoding),
        ("8 bytes for 65,535", vec![0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF], DecodeError::LengthEncoding),
        ("length with the top bit", vec![0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0], DecodeError::LengthEncoding),
        ("close payload of 1", frame(FIN | CLOSE, &[3]), DecodeError::ClosePayload),
    ];
    for (name, bad, error) in cases {
        println!("{name}");
        check_fails(bad, &[], *error, 1002);
        check_fails(&[before.clone(), bad.clone(), before.clone()].concat(), &[text("before")], *error, 1002);
    }
}

#[test]
fn a_new_message_inside_a_fragmented_one() {
    let ping = || Owned::Ping(vec![]);
    for second in [FIN | TEXT, TEXT, FIN | BINARY] {
        let stream = [frame(TEXT, b"a"), frame(FIN | PING, b""), frame(second, b"b")].concat();
        check_fails(&stream, &[ping()], DecodeError::ContinuationExpected, 1002);
    }
}

#[test]
fn close_frames() {
    check(&frame(FIN | CLOSE, b""), &[Owned::Close(None)]);
    check(&close(1000, b""), &[Owned::Close(Some((1000, String::new())))]);
    check(&close(4999, "bye €".as_bytes()), &[Owned::Close(Some((4999, "bye €".to_owned())))]);
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535] {
        check_fails(&close(code, b""), &[], DecodeError::CloseCode, 1002);
    }
    check_fails(&close(1000, b"\xFF"), &[], DecodeError::InvalidUtf8, 1007);
}

#[test]
fn nothing_after_a_close_counts() {
    let stream = [close(1000, b""), frame(FIN | TEXT, b"late"), vec![0xFF; 20]].concat();
    check(&stream, &[Owned::Close(Some((1000, String::new())))]);
}

#[test]
fn text_that_is_not_utf_8() {
    let cases: &[&[u8]] = &[
        b"\xFF",
        b"abc\xC0\x80",
        b"\xED\xA0\x80 surrogate",
        b"\xF4\x90\x80\x80 above U+10FFFF",
        b"\xCE\xBA\xE1\xBD\xB9\xCF\x83\xCE\xBC\xCE\xB5\xED\xA0\x80edited",
        b"cut at the end \xE2\x82",
    ];
    for bad in cases {
        check_fails(&frame(FIN | TEXT, bad), &[], DecodeError::InvalidUtf8, 1007);
        let (left, right) = bad.split_at(bad.len() / 2);
        check_fails(&[frame(TEXT, left), frame(FIN, right)].concat(), &[], DecodeError::InvalidUtf8, 1007);
    }
}

/// Autobahn 6.4: a message that can no longer become text fails before the rest of it arrives.
#[test]
fn invalid_text_fails_before_the_message_ends() {
    let unfinished_frame = {
        let mut stream = frame(FIN | TEXT, b"ok \xF4\x90 and more to come");
        stream.truncate(2 + 4 + 5);
        stream
    };
    check_fails(&unfinished_frame, &[], DecodeError::InvalidUtf8, 1007);
    check_fails(&frame(TEXT, b"ok \xF4\x90"), &[], DecodeError::InvalidUtf8, 1007);
    check(&frame(TEXT, b"could still be text \xF4\x8F"), &[]);
}

#[test]
fn labels_are_distinct() {
    use DecodeError as E;
    let all = [
        E::Unmasked,
        E::ReservedBits,
        E::ReservedOpcode,
        E::ControlFragmented,
        E::ControlOversized,
        E::ContinuationUnexpected,
        E::ContinuationExpected,
        E::LengthEncoding,
        E::ClosePayload,
        E::CloseCode,
        E::InvalidUtf8,
        E::InvalidDeflate,
        E::TooLarge,
    ];
    let labels: std::collections::BTreeSet<_> = all.iter().map(|error| error.label()).collect();
    assert_eq!(labels.len(), all.len());
}
