//! What a peer can make the decoder hold: nothing it only promised, and never more than the limit.

use std::ops::ControlFlow;

use tidegate_wire::decoder::{DecodeError, Decoder, Message};
use tidegate_wire::deflate::{Deflater, Inflater};

use crate::support::*;

fn deflated(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Deflater::new(6).compress(payload, &mut out);
    out
}

/// Feeds `stream`, counts messages, and hands the decoder back.
fn feed(decoder: &mut Decoder, stream: &[u8], bytes_max: usize) -> (usize, Result<(), DecodeError>) {
    let mut count = 0;
    let result = decoder.decode(&mut stream.to_vec(), bytes_max, &mut Inflater::new(), |_| {
        count += 1;
        ControlFlow::Continue(())
    });
    (count, result.map(drop))
}

#[test]
fn an_idle_decoder_is_small_and_holds_no_heap() {
    assert_eq!(size_of::<Decoder>(), 16);
    let mut decoder = Decoder::new(true);
    assert!(decoder.is_idle());
    let stream = [
        frame(FIN | TEXT, b"whole"),
        frame(TEXT, b"frag"),
        frame(FIN | PING, b"between"),
        frame(FIN, b"ment"),
        frame(FIN | RSV1 | TEXT, &deflated(b"compressed")),
    ]
    .concat();
    for byte in &stream {
        assert_eq!(feed(&mut decoder, &[*byte], 100).1, Ok(()));
    }
    assert!(decoder.is_idle(), "everything was complete");
    assert_eq!(decoder.buffered_bytes(), 0);
}

#[test]
fn a_declared_length_reserves_nothing() {
    let mut decoder = Decoder::new(false);
    let mut stream = header(FIN | BINARY, 1 << 30, KEY);
    stream.extend([0; 100]);
    assert_eq!(feed(&mut decoder, &stream, 1 << 30), (0, Ok(())));
    assert!(!decoder.is_idle());
    assert!(decoder.buffered_bytes() <= 200, "{} bytes for 100 received", decoder.buffered_bytes());
}

#[test]
fn memory_follows_what_arrived_and_stays_under_the_limit() {
    let mut decoder = Decoder::new(false);
    let bytes_max = 1_000_000;
    feed(&mut decoder, &header(BINARY, bytes_max as u64, KEY), bytes_max).1.expect("a good header");
    let mut received = 0;
    while received < bytes_max {
        let piece = 1_460.min(bytes_max - received);
        received += piece;
        feed(&mut decoder, &vec![0; piece], bytes_max).1.expect("a good payload");
        assert!(decoder.buffered_bytes() <= (2 * received).min(bytes_max));
    }
    assert_eq!(feed(&mut decoder, &frame(FIN, b""), bytes_max), (1, Ok(())));
    assert!(decoder.is_idle());
}

#[test]
fn a_frame_over_the_limit_fails_before_its_payload() {
    for len in [101, 126, 65_536, u64::MAX >> 1] {
        let stream = header(FIN | BINARY, len, KEY);
        // Without the masking key, too: the length is enough.
        let expected = (vec![], Err(DecodeError::TooLarge));
        assert_eq!(decode(&stream, 100, false), expected, "{len}");
        assert_eq!(decode(&stream[..stream.len() - 4], 100, false), expected, "{len}");
    }
    assert_eq!(decode(&frame(FIN | BINARY, &[0; 100]), 100, false).0.len(), 1, "the limit itself is allowed");
}

#[test]
fn fragments_are_summed() {
    let stream = [frame(TEXT, &[b'a'; 60]), frame(0, &[b'a'; 40]), header(FIN, 1, KEY)].concat();
    assert_eq!(decode(&stream, 100, false), (vec![], Err(DecodeError::TooLarge)));
    let stream = [frame(TEXT, &[b'a'; 60]), frame(0, &[b'a'; 40]), frame(FIN, b"")].concat();
    assert_eq!(decode(&stream, 100, false), (vec![text(&"a".repeat(100))], Ok(())));
}

#[test]
fn the_limit_of_data_does_not_bound_control_frames() {
    let stream = [frame(FIN | PING, &[1; 125]), frame(FIN | TEXT, b"ok")].concat();
    assert_eq!(decode(&stream, 10, false), (vec![Owned::Ping(vec![1; 125]), text("ok")], Ok(())));
}

#[test]
fn an_inflated_message_is_bounded() {
    let bomb = frame(FIN | RSV1 | BINARY, &deflated(&vec![0; 10_000_000]));
    assert!(bomb.len() < 20_000);
    assert_eq!(decode(&bomb, 100_000, true), (vec![], Err(DecodeError::TooLarge)));
    let fits = frame(FIN | RSV1 | BINARY, &deflated(&vec![0; 100_000]));
    assert_eq!(decode(&fits, 100_000, true), (vec![binary(&vec![0; 100_000])], Ok(())));
    assert_eq!(decode(&fits, 99_999, true), (vec![], Err(DecodeError::TooLarge)));
}

#[test]
fn compressed_fragments_are_bounded_before_they_are_inflated() {
    let stream = [frame(RSV1 | BINARY, &[0; 150]), header(FIN, 100, KEY)].concat();
    assert_eq!(decode(&stream, 100, true), (vec![], Err(DecodeError::TooLarge)));
}

#[test]
fn incompressible_messages_of_the_largest_size_pass() {
    let mut state = 1u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(50_000)
    .collect();
    for level in 0..=9 {
        let mut out = Vec::new();
        Deflater::new(level).compress(&noise, &mut out);
        let stream = frame(FIN | RSV1 | BINARY, &out);
        assert_eq!(
            decode_in_pieces(&stream, &[7], noise.len(), true),
            (vec![binary(&noise)], Ok(())),
            "{level}"
        );
    }
}

#[test]
fn compressed_messages_mix_with_plain_ones_and_fragments() {
    let out = deflated(b"Hello Hello Hello");
    let (left, right) = out.split_at(4);
    let stream = [
        frame(FIN | TEXT, b"plain"),
        frame(RSV1 | TEXT, left),
        frame(FIN | PING, b"!"),
        frame(FIN, right),
        frame(FIN | RSV1 | BINARY, &deflated(b"")),
    ];
    let expected = vec![text("plain"), Owned::Ping(b"!".to_vec()), text("Hello Hello Hello"), binary(b"")];
    assert_eq!(decode(&stream.concat(), 1000, true), (expected, Ok(())));
}

#[test]
fn bad_compression() {
    let cases: &[(&str, Vec<u8>, DecodeError)] = &[
        ("not deflate", frame(FIN | RSV1 | BINARY, &[0xFF; 8]), DecodeError::InvalidDeflate),
        ("not UTF-8 once inflated", frame(FIN | RSV1 | TEXT, &deflated(b"\xFF")), DecodeError::InvalidUtf8),
        (
            "RSV1 on a continuation",
            [frame(TEXT, b"a"), frame(FIN | RSV1, b"b")].concat(),
            DecodeError::ReservedBits,
        ),
        ("RSV1 on a ping", frame(FIN | RSV1 | PING, b""), DecodeError::ReservedBits),
    ];
    for (name, stream, error) in cases {
        assert_eq!(decode(stream, 1000, true), (vec![], Err(*error)), "{name}");
    }
    assert_eq!(DecodeError::InvalidDeflate.close_code().0, 1007);
}

#[test]
fn a_decoder_stops_where_it_is_told_and_a_finished_one_holds_nothing() {
    let mut decoder = Decoder::new(false);
    let mut seen = Vec::new();
    let mut stream = [frame(FIN | TEXT, b"1"), frame(FIN | TEXT, b"2"), frame(BINARY, b"rest")].concat();
    let result = decoder.decode(&mut stream, 100, &mut Inflater::new(), |message| {
        seen.push(Owned::from(message));
        ControlFlow::Break(())
    });
    // It stands behind the first message, whose frame has 7 bytes, and has touched nothing of the second.
    assert_eq!((seen, result), (vec![text("1")], Ok(7)));
    assert_eq!(feed(&mut decoder, &stream[7..14], 100), (1, Ok(())));

    let mut decoder = Decoder::new(false);
    let stream = [frame(BINARY, b"held"), vec![0x83]].concat();
    assert_eq!(feed(&mut decoder, &stream, 100), (0, Err(DecodeError::ReservedOpcode)));
    assert!(decoder.is_idle());
    assert_eq!(feed(&mut decoder, &frame(FIN | TEXT, b"3"), 100), (0, Ok(())));
}

#[test]
fn an_inflater_gives_a_large_buffer_back() {
    let mut decoder = Decoder::new(true);
    let mut inflater = Inflater::new();
    let mut stream = frame(FIN | RSV1 | BINARY, &deflated(&vec![7; 1 << 20]));
    let mut len = 0;
    let result = decoder.decode(&mut stream, 1 << 20, &mut inflater, |message| {
        if let Message::Binary(bytes) = message {
            len = bytes.len();
        }
        ControlFlow::Continue(())
    });
    assert_eq!((len, result.map(drop)), (1 << 20, Ok(())));
    assert_eq!(inflater.output_capacity(), 0);
}
